"""From pairs and their models to logits: each model's pairs go to the scheduler, all models' beside each other."""

import asyncio
from collections.abc import Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from conlst.runtime.tokens import Encoded, Pair
from serving.models import Served
from serving.scheduler import Logits, Scheduler, Tokenized

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """Pairs of a request that one model answers.

    Attributes:
        places: their indices in the request.
    """

    served: Served
    places: list[int]
    encoded: Encoded

    @property
    def long(self) -> dict[int, int]:
        """Tokens of the pairs that are too long for the model, by their indices in the request."""
        lengths = self.encoded.lengths
        return {self.places[row]: int(lengths[row]) for row in np.flatnonzero(lengths > self.served.predictor.max_length)}

    @property
    def uncut(self) -> list[int]:
        """Indices in the request of the pairs that are too long for the model and could not be cut."""
        most = self.served.predictor.max_length
        return [place for place, ids in zip(self.places, self.encoded.ids, strict=True) if len(ids) > most]

    def without(self, places: Collection[int]) -> "Part":
        keep = [row for row, place in enumerate(self.places) if place not in places]
        if len(keep) == len(self.places):
            return self
        ids = [self.encoded.ids[row] for row in keep]
        return Part(self.served, [self.places[row] for row in keep], Encoded(ids, self.encoded.lengths[keep]))


@dataclass(frozen=True)
class PartLogits:
    """Of one part: logits ``[n, 3]`` float32, NaN for the places that the model could not compute."""

    part: Part
    logits: Logits
    failed: list[int]


@dataclass
class Timing:
    """Seconds of a request by what they went into; of several models' parts, the longest."""

    detect: float | None = None
    queue: float = 0.0
    tokenize: float = 0.0
    inference: float = 0.0

    def stages(self) -> dict[str, float]:
        stages = {"queue": self.queue, "tokenize": self.tokenize, "inference": self.inference}
        return stages if self.detect is None else {"detect": self.detect, **stages}

    def header(self) -> str:
        return ", ".join(f"{stage};dur={seconds * 1000:.2f}" for stage, seconds in self.stages().items())


async def encode_parts(
    scheduler: Scheduler,
    pairs: Sequence[Pair],
    models: Mapping[int, Served],
    deadline: float,
    timing: Timing,
    only_first: bool = False,
) -> list[Part]:
    """Tokenise pairs for their models.

    Args:
        models: by index, of the pairs that are to be answered.
        only_first: how pairs that are too long are cut, as :class:`conlst.runtime.tokens.PairTokenizer` says.

    Raises:
        ApiError: 429 if too much waits, 504 after the deadline.
    """
    places: dict[int, list[int]] = {}
    for index, served in models.items():
        places.setdefault(id(served), []).append(index)

    async def one(of_one: list[int]) -> Tokenized:
        asked = [pairs[index] for index in of_one]
        return await scheduler.encode(models[of_one[0]].predictor, asked, deadline, only_first)

    tokenized = await _all(one(of_one) for of_one in places.values())
    timing.queue += max((each.queue_seconds for each in tokenized), default=0.0)
    timing.tokenize = max((each.tokenize_seconds for each in tokenized), default=0.0)
    return [Part(models[of_one[0]], of_one, each.encoded) for of_one, each in zip(places.values(), tokenized, strict=True)]


async def score_parts(scheduler: Scheduler, parts: Sequence[Part], deadline: float, timing: Timing) -> list[PartLogits]:
    """Compute the parts' logits.

    Raises:
        ApiError: 429 if too much waits, 504 after the deadline.
    """

    scored = await _all(scheduler.score(part.served.predictor, part.encoded, deadline) for part in parts)
    timing.queue += max((each.queue_seconds for each in scored), default=0.0)
    timing.inference = max((each.inference_seconds for each in scored), default=0.0)
    return [
        PartLogits(part, each.logits, [part.places[row] for row in each.failed]) for part, each in zip(parts, scored, strict=True)
    ]


async def _all(work: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """Results in order; the first failure cancels the rest."""
    coroutines = list(work)
    if len(coroutines) == 1:
        return [await coroutines[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except ExceptionGroup as errors:
        # one of them is enough of an answer
        first = errors.exceptions[0]
    else:
        return [task.result() for task in tasks]
    # not from within, where it would take the whole group along, and with it what all of them had
    raise first
