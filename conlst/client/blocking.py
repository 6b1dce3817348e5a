"""The client for ordinary programs."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from threading import Event, Thread
from types import TracebackType
from typing import Literal, Self, overload

import httpx

from conlst.client import calls
from conlst.client.answers import Catalogue, Pair, Prediction, Refused, ZeroShotResult
from conlst.client.batches import Answer, Batch, Batcher, Item, zero_shot_calls
from conlst.client.calls import Call, T
from conlst.client.exchange import Backoff, Exchange, Reply, read
from conlst.client.origin import Origin


class Client:
    """Asks one endpoint; may be shared by threads.

    Every method raises the errors of :mod:`conlst.client.errors`: :class:`Unreachable`, :class:`BadAnswer`, :class:`ApiError`.
    Redirects are not followed, so the key goes to this address only.

    Args:
        url: ``http(s)://host[:port][/path]``.
        api_key: default: the variable ``CONLST_API_KEY``; ``""`` for none.
        timeout: seconds for one question, repetitions included.
        backoff: the pauses between repetitions.
        transport: instead of the network.
        sleep: waits for some seconds.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout: float = 120.0,
        backoff: Backoff | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._origin = Origin(url, api_key, timeout, backoff or Backoff())
        self._http = httpx.Client(transport=transport, follow_redirects=False)
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def models(self) -> Catalogue:
        """What the endpoint answers for, and its limits."""
        return self._ask(calls.MODELS)

    def ready(self) -> bool:
        """Whether the endpoint answers. Asked once; raises :class:`Unreachable` if nothing listens."""
        return self._ask(calls.READY)

    @overload
    def predict(
        self,
        pairs: Sequence[Pair],
        *,
        language: str | None = None,
        truncate: bool = False,
        logits: bool = False,
        partial: Literal[False] = False,
        feedback: bool = False,
    ) -> Sequence[Prediction]: ...

    @overload
    def predict(
        self,
        pairs: Sequence[Pair],
        *,
        language: str | None = None,
        truncate: bool = False,
        logits: bool = False,
        partial: bool,
        feedback: bool = False,
    ) -> Sequence[Prediction | Refused]: ...

    def predict(
        self,
        pairs: Sequence[Pair],
        *,
        language: str | None = None,
        truncate: bool = False,
        logits: bool = False,
        partial: bool = False,
        feedback: bool = False,
    ) -> Sequence[Prediction | Refused]:
        """Answers to ``(premise, hypothesis)`` pairs, in their order, by one request. For more use :meth:`predict_stream`.

        Args:
            language: default: the endpoint detects each pair's.
            truncate: cut pairs that are too long for the model instead of refusing them.
            logits: give them too.
            partial: a bad pair becomes a :class:`Refused` in its place; otherwise it refuses the request, and the error's
                ``index`` names it.
            feedback: let the endpoint keep the pairs and answers for the next adaptation.
        """
        options = calls.options_json(language, truncate=truncate, logits=logits, partial=partial, feedback=feedback)
        return self._ask(calls.predict(list(map(calls.pair_json, pairs)), options, partial))

    def predict_stream(
        self,
        pairs: Iterable[Item],
        *,
        language: str | None = None,
        truncate: bool = False,
        logits: bool = False,
        feedback: bool = False,
        concurrency: int = 4,
    ) -> Generator[Answer, None, None]:
        """Answers to any number of pairs, in their order, in bounded memory.

        A pair that cannot be answered becomes a :class:`Refused` in its place, and one among the pairs is passed on.
        Pairs are taken as answers are read, a few requests ahead; the sizes of requests come from :meth:`models`.

        Args:
            concurrency: requests in flight.

        Raises:
            ValueError: if ``concurrency`` is below 1.
        """
        calls.check_concurrency(concurrency)
        options = calls.options_json(language, truncate=truncate, logits=logits, partial=True, feedback=feedback)
        left = Event()
        waiting: deque[Future[list[Answer]]] = deque()
        try:
            for batch in _batches(pairs, Batcher(self.models().limits, options)):
                first = waiting.popleft().result() if len(waiting) == concurrency else []
                # sent before the consumer works on what came
                waiting.append(_in_background(self._answer, batch, left))
                yield from first
            while waiting:
                yield from waiting.popleft().result()
        finally:
            # what is in flight when the consumer leaves is not asked again
            left.set()

    @overload
    def zero_shot(
        self,
        texts: Sequence[str],
        labels: Sequence[str],
        template: str = calls.TEMPLATE,
        multi_label: bool = False,
        language: str | None = None,
        truncate: bool = False,
        *,
        partial: Literal[False] = False,
    ) -> Sequence[ZeroShotResult]: ...

    @overload
    def zero_shot(
        self,
        texts: Sequence[str],
        labels: Sequence[str],
        template: str = calls.TEMPLATE,
        multi_label: bool = False,
        language: str | None = None,
        truncate: bool = False,
        *,
        partial: bool,
    ) -> Sequence[ZeroShotResult | Refused]: ...

    def zero_shot(
        self,
        texts: Sequence[str],
        labels: Sequence[str],
        template: str = calls.TEMPLATE,
        multi_label: bool = False,
        language: str | None = None,
        truncate: bool = False,
        *,
        partial: bool = False,
    ) -> Sequence[ZeroShotResult | Refused]:
        """Candidate labels for texts, in their order, as Hugging Face's ``zero-shot-classification`` ranks them.

        Any number of texts: they are asked in requests within the limits of :meth:`models`, one after another, each with the
        client's ``timeout``. A text takes one pair of these limits for each label, so more labels than pairs are an error.

        Args:
            template: the hypothesis, ``{}`` stands for the label.
            multi_label: score each label by itself; otherwise the scores of a text sum to one.
            language: default: the endpoint detects each text's.
            truncate: cut texts that are too long for the model instead of refusing them.
            partial: a bad text becomes a :class:`Refused` in its place; otherwise it ends the call, and the error's ``index``
                names it.
        """
        asked = calls.texts_json(texts)
        candidates = calls.candidates_json(
            labels, template, multi_label=multi_label, language=language, truncate=truncate, partial=partial
        )
        if len(asked) <= 1:
            # nothing to divide, whatever the limits are
            return self._ask(calls.zero_shot(asked, candidates, partial))
        results: list[ZeroShotResult | Refused] = []
        for call in zero_shot_calls(asked, len(labels), candidates, partial, self.models().limits):
            answers = self._ask(call)
            results += answers
        return results

    def _answer(self, batch: Batch, left: Event) -> list[Answer]:
        def sleep(seconds: float) -> None:
            self._sleep(seconds)
            if left.is_set():
                raise CancelledError

        return batch.merge(self._ask(batch.call, sleep) if batch.call else ())

    def _ask(self, call: Call[T], sleep: Callable[[float], None] | None = None) -> T:
        exchange = self._origin.begin(call)
        while True:
            try:
                reply = self._send(call, exchange)
            except httpx.RequestError as error:
                pause = exchange.no_reply(error)
            else:
                wait = exchange.reply(reply)
                if wait is None:
                    return read(call, reply, self._origin.url + call.path)
                pause = wait
            (sleep or self._sleep)(pause)

    def _send(self, call: Call[T], exchange: Exchange) -> Reply:
        with self._http.stream(**self._origin.request(call, exchange)) as response:
            body = bytearray()
            for block in response.iter_bytes():
                body += block
                exchange.still_reading()
            return Reply(response.status_code, response.headers, bytes(body))


def _in_background(work: Callable[..., T], *given: object) -> Future[T]:
    """As an executor does it, but in a thread that a program which ends does not wait for: the endpoint may hang."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work(*given))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name="conlst-client", daemon=True).start()
    return future


def _batches(pairs: Iterable[Item], batcher: Batcher) -> Iterator[Batch]:
    for pair in pairs:
        if batch := batcher.add(pair):
            yield batch
    if batch := batcher.rest():
        yield batch
