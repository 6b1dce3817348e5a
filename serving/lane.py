"""One computing thread behind a line of bounded length."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

from serving.errors import ApiError

T = TypeVar("T")


class Lane:
    """Runs work off the event loop, one piece after the other: a model run already uses every CPU.

    Who finds the line full is sent away at once. A queue without a bound turns an overload into answers that come when nobody
    waits for them any more.
    """

    def __init__(self, max_waiting: int) -> None:
        self._room = max_waiting + 1
        self._inside = 0
        self._lock = Lock()
        self._executor = ThreadPoolExecutor(1, "conlst-compute")

    @property
    def waiting(self) -> int:
        """Pieces of work that wait for the thread."""
        return max(0, self._inside - 1)

    async def run(self, work: Callable[[], T]) -> T:
        """Wait for the thread and for the result. Cancelled while it waits, the work is never begun.

        Raises:
            ApiError: 429 if the line is full.
        """
        with self._lock:
            if self._inside >= self._room:
                raise ApiError(429, "busy", "too many requests are waiting; try again in a second", headers={"Retry-After": "1"})
            self._inside += 1
        future = self._executor.submit(work)
        future.add_done_callback(self._leave)
        return await asyncio.wrap_future(future)

    def _leave(self, _: "Future[T]") -> None:
        with self._lock:
            self._inside -= 1
