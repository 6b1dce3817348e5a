"""Exporting from folder to folder: what is read of the pairs and evaluations beside a model, and what is registered of it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from conlst.contract.artifacts import verify
from conlst.contract.config import Config, config_from_dict
from conlst.contract.errors import DataError
from conlst.data.pairs import merge_pairs, read_pairs
from conlst.platform import objects, registry
from conlst.platform.release import release
from conlst.stages import folders
from tiny import tiny_backbone, tiny_config, tiny_pairs, write_tsv

LIMITS = {"min_agreement": 0.5, "max_drop": 0.5, "pairs": 30}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return config_from_dict(tiny_config(tiny_backbone(tmp_path_factory.mktemp("b")), export=LIMITS))


@pytest.fixture(scope="module")
def work(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("work")
    rows = {"source": tiny_pairs(60, 1), "dev": tiny_pairs(40, 2), "test": tiny_pairs(50, 3), "pool": tiny_pairs(45, 4)}
    rows["unlabelled"] = [{**row, "label": ""} for row in rows["test"]]
    for name, pairs in rows.items():
        language = "en" if name in ("source", "dev") else "sw"
        folders.ingest(config, "test", [str(write_tsv(work / f"{name}.tsv", pairs))], language, work / name)
    folders.train_source_model(config, work / "source", work / "model")
    folders.evaluate_model(config, work / "model", work / "test", "sw", work / "evaluation")
    folders.estimate_model(config, work / "model", work / "unlabelled", work / "dev", "sw", work / "estimate")
    return work


def export(config: Config, work: Path, out: Path, **beside: str) -> dict:
    judged = {name: work / folder for name, folder in beside.items()}
    folders.export_model(config, work / "model", work / "pool", out, **judged)
    card: dict = json.loads((out / "card.json").read_text())
    return card


def test_with_labels_they_judge_int8_and_show_the_calibration(config: Config, work: Path, tmp_path: Path) -> None:
    card = export(config, work, tmp_path / "out", development="dev", test="test", evaluation="evaluation")
    evaluation = json.loads((work / "evaluation/evaluation.json").read_text())
    assert card["evaluation"] == {name: evaluation[name] for name in ("n", "accuracy", "ece", "protocol", "bands")}
    assert card["precision"]["served"] == "int8"
    assert "50 held out pairs" in card["precision"]["reason"]
    assert card["precision"]["accuracy"]["fp32"] == pytest.approx(evaluation["accuracy"], abs=0.021)
    assert card["precision"]["pairs"] == 30
    assert card["temperature"]["ece"] is not None
    assert card["reference"]["pairs"] == 50


def test_beside_an_estimate_no_label_of_the_language_is_read(config: Config, work: Path, tmp_path: Path) -> None:
    cards = [
        export(config, work, tmp_path / test, development="dev", test=test, evaluation="estimate")
        for test in ("test", "unlabelled")
    ]
    assert cards[0] == cards[1]
    assert (cards[0]["evaluation"], cards[0]["temperature"]["ece"]) == (None, None)
    assert "30 English pairs" in cards[0]["precision"]["reason"]
    assert "30 unlabelled pairs" in cards[0]["temperature"]["fitted_on"]


def test_pairs_alone_give_fp32(config: Config, work: Path, tmp_path: Path) -> None:
    card = export(config, work, tmp_path / "out")
    assert (card["precision"]["served"], card["temperature"]["value"]) == ("fp32", 1.0)
    assert card["reference"]["pairs"] == 30


def test_the_evaluation_of_another_model_is_refused(config: Config, work: Path, tmp_path: Path) -> None:
    other = config.model_copy(update={"seed": 99})
    folders.train_source_model(other, work / "source", tmp_path / "other")
    with pytest.raises(DataError, match="evaluate the model that is exported"):
        folders.export_model(config, tmp_path / "other", work / "pool", tmp_path / "out", evaluation=work / "evaluation")
    assert not (tmp_path / "out").exists()


def test_a_version_carries_its_precision_and_what_made_it(
    config: Config, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = SimpleNamespace()
    monkeypatch.setattr(objects, "push_folder", lambda folder, store: f"{store}/{folder.name}")
    monkeypatch.setattr(registry, "register", lambda *_args, metrics, tags: vars(given).update(metrics=metrics, tags=tags) or 7)
    monkeypatch.setenv("CONLST_COMMIT", "abc")
    monkeypatch.delenv("CONLST_IMAGE", raising=False)
    card = export(config, work, tmp_path / "out", development="dev")
    evaluation = work / "evaluation"
    assert release(config, "job", "sw", "s3://b/p", tmp_path / "out", evaluation, evaluation, work / "pool") == 7
    assert given.tags["precision"] == card["precision"]["served"] == "int8"
    assert given.tags["precision_reason"] == card["precision"]["reason"]
    assert given.tags["model_digest"] == verify(work / "model").digest
    assert given.tags["commit"] == "abc"
    assert "image" not in given.tags


def test_of_a_pool_of_several_languages_only_that_of_the_export_is_compared_on(
    config: Config, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders.ingest(config, "pool", [str(write_tsv(tmp_path / "ur.tsv", tiny_pairs(6, 9)))], "ur", tmp_path / "ur")
    merge_pairs([work / "pool", tmp_path / "ur"], tmp_path / "both")
    compared = []
    monkeypatch.setattr(folders.measure, "export_onnx", lambda _model, texts, *_: compared.append(texts))
    folders.export_model(config, work / "model", tmp_path / "both", tmp_path / "out", language="ur")
    assert compared == [[(row["premise"], row["hypothesis"]) for row in read_pairs(tmp_path / "ur")]]
