import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from conlst.contract.artifacts import read_manifest
from conlst.contract.labels import NAMES
from pipelines.local_services import free_port
from served import CANARY, CHECKOUT, MANY, ONE, Bomb, expected
from serving.__main__ import command, main
from serving.ending import FLUSH_SECONDS, GRACE_SECONDS, WATCH_SECONDS
from serving.keys import make_key
from serving.openapi import openapi_document
from tiny_onnx import PAIRS, tiny_onnx_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_onnx_folder(tmp_path_factory.mktemp("served") / "sw")


@dataclass
class Process:
    popen: subprocess.Popen
    url: str
    log: Path

    def until(self, condition) -> httpx.Response:
        """The first answer of /readyz that is as wished."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.popen.poll() is None, self.log.read_text()
            try:
                answer = httpx.get(f"{self.url}/readyz", timeout=5)
            except httpx.TransportError:
                answer = None
            if answer is not None and condition(answer):
                return answer
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())


def start(folder: Path, models: str, grace: int | None = None, cwd: Path = CHECKOUT, **environment: str) -> Process:
    """The server as it is started, or one with a grace of other seconds at its end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {
        **os.environ,
        "CONLST_MODELS": models,
        "CONLST_THREADS": "1",
        "BENTOML_HOME": str(folder / "bentoml"),
        **environment,
    }
    program = [sys.executable, "-m", "serving", "--port", str(port)]
    if grace is not None:
        program = [*command("127.0.0.1", port)[:-1], str(grace)]
        variables |= {"CONLST_AUTH": "none", "BENTOML_DO_NOT_TRACK": "True"}
    log = folder / "log"
    with log.open("w") as output:
        popen = subprocess.Popen(program, cwd=cwd, env=variables, stdout=output, stderr=output)
    return Process(popen, f"http://127.0.0.1:{port}", log)


def stop(process: Process) -> None:
    if process.popen.poll() is None:
        process.popen.terminate()
        process.popen.wait(40)


@pytest.fixture(scope="module")
def real(folder, tmp_path_factory) -> Iterator[Process]:
    process = start(tmp_path_factory.mktemp("server"), f"sw={folder}")
    try:
        process.until(lambda answer: answer.status_code == 200)
        yield process
    finally:
        stop(process)


@pytest.mark.slow
def test_the_real_server_answers(real, folder):
    answer = httpx.post(f"{real.url}/predict", json=MANY, headers={"X-Request-ID": "real-1"})
    assert answer.status_code == 200
    assert answer.headers["x-request-id"] == "real-1"
    found = [[prediction["probabilities"][name] for name in NAMES] for prediction in answer.json()["predictions"]]
    np.testing.assert_allclose(found, expected(PAIRS), atol=1e-6)
    assert httpx.get(f"{real.url}/livez").status_code == 200
    assert httpx.get(f"{real.url}/models").json()["models"][0]["digest"] == read_manifest(folder).digest
    assert httpx.get(f"{real.url}/docs.json").json() == openapi_document()
    assert 'conlst_requests_total{error="",route="/predict",status="200"}' in httpx.get(f"{real.url}/metrics").text
    # counted in memory, as one process may, and not in BentoML's files
    assert not [*(real.log.parent / "bentoml" / "prometheus_multiproc_dir").iterdir()]
    assert "<script" not in httpx.get(f"{real.url}/").text
    assert httpx.get(f"{real.url}/nope").json()["error"]["type"] == "not_found"


@pytest.mark.slow
def test_the_real_server_refuses_pickles_and_floods(real):
    def chunks() -> Iterator[bytes]:
        for _ in range(500):
            yield b" " * 65536

    bomb = httpx.post(
        f"{real.url}/predict", content=pickle.dumps(Bomb()), headers={"content-type": "application/vnd.bentoml+pickle"}
    )
    assert bomb.status_code == 415
    headers = {"content-type": "application/json"}
    assert httpx.post(f"{real.url}/predict", content=b" " * 30_000_000, headers=headers, timeout=30).status_code == 413
    assert httpx.post(f"{real.url}/predict", content=chunks(), headers=headers, timeout=30).status_code == 413
    assert httpx.post(f"{real.url}/predict", json=ONE).status_code == 200


@pytest.mark.slow
def test_the_real_log_has_ids_and_no_texts(real):
    question = {"premise": CANARY, "hypothesis": CANARY, "language": "sw"}
    httpx.post(f"{real.url}/predict", json=question, headers={"X-Request-ID": "real-log"})
    httpx.post(f"{real.url}/predict", json={**question, "premise": CANARY * 1000})
    httpx.post(f"{real.url}/predict?premise={CANARY}", content=CANARY, headers={"content-type": "application/json"})
    httpx.get(f"{real.url}/{CANARY}?{CANARY}")
    httpx.get(f"{real.url}/readyz?{CANARY}")
    log = real.log.read_text()
    assert "real-log /predict 200" in log
    assert CANARY not in log


