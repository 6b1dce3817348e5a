import asyncio
import logging
import os
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from conlst.contract.artifacts import publish, read_manifest
from conlst.contract.config import Gate
from conlst.contract.errors import ArtifactError, BackendError, RegistryError
from conlst.contract.labels import NAMES
from conlst.platform import objects, registry
from served import MANY, Server
from serving.models import Catalogue
from serving.settings import Settings
from serving.watch import Watcher
from tiny_onnx import PAIRS, slow_logits, tiny_onnx_folder

SECONDS = 30
GATE = Gate(min_accuracy=0.6, min_gain=0.01, max_ece=0.1, min_pairs=100, max_parity=1e-4)
GOOD = {"accuracy": 0.7, "ece": 0.05, "n": 150, "zero_shot_accuracy": 0.65, "parity": 1e-5}


@dataclass
class Champion:
    name: str
    version: int
    uri: str
    digest: str
    tags: dict[str, str] = field(default_factory=dict)


class Registry:
    """Champions of tiny models, and what fetching them gives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.champions: dict[str, Champion] = {}
        self.places: dict[str, Path | Exception] = {}
        self.fetched: list[str] = []
        self.problem: Exception | None = None

    def promote(self, version: int, language: str = "sw", **how) -> str:
        """Publish a model that answers as its version number says, and make it champion; returns its address."""
        path = self.folder / f"{language}-{version}-{len(self.places)}"
        tiny_onnx_folder(path, how.pop("adapted_to", language), seed=version, **how)
        digest = read_manifest(path).digest
        uri = f"s3://bucket/models/manifests/{digest}.json"
        self.champions[language] = Champion(f"nli-{language}", version, uri, digest)
        self.places[uri] = path
        return uri

    def resolve_champions(self) -> dict[str, Champion]:
        if self.problem:
            raise self.problem
        return dict(self.champions)

    def localize(self, uri: str, _folder: Path) -> Path:
        self.fetched.append(uri)
        if isinstance(place := self.places[uri], Exception):
            raise place
        return place


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Registry:
    fake = Registry(tmp_path)
    monkeypatch.setattr("conlst.platform.registry.resolve_champions", fake.resolve_champions)
    monkeypatch.setattr("conlst.platform.objects.localize", fake.localize)
    fake.promote(1)
    return fake


@pytest.fixture
def clock(monkeypatch):
    """Time for delays, which moves when it is told to."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr("serving.watch.monotonic", lambda: Clock.now)
    return Clock


def watched(tmp_path: Path, **changes) -> tuple[Catalogue, Watcher]:
    (tmp_path / "cache" / "served").mkdir(parents=True, exist_ok=True)
    settings = Settings(**{"cache": tmp_path / "cache", "threads": 1, "watch_seconds": SECONDS, **changes})
    catalogue = Catalogue(settings)
    catalogue.load()
    return catalogue, Watcher(catalogue, settings)


def answers_as(catalogue: Catalogue, seed: int, language: str = "sw") -> bool:
    logits = catalogue.model_for(language).predictor.logits(PAIRS)
    return np.allclose(logits, slow_logits(PAIRS, seed), atol=1e-5)


def version_of(catalogue: Catalogue, language: str = "sw") -> int | None:
    return catalogue.model_for(language).source.version


def test_a_new_champion_takes_over(fake, tmp_path):
    catalogue, watcher = watched(tmp_path)
    assert watcher.last_success is None
    watcher.poll()
    assert len(fake.fetched) == 1
    before = catalogue.model_for("sw")
    fake.promote(2)
    watcher.poll()
    now = catalogue.model_for("sw")
    assert now.source.version == 2
    assert now.predictor.digest == fake.champions["sw"].digest
    assert now.loaded_at > before.loaded_at
    assert answers_as(catalogue, 2)
    assert watcher.last_success > 0
    assert watcher.problem is None
    watcher.poll()
    assert len(fake.fetched) == 2


def test_a_rollback_is_followed_like_a_promotion(fake, tmp_path):
    catalogue, watcher = watched(tmp_path)
    first = fake.champions["sw"]
    fake.promote(2)
    watcher.poll()
    fake.champions["sw"] = first
    watcher.poll()
    assert version_of(catalogue) == 1
    assert answers_as(catalogue, 1)


