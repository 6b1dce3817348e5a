"""Files of pairs: read a line at a time, answered by an endpoint, written so that an interruption loses nothing."""

import errno
import fcntl
import gzip
import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from conlst.cli import main
from conlst.client import AsyncClient, Client, Prediction, Refused, Unauthorized
from conlst.client.bulk import default_out, predict_file
from conlst.client.files import read_pairs
from conlst.client.rows import COLUMNS
from conlst.contract.artifacts import read_manifest
from conlst.contract.errors import BackendError, ConfigError, DataError
from conlst.contract.labels import NAMES
from pretended_endpoint import MODEL, Endpoint, error, on_a_port, probabilities_of
from tiny_onnx import PAIRS, tiny_onnx_folder

ROOT = Path(__file__).parents[1]
MANY = [(f"watu {index}", f"mvua {index * index}") for index in range(50)]


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONLST_API_KEY", raising=False)


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        assert self.status == 0, self.err
        return json.loads(self.out.splitlines()[-1])


Command = Callable[..., Ended]


@pytest.fixture
def conlst(capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """The command line in this process; the root logger, which it takes for itself, is given back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(*arguments: object) -> Ended:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            status = int(ended.code or 0)
        return Ended(status, *capsys.readouterr())

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)


def written(path: Path, content: str | bytes) -> Path:
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def tsv(path: Path, pairs: list[tuple[str, str]] = MANY) -> Path:
    return written(path, "premise\thypothesis\n" + "".join(f"{premise}\t{hypothesis}\n" for premise, hypothesis in pairs))


def items(path: Path) -> list[tuple[int, Any]]:
    return [(line.number, line.item) for line in read_pairs(path)]


@pytest.mark.parametrize("suffix", ["tsv", "tsv.gz"])
def test_a_table_is_read_by_the_names_of_its_columns(tmp_path: Path, suffix: str) -> None:
    text = '\ufeffhypothesis\tpair_id\tpremise\r\nwatu\t1\t"mtu\r\n\nmvua\u2028leo\t2\tkesho\x85\n\t3\tx'
    assert items(written(tmp_path / f"pairs.{suffix}", text)) == [
        (2, ('"mtu', "watu")),
        (4, ("kesho\x85", "mvua\u2028leo")),
        (5, ("x", "")),
    ]


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_json_lines_are_read(tmp_path: Path, suffix: str) -> None:
    text = '{"premise": "a\\tb", "hypothesis": "c\\nd", "x": 1}\n\n{"sentence1": "e", "sentence2": "f"}\n'
    assert items(written(tmp_path / f"pairs.{suffix}", text)) == [(1, ("a\tb", "c\nd")), (3, ("e", "f"))]


def test_names_of_xnli_are_known(tmp_path: Path) -> None:
    assert items(written(tmp_path / "x.tsv", "language\tsentence1\tsentence2\nsw\ta\tb\n")) == [(2, ("a", "b"))]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("x.tsv", b"only one field"),
        ("x.tsv", b"a\tb\tc"),
        ("x.tsv", b"\xff\tb"),
        ("x.jsonl", b"{"),
        ("x.jsonl", b"\xff"),
        ("x.jsonl", b"[" * 100_000),
        ("x.jsonl", b"[]"),
        ("x.jsonl", b'{"premise": "a"}'),
        ("x.jsonl", b'{"premise": "a", "hypothesis": null}'),
    ],
)
def test_a_line_without_a_pair_is_refused_with_its_place(tmp_path: Path, name: str, line: bytes) -> None:
    good = b"a\tb" if name.endswith(".tsv") else b'{"premise": "a", "hypothesis": "b"}'
    head = b"premise\thypothesis\n" if name.endswith(".tsv") else b'{"premise": "a", "hypothesis": "b"}\n'
    path = written(tmp_path / name, head + line + b"\n" + good + b"\n")
    *_, (number, refused), (last, pair) = items(path)
    assert isinstance(refused, Refused)
    assert (number, refused.kind) == (2, "malformed_line")
    assert refused.message.startswith(f"{path}, line 2: ")
    assert (last, pair) == (3, ("a", "b"))


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("x.csv", b"premise,hypothesis\n", r"x\.csv is of no known form; give a file ending in \.tsv"),
        ("x.tsv", b"premise\tlabel\na\tb\n", r"x\.tsv, line 1: the header must name premise and hypothesis"),
        ("x.tsv", b"premise\tpremise\thypothesis\n", r"x\.tsv, line 1: the header must name"),
        ("x.tsv", "premise\thypothesis".encode("utf-16"), r"x\.tsv, line 1: not UTF-8"),
        ("x.tsv", b"", r"x\.tsv is empty"),
        ("x.tsv", b"\n\n", r"x\.tsv is empty"),
        ("x.jsonl", b'{"premise": "a", "hypothesis": "b"}\n' + b" " * (1 << 24), r"x\.jsonl, line 2: longer than"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, names: str) -> None:
    path = written(tmp_path / name, content)
    with pytest.raises(DataError, match=names):
        items(path)


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[: len(raw) // 2], lambda raw: raw[:200] + bytes(100) + raw[300:], lambda _: b"x"]
)
def test_a_damaged_archive_is_named_with_the_last_line(tmp_path: Path, damage: Any) -> None:
    whole = tsv(tmp_path / "x.tsv.gz", [(os.urandom(20).hex(), "b") for _ in range(500)]).read_bytes()
    (tmp_path / "x.tsv.gz").write_bytes(damage(whole))
    with pytest.raises(DataError, match=r"x\.tsv\.gz cannot be read after line \d+: "):
        items(tmp_path / "x.tsv.gz")


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.tsv cannot be read"):
        items(tmp_path / "nowhere.tsv")


def test_lines_tell_how_far_the_file_is_read(tmp_path: Path) -> None:
    for name in ("x.tsv", "x.tsv.gz"):
        path = tsv(tmp_path / name)
        ends = [line.end for line in read_pairs(path)]
        assert ends == sorted(ends)
        assert ends[-1] == path.stat().st_size


def answer(file: Path, out: Path, endpoint: Endpoint | None = None, language: str | None = "sw") -> dict[str, Any]:
    client = AsyncClient("http://nli.test", transport=httpx.MockTransport(endpoint or Endpoint()))
    return predict_file(client, file, out, language, truncate=False)


def rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    header, *lines = path.read_text().splitlines()
    return [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]


def test_answers_become_a_table(tmp_path: Path) -> None:
    text = "premise\thypothesis\nwatu\tmvua\n\n \tmvua\nonly one field\nmtu\tmvua leo\n"
    file, out = written(tmp_path / "pairs.tsv", text), tmp_path / "out.tsv"
    result = answer(file, out)
    found = rows(out)
    assert tuple(found[0]) == COLUMNS
    assert [row["line"] for row in found] == ["2", "4", "5", "6"]
    for row, pair in ((found[0], ("watu", "mvua")), (found[3], ("mtu", "mvua leo"))):
        assert {name: float(row[name]) for name in NAMES} == probabilities_of(*pair)
        assert row["label"] == max(NAMES, key=probabilities_of(*pair).__getitem__)
        assert (row["language"], row["truncated"], row["error"]) == ("sw", "false", "")
        assert (row["model"], row["version"], row["digest"]) == (MODEL["name"], "3", MODEL["digest"])
    assert found[1]["error"] == "empty_text: the premise is empty"
    assert found[2]["error"] == f"malformed_line: {file}, line 5: 1 fields, the header has 2"
    assert not any(found[1][name] for name in COLUMNS if name not in ("line", "error"))
    labels = {label: sum(row["label"] == label for row in found) for label in {found[0]["label"], found[3]["label"]}}
    assert result == {
        "out": str(out),
        "pairs": 4,
        "resumed": 0,
        "labels": labels,
        "errors": {"empty_text": 1, "malformed_line": 1},
        "models": {"nli-sw 3": 2},
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.tsv", "pairs.tsv"]


def test_answers_become_json_lines(tmp_path: Path) -> None:
    lines = [{"premise": premise, "hypothesis": hypothesis} for premise, hypothesis in MANY]
    file = written(tmp_path / "pairs.jsonl.gz", "".join(json.dumps(line) + "\n" for line in lines) + "{}\n")
    result = answer(file, tmp_path / "out.jsonl")
    *found, last = rows(tmp_path / "out.jsonl")
    assert [{name: row[name] for name in NAMES} for row in found] == [probabilities_of(*pair) for pair in MANY]
    assert [row["line"] for row in found] == list(range(1, 51))
    assert (found[0]["version"], found[0]["truncated"], found[0]["error"]) == (3, False, None)
    assert (last["label"], last["line"], tuple(last)) == (None, 51, COLUMNS)
    assert (result["pairs"], result["errors"]) == (51, {"malformed_line": 1})


def test_what_would_divide_rows_does_not_reach_the_table(tmp_path: Path) -> None:
    nasty = httpx.Response(
        200,
        json={
            "predictions": [{"error": {"type": "bad", "message": "a\tb\nc\r\u2028d"}}],
            "language_source": "given",
            "models": {},
        },
    )
    answer(tsv(tmp_path / "pairs.tsv", MANY[:1]), tmp_path / "out.tsv", Endpoint(rules=[nasty]))
    assert rows(tmp_path / "out.tsv")[0]["error"] == "bad: a b c d"


def test_a_file_without_pairs_has_a_file_without_answers(tmp_path: Path) -> None:
    assert answer(tsv(tmp_path / "pairs.tsv", []), tmp_path / "out.tsv")["pairs"] == 0
    assert rows(tmp_path / "out.tsv") == []


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.part"))


@pytest.mark.parametrize("suffix", ["tsv", "jsonl"])
def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, suffix: str) -> None:
    file, out, whole = tsv(tmp_path / "pairs.tsv"), tmp_path / f"out.{suffix}", tmp_path / f"whole.{suffix}"
    with file.open("a") as grown:
        grown.write("only one field\n")
    expected_result = answer(file, whole)
    endpoint = Endpoint(rules=[*[None] * 6, error(401, "unauthorized")])
    with pytest.raises(Unauthorized):
        answer(file, out, endpoint)
    assert not out.exists()
    (part,) = parts(tmp_path)
    kept = part.read_text().count("\n") - (suffix == "tsv")
    assert kept % 4 == 0
    assert kept >= 4
    # what a kill in the middle of a row leaves
    part.write_bytes(part.read_bytes() + b"27\tneu")
    again = Endpoint()
    result = answer(file, out, again)
    assert out.read_bytes() == whole.read_bytes()
    assert result == {**expected_result, "out": str(out), "resumed": kept}
    assert sum(len(question["pairs"]) for question in again.asked) == 50 - kept
    assert not parts(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, None])
def test_a_run_stopped_before_its_first_row_begins_again(tmp_path: Path, keep: int | None) -> None:
    file, out = tsv(tmp_path / "pairs.tsv"), tmp_path / "out.tsv"
    with pytest.raises(Unauthorized):
        answer(file, out, Endpoint(rules=[error(401, "unauthorized")] * 9))
    (part,) = parts(tmp_path)
    part.write_bytes(part.read_bytes()[:keep])
    assert answer(file, out)["resumed"] == 0
    assert len(rows(out)) == 50


def test_rows_of_two_questions_never_meet(tmp_path: Path) -> None:
    file, out = tsv(tmp_path / "pairs.tsv"), tmp_path / "out.tsv"
    refusing = Endpoint(rules=[*[None] * 6, error(401, "unauthorized")])
    with pytest.raises(Unauthorized):
        answer(file, out, refusing)
    (part,) = parts(tmp_path)
    before = part.read_bytes()
    with pytest.raises(ConfigError, match=f"{part.name} is unfinished, from another file or other options"):
        answer(file, out, language="fr")
    with pytest.raises(ConfigError, match="is unfinished"):
        answer(tsv(tmp_path / "others.tsv", MANY[::-1]), out)
    assert part.read_bytes() == before
    # the same content by another name is the same question
    assert answer(tsv(tmp_path / "copy.tsv"), out)["resumed"] > 0


def test_answers_are_never_overwritten(tmp_path: Path) -> None:
    file, out = tsv(tmp_path / "pairs.tsv"), written(tmp_path / "out.tsv", "mine")
    with pytest.raises(ConfigError, match=r"out\.tsv is there already"):
        answer(file, out)
    assert out.read_text() == "mine"
    assert not parts(tmp_path)


def test_answers_that_came_from_elsewhere_meanwhile_cost_no_rows(tmp_path: Path) -> None:
    file, out = tsv(tmp_path / "pairs.tsv"), tmp_path / "out.tsv"
    with pytest.raises(Unauthorized):
        answer(file, out, Endpoint(rules=[*[None] * 6, error(401, "unauthorized")]))
    (part,) = parts(tmp_path)
    before = part.read_bytes()
    written(out, "mine")
    with pytest.raises(ConfigError, match="is there already"):
        answer(file, out)
    assert (out.read_text(), part.read_bytes()) == ("mine", before)


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    file, out = tsv(tmp_path / "pairs.tsv"), tmp_path / "out.tsv"
    with pytest.raises(Unauthorized):
        answer(file, out, Endpoint(rules=[error(401, "unauthorized")] * 9))
    (part,) = parts(tmp_path)
    with part.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="is being written by another run"):
            answer(file, out)
    assert answer(file, out)["pairs"] == 50


class FullOnce(io.FileIO):
    """A disk without room for one write, after some that had it."""

    room = 0

    def write(self, block: Any) -> int:
        self.room -= 1
        if self.room == -1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(block)


@pytest.mark.parametrize("suffix", ["tsv", "jsonl"])
@pytest.mark.parametrize("whole_writes", range(5))
def test_a_write_that_failed_once_leaves_every_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_writes: int, suffix: str
) -> None:
    file, out, whole = tsv(tmp_path / "pairs.tsv"), tmp_path / f"out.{suffix}", tmp_path / f"whole.{suffix}"
    answer(file, whole)

    as_ever = Path.open

    def opened(path: Path, *how: Any) -> Any:
        if path.suffix != ".part":
            return as_ever(path, *how)
        raw = FullOnce(path, "a+")
        raw.room = whole_writes
        return io.BufferedRandom(raw)

    monkeypatch.setattr("conlst.client.bulk._ROWS_AT_ONCE", 10)
    with monkeypatch.context() as full:
        full.setattr(Path, "open", opened)
        with pytest.raises(BackendError, match="No space left"):
            answer(file, out)
    (part,) = parts(tmp_path)
    left = part.read_bytes()
    assert whole.read_bytes().startswith(left)
    assert answer(file, out)["resumed"] == max(0, left.count(b"\n") - (suffix == "tsv"))
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("suffix", ["tsv", "jsonl"])
@pytest.mark.parametrize("again", [1, 4])
def test_rows_that_are_there_twice_are_not_gone_on_from(tmp_path: Path, suffix: str, again: int) -> None:
    file, out = tsv(tmp_path / "pairs.tsv"), tmp_path / f"out.{suffix}"
    with pytest.raises(Unauthorized):
        answer(file, out, Endpoint(rules=[*[None] * 6, error(401, "unauthorized")]))
    (part,) = parts(tmp_path)
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join([*lines, *lines[-again:]]))
    kept = len(lines) - (suffix == "tsv")
    first, last = len(lines) - again + (suffix == "jsonl"), len(lines) + (suffix == "jsonl")
    with pytest.raises(ConfigError, match=rf"is damaged after {kept} rows \(line {first + 1} follows line {last}\): remove it"):
        answer(file, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        ("tsv", b"1\t2\n"),
        ("tsv", b"\xff\n"),
        ("tsv", b"x" + b"\t" * (len(COLUMNS) - 1) + b"\n"),
        ("jsonl", b"{\n"),
        ("jsonl", b"3\n"),
        ("jsonl", json.dumps(dict.fromkeys(COLUMNS)).encode() + b"\n"),
    ],
)
def test_a_damaged_unfinished_file_is_not_built_on(tmp_path: Path, suffix: str, damage: bytes) -> None:
    file, out = tsv(tmp_path / "pairs.tsv"), tmp_path / f"out.{suffix}"
    with pytest.raises(Unauthorized):
        answer(file, out, Endpoint(rules=[*[None] * 6, error(401, "unauthorized")]))
    (part,) = parts(tmp_path)
    part.write_bytes(part.read_bytes() + damage)
    with pytest.raises(ConfigError, match=r"is damaged after \d+ rows"):
        answer(file, out)


@pytest.mark.parametrize(
    ("out", "kind", "names"),
    [("out.csv", ConfigError, "must end in"), ("nowhere/out.tsv", BackendError, "cannot be written")],
)
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, out: str, kind: type[Exception], names: str) -> None:
    with pytest.raises(kind, match=names):
        answer(tsv(tmp_path / "pairs.tsv"), tmp_path / out)


@pytest.mark.parametrize(
    ("file", "out"),
    [
        ("a/pairs.tsv", "a/pairs.predictions.tsv"),
        ("pairs.v2.tsv.gz", "pairs.v2.predictions.tsv"),
        ("pairs.jsonl.gz", "pairs.predictions.jsonl"),
    ],
)
def test_answers_lie_beside_their_file_by_default(file: str, out: str) -> None:
    assert default_out(Path(file)) == Path(out)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("screen", [Terminal, io.StringIO])
def test_a_bar_is_drawn_on_a_terminal_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, screen: type[io.StringIO]) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", drawn := screen())
    answer(tsv(tmp_path / "pairs.tsv"), tmp_path / "out.tsv")
    assert ("100%" in drawn.getvalue()) == (screen is Terminal)


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint(key="k-1")


@pytest.fixture
def url(endpoint: Endpoint) -> Iterator[str]:
    with on_a_port(endpoint) as url:
        yield url


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return written(tmp_path / "key", "k-1\n")


def test_the_command_answers_a_file(conlst: Command, tmp_path: Path, endpoint: Endpoint, url: str, key: Path) -> None:
    file = tsv(tmp_path / "pairs.tsv.gz")
    more = ("--language", "sw", "--truncate", "--key-file", key)
    result = conlst("predict", "--url", url, "--file", file, *more).result
    assert result["out"] == str(tmp_path / "pairs.predictions.tsv")
    assert (result["pairs"], result["errors"], result["models"]) == (50, {}, {"nli-sw 3": 50})
    assert [float(row["neutral"]) for row in rows(Path(result["out"]))] == [probabilities_of(*pair)["neutral"] for pair in MANY]
    assert all(question["language"] == "sw" and question["truncate"] for question in endpoint.asked)
    other = conlst("predict", "--url", url, "--file", file, *more, "--out", tmp_path / "other.jsonl").result
    assert len(rows(Path(other["out"]))) == 50


def test_the_command_answers_a_pair(conlst: Command, monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint, url: str) -> None:
    monkeypatch.setenv("CONLST_API_KEY", "k-1")
    result = conlst("predict", "--url", url, "--premise", "watu", "--hypothesis", "mvua").result
    assert result["probabilities"] == probabilities_of("watu", "mvua")
    assert result["label"] == max(NAMES, key=result["probabilities"].__getitem__)
    assert (result["language"], result["model"], result["version"], result["digest"]) == ("sw", "nli-sw", 3, MODEL["digest"])
    assert "language" not in endpoint.asked[0]


def test_the_command_says_in_one_line_what_is_wrong(
    conlst: Command, tmp_path: Path, endpoint: Endpoint, url: str, key: Path
) -> None:
    pair, file = ("--premise", "watu", "--hypothesis", "mvua"), ("--file", tsv(tmp_path / "pairs.tsv"))
    endpoint.rules = [error(422, "too_long", "pair 0 has 300 tokens")]
    cases: list[tuple[tuple[object, ...], str]] = [
        (("--url", url, *pair, "--key-file", key), "pair 0 has 300 tokens"),
        (("--url", url, *pair), "unauthorized"),
        (("--url", url, *file), "unauthorized"),
        (("--url", url, *pair, "--key-file", tmp_path / "nowhere"), f"--key-file {tmp_path / 'nowhere'} cannot be read"),
        (("--url", "nowhere", *pair), "is not of the form http"),
        (("--url", url, "--file", tmp_path / "nowhere.tsv"), "nowhere.tsv cannot be read"),
        (("--url", url, "--file", tmp_path / "pairs.csv"), "pairs.csv is of no known form"),
        (("--url", url, *file, "--out", tmp_path / "out.csv"), "must end in .tsv or .jsonl"),
    ]
    for arguments, names in cases:
        ended = conlst("predict", *arguments)
        assert (ended.status, ended.out) == (1, "")
        assert "Traceback" not in ended.err
        complaint = ended.err.splitlines()[-1]
        assert complaint.startswith("conlst predict: "), arguments
        assert names in complaint, complaint


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("--url", "http://x", "--model", "m", "--premise", "a", "--hypothesis", "b"), "not allowed with"),
        (("--premise", "a", "--hypothesis", "b"), "--model --url is required"),
        (("--url", "http://x"), "or a --file of pairs"),
        (("--url", "http://x", "--premise", "a"), "or a --file of pairs"),
        (("--url", "http://x", "--premise", "a", "--file", "x.tsv"), "not both"),
        (("--url", "http://x", "--premise", "a", "--hypothesis", "b", "--out", "x.tsv"), "--out keeps the answers to a --file"),
        (("--model", "m", "--file", "x.tsv"), "--file is for an endpoint"),
        (("--model", "m", "--premise", "a", "--hypothesis", "b", "--language", "sw"), "--language is for an endpoint"),
        (("--model", "m", "--premise", "a", "--hypothesis", "b", "--truncate"), "--truncate is for an endpoint"),
        (("--model", "m", "--premise", "a", "--hypothesis", "b", "--key-file", "k"), "--key-file is for an endpoint"),
    ],
)
def test_wrong_usage_is_told(conlst: Command, arguments: tuple[str, ...], names: str) -> None:
    ended = conlst("predict", *arguments)
    assert ended.status == 2
    assert names in ended.err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_command_that_is_stopped_goes_on_from_its_rows(
    conlst: Command, tmp_path: Path, endpoint: Endpoint, url: str, key: Path, number: int, status: int
) -> None:
    file, out = tsv(tmp_path / "pairs.tsv", MANY * 10), tmp_path / "out.tsv"
    stuck, go_on = threading.Event(), threading.Event()

    def stall(_: httpx.Request) -> None:
        stuck.set()
        assert go_on.wait(120)

    endpoint.rules = [*[None] * 60, *[stall] * 20]
    command = [sys.executable, "-m", "conlst.cli", "predict", "--url", url, "--file", str(file), "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--key-file", str(key)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that runs the tests in the background has its children ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert stuck.wait(120)
    process.send_signal(number)
    told = process.communicate(timeout=60)
    go_on.set()
    assert process.returncode == status
    assert not out.exists()
    assert told[0] == ""
    assert "Traceback" not in told[1]
    if number == signal.SIGINT:
        assert "the same command goes on from there" in told[1]
    endpoint.rules, endpoint.seen = [], []
    result = conlst("predict", "--url", url, "--file", file, "--out", out, "--key-file", key).result
    assert result["resumed"] >= 192
    assert sum(len(question["pairs"]) for question in endpoint.asked) == 500 - result["resumed"]
    assert [float(row["neutral"]) for row in rows(out)] == [probabilities_of(*pair)["neutral"] for pair in MANY * 10]


@pytest.mark.slow
def test_the_real_server_understands_the_client(conlst: Command, tmp_path: Path) -> None:
    # the rest of this file needs no server
    from served import expected
    from test_serving_process import start, stop

    folder = tiny_onnx_folder(tmp_path / "sw")
    process = start(tmp_path, f"sw={folder}")
    try:
        process.until(lambda answer: answer.status_code == 200)
        with Client(process.url) as client:
            assert client.ready()
            (model,) = client.models().models
            assert (model.language, model.digest) == ("sw", read_manifest(folder).digest)
            answers = client.predict(PAIRS, language="sw", logits=True)
            found = [[answer.probabilities[name] for name in NAMES] for answer in answers]
            assert found == [pytest.approx(list(row), abs=1e-6) for row in expected(PAIRS)]
            assert answers[0].logits is not None
            assert answers[0].model.digest == model.digest
            long = " ".join(["watu"] * 40)
            streamed = list(client.predict_stream([*PAIRS, ("", "watu"), (long, "watu"), *PAIRS], language="sw"))
            assert [answer.kind for answer in streamed if isinstance(answer, Refused)] == ["empty_text", "too_long"]
            assert streamed[:4] == streamed[6:]
            (cut,) = client.predict([(long, "watu")], language="sw", truncate=True)
            assert cut.truncated
            (ranked,) = client.zero_shot(["mvua inanyesha leo"], ["mvua", "mpira"], template="watu {}", language="sw")
            assert sorted(ranked.labels) == ["mpira", "mvua"]
            assert sum(ranked.scores) == pytest.approx(1)
            texts = ["mvua inanyesha leo", "watu wawili", " ", "mpira"] * 10
            labels = [f"watu {index}" for index in range(10)]
            together = client.zero_shot(texts, labels, language="sw", partial=True)
            assert [getattr(result, "kind", None) for result in together] == [None, None, "empty_text", None] * 10
            (alone,) = client.zero_shot(["mpira"], labels, language="sw")
            last = together[-1]
            assert not isinstance(last, Refused)
            assert dict(zip(last.labels, last.scores, strict=True)) == pytest.approx(
                dict(zip(alone.labels, alone.scores, strict=True)), abs=1e-4
            )
        file = tsv(tmp_path / "pairs.tsv", PAIRS * 50)
        result = conlst("predict", "--url", process.url, "--file", file, "--language", "sw").result
        assert (result["pairs"], result["errors"]) == (200, {})
        one = [float(row["neutral"]) for row in rows(Path(result["out"]))]
        assert one == pytest.approx([row[NAMES.index("neutral")] for row in expected(PAIRS)] * 50, abs=1e-6)
        assert isinstance(streamed[0], Prediction)
    finally:
        stop(process)