@pytest.mark.slow
def test_sigterm_lets_a_request_in_flight_finish(folder, tmp_path):
    process = start(tmp_path, f"sw={folder}")
    try:
        process.until(lambda answer: answer.status_code == 200)
        body = json.dumps(ONE).encode()
        with socket.create_connection(("127.0.0.1", int(process.url.rpartition(":")[2])), timeout=30) as connection:
            head = (
                f"POST /predict HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            connection.sendall(head.encode() + body[:10])
            # answered after the half request was sent, so the server has begun with that
            assert httpx.get(f"{process.url}/models").status_code == 200
            process.popen.send_signal(signal.SIGTERM)
            while _answers(process.url):
                pass
            connection.sendall(body[10:])
            answer = _all_of(connection)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        assert b'"predictions"' in answer
        assert process.popen.wait(40) == 0
    finally:
        stop(process)


@pytest.mark.slow
def test_sigterm_tells_a_request_that_takes_too_long_to_go_elsewhere(folder, tmp_path):
    process = start(tmp_path, f"sw={folder}", grace=1)
    try:
        process.until(lambda answer: answer.status_code == 200)
        with socket.create_connection(("127.0.0.1", int(process.url.rpartition(":")[2])), timeout=30) as connection:
            connection.sendall(
                b"POST /predict HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
            )
            # answered after the half request was sent, so the server has begun with that
            assert httpx.get(f"{process.url}/models").status_code == 200
            process.popen.send_signal(signal.SIGTERM)
            head, _, body = _all_of(connection).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503"), head
        assert b"\r\nretry-after: 5" in head.lower()
        assert json.loads(body)["error"]["type"] == "not_ready"
        assert process.popen.wait(40) == 0
        assert "/predict 503" in process.log.read_text()
    finally:
        stop(process)


@pytest.mark.slow
def test_sigterm_writes_the_feedback_that_waits(folder, tmp_path):
    process = start(tmp_path, f"sw={folder}", CONLST_FEEDBACK=str(tmp_path / "kept"))
    try:
        process.until(lambda answer: answer.status_code == 200)
        assert httpx.post(f"{process.url}/predict", json={**MANY, "feedback": True}).status_code == 200
        process.popen.send_signal(signal.SIGTERM)
        assert process.popen.wait(40) == 0
        (file,) = (tmp_path / "kept" / "language=sw").rglob("*.parquet")
        assert pq.read_table(file).num_rows == len(PAIRS)
    finally:
        stop(process)


@pytest.mark.slow
def test_keys_guard_the_real_server_and_change_while_it_runs(folder, tmp_path):
    (old, old_line), (new, new_line) = make_key("old"), make_key("new")
    keys = tmp_path / "keys"
    keys.write_text(f"{old_line}\n")
    process = start(tmp_path, f"sw={folder}", CONLST_AUTH="keys", CONLST_KEYS_FILE=str(keys))
    try:
        process.until(lambda answer: answer.status_code == 200)
        ask = partial(httpx.post, f"{process.url}/predict", json=ONE)
        assert ask().status_code == 401
        assert ask(headers={"Authorization": f"Bearer {old}"}).status_code == 200
        keys.write_text(f"# of today\n{new_line}\n")
        assert [ask(headers={"Authorization": f"Bearer {key}"}).status_code for key in (old, new)] == [401, 200]
        assert httpx.get(f"{process.url}/livez").status_code == 200
    finally:
        stop(process)


@pytest.mark.slow
def test_relative_paths_are_meant_from_where_the_server_is_started(tmp_path):
    tiny_onnx_folder(tmp_path / "served" / "sw")
    key, line = make_key("own")
    (tmp_path / "keys").write_text(f"{line}\n")
    relative = {"CONLST_KEYS_FILE": "keys", "CONLST_FEEDBACK": "kept"}
    process = start(tmp_path, "sw=served/sw", cwd=tmp_path, **relative)
    try:
        process.until(lambda answer: answer.status_code == 200)
        asked = {**ONE, "feedback": True}
        assert httpx.post(f"{process.url}/predict", json=asked).status_code == 401
        assert httpx.post(f"{process.url}/predict", json=asked, headers={"Authorization": f"Bearer {key}"}).status_code == 200
    finally:
        stop(process)
    assert len([*(tmp_path / "kept").rglob("*.parquet")]) == 1


def test_what_ends_one_after_the_other_fits_into_the_grace():
    requests = int(command("127.0.0.1", 3000)[-1])
    assert requests >= 10
    assert requests + WATCH_SECONDS + FLUSH_SECONDS <= GRACE_SECONDS


@pytest.mark.parametrize(
    ("host", "keys_file", "auth"), [("127.0.0.1", "", "none"), ("127.0.0.1", "/keys", "keys"), ("0.0.0.0", "/keys", "keys")]
)
def test_keys_that_are_named_are_asked_for(monkeypatch, host, keys_file, auth):
    for name, value in (("CONLST_AUTH", ""), ("CONLST_KEYS_FILE", keys_file), ("BENTOML_DO_NOT_TRACK", "True")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["serving", "--host", host])
    monkeypatch.setattr("serving.__main__.os.execv", lambda *_: None)
    main()
    assert os.environ["CONLST_AUTH"] == auth


def test_an_address_for_others_needs_a_choice_of_who_may_ask():
    variables = {name: value for name, value in os.environ.items() if name != "CONLST_AUTH"}
    command = [sys.executable, "-m", "serving", "--host", "0.0.0.0", "--port", "1"]
    told = subprocess.run(command, cwd=CHECKOUT, env=variables, capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert "0.0.0.0 can be reached by others" in told.stderr
    assert "CONLST_AUTH=none" in told.stderr


def _all_of(connection: socket.socket) -> bytes:
    answer = b""
    while block := connection.recv(65536):
        answer += block
    return answer


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/livez", timeout=1).is_success
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_the_real_server_is_alive_but_not_ready_with_a_wrong_model(tmp_path):
    process = start(tmp_path, f"sw={tiny_onnx_folder(tmp_path / 'sw', golden_offset=0.5)}")
    try:
        process.until(lambda _: "golden pair 0" in httpx.get(f"{process.url}/models").json()["reason"])
        answer = httpx.get(f"{process.url}/readyz")
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        # it needs no key, and reasons name folders and addresses
        assert answer.text == "no answers yet; the server's log and GET /models say why"
        assert httpx.get(f"{process.url}/livez").status_code == 200
        assert httpx.post(f"{process.url}/predict", json=ONE).json()["error"]["type"] == "not_ready"
    finally:
        stop(process)


@pytest.mark.slow
def test_the_real_server_waits_for_a_registry_that_is_away(tmp_path):
    process = start(tmp_path, "", MLFLOW_TRACKING_URI="http://127.0.0.1:9", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    try:
        process.until(lambda _: "http://127.0.0.1:9" in httpx.get(f"{process.url}/models").json()["reason"])
        assert httpx.get(f"{process.url}/livez").status_code == 200
        assert "127.0.0.1:9" not in httpx.get(f"{process.url}/readyz").text
    finally:
        stop(process)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("models", "reason"),
    [("sw=/no/such/folder", "/no/such/folder has no manifest.json"), ("", "set MLFLOW_TRACKING_URI, for example")],
)
def test_the_real_server_ends_with_the_reason_when_there_is_nothing_to_serve(tmp_path, models, reason):
    process = start(tmp_path, models)
    try:
        assert process.popen.wait(60) == 1
        assert reason in process.log.read_text()
        assert "Traceback" not in process.log.read_text()
    finally:
        stop(process)


@pytest.mark.slow
def test_a_bento_is_built_and_serves_by_itself(folder: Path, tmp_path: Path) -> None:
    variables = {**os.environ, "BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "True"}
    build = [sys.executable, "-m", "bentoml", "build", "-f", "serving/bentofile.yaml", ".", "--output", "tag"]
    built = subprocess.run(build, cwd=CHECKOUT, env=variables, stdout=subprocess.PIPE, text=True, check=True)
    name, version = re.search(r"__tag__:(\w+):(\w+)", built.stdout).groups()
    bento = tmp_path / "bentos" / name / version
    variables["PYTHONPATH"] = str(bento / "src")
    found = subprocess.run(
        [sys.executable, "-c", "import conlst, serving.service; print(conlst.__file__)"],
        cwd=tmp_path,
        env=variables,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == str(bento / "src" / "conlst" / "__init__.py")

    port = free_port()
    log = tmp_path / "log"
    with log.open("w") as output:
        command = [sys.executable, "-m", "bentoml", "serve", str(bento), "--host", "127.0.0.1", "--port", str(port)]
        # from where it is started, not from the Bento
        settings = {"CONLST_MODELS": f"sw={os.path.relpath(folder, tmp_path)}", "CONLST_THREADS": "1", "CONLST_AUTH": "none"}
        popen = subprocess.Popen(command, cwd=tmp_path, env=variables | settings, stdout=output, stderr=output)
    process = Process(popen, f"http://127.0.0.1:{port}", log)
    try:
        process.until(lambda answer: answer.status_code == 200)
        answer = httpx.post(f"{process.url}/predict", json=ONE)
        assert answer.status_code == 200, answer.text
        assert answer.json()["predictions"][0]["label"] in NAMES
    finally:
        stop(process)


def test_the_command_gives_its_place_and_its_signals_to_the_server(tmp_path: Path) -> None:
    folder = tiny_onnx_folder(tmp_path / "sw")
    command = [sys.executable, "-m", "conlst.cli", "serve", "--model", f"sw={folder}", "--port", str(free_port())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 60
        while "bentoml" not in Path(f"/proc/{process.pid}/cmdline").read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert "bentoml" in Path(f"/proc/{process.pid}/cmdline").read_text()
    finally:
        process.terminate()
        process.communicate(timeout=60)
