"""One scheduler for the models of all languages: what many requests ask is computed together, some runs side by side."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from conlst.contract.labels import NAMES
from conlst.runtime.onnx import Predictor
from conlst.runtime.threads import keep_apart, step_back
from conlst.runtime.tokens import Encoded, Pair
from serving.errors import ApiError, closing
from serving.lanes import Lanes, encode_at_once
from serving.rows import Row, Rows

log = logging.getLogger(__name__)

BEHIND_THE_LOOP = 5
"""How far threads that compute or load models step back behind the event loop. A loop that Linux lets wait for them, some
milliseconds at a time, may hold the interpreter meanwhile, and then they wait for the loop."""

T = TypeVar("T")
Logits = NDArray[np.float32]

# how much of what was measured before still counts after a run: the speed is that of the last twenty or so
_MEMORY = 0.95


@dataclass(frozen=True)
class Tokenized:
    """A request's tokens.

    Attributes:
        queue_seconds: time that the request waited, beside ``tokenize_seconds``.
        tokenize_seconds: time in which it was tokenised.
    """

    encoded: Encoded
    queue_seconds: float
    tokenize_seconds: float


@dataclass(frozen=True)
class Scored:
    """A request's answers.

    Attributes:
        logits: ``[n, 3]`` float32; NaN for a pair that failed.
        failed: indices of the pairs that the model could not compute.
        queue_seconds: time that the request waited, beside ``inference_seconds``.
        inference_seconds: time in which a run or several computed a part of it.
    """

    logits: Logits
    failed: tuple[int, ...]
    queue_seconds: float
    inference_seconds: float


@dataclass(eq=False)
class _Request:
    """A request inside. ``waiting`` are its rows that no run has begun with; ``runs`` of it are under way, ``since`` when."""

    predictor: Predictor
    ids: list[list[int]]
    deadline: float
    loop: asyncio.AbstractEventLoop
    answered: asyncio.Future[None]
    logits: Logits
    came: float
    waiting: dict[int, "Row[_Request]"] = field(default_factory=dict)
    unanswered: int = 0
    failed: list[int] = field(default_factory=list)
    runs: int = 0
    since: float = 0.0
    inference_seconds: float = 0.0
    error: ApiError | None = None


class Scheduler:
    """Gathers the rows of requests while runs compute, and begins the next one as soon as one of them ends.

    In INT8 small runs side by side compute more than one large run that divides its operators among the CPUs, half as much again
    and more; in float32 they are on par (``benchmarks/serving_limit.py``). Models take turns, a run each. Within a model
    :class:`serving.rows.Rows` decides.

    Whoever finds it full, or cannot be answered before its deadline, is sent away at once: otherwise an overload turns into
    answers that come when nobody waits for them any more.

    Args:
        max_waiting: requests that may wait, in the queue or to be tokenised.
        max_waiting_tokens: tokens that may wait. When none do, a request of any size is let in.
        batch_tokens: budget of padded tokens in one run.
        runs: how many there may be at the same time.
    """

    def __init__(self, max_waiting: int, max_waiting_tokens: int, batch_tokens: int, runs: int) -> None:
        self._max_waiting = max_waiting
        self._max_waiting_tokens = max_waiting_tokens
        self._batch_tokens = batch_tokens
        self._changed = Condition()
        # in the order of their turns; a model without waiting rows is not kept, so that one that was swapped out is freed
        self._queues: dict[Predictor, Rows[_Request]] = {}
        self._waiting: set[_Request] = set()
        self._waiting_tokens = 0
        self._encoding = 0
        self._idle = runs
        self._closed = False
        self._tokens, self._seconds = 0.0, 0.0
        self._lanes = Lanes()
        self._threads = [
            Thread(target=self._compute, name=f"conlst-compute-{place}", args=(place, runs), daemon=True) for place in range(runs)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Requests with a pair that no run has begun with, those to be tokenised included."""
        return len(self._waiting) + self._encoding

    @property
    def waiting_tokens(self) -> int:
        """Tokens in the queue."""
        return self._waiting_tokens

    def check_room(self) -> None:
        """Before a request is even read: what it costs to refuse one decides how many a server can refuse.

        Raises:
            ApiError: 429 if too much waits, 503 if the server is ending.
        """
        with self._changed:
            self._check_room(0)

    async def encode(self, predictor: Predictor, pairs: Sequence[Pair], deadline: float, only_first: bool = False) -> Tokenized:
        """Tokenise a request, off the event loop unless it is a few sentences. Refused if it would only be refused later.

        Args:
            deadline: on the clock of ``time.monotonic``.
            only_first: how pairs that are too long are cut, as :class:`conlst.runtime.tokens.PairTokenizer` says.

        Raises:
            ApiError: as :meth:`score`.
        """
        came = time.monotonic()
        with self._changed:
            self._admit(predictor, 0, deadline)
        if at_once := encode_at_once(predictor, pairs, only_first):
            return Tokenized(at_once[0], 0.0, at_once[1])
        with self._changed:
            self._encoding += 1
        try:
            encoded, seconds = await _until(deadline, self._lanes.encode(predictor, pairs, only_first))
        finally:
            with self._changed:
                self._encoding -= 1
        return Tokenized(encoded, max(0.0, time.monotonic() - came - seconds), seconds)

    async def score(self, predictor: Predictor, encoded: Encoded, deadline: float) -> Scored:
        """Wait for a request's logits. Cancelled, its rows leave the queue.

        Args:
            deadline: on the clock of ``time.monotonic``; what no run has begun with by then is not computed.

        Raises:
            ApiError: 429 if too much waits, altogether or for the deadline, 504 if it passed, 503 if the server is ending.
        """
        request = _Request(
            predictor,
            encoded.ids,
            deadline,
            loop := asyncio.get_running_loop(),
            loop.create_future(),
            np.full((len(encoded.ids), len(NAMES)), np.nan, np.float32),
            time.monotonic(),
            unanswered=len(encoded.ids),
        )
        if encoded.ids:
            self._enter(request)
            try:
                await _until(deadline, request.answered)
            finally:
                with self._changed:
                    self._withdraw(request)
        if request.error is not None:
            raise request.error
        waited = time.monotonic() - request.came - request.inference_seconds
        return Scored(request.logits, tuple(sorted(request.failed)), max(0.0, waited), request.inference_seconds)

    def close(self) -> None:
        """Refuse what is new and what waits. Runs that are under way end by themselves."""
        with self._changed:
            self._closed = True
            left = list(self._waiting)
            for request in left:
                self._withdraw(request)
                request.error = closing()
            self._changed.notify_all()
        _answer(left)
        self._lanes.close()

    def _enter(self, request: _Request) -> None:
        lengths = [len(row) for row in request.ids]
        with self._changed:
            self._admit(request.predictor, sum(lengths), request.deadline)
            queue = self._queues.setdefault(request.predictor, Rows())
            request.waiting = {row.place: row for row in queue.add(request, lengths)}
            self._waiting.add(request)
            self._waiting_tokens += sum(lengths)
            # a thread that wakes up for nothing takes the interpreter from the one that computes
            self._changed.notify(len(lengths))

    def _admit(self, predictor: Predictor, tokens: int, deadline: float) -> None:
        """Refuse what would wait in vain. With the lock held."""
        now = time.monotonic()
        if deadline <= now:
            raise _too_late()
        self._check_room(tokens)
        # an estimate turns nobody away for whom there is nothing to wait
        if self._waiting_tokens and now + self._seconds_of(self._until_done(predictor, tokens)) > deadline:
            raise self._busy("what waits takes longer than the deadline leaves")

    def _check_room(self, tokens: int) -> None:
        """With the lock held."""
        if self._closed:
            raise closing()
        # what an idle thread is about to take does not wait
        crowded = self.waiting >= self._max_waiting + self._idle
        if crowded or (self._waiting_tokens and self._waiting_tokens + tokens > self._max_waiting_tokens):
            raise self._busy("too many requests are waiting")

    def _busy(self, problem: str) -> ApiError:
        """With the lock held."""
        # by then all that waits now has been computed; before anything was measured a second is a guess
        wait = max(1, math.ceil(self._seconds_of(self._waiting_tokens)))
        return ApiError(429, "busy", f"{problem}; try again in {wait} s", headers={"Retry-After": str(wait)})

    def _until_done(self, predictor: Predictor, tokens: int) -> int:
        """Tokens that are computed before a request is answered that comes now with so many. With the lock held."""
        queue = self._queues.get(predictor)
        own = queue.until_done(tokens) if queue else tokens
        # models take turns: meanwhile each of the others computes as much, if it has as much
        return own + sum(min(own, queue.tokens) for model, queue in self._queues.items() if model is not predictor)

    def _seconds_of(self, tokens: int) -> float:
        """What all threads take for so many, 0 before anything was measured. With the lock held."""
        return tokens * self._seconds / self._tokens / len(self._threads) if self._tokens else 0.0

    def _withdraw(self, request: _Request) -> None:
        """Drop the rows that no run has begun with. With the lock held."""
        if request.waiting:
            rows = list(request.waiting.values())
            queue = self._queues[request.predictor]
            queue.remove(rows)
            if not queue:
                del self._queues[request.predictor]
            self._begin(rows)

    def _begin(self, rows: list[Row[_Request]]) -> None:
        """Count rows that left the queue as waiting no more. With the lock held."""
        for row in rows:
            self._waiting_tokens -= row.length
            del row.owner.waiting[row.place]
            if not row.owner.waiting:
                self._waiting.discard(row.owner)

    def _compute(self, place: int, runs: int) -> None:
        step_back(BEHIND_THE_LOOP)
        keep_apart(place, runs)
        while self._wait():
            # in a frame of its own: a model must not be held by a thread that waits for the next one
            self._run_next()

    def _wait(self) -> bool:
        """Until there is something to compute; not so if there never will be."""
        with self._changed:
            self._changed.wait_for(lambda: self._queues or self._closed)
            return bool(self._queues)

    def _run_next(self) -> None:
        begin = time.monotonic()
        with self._changed:
            rows = self._take(begin)
            requests = {row.owner for row in rows}
            for request in requests:
                if not request.runs:
                    request.since = begin
                request.runs += 1
            self._idle -= bool(rows)
        if not rows:
            return
        logits = _logits(rows[0].owner.predictor, [row.owner.ids[row.place] for row in rows])
        end = time.monotonic()
        with self._changed:
            self._idle += 1
            self._tokens = self._tokens * _MEMORY + sum(row.length for row in rows)
            self._seconds = self._seconds * _MEMORY + end - begin
            for row, result in zip(rows, logits, strict=True):
                row.owner.logits[row.place] = result
                row.owner.unanswered -= 1
                # a row is NaN as a whole or not at all
                if math.isnan(result[0]):
                    row.owner.failed.append(row.place)
            for request in requests:
                request.runs -= 1
                if not request.runs:
                    request.inference_seconds += end - request.since
            answered = [request for request in requests if not request.unanswered]
        _answer(answered)

    def _take(self, now: float) -> list[Row[_Request]]:
        """The rows of the next run, none if those left in the meantime. With the lock held."""
        if not self._queues:
            return []
        predictor = next(iter(self._queues))
        queue = self._queues.pop(predictor)
        # a thread leaves their share to the others that are idle, but for those that the other models' queues will take
        sharing = max(1, self._idle - len(self._queues))
        rows = queue.take(min(self._batch_tokens, math.ceil(queue.tokens / sharing)))
        if queue:
            self._queues[predictor] = queue
        self._begin(rows)
        # their requests' own timers answer them
        return [row for row in rows if now < row.owner.deadline]


