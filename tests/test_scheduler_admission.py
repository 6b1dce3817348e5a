"""Whom the scheduler lets in, whom it sends away, and whom it gives up."""

import asyncio
import time
from types import SimpleNamespace

import pytest

from pretended_model import LONG, NEVER, Model, Reader, Slow, begin, encoded, hold, hold_tokenizing, refusal, until_runs
from serving.scheduler import Scheduler
from tiny_onnx import PAIRS


@pytest.fixture
def pair():
    """Two runs at the same time."""
    made = Scheduler(max_waiting=8, max_waiting_tokens=200, batch_tokens=100, runs=2)
    yield made
    made.close()


def test_a_queue_is_over_sooner_by_as_many_runs_as_there_are(pair, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("serving.scheduler.time", SimpleNamespace(monotonic=lambda: clock.now))

    async def ask() -> None:
        model = Slow(clock)
        await pair.score(model, encoded(1), NEVER)
        model.hold()
        requests = []
        for number in (2, 3):
            requests.append(await begin(pair, model, 1))
            await until_runs(model, number)
        requests += [await begin(pair, model, *[1] * 4) for _ in range(8)]
        # 160 tokens at ten a second in each of two runs
        assert (await refusal(pair.score(model, encoded(1), NEVER), 429, "busy")).headers == {"Retry-After": "8"}
        model.free.set()
        await asyncio.gather(*requests)

    asyncio.run(ask())


def test_a_full_queue_sends_away_with_the_time_that_it_takes(scheduler, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("serving.scheduler.time", SimpleNamespace(monotonic=lambda: clock.now))

    async def ask() -> None:
        model = Slow(clock)
        await scheduler.score(model, encoded(1), NEVER)
        first = await hold(scheduler, model)
        others = [await begin(scheduler, model, *[1] * 4) for _ in range(8)]
        assert scheduler.waiting == 8
        # 160 tokens at ten a second
        for asked in (scheduler.score(model, encoded(1), NEVER), scheduler.encode(model, PAIRS, NEVER)):
            assert (await refusal(asked, 429, "busy")).headers == {"Retry-After": "16"}
        model.free.set()
        await asyncio.gather(first, *others)
        await scheduler.score(model, encoded(1), NEVER)

    asyncio.run(ask())


class TestWhatCannotBeInTime:
    """A thread computes ten tokens a second, one request of a pair is in its run, and seven wait."""

    @pytest.fixture
    def clock(self, monkeypatch):
        clock = SimpleNamespace(now=0.0)
        monkeypatch.setattr("serving.scheduler.time", SimpleNamespace(monotonic=lambda: clock.now))
        return clock

    async def crowd(self, scheduler, model) -> list[asyncio.Task]:
        await scheduler.score(model, encoded(1), NEVER)
        return [await hold(scheduler, model), *[await begin(scheduler, model, 1) for _ in range(7)]]

    def test_is_sent_away(self, scheduler, clock):
        async def ask() -> None:
            model = Slow(clock)
            inside = await self.crowd(scheduler, model)
            late = [
                # 35 tokens before it, as many as it has that will pass it, and its own
                scheduler.score(model, encoded(1, 2), clock.now + 5.4),
                # before it is tokenised, if there is no time for a single one
                scheduler.encode(model, PAIRS, clock.now + 3.4),
            ]
            for asked in late:
                assert (await refusal(asked, 429, "busy")).headers == {"Retry-After": "4"}
            await scheduler.encode(model, PAIRS, clock.now + 3.6)
            inside.append(await begin(scheduler, model, 1, 2, deadline=clock.now + 5.6))
            model.free.set()
            await asyncio.gather(*inside)

        asyncio.run(ask())

    def test_does_not_count_a_large_request_that_lets_it_through(self, scheduler, clock):
        async def ask() -> None:
            model = Slow(clock)
            await scheduler.score(model, encoded(1), NEVER)
            inside = [await hold(scheduler, model), await begin(scheduler, model, *[1] * 30)]
            inside.append(await begin(scheduler, model, 2, deadline=clock.now + 3))
            model.free.set()
            await asyncio.gather(*inside)

        asyncio.run(ask())

    def test_counts_of_another_model_no_more_than_its_turns(self, clock):
        async def ask() -> None:
            scheduler, loud, quiet = Scheduler(8, 200, 10, 1), Slow(clock), Slow(clock)
            inside = await self.crowd(scheduler, loud)
            await refusal(scheduler.score(quiet, encoded(1, 2), clock.now + 1.9), 429, "busy")
            inside.append(await begin(scheduler, quiet, 1, 2, deadline=clock.now + 2.1))
            loud.free.set()
            await asyncio.gather(*inside)
            scheduler.close()

        asyncio.run(ask())

    def test_is_tried_all_the_same_where_nothing_waits(self, scheduler, clock):
        async def ask() -> None:
            model = Slow(clock)
            await scheduler.score(model, encoded(1), NEVER)
            first = await hold(scheduler, model)
            second = await begin(scheduler, model, *[1] * 30, deadline=clock.now + 14)
            model.free.set()
            assert len((await second).logits) == 30
            await first

        asyncio.run(ask())

    def test_is_not_known_before_anything_was_measured(self, scheduler, clock):
        async def ask() -> None:
            model = Slow(clock)
            inside = [await hold(scheduler, model), *[await begin(scheduler, model, 1) for _ in range(6)]]
            inside.append(await begin(scheduler, model, 1, deadline=clock.now + 3))
            assert scheduler.waiting == 7
            model.free.set()
            await asyncio.gather(*inside)

        asyncio.run(ask())


def test_tokens_that_wait_are_bounded_too(scheduler):
    async def ask() -> None:
        model = Model()
        first = await hold(scheduler, model)
        second = await begin(scheduler, model, *[1] * 40)
        error = await refusal(scheduler.score(model, encoded(1), NEVER), 429, "busy")
        assert int(error.headers["Retry-After"]) >= 1
        model.free.set()
        await asyncio.gather(first, second)
        # a request that is larger than the bound is not refused for ever
        assert len((await scheduler.score(model, encoded(*[1] * 60), NEVER)).logits) == 60

    asyncio.run(ask())


def test_nothing_may_wait_if_the_settings_say_so():
    async def ask() -> None:
        scheduler, model = Scheduler(0, 200, 100, 1), Model()
        for _ in range(3):
            await scheduler.score(model, (await scheduler.encode(model, PAIRS, NEVER)).encoded, NEVER)
        first = await hold(scheduler, model)
        await refusal(scheduler.encode(model, PAIRS, NEVER), 429, "busy")
        model.free.set()
        await first
        scheduler.close()

    asyncio.run(ask())


def test_what_is_late_is_answered_so_and_not_begun(scheduler):
    async def ask() -> None:
        model = Model()
        await refusal(scheduler.score(model, encoded(1), time.monotonic() - 1), 504, "deadline")
        await refusal(scheduler.encode(model, PAIRS, time.monotonic() - 1), 504, "deadline")
        first = await hold(scheduler, model)
        patient = await begin(scheduler, model, 2, deadline=time.monotonic() + 60)
        late = await refusal(scheduler.score(model, encoded(3), time.monotonic() + 0.02), 504, "deadline")
        assert late.message.startswith("the deadline passed before the answer was computed")
        assert scheduler.waiting == 1
        model.free.set()
        await asyncio.gather(first, patient)
        assert model.runs == [[0], [2]]

    asyncio.run(ask())


def test_a_deadline_that_the_event_loop_is_too_busy_to_notice_holds_all_the_same(scheduler):
    async def ask() -> None:
        model = Model()
        first = await hold(scheduler, model)
        late = await begin(scheduler, model, 3, deadline=time.monotonic() + 0.02)
        time.sleep(0.05)
        model.free.set()
        while scheduler.waiting:
            pass
        await refusal(late, 504, "deadline")
        await first
        assert model.runs == [[0]]

    asyncio.run(ask())


def test_the_rows_of_a_client_that_left_are_not_computed(scheduler):
    async def ask() -> None:
        model = Model()
        first = await hold(scheduler, model)
        leaving = await begin(scheduler, model, *[5] * 30)
        staying = await begin(scheduler, model, 6)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert (scheduler.waiting, scheduler.waiting_tokens) == (1, 5)
        # one that leaves in the middle of its run leaves nothing behind either
        first.cancel()
        model.free.set()
        await staying
        assert model.runs == [[0], [6]]

    asyncio.run(ask())
    assert (scheduler.waiting, scheduler.waiting_tokens) == (0, 0)


def test_closing_refuses_what_waits_and_what_is_new(scheduler):
    async def ask() -> None:
        model = Model()
        first = await hold(scheduler, model)
        waiting = await begin(scheduler, model, 1)
        scheduler.close()
        await refusal(waiting, 503, "not_ready")
        await refusal(scheduler.encode(model, PAIRS, NEVER), 503, "not_ready")
        await refusal(scheduler.score(model, encoded(1), NEVER), 503, "not_ready")
        model.free.set()
        await first
        assert model.runs == [[0]]

    asyncio.run(ask())


def test_closing_refuses_what_is_half_tokenised(scheduler):
    async def ask() -> None:
        model = Reader()
        request = await hold_tokenizing(scheduler, model, LONG, LONG)
        scheduler.close()
        model.free.set()
        await refusal(request, 503, "not_ready")
        assert model.read == [LONG]
        assert scheduler.waiting == 0

    asyncio.run(ask())


def test_a_client_that_leaves_while_its_request_is_tokenised_waits_no_more(scheduler):
    async def ask() -> None:
        model = Reader()
        request = await hold_tokenizing(scheduler, model, LONG, LONG)
        assert scheduler.waiting == 1
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert scheduler.waiting == 0
        model.free.set()

    asyncio.run(ask())
