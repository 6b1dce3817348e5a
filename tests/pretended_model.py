"""A model that only the scheduler's tests have, and requests for it that can be held where a test wants them."""

import asyncio
import math
from threading import Event

import numpy as np
import pytest

from conlst.runtime.tokens import Encoded
from serving.errors import ApiError

BAD = 666
NEVER = math.inf
# a pair of more characters than are tokenised without a break
LONG = ("w" * 3900, "w" * 3900)


class Model:
    """Stands for a predictor: a row's logits are its first token, its length and nothing. It can be held in the middle of a run.

    A pair is five tokens, each as its premise is long.

    Attributes:
        runs: the first tokens of the rows of each run.
    """

    def __init__(self, language="sw"):
        self.language = language
        self.runs = []
        self.begun = Event()
        self.free = Event()
        self.free.set()

    def hold(self):
        self.begun.clear()
        self.free.clear()

    def run(self, rows):
        self.runs.append([row[0] for row in rows])
        self.begun.set()
        assert self.free.wait(30)
        if any(row[0] == BAD for row in rows):
            raise RuntimeError("indices element out of data bounds")
        return np.asarray([[row[0], len(row), 0] for row in rows], np.float32)

    def encode(self, pairs, *_):
        return encoded(*(len(premise) for premise, _ in pairs))


class Reader(Model):
    """Can be held in the middle of tokenising instead.

    Attributes:
        read: the pairs that were tokenised, in their order.
    """

    def __init__(self):
        super().__init__()
        self.read = []

    def encode(self, pairs, *how):
        self.read += pairs
        self.begun.set()
        assert self.free.wait(30)
        return super().encode(pairs, *how)


class Slow(Model):
    """Computes ten tokens a second, by a clock of its own."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def run(self, rows):
        self.clock.now += 0.1 * sum(map(len, rows))
        return super().run(rows)


def encoded(*tokens: int, length: int = 5) -> Encoded:
    return Encoded([[token] * length for token in tokens], np.full(len(tokens), length))


async def begin(scheduler, model, *tokens, deadline=NEVER) -> asyncio.Task:
    """A request that waits or is being computed."""
    task = asyncio.create_task(scheduler.score(model, encoded(*tokens), deadline))
    # one step is enough for it to enter
    await asyncio.sleep(0)
    return task


async def hold(scheduler, model) -> asyncio.Task:
    """A request in the middle of its run."""
    model.hold()
    task = await begin(scheduler, model, 0)
    assert await asyncio.to_thread(model.begun.wait, 30)
    return task


async def hold_tokenizing(scheduler, model, *pairs) -> asyncio.Task:
    """A request whose first slice is being tokenised."""
    model.free.clear()
    task = asyncio.create_task(scheduler.encode(model, pairs, NEVER))
    assert await asyncio.to_thread(model.begun.wait, 30)
    return task


async def refusal(asked, status: int, kind: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await asked
    assert (caught.value.status, caught.value.kind) == (status, kind)
    return caught.value


async def until_runs(model, number: int) -> None:
    while len(model.runs) < number:
        await asyncio.sleep(0.001)
