"""What the components leave in MLflow when they fail."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.tracking import MlflowClient

from components.ingest import ingest, ingest_pools
from components.promote import promote
from components.register import register
from components.source_model import source_model
from conlst.contract.config import load_config
from conlst.contract.errors import ConlstError

ABSENT = "data.pools=[/absent/pool.tsv]"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One for all tests, because MLflow takes seconds to open a new one."""
    return f"sqlite:///{tmp_path_factory.mktemp('components') / 'mlflow.db'}"


def a_source_model(job: str, folder: Path) -> None:
    out = SimpleNamespace(path=str(folder / "out"))
    source_model.python_func(load_config("demo", ("source_model=s3://nowhere",)).to_json(), job, out, out, out)


def a_pool(job: str, folder: Path) -> None:
    out = SimpleNamespace(path=str(folder / "out"), metadata={})
    ingest.python_func(load_config("demo", (ABSENT,)).to_json(), job, "pool", "sw", out)


def a_joint_pool(job: str, folder: Path) -> None:
    out = SimpleNamespace(path=str(folder / "out"), metadata={})
    ingest_pools.python_func(load_config("demo", (ABSENT,)).to_json(), job, ["sw"], out)


def a_registration(job: str, folder: Path) -> None:
    absent = SimpleNamespace(path=str(folder / "absent"))
    register.python_func(load_config("demo").to_json(), job, "sw", "s3://bucket/models", absent, absent, absent, absent)


def a_promotion(job: str, folder: Path) -> None:  # noqa: ARG001
    promote.python_func(load_config("demo").to_json(), job, "sw", 7)


@pytest.mark.parametrize("fails", [a_source_model, a_pool, a_joint_pool, a_registration, a_promotion])
def test_a_task_that_fails_ends_the_run_of_the_pipeline(
    fails: Callable[[str, Path], None], database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    job = f"job-of-{fails.__name__}"
    with pytest.raises(ConlstError):
        fails(job, tmp_path)
    client = MlflowClient(database)
    experiment = client.get_experiment_by_name("conlst")
    assert experiment is not None
    (whole,) = client.search_runs([experiment.experiment_id], f"tags.`conlst.run` = '{job}'")
    assert whole.info.status == "FAILED"
