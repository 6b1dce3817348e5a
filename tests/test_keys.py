import hashlib
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conlst.contract.errors import ConfigError
from served import CHECKOUT, MANY, ONE, Server, serve
from serving.errors import ApiError
from serving.keys import Keys, make_key, open_keys
from serving.settings import Settings
from tiny_onnx import tiny_onnx_folder


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def write(file: Path, *lines: str) -> Path:
    file.write_text("".join(f"{line}\n" for line in lines))
    # a change within the clock's grain must be seen all the same
    os.utime(file, ns=(write.clock, write.clock))
    write.clock += 1_000_000_000
    return file


write.clock = 1_700_000_000_000_000_000


@pytest.fixture
def ours() -> tuple[str, str]:
    """A key and its line."""
    return make_key("search-team")


@pytest.fixture
def guarded(tmp_path: Path, ours: tuple[str, str]) -> Server:
    folder = tiny_onnx_folder(tmp_path / "sw")
    return serve(f"sw={folder}", auth="keys", keys_file=write(tmp_path / "keys", "# who may ask", "", ours[1]))


def test_questions_need_a_key_and_probes_do_not(guarded: Server, ours: tuple[str, str]) -> None:
    answer = guarded.predict(ONE)
    guarded.refusal(401, "unauthorized", answer)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert guarded.predict(ONE, headers=bearer(ours[0])).status_code == 200
    for method, path in (("POST", "/predict"), ("POST", "/zero-shot"), ("GET", "/models"), ("GET", "/drift")):
        assert guarded.ask(method, path).status_code == 401, path
    # a router takes the first for /models, whose path it is not; and who may not ask is not told what there is
    for path in ("/models%0A", "/models/", "/nowhere"):
        assert guarded.ask("GET", path).status_code == 401, path
    assert guarded.ask("GET", "/ui%2F..%2Fmodels").status_code == 404
    for path in ("/metrics", "/openapi.json", "/ui"):
        assert guarded.ask("GET", path).status_code == 200, path


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", "Bearer conlst_x", "Basic {key}", "{key}", "Bearer {key}x", "Bearer {hash}"]
)
def test_what_is_no_key_is_refused(guarded: Server, ours: tuple[str, str], value: str) -> None:
    value = value.format(key=ours[0], hash=ours[1].partition(":")[2])
    guarded.refusal(401, "unauthorized", guarded.predict(ONE, headers={"Authorization": value}))


def test_keys_come_and_go_without_a_restart(guarded: Server, ours: tuple[str, str], tmp_path: Path) -> None:
    new, line = make_key("search-team")
    write(tmp_path / "keys", ours[1], line)
    assert [guarded.predict(ONE, headers=bearer(key)).status_code for key in (ours[0], new)] == [200, 200]
    write(tmp_path / "keys", line)
    assert [guarded.predict(ONE, headers=bearer(key)).status_code for key in (ours[0], new)] == [401, 200]


@pytest.mark.parametrize("lines", [["search-team:abc"], ["# nobody"], ["conlst_secret"], ["a b:" + "0" * 64]])
def test_a_file_that_becomes_unusable_changes_nothing(
    guarded: Server, ours: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture, lines: list[str]
) -> None:
    write(tmp_path / "keys", *lines)
    assert guarded.predict(ONE, headers=bearer(ours[0])).status_code == 200
    assert "the keys stay as they were" in caplog.text
    # it may be a key that someone wrote in place of its hash
    assert "conlst_secret" not in caplog.text
    with pytest.raises(ConfigError):
        Keys(tmp_path / "keys", 0)


def test_the_metrics_tell_of_a_revocation_that_is_not_heeded(guarded: Server, ours: tuple[str, str], tmp_path: Path) -> None:
    def failing() -> str:
        return next(line for line in guarded.ask("GET", "/metrics").text.splitlines() if line.startswith("conlst_keys_failing "))

    assert failing() == "conlst_keys_failing 0.0"
    _, line = make_key("search-team")
    write(tmp_path / "keys", line[:-1])
    # told before anybody asks with the key that was to go
    assert failing() == "conlst_keys_failing 1.0"
    assert guarded.predict(ONE, headers=bearer(ours[0])).status_code == 200
    write(tmp_path / "keys", line)
    assert failing() == "conlst_keys_failing 0.0"
    assert guarded.predict(ONE, headers=bearer(ours[0])).status_code == 401
    (tmp_path / "keys").unlink()
    assert failing() == "conlst_keys_failing 1.0"


def test_an_endpoint_that_asks_for_no_key_has_none_that_fail(tmp_path: Path) -> None:
    server = serve(f"sw={tiny_onnx_folder(tmp_path / 'sw')}")
    assert "conlst_keys_failing 0.0" in server.ask("GET", "/metrics").text


