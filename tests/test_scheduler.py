"""What the scheduler computes, in what order, and what it answers."""

import asyncio
import gc
import os
import sys
import threading
import time
import weakref
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest

from conlst.contract.config import config_from_dict
from conlst.model.folder import save_model
from conlst.model.starter import load_starter
from conlst.runtime.onnx import Predictor
from conlst.stages.export import export_onnx
from pretended_model import BAD, LONG, NEVER, Model, Reader, begin, encoded, hold, hold_tokenizing, until_runs
from serving.compute import Timing, encode_parts, score_parts
from serving.scheduler import BEHIND_THE_LOOP, Scheduler
from tiny_onnx import PAIRS, WORDS, slow_logits, tiny_onnx_folder

# neither a few sentences nor more than a slice
MIDDLING = ("w" * 1500, "w" * 1500)


def test_many_requests_in_two_languages_get_their_own_answers_in_their_own_order(tmp_path, scheduler):
    models = [Predictor(tiny_onnx_folder(tmp_path / str(seed), seed=seed), threads=1) for seed in range(2)]

    async def ask(number: int) -> None:
        pairs = [PAIRS[(number + place) % 4] for place in range(1 + number % 4)]
        model = models[number % 2]
        found = await scheduler.score(model, (await scheduler.encode(model, pairs, NEVER)).encoded, NEVER)
        np.testing.assert_allclose(found.logits, slow_logits(pairs, seed=number % 2), atol=1e-5)
        assert not found.failed

    async def ask_all() -> None:
        for _ in range(10):
            await asyncio.gather(*(ask(number) for number in range(8)))

    asyncio.run(ask_all())
    assert (scheduler.waiting, scheduler.waiting_tokens) == (0, 0)


def test_what_comes_during_a_run_is_computed_together_in_the_next(scheduler):
    async def ask() -> None:
        model = Model()
        first = await hold(scheduler, model)
        others = [await begin(scheduler, model, token) for token in (1, 2, 3)]
        # a request in the middle of its run does not wait
        assert (scheduler.waiting, scheduler.waiting_tokens) == (3, 15)
        model.free.set()
        answers = await asyncio.gather(first, *others)
        assert model.runs == [[0], [1, 2, 3]]
        assert [answer.logits.tolist() for answer in answers] == [[[token, 5, 0]] for token in range(4)]
        assert all(answer.inference_seconds > 0 for answer in answers)
        # while the first was in its run
        assert all(answer.queue_seconds > 0 for answer in answers[1:])

    asyncio.run(ask())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts niceness by thread")
def test_runs_let_the_event_loop_go_first(scheduler):
    class Told(Model):
        def run(self, rows):
            self.niceness = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
            return super().run(rows)

    own, model = os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), Told()
    asyncio.run(scheduler.score(model, encoded(1), NEVER))
    assert model.niceness == min(19, own + BEHIND_THE_LOOP)
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives a thread a CPU")
@pytest.mark.parametrize("more", [0, 1])
def test_runs_have_a_cpu_each_where_there_is_one_for_each(more):
    cpus = os.sched_getaffinity(0)
    runs = len(cpus) + more

    class Placed(Model):
        def __init__(self):
            super().__init__()
            self.together, self.places = threading.Barrier(runs), []

        def run(self, rows):
            self.together.wait(30)
            self.places.append(os.sched_getaffinity(0))
            return super().run(rows)

    async def ask() -> None:
        await asyncio.gather(*(made.score(model, encoded(1), NEVER) for _ in range(runs)))

    # a run takes one row
    model, made = Placed(), Scheduler(max_waiting=runs, max_waiting_tokens=5 * runs, batch_tokens=5, runs=runs)
    try:
        asyncio.run(ask())
    finally:
        made.close()
    assert sorted(map(sorted, model.places)) == ([sorted(cpus)] * runs if more else [[cpu] for cpu in sorted(cpus)])
    assert os.sched_getaffinity(0) == cpus


@pytest.fixture
def pair():
    """Two runs at the same time."""
    made = Scheduler(max_waiting=8, max_waiting_tokens=200, batch_tokens=100, runs=2)
    yield made
    made.close()


def test_runs_of_one_model_go_side_by_side(pair):
    async def ask() -> None:
        model = Model()
        model.hold()
        requests = [await begin(pair, model, 1)]
        await until_runs(model, 1)
        requests.append(await begin(pair, model, 2))
        await until_runs(model, 2)
        assert model.runs == [[1], [2]]
        # both are busy: what comes now waits
        requests += [await begin(pair, model, token) for token in (3, 4)]
        assert (pair.waiting, pair.waiting_tokens) == (2, 10)
        model.free.set()
        answers = await asyncio.gather(*requests)
        assert [answer.logits.tolist() for answer in answers] == [[[token, 5, 0]] for token in (1, 2, 3, 4)]

    asyncio.run(ask())


