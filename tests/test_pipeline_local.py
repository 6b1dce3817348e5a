"""The compiled pipeline through kfp.local on a tiny model, with a real S3 server and a real MLflow server."""

import json
from pathlib import Path

import pytest

from conlst.contract.artifacts import verify
from conlst.contract.config import config_from_dict
from conlst.platform import objects
from pipelines.local import run_locally
from services import champion_of
from tiny import tiny_backbone, tiny_config, tiny_pairs, write_tsv

pytestmark = pytest.mark.slow


def test_pipeline_trains_evaluates_and_promotes_each_language(
    tmp_path: Path, prefix: str, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    data = f"{prefix}/data"
    for name, seed, count in (("en", 1, 240), ("dev", 2, 60), ("sw", 3, 120), ("ur", 4, 120)):
        objects.push_file(write_tsv(tmp_path / f"{name}.tsv", tiny_pairs(count, seed)), f"{data}/{name}.tsv")
    config = config_from_dict(
        tiny_config(
            tiny_backbone(tmp_path / "backbone"),
            languages=["sw", "ur"],
            source_model="train",
            data={
                "source": [f"{data}/en.tsv"],
                "source_dev": f"{data}/dev.tsv",
                "pools": [f"{data}/{{language}}.tsv"],
                "tests": f"{data}/{{language}}.tsv",
            },
            gate={"min_accuracy": 0.0, "min_gain": -1.0, "max_ece": 1.0, "min_pairs": 100},
        )
    )

    result = run_locally(config, tmp_path / "runs", f"{prefix}/models", at_once=2)

    assert {row["language"]: row["promoted"] for row in result["decisions"]} == {"sw": True, "ur": True}
    for language in ("sw", "ur"):
        champion = champion_of(language)
        assert champion is not None
        assert champion.tags["protocol"] == "transductive"
        folder = objects.fetch_folder(champion.uri, tmp_path / "served" / language)
        assert verify(folder, "onnx").meta["language"] == language
        assert json.loads((folder / "config.json").read_text())["parity"] <= config.export.tolerance
