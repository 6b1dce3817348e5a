import asyncio
import gc
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
from conlst.runtime.tokens import Encoded
from conlst.stages.export import export_onnx
from serving.errors import ApiError
from serving.scheduler import Scheduler
from tiny_onnx import PAIRS, WORDS, slow_logits, tiny_onnx_folder

BAD = 666


class Model:
    """Stands for a predictor: a row's logits are its first token, its length and nothing. It can be held in the middle of a run.

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

    def encode(self, pairs):
        return encoded(*(len(premise) for premise, _ in pairs))


def encoded(*tokens: int, length: int = 5) -> Encoded:
    return Encoded([[token] * length for token in tokens], np.full(len(tokens), length))


@pytest.fixture
def scheduler():
    made = Scheduler(max_waiting=8, max_waiting_tokens=200, batch_tokens=100, runs=1)
    yield made
    made.close()


async def begin(scheduler, model, *tokens, **options) -> asyncio.Task:
    """A request that waits or is being computed."""
    task = asyncio.create_task(scheduler.score(model, encoded(*tokens), **options))
    # one step is enough for it to enter
    await asyncio.sleep(0)
    return task


async def hold(scheduler, model) -> asyncio.Task:
    """A request in the middle of its run."""
    model.hold()
    task = await begin(scheduler, model, 0)
    assert await asyncio.to_thread(model.begun.wait, 30)
    return task


async def refusal(asked, status: int, kind: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await asked
    assert (caught.value.status, caught.value.kind) == (status, kind)
    return caught.value


def test_many_requests_in_two_languages_get_their_own_answers_in_their_own_order(tmp_path, scheduler):
    models = [Predictor(tiny_onnx_folder(tmp_path / str(seed), seed=seed), threads=1) for seed in range(2)]

    async def ask(number: int) -> None:
        pairs = [PAIRS[(number + place) % 4] for place in range(1 + number % 4)]
        model = models[number % 2]
        found = await scheduler.score(model, await scheduler.encode(model, pairs))
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
        assert all(answer.queue_seconds >= 0 and answer.inference_seconds > 0 for answer in answers)

    asyncio.run(ask())


@pytest.fixture
def pair():
    """Two runs at the same time."""
    made = Scheduler(max_waiting=8, max_waiting_tokens=200, batch_tokens=100, runs=2)
    yield made
    made.close()


async def until_runs(model, number: int) -> None:
    while len(model.runs) < number:
        await asyncio.sleep(0.001)


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


def test_a_queue_is_over_sooner_by_as_many_runs_as_there_are(pair, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("serving.scheduler.time", SimpleNamespace(monotonic=lambda: clock.now))

    class Slow(Model):
        def run(self, rows):
            clock.now += 0.1 * sum(map(len, rows))
            return super().run(rows)

    async def ask() -> None:
        model = Slow()
        await pair.score(model, encoded(1))
        model.hold()
        requests = []
        for number in (2, 3):
            requests.append(await begin(pair, model, 1))
            await until_runs(model, number)
        requests += [await begin(pair, model, *[1] * 4) for _ in range(8)]
        # 160 tokens at ten a second in each of two runs
        assert (await refusal(pair.score(model, encoded(1)), 429, "busy")).headers == {"Retry-After": "8"}
        model.free.set()
        await asyncio.gather(*requests)

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


def test_a_full_queue_sends_away_with_the_time_that_it_takes(scheduler, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("serving.scheduler.time", SimpleNamespace(monotonic=lambda: clock.now))

    class Slow(Model):
        def run(self, rows):
            clock.now += 0.1 * sum(map(len, rows))
            return super().run(rows)

    async def ask() -> None:
        model = Slow()
        await scheduler.score(model, encoded(1))
        first = await hold(scheduler, model)
        others = [await begin(scheduler, model, *[1] * 4) for _ in range(8)]
        assert scheduler.waiting == 8
        # 160 tokens at ten a second
        for asked in (scheduler.score(model, encoded(1)), scheduler.encode(model, PAIRS)):
            assert (await refusal(asked, 429, "busy")).headers == {"Retry-After": "16"}
        model.free.set()
        await asyncio.gather(first, *others)
        await scheduler.score(model, encoded(1))

    asyncio.run(ask())


def test_tokens_that_wait_are_bounded_too(scheduler):
    async def ask() -> None:
        model = Model()
        first = await hold(scheduler, model)
        second = await begin(scheduler, model, *[1] * 40)
        error = await refusal(scheduler.score(model, encoded(1)), 429, "busy")
        assert int(error.headers["Retry-After"]) >= 1
        model.free.set()
        await asyncio.gather(first, second)
        # a request that is larger than the bound is not refused for ever
        assert len((await scheduler.score(model, encoded(*[1] * 60))).logits) == 60

    asyncio.run(ask())


def test_nothing_may_wait_if_the_settings_say_so():
    async def ask() -> None:
        scheduler, model = Scheduler(0, 200, 100, 1), Model()
        for _ in range(3):
            await scheduler.score(model, await scheduler.encode(model, PAIRS))
        first = await hold(scheduler, model)
        await refusal(scheduler.encode(model, PAIRS), 429, "busy")
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
        await refusal(scheduler.score(model, encoded(3), time.monotonic() + 0.02), 504, "deadline")
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


def test_a_bad_pair_fails_alone(scheduler, caplog):
    async def ask() -> None:
        model = Model()
        first = await hold(scheduler, model)
        others = [await begin(scheduler, model, 1), await begin(scheduler, model, 2, BAD, 3), await begin(scheduler, model, 4)]
        partial = await begin(scheduler, model, BAD, 5, partial=True)
        model.free.set()
        await first
        assert (await others[0]).logits.tolist() == [[1, 5, 0]]
        assert (await refusal(others[1], 500, "internal")).index == 1
        assert (await others[2]).logits.tolist() == [[4, 5, 0]]
        answer = await partial
        assert answer.failed == (0,)
        np.testing.assert_array_equal(answer.logits, [[np.nan] * 3, [5, 5, 0]])
        assert (await scheduler.score(model, encoded(8))).logits.tolist() == [[8, 5, 0]]

    asyncio.run(ask())
    assert "out of data bounds" in caplog.text


@pytest.mark.parametrize("answer", [np.full((2, 3), np.nan), np.zeros((3, 3)), np.zeros((2, 4)), None])
def test_answers_that_are_none_are_failures(scheduler, answer):
    async def ask() -> None:
        model = Model()
        model.run = lambda _: answer
        await refusal(scheduler.score(model, encoded(1, 2)), 500, "internal")
        assert (await scheduler.score(Model(), encoded(1))).logits.tolist() == [[1, 5, 0]]

    asyncio.run(ask())


def test_no_pairs_have_no_logits(scheduler):
    model = Model()
    assert asyncio.run(scheduler.score(model, encoded())).logits.shape == (0, 3)
    assert model.runs == []


def test_an_error_in_the_tokenizer_is_told_and_leaves_no_trace(scheduler):
    async def ask() -> None:
        model = Model()
        for _ in range(20):
            with pytest.raises(ValueError, match="not enough values to unpack"):
                await scheduler.encode(model, [()])
        assert scheduler.waiting == 0

    asyncio.run(ask())


def test_closing_finishes_what_waits_and_refuses_what_is_new(scheduler):
    async def ask() -> None:
        model = Model()
        first = await hold(scheduler, model)
        waiting = await begin(scheduler, model, 1)
        closing = asyncio.create_task(asyncio.to_thread(scheduler.close))
        error = None
        while error is None:
            try:
                await scheduler.encode(model, [])
            except ApiError as refused:
                error = refused
        assert (error.status, error.kind) == (503, "not_ready")
        await refusal(scheduler.score(model, encoded(1)), 503, "not_ready")
        model.free.set()
        await closing
        await asyncio.gather(first, waiting)
        assert model.runs == [[0], [1]]

    asyncio.run(ask())


def test_closing_has_a_limit(scheduler):
    async def ask() -> None:
        model = Model()
        first = await hold(scheduler, model)
        waiting = await begin(scheduler, model, 1)
        await asyncio.to_thread(scheduler.close, 0.01)
        await refusal(waiting, 503, "not_ready")
        model.free.set()
        await first
        assert model.runs == [[0]]

    asyncio.run(ask())


def test_an_event_loop_that_ended_takes_nobody_with_it(scheduler):
    model = Model()

    async def leave() -> None:
        await hold(scheduler, model)

    asyncio.run(leave())
    model.free.set()
    assert asyncio.run(scheduler.score(model, encoded(1))).logits.tolist() == [[1, 5, 0]]


def test_a_model_that_is_served_no_more_is_freed(scheduler):
    model = Model()
    asyncio.run(scheduler.score(model, encoded(1, 2)))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def check_neighbours(scheduler: Scheduler, model: Predictor, pairs: list[tuple[str, str]]) -> None:
    """Alone, in lists of any size and order, and beside any others, a pair's answer is the same."""
    alone = np.concatenate([model.run([row]) for row in model.encode(pairs).ids])

    async def ask(places: list[int]) -> None:
        found = await scheduler.score(model, await scheduler.encode(model, [pairs[place] for place in places]))
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