def test_idle_threads_share_a_request(pair, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("serving.scheduler.time", SimpleNamespace(monotonic=lambda: clock.now))

    async def ask() -> None:
        model = Model()
        model.hold()
        request = await begin(pair, model, *range(8))
        await until_runs(model, 2)
        clock.now += 3
        model.free.set()
        answer = await request
        assert sorted(map(len, model.runs)) == [4, 4]
        assert answer.logits[:, 0].tolist() == list(range(8))
        # they took the same three seconds, not six
        assert (answer.queue_seconds, answer.inference_seconds) == (0, 3)

    asyncio.run(ask())


def test_idle_threads_that_other_models_will_use_do_not_share_a_request(pair, monkeypatch):
    both_wait = Event()

    def monotonic() -> float:
        # no thread takes anything before both requests wait
        assert threading.current_thread() is threading.main_thread() or both_wait.wait(30)
        return time.monotonic()

    monkeypatch.setattr("serving.scheduler.time", SimpleNamespace(monotonic=monotonic))

    async def ask() -> None:
        models = [Model("sw"), Model("fr")]
        for model in models:
            model.hold()
        requests = [await begin(pair, model, *range(8)) for model in models]
        both_wait.set()
        # neither ends before the other has begun, else its thread would be there for the other's rows
        for model in models:
            assert await asyncio.to_thread(model.begun.wait, 30)
        for model in models:
            model.free.set()
        await asyncio.gather(*requests)
        assert [model.runs for model in models] == [[list(range(8))]] * 2

    asyncio.run(ask())


def test_models_take_turns(scheduler):
    async def ask() -> None:
        loud, quiet = Model("sw"), Model("fr")
        first = await hold(scheduler, loud)
        second = await begin(scheduler, loud, *range(30))
        quiet.hold()
        third = await begin(scheduler, quiet, 7)
        loud.free.set()
        assert await asyncio.to_thread(quiet.begun.wait, 30)
        assert len(loud.runs) == 2
        quiet.free.set()
        await asyncio.gather(first, second, third)
        assert [len(run) for run in loud.runs] == [1, 20, 10]

    asyncio.run(ask())


def test_a_short_request_is_tokenised_while_long_ones_are(scheduler):
    async def ask() -> None:
        model = Reader()
        long = [await hold_tokenizing(scheduler, model, *[LONG] * 3)]
        long += [asyncio.create_task(scheduler.encode(model, [LONG] * 3, NEVER)) for _ in range(3)]
        short = await scheduler.encode(Model(), [MIDDLING], NEVER)
        assert len(short.encoded.ids) == 1
        assert not any(task.done() for task in long)
        assert scheduler.waiting == 4
        model.free.set()
        await asyncio.gather(*long)
        assert scheduler.waiting == 0

    asyncio.run(ask())


def test_long_requests_are_tokenised_in_turns_and_whole(scheduler):
    async def ask() -> None:
        model = Reader()
        first, second = ([(letter * (5000 + place), "") for place in range(count)] for letter, count in (("a", 3), ("b", 2)))
        requests = [await hold_tokenizing(scheduler, model, *first)]
        requests.append(asyncio.create_task(scheduler.encode(model, second, NEVER)))
        await asyncio.sleep(0)
        model.free.set()
        found = await asyncio.gather(*requests)
        assert [premise[0] for premise, _ in model.read] == ["a", "b", "a", "b", "a"]
        for tokenized, pairs in zip(found, (first, second), strict=True):
            expected = Model().encode(pairs)
            assert tokenized.encoded.ids == expected.ids
            assert tokenized.encoded.lengths.tolist() == expected.lengths.tolist()

    asyncio.run(ask())


def test_the_time_that_a_request_waits_to_be_tokenised_is_that_of_the_queue(scheduler, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    for module in ("scheduler", "lanes"):
        monkeypatch.setattr(f"serving.{module}.time", SimpleNamespace(monotonic=lambda: clock.now))

    class SlowReader(Reader):
        def encode(self, pairs, *how):
            found = super().encode(pairs, *how)
            clock.now += 2
            return found

    async def ask() -> None:
        model, timing = SlowReader(), Timing()
        first = await hold_tokenizing(scheduler, model, LONG)
        models = dict.fromkeys(range(2), SimpleNamespace(predictor=model))
        second = asyncio.create_task(encode_parts(scheduler, [LONG] * 2, models, NEVER, timing))
        await asyncio.sleep(0)
        clock.now += 3
        model.free.set()
        assert (await first).tokenize_seconds == 5
        parts = await second
        assert timing == Timing(queue=5, tokenize=4)
        # and then it waits to be computed
        other = Model()
        running = await hold(scheduler, other)
        scoring = asyncio.create_task(score_parts(scheduler, parts, NEVER, timing))
        await asyncio.sleep(0)
        clock.now += 6
        other.free.set()
        await asyncio.gather(running, scoring)
        assert timing == Timing(queue=11, tokenize=4)

    asyncio.run(ask())


def test_a_bad_pair_fails_alone(scheduler, caplog):
    async def ask() -> None:
        model = Model()
        first = await hold(scheduler, model)
        others = [await begin(scheduler, model, 1), await begin(scheduler, model, 2, BAD, 3), await begin(scheduler, model, 4)]
        model.free.set()
        await first
        answers = await asyncio.gather(*others)
        assert [answer.failed for answer in answers] == [(), (1,), ()]
        logits = [[[1, 5, 0]], [[2, 5, 0], [np.nan] * 3, [3, 5, 0]], [[4, 5, 0]]]
        for answer, expected in zip(answers, logits, strict=True):
            np.testing.assert_array_equal(answer.logits, expected)
        assert (await scheduler.score(model, encoded(8), NEVER)).logits.tolist() == [[8, 5, 0]]

    asyncio.run(ask())
    assert "out of data bounds" in caplog.text


@pytest.mark.parametrize("answer", [np.full((2, 3), np.nan), np.zeros((3, 3)), np.zeros((2, 4)), None])
def test_answers_that_are_none_are_failures(scheduler, answer):
    async def ask() -> None:
        model = Model()
        model.run = lambda _: answer
        found = await scheduler.score(model, encoded(1, 2), NEVER)
        assert found.failed == (0, 1)
        assert np.isnan(found.logits).all()
        assert (await scheduler.score(Model(), encoded(1), NEVER)).logits.tolist() == [[1, 5, 0]]

    asyncio.run(ask())


def test_no_pairs_have_no_logits(scheduler):
    model = Model()
    assert asyncio.run(scheduler.score(model, encoded(), NEVER)).logits.shape == (0, 3)
    assert model.runs == []


@pytest.mark.parametrize("beside", [[], [LONG]], ids=["at once", "in a thread"])
def test_an_error_in_the_tokenizer_is_told_and_leaves_no_trace(scheduler, beside):
    async def ask() -> None:
        model = Model()
        for _ in range(20):
            with pytest.raises(ValueError, match="not enough values to unpack"):
                await scheduler.encode(model, [(), *beside], NEVER)
        assert scheduler.waiting == 0

    asyncio.run(ask())


def test_a_few_sentences_do_not_wait_for_a_thread(scheduler):
    async def ask() -> None:
        model = Reader()
        long = await hold_tokenizing(scheduler, model, LONG)
        # not so much as a turn of the event loop
        with pytest.raises(StopIteration) as answer:
            scheduler.encode(Model(), PAIRS, NEVER).send(None)
        assert answer.value.value.encoded.ids == Model().encode(PAIRS).ids
        model.free.set()
        await long

    asyncio.run(ask())


def test_an_event_loop_that_ended_takes_nobody_with_it(scheduler):
    model = Model()

    async def leave() -> None:
        await hold(scheduler, model)

    asyncio.run(leave())
    model.free.set()
    assert asyncio.run(scheduler.score(model, encoded(1), NEVER)).logits.tolist() == [[1, 5, 0]]


def test_a_model_that_is_served_no_more_is_freed(scheduler):
    model = Model()
    asyncio.run(scheduler.score(model, encoded(1, 2), NEVER))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def check_neighbours(scheduler: Scheduler, model: Predictor, pairs: list[tuple[str, str]]) -> None:
    """Alone, in lists of any size and order, and beside any others, a pair's answer is the same."""
    alone = np.concatenate([model.run([row]) for row in model.encode(pairs).ids])

    async def ask(places: list[int]) -> None:
        tokenized = await scheduler.encode(model, [pairs[place] for place in places], NEVER)
        found = await scheduler.score(model, tokenized.encoded, NEVER)
        np.testing.assert_allclose(found.logits, alone[places], atol=1e-4, rtol=0)

    async def ask_all() -> None:
        rng = np.random.default_rng(0)
        sizes = [1, 1, 2, 3, 5, len(pairs)]
        await asyncio.gather(*(ask(rng.choice(len(pairs), size, replace=False).tolist()) for size in sizes))

    for _ in range(3):
        asyncio.run(ask_all())


def test_no_answer_depends_on_its_neighbours(tmp_path):
    scheduler = Scheduler(8, 10_000, 64, 3)
    rng = np.random.default_rng(1)
    pairs = [(" ".join(rng.choice(WORDS, rng.integers(1, 9))), str(rng.choice(WORDS))) for _ in range(24)]
    check_neighbours(scheduler, Predictor(tiny_onnx_folder(tmp_path / "sw"), threads=1), pairs)
    scheduler.close()


@pytest.mark.slow
def test_no_answer_of_the_real_model_depends_on_its_neighbours(tmp_path):
    config = config_from_dict({"name": "neighbours"})
    save_model(load_starter(), tmp_path / "model", config=config.to_dict(), meta={"language": "en"})
    pairs = [
        ("Two men are playing football in the yard.", "Men are playing."),
        ("It rains.", "The sun is shining on the beach and nobody is inside."),
        ("Watu wawili wanacheza mpira uwanjani.", "Watu wanacheza nje."),
        (" ".join(["The committee met again on Tuesday to discuss the budget."] * 8), "It met."),
        ("Paka analala kwenye sofa nyekundu.", "Hakuna mnyama."),
        ("A", "B"),
    ]
    export_onnx(tmp_path / "model", pairs, tmp_path / "onnx", config)
    scheduler = Scheduler(8, 10_000, 256, 2)
    check_neighbours(scheduler, Predictor(tmp_path / "onnx", threads=1), pairs)
    scheduler.close()
