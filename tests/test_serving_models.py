import gc
import json
import logging
import re
import subprocess
import sys
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Condition

import numpy as np
import pytest
from botocore.config import Config as ClientConfig

from conlst.contract.artifacts import MANIFEST, read_manifest, verify
from conlst.contract.errors import ArtifactError, BackendError, ConfigError, RegistryError
from conlst.platform import objects
from conlst.runtime.cpu import available_cpus
from conlst.runtime.table import Tables
from pipelines.local_services import free_port
from serving.errors import ApiError
from serving.models import Catalogue, Refusal, Source, check_models, fetched_models, find_champions, find_sources, open_model
from serving.settings import Settings
from tiny_onnx import PAIRS, slow_logits, tiny_onnx_folder

CHECKOUT = Path(__file__).parents[1]
REFUSAL = Refusal(2, "0" * 64, "golden pair 0", datetime(2026, 11, 22, tzinfo=UTC))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_onnx_folder(tmp_path_factory.mktemp("served") / "sw")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return tiny_onnx_folder(tmp_path_factory.mktemp("served") / "sw2", seed=1)


def loaded(folder: Path) -> Catalogue:
    catalogue = Catalogue(Settings(models=f"sw={folder}", threads=1))
    catalogue.load()
    assert catalogue.problem is None
    return catalogue


def source(folder: Path, version: int = 2) -> Source:
    return Source("sw", "nli-sw", version, str(folder), read_manifest(folder).digest)


def test_an_unforeseen_failure_while_loading_is_told_too(monkeypatch):
    def fail(_):
        raise ZeroDivisionError

    monkeypatch.setattr("serving.models.find_sources", fail)
    catalogue = Catalogue(Settings())
    catalogue.load()
    assert "ZeroDivisionError" in catalogue.problem


@pytest.mark.parametrize(
    ("models", "languages", "error", "message"),
    [
        ("sw", "", ConfigError, "'sw', expected language=folder"),
        ("sw=", "", ConfigError, "expected language=folder"),
        ("=FOLDER", "", ConfigError, "expected language=folder"),
        ("sw=FOLDER,sw=FOLDER", "", ConfigError, "two models for sw"),
        ("sw=FOLDER", "sw,fr", ConfigError, "asks for fr"),
        ("sw=FOLDER,fr=s3://b/m", "fr", ConfigError, "CONLST_FALLBACK is 'sw'.*there are fr"),
        (",", "", ConfigError, "nothing to serve"),
        ("sw=/no/such/folder", "", ArtifactError, "/no/such/folder has no manifest"),
    ],
)
def test_what_cannot_be_served_is_refused_at_the_start(folder, models, languages, error, message):
    with pytest.raises(error, match=message):
        check_models(Settings(models=models.replace("FOLDER", str(folder)), languages=languages, fallback="sw"))


def test_languages_restrict_what_is_served(folder):
    models = f"sw={folder}, fr=s3://bucket/models/manifests/{'0' * 64}.json"
    assert list(find_sources(Settings(models=models))) == ["sw", "fr"]
    assert list(find_sources(Settings(models=models, languages=" sw "))) == ["sw"]


@dataclass
class Champion:
    name: str
    version: int
    uri: str
    digest: str
    tags: dict[str, str] = field(default_factory=dict)


def champions(monkeypatch, **found: Champion | RegistryError) -> dict[str, Champion | RegistryError]:
    monkeypatch.setattr("conlst.platform.registry.resolve_champions", lambda: found)
    return found


def test_without_named_models_the_registrys_champions_are_served(folder, tmp_path, monkeypatch):
    digest = read_manifest(folder).digest
    uri = f"s3://bucket/models/manifests/{digest}.json"
    fetched = []

    def localize(source, cache):
        fetched.append((source, cache))
        return folder

    champions(monkeypatch, sw=Champion("nli-sw", 7, uri, digest))
    monkeypatch.setattr("conlst.platform.objects.localize", localize)
    catalogue = Catalogue(Settings(cache=tmp_path, threads=1))
    before = datetime.now(UTC)
    catalogue.load()
    served = catalogue.model_for("sw")
    assert served.source == Source("sw", "nli-sw", 7, uri, digest)
    assert served.predictor.digest == digest
    assert before <= served.loaded_at <= datetime.now(UTC)
    assert fetched == [(uri, tmp_path / "served")]


