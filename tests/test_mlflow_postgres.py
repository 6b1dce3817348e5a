"""MLflow as infra/base starts it: its tables in a real PostgreSQL, its artifacts in a real S3, its auth on."""

import importlib.util
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.exceptions import MlflowException
from mlflow.server import get_app_client
from mlflow.tracking import MlflowClient

from conlst.contract.artifacts import publish, verify
from conlst.contract.config import Gate
from conlst.contract.errors import RegistryError
from conlst.platform import objects, registry
from machine import needs
from pipelines.local_services import S3Service, free_port
from postgres import Database, postgresql, programs
from services import champion_of, environment

ROOT = Path(__file__).parents[1]
GATE = Gate(min_accuracy=0.6, min_gain=0.01, max_ece=0.1, min_pairs=100, max_parity=1e-4)
GOOD = {"accuracy": 0.7, "ece": 0.05, "n": 150, "zero_shot_accuracy": 0.65, "parity": 1e-5}
ADMIN = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": secrets.token_hex(12)}
PIPELINE = {"MLFLOW_TRACKING_USERNAME": "pipeline", "MLFLOW_TRACKING_PASSWORD": secrets.token_hex(12)}
SERVING = {"MLFLOW_TRACKING_USERNAME": "serving", "MLFLOW_TRACKING_PASSWORD": secrets.token_hex(12)}

has_postgres = programs() is not None and all(importlib.util.find_spec(name) for name in ("psycopg2", "flask_wtf"))
pytestmark = pytest.mark.slow
needs_postgres = needs(has_postgres, "PostgreSQL, psycopg2 or mlflow[auth]")


@contextmanager
def server(database: Database, s3: S3Service, folder: Path) -> Iterator[str]:
    """The command and the settings of the manifest, on a free port; what is a secret there is made here."""
    manifest = {(found["kind"], found["metadata"]["name"]): found for found in _manifests("mlflow.yaml")}
    settings: dict[str, str] = manifest["ConfigMap", "mlflow"]["data"]
    (container,) = manifest["Deployment", "mlflow"]["spec"]["template"]["spec"]["containers"]
    permissions = folder / "basic_auth.ini"
    permissions.write_text(manifest["ConfigMap", "mlflow-permissions"]["data"]["basic_auth.ini"])
    port = free_port()
    command = list(container["command"])
    for option, value in (("--host", "127.0.0.1"), ("--port", str(port)), ("--workers", "1")):
        command[command.index(option) + 1] = value
    given = settings | s3.environment | database.environment | {
        "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{s3.bucket}/postgres-mlflow",
        "MLFLOW_AUTH_CONFIG_PATH": str(permissions),
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"{settings['MLFLOW_SERVER_ALLOWED_HOSTS']},127.0.0.1:{port}",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
        "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN["MLFLOW_TRACKING_USERNAME"],
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN["MLFLOW_TRACKING_PASSWORD"],
    }  # fmt: skip
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    log = folder / "mlflow.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], env=inherited | given, stdout=output, stderr=output, start_new_session=True
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def _manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "infra" / "base" / name).read_text()))


def _wait(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + 300
    while _status(url) != 200:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def _status(url: str, host: str | None = None) -> int | None:
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (urllib.error.URLError, OSError):
        return None


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Not pytest's own, which the database's user may not enter."""
    with tempfile.TemporaryDirectory(prefix="conlst-postgres-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def database(folder: Path) -> Iterator[Database]:
    with postgresql(folder / "postgres") as database:
        database.create("mlflow")
        yield database


@contextmanager
def user(uri: str, credentials: Mapping[str, str]) -> Iterator[MlflowClient]:
    """Who the process is towards MLflow for the length of the block."""
    with environment({"MLFLOW_TRACKING_URI": uri, **credentials}):
        yield MlflowClient(uri, uri)


@needs_postgres
def test_registry_with_users_outlives_a_broken_off_database(
    database: Database, s3: S3Service, folder: Path, tmp_path: Path
) -> None:
    with publish(tmp_path / "one", kind="onnx") as staging:
        (staging / "model.onnx").write_text("one")
    digest = verify(tmp_path / "one").digest
    uri = objects.push_folder(tmp_path / "one", f"s3://{s3.bucket}/postgres-models")
    with server(database, s3, folder) as address:
        search = f"{address}/api/2.0/mlflow/experiments/search?max_results=1"
        assert _status(search) == 401
        # the name that pods call it by is let in, a page's own name for the same address is not
        assert _status(search, "mlflow:5000") == 401
        assert _status(search, "mlflow.example:5000") == 403
        with user(address, ADMIN):
            for account in (PIPELINE, SERVING):
                get_app_client("basic-auth", tracking_uri=address).create_user(
                    account["MLFLOW_TRACKING_USERNAME"], account["MLFLOW_TRACKING_PASSWORD"]
                )
        with user(address, PIPELINE) as client:
            run = client.create_run(client.create_experiment("project")).info.run_id
            client.log_metric(run, "loss", 0.5, step=3)
            client.log_text(run, "kept in S3", "note.txt")
            assert registry.register("sw", uri, digest, metrics=GOOD, tags={}) == 1
            assert registry.promote("sw", 1, GATE).promote
        _serving_may_only_read(address, digest)
        with (
            user(address, SERVING | {"MLFLOW_TRACKING_PASSWORD": "wrong"}),
            pytest.raises(RegistryError, match=r"401|authenticated"),
        ):
            champion_of("sw")
    assert [address for address in objects.list_objects(f"s3://{s3.bucket}/postgres-mlflow") if address.endswith("note.txt")]

    database.stop(orderly=False)
    database.start()
    with server(database, s3, folder) as address:
        _serving_may_only_read(address, digest)
        with user(address, PIPELINE) as client:
            assert [entry.version for entry in registry.history("sw")] == [1]
            assert [point.value for point in client.get_metric_history(run, "loss")] == [0.5]
            assert registry.register("sw", uri, digest, metrics=GOOD | {"accuracy": 0.75}, tags={}) == 2
            assert registry.promote("sw", 2, GATE).promote
            assert registry.rollback("sw").version == 1


def _serving_may_only_read(address: str, digest: str) -> None:
    with user(address, SERVING) as client:
        assert {language: found.digest for language, found in registry.resolve_champions().items()} == {"sw": digest}
        with pytest.raises(MlflowException, match=r"403|[Pp]ermission"):
            client.set_registered_model_alias("nli-sw", "champion", "1")
        with pytest.raises(MlflowException, match=r"403|[Pp]ermission"):
            client.delete_registered_model("nli-sw")
