"""What every request passes on its way in and out: whether it may come in, the limit of its body, its id, its line in the log."""

import logging
import random
import re
import time
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import ApiError, error_response
from serving.keys import Keys
from serving.metrics import Metrics
from serving.scheduler import Scheduler

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Admission:
    """Refuses who has no key, who asks too often, and what there is no room for, before a request costs anything more.

    Under load most requests are refused: to route them first, and to read what they ask, would take CPUs from those that are not.

    Args:
        keys: ``None`` if anyone may ask.
        public: paths that need no key. All others do, whether there is such a route or not.
        computing: paths whose requests need room in the scheduler.
    """

    def __init__(
        self, app: ASGIApp, keys: Keys | None, scheduler: Scheduler, public: Collection[str], computing: Collection[str]
    ) -> None:
        self._app = app
        self._keys = keys
        self._scheduler = scheduler
        self._public = frozenset(public)
        self._computing = frozenset(computing)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] == "http":
                self._admit(scope)
        except ApiError as error:
            await error_response(scope, error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        path = _place(scope)
        if self._keys is not None and path not in self._public:
            name = self._keys.identify(Headers(scope=scope).get("authorization", ""))
            # before it may be refused: who asks too often has to be seen
            scope["state"]["caller"] = name
            self._keys.admit(name)
        if path in self._computing:
            self._scheduler.check_room()


class BodyLimit:
    """Refuses a body that is too large while it arrives, so that it is never held in memory, with a length announced or not, and
    one that would hold too much together with the others that have not ended.

    Those that come whole in one piece, as most do, find room whatever the others hold.

    Args:
        limit: bytes of a body.
        unfinished: bytes of all bodies of which more is to come.
    """

    def __init__(self, app: ASGIApp, limit: int, unfinished: int) -> None:
        self._app = app
        self._limit = limit
        self._most = unfinished
        self._unfinished = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        too_large = announced.isdigit() and int(announced) > self._limit
        seen = held = 0

        async def counted() -> Message:
            nonlocal seen, held
            message = await receive()
            seen += len(message.get("body", b""))
            if too_large or seen > self._limit:
                # closing tells the client to stop sending what is left
                raise ApiError(
                    413, "too_large", f"the body is over {self._limit} bytes; send fewer pairs", headers={"Connection": "close"}
                )
            if message.get("more_body"):
                if self._unfinished + seen - held > self._most:
                    raise _too_many()
                self._unfinished += seen - held
                held = seen
            elif held:
                self._unfinished -= held
                held = 0
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._unfinished -= held


class Observed:
    """Gives every request its id and counts, times and logs its answer, but does not log those for whom there was no room. What
    was asked is never logged, nor is a key.

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
        # a name and no secret, so it need not come from the system
        request_id = own if _REQUEST_ID.fullmatch(own) else f"{random.getrandbits(128):032x}"
        place = _place(scope)
        route = place if place in self._routes else "other"
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
        if state.get("error") == "busy":
            # an overload has a thousand of them a second, and a line for each would slow down the answers that there are
            return
        by = f" by {state['caller']}" if "caller" in state else ""
        log.info("%s %s %d %.1f ms%s", request_id, route, status, seconds * 1000, by)


def _too_many() -> ApiError:
    # their deadlines end them, but how soon cannot be told
    message = "too many bodies are being received; try again in 1 s"
    return ApiError(429, "busy", message, headers={"Retry-After": "1", "Connection": "close"})


def _place(scope: Scope) -> str:
    """The path as the router takes it, but that of the page for its files, however they are called."""
    # its expressions end with $, which lets one line break pass
    path: str = scope["path"].removesuffix("\n")
    return "/ui" if path.startswith("/ui/") else path