def altered(cached: Path) -> None:
    # in place, so that it is damaged under all the names that it has
    table = cached / "embeddings.bin"
    table.chmod(0o644)
    table.write_bytes(bytes(table.stat().st_size))


def half_removed(cached: Path) -> None:
    (cached / MANIFEST).unlink()


def of_another_content(cached: Path) -> None:
    (cached / MANIFEST).write_text(replace(read_manifest(cached), parents={"source": "0" * 64}).to_json())


@pytest.mark.parametrize("damage", [altered, half_removed, of_another_content])
def test_a_model_that_is_damaged_in_the_cache_is_fetched_once_more(bucket, folder, tmp_path, monkeypatch, caplog, damage):
    monkeypatch.setenv("CONLST_CACHE", str(tmp_path))
    uri = objects.push_folder(folder, f"{bucket}/models")
    settings = Settings(models=f"sw={uri}", cache=tmp_path, threads=1)
    Catalogue(settings).load()
    (cached,) = fetched_models(settings).iterdir()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    damage(cached)
    catalogue = Catalogue(settings)
    catalogue.load()
    assert (catalogue.problem, dict(catalogue.refusals)) == (None, {})
    assert np.allclose(catalogue.model_for("sw").predictor.logits(PAIRS), slow_logits(PAIRS), atol=1e-5)
    assert f"{cached} is damaged, it is removed and fetched once more" in caplog.text
    assert verify(cached).digest == read_manifest(folder).digest


def test_a_damaged_model_is_tried_again_while_its_place_does_not_answer(bucket, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CONLST_CACHE", str(tmp_path))
    settings = Settings(models=f"sw={objects.push_folder(folder, f'{bucket}/models')}", cache=tmp_path, threads=1)
    Catalogue(settings).load()
    (cached,) = fetched_models(settings).iterdir()
    altered(cached)
    catalogue = Catalogue(settings)
    with monkeypatch.context() as away:
        away.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_port()}")
        away.setattr(objects, "_CLIENT", objects._CLIENT.merge(ClientConfig(retries={"total_max_attempts": 1})))
        catalogue.load()
    assert "cannot be reached" in catalogue.problem
    assert catalogue.refusals["sw"].passing
    catalogue.load()
    assert (catalogue.problem, catalogue.languages) == (None, ("sw",))


def test_a_damaged_folder_of_ones_own_is_refused_and_left_alone(tmp_path):
    own = tiny_onnx_folder(tmp_path / "sw")
    altered(own)
    catalogue = Catalogue(Settings(models=f"sw={own}", threads=1))
    catalogue.load()
    assert "embeddings.bin is not the file that was published" in catalogue.problem
    assert (own / "embeddings.bin").exists()


def test_a_registry_without_champions_has_nothing_to_serve(monkeypatch):
    champions(monkeypatch)
    with pytest.raises(ConfigError, match=r"nothing to serve.*conlst promote.*CONLST_MODELS"):
        find_sources(Settings())


def test_a_champion_that_is_gone_is_an_error_at_the_start_only(monkeypatch):
    there = {language: Champion(f"nli-{language}", 1, "s3://b/m", "0" * 64) for language in ("fr", "sw")}
    champions(monkeypatch, **there)
    with pytest.raises(ConfigError, match="asks for ur"):
        find_sources(Settings(languages="sw,ur"))
    assert list(find_champions(Settings(languages="sw,ur"))) == ["sw"]
    assert list(find_champions(Settings())) == ["fr", "sw"]


