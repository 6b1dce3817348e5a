"""Judging a model without labels, from folder to folder."""

import json
from pathlib import Path

import pytest
import torch

from conlst.contract.artifacts import verify
from conlst.contract.config import Config, config_from_dict
from conlst.contract.errors import DataError
from conlst.data.pairs import read_pairs
from conlst.model.folder import load_model
from conlst.platform.gate import decide
from conlst.reports.estimate import average_thresholded_confidence
from conlst.stages import folders
from conlst.stages.folders.pairs import labels_of, tokens_of
from conlst.stages.predict import predict_logits
from tiny import tiny_backbone, tiny_config, tiny_pairs, write_tsv


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return config_from_dict(tiny_config(tiny_backbone(tmp_path_factory.mktemp("b")), gate={"evidence": "none", "min_pairs": 20}))


@pytest.fixture(scope="module")
def work(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("work")
    rows = {"source": tiny_pairs(60, 1), "dev": tiny_pairs(30, 2), "labelled": tiny_pairs(40, 3)}
    rows["unlabelled"] = [{**row, "label": ""} for row in rows["labelled"]]
    for name, pairs in rows.items():
        language = "en" if name in ("source", "dev") else "sw"
        folders.ingest(config, "test", [str(write_tsv(work / f"{name}.tsv", pairs))], language, work / name)
    folders.train_source_model(config, work / "source", work / "model")
    return work


def test_the_estimate_is_made_of_the_predictions_and_reads_no_label(config: Config, work: Path, tmp_path: Path) -> None:
    found = [
        folders.estimate_model(config, work / "model", work / name, work / "dev", "sw", tmp_path / name)
        for name in ("unlabelled", "labelled")
    ]
    assert found[0] == found[1]
    (estimate, _) = found
    model = load_model(work / "model")
    english, target = read_pairs(work / "dev"), read_pairs(work / "unlabelled")
    on_english, on_target = (
        predict_logits(model.classifier, tokens_of(pairs, model), config.compute, 4096).double().softmax(1).numpy()
        for pairs in (english, target)
    )
    labels = labels_of(english).numpy()
    assert estimate["estimated_accuracy"] == pytest.approx(average_thresholded_confidence(on_english, labels, on_target))
    assert estimate["english_accuracy"] == pytest.approx((on_english.argmax(1) == labels).mean())
    counts = torch.bincount(torch.from_numpy(on_target).argmax(1), minlength=3) / 40
    assert list(estimate["label_shares"].values()) == pytest.approx(counts.tolist())
    assert estimate["least_label_share"] == min(estimate["label_shares"].values())
    assert 0 <= estimate["view_agreement"] <= 1
    assert (estimate["unlabelled_n"], estimate["english_n"]) == (40, 30)


def test_what_is_published_names_its_parents_and_can_be_read(config: Config, work: Path, tmp_path: Path) -> None:
    estimate = folders.estimate_model(config, work / "model", work / "unlabelled", work / "dev", "sw", tmp_path / "out")
    manifest = verify(tmp_path / "out", "estimate")
    assert manifest.parents == {
        "model": verify(work / "model").digest,
        "pairs": verify(work / "unlabelled").digest,
        "english": verify(work / "dev").digest,
    }
    assert json.loads((tmp_path / "out" / "estimate.json").read_text()) == estimate
    percent = f"{100 * estimate['estimated_accuracy']:.1f}"
    for file in ("page.html", "table.md"):
        assert percent in (tmp_path / "out" / file).read_text()


def test_the_gate_reads_what_the_estimate_tells(config: Config, work: Path, tmp_path: Path) -> None:
    folders.estimate_model(config, work / "model", work / "unlabelled", work / "dev", "sw", tmp_path / "out")
    meta = verify(tmp_path / "out").meta
    metrics = {
        **{name: meta[name] for name in ("estimated_accuracy", "english_accuracy", "least_label_share", "view_agreement")},
        **{"unlabelled_n": meta["unlabelled_n"], "parity": 1e-6},
        "source_english_accuracy": meta["english_accuracy"],
    }
    lenient = config.gate.model_copy(update={"min_accuracy": 0.0, "min_label_share": 0.0, "min_agreement": 0.0})
    assert decide(metrics, None, lenient).promote
    assert not decide(metrics, None, config.gate.model_copy(update={"min_pairs": 41})).promote


def test_english_pairs_need_labels(config: Config, work: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="label"):
        folders.estimate_model(config, work / "model", work / "labelled", work / "unlabelled", "sw", tmp_path / "out")
    assert not (tmp_path / "out").exists()