def _logits(predictor: Predictor, ids: list[list[int]]) -> Logits:
    """``[n, 3]``. If the run fails, every row is computed alone; NaN for those that fail again."""
    try:
        logits = predictor.run(ids)
        if logits.shape == (len(ids), len(NAMES)) and np.isfinite(logits).all():
            return logits
        problem = f"its answer of shape {logits.shape} is not {len(NAMES)} finite numbers a pair"
    except Exception as error:  # onnxruntime's errors share no base, and whatever it is must not end the thread
        problem = f"{type(error).__name__}: {error}"
    if len(ids) == 1:
        log.error("the model of %s cannot compute a pair of %d tokens: %s", predictor.language, len(ids[0]), problem)
        return np.full((1, len(NAMES)), np.nan, np.float32)
    log.warning("the model of %s failed on %d pairs, each is now computed alone: %s", predictor.language, len(ids), problem)
    return np.concatenate([_logits(predictor, [row]) for row in ids])


def _answer(requests: list[_Request]) -> None:
    """Wake the requests, from any thread; those of one event loop at once."""
    for loop in {request.loop for request in requests}:
        try:
            loop.call_soon_threadsafe(_wake, [request.answered for request in requests if request.loop is loop])
        except RuntimeError:
            # the loop has ended, and with it everyone who waited there
            log.debug("nobody waits for the answers any more")


def _wake(answered: list[asyncio.Future[None]]) -> None:
    for future in answered:
        if not future.done():
            future.set_result(None)


async def _until(deadline: float, result: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await result
    except TimeoutError:
        raise _too_late() from None


def _too_late() -> ApiError:
    return ApiError(504, "deadline", "the deadline passed before the answer was computed; try again, or give it more time")
