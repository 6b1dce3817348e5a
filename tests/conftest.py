"""Servers that a test session shares, started when the first test asks for them."""

import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from pipelines.local_services import S3Service
from services import environment, pretended_s3, real_mlflow, real_s3

if TYPE_CHECKING:
    from serving.scheduler import Scheduler
    from world import World

# the deadline of one example measures the machine
settings.register_profile("conlst", deadline=None)
settings.load_profile("conlst")
# before a test module imports onnxruntime by itself
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither use nor fill the developer's cache and never log to the developer's tracking server."""
    cache = str(tmp_path_factory.mktemp("cache"))
    with environment({"CONLST_CACHE": cache}, ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")):
        yield


@pytest.fixture(autouse=True)
def _own_floats() -> Iterator[None]:
    """Training flushes denormal numbers to zero in its whole process, which other tests' arithmetic must not see."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def quick_kfp() -> Iterator[None]:
    """KFP asks for its caller's name together with the source of every frame, which takes seconds below pytest's many."""
    names_alone = SimpleNamespace(stack=lambda: inspect.stack(context=0)[1:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kfp.dsl.pipeline_task.inspect", names_alone)
        yield


@pytest.fixture
def scheduler() -> Iterator["Scheduler"]:
    """One run at a time, with room for little."""
    from serving.scheduler import Scheduler

    made = Scheduler(max_waiting=8, max_waiting_tokens=200, batch_tokens=100, runs=1)
    yield made
    made.close()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Service]:
    """A real S3 server with the bucket ``s3.bucket``; the environment variables that boto3 reads name it from now on."""
    with real_s3(tmp_path_factory.mktemp("seaweedfs")) as service:
        yield service


@pytest.fixture
def prefix(s3: S3Service, request: pytest.FixtureRequest) -> str:
    """``s3://…`` in the real server, the test's own: a ledger that another test wrote would decide over its promotions."""
    return f"s3://{s3.bucket}/{request.node.originalname}"


@pytest.fixture(scope="session")
def mlflow_process(s3: S3Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real MLflow server that keeps its artifacts in ``s3``; it takes long to start, so there is one."""
    with real_mlflow(tmp_path_factory.mktemp("mlflow"), s3) as uri:
        yield uri


@pytest.fixture
def mlflow_uri(mlflow_process: str) -> str:
    """Address of a real MLflow server with an empty registry."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(mlflow_process, mlflow_process)
    for model in client.search_registered_models():
        client.delete_registered_model(model.name)
    return mlflow_process


@pytest.fixture
def bucket() -> Iterator[str]:
    """``s3://…`` of a pretended bucket: fast, but accepts what a real server would refuse."""
    with pretended_s3() as uri:
        yield uri


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> "World":
    """What the tests of the stages' folders share; none of them changes what is in it."""
    from world import make_world

    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def calibrated(world: "World") -> Path:
    """The source model after stage 1."""
    from conlst.stages import folders

    out = world.folder / "calibrated"
    folders.calibrate_model(world.config(evaluate={"probes": 2}), world.model, world.pairs("pool"), "sw", out)
    return out


@pytest.fixture(scope="session")
def adapted(world: "World", calibrated: Path) -> Path:
    """And after stage 2."""
    from conlst.stages import folders

    out = world.folder / "adapted"
    folders.self_train_model(world.config(), calibrated, world.pairs("pool"), "sw", out)
    return out
