"""Where texts are tokenised: a few sentences at once, more in threads, so that the event loop goes on."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import numpy as np

from conlst.runtime.onnx import Predictor
from conlst.runtime.tokens import Encoded, Pair
from serving.errors import closing

# characters; XLM-R's tokenizer takes 8 ms for as many that it has never seen, 1 ms for most
_SLICE = 4000
# characters that are tokenised sooner than a thread wakes up
_AT_ONCE = 1000


class Lanes:
    """A lane for requests of one slice, and one in which longer ones take turns, slice by slice.

    Our tokenizer is pure Python, so both together are no faster than one, but the interpreter is handed on between them every few
    milliseconds: a short request never waits for a long one, and the long ones keep half of the time, where behind all shorter
    ones they might wait for ever.
    """

    def __init__(self) -> None:
        self._short, self._long = (ThreadPoolExecutor(1, f"conlst-tokenize-{lane}") for lane in ("short", "long"))
        self._closing = Lock()
        self._closed = False

    async def encode(self, predictor: Predictor, pairs: Sequence[Pair], only_first: bool) -> tuple[Encoded, float]:
        """A request's tokens, and the seconds in which a thread tokenised it.

        Args:
            only_first: how pairs that are too long are cut, as :class:`conlst.runtime.tokens.PairTokenizer` says.

        Raises:
            ApiError: 503 if the lanes are closed before its last slice.
        """
        lane = self._short if sum(map(_characters, pairs)) <= _SLICE else self._long
        parts, seconds = [], 0.0
        for part in _slices(pairs):
            with self._closing:
                if self._closed:
                    raise closing()
                # one at a time, so that the next one comes after those of the others
                future = lane.submit(_encode, predictor, part, only_first)
            encoded, took = await asyncio.wrap_future(future)
            parts.append(encoded)
            seconds += took
        ids = [row for part in parts for row in part.ids]
        return Encoded(ids, np.concatenate([part.lengths for part in parts])), seconds

    def close(self) -> None:
        """Refuse what is new and what waits."""
        with self._closing:
            self._closed = True
        for lane in (self._short, self._long):
            lane.shutdown(wait=False, cancel_futures=True)


def encode_at_once(predictor: Predictor, pairs: Sequence[Pair], only_first: bool) -> tuple[Encoded, float] | None:
    """The tokens of a few sentences, and the seconds that it took; ``None`` for more, which are for :class:`Lanes`."""
    return _encode(predictor, pairs, only_first) if sum(map(_characters, pairs)) <= _AT_ONCE else None


def _encode(predictor: Predictor, pairs: Sequence[Pair], only_first: bool) -> tuple[Encoded, float]:
    begin = time.monotonic()
    return predictor.encode(pairs, only_first), time.monotonic() - begin


def _characters(pair: Pair) -> int:
    return sum(map(len, pair))


def _slices(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """In order, each of at most ``_SLICE`` characters or of one pair."""
    slices: list[list[Pair]] = [[]]
    room = _SLICE
    for pair in pairs:
        if slices[-1] and _characters(pair) > room:
            slices.append([])
            room = _SLICE
        slices[-1].append(pair)
        room -= _characters(pair)
    return slices
