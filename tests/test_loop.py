"""Three rounds of the scheduled pipeline on text that the endpoint collects, with a real S3 server and a real MLflow server."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conlst.contract.config import Config, config_from_dict
from conlst.platform import objects, registry
from pipelines.local import run_locally
from tiny import tiny_backbone, tiny_config, tiny_pairs, write_tsv

pytestmark = pytest.mark.slow


def collect(folder: Path, feedback: str, name: str, count: int, seed: int) -> None:
    """A file as the endpoint writes it: texts, what was predicted, and no label."""
    rows = [
        {
            "premise": row["premise"],
            "hypothesis": row["hypothesis"],
            "language": "sw",
            "predicted": "neutral",
            "received_at": datetime(2026, 1, 1, tzinfo=UTC),
        }
        for row in tiny_pairs(count, seed)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    objects.push_file(folder / f"{name}.parquet", f"{feedback}/language=sw/date=2026-01-01/{name}.parquet")


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
    tmp_path: Path, prefix: str, mlflow_uri: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    feedback, store = f"{prefix}/feedback", f"{prefix}/models"

    def run(name: str) -> list[dict]:
        return run_locally(config, tmp_path / name, store)["decisions"]

    collect(tmp_path, feedback, "a", 40, 3)
    collect(tmp_path, feedback, "b", 40, 4)
    (first,) = run("first")
    assert (first["language"], first["promoted"]) == ("sw", True)
    assert any("unlabelled pairs" in reason for reason in first["reasons"])

    # too little new text: no version is made, and none is missed
    collect(tmp_path, feedback, "c", 20, 5)
    assert run("second") == []
    assert registry.champion("sw").version == 1

    collect(tmp_path, feedback, "d", 40, 6)
    (third,) = run("third")
    assert third["promoted"]
    champion = registry.champion("sw")
    assert champion.version == 2
    # each adaptation had its own text, and the little that had waited was taken along
    assert [entry.metrics["unlabelled_n"] for entry in registry.history("sw")] == [80, 60]
    assert len({entry.data["pool"] for entry in registry.history("sw")}) == 2
    assert [entry.replaces for entry in registry.history("sw")] == [None, 1]