def test_a_champion_that_cannot_be_used_leaves_the_other_languages_theirs(folder, monkeypatch):
    there = Champion("nli-sw", 1, str(folder), read_manifest(folder).digest)
    unusable = RegistryError("version 2 of nli-fr is FAILED_REGISTRATION")
    found = champions(monkeypatch, fr=unusable, sw=there)
    assert find_sources(Settings())["fr"] is unusable
    catalogue = Catalogue(Settings(threads=1))
    catalogue.load()
    assert (catalogue.problem, catalogue.languages) == (None, ("sw",))
    assert catalogue.refusals["fr"].reason == str(unusable)
    # what serves already is no matter to a repeated load
    found["sw"] = RegistryError("gone")
    catalogue.load()
    assert (catalogue.problem, catalogue.languages) == (None, ("sw",))


def test_without_models_and_registry_nothing_starts(monkeypatch):
    with pytest.raises(ConfigError, match=r"set MLFLOW_TRACKING_URI.*CONLST_MODELS"):
        check_models(Settings())
    # it is not asked
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    check_models(Settings())


def test_the_gates_decision_comes_with_a_version(monkeypatch):
    noted = {"decision": json.dumps({"promote": True, "reasons": ["gain +0.02"]}), "decided_at": "2026-11-22T10:00:00+00:00"}
    champions(monkeypatch, sw=Champion("nli-sw", 1, "s3://b/m", "0" * 64, noted))
    told = {"promote": True, "reasons": ["gain +0.02"], "decided_at": "2026-11-22T10:00:00+00:00"}
    assert find_sources(Settings())["sw"].gate == told


@pytest.mark.parametrize(
    ("noted", "told"),
    [
        ("2026-11-22T10:00:00+00:00", "2026-11-22T10:00:00+00:00"),
        # which a browser takes for no date
        ("20261122T100000Z", "2026-11-22T10:00:00+00:00"),
        ("yesterday", None),
        ("", None),
        (None, None),
    ],
)
def test_the_time_of_a_decision_is_a_date_or_nothing(monkeypatch, noted, told):
    tags = {"decision": json.dumps({"promote": True, "reasons": []})} | ({} if noted is None else {"decided_at": noted})
    champions(monkeypatch, sw=Champion("nli-sw", 1, "s3://b/m", "0" * 64, tags))
    assert find_sources(Settings())["sw"].gate["decided_at"] == told


@pytest.mark.parametrize("tags", [{}, {"decision": "yes"}, {"decision": "[]"}, {"decision": '{"promote": true}'}])
def test_a_version_that_no_gate_decided_on_has_no_decision(monkeypatch, tags):
    champions(monkeypatch, sw=Champion("nli-sw", 1, "s3://b/m", "0" * 64, tags))
    assert find_sources(Settings())["sw"].gate is None


def test_a_model_of_another_digest_language_or_provider_is_not_opened(folder):
    right, configured, tables = source(folder), Settings(threads=1), Tables()
    assert open_model(right, configured, tables).predictor.language == "sw"
    with pytest.raises(ArtifactError, match="the registry says"):
        open_model(replace(right, digest="0" * 64), configured, tables)
    with pytest.raises(RegistryError, match="adapted to 'sw', it cannot be served for 'fr'"):
        open_model(replace(right, language="fr"), configured, tables)
    with pytest.raises(BackendError, match="CUDAExecutionProvider"):
        open_model(right, replace(configured, provider="CUDAExecutionProvider"), tables)


def test_a_failed_load_may_be_repeated_and_a_ready_catalogue_stays(tmp_path):
    catalogue = Catalogue(Settings(models=f"sw={tmp_path / 'sw'}", threads=1))
    for _ in range(2):
        catalogue.load()
        assert "sw has no manifest" in catalogue.problem
        with pytest.raises(ApiError, match="no manifest") as refused:
            catalogue.model_for("sw")
        assert (refused.value.status, refused.value.kind) == (503, "not_ready")
    tiny_onnx_folder(tmp_path / "sw")
    catalogue.load()
    served = catalogue.model_for("sw")
    catalogue.load()
    assert catalogue.model_for("sw") is served


@pytest.fixture
def with_a_bad_one(folder, tmp_path) -> str:
    broken = tiny_onnx_folder(tmp_path / "fr", "fr", golden_offset=0.1)
    return f"sw={folder},fr={broken}"


