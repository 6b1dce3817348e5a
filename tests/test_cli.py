"""The command line: help that teaches, JSON on the last line, and errors of one line."""

import argparse
import contextlib
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from mlflow.tracking import MlflowClient

from conlst import __version__
from conlst.cli import command_line, main
from conlst.contract.artifacts import publish, verify
from conlst.contract.errors import ArtifactError
from conlst.contract.labels import NAMES
from conlst.data.pairs import read_pairs
from conlst.model.starter import load_starter
from conlst.platform import objects, registry, tracking
from pipelines.local_services import free_port
from tiny import WORDS, tiny_backbone, tiny_config, tiny_pairs, write_tsv


def parsers(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command below a parser by what is typed for it, those of a command (``schedule create``) after it."""
    for action in parser._actions:
        for word, sub in action.choices.items() if isinstance(action, argparse._SubParsersAction) else ():
            yield f"{name}{word}", sub
            yield from parsers(sub, f"{name}{word} ")


COMMANDS = dict(parsers(command_line()))
IMAGE = "registry/conlst-train@sha256:" + "0" * 64
WEIGHTS = "weights.safetensors"


@pytest.fixture(autouse=True, scope="module")
def _own_log() -> Iterator[None]:
    """The command line takes the root logger for itself; give it back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        assert self.status == 0, self.err
        return json.loads(self.out.splitlines()[-1])

    @property
    def complaint(self) -> str:
        """The one line that an error prints, after the log."""
        assert self.status == 1
        assert "Traceback" not in self.err
        assert not self.out
        return self.err.splitlines()[-1]


def conlst(*arguments: object) -> Ended:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as ended:  # argparse's own ends
            status = int(ended.code or 0)
    return Ended(status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a profile and data."""
    root = tmp_path_factory.mktemp("user")
    backbone = {"name": str(tiny_backbone(root / "backbone")), "max_length": 32, "projection": 16, "freeze_embeddings": True}
    config = tiny_config(
        root / "backbone",
        backbone=backbone,
        source={"lr": 5e-3, "batch_tokens": 256, "epochs": 10},
        calibrate={"lr": 1e-3, "threshold": 0.45, "batch_tokens": 256, "negatives": 2},
        selftrain={"lr": 1e-3, "threshold": 0.6, "floor": 0.4, "batch_tokens": 256, "max_iterations": 1},
    )
    (root / "tiny.yaml").write_text(json.dumps(config))
    for name, seed, count in (("en", 1, 90), ("dev", 2, 30), ("pool", 3, 45), ("test", 4, 45), ("more", 6, 60)):
        write_tsv(root / f"{name}.tsv", tiny_pairs(count, seed))
    write_tsv(root / "unlabelled.tsv", [{**row, "label": ""} for row in tiny_pairs(9, 5)])
    return root


@pytest.fixture(scope="module")
def source(user: Path) -> dict[str, Any]:
    return conlst(
        *("train-source", "--config", user / "tiny.yaml", "--data", user / "en.tsv", "--dev", user / "dev.tsv"),
        *("--out", user / "models" / "en"),
    ).result


def adapt(user: Path, source: dict[str, Any], out: str, *more: object) -> Ended:
    return conlst(
        *("adapt", "--config", user / "tiny.yaml", "--source-model", source["model"], "--pool", user / "pool.tsv"),
        *("--language", "sw", "--out", user / "models" / out, *more),
    )


@pytest.fixture(scope="module")
def adapted(user: Path, source: dict[str, Any]) -> dict[str, Any]:
    return adapt(user, source, "sw").result


@pytest.fixture(scope="module")
def exported(user: Path, adapted: dict[str, Any]) -> dict[str, Any]:
    return conlst("export", "--model", adapted["model"], "--out", user / "served" / "sw").result


def test_help_names_every_command_and_teaches_the_way() -> None:
    ended = conlst("--help")
    assert ended.status == 0
    for command in (command for command in COMMANDS if " " not in command):
        assert f"    {command} " in ended.out or f"    {command}\n" in ended.out, command
    assert "conlst adapt --config" in ended.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    ended = conlst(*command.split(), "--help")
    assert ended.status == 0
    assert ended.out.startswith(f"usage: conlst {command} ")


def test_no_option_may_be_cut_short() -> None:
    # a script that cuts one short would break when another of that beginning comes
    assert {"submit", "schedule create", "trim", "compact"} <= COMMANDS.keys()
    assert [name for name, parser in COMMANDS.items() if parser.allow_abbrev] == []


def test_the_version_is_told() -> None:
    assert conlst("--version").out.strip() == __version__


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonesuch"], ["adapt"], ["predict", "--model", "x"], ["evaluate", "--mod", "x"], ["bench"], ["bench", "snli"]],
)
def test_wrong_usage_ends_with_two(arguments: list[str]) -> None:
    ended = conlst(*arguments)
    assert ended.status == 2
    assert "usage: conlst" in ended.err


@pytest.mark.parametrize("value", ["0", "-1", "many"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--config", "demo", "--store", "s3://b/m", "--at-once"],
        ["train-job", "--config", "demo", "--image", IMAGE, "--store", "s3://b/m", "--data", "sample:en", "--nodes"],
        ["bench", "xnli", "--matrix", "x.yaml", "--jobs"],
        ["compact", "--model", "x", "--card", "x", "--out", "x", "--rank"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_number_of_what_there_must_be_is_at_least_one(arguments: list[str], value: str) -> None:
    ended = conlst(*arguments, value)
    assert ended.status == 2
    assert f"argument {arguments[-1]}: " in ended.err


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    out = tmp_path / "nowhere" / "made.yaml"
    for command in (("compile",), ("train-job", "--store", "s3://b/m", "--data", "sample:en")):
        cluster = tmp_path / "cluster.yaml"
        cluster.write_text("gpus: 0\n")
        ended = conlst(*command, "--config", "demo", "--image", IMAGE, "--cluster", cluster, "--out", out)
        assert ended.complaint == f"conlst {command[0]}: {out}: No such file or directory"


def test_an_error_of_the_system_that_names_no_file_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_given: object, **_more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.cluster.compile_for_cluster", full)
    with pytest.raises(OSError, match="No space left"):
        conlst("compile", "--config", "demo", "--image", IMAGE, "--out", tmp_path / "p.yaml")


def test_train_job_writes_the_manifest(tmp_path: Path) -> None:
    out = tmp_path / "job.yaml"
    given = ("--config", "xnli-mbert", "--image", IMAGE, "--store", "s3://b/m", "--nodes", 4, "--out", out, "--data")
    assert conlst("train-job", *given, "s3://b/mnli.tsv.gz").result == {"train_job": str(out), "nodes": 4, "processes": 4}
    assert yaml.safe_load(out.read_text())["spec"]["trainer"]["numNodes"] == 4
    assert "pods read only s3://" in conlst("train-job", *given, "http://host/mnli.tsv.gz").complaint


def test_train_source_tells_its_accuracy(user: Path, source: dict[str, Any]) -> None:
    assert source["model"] == str(user / "models" / "en")
    assert source["dev_accuracy"] > 0.4
    assert source["digest"] == verify(Path(source["model"]), "model").digest


def test_adapt_publishes_the_model_and_the_calibrated_one(source: dict[str, Any], adapted: dict[str, Any]) -> None:
    assert adapted["language"] == "sw"
    calibrated = verify(Path(adapted["stages"]["calibrate"]), "model")
    assert verify(Path(adapted["model"]), "model").parents["model"] == calibrated.digest
    assert calibrated.parents["model"] == source["digest"]


def test_adapting_again_is_the_same_model_and_does_not_calibrate_again(
    user: Path, source: dict[str, Any], adapted: dict[str, Any]
) -> None:
    before = Path(adapted["stages"]["calibrate"]).stat().st_ino
    assert adapt(user, source, "sw").result["digest"] == adapted["digest"]
    assert Path(adapted["stages"]["calibrate"]).stat().st_ino == before


def test_overrides_reach_the_stages(user: Path, source: dict[str, Any], adapted: dict[str, Any]) -> None:
    other = adapt(user, source, "other", "--set", "calibrate.lr=2e-3", "selftrain.mixup=null", "--set", "seed=7").result
    config = verify(Path(other["model"])).config
    assert (config["calibrate"]["lr"], config["selftrain"]["mixup"], config["seed"]) == (2e-3, None, 7)
    assert (Path(other["model"]) / WEIGHTS).read_bytes() != (Path(adapted["model"]) / WEIGHTS).read_bytes()


def test_source_data_that_is_given_trains_along(user: Path, source: dict[str, Any], adapted: dict[str, Any]) -> None:
    other = adapt(user, source, "with-source", "--source-data", user / "more.tsv").result
    assert (Path(other["stages"]["calibrate"]) / WEIGHTS).read_bytes() != (
        Path(adapted["stages"]["calibrate"]) / WEIGHTS
    ).read_bytes()


def test_a_calibrated_model_of_other_source_data_is_not_taken(user: Path, source: dict[str, Any]) -> None:
    fresh = adapt(user, source, "fresh", "--source-data", user / "more.tsv").result
    adapt(user, source, "changed", "--source-data", user / "en.tsv")
    assert adapt(user, source, "changed", "--source-data", user / "more.tsv").result["digest"] == fresh["digest"]


def test_adapt_without_calibration_starts_stage_2_from_the_source_model(user: Path, source: dict[str, Any]) -> None:
    alone = adapt(user, source, "alone", "--set", "adapt.stages=[selftrain]").result
    assert alone["stages"] == {"selftrain": alone["model"]}
    assert verify(Path(alone["model"]), "model").parents["model"] == source["digest"]


def test_under_a_launcher_adapt_trains_one_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    given = ["--config", "demo", "--source-model", "starter", "--pool", "sample:sw", "--language", "sw"]
    assert main(["adapt", *given, "--out", str(tmp_path / "out")]) != 0
    assert "under a launcher a command trains one stage" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_calibration_alone_is_what_self_training_starts_from(user: Path, source: dict[str, Any], adapted: dict[str, Any]) -> None:
    alone = adapt(user, source, "calibrated-only", "--set", "adapt.stages=[calibrate]").result
    assert alone["stages"] == {"calibrate": alone["model"]}
    assert (Path(alone["model"]) / WEIGHTS).read_bytes() == (Path(adapted["stages"]["calibrate"]) / WEIGHTS).read_bytes()


def test_several_languages_train_one_model_that_is_exported_for_each(user: Path, source: dict[str, Any], tmp_path: Path) -> None:
    def joint(*languages: str) -> Ended:
        return conlst(
            *("adapt", "--config", user / "tiny.yaml", "--source-model", source["model"]),
            *("--pool", user / "pool.tsv", user / "more.tsv", "--languages", *languages, "--out", user / "models" / "joint"),
        )

    # an option that is given again adds to the first
    for languages in (("sw", "fr", "de"), ("sw", "sw"), ("sw", "--language", "sw")):
        assert "several languages need a file each" in joint(*languages).complaint
    model = joint("sw", "fr").result
    assert (model["language"], model["languages"]) == ("mul", ["fr", "sw"])
    assert verify(Path(model["model"])).config["adapt"]["joint"]
    # 45 and 60 pairs
    assert len(read_pairs(user / "models" / "joint.work" / "pool")) == 105
    assert joint("sw", "fr").result == model

    def exported(*language: str) -> Ended:
        return conlst("export", "--model", model["model"], "--data", user / "test.tsv", *language, "--out", tmp_path / "onnx")

    assert "is a model of fr, sw: name the one" in exported().complaint
    assert "is a model of fr, sw, it cannot be exported for de" in exported("--language", "de").complaint
    for language in ("fr", "sw"):
        assert exported("--language", language).result["language"] == language
        assert json.loads((tmp_path / "onnx" / "config.json").read_text())["language"] == language
        assert verify(tmp_path / "onnx", "onnx").meta["language"] == language


def test_evaluate_gives_what_acceptance_reads(user: Path, adapted: dict[str, Any]) -> None:
    ended = conlst("evaluate", "--model", adapted["model"], "--data", user / "test.tsv", "--language", "sw")
    result = ended.result
    assert len(ended.out.splitlines()) == 1
    assert 0 <= result["accuracy"] <= 1
    assert 0 <= result["ece"] <= 1
    assert result["n"] == 45
    assert sum(band["count"] for band in result["bands"]) == 45
    assert result["protocol"] == "inductive"
    assert result["evaluation"] == f"{adapted['model']}.evaluation"
    assert Path(result["page"]).is_file()


def test_a_report_goes_beside_the_model_and_never_into_it(
    user: Path, adapted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ("--data", user / "test.tsv", "--language", "sw")
    before = sorted(Path(adapted["model"]).iterdir())
    evaluated = conlst("evaluate", "--model", f"{adapted['model']}/", *common).result
    assert evaluated["evaluation"] == f"{adapted['model']}.evaluation"
    monkeypatch.chdir(adapted["model"])
    assert conlst("evaluate", "--model", ".", *common).result["evaluation"] == f"{adapted['model']}.evaluation"
    assert sorted(Path(adapted["model"]).iterdir()) == before
    monkeypatch.chdir(tmp_path)
    assert "name one with --out" in conlst("evaluate", "--model", "s3://bucket/models/manifests/0.json", *common).complaint
    assert not list(tmp_path.iterdir())


def test_evaluate_compares_with_an_earlier_evaluation(
    user: Path, source: dict[str, Any], adapted: dict[str, Any], tmp_path: Path
) -> None:
    common = ("--data", user / "pool.tsv", "--language", "sw", "--out")
    before = conlst("evaluate", "--model", source["model"], *common, tmp_path / "before").result
    after = conlst("evaluate", "--model", adapted["model"], *common, tmp_path / "after", "--before", tmp_path / "before").result
    assert (before["protocol"], after["protocol"]) == ("zero-shot", "transductive")
    assert after["comparison"]["accuracy_gain"] == pytest.approx(after["accuracy"] - before["accuracy"])


def test_export_publishes_a_folder_to_serve(user: Path, exported: dict[str, Any]) -> None:
    assert exported.keys() == {"model", "language", "parity", "precision", "precision_reason", "temperature"}
    assert (exported["model"], exported["language"]) == (str(user / "served" / "sw"), "sw")
    # nothing was given that could show what INT8 costs
    assert (exported["precision"], exported["temperature"]) == ("fp32", 1.0)
    assert 0 <= exported["parity"] <= 1e-4
    assert verify(Path(exported["model"]), "onnx").meta["language"] == "sw"


def test_export_with_english_pairs_calibrates_and_judges_int8(user: Path, adapted: dict[str, Any], tmp_path: Path) -> None:
    pairs = ("--data", user / "pool.tsv", "--development", user / "dev.tsv")
    told = conlst("export", "--model", adapted["model"], *pairs, "--out", tmp_path / "sw").result
    assert "int8 agrees with fp32 on" in told["precision_reason"]
    card = json.loads((tmp_path / "sw" / "card.json").read_text())
    assert card["temperature"]["value"] == told["temperature"] != 1.0
    assert card["precision"]["served"] == told["precision"]


def test_trim_takes_no_tokenizer_of_another_kind(exported: dict[str, Any], tmp_path: Path) -> None:
    ended = conlst("trim", "--models", exported["model"], "--texts", "sample:sw", "--out", tmp_path / "small")
    assert ended.complaint.startswith("conlst trim: ")
    assert "no Unigram tokenizer" in ended.complaint


def test_predict_answers_alike_from_both_kinds_of_folder(adapted: dict[str, Any], exported: dict[str, Any]) -> None:
    row = tiny_pairs(3, 9)[2]
    answers = [
        conlst("predict", "--model", model["model"], "--premise", row["premise"], "--hypothesis", row["hypothesis"]).result
        for model in (adapted, exported)
    ]
    for answer in answers:
        assert set(answer["probabilities"]) == set(NAMES)
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
        assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].__getitem__)
        assert answer["language"] == "sw"
    assert answers[0]["probabilities"] == pytest.approx(answers[1]["probabilities"], abs=1e-4)
    assert [answer["digest"] for answer in answers] == [verify(Path(model["model"])).digest for model in (adapted, exported)]


def test_a_pair_that_is_too_long_to_serve_is_refused(exported: dict[str, Any]) -> None:
    ended = conlst("predict", "--model", exported["model"], "--premise", " ".join(WORDS), "--hypothesis", "a cat")
    assert ended.complaint.startswith("conlst predict: pair 0 has ")


def test_compact_keeps_a_source_model_small(source: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("# A tiny starter\n")
    ended = conlst(
        *("compact", "--model", source["model"], "--rank", 4, "--card", tmp_path / "card.md", "--out", tmp_path / "starter")
    )
    assert ended.result["dev_accuracy"] == source["dev_accuracy"]
    model = load_starter(tmp_path / "starter")
    assert len(model.seen["source"]) == 90
    assert (tmp_path / "starter" / "CARD.md").read_text() == "# A tiny starter\n"


def test_errors_are_one_line_that_names_the_thing(
    user: Path, source: dict[str, Any], adapted: dict[str, Any], tmp_path: Path
) -> None:
    profile, out = user / "tiny.yaml", tmp_path / "out"
    pool = ("--pool", user / "pool.tsv", "--language", "sw", "--out", out)
    start = ("adapt", "--config", profile, "--source-model", source["model"])
    evaluate = ("evaluate", "--language", "sw", "--out", out, "--model")
    cases: list[tuple[tuple[object, ...], str]] = [
        (("train-source", "--config", "nonesuch", "--data", user / "en.tsv", "--out", out), "nonesuch"),
        (("train-source", "--config", "nonesuch", "--data", user / "en.tsv", "--out", out), "xnli-e5-small"),
        (("train-source", "--config", profile, "--data", tmp_path / "no.tsv", "--out", out), "no.tsv"),
        (("train-source", "--config", profile, "--data", user / "unlabelled.tsv", "--out", out), "9 of 9 pairs have no label"),
        (
            ("train-source", "--config", profile, "--data", user / "en.tsv", "--dev", user / "en.tsv", "--out", out),
            "90 of 90 pairs",
        ),
        ((*start, *pool, "--set", "calibrate.lr"), "section.key=value"),
        ((*start, *pool, "--set", "calibrate.typo=1"), "calibrate.typo"),
        ((*start, *pool, "--set", "selftrain.threshold=2"), "selftrain.threshold"),
        ((*start, *pool, "--set", "calibrate.threshold=0.9999"), "lower calibrate.threshold"),
        (("adapt", "--config", profile, "--source-model", tmp_path / "nowhere", *pool), "nowhere"),
        ((*evaluate, adapted["model"], "--data", user / "unlabelled.tsv"), "9 of 9 pairs have no label"),
        ((*evaluate, adapted["model"], "--data", user / "en.tsv"), "90 of 90 pairs"),
        ((*evaluate, tmp_path / "nowhere", "--data", user / "test.tsv"), "nowhere"),
        ((*evaluate, adapted["model"], "--data", "sample:xx"), "xx"),
        (("export", "--model", user, "--out", out), str(user)),
        (("compile", "--config", "demo", "--image", "conlst:latest", "--out", out), "must name a digest"),
        (("predict", "--model", tmp_path / "nowhere", "--premise", "a", "--hypothesis", "b"), "nowhere"),
    ]
    for arguments, names in cases:
        complaint = conlst(*arguments).complaint
        assert complaint.startswith(f"conlst {arguments[0]}: "), arguments
        assert names in complaint, complaint
        assert not out.exists()


def test_a_card_that_is_missing_is_named(source: dict[str, Any], tmp_path: Path) -> None:
    card = tmp_path / "no-card.md"
    ended = conlst("compact", "--model", source["model"], "--rank", 4, "--card", card, "--out", tmp_path / "starter")
    assert "no-card.md" in ended.complaint


def test_an_error_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "conlst.cli", "adapt", "--config", "nonesuch", "--source-model", "starter"]
    command += ["--pool", "pool.tsv", "--language", "sw", "--out", str(tmp_path / "out")]
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stderr.startswith("conlst adapt: no configuration 'nonesuch'")
    assert "xnli-e5-small" in ended.stderr


def test_verbose_shows_where_an_error_came_from() -> None:
    ended = conlst("--verbose", "compile", "--config", "nonesuch", "--image", "x")
    assert ended.status == 1
    assert "Traceback" in ended.err
    assert ended.err.splitlines()[-1].startswith("conlst compile: ")


def test_a_folder_is_pushed_again(tmp_path: Path, bucket: str) -> None:
    with publish(tmp_path / "model", kind="model") as staging:
        (staging / "weights").write_bytes(b"w")
    address = objects.push_folder(tmp_path / "model", f"{bucket}/models")
    entry = objects.check_folder(address).files["weights"]
    boto3.client("s3").delete_object(Bucket="conlst", Key=f"models/blobs/{entry.sha256}")
    with pytest.raises(ArtifactError, match="conlst push"):
        objects.check_folder(address)
    assert conlst("push", tmp_path / "model", "--store", f"{bucket}/models").result == {"address": address}
    objects.check_folder(address)


def test_what_was_kept_in_s3_is_replayed_once(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = f"{bucket}/untracked"
    monkeypatch.setenv("CONLST_UNTRACKED", stored)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    with tracking.run("pipeline", experiment="kept", folder=tmp_path / "run") as kept:
        kept.metrics({"accuracy": 0.7})
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    # its begin, the metric, its end
    assert conlst("replay", stored).result == {"sent": 3}
    (found,) = MlflowClient(database).search_runs([MlflowClient(database).get_experiment_by_name("kept").experiment_id])
    assert found.data.metrics == {"accuracy": 0.7}
    assert conlst("replay", stored).result == {"sent": 0}


def test_a_champion_is_promoted_rolled_back_and_told_of(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")

    def registered(name: str, accuracy: float) -> str:
        with publish(tmp_path / name, kind="onnx") as staging:
            (staging / "model.onnx").write_text(name)
        address = objects.push_folder(tmp_path / name, f"{bucket}/models")
        measured = {"accuracy": accuracy, "ece": 0.05, "n": 5010, "zero_shot_accuracy": 0.6, "parity": 1e-5}
        registry.register("sw", address, verify(tmp_path / name).digest, metrics=measured, tags={"code": "abc", "data": "d1"})
        return address

    promote = ("promote", "--config", "xnli-e5-small", "--language", "sw")
    first = registered("one", 0.64)
    told = conlst(*promote).result
    assert told.keys() == {"language", "version", "promoted", "reasons"}
    assert (told["language"], told["version"], told["promoted"]) == ("sw", 1, True)
    assert conlst(*promote).complaint == "conlst promote: nli-sw has no challenger; name a version with --version"

    registered("two", 0.62)
    refused = conlst(*promote).result
    assert (refused["version"], refused["promoted"]) == (2, False)
    assert refused["reasons"]

    third = registered("three", 0.66)
    assert conlst(*promote, "--version", 3).result["promoted"]
    assert conlst("rollback", "--language", "sw").result == {"language": "sw", "champion": 1, "uri": first}

    ended = conlst("history", "--language", "sw")
    champions = ended.result["champions"]
    assert [(entry["action"], entry["version"], entry["replaces"], entry["uri"]) for entry in champions] == [
        ("promote", 1, None, first),
        ("promote", 3, 1, third),
        ("rollback", 1, 3, first),
    ]
    *lines, _ = ended.out.splitlines()
    assert [line.partition("  ")[2].partition(",")[0] for line in lines] == [
        "promote  version 1",
        "promote  version 3",
        "rollback  version 1",
    ]


def test_nothing_to_replay_is_a_clean_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "MLFLOW_TRACKING_URI" in conlst("replay", tmp_path).complaint
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert conlst("replay", tmp_path).result == {"sent": 0}


MARKED = """# Results

Text before.

<!-- bench:main -->
old numbers
<!-- /bench -->

<!-- bench:rows -->
<!-- /bench -->
<!-- bench:table4 -->
<!-- /bench -->
<!-- bench:ablations -->
<!-- /bench -->
<!-- bench:cost -->
<!-- /bench -->

Text after.
"""


@pytest.fixture(scope="module")
def experiment(user: Path) -> Path:
    """A folder with a matrix, its data, and a document."""
    root = user / "experiment"
    root.mkdir()
    for name, seed, count in (("dev.sw", 3, 45), ("test.sw", 4, 45)):
        write_tsv(root / f"{name}.tsv", tiny_pairs(count, seed))
    matrix = {
        "config": str(user / "tiny.yaml"),
        "settings": {"calibrate.threshold": 0.4},
        "source": [str(user / "en.tsv")],
        "source_dev": str(user / "dev.tsv"),
        "splits": {name: {"default": f"{{data}}/{name}.{{language}}.tsv"} for name in ("dev", "test")},
        "stage0": {"plain": {"describes": "fine-tuning"}},
        "systems": {
            "zero-shot": {"describes": "as it is"},
            "conl": {"describes": "stage 1 alone", "stages": ["calibrate"]},
            "conlst": {"describes": "the paper", "stages": ["calibrate", "selftrain"]},
        },
        "groups": {
            "method": ["conlst"],
            "deciding": ["zero-shot", "conlst"],
            "rivals": [],
            "ablations": ["conl"],
            "calibration": ["conl"],
        },
        "development": ["sw"],
        "runs": [{"systems": ["zero-shot", "conl", "conlst"], "languages": ["sw"], "pool": ["dev"]}],
    }
    (root / "matrix.yaml").write_text(json.dumps(matrix))
    (root / "results.md").write_text(MARKED)
    return root


def bench(experiment: Path, *more: object) -> Ended:
    return conlst(
        *("bench", "xnli", "--matrix", experiment / "matrix.yaml", "--data", experiment, "--work", experiment / "work"),
        *("--out", experiment / "cells", *more),
    )


@pytest.fixture(scope="module")
def benched(experiment: Path) -> dict[str, Any]:
    return bench(experiment, "--document", experiment / "results.md").result


def test_bench_runs_a_matrix_and_fills_the_document(experiment: Path, benched: dict[str, Any]) -> None:
    figures = benched.pop("figures")
    assert benched == {
        "results": str(experiment / "cells"),
        "document": str(experiment / "results.md"),
        **{"planned": 3, "done": 3, "kept": 0},
    }
    assert sorted(path.relative_to(experiment / "cells").as_posix() for path in (experiment / "cells").rglob("*.json")) == [
        "conl/sw-inductive-test-13.json",
        "conlst/sw-inductive-test-13.json",
        "zero-shot/sw-zero-shot-test-13.json",
    ]
    cell = json.loads((experiment / "cells" / "conlst" / "sw-inductive-test-13.json").read_text())
    page = (experiment / "results.md").read_text()
    assert f"{100 * cell['evaluation']['accuracy']:.2f} (1)" in page
    assert "old numbers" not in page
    assert (page.startswith("# Results\n\nText before.\n"), page.endswith("\nText after.\n")) == (True, True)
    assert page.count("<!-- bench:") == page.count("<!-- /bench -->") == 5
    assert {Path(figure).parent for figure in figures} == {experiment / "figures"}
    assert {Path(figure).name for figure in figures} >= {"noise-conl-inductive-test.svg", "gain-inductive.svg"}
    assert all(Path(figure).is_file() for figure in figures)
    assert list((experiment / "work" / "shared").iterdir()) == []


def test_bench_makes_tables_alone_from_the_cells(experiment: Path, benched: dict[str, Any], tmp_path: Path) -> None:
    assert benched["done"] == 3
    (tmp_path / "page.md").write_text(MARKED)
    more = ("--tables-only", "--document", tmp_path / "page.md")
    # the data and the models may be gone
    result = conlst("bench", "xnli", "--matrix", experiment / "matrix.yaml", "--out", experiment / "cells", *more).result
    assert "done" not in result
    assert (tmp_path / "page.md").read_text() == (experiment / "results.md").read_text()
    assert {Path(figure).parent for figure in result["figures"]} == {tmp_path / "figures"}
    # filled again it stays as it is
    conlst("bench", "xnli", "--matrix", experiment / "matrix.yaml", "--out", experiment / "cells", *more)
    assert (tmp_path / "page.md").read_text() == (experiment / "results.md").read_text()


def test_bench_computes_nothing_twice_and_takes_systems(experiment: Path, benched: dict[str, Any]) -> None:
    assert benched["done"] == 3
    assert bench(experiment).result == {"results": str(experiment / "cells"), "planned": 3, "done": 0, "kept": 3}
    some = bench(experiment, "--system", "conl", "zero-shot").result
    assert (some["planned"], some["kept"]) == (2, 2)
    subset = bench(experiment, "--system", "zero-shot", "--subset", "12", "--out", experiment / "few").result
    assert (subset["done"], subset["results"]) == (1, str(experiment / "few"))
    cell = json.loads((experiment / "few" / "zero-shot" / "sw-zero-shot-test-13.json").read_text())
    assert cell["evaluation"]["n"] == 12


def test_bench_says_in_one_line_what_is_wrong(experiment: Path, benched: dict[str, Any], tmp_path: Path) -> None:
    assert benched["done"] == 3
    wrong = json.loads((experiment / "matrix.yaml").read_text())
    wrong["runs"][0]["systems"] = ["nonesuch"]
    (tmp_path / "wrong.yaml").write_text(json.dumps(wrong))
    (tmp_path / "unmarked.md").write_text("# Results\n")
    document = ("--tables-only", "--document")
    cases: list[tuple[tuple[object, ...], str]] = [
        (("--matrix", tmp_path / "nowhere.yaml"), "nowhere.yaml cannot be read"),
        (("--matrix", tmp_path / "wrong.yaml"), "runs.0.systems names 'nonesuch'"),
        (("--system", "nonesuch"), "no system 'nonesuch'"),
        (("--subset", "0"), "a subset of 0 pairs"),
        (("--data", tmp_path, "--out", tmp_path / "out"), "give the folder of the data with --data"),
        ((*document, experiment / "results.md", "--out", tmp_path / "none"), "is no folder of cells"),
        ((*document, tmp_path / "unmarked.md"), "no place for the table rows"),
        ((*document, tmp_path / "nowhere.md"), "nowhere.md cannot be read"),
        (("--tables-only",), "name it with --document"),
    ]
    for arguments, names in cases:
        complaint = bench(experiment, *arguments).complaint
        assert complaint.startswith("conlst bench: "), arguments
        assert names in complaint, complaint
    assert (tmp_path / "unmarked.md").read_text() == "# Results\n"
    assert not (tmp_path / "out").exists()
