"""The client for programs on asyncio: the same methods as :class:`conlst.client.Client`."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Literal, Self, overload

import httpx

from conlst.client import calls
from conlst.client.answers import Catalogue, Pair, Prediction, Refused, ZeroShotResult
from conlst.client.batches import Answer, Batch, Batcher, Item, zero_shot_calls
from conlst.client.calls import Call, T
from conlst.client.exchange import Backoff, Exchange, Reply, read
from conlst.client.origin import Origin


class AsyncClient:
    """Asks one endpoint. What it takes and raises is told at :class:`conlst.client.Client`."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout: float = 120.0,
        backoff: Backoff | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._origin = Origin(url, api_key, timeout, backoff or Backoff())
        self._http = httpx.AsyncClient(transport=transport, follow_redirects=False)
        self._sleep = sleep

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def models(self) -> Catalogue:
        """What the endpoint answers for, and its limits."""
        return await self._ask(calls.MODELS)

    async def ready(self) -> bool:
        """Whether the endpoint answers. Asked once; raises :class:`Unreachable` if nothing listens."""
        return await self._ask(calls.READY)

    @overload
    async def predict(
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
    async def predict(
        self,
        pairs: Sequence[Pair],
        *,
        language: str | None = None,
        truncate: bool = False,
        logits: bool = False,
        partial: bool,
        feedback: bool = False,
    ) -> Sequence[Prediction | Refused]: ...

    async def predict(
        self,
        pairs: Sequence[Pair],
        *,
        language: str | None = None,
        truncate: bool = False,
        logits: bool = False,
        partial: bool = False,
        feedback: bool = False,
    ) -> Sequence[Prediction | Refused]:
        """As :meth:`conlst.client.Client.predict`."""
        options = calls.options_json(language, truncate=truncate, logits=logits, partial=partial, feedback=feedback)
        return await self._ask(calls.predict(list(map(calls.pair_json, pairs)), options, partial))

    async def predict_stream(
        self,
        pairs: Iterable[Item] | AsyncIterable[Item],
        *,
        language: str | None = None,
        truncate: bool = False,
        logits: bool = False,
        feedback: bool = False,
        concurrency: int = 4,
    ) -> AsyncGenerator[Answer, None]:
        """As :meth:`conlst.client.Client.predict_stream`; who leaves early closes it (``contextlib.aclosing``)."""
        calls.check_concurrency(concurrency)
        options = calls.options_json(language, truncate=truncate, logits=logits, partial=True, feedback=feedback)
        waiting: deque[asyncio.Task[list[Answer]]] = deque()
        try:
            async for batch in _batches(pairs, Batcher((await self.models()).limits, options)):
                first = await waiting.popleft() if len(waiting) == concurrency else []
                # sent before the consumer works on what came
                waiting.append(asyncio.create_task(self._answer(batch)))
                for answer in first:
                    yield answer
            while waiting:
                for answer in await waiting.popleft():
                    yield answer
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    @overload
    async def zero_shot(
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
    async def zero_shot(
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

    async def zero_shot(
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
        """As :meth:`conlst.client.Client.zero_shot`."""
        asked = calls.texts_json(texts)
        candidates = calls.candidates_json(
            labels, template, multi_label=multi_label, language=language, truncate=truncate, partial=partial
        )
        if len(asked) <= 1:
            # nothing to divide, whatever the limits are
            return await self._ask(calls.zero_shot(asked, candidates, partial))
        results: list[ZeroShotResult | Refused] = []
        for call in zero_shot_calls(asked, len(labels), candidates, partial, (await self.models()).limits):
            answers = await self._ask(call)
            results += answers
        return results

    async def _answer(self, batch: Batch) -> list[Answer]:
        return batch.merge(await self._ask(batch.call) if batch.call else ())

    async def _ask(self, call: Call[T]) -> T:
        exchange = self._origin.begin(call)
        while True:
            try:
                reply = await self._send(call, exchange)
            except httpx.RequestError as error:
                pause = exchange.no_reply(error)
            else:
                wait = exchange.reply(reply)
                if wait is None:
                    return read(call, reply, self._origin.url + call.path)
                pause = wait
            await self._sleep(pause)

    async def _send(self, call: Call[T], exchange: Exchange) -> Reply:
        async with self._http.stream(**self._origin.request(call, exchange)) as response:
            body = bytearray()
            async for block in response.aiter_bytes():
                body += block
                exchange.still_reading()
            return Reply(response.status_code, response.headers, bytes(body))


async def _batches(pairs: Iterable[Item] | AsyncIterable[Item], batcher: Batcher) -> AsyncIterator[Batch]:
    if isinstance(pairs, AsyncIterable):
        async for pair in pairs:
            if batch := batcher.add(pair):
                yield batch
    else:
        for pair in pairs:
            if batch := batcher.add(pair):
                yield batch
    if batch := batcher.rest():
        yield batch