def test_the_log_tells_whose_a_request_is(tmp_path: Path, ours: tuple[str, str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "serving.middleware")
    models = f"sw={tiny_onnx_folder(tmp_path / 'sw')}"
    server = serve(models, auth="keys", keys_file=write(tmp_path / "keys", ours[1]), rate_per_minute=1)
    for _ in range(2):
        server.predict(ONE, headers=bearer(ours[0]))
    server.predict(ONE, headers=bearer("conlst_wrong"))
    server.ask("GET", "/metrics")
    serve(models).predict(ONE)
    told = [record.getMessage() for record in caplog.records if record.name == "serving.middleware"]
    lines = [re.sub(r"^\w+ |[0-9.]+ ms", "", line) for line in told]
    assert lines == [
        "/predict 200  by search-team",
        # also one that is refused for asking too often
        "/predict 429  by search-team",
        "/predict 401 ",
        "/metrics 200 ",
        "/predict 200 ",
    ]


def test_requests_are_counted_by_the_type_of_their_error_and_logged_but_for_those_of_an_overload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = serve(f"sw={tiny_onnx_folder(tmp_path / 'sw')}")
    server.predict(ONE)
    server.predict({})
    server.ask("GET", "/nowhere")
    server.ask("GET", "/predict")

    def fail(*_: object) -> None:
        raise ApiError(429, "busy", "try again")

    monkeypatch.setattr(server.scheduler, "check_room", fail)
    server.predict(ONE)
    counted = re.findall(r"conlst_requests_total\{(.*)\} 1\.0", server.ask("GET", "/metrics").text)
    assert set(counted) == {
        'error="",route="/predict",status="200"',
        'error="invalid_request",route="/predict",status="400"',
        'error="not_found",route="other",status="404"',
        'error="method_not_allowed",route="/predict",status="405"',
        'error="busy",route="/predict",status="429"',
    }
    lines = [record.getMessage().split()[1:3] for record in caplog.records if record.name == "serving.middleware"]
    assert lines == [["/predict", "200"], ["/predict", "400"], ["other", "404"], ["/predict", "405"], ["/metrics", "200"]]
    # the router takes this for the same path
    assert server.ask("POST", "/predict%0A").status_code == 429


def test_a_name_asks_no_more_than_its_rate(tmp_path: Path, ours: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("serving.keys.time.monotonic", lambda: now)
    other, other_line = make_key("billing")
    second, second_line = make_key("search-team")
    keys = Keys(write(tmp_path / "keys", ours[1], other_line, second_line), 3)

    def ask(key: str) -> str:
        name = keys.identify(f"Bearer {key}")
        keys.admit(name)
        return name

    for key in (ours[0], second, ours[0]):
        assert ask(key) == "search-team"
    with pytest.raises(ApiError) as refused:
        ask(second)
    assert (refused.value.status, refused.value.kind) == (429, "rate_limited")
    assert refused.value.headers["Retry-After"] == "20"
    assert ask(other) == "billing"
    now += 20
    assert ask(ours[0]) == "search-team"
    with pytest.raises(ApiError):
        ask(ours[0])
    now += 3600
    assert [ask(ours[0]) for _ in range(3)] == ["search-team"] * 3
    with pytest.raises(ApiError):
        ask(ours[0])


def test_refusals_by_rate_do_not_reach_a_model(tmp_path: Path, ours: tuple[str, str]) -> None:
    folder = tiny_onnx_folder(tmp_path / "sw")
    server = serve(f"sw={folder}", auth="keys", keys_file=write(tmp_path / "keys", ours[1]), rate_per_minute=1)
    assert server.predict(MANY, headers=bearer(ours[0])).status_code == 200
    answer = server.predict(MANY, headers=bearer(ours[0]))
    server.refusal(429, "rate_limited", answer)
    assert int(answer.headers["retry-after"]) <= 60
    assert 'conlst_requests_total{error="rate_limited",route="/predict",status="429"} 1.0' in server.ask("GET", "/metrics").text


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ({}, "CONLST_AUTH is not set"),
        ({"auth": "yes"}, "CONLST_AUTH is 'yes'"),
        ({"auth": "keys"}, "CONLST_KEYS_FILE is not set"),
        ({"auth": "keys", "keys_file": Path("/no/such/file")}, "/no/such/file cannot be read"),
        ({"auth": "none", "rate_per_minute": 5}, "counts by key"),
        ({"auth": "none", "keys_file": Path("/keys")}, "CONLST_KEYS_FILE is /keys, but CONLST_AUTH is none"),
    ],
)
def test_who_may_ask_has_to_be_chosen(chosen: dict, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        open_keys(Settings(**chosen))


def test_one_key_of_two_names_is_refused(tmp_path: Path, ours: tuple[str, str]) -> None:
    twice = write(tmp_path / "keys", ours[1], ours[1].replace("search-team", "billing"))
    with pytest.raises(ConfigError, match="gives the key of search-team to billing too"):
        Keys(twice, 0)


def test_the_command_makes_a_key_that_fits_its_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serving.keys", "billing"]
    told = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.split()
    (key,) = (word for word in told if word.startswith("conlst_"))
    (line,) = (word for word in told if word.startswith("billing:"))
    assert line == f"billing:{hashlib.sha256(key.encode()).hexdigest()}"
    assert Keys(write(tmp_path / "keys", line), 0).identify(f"bearer {key}") == "billing"
    refused = subprocess.run([*command[:-1], "a b"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "'a b' is no name for a key" in refused.stderr


def test_no_key_is_ever_logged(guarded: Server, ours: tuple[str, str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    guarded.predict(ONE, headers=bearer(ours[0]))
    guarded.predict(ONE, headers=bearer("conlst_wrong"))
    lines = [record.getMessage() for record in caplog.records if record.name.startswith(("serving", "conlst"))]
    assert lines
    assert not [line for line in lines if ours[0] in line or "conlst_wrong" in line]
