"""What every request passes on its way in and out: the limit of its body, its id, its line in the log."""

import logging
import re
import time
import uuid
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import ApiError
from serving.metrics import Metrics

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class BodyLimit:
    """Refuses a body that is too large while it arrives, so that it is never held in memory, with a length announced or not."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        too_large = announced.isdigit() and int(announced) > self._limit
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if too_large or seen > self._limit:
                # closing tells the client to stop sending what is left
                raise ApiError(
                    413, "too_large", f"the body is over {self._limit} bytes; send fewer pairs", headers={"Connection": "close"}
                )
            return message

        await self._app(scope, counted, send)


class Observed:
    """Gives every request its id and counts, logs and times its answer. What was asked is never logged, nor is a key.

    What only the routes know they leave in the request's state: ``caller``, the name of its key, and ``error``, the type of the
    error that it is answered with.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Collection[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        own = Headers(scope=scope).get("x-request-id", "")
        request_id = own if _REQUEST_ID.fullmatch(own) else uuid.uuid4().hex
        route = self._route(scope["path"])
        begin = time.perf_counter()
        status = 0
        # its own, whatever the server shares between requests
        state = scope["state"] = dict(scope.get("state", {}))

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self._app(scope, receive, observed)
        except Exception:
            # Starlette has answered with 500 and raises once more for the server to log, which does not know the id
            log.exception("%s %s failed", request_id, route)
            status = status or 500
        seconds = time.perf_counter() - begin
        # the types are written in our code, none comes from a request
        self._metrics.requests.labels(route, status, state.get("error", "")).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        by = f" by {state['caller']}" if "caller" in state else ""
        log.info("%s %s %d %.1f ms%s", request_id, route, status, seconds * 1000, by)

    def _route(self, path: str) -> str:
        """The route of a path; the page's files, however they are called, count as the page."""
        known = "/ui" if path.startswith("/ui/") else path
        return known if known in self._routes else "other"