def test_of_several_models_those_that_open_are_served(with_a_bad_one, caplog):
    catalogue = Catalogue(Settings(models=with_a_bad_one, threads=1))
    catalogue.load()
    assert (catalogue.problem, catalogue.languages) == (None, ("sw",))
    refusal = catalogue.refusals["fr"]
    assert "answers golden pair 0 otherwise" in refusal.reason
    assert not refusal.passing
    assert "fr: its model is refused" in caplog.text
    with pytest.raises(ApiError, match="no model for 'fr'"):
        catalogue.model_for("fr")


@pytest.mark.parametrize(("asked", "ready"), [({"languages": "fr,sw"}, 0), ({"fallback": "fr"}, 0), ({"fallback": "sw"}, 1)])
def test_a_language_that_is_asked_for_has_to_be_served(with_a_bad_one, asked, ready):
    catalogue = Catalogue(Settings(models=with_a_bad_one, threads=1, **asked))
    catalogue.load()
    if ready:
        assert catalogue.problem is None
        return
    assert catalogue.problem.startswith("fr: ")
    assert "answers golden pair 0 otherwise" in catalogue.problem
    with pytest.raises(ApiError, match="golden") as refused:
        catalogue.model_for("sw")
    assert refused.value.status == 503


@pytest.mark.parametrize("shortage", [BackendError("S3 is away"), OSError("No space left on device"), MemoryError()])
def test_what_failed_in_passing_is_opened_by_a_repeated_load_and_what_is_bad_is_left(folder, tmp_path, monkeypatch, shortage):
    places = [tiny_onnx_folder(tmp_path / "fr", "fr"), tiny_onnx_folder(tmp_path / "ur", "ur", golden_offset=0.1)]
    catalogue = Catalogue(Settings(models=f"fr={places[0]},sw={folder},ur={places[1]}", threads=1))
    opened, tried = catalogue.open, []

    def fail_first(source):
        tried.append(source.language)
        if tried == ["fr"]:
            raise shortage
        return opened(source)

    monkeypatch.setattr(catalogue, "open", fail_first)
    catalogue.load()
    assert (catalogue.problem, catalogue.languages) == (None, ("sw",))
    assert catalogue.refusals["fr"].passing
    assert "tried again" in catalogue.refusals["fr"].reason
    served = catalogue.model_for("sw")
    catalogue.load()
    assert catalogue.languages == ("fr", "sw")
    assert list(catalogue.refusals) == ["ur"]
    assert tried == ["fr", "sw", "ur", "fr"]
    assert catalogue.model_for("sw") is served


def test_models_of_one_catalogue_share_their_table(folder, tmp_path):
    french = tiny_onnx_folder(tmp_path / "fr", "fr")
    catalogue = Catalogue(Settings(models=f"sw={folder},fr={french}", threads=1))
    catalogue.load()
    assert catalogue.languages == ("fr", "sw")
    one, two = (catalogue.model_for(language).predictor for language in catalogue.languages)
    assert one is not two
    assert one._table is two._table


def test_an_unknown_language_is_told_with_those_that_are_served(folder):
    with pytest.raises(ApiError, match="no model for 'fr'; served are sw") as refused:
        loaded(folder).model_for("fr")
    assert (refused.value.status, refused.value.kind) == (404, "unknown_language")


def test_a_swapped_model_answers_who_holds_it_and_is_freed_then(folder, other):
    catalogue = loaded(folder)
    held = catalogue.model_for("sw")
    old = weakref.ref(held.predictor)
    catalogue.swap("sw", catalogue.open(source(other)))
    assert np.allclose(held.predictor.logits(PAIRS), slow_logits(PAIRS), atol=1e-5)
    assert np.allclose(catalogue.model_for("sw").predictor.logits(PAIRS), slow_logits(PAIRS, seed=1), atol=1e-5)
    gc.collect()
    assert old() is not None
    del held
    gc.collect()
    assert old() is None


