"""When to ask again. Knows no network and no clock but the ones it is given, so that both clients and the tests share it."""

import json
import logging
import math
import random
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from conlst.client.calls import Call, T, renumbered
from conlst.client.errors import KINDS, ApiError, BadAnswer, ClientError, Unreachable

log = logging.getLogger(__name__)

# every other status says that the same question has the same answer; 500 is a fault that asking again repeats
_PASSING = (429, 502, 503, 504)
_HOPELESS = (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.DecodingError)


@dataclass(frozen=True)
class Backoff:
    """Full jitter (Brooker, "Exponential backoff and jitter", 2015): wait ``random() · min(longest, first · 2^n)`` seconds.

    ``Retry-After`` is waited for in full and the jitter added, lest all clients return at once.
    """

    first: float = 0.25
    longest: float = 15.0
    random: Callable[[], float] = random.random
    now: Callable[[], float] = time.monotonic

    def pause(self, attempt: int, retry_after: float) -> float:
        """Seconds after failed attempt number ``attempt``, from 0."""
        return retry_after + self.random() * min(self.longest, self.first * 2.0 ** min(attempt, 60))


@dataclass(frozen=True)
class Reply:
    status: int
    headers: httpx.Headers
    body: bytes


class Exchange:
    """One question with its repetitions, all under one time limit and one request id.

    The client sends, tells how it went, and waits for the seconds that it gets in return.
    """

    def __init__(self, call: Call[T], url: str, seconds: float, backoff: Backoff, request_id: str) -> None:
        self._call = call
        self._url = url
        self._seconds = seconds
        self._backoff = backoff
        self._end = backoff.now() + seconds
        self._failed = 0
        self._last: ClientError | None = None
        self.request_id = request_id

    def left(self) -> float:
        """Seconds that are left, more than 0.

        Raises:
            ClientError: the last failure, if a pause took longer than was asked for.
        """
        left = self._end - self._backoff.now()
        if left <= 0:
            raise self._last or self._silent("the time is over")
        return left

    def still_reading(self) -> None:
        """Raises httpx.ReadTimeout if the answer comes so slowly that the time is over before its end."""
        if self._backoff.now() >= self._end:
            raise httpx.ReadTimeout("the answer was not complete in time")

    def no_reply(self, error: httpx.RequestError) -> float:
        """Seconds to wait after a connection that failed.

        Raises:
            Unreachable: if asking again would not help, or the time would be over.
        """
        hopeless = isinstance(error, _HOPELESS) or _untrusted(error)
        return self._again(self._silent(f"{type(error).__name__}: {error}"), 0.0, hopeless, error)

    def reply(self, reply: Reply) -> float | None:
        """``None`` if this is the answer, otherwise the seconds to wait.

        Raises:
            ApiError: if it is an error that stays, or the time would be over.
        """
        if reply.status in self._call.answers:
            return None
        error = _error(reply, self._url, self.request_id, self._call.first)
        return self._again(error, _retry_after(reply.headers), reply.status not in _PASSING, None)

    def _again(self, error: ClientError, retry_after: float, hopeless: bool, cause: Exception | None) -> float:
        pause = self._backoff.pause(self._failed, retry_after)
        self._failed += 1
        self._last = error
        if hopeless or not self._call.repeat or self._backoff.now() + pause >= self._end:
            raise error from cause
        log.debug("request %s failed, attempt %d: %s; again in %.2f s", self.request_id, self._failed, error, pause)
        return pause

    def _silent(self, why: str) -> Unreachable:
        return Unreachable(
            f"{self._url} gives no answer ({why}; attempt {self._failed + 1}, at most {self._seconds:g} s); is the address right "
            "and the server up?"
        )


def read(call: Call[T], reply: Reply, url: str) -> T:
    """The answer.

    Raises:
        BadAnswer: if it is not one of a conlst endpoint.
    """
    try:
        return call.read(reply.status, json.loads(reply.body) if call.parse else None)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise BadAnswer(
            f"{url} did not answer as a conlst endpoint of this version does ({type(error).__name__}: {error})"
        ) from error


def _error(reply: Reply, url: str, request_id: str, first: int) -> ApiError:
    request_id = reply.headers.get("x-request-id", request_id)
    if 300 <= reply.status < 400:
        target = reply.headers.get("location", "nowhere")
        message = f"{url} redirects to {target}, which is not followed; give the client that server's address"
        return ApiError("redirect", reply.status, message, index=None, request_id=request_id)
    try:
        told = json.loads(reply.body)["error"]
        kind, message, index = str(told["type"]), str(told["message"]), told.get("index")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        kind, message, index = "http_error", f"{url} answers with an error that is not a conlst endpoint's", None
    if isinstance(index, int):
        message, index = renumbered(message, index, first), first + index
    return KINDS.get(kind, ApiError)(kind, reply.status, message, index=index, request_id=request_id)


def _retry_after(headers: httpx.Headers) -> float:
    """Seconds that the server asks for, 0 if it does not or not comprehensibly (RFC 9110, 10.2.3: seconds or a date)."""
    text = headers.get("retry-after", "").strip()
    try:
        seconds = float(text) if text[:1].isdigit() else _seconds_until(text, headers.get("date"))
    except (ValueError, TypeError):
        # TypeError: one of two dates has no time zone
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


def _seconds_until(date: str, now: str | None) -> float:
    # by the server's clock, if it tells it
    present = parsedate_to_datetime(now) if now else datetime.now(UTC)
    return (parsedate_to_datetime(date) - present).total_seconds()


def _untrusted(error: BaseException | None) -> bool:
    """Whether it comes from a certificate, which stays as it is."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False
