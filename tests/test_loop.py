"""The scheduled pipeline on text that the endpoint collects, with a real S3 server and a real MLflow server."""

from pathlib import Path

import numpy as np
import pytest

from conlst.contract.artifacts import read_manifest
from conlst.contract.config import Config, config_from_dict, with_settings
from conlst.platform import collected, objects, registry
from conlst.runtime.table import Tables
from pipelines.local import run_locally
from services import champion_of
from serving.feedback import Feedback
from serving.models import Served, Source, open_model
from serving.settings import Settings
from tiny import tiny_backbone, tiny_config, tiny_pairs, write_tsv
from tiny_onnx import tiny_onnx_folder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tiny_onnx_folder(tmp_path_factory.mktemp("served") / "sw")
    return open_model(Source("sw", "nli-sw", 1, str(folder), read_manifest(folder).digest), Settings(threads=1), Tables())


def collect(served: Served, feedback: str, count: int, seed: int, language: str = "sw") -> None:
    """Pairs as the endpoint collects them."""
    pairs = [(row["premise"], row["hypothesis"]) for row in tiny_pairs(count, seed)]
    endpoint = Feedback(Settings(feedback=feedback))
    endpoint.offer(served, language, pairs, np.full((count, 3), 1 / 3))
    endpoint.close()
    assert endpoint.written == count


@pytest.fixture
def config(tmp_path: Path, prefix: str) -> Config:
    data = f"{prefix}/data"
    for name, seed, count in (("en", 1, 240), ("dev", 2, 60)):
        objects.push_file(write_tsv(tmp_path / f"{name}.tsv", tiny_pairs(count, seed)), f"{data}/{name}.tsv")
    feedback = f"collected:{prefix}/feedback"
    return config_from_dict(
        tiny_config(
            tiny_backbone(tmp_path / "backbone"),
            source_model="train",
            data={
                "source": [f"{data}/en.tsv"],
                "source_dev": f"{data}/dev.tsv",
                "pools": [feedback],
                "tests": feedback,
            },
            collect={"min_pairs": 50},
            gate={
                **{"evidence": "none", "min_accuracy": 0.0, "min_gain": -1.0, "min_pairs": 50, "max_english_fall": 1.0},
                **{"min_label_share": 0.0, "min_agreement": 0.0},
            },
        )
    )


def test_new_text_is_adapted_to_and_nothing_to_do_is_a_clean_success(
    tmp_path: Path, prefix: str, mlflow_uri: str, config: Config, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    feedback, store = f"{prefix}/feedback", f"{prefix}/models"

    def run(name: str) -> list[dict]:
        return run_locally(config, tmp_path / name, store)["decisions"]

    collect(served, feedback, 40, 3)
    collect(served, feedback, 40, 4)
    (first,) = run("first")
    assert (first["language"], first["promoted"]) == ("sw", True)
    assert any("unlabelled pairs" in reason for reason in first["reasons"])

    # too little new text: no version is made, and none is missed
    collect(served, feedback, 20, 5)
    assert run("second") == []
    assert champion_of("sw").version == 1

    collect(served, feedback, 40, 6)
    (third,) = run("third")
    assert third["promoted"]
    champion = champion_of("sw")
    assert champion.version == 2
    # each adaptation had its own text, and the little that had waited was taken along
    assert [entry.metrics["unlabelled_n"] for entry in registry.history("sw")] == [80, 60]
    assert len({entry.data["pool"] for entry in registry.history("sw")}) == 2
    assert [entry.replaces for entry in registry.history("sw")] == [None, 1]


def test_one_model_is_trained_on_the_new_text_of_all_languages_and_released_in_each(
    tmp_path: Path, prefix: str, mlflow_uri: str, config: Config, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    feedback, store = f"{prefix}/feedback", f"{prefix}/models"
    joint = {"languages": ["sw", "ur", "fr"], "adapt.joint": True, "adapt.stages": ["selftrain"]}
    config = with_settings(config, joint)
    # fr has too little
    for language, count in (("sw", 60), ("ur", 80), ("fr", 20)):
        collect(served, feedback, count, count, language)

    decisions = run_locally(config, tmp_path / "first", store, at_once=2)["decisions"]
    assert {row["language"]: row["promoted"] for row in decisions} == {"sw": True, "ur": True}
    champions = {language: champion_of(language) for language in ("sw", "ur")}
    models, pools = ({champion.tags[name] for champion in champions.values()} for name in ("model_digest", "pool"))
    assert (len(models), len(pools)) == (1, 1)
    for language, champion in champions.items():
        folder = objects.fetch_folder(champion.uri, tmp_path / language)
        assert read_manifest(folder).meta["language"] == language
        assert champion.metrics["unlabelled_n"] == {"sw": 60, "ur": 80}[language]

    # each language has taken its own text, and what waited in the third waits still
    waiting = {language: len(collected.new_files(f"collected:{feedback}", language)) for language in config.languages}
    assert waiting == {"sw": 0, "ur": 0, "fr": 1}
