"""Evaluation and prediction from folder to folder on a tiny backbone: protocols, and what is not compared."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conlst.contract.artifacts import publish, read_manifest, verify
from conlst.contract.errors import ArtifactError, DataError
from conlst.data.pairs import Ingested, fingerprint, read_pairs, write_pairs
from conlst.stages import folders
from tiny import tiny_pairs
from world import POOL, STAGES, World, digest, evaluation, ingest


def test_protocols_are_named_by_what_the_model_saw(world: World, adapted: Path, tmp_path: Path) -> None:
    def protocol(model: Path, pairs: str) -> str:
        return evaluation(world, model, world.pairs(pairs), tmp_path / f"{model.name}-{pairs}")["protocol"]

    assert protocol(world.model, "test") == "zero-shot"
    assert protocol(world.model, "pool") == "zero-shot"
    assert protocol(adapted, "test") == "inductive"
    assert protocol(adapted, "pool") == "transductive"


def test_one_pair_of_the_pool_makes_it_transductive_however_it_is_written(world: World, adapted: Path, tmp_path: Path) -> None:
    again = {name: f" {value.upper()} " if name in ("premise", "hypothesis") else value for name, value in POOL[3].items()}
    pairs = ingest(world.config(), [*tiny_pairs(20, 8), again], "test", tmp_path / "pairs")
    assert evaluation(world, adapted, pairs, tmp_path / "e")["protocol"] == "transductive"


def test_both_pools_of_a_model_adapted_twice_are_remembered(world: World, adapted: Path, tmp_path: Path) -> None:
    folders.self_train_model(world.config(), adapted, world.pairs("test"), "sw", tmp_path / "twice")
    for name in ("pool", "test"):
        assert evaluation(world, tmp_path / "twice", world.pairs(name), tmp_path / name)["protocol"] == "transductive"


@pytest.mark.parametrize("stage", ["source", "adapted"])
def test_pairs_that_were_trained_on_with_labels_are_refused(world: World, adapted: Path, tmp_path: Path, stage: str) -> None:
    model = {"source": world.model, "adapted": adapted}[stage]
    pairs = ingest(world.config(), [*tiny_pairs(20, 8), *tiny_pairs(90, 1)[:2]], "test", tmp_path / "pairs")
    with pytest.raises(DataError, match=r"2 of 22 pairs .* were trained on with labels"):
        evaluation(world, model, pairs, tmp_path / "e")
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_source_pairs_given_to_a_later_stage_count_as_trained_on(
    world: World, tmp_path: Path, stage: Callable[..., None]
) -> None:
    stage(world.config(), world.model, world.pairs("pool"), "sw", tmp_path / "m", world.pairs("more-source"))
    pairs = ingest(world.config(), tiny_pairs(60, 6), "test", tmp_path / "pairs")
    with pytest.raises(DataError, match="trained on with labels"):
        evaluation(world, tmp_path / "m", pairs, tmp_path / "e")


def test_evaluation_needs_labels(world: World, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="45 of 45 pairs have no label"):
        evaluation(world, world.model, world.pairs("pool-unlabelled"), tmp_path / "e")


def test_an_evaluation_is_published_with_its_parents_and_figures(world: World, calibrated: Path, tmp_path: Path) -> None:
    first = evaluation(world, world.model, world.pairs("pool"), tmp_path / "before")
    result = evaluation(world, calibrated, world.pairs("pool"), tmp_path / "after", tmp_path / "before")
    manifest = verify(tmp_path / "after", "evaluation")
    assert manifest.parents == {"model": digest(calibrated), "pairs": digest(world.pairs("pool"))}
    headline = {name: result[name] for name in ("language", "protocol", "n", "accuracy", "macro_f1", "ece")}
    assert manifest.meta == {**headline, "fingerprint": fingerprint(read_pairs(world.pairs("pool")))}
    assert json.loads((tmp_path / "after" / "evaluation.json").read_text()) == result
    assert result["comparison"]["before"]["accuracy"] == first["accuracy"]
    assert {path.stem for path in (tmp_path / "after" / "figures").iterdir()} == {
        "reliability",
        "confusion",
        "noise",
        "bands",
        "coverage",
        "training",
    }
    assert {path.stem for path in (tmp_path / "before" / "figures").iterdir()} == {"reliability", "confusion"}
    for name in ("page.html", "table.md"):
        text = (tmp_path / "after" / name).read_text()
        assert "transductive" in text
        assert "45" in text
    kept = load_file(tmp_path / "after" / "predictions.safetensors")
    assert (kept["logits"].argmax(1) == kept["labels"]).float().mean().item() == pytest.approx(result["accuracy"])


def test_evaluations_of_other_pairs_are_not_compared(world: World, adapted: Path, tmp_path: Path) -> None:
    evaluation(world, world.model, world.pairs("test"), tmp_path / "before")
    shorter = ingest(world.config(), tiny_pairs(44, 4), "test", tmp_path / "shorter")
    with pytest.raises(DataError, match="other pairs"):
        evaluation(world, adapted, shorter, tmp_path / "after", tmp_path / "before")


def test_evaluations_of_other_pairs_with_the_same_labels_are_not_compared(world: World, adapted: Path, tmp_path: Path) -> None:
    evaluation(world, world.model, world.pairs("test"), tmp_path / "before")
    with pytest.raises(DataError, match="other pairs"):
        evaluation(world, adapted, world.pairs("pool"), tmp_path / "after", tmp_path / "before")


def test_the_same_pairs_in_another_order_are_compared_pair_by_pair(world: World, adapted: Path, tmp_path: Path) -> None:
    test = read_pairs(world.pairs("test"))
    turned = Ingested(test.select(range(len(test) - 1, -1, -1)), [], {"language": "sw"})
    write_pairs(turned, tmp_path / "turned")
    evaluation(world, world.model, world.pairs("test"), tmp_path / "before")
    straight = evaluation(world, adapted, world.pairs("test"), tmp_path / "straight", tmp_path / "before")
    result = evaluation(world, adapted, tmp_path / "turned", tmp_path / "after", tmp_path / "before")
    assert result["comparison"]["mcnemar"] == straight["comparison"]["mcnemar"]


def test_an_evaluation_that_does_not_tell_its_pairs_is_not_compared_with(world: World, adapted: Path, tmp_path: Path) -> None:
    evaluation(world, world.model, world.pairs("test"), tmp_path / "now")
    kept = load_file(tmp_path / "now" / "predictions.safetensors")
    with publish(tmp_path / "before", kind="evaluation", meta=read_manifest(tmp_path / "now").meta) as staging:
        save_file({name: kept[name] for name in ("logits", "labels")}, staging / "predictions.safetensors")
    with pytest.raises(ArtifactError, match="evaluate the model again"):
        evaluation(world, adapted, world.pairs("test"), tmp_path / "after", tmp_path / "before")


def test_predictions_of_texts_are_those_of_the_evaluation(world: World, tmp_path: Path) -> None:
    evaluation(world, world.model, world.pairs("test"), tmp_path / "e")
    kept = load_file(tmp_path / "e" / "predictions.safetensors")
    test = read_pairs(world.pairs("test"))
    found = folders.predict_pairs(world.model, list(zip(test["premise"], test["hypothesis"], strict=True)))
    torch.testing.assert_close(torch.tensor(found), kept["logits"].softmax(1), atol=1e-5, rtol=0)


def test_english_is_supervised_and_another_language_than_the_model_s_is_zero_shot(
    world: World, adapted: Path, tmp_path: Path
) -> None:
    pairs = ingest(world.config(), tiny_pairs(30, 41), "test", tmp_path / "pairs")
    for language, protocol in (("en", "supervised"), ("sw", "inductive"), ("fr", "zero-shot")):
        result = folders.evaluate_model(world.config(), adapted, pairs, language, tmp_path / language)
        assert result["protocol"] == protocol