def test_the_memory_of_a_swapped_model_is_given_back_at_the_next_poll(fake, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr("serving.watch.give_back", lambda: given.append(1))
    _, watcher = watched(tmp_path)
    fake.promote(2)
    watcher.poll()
    assert not given
    for _ in range(2):
        watcher.poll()
    assert len(given) == 1


def test_newly_promoted_languages_appear_if_they_are_allowed(fake, tmp_path):
    all_of_them, watcher = watched(tmp_path)
    some, choosy = watched(tmp_path, languages="sw")
    fake.promote(1, "fr")
    watcher.poll()
    choosy.poll()
    assert all_of_them.languages == ("fr", "sw")
    assert answers_as(all_of_them, 1, "fr")
    assert some.languages == ("sw",)


def test_the_same_model_under_a_new_version_is_not_opened_again(fake, tmp_path):
    catalogue, watcher = watched(tmp_path)
    before = catalogue.model_for("sw")
    fake.champions["sw"].version = 5
    fake.champions["sw"].tags = {"decision": '{"promote": true, "reasons": ["by hand"]}', "decided_at": "now"}
    watcher.poll()
    after = catalogue.model_for("sw")
    assert (after.source.version, after.source.gate["reasons"]) == (5, ["by hand"])
    assert after.predictor is before.predictor
    assert len(fake.fetched) == 1


BAD = {
    "labels": ({"id2label": {0: "contradiction", 1: "neutral", 2: "entailment"}}, "orders its labels"),
    "golden pairs": ({"golden_offset": 0.5}, "answers golden pair 0 otherwise"),
    "no golden pair": ({"golden": []}, "holds no pair"),
    "language": ({"adapted_to": "fr"}, "adapted to 'fr'"),
}


@pytest.mark.parametrize(("how", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_champion_is_refused_and_the_old_one_serves_on(fake, tmp_path, clock, how, reason):
    catalogue, watcher = watched(tmp_path)
    fake.promote(2, **how)
    watcher.poll()
    refusal = catalogue.refusals["sw"]
    assert reason in refusal.reason
    assert (refusal.version, refusal.digest) == (2, fake.champions["sw"].digest)
    assert version_of(catalogue) == 1
    assert answers_as(catalogue, 1)
    assert watcher.problem is None
    # not tried again, however long it stays
    tries = len(fake.fetched)
    clock.now += 1e6
    watcher.poll()
    assert len(fake.fetched) == tries
    assert catalogue.refusals["sw"] == refusal
    fake.promote(3)
    watcher.poll()
    assert version_of(catalogue) == 3
    assert not catalogue.refusals


def test_a_folder_of_another_digest_is_refused(fake, tmp_path):
    catalogue, watcher = watched(tmp_path)
    first, second = fake.champions["sw"].uri, fake.promote(2)
    fake.places[second] = fake.places[first]
    watcher.poll()
    assert "the registry says" in catalogue.refusals["sw"].reason
    assert version_of(catalogue) == 1


def test_a_refused_folder_is_told_with_its_own_error(fake, tmp_path):
    catalogue, watcher = watched(tmp_path)
    fake.places[fake.promote(2)] = ArtifactError("the manifest is not the one its name says")
    watcher.poll()
    assert catalogue.refusals["sw"].reason == "the manifest is not the one its name says"


def test_an_altered_folder_is_refused(fake, tmp_path):
    catalogue, watcher = watched(tmp_path)
    place = fake.places[fake.promote(2)]
    (place / "embeddings.bin").write_bytes(bytes((place / "embeddings.bin").stat().st_size))
    watcher.poll()
    assert "embeddings.bin is not the file that was published" in catalogue.refusals["sw"].reason
    assert answers_as(catalogue, 1)


def test_what_breaks_in_an_unforeseen_way_is_refused_too_and_others_are_followed(fake, tmp_path):
    catalogue, watcher = watched(tmp_path)
    fake.promote(1, "fr")
    fake.places[fake.promote(2)] = ZeroDivisionError("of a library")
    fake.promote(1, "ur")
    watcher.poll()
    assert "ZeroDivisionError" in catalogue.refusals["sw"].reason
    assert catalogue.languages == ("fr", "sw", "ur")


def test_a_new_language_whose_model_is_bad_is_refused_without_serving_it(fake, tmp_path):
    catalogue, watcher = watched(tmp_path)
    fake.promote(1, "fr", golden_offset=0.5)
    watcher.poll()
    assert catalogue.languages == ("sw",)
    assert "golden" in catalogue.refusals["fr"].reason


def test_one_champion_that_cannot_be_used_does_not_stop_the_others(fake, tmp_path):
    catalogue, watcher = watched(tmp_path)
    fake.promote(1, "fr")
    fake.champions["sw"] = RegistryError("the metrics tag of version 2 of nli-sw is not a table of numbers")
    watcher.poll()
    assert version_of(catalogue) == version_of(catalogue, "fr") == 1
    refusal = catalogue.refusals["sw"]
    assert (refusal.version, refusal.digest) == (None, None)
    assert "metrics tag of version 2" in refusal.reason
    assert (watcher.problem, watcher.without_champion) == (None, ())
    fake.promote(3)
    watcher.poll()
    assert not catalogue.refusals
    assert version_of(catalogue) == 3


def test_an_alias_that_goes_back_to_what_is_served_ends_the_refusal(fake, tmp_path):
    catalogue, watcher = watched(tmp_path)
    first = fake.champions["sw"]
    fake.promote(2, golden_offset=0.5)
    watcher.poll()
    bad, fake.champions["sw"] = fake.champions["sw"], first
    watcher.poll()
    assert not catalogue.refusals
    # it moved in between, so it is worth another try
    fake.champions["sw"] = bad
    watcher.poll()
    assert fake.fetched.count(bad.uri) == 2


@pytest.mark.parametrize(
    "failure", [BackendError("S3 cannot be reached"), OSError("No space left on device"), MemoryError("no room")]
)
def test_a_failure_of_network_or_disk_is_tried_again_with_growing_delays(fake, tmp_path, clock, failure):
    catalogue, watcher = watched(tmp_path)
    uri = fake.promote(2)
    place, fake.places[uri] = fake.places[uri], failure
    watcher.poll()
    first = catalogue.refusals["sw"]
    assert "tried again" in first.reason
    tries = []
    for _ in range(40):
        clock.now += SECONDS
        before = len(fake.fetched)
        watcher.poll()
        tries.append(len(fake.fetched) - before)
    # after 1, 2, 4, 8 and 16 intervals, then every ten minutes
    assert [number for number, tried in enumerate(tries, start=1) if tried] == [1, 3, 7, 15, 31]
    assert catalogue.refusals["sw"].since == first.since
    assert answers_as(catalogue, 1)
    fake.places[uri] = place
    clock.now += 600
    watcher.poll()
    assert version_of(catalogue) == 2
    assert not catalogue.refusals


def test_a_new_champion_does_not_wait_for_the_delay_of_the_one_before(fake, tmp_path, clock):  # noqa: ARG001
    catalogue, watcher = watched(tmp_path)
    fake.places[fake.promote(2)] = BackendError("S3 cannot be reached")
    watcher.poll()
    fake.promote(3)
    watcher.poll()
    assert version_of(catalogue) == 3


def test_an_unreachable_registry_leaves_everything_as_it_is_and_is_told_once(fake, tmp_path, caplog):
    caplog.set_level(logging.INFO, "serving.watch")
    catalogue, watcher = watched(tmp_path)
    watcher.poll()
    answered = watcher.last_success
    fake.problem = RegistryError("the MLflow registry at http://mlflow failed")
    for _ in range(3):
        watcher.poll()
    assert watcher.problem == "the MLflow registry at http://mlflow failed"
    assert watcher.last_success == answered
    assert answers_as(catalogue, 1)
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    fake.problem = None
    fake.promote(2)
    watcher.poll()
    assert watcher.problem is None
    assert watcher.last_success > answered
    assert version_of(catalogue) == 2
    assert any("can be followed again" in record.message for record in caplog.records)


def test_a_language_without_a_champion_any_more_is_served_on_and_told_once(fake, tmp_path, caplog):
    catalogue, watcher = watched(tmp_path)
    sw = fake.champions.pop("sw")
    for _ in range(2):
        watcher.poll()
    assert watcher.without_champion == ("sw",)
    assert answers_as(catalogue, 1)
    assert len([record for record in caplog.records if "no champion any more" in record.message]) == 1
    fake.champions["sw"] = sw
    watcher.poll()
    assert watcher.without_champion == ()


def test_a_language_without_a_champion_any_more_is_shown(fake, tmp_path):
    fake.promote(1, "fr")
    server = Server(Settings(cache=tmp_path / "cache", threads=1, auth="none"))
    server.catalogue.load()
    sw = fake.champions.pop("sw")
    for missing in ({"fr": False, "sw": True}, {"fr": False, "sw": False}):
        server.watcher.poll()
        models = server.ask("GET", "/models").json()["models"]
        assert {model["language"]: model["without_champion"] for model in models} == missing
        counted = server.ask("GET", "/metrics").text
        assert ('conlst_without_champion{language="sw"} 1.0' in counted) == missing["sw"]
        assert 'conlst_without_champion{language="fr"}' not in counted
        fake.champions["sw"] = sw


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """The seconds that a watcher would have waited for."""
    waited = []
    monkeypatch.setattr("serving.watch.random.uniform", lambda *_: 1.0)
    monkeypatch.setattr("serving.watch.Event", lambda: SimpleNamespace(wait=waited.append, is_set=lambda: False))
    return waited


def fail(times: int, error: Exception, then):
    """What raises so often, and does something else from then on."""
    left = [error] * times

    def call(*how):
        if left:
            raise left.pop()
        return then(*how)

    return call


@pytest.mark.parametrize("seconds", [0, SECONDS])
@pytest.mark.parametrize("named", [False, True])
def test_loading_is_tried_again_with_growing_delays_until_it_succeeds(fake, tmp_path, monkeypatch, pauses, named, seconds):
    models = f"sw={fake.champions['sw'].uri}" if named else ""
    fake.localize = fail(9, BackendError("S3 cannot be reached"), fake.localize)
    monkeypatch.setattr("conlst.platform.objects.localize", fake.localize)
    catalogue, watcher = watched(tmp_path, models=models, watch_seconds=seconds)
    assert "cannot be reached" in catalogue.problem
    watcher._load()
    assert catalogue.problem is None
    assert not catalogue.refusals
    assert answers_as(catalogue, 1)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_registry_that_is_away_at_the_start_is_asked_until_it_answers(fake, tmp_path, monkeypatch, pauses, caplog):
    away = fail(3, RegistryError("the MLflow registry at http://mlflow failed"), fake.resolve_champions)
    monkeypatch.setattr("conlst.platform.registry.resolve_champions", away)
    catalogue, watcher = watched(tmp_path)
    assert "http://mlflow failed" in catalogue.problem
    watcher._load()
    assert catalogue.problem is None
    assert answers_as(catalogue, 1)
    assert pauses == [1, 2]
    assert caplog.text.count("http://mlflow failed") == 1


def test_without_a_watch_the_loading_ends_when_nothing_is_left_that_failed_in_passing(fake, tmp_path, monkeypatch, pauses):
    uri = fake.promote(1, "fr")
    fake.promote(1, "ur", golden_offset=0.5)
    french = fail(2, BackendError("S3 cannot be reached"), fake.localize)
    localize = fake.localize
    monkeypatch.setattr("conlst.platform.objects.localize", lambda *how: (french if how[0] == uri else localize)(*how))
    catalogue, watcher = watched(tmp_path, watch_seconds=0)
    assert (catalogue.problem, catalogue.languages, set(catalogue.refusals)) == (None, ("sw",), {"fr", "ur"})
    watcher._run()
    assert catalogue.languages == ("fr", "sw")
    assert list(catalogue.refusals) == ["ur"]
    assert pauses == [1]


def test_what_failed_in_passing_at_the_start_is_tried_again_by_the_polls(fake, tmp_path, clock, pauses):
    uri = fake.promote(1, "fr")
    place, fake.places[uri] = fake.places[uri], BackendError("S3 cannot be reached")
    catalogue, watcher = watched(tmp_path)
    watcher._load()
    assert (catalogue.languages, pauses) == (("sw",), [])
    tries = fake.fetched.count(uri)
    for _ in range(3):
        watcher.poll()
    assert fake.fetched.count(uri) == tries + 1
    fake.places[uri] = place
    clock.now += SECONDS
    watcher.poll()
    assert catalogue.languages == ("fr", "sw")
    assert not catalogue.refusals


def test_what_is_bad_at_the_start_waits_for_the_next_promotion(fake, tmp_path, clock):
    fake.promote(1, "fr", golden_offset=0.5)
    catalogue, watcher = watched(tmp_path)
    assert catalogue.languages == ("sw",)
    clock.now += 1e6
    watcher.poll()
    assert len(fake.fetched) == 2
    fake.promote(2, "fr")
    watcher.poll()
    assert catalogue.languages == ("fr", "sw")


def test_named_models_and_an_interval_of_zero_are_not_watched(fake, tmp_path, monkeypatch):
    monkeypatch.setattr("serving.watch.find_champions", lambda _: pytest.fail("the registry was asked"))
    for changes in ({"models": f"sw={fake.places[fake.champions['sw'].uri]}"}, {"watch_seconds": 0}):
        _, watcher = watched(tmp_path, **changes)
        # returns, which a watch does not
        watcher._run()


def test_the_thread_polls_survives_a_failure_and_stops(fake, tmp_path, monkeypatch, caplog):
    catalogue, watcher = watched(tmp_path)
    # at once, whatever the interval
    monkeypatch.setattr("serving.watch.random.uniform", lambda *_: 0.0)
    polled, swapped = threading.Event(), threading.Event()
    find = fake.resolve_champions

    def fail_once():
        if not polled.is_set():
            polled.set()
            raise ZeroDivisionError
        return find()

    swap = catalogue.swap
    monkeypatch.setattr(catalogue, "load", lambda: None)
    monkeypatch.setattr(catalogue, "swap", lambda *how: (swap(*how), swapped.set()))
    monkeypatch.setattr("conlst.platform.registry.resolve_champions", fail_once)
    fake.promote(2)
    watcher.start()
    assert swapped.wait(60)
    watcher.stop()
    assert not watcher._thread.is_alive()
    assert version_of(catalogue) == 2
    assert any("a poll of the registry failed" in record.message for record in caplog.records)


def test_every_request_is_answered_by_the_model_that_it_names_while_the_watcher_swaps(fake, tmp_path):
    server = Server(Settings(cache=tmp_path / "cache", threads=1, auth="none"))
    server.catalogue.load()
    champions = [fake.champions["sw"]]
    fake.promote(2)
    champions.append(fake.champions["sw"])
    exponentials = {champion.version: np.exp(slow_logits(PAIRS, champion.version)) for champion in champions}
    likely = {version: powers / powers.sum(axis=1, keepdims=True) for version, powers in exponentials.items()}
    digests = {champion.digest: champion.version for champion in champions}
    seen: Counter[int] = Counter()

    async def swap_while_asked() -> None:
        is_over = False

        async def ask() -> None:
            while not is_over:
                answer = await client.post("/predict", json=MANY)
                assert answer.status_code == 200, answer.text
                body = answer.json()
                version = digests[body["model"]["digest"]]
                assert body["model"]["version"] == version
                found = [[prediction["probabilities"][name] for name in NAMES] for prediction in body["predictions"]]
                np.testing.assert_allclose(found, likely[version], atol=1e-6)
                seen[version] += 1

        # a request that fails ends all of it
        async with asyncio.timeout(120), server.client() as client, asyncio.TaskGroup() as asking:
            for _ in range(4):
                asking.create_task(ask())
            for turn in range(20):
                now = fake.champions["sw"] = champions[turn % 2]
                await asyncio.to_thread(server.watcher.poll)
                assert version_of(server.catalogue) == now.version
                # those that are under way may be the old one's
                enough = seen[now.version] + 5
                while seen[now.version] < enough:
                    await asyncio.sleep(0.001)
            is_over = True

    asyncio.run(swap_while_asked())
    assert set(seen) == {1, 2}
    assert not server.catalogue.refusals


def test_nothing_is_swapped_once_it_was_stopped(fake, tmp_path):
    catalogue, watcher = watched(tmp_path)
    fake.promote(2)
    opened = catalogue.open

    def stopped_meanwhile(source):
        watcher.stop()
        return opened(source)

    catalogue.open = stopped_meanwhile
    watcher.poll()
    assert len(fake.fetched) == 2
    assert version_of(catalogue) == 1


def test_old_fetched_models_are_removed_but_the_last_two_and_foreign_folders(fake, tmp_path):
    cache = tmp_path / "cache" / "served"

    def keep_at(uri: str, name: str, time: int) -> None:
        fake.places[uri] = fake.places[uri].rename(cache / name)
        os.utime(cache / name, (time, time))

    catalogue, watcher = watched(tmp_path)
    names = [f"{number:016x}" for number in range(6)]
    for number in range(3):
        fake.promote(number + 2)
        keep_at(fake.champions["sw"].uri, names[number], 1000 + number)
    fake.promote(1, "fr")
    keep_at(fake.champions["fr"].uri, names[3], 1)
    # neither a fetched model of ours, nor one that was never completed, nor one that someone put there under a name of his own
    with publish(cache / names[4], kind="pairs", meta={"language": "sw"}):
        pass
    (cache / names[5]).mkdir()
    (fake.folder / "sw-1-0").rename(cache / "mine")
    left = cache / ".removed-by-a-process-that-was-killed"
    left.mkdir()
    watcher.poll()
    assert version_of(catalogue) == 4
    assert {path.name for path in cache.iterdir()} == {*names[1:6], "mine"}


def test_a_served_model_is_not_removed_however_old_it_is(fake, tmp_path):
    cache = tmp_path / "cache" / "served"
    catalogue, watcher = watched(tmp_path)
    uris = [fake.promote(number) for number in (2, 3, 4)]
    for number, uri in enumerate(uris):
        fake.places[uri] = fake.places[uri].rename(cache / f"{number:016x}")
        os.utime(fake.places[uri], (1000 + number, 1000 + number))
    fake.champions["sw"] = Champion("nli-sw", 2, uris[0], read_manifest(fake.places[uris[0]]).digest)
    watcher.poll()
    assert version_of(catalogue) == 2
    assert {path.name for path in cache.iterdir()} == {f"{0:016x}", f"{2:016x}"}


@pytest.mark.slow
def test_over_real_servers_while_requests_run(prefix, mlflow_uri, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    expected: dict[str, np.ndarray] = {}

    def register(seed: int, accuracy: float, **how) -> int:
        folder = tiny_onnx_folder(tmp_path / f"v{seed}", "yo", seed=seed, **how)
        digest = read_manifest(folder).digest
        expected[digest] = slow_logits(PAIRS, seed)
        uri = objects.push_folder(folder, f"{prefix}/models")
        return registry.register("yo", uri, digest, metrics=GOOD | {"accuracy": accuracy}, tags={})

    assert registry.promote("yo", register(1, 0.7), GATE).promote
    # the server is shared with other tests, whose champions are no models
    settings = Settings(languages="yo", cache=tmp_path / "cache", threads=1, watch_seconds=SECONDS)
    catalogue = Catalogue(settings)
    catalogue.load()
    assert catalogue.problem is None
    watcher = Watcher(catalogue, settings)
    done, failures, seen = threading.Event(), [], set()

    def ask() -> None:
        while not done.is_set():
            try:
                served = catalogue.model_for("yo")
                assert np.allclose(served.predictor.logits(PAIRS), expected[served.predictor.digest], atol=1e-5)
                seen.add(served.source.version)
            except Exception as error:
                failures.append(error)
                return

    def wait_for(version: int) -> None:
        deadline = time.monotonic() + 60
        while version not in seen:
            assert not failures
            assert time.monotonic() < deadline, f"version {version} answers nothing"
            time.sleep(0.01)

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    try:
        wait_for(1)
        assert registry.promote("yo", register(2, 0.75), GATE).promote
        watcher.poll()
        assert version_of(catalogue, "yo") == 2
        wait_for(2)
        gate = catalogue.model_for("yo").source.gate
        assert gate["promote"]
        assert gate["decided_at"].endswith("+00:00")
        assert any("gain +0.0500" in reason for reason in gate["reasons"])

        assert registry.promote("yo", register(3, 0.8, golden_offset=0.5), GATE).promote
        watcher.poll()
        assert (version_of(catalogue, "yo"), catalogue.refusals["yo"].version) == (2, 3)

        registry.rollback("yo")
        watcher.poll()
        assert not catalogue.refusals
        registry.rollback("yo")
        watcher.poll()
        assert version_of(catalogue, "yo") == 1
    finally:
        done.set()
        for thread in asking:
            thread.join()
    assert not failures
    assert seen == {1, 2}

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    watcher.poll()
    assert "http://127.0.0.1:9" in watcher.problem
    assert version_of(catalogue, "yo") == 1
