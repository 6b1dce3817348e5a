"""Connections whose requests' heads do not end are closed: uvicorn waits for them for ever, and keeps heads of any size."""

import asyncio
import math
from typing import Any

from uvicorn import config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# between two looks at a connection; it is closed at the second one that finds it in the same request's head
_HEAD_SECONDS = 30.0
# as much as h11 allows, uvicorn's other parser
_HEAD_BYTES = 65_536


class Connection(HttpToolsProtocol):
    """uvicorn's own, with a count of a head's bytes, and a timer that costs requests nothing: it belongs to the connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        # what it waited for at the last look: the head after this request, or after none
        self._waited_after: Any = self
        self._looks = 0
        self._head_bytes = 0
        self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        # else the timer would keep every connection in memory until it ends
        self._looking.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and self.scope is self.cycle.scope:
            self._head_bytes = 0
        elif not self._head_bytes:
            # a first piece, which may hold the end of another request's body
            self._head_bytes = 1
        else:
            self._head_bytes += len(data)
            if self._head_bytes > _HEAD_BYTES:
                self.transport.close()

    def _look_later(self) -> None:
        self._looking = self.loop.call_later(_HEAD_SECONDS, self._look)

    def _look(self) -> None:
        # uvicorn's own timer is for those that wait after an answer and have sent nothing since
        waits = (self.cycle is None or self.cycle.response_complete) and self.timeout_keep_alive_task is None
        self._looks = self._looks + 1 if waits and self._waited_after is self.cycle else 0
        self._waited_after = self.cycle if waits else self
        if self._looks >= self._most_looks():
            self.transport.close()
        else:
            self._look_later()

    def _most_looks(self) -> int:
        if self.cycle is not None and self.scope is self.cycle.scope:
            # what came since was the rest of a body that was answered unread: it may rest as long as any other
            return math.ceil(self.timeout_keep_alive / _HEAD_SECONDS)
        return 1


def install() -> None:
    """Have every server that uvicorn starts with its defaults, as BentoML has it, use such connections."""
    config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{Connection.__name__}"
