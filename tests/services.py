"""Helpers for tests that need servers: real ones, pretended ones, and ones that fail on purpose."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import botocore
import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ConnectionClosedError
from urllib3.exceptions import ProtocolError

from conlst.contract.errors import RegistryError
from conlst.platform import registry
from conlst.platform.objects import _client_of
from pipelines.local_services import S3Service, free_port, seaweedfs, server

_AWS_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ROLE_ARN")


@contextmanager
def environment(variables: Mapping[str, str], absent: tuple[str, ...] = ()) -> Iterator[None]:
    """Set and delete environment variables for the length of the block, at any fixture scope."""
    with pytest.MonkeyPatch.context() as patch:
        for name in absent:
            patch.delenv(name, raising=False)
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


@contextmanager
def real_s3(folder: Path) -> Iterator[S3Service]:
    """A SeaweedFS of this block's own, found by boto3's default chain."""
    with seaweedfs(folder) as service, environment(service.environment, _AWS_VARIABLES):
        yield service


@contextmanager
def real_mlflow(folder: Path, s3: S3Service) -> Iterator[str]:
    """An MLflow server of this block's own, with its database in ``folder``; clients must be told its address.

    They need no S3 credentials: the server passes artifacts on to ``s3``, under ``mlflow/``.
    """
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)

    def command(ports: Sequence[int]) -> list[str]:
        return [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
            "--artifacts-destination", f"s3://{s3.bucket}/mlflow", "--serve-artifacts", "--host", "127.0.0.1",
            "--port", str(ports[0]), "--workers", "1",
        ]  # fmt: skip

    settings = s3.environment | {
        "MLFLOW_S3_ENDPOINT_URL": s3.endpoint,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
    # a server that inherits its clients' address would take itself for its own backend
    inherited = {name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")}
    with server("MLflow", folder / "mlflow.log", lambda: [free_port()], command, "/health", 120, inherited | settings) as port:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def pretended_s3(bucket: str = "conlst") -> Iterator[str]:
    """moto in this process, with one bucket; yields the bucket's address."""
    import boto3
    from moto import mock_aws

    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    with environment(keys, _AWS_VARIABLES), mock_aws():
        boto3.client("s3").create_bucket(Bucket=bucket)
        _client_of.cache_clear()
        yield f"s3://{bucket}"


def champion_of(language: str) -> registry.Version | None:
    """The version that an endpoint would serve, or what keeps it from that."""
    found = registry.resolve_champions().get(language)
    if isinstance(found, RegistryError):
        raise found
    return found


class Requests:
    """Counts the S3 requests of the block by operation, and lets chosen ones fail as a bad network or server would.

    ``plan(operation, number)`` is asked for the ``number``-th attempt (from one) at an operation, for example ``PutObject``,
    and returns ``None`` to let it through, a status with which the server answers, ``"reset"`` for a connection that breaks
    before an answer, or ``"cut"`` for one that breaks within the body of a good answer. A pretended server carries a request
    out unless its connection is reset, so a status is also an answer that was lost.
    """

    def __init__(self, plan: Callable[[str, int], int | str | None] = lambda _operation, _number: None) -> None:
        self.attempts: Counter[str] = Counter()
        self._plan = plan

    def __enter__(self) -> "Requests":
        botocore.register_initializer(self._attach)
        _client_of.cache_clear()
        return self

    def __exit__(self, *_error: object) -> None:
        botocore.unregister_initializer(self._attach)
        _client_of.cache_clear()

    def _attach(self, session: Any) -> None:
        session.get_component("event_emitter").register_first("before-send.s3", self._before_send)

    def _before_send(self, request: Any, event_name: str, **_rest: Any) -> AWSResponse | None:
        operation = event_name.rsplit(".", 1)[-1]
        self.attempts[operation] += 1
        fault = self._plan(operation, self.attempts[operation])
        if fault is None:
            return None
        if fault == "reset":
            raise ConnectionClosedError(endpoint_url=request.url)
        if fault == "cut":
            return AWSResponse(request.url, 200, {"content-length": "100"}, _Body(b"?", then=ProtocolError("cut")))
        code = {503: "SlowDown", 403: "AccessDenied", 409: "ConditionalRequestConflict"}.get(int(fault), "InternalError")
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>on purpose</Message></Error>".encode()
        return AWSResponse(request.url, int(fault), {"content-type": "application/xml"}, _Body(body))


class _Body:
    def __init__(self, content: bytes, then: Exception | None = None) -> None:
        self._content = content
        self._then = then

    def stream(self, **_rest: Any) -> Iterator[bytes]:
        yield self._content

    def read(self, *_size: int) -> bytes:
        content, self._content = self._content, b""
        if self._then and not content:
            raise self._then
        return content