def test_a_swap_may_add_a_language(folder, tmp_path):
    catalogue = loaded(folder)
    french = tiny_onnx_folder(tmp_path / "fr", "fr")
    catalogue.swap("fr", catalogue.open(replace(source(french), language="fr", name="nli-fr")))
    assert catalogue.languages == ("fr", "sw")
    assert catalogue.model_for("fr").predictor.language == "fr"
    assert catalogue.model_for("sw").predictor.language == "sw"


def test_a_refusal_is_shown_until_a_swap_or_a_pardon(folder, other):
    catalogue = loaded(folder)
    for language in ("sw", "fr"):
        catalogue.refuse(language, REFUSAL)
    assert dict(catalogue.refusals) == {"sw": REFUSAL, "fr": REFUSAL}
    catalogue.swap("sw", catalogue.open(source(other)))
    assert dict(catalogue.refusals) == {"fr": REFUSAL}
    catalogue.forgive("fr")
    assert not catalogue.refusals
    with pytest.raises(TypeError):
        catalogue.refusals["sw"] = REFUSAL


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"reason": "golden pair 3"}, ["sw: version 2 is refused: golden pair 3"]),
        ({"passing": True}, ["sw: version 2 is refused: golden pair 0"]),
        ({"version": 3}, ["sw: version 3 is refused: golden pair 0"]),
        ({"since": datetime(2026, 11, 23, tzinfo=UTC)}, []),
    ],
)
def test_a_refusal_is_logged_again_when_it_changes(folder, caplog, changes, told):
    catalogue = loaded(folder)
    catalogue.refuse("sw", REFUSAL)
    caplog.clear()
    for _ in range(2):
        catalogue.refuse("sw", replace(REFUSAL, **changes))
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == told
    # one that was refused already is so since then, whatever the reason is now
    assert catalogue.refusals["sw"] == replace(REFUSAL, **changes | {"since": REFUSAL.since})


def test_no_request_fails_or_is_mixed_up_while_models_are_swapped(folder, other):
    expected = {read_manifest(one).digest: slow_logits(PAIRS, seed) for seed, one in enumerate((folder, other))}
    catalogue = loaded(folder)
    answered: Counter[str] = Counter()
    changed = Condition()
    done = False

    def ask() -> int:
        asked = 0
        while not done:
            served = catalogue.model_for("sw")
            assert np.allclose(served.predictor.logits(PAIRS), expected[served.predictor.digest], atol=1e-5)
            asked += 1
            with changed:
                answered[served.predictor.digest] += 1
                changed.notify()
        return asked

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            for turn in range(20):
                new = source((other, folder)[turn % 2], turn + 2)
                with changed:
                    seen = answered[new.digest]
                catalogue.swap("sw", catalogue.open(new))
                # what follows a swap is answered by the new model
                with changed:
                    assert changed.wait_for(lambda seen=seen, new=new: answered[new.digest] > seen, timeout=60)
        finally:
            done = True
        assert sum(future.result() for future in asking) == answered.total() >= 20


def test_settings_come_from_the_environment():
    assert Settings.from_environment({}) == Settings()
    found = Settings.from_environment(
        {"CONLST_MAX_PAIRS": "8", "CONLST_MAX_WAITING": "0", "CONLST_CACHE": "/c", "CONLST_MODELS": "sw=/x", "CONLST_THREADS": ""}
    )
    assert found == Settings(max_pairs=8, max_waiting=0, cache=Path("/c"), models="sw=/x")


def test_there_is_a_run_for_each_cpu_but_one_for_a_device():
    assert Settings(threads=3).runs == 3
    assert Settings().runs == available_cpus()
    assert Settings(threads=3, provider="CUDAExecutionProvider").runs == 1


@pytest.mark.parametrize("value", ["x", "0", "-1", "1.5", "1e3", "٣"])
def test_a_wrong_setting_is_refused_by_name(value):
    with pytest.raises(ConfigError, match=re.escape(f"CONLST_MAX_PAIRS is {value!r}")):
        Settings.from_environment({"CONLST_MAX_PAIRS": value})


def test_serving_imports_no_training_library():
    heavy = "{'torch', 'transformers', 'datasets', 'mlflow', 'pyarrow'}"
    program = f"import sys, serving.service; print({heavy} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
