"""From any number of pairs to requests within the endpoint's limits, and from their answers back to the order of the pairs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from conlst.client.answers import Limits, Pair, Prediction, Refused, ZeroShotResult
from conlst.client.calls import OVERHEAD, SEPARATOR, Call, pair_json, predict, zero_shot

Item = Pair | Refused
Answer = Prediction | Refused


@dataclass(frozen=True)
class Batch:
    """Neighbours of a stream.

    Attributes:
        places: of each, ``None`` where the endpoint is asked, or the answer that needs no asking.
        call: ``None`` if there is nothing to ask.
    """

    places: tuple[Refused | None, ...]
    call: Call[Sequence[Answer]] | None

    def merge(self, answers: Sequence[Answer]) -> list[Answer]:
        """Answers of the whole batch, in order."""
        asked = iter(answers)
        return [next(asked) if place is None else place for place in self.places]


class Batcher:
    """Takes pairs one at a time and gives a batch back whenever one is full.

    A pair that no request could hold is refused here; a :class:`Refused` among the pairs keeps its place.
    """

    def __init__(self, limits: Limits, options: bytes) -> None:
        self._limits = limits
        self._options = options
        self._places: list[Refused | None] = []
        self._pairs: list[bytes] = []
        self._empty = OVERHEAD + len(options)
        self._bytes = self._empty

    def add(self, item: Item) -> Batch | None:
        """Take a pair; returns the batch that it does not fit in any more.

        Raises:
            TypeError: if it is no pair of strings.
        """
        if isinstance(item, Refused):
            full = self._make_room(0)
            self._places.append(item)
            return full
        pair = pair_json(item)
        size = len(pair) + len(SEPARATOR)
        if self._empty + size > self._limits.body_bytes:
            return self.add(Refused("too_long", f"the pair has {len(pair)} bytes, more than a request may hold; shorten it"))
        full = self._make_room(size)
        self._places.append(None)
        self._pairs.append(pair)
        self._bytes += size
        return full

    def rest(self) -> Batch | None:
        """What is left at the end."""
        if not self._places:
            return None
        call = predict(self._pairs, self._options, partial=True) if self._pairs else None
        batch = Batch(tuple(self._places), call)
        self._places, self._pairs, self._bytes = [], [], self._empty
        return batch

    def _make_room(self, size: int) -> Batch | None:
        full = len(self._places) >= self._limits.pairs or self._bytes + size > self._limits.body_bytes
        return self.rest() if full else None


def zero_shot_calls(
    texts: Sequence[bytes], labels: int, candidates: bytes, partial: bool, limits: Limits
) -> Iterator[Call[Sequence[ZeroShotResult | Refused]]]:
    """Requests for the labels of texts, in order, each with as many neighbours as the endpoint takes with so many labels.

    A text that no request could hold stands alone in one: the endpoint says best what is too much.
    """
    most = max(1, limits.pairs // max(1, labels))
    empty = OVERHEAD + len(candidates)
    first, size = 0, empty
    for index, text in enumerate(texts):
        size += len(text) + len(SEPARATOR)
        if index > first and (index - first == most or size > limits.body_bytes):
            yield zero_shot(texts[first:index], candidates, partial, first)
            first, size = index, empty + len(text) + len(SEPARATOR)
    yield zero_shot(texts[first:], candidates, partial, first)
