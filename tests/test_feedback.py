import gc
import logging
import sys
import threading
import weakref
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import boto3
import numpy as np
import pytest
from pyarrow import parquet

from conlst.contract.artifacts import read_manifest
from conlst.contract.errors import BackendError, ConfigError
from conlst.contract.labels import NAMES
from conlst.data.sources import load_source
from conlst.runtime.table import Tables
from services import Requests, environment
from serving.feedback import Feedback, _draw
from serving.models import Served, Source, open_model
from serving.settings import Settings
from tiny_onnx import PAIRS, tiny_onnx_folder

PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6], [0.4, 0.35, 0.25]])
CANARY = "kanari7f3a"


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Served:
    folder = tiny_onnx_folder(tmp_path_factory.mktemp("served") / "sw")
    return open_model(Source("sw", "nli-sw", 7, str(folder), read_manifest(folder).digest), Settings(threads=1), Tables())


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Feedback into a folder, closed at the end; delays between tries are gone."""
    monkeypatch.setattr("serving.feedback._FIRST_DELAY", 0.001)
    made = []

    def make(destination: str | Path = tmp_path / "kept", **changes) -> Feedback:
        made.append(Feedback(Settings(feedback=str(destination), **changes)))
        return made[-1]

    yield make
    for feedback in made:
        feedback.close()


def rows(folder: Path) -> list[dict]:
    return [row for file in sorted(folder.rglob("*.parquet")) for row in parquet.ParquetFile(file).read().to_pylist()]


def counters(feedback: Feedback) -> dict[str, int]:
    return {name: getattr(feedback, name) for name in ("offered", "kept", "dropped", "written", "waiting")}


@dataclass
class Held:
    """A destination that does not answer until it is let go."""

    entered: threading.Event
    go_on: threading.Event


@pytest.fixture
def held(monkeypatch):
    held = Held(threading.Event(), threading.Event())
    put = Feedback._put

    def wait(self, content, name):
        held.entered.set()
        assert held.go_on.wait(60)
        put(self, content, name)

    monkeypatch.setattr(Feedback, "_put", wait)
    yield held
    held.go_on.set()


def test_pairs_and_predictions_are_kept_with_where_they_come_from(make, served, tmp_path):
    before = datetime.now(UTC)
    feedback = make()
    feedback.offer(served, "sw", PAIRS, PROBABILITIES)
    feedback.close()
    found = rows(tmp_path / "kept")
    assert [(row["premise"], row["hypothesis"]) for row in found] == PAIRS
    assert [row["predicted"] for row in found] == ["entailment", "neutral", "contradiction", "entailment"]
    assert [[row[name] for name in NAMES] for row in found] == PROBABILITIES.tolist()
    for row in found:
        assert (row["language"], row["model"], row["version"]) == ("sw", "nli-sw", 7)
        assert row["digest"] == served.predictor.digest
        assert before <= row["received_at"] <= datetime.now(UTC)
    assert counters(feedback) == {"offered": 4, "kept": 4, "dropped": 0, "written": 4, "waiting": 0}


def test_a_prediction_is_no_label_to_those_who_adapt_on_it(make, served, tmp_path):
    for answered in (PROBABILITIES, PROBABILITIES[::-1]):
        feedback = make()
        feedback.offer(served, "sw", PAIRS, answered)
        feedback.close()
    files = [str(path) for path in (tmp_path / "kept").rglob("*.parquet")]
    assert len(files) == 2
    found = load_source(files, language="sw", max_bad_share=0.0)
    # another prediction makes no other pair
    assert sorted(found.pairs["premise"]) == sorted(premise for premise, _ in PAIRS)
    assert set(found.pairs["label"]) == {None}


def test_files_lie_by_language_and_day_and_are_read_as_one_table(make, served, tmp_path):
    feedback = make()
    for language in ("sw", "fr"):
        feedback.offer(replace(served, source=replace(served.source, version=None)), language, PAIRS, PROBABILITIES)
    feedback.close()
    files = sorted(path.relative_to(tmp_path / "kept") for path in (tmp_path / "kept").rglob("*") if path.is_file())
    received = rows(tmp_path / "kept")[0]["received_at"].date().isoformat()
    assert [str(path.parent) for path in files] == [f"language={language}/date={received}" for language in ("fr", "sw")]
    assert all(path.suffix == ".parquet" for path in files)
    # the layout of Hive, which readers join with what is in the files
    table = parquet.read_table(tmp_path / "kept")
    assert table.num_rows == 8
    assert sorted(set(table["language"].to_pylist())) == ["fr", "sw"]
    assert set(table["version"].to_pylist()) == {None}


def test_files_have_the_wanted_number_of_pairs(make, served, tmp_path):
    feedback = make(feedback_batch=6)
    for _ in range(4):
        feedback.offer(served, "sw", PAIRS, PROBABILITIES)
    feedback.close()
    sizes = [parquet.ParquetFile(file).metadata.num_rows for file in (tmp_path / "kept").rglob("*.parquet")]
    assert sorted(sizes) == [4, 6, 6]
    assert sorted(row["premise"] for row in rows(tmp_path / "kept")) == sorted(4 * [premise for premise, _ in PAIRS])


def test_pairs_do_not_wait_for_ever_for_a_file_to_fill(make, served, tmp_path, monkeypatch):
    monkeypatch.setattr("serving.feedback._PATIENCE", 0.01)
    written = threading.Event()
    put = Feedback._put
    monkeypatch.setattr(Feedback, "_put", lambda self, *what: (put(self, *what), written.set()))
    make().offer(served, "sw", PAIRS, PROBABILITIES)
    assert written.wait(60)
    assert len(rows(tmp_path / "kept")) == 4


def test_nothing_is_kept_without_a_destination(served):
    feedback = Feedback(Settings())
    assert feedback.takes(PAIRS) is False
    feedback.offer(served, "sw", PAIRS, PROBABILITIES)
    feedback.close()
    assert counters(feedback) == dict.fromkeys(("offered", "kept", "dropped", "written", "waiting"), 0)


def test_the_sample_depends_on_the_texts_alone(make):
    questions = [[(f"watu {number}", "mtu")] for number in range(2000)]
    draws = [_draw(question) for question in questions]
    assert draws == [_draw(question) for question in questions]
    assert min(draws) < 1 < 99 < max(draws) < 100
    # 2000 draws at 30 %: 20.5 is the standard deviation
    assert abs(sum(draw < 30 for draw in draws) - 600) < 100
    # where one text ends and the next begins matters
    assert _draw([("ab", "c")]) != _draw([("a", "bc")])
    feedback = make(feedback_percent=30)
    assert [feedback.takes(question) for question in questions] == [draw < 30 for draw in draws]
    # nor does it matter what is refused of a request
    assert feedback.takes([("half a pair \ud800", "mtu")]) in (True, False)


def test_what_is_not_in_the_sample_is_only_counted(make, served):
    feedback = make()
    feedback.offer(served, "sw", PAIRS, PROBABILITIES, sampled=False)
    assert counters(feedback) == {"offered": 4, "kept": 0, "dropped": 0, "written": 0, "waiting": 0}


def test_a_full_queue_drops_and_counts_and_never_waits(make, served, held, tmp_path):
    feedback = make(feedback_batch=1)
    feedback.offer(served, "sw", PAIRS[:1], PROBABILITIES[:1])
    assert held.entered.wait(60)
    # one is under way; twenty more files' worth may wait
    for _ in range(10):
        feedback.offer(served, "sw", PAIRS, PROBABILITIES)
    assert counters(feedback) == {"offered": 41, "kept": 21, "dropped": 20, "written": 0, "waiting": 20}
    held.go_on.set()
    feedback.close()
    assert counters(feedback) == {"offered": 41, "kept": 21, "dropped": 20, "written": 21, "waiting": 0}
    assert len(rows(tmp_path / "kept")) == 21


def test_long_texts_fill_the_queue_sooner(make, served, held, monkeypatch):
    monkeypatch.setattr("serving.feedback._MAX_CHARACTERS", 100)
    feedback = make(feedback_batch=1)
    feedback.offer(served, "sw", PAIRS[:1], PROBABILITIES[:1])
    assert held.entered.wait(60)
    kept = []
    for characters in (90, 20, 10):
        feedback.offer(served, "sw", [("m" * (characters - 5), "w" * 5)], PROBABILITIES[:1])
        kept.append(feedback.kept)
    assert kept == [2, 2, 3]


def test_a_destination_that_fails_for_a_while_loses_nothing(make, served, tmp_path, monkeypatch, caplog):
    failures = [BackendError("S3 cannot be reached"), OSError("Input/output error"), BackendError("S3 cannot be reached")]
    names, problems = [], []
    put = Feedback._put

    def fail_at_first(self, content, name):
        names.append(name)
        problems.append(self.problem)
        if failures:
            raise failures.pop(0)
        put(self, content, name)

    monkeypatch.setattr(Feedback, "_put", fail_at_first)
    feedback = make()
    feedback.offer(served, "sw", PAIRS, PROBABILITIES)
    feedback.close()
    assert counters(feedback) == {"offered": 4, "kept": 4, "dropped": 0, "written": 4, "waiting": 0}
    assert len(rows(tmp_path / "kept")) == 4
    # under one name, so that a try whose answer was lost is not there twice
    assert len(set(names)) == 1
    assert problems == [None, "S3 cannot be reached", "Input/output error", "S3 cannot be reached"]
    assert feedback.problem is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_destination_that_goes_on_failing_costs_that_file_only(make, served, tmp_path, monkeypatch):
    tries = []
    put = Feedback._put

    def fail(self, content, name):
        tries.append(name)
        if "language=sw" in name:
            raise BackendError("access is denied")
        put(self, content, name)

    monkeypatch.setattr(Feedback, "_put", fail)
    feedback = make()
    feedback.offer(served, "sw", PAIRS, PROBABILITIES)
    feedback.offer(served, "fr", PAIRS, PROBABILITIES)
    feedback.close()
    assert sum("language=sw" in name for name in tries) == 6
    assert counters(feedback) == {"offered": 8, "kept": 8, "dropped": 4, "written": 4, "waiting": 0}
    assert {row["language"] for row in rows(tmp_path / "kept")} == {"fr"}


def test_a_file_that_cannot_be_made_costs_that_file_only_and_tells_no_text(make, served, monkeypatch, caplog):
    def fail(part):
        if part.language == "sw":
            raise ValueError(part.rows[0].premise)
        return b"PAR1"

    monkeypatch.setattr("serving.feedback._parquet", fail)
    feedback = make()
    feedback.offer(served, "sw", [(CANARY, CANARY)], PROBABILITIES[:1])
    feedback.offer(served, "fr", PAIRS[:1], PROBABILITIES[:1])
    feedback.close()
    assert (feedback.dropped, feedback.written, feedback.problem) == (1, 1, None)
    assert "ValueError" in caplog.text
    assert CANARY not in caplog.text


@pytest.mark.parametrize(
    ("language", "pairs", "probabilities"),
    [
        ("../../sw", [(CANARY, "b")], PROBABILITIES[:1]),
        ("sw/fr", [(CANARY, "b")], PROBABILITIES[:1]),
        ("", [(CANARY, "b")], PROBABILITIES[:1]),
        (None, [(CANARY, "b")], PROBABILITIES[:1]),
        ("sw", [(CANARY, "half a pair \ud800")], PROBABILITIES[:1]),
        ("sw", [(CANARY, "b")], PROBABILITIES),
        ("sw", [(CANARY, "b")], "no numbers"),
    ],
)
def test_what_cannot_be_kept_is_dropped_without_a_word_of_it(make, served, tmp_path, caplog, language, pairs, probabilities):
    feedback = make()
    feedback.offer(served, language, pairs, probabilities)
    assert (feedback.offered, feedback.dropped, feedback.kept) == (1, 1, 0)
    assert CANARY not in caplog.text
    feedback.close()
    assert not rows(tmp_path / "kept")


def test_closing_takes_its_time_at_most_and_counts_what_is_lost(make, served, held, caplog):
    feedback = make(feedback_batch=4)
    for _ in range(3):
        feedback.offer(served, "sw", PAIRS, PROBABILITIES)
    assert held.entered.wait(60)
    feedback.close(seconds=0.01)
    assert (feedback.waiting, feedback.dropped, feedback.written) == (0, 8, 0)
    assert "8 pairs and the file under way are lost" in caplog.text
    feedback.offer(served, "sw", PAIRS, PROBABILITIES)
    assert feedback.dropped == 12


def test_the_queue_does_not_hold_a_model_that_was_swapped(make, tmp_path, held):
    folder = tiny_onnx_folder(tmp_path / "sw")
    served = open_model(Source("sw", "nli-sw", 1, str(folder)), Settings(threads=1), Tables())
    model = weakref.ref(served.predictor)
    feedback = make(feedback_batch=1)
    feedback.offer(served, "sw", PAIRS, PROBABILITIES)
    assert held.entered.wait(60)
    del served
    gc.collect()
    assert feedback.waiting == 3
    assert model() is None


@pytest.mark.parametrize("destination", ["s3://", "s3://bucket", "gs://bucket/x", "FILE/below"])
def test_a_wrong_destination_is_refused_at_the_start(tmp_path, destination):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="CONLST_FEEDBACK"):
        Feedback(Settings(feedback=destination.replace("FILE", str(tmp_path / "file"))))


def test_a_server_without_pyarrow_refuses_to_keep_feedback(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match="needs pyarrow"):
        Feedback(Settings(feedback=str(tmp_path)))


def test_a_file_in_a_folder_appears_whole_or_not_at_all(make, served, tmp_path, monkeypatch):
    def interrupted(_):
        raise OSError("No space left on device")

    monkeypatch.setattr("serving.feedback.os.fsync", interrupted)
    feedback = make()
    feedback.offer(served, "sw", PAIRS, PROBABILITIES)
    feedback.close()
    assert feedback.dropped == 4
    assert not [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]


def test_into_s3(make, served, bucket, tmp_path):
    feedback = make(f"{bucket}/feedback/")
    feedback.offer(served, "sw", PAIRS, PROBABILITIES)
    feedback.close()
    client = boto3.client("s3")
    (entry,) = client.list_objects_v2(Bucket="conlst")["Contents"]
    assert entry["Key"].startswith("feedback/language=sw/date=")
    client.download_file("conlst", entry["Key"], str(tmp_path / "found.parquet"))
    assert [(row["premise"], row["hypothesis"]) for row in rows(tmp_path)] == PAIRS


def test_an_s3_that_refuses_for_a_while(make, served, bucket):
    # the S3 client does not repeat what was denied, so every try is one of ours
    with Requests(lambda operation, number: 403 if operation == "PutObject" and number <= 3 else None) as requests:
        feedback = make(f"{bucket}/feedback")
        feedback.offer(served, "sw", PAIRS, PROBABILITIES)
        feedback.close(seconds=120)
    assert requests.attempts["PutObject"] == 4
    assert (feedback.written, feedback.dropped, feedback.problem) == (4, 0, None)


@pytest.mark.slow
def test_over_a_real_server(make, served, s3, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    feedback = make(f"s3://{s3.bucket}/feedback", feedback_batch=2)
    for language in ("sw", "fr"):
        feedback.offer(served, language, PAIRS, PROBABILITIES)
    feedback.close()
    client = boto3.client("s3")
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket=s3.bucket, Prefix="feedback/")["Contents"]]
    assert sum("language=sw" in key for key in keys) == sum("language=fr" in key for key in keys) == 2
    for number, key in enumerate(keys):
        client.download_file(s3.bucket, key, str(tmp_path / f"{number}.parquet"))
    assert sorted(row["premise"] for row in rows(tmp_path)) == sorted(2 * [premise for premise, _ in PAIRS])
    assert not caplog.records
    with environment({"AWS_SECRET_ACCESS_KEY": "wrong"}):
        feedback = make(f"s3://{s3.bucket}/feedback")
        feedback.offer(served, "sw", PAIRS, PROBABILITIES)
        feedback.close()
    assert feedback.dropped == 4
    assert "access is denied" in feedback.problem
