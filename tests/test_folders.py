"""The stages from folder to folder on a tiny backbone: what is published, what is refused, and what a crash leaves."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from conlst.cli import main
from conlst.contract.artifacts import read_manifest, verify
from conlst.contract.config import Config, config_from_dict
from conlst.contract.errors import ArtifactError, ConfigError, ConlstError, DataError, UnsupportedDirection
from conlst.data.pairs import FEATURES, SEVERAL, fingerprint, merge_pairs, read_pairs
from conlst.model.folder import load_model
from conlst.stages import folders
from tiny import tiny_backbone, tiny_config, tiny_pairs, write_tsv

Rows = list[dict[str, str]]
STAGES = [folders.calibrate_model, folders.self_train_model, folders.self_learn_model]
TABLE, WEIGHTS = "embeddings.safetensors", "weights.safetensors"


class Interrupted(Exception):
    """Stands for a kill."""


def stop_at(count: int) -> Callable[[dict[str, float], int], None]:
    """A sink that interrupts the stage when it tells its ``count``-th step."""
    told = 0

    def sink(_metrics: dict[str, float], _step: int) -> None:
        nonlocal told
        told += 1
        if told == count:
            raise Interrupted

    return sink


@dataclass(frozen=True)
class World:
    """A trained source model, and pairs in every role."""

    backbone: Path
    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "source-model"

    def pairs(self, name: str) -> Path:
        return self.folder / name

    def config(self, **sections: Any) -> Config:
        base: dict[str, Any] = {
            "backbone": {"name": str(self.backbone), "max_length": 32, "projection": 16, "freeze_embeddings": True},
            "compute": {"device": "cpu", "precision": "fp32", "threads": 1, "checkpoint_every": 1},
            "source": {"lr": 5e-3, "batch_tokens": 256, "epochs": 12},
            "calibrate": {"lr": 1e-3, "threshold": 0.5, "batch_tokens": 96, "negatives": 2},
            "selftrain": {"lr": 1e-3, "threshold": 0.6, "floor": 0.4, "batch_tokens": 96, "max_iterations": 2},
            "selflearn": {"lr": 1e-3, "share": 0.2, "batch_tokens": 96, "rounds": 2, "epochs": 1},
            "evaluate": {"batch_tokens": 1024},
        }
        merged = {name: {**base.get(name, {}), **value} if isinstance(value, dict) else value for name, value in sections.items()}
        return config_from_dict(tiny_config(self.backbone, **{**base, **merged}))


def ingest(config: Config, rows: Rows, role: str, out: Path) -> Path:
    """Publish rows as pairs."""
    language = "en" if role.startswith("source") else "sw"
    folders.ingest(config, role, [str(write_tsv(out.with_suffix(".tsv"), rows))], language, out)
    return out


def relabelled(rows: Rows, turn: int | None) -> Rows:
    """The same texts with every label turned by some classes, or with none."""
    names = ["entailment", "neutral", "contradiction"]
    return [{**row, "label": "" if turn is None else names[(names.index(row["label"]) + turn) % 3]} for row in rows]


POOL = tiny_pairs(45, 3)
KINDS_OF_POOL = {"pool": POOL, "pool-turned": relabelled(POOL, 1), "pool-unlabelled": relabelled(POOL, None)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    world = World(tiny_backbone(folder / "backbone"), folder)
    config = world.config()
    ingest(config, tiny_pairs(90, 1), "source", folder / "source")
    ingest(config, tiny_pairs(30, 2), "source_dev", folder / "dev")
    ingest(config, tiny_pairs(45, 4), "test", folder / "test")
    ingest(config, tiny_pairs(60, 6), "source", folder / "more-source")
    for name, rows in KINDS_OF_POOL.items():
        ingest(config, rows, "pool", folder / name)
    folders.train_source_model(config, world.pairs("source"), world.model, world.pairs("dev"))
    return world


@pytest.fixture(scope="module")
def calibrated(world: World) -> Path:
    out = world.folder / "calibrated"
    folders.calibrate_model(world.config(evaluate={"probes": 2}), world.model, world.pairs("pool"), "sw", out)
    return out


@pytest.fixture(scope="module")
def adapted(world: World, calibrated: Path) -> Path:
    out = world.folder / "adapted"
    folders.self_train_model(world.config(), calibrated, world.pairs("pool"), "sw", out)
    return out


def history(model: Path) -> dict[str, Any]:
    return json.loads((model / "history.json").read_text())


def digest(folder: Path) -> str:
    return verify(folder).digest


def test_the_source_model_tells_what_it_was_made_from_and_how_good_it_is(world: World) -> None:
    manifest = verify(world.model, "model")
    assert manifest.parents == {"pairs": digest(world.pairs("source"))}
    assert manifest.config == world.config().to_dict()
    assert (manifest.meta["language"], manifest.meta["pairs"], manifest.meta["dev_pairs"]) == ("en", 90, 30)
    assert manifest.meta["dev_accuracy"] > 0.5
    losses = history(world.model)["losses"]
    assert sum(losses[-4:]) < sum(losses[:4])
    assert len(load_model(world.model).seen["source"]) == 90


def test_nothing_but_the_results_lies_around(world: World, calibrated: Path, adapted: Path) -> None:
    assert calibrated.is_dir()
    assert adapted.is_dir()
    assert not [path.name for path in world.folder.iterdir() if "checkpoint" in path.name or path.name.startswith(".")]


def test_development_pairs_may_not_be_among_the_source_pairs(world: World, tmp_path: Path) -> None:
    dev = ingest(world.config(), [*tiny_pairs(30, 2), tiny_pairs(90, 1)[7]], "source_dev", tmp_path / "dev")
    with pytest.raises(DataError, match="1 of 31 pairs of the development data also stand in the source data"):
        folders.train_source_model(world.config(), world.pairs("source"), tmp_path / "out", dev)
    assert not (tmp_path / "out").exists()


def test_source_pairs_need_labels(world: World, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="45 of 45 pairs have no label"):
        folders.train_source_model(world.config(), world.pairs("pool-unlabelled"), tmp_path / "out")
    with pytest.raises(DataError, match="no label"):
        folders.calibrate_model(
            world.config(), world.model, world.pairs("pool"), "sw", tmp_path / "out", world.pairs("pool-unlabelled")
        )


def test_an_adapted_model_tells_its_parents(world: World, calibrated: Path, adapted: Path) -> None:
    pool = digest(world.pairs("pool"))
    source = fingerprint(folders.source_pairs(world.model, None, world.config()))
    assert verify(calibrated, "model").parents == {"model": digest(world.model), "pool": pool, "source": source}
    assert verify(adapted, "model").parents == {"model": digest(calibrated), "pool": pool, "source": source}
    assert verify(calibrated).meta == {"language": "sw", "languages": ["sw"], "stage": "calibrate"}
    assert verify(adapted).meta == {"language": "sw", "languages": ["sw"], "stage": "selftrain"}
    assert set(history(calibrated)) == {"calibrate"}
    assert set(history(adapted)) == {"calibrate", "selftrain"}
    assert history(adapted)["calibrate"] == history(calibrated)["calibrate"]


def test_each_stage_changed_the_model_and_none_the_frozen_table(world: World, calibrated: Path, adapted: Path) -> None:
    models = [world.model, calibrated, adapted]
    assert len({(model / WEIGHTS).read_bytes() for model in models}) == 3
    assert len({(model / TABLE).stat().st_ino for model in models}) == 1


def test_the_history_of_self_training_counts_what_was_selected(adapted: Path) -> None:
    done = history(adapted)["selftrain"]
    assert done["back_translation"] is False
    assert 1 <= len(done["rounds"]) <= 2
    for told in done["rounds"]:
        assert 0 < sum(told["selected"]) <= 45
        assert all(share is None or 0 <= share <= 1 for share in told["precision"])
        assert all(0.4 - 1e-6 <= bar <= 0.6 + 1e-6 for bar in told["bars"][0])


def test_accuracy_along_training_is_measured_from_the_start(world: World, calibrated: Path) -> None:
    trace = history(calibrated)["calibrate"]["trace"]
    assert trace[0][0] == 0
    assert [step for step, _ in trace] == sorted({step for step, _ in trace})
    logits = torch.tensor(folders.predict_pairs(world.model, [(row["premise"], row["hypothesis"]) for row in POOL]))
    truth = torch.tensor(read_pairs(world.pairs("pool"))["label"])
    assert trace[0][1] == pytest.approx((logits.argmax(1) == truth).float().mean().item())


@pytest.mark.parametrize("stage", STAGES)
def test_no_label_of_the_pool_is_read(world: World, tmp_path: Path, stage: Callable[..., None]) -> None:
    models = {}
    for name in KINDS_OF_POOL:
        stage(world.config(evaluate={"probes": 2}), world.model, world.pairs(name), "sw", tmp_path / name)
        models[name] = (tmp_path / name / WEIGHTS).read_bytes()
    assert len({digest(world.pairs(name)) for name in KINDS_OF_POOL}) == 3
    assert len(set(models.values())) == 1


def test_without_labels_the_history_claims_no_precision(world: World, tmp_path: Path) -> None:
    config = world.config(evaluate={"probes": 2})
    folders.calibrate_model(config, world.model, world.pairs("pool-unlabelled"), "sw", tmp_path / "c")
    folders.self_train_model(config, tmp_path / "c", world.pairs("pool-unlabelled"), "sw", tmp_path / "a")
    assert history(tmp_path / "a")["calibrate"]["trace"] == []
    assert {told["precision"] for told in history(tmp_path / "a")["selftrain"]["rounds"]} == {None}


def test_the_same_inputs_make_the_same_digest(world: World, calibrated: Path, adapted: Path, tmp_path: Path) -> None:
    folders.calibrate_model(world.config(evaluate={"probes": 2}), world.model, world.pairs("pool"), "sw", tmp_path / "c")
    folders.self_train_model(world.config(), tmp_path / "c", world.pairs("pool"), "sw", tmp_path / "a")
    assert (digest(tmp_path / "c"), digest(tmp_path / "a")) == (digest(calibrated), digest(adapted))


def test_pairs_carried_by_the_model_train_along(world: World, tmp_path: Path) -> None:
    carried = folders.source_pairs(world.model, None, world.config())
    assert carried.to_list() == read_pairs(world.pairs("source")).to_list()
    # they are what the stage uses, whatever data.source says, and go on with the model
    config = world.config(data={"source": [str(tmp_path / "nothing.tsv")]})
    folders.calibrate_model(config, world.model, world.pairs("pool"), "sw", tmp_path / "carried")
    folders.calibrate_model(config, world.model, world.pairs("pool"), "sw", tmp_path / "given", world.pairs("source"))
    folders.calibrate_model(config, world.model, world.pairs("pool"), "sw", tmp_path / "other", world.pairs("more-source"))
    weights = {name: (tmp_path / name / WEIGHTS).read_bytes() for name in ("carried", "given", "other")}
    assert weights["carried"] == weights["given"] != weights["other"]
    assert folders.source_pairs(tmp_path / "carried", None, config).to_list() == carried.to_list()


def test_pairs_that_are_given_come_before_those_carried(world: World) -> None:
    given = folders.source_pairs(world.model, world.pairs("more-source"), world.config())
    assert given.to_list() == read_pairs(world.pairs("more-source")).to_list()


def test_a_model_that_carries_none_takes_the_configuration_s(world: World, tmp_path: Path) -> None:
    config = world.config(data={"source": [str(world.folder / "more-source.tsv")]})
    pairs = folders.source_pairs(tmp_path, None, config)
    assert pairs["premise"][:] == read_pairs(world.pairs("more-source"))["premise"][:]


def test_keep_pairs_is_a_limit(world: World, tmp_path: Path) -> None:
    config = world.config(source={"keep_pairs": 10, "epochs": 1})
    folders.train_source_model(config, world.pairs("source"), tmp_path / "m")
    carried = folders.source_pairs(tmp_path / "m", None, config)
    assert len(carried) == 10
    assert set(carried["premise"]) <= set(read_pairs(world.pairs("source"))["premise"])
    # what is evaluated is checked against all of them, not only those carried
    assert len(load_model(tmp_path / "m").seen["source"]) == 90


def test_a_model_that_keeps_no_pairs_takes_the_configuration_s(world: World, tmp_path: Path) -> None:
    config = world.config(source={"keep_pairs": 0, "epochs": 1}, data={"source": [str(world.folder / "more-source.tsv")]})
    folders.train_source_model(config, world.pairs("source"), tmp_path / "m")
    assert len(folders.source_pairs(tmp_path / "m", None, config)) == 60


def evaluation(world: World, model: Path, pairs: Path, out: Path, before: Path | None = None) -> dict[str, Any]:
    return folders.evaluate_model(world.config(), model, pairs, "sw", out, before)


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


def test_predictions_of_texts_are_those_of_the_evaluation(world: World, tmp_path: Path) -> None:
    evaluation(world, world.model, world.pairs("test"), tmp_path / "e")
    kept = load_file(tmp_path / "e" / "predictions.safetensors")
    test = read_pairs(world.pairs("test"))
    found = folders.predict_pairs(world.model, list(zip(test["premise"], test["hypothesis"], strict=True)))
    torch.testing.assert_close(torch.tensor(found), kept["logits"].softmax(1), atol=1e-5, rtol=0)


def train_source(world: World, config: Config, out: Path, sink: Any) -> None:
    folders.train_source_model(config, world.pairs("source"), out, world.pairs("dev"), sink=sink)


def train_calibrate(world: World, config: Config, out: Path, sink: Any) -> None:
    folders.calibrate_model(config, world.model, world.pairs("pool"), "sw", out, sink=sink)


def train_self(world: World, config: Config, out: Path, sink: Any) -> None:
    folders.self_train_model(config, world.model, world.pairs("pool"), "sw", out, sink=sink)


def train_self_learning(world: World, config: Config, out: Path, sink: Any) -> None:
    folders.self_learn_model(config, world.model, world.pairs("pool"), "sw", out, sink=sink)


TRAININGS = [train_source, train_calibrate, train_self, train_self_learning]


@pytest.mark.parametrize("train", TRAININGS)
def test_an_interrupted_stage_is_finished_with_the_digest_of_a_straight_one(
    world: World, tmp_path: Path, train: Callable[..., None]
) -> None:
    # with probes: what was measured before the interruption must not be lost either
    config = world.config(evaluate={"probes": 3}, source={"epochs": 1})
    train(world, config, tmp_path / "straight", None)
    with pytest.raises(Interrupted):
        train(world, config, tmp_path / "broken", stop_at(3))
    assert not (tmp_path / "broken").exists()
    train(world, config, tmp_path / "broken", None)
    assert digest(tmp_path / "broken") == digest(tmp_path / "straight")
    assert {path.name for path in tmp_path.iterdir()} == {"straight", "broken"}


@pytest.mark.parametrize("train", TRAININGS)
@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 14},
        {"backbone": {"max_length": 31}},
        {"source": {"lr": 1e-4}, "calibrate": {"lr": 1e-4}, "selftrain": {"lr": 1e-4}, "selflearn": {"lr": 1e-4}},
        {"compute": {"precision": "bf16"}},
    ],
    ids=["seed", "backbone", "rate", "precision"],
)
def test_a_checkpoint_of_another_configuration_is_refused(
    world: World, tmp_path: Path, train: Callable[..., None], changed: dict[str, Any]
) -> None:
    with pytest.raises(Interrupted):
        train(world, world.config(), tmp_path / "out", stop_at(3))
    with pytest.raises(ArtifactError, match=r"out\.\w+-checkpoint is the checkpoint of another run"):
        train(world, world.config(**changed), tmp_path / "out", None)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("changed", ["model", "pool", "source"])
def test_a_checkpoint_of_other_data_is_refused(
    world: World, calibrated: Path, tmp_path: Path, stage: Callable[..., None], changed: str
) -> None:
    model, pool, source = world.model, world.pairs("pool"), world.pairs("source")
    with pytest.raises(Interrupted):
        stage(world.config(), model, pool, "sw", tmp_path / "out", source, sink=stop_at(3))
    if changed == "model":
        model = calibrated
    elif changed == "pool":
        pool = world.pairs("pool-turned")
    else:
        source = world.pairs("more-source")
    with pytest.raises(ArtifactError, match="another run"):
        stage(world.config(), model, pool, "sw", tmp_path / "out", source)


def translations(path: Path, to: str) -> Path:
    """A table that sends every text of the pool to itself with a word more, and back."""
    texts = {row[name] for row in POOL for name in ("premise", "hypothesis")}
    lines = ["source_text\ttarget_text\tsource_language\ttarget_language"]
    lines += [f"{text}\tX {text}\tsw\ten" for text in sorted(texts)]
    lines += [f"X {text}\t{text} {to}\ten\tsw" for text in sorted(texts)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_back_translation_is_a_view_of_its_own(world: World, tmp_path: Path) -> None:
    table = translations(tmp_path / "t.tsv", "again")
    only = {"masking": None, "mixup": None, "back_translation": {"backend": f"tsv:{table}"}}
    folders.self_train_model(world.config(selftrain=only), world.model, world.pairs("pool"), "sw", tmp_path / "translated")
    assert history(tmp_path / "translated")["selftrain"]["back_translation"] is True
    translations(table, "river")
    folders.self_train_model(world.config(selftrain=only), world.model, world.pairs("pool"), "sw", tmp_path / "other")
    assert (tmp_path / "translated" / WEIGHTS).read_bytes() != (tmp_path / "other" / WEIGHTS).read_bytes()


def test_a_checkpoint_of_other_translations_is_refused(world: World, tmp_path: Path) -> None:
    table = translations(tmp_path / "t.tsv", "again")
    config = world.config(selftrain={"back_translation": {"backend": f"tsv:{table}"}})
    with pytest.raises(Interrupted):
        folders.self_train_model(config, world.model, world.pairs("pool"), "sw", tmp_path / "out", sink=stop_at(3))
    translations(table, "river")
    with pytest.raises(ArtifactError, match="another run"):
        folders.self_train_model(config, world.model, world.pairs("pool"), "sw", tmp_path / "out")


def test_a_language_is_not_translated_through_itself(world: World, tmp_path: Path) -> None:
    settings = {"back_translation": {"backend": "tsv:none.tsv", "pivots": {"sw": "sw"}}}
    with pytest.raises(ConfigError, match="sends sw through itself"):
        folders.self_train_model(world.config(selftrain=settings), world.model, world.pairs("pool"), "sw", tmp_path / "out")


def test_each_language_of_a_pool_is_translated_in_its_own_place(world: World, tmp_path: Path) -> None:
    mixed = [language for _ in range(3) for language in ("ur", "sw", "sw")]
    texts = [f"text {number}" for number in range(9)]
    columns = {"premise": texts, "hypothesis": texts, "label": [None] * 9, "language": mixed, "genre": [""] * 9, "pair_id": texts}
    lines = ["source_text\ttarget_text\tsource_language\ttarget_language"]
    for text, language in zip(texts, mixed, strict=True):
        pivot = {"sw": "en", "ur": "hi"}[language]
        lines += [f"{text}\t{text} {pivot}\t{language}\t{pivot}", f"{text} {pivot}\t{language} {text}\t{pivot}\t{language}"]
    (tmp_path / "t.tsv").write_text("\n".join(lines) + "\n")
    settings = {"backend": f"tsv:{tmp_path / 't.tsv'}", "pivots": {"ur": "hi"}}
    config = world.config(selftrain={"back_translation": settings})

    view = folders.pairs.translated_view(config, Dataset(pa.table(columns, schema=FEATURES.arrow_schema)))

    assert view is not None
    assert view["premise"][:] == [f"{language} {text}" for text, language in zip(texts, mixed, strict=True)]
    assert view["pair_id"][:] == texts


def test_pairs_of_a_language_without_a_way_keep_their_texts_beside_those_that_have_one(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Partial:
        name, version = "partial", "1"

        def translate(self, texts: list[str], source: str, target: str) -> list[str]:
            if "el" in (source, target):
                raise UnsupportedDirection(f"no {source} to {target}")
            return [f"{text} in {target}" for text in texts]

    monkeypatch.setattr(folders.pairs, "open_backend", lambda _spec: Partial())
    texts = [f"text {number}" for number in range(4)]
    columns = {"premise": texts, "hypothesis": texts, "label": [None] * 4, "genre": [""] * 4, "pair_id": texts}
    config = world.config(selftrain={"back_translation": {"backend": "seq2seq:x"}})

    def view(*languages: str) -> Dataset | None:
        pool = Dataset(pa.table({**columns, "language": list(languages)}).select(list(FEATURES)).cast(FEATURES.arrow_schema))
        return folders.pairs.translated_view(config, pool)

    found = view("el", "de", "el", "de")
    assert found is not None
    assert found["premise"][:] == ["text 0", "text 1 in en in de", "text 2", "text 3 in en in de"]
    assert "el trains without the back-translation view: no el" in caplog.text
    assert view("el", "el", "el", "el") is None


def test_genres_filter_the_source_alone(world: World, tmp_path: Path) -> None:
    config = world.config(data={"genres": ["travel"]})
    rows = [{**row, "genre": "travel" if index % 2 else "slate"} for index, row in enumerate(tiny_pairs(20, 9))]
    assert len(read_pairs(ingest(config, rows, "source", tmp_path / "source"))) == 10
    assert len(read_pairs(ingest(config, rows, "pool", tmp_path / "pool"))) == 20


def test_a_published_model_can_be_the_start(world: World, tmp_path: Path) -> None:
    given = str(world.model)
    folders.provide_source_model(world.config(), given, world.pairs("source"), world.pairs("dev"), tmp_path / "m")
    assert verify(tmp_path / "m", "model") == verify(world.model, "model")
    assert folders.resolve_source_model(given, tmp_path / "unused") == world.model
    with pytest.raises(ArtifactError, match="expected 'model'"):
        folders.resolve_source_model(str(world.pairs("source")), tmp_path / "unused")


def test_what_was_made_from_the_same_before_is_kept(world: World, tmp_path: Path) -> None:
    def calibrate(**changed: Any) -> int:
        folders.calibrate_model(world.config(**changed), world.model, world.pairs("pool"), "sw", tmp_path / "out")
        return (tmp_path / "out" / WEIGHTS).stat().st_ino

    first = calibrate()
    assert calibrate() == first
    assert calibrate(seed=14) != first


def test_kept_pairs_are_the_records_of_the_source(world: World) -> None:
    assert pq.read_table(world.model / "source_pairs.parquet").schema.equals(
        read_pairs(world.pairs("source")).with_format("arrow")[:].schema
    )


# `conlst adapt`, killed as hard as can be after so many checkpoints, or when a folder is complete but for its name
_KILLED = """
import os, signal, sys
from conlst import training
from conlst.contract import artifacts
from conlst.cli import main

saves, publishes, arguments = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
save, swap = training.Trainer.save, artifacts._swap

def counted(*given, **more):
    global saves
    save(*given, **more)
    saves -= 1
    if saves == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def named(staging, folder):
    if folder.name == publishes:
        os.kill(os.getpid(), signal.SIGKILL)
    swap(staging, folder)

training.Trainer.save, artifacts._swap = counted, named
sys.exit(main(arguments))
"""


@pytest.mark.slow
def test_adapt_killed_again_and_again_ends_with_the_digest_of_a_straight_run(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = tmp_path / "tiny.yaml"
    profile.write_text(json.dumps(world.config().to_dict()))  # JSON is YAML
    pool = write_tsv(tmp_path / "pool.tsv", POOL)

    def arguments(out: Path) -> list[str]:
        return [
            *("adapt", "--config", str(profile), "--source-model", str(world.model)),
            *("--pool", str(pool), "--language", "sw", "--out", str(out)),
        ]

    assert main(arguments(tmp_path / "straight")) == 0
    straight = json.loads(capsys.readouterr().out.splitlines()[-1])

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    broken = arguments(tmp_path / "broken")
    calibration = tmp_path / "broken.work" / "calibrate.calibrate-checkpoint"
    self_training = tmp_path / "broken.selftrain-checkpoint"
    kills = (("2", "", calibration), ("0", "calibrate", calibration), ("9", "", self_training), ("0", "broken", self_training))
    for saves, publishes, left in kills:
        command = [sys.executable, "-c", _KILLED, saves, publishes, *broken]
        killed = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
        assert not (tmp_path / "broken").exists()
        assert left.is_dir()
    with pytest.raises(ConlstError):
        read_manifest(tmp_path / "broken")

    assert main(broken) == 0
    resumed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert resumed["digest"] == straight["digest"]
    assert digest(tmp_path / "broken.work" / "calibrate") == digest(tmp_path / "straight.work" / "calibrate")
    assert not calibration.exists()
    assert not self_training.exists()


def test_english_is_supervised_and_another_language_than_the_model_s_is_zero_shot(
    world: World, adapted: Path, tmp_path: Path
) -> None:
    pairs = ingest(world.config(), tiny_pairs(30, 41), "test", tmp_path / "pairs")
    for language, protocol in (("en", "supervised"), ("sw", "inductive"), ("fr", "zero-shot")):
        result = folders.evaluate_model(world.config(), adapted, pairs, language, tmp_path / language)
        assert result["protocol"] == protocol


def translations_through(file: Path, rows: Rows, there: str) -> str:
    """A TSV backend that goes to ``there`` and back for every text of ``rows``."""
    lines = ["source_text\ttarget_text\tsource_language\ttarget_language"]
    for text in {row[side] for row in rows for side in ("premise", "hypothesis")}:
        lines += [f"{text}\t{there} {text}\tsw\ten", f"{there} {text}\t{there} {text}\ten\tsw"]
    file.write_text("\n".join(lines) + "\n")
    return f"tsv:{file}"


def test_other_translations_make_another_model(world: World, calibrated: Path, tmp_path: Path) -> None:
    def train(there: str) -> str:
        backend = translations_through(tmp_path / f"{there}.tsv", POOL, there)
        config = world.config(selftrain={"back_translation": {"backend": backend}})
        folders.self_train_model(config, calibrated, world.pairs("pool"), "sw", tmp_path / "out")
        assert history(tmp_path / "out")["selftrain"]["back_translation"]
        return digest(tmp_path / "out")

    assert train("cat") != train("dog")


def test_a_language_that_the_backend_lacks_trains_without_that_view(
    world: World, calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Lacking:
        name, version = "lacking", "1"

        def translate(self, texts: list[str], source: str, target: str) -> list[str]:
            raise UnsupportedDirection(f"no {source} to {target} for {len(texts)} texts")

    monkeypatch.setattr(folders.pairs, "open_backend", lambda _spec: Lacking())
    config = world.config(selftrain={"back_translation": {"backend": "seq2seq:x"}})
    folders.self_train_model(config, calibrated, world.pairs("pool"), "sw", tmp_path / "out")
    assert not history(tmp_path / "out")["selftrain"]["back_translation"]
    assert "trains without the back-translation view: no sw" in caplog.text


def synonyms(path: Path, **words: str) -> str:
    """A table that knows these words."""
    path.write_text("".join(f"{word}\t{neighbours}\n" for word, neighbours in words.items()))
    return str(path)


def trained(world: World, out: Path, auxiliary: dict[str, Path] | None = None, **source: Any) -> dict[str, Any]:
    """The history of a source model of one epoch with changed settings."""
    config = world.config(source={"epochs": 1, **source})
    folders.train_source_model(config, world.pairs("source"), out, world.pairs("dev"), auxiliary=auxiliary)
    return history(out)


def test_synonym_copies_are_trained_on_beside_the_pairs_and_not_carried(world: World, tmp_path: Path) -> None:
    plain = trained(world, tmp_path / "plain")
    table = synonyms(tmp_path / "a.tsv", river="house", house="river", she="he", never="always")
    done = trained(world, tmp_path / "da", synonyms={"table": table, "copies": 2})
    assert len(done["losses"]) > 2 * len(plain["losses"])
    other = trained(world, tmp_path / "da2", synonyms={"table": synonyms(tmp_path / "b.tsv", she="woman"), "copies": 2})
    assert other["losses"] != done["losses"]
    assert folders.source_pairs(tmp_path / "da", None, world.config()).to_list() == read_pairs(world.pairs("source")).to_list()
    assert verify(tmp_path / "da").meta["pairs"] == 90


def test_a_checkpoint_of_other_synonyms_is_refused(world: World, tmp_path: Path) -> None:
    config = world.config(source={"synonyms": {"table": synonyms(tmp_path / "a.tsv", she="he", river="house"), "copies": 1}})
    with pytest.raises(Interrupted):
        train_source(world, config, tmp_path / "out", stop_at(3))
    synonyms(tmp_path / "a.tsv", she="woman", river="house")
    with pytest.raises(ArtifactError, match="another run"):
        train_source(world, config, tmp_path / "out", None)


def test_ept_apt_reads_a_copy_of_each_pair(world: World, tmp_path: Path) -> None:
    plain = trained(world, tmp_path / "plain")
    losses = {}
    for name, words in (("one", {"she": "he", "river": "house"}), ("two", {"she": "woman"})):
        ept_apt = {"synonyms": synonyms(tmp_path / f"{name}.tsv", **words), "push": 0.0, "layer": 1}
        losses[name] = trained(world, tmp_path / name, ept_apt=ept_apt)["losses"]
    # as many steps, on both sides at once, with more in the loss
    assert len(losses["one"]) == len(losses["two"]) == len(plain["losses"])
    assert losses["one"] != losses["two"]
    assert losses["one"][0] > plain["losses"][0]


def test_masking_changes_what_stage_0_learns(world: World, tmp_path: Path) -> None:
    losses = [trained(world, tmp_path / str(masking), masking=masking)["losses"] for masking in (None, {}, {"share": 0.5})]
    assert len({len(each) for each in losses}) == 1
    assert losses[0] != losses[1] != losses[2]


META: dict[str, Any] = {"meta_learning": {"languages": ["es"], "steps": 3, "outer_lr": 1e-3}}


def test_meta_learning_comes_after_and_remembers_the_auxiliary_pairs(world: World, tmp_path: Path) -> None:
    spanish = ingest(world.config(), tiny_pairs(30, 7), "test", tmp_path / "es")
    done = trained(world, tmp_path / "m", {"es": spanish}, **META)
    plain = trained(world, tmp_path / "plain")
    assert done["losses"] == plain["losses"]
    assert len(done["meta_losses"]) == 3
    assert "meta_losses" not in plain
    assert (tmp_path / "m" / WEIGHTS).read_bytes() != (tmp_path / "plain" / WEIGHTS).read_bytes()
    assert verify(tmp_path / "m").parents == {"pairs": digest(world.pairs("source")), "auxiliary/es": digest(spanish)}
    assert set(load_model(tmp_path / "m").seen["source"].tolist()) >= set(hashes(spanish))
    assert len(load_model(tmp_path / "m").seen["source"]) == 120
    with pytest.raises(DataError, match=r"30 of 30 pairs .* were trained on with labels"):
        evaluation(world, tmp_path / "m", spanish, tmp_path / "e")
    # what trains along later is the English source
    assert len(folders.source_pairs(tmp_path / "m", None, world.config())) == 90


def hashes(pairs: Path) -> list[int]:
    return folders.pairs.hashes_of(read_pairs(pairs)).tolist()


@pytest.mark.parametrize("count", [2, 10])
def test_interrupted_meta_learning_is_finished_with_the_digest_of_a_straight_one(
    world: World, tmp_path: Path, count: int
) -> None:
    spanish = ingest(world.config(), tiny_pairs(30, 7), "test", tmp_path / "es")
    config = world.config(source={"epochs": 1, "batch_tokens": 256, **META})

    def train(out: str, sink: Any = None) -> None:
        folders.train_source_model(config, world.pairs("source"), tmp_path / out, None, sink=sink, auxiliary={"es": spanish})

    train("straight")
    steps = len(history(tmp_path / "straight")["losses"])
    with pytest.raises(Interrupted):
        train("broken", stop_at(min(count, steps + 2)))
    train("broken")
    assert digest(tmp_path / "broken") == digest(tmp_path / "straight")
    assert not list(tmp_path.glob("*checkpoint*"))


@pytest.mark.parametrize(
    ("source", "auxiliary", "message"),
    [
        (META, [], "has the languages es, and there are auxiliary pairs of none"),
        ({}, ["es"], "has the languages none, and there are auxiliary pairs of es"),
        (META, ["es", "ur"], "has the languages es, and there are auxiliary pairs of es, ur"),
    ],
)
def test_auxiliary_pairs_that_are_missing_or_have_no_use_are_told_before_training(
    world: World, tmp_path: Path, source: dict[str, Any], auxiliary: list[str], message: str
) -> None:
    config, folder = world.config(source=source), world.pairs("more-source")
    with pytest.raises(ConfigError, match=message):
        folders.train_source_model(
            config, world.pairs("source"), tmp_path / "out", None, sink=stop_at(1), auxiliary=dict.fromkeys(auxiliary, folder)
        )


def test_auxiliary_pairs_need_labels(world: World, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the auxiliary pairs of es: 45 of 45 pairs have no label"):
        trained(world, tmp_path / "out", {"es": world.pairs("pool-unlabelled")}, **META)


def test_a_limit_is_a_draw_by_the_seed(world: World, tmp_path: Path) -> None:
    rows = tiny_pairs(40, 9)
    file = str(write_tsv(tmp_path / "rows.tsv", rows))

    def drawn(name: str, limit: int | None, **changes: Any) -> list[str]:
        report = folders.ingest(world.config(**changes), "pool", [file], "sw", tmp_path / name, limit)
        kept = read_pairs(tmp_path / name)["pair_id"][:]
        assert report == json.loads((tmp_path / name / "report.json").read_text())
        assert report["pairs"] == 40
        assert report.get("drawn", 40) == len(kept)
        assert verify(tmp_path / name).meta["pairs"] == len(kept)
        return list(kept)

    ids = [row["pair_id"] for row in rows]
    some = drawn("some", 12)
    assert len(set(some)) == 12
    assert [one for one in ids if one in some] == some != ids[:12]
    assert drawn("again", 12) == some
    assert drawn("other", 12, seed=14) != some
    assert drawn("all", None) == drawn("more", 41) == drawn("exact", 40) == ids


def test_teachers_give_the_first_pseudo_labels(world: World, tmp_path: Path) -> None:
    other = tmp_path / "other-seed"
    folders.train_source_model(world.config(seed=14), world.pairs("source"), other)
    rounds = {}
    for name, teachers in (("alone", []), ("taught", [other]), ("by-itself", [world.model])):
        out, config = tmp_path / name, world.config(selftrain={"max_iterations": 1, "rule": "fixed", "threshold": 0.45})
        folders.self_train_model(config, world.model, world.pairs("pool"), "sw", out, teachers=teachers)
        rounds[name] = history(out)["selftrain"]["rounds"]
    parents = verify(tmp_path / "taught").parents
    assert parents == verify(tmp_path / "alone").parents | {"teacher0": digest(other)}
    texts = [(row["premise"], row["hypothesis"]) for row in POOL]
    own, taught = (torch.tensor(folders.predict_pairs(model, texts)) for model in (world.model, other))
    for name, q in (("alone", own), ("taught", (own + taught) / 2), ("by-itself", own)):
        sure = q.max(1).values >= 0.45
        assert rounds[name][0]["selected"] == torch.bincount(q.argmax(1)[sure], minlength=3).tolist(), name
    assert rounds["alone"] != rounds["taught"]


def test_other_teachers_make_another_model_and_the_same_ones_none(world: World, adapted: Path, tmp_path: Path) -> None:
    def train(*teachers: Path) -> int:
        folders.self_train_model(world.config(), world.model, world.pairs("pool"), "sw", tmp_path / "out", teachers=teachers)
        return (tmp_path / "out" / WEIGHTS).stat().st_ino

    first = train(adapted)
    assert train(adapted) == first
    assert train() != first


def test_a_rule_without_bars_tells_the_other_metrics(world: World, tmp_path: Path) -> None:
    for rule in ("softmatch", "flexmatch"):
        told: list[dict[str, float]] = []
        config = world.config(selftrain={"rule": rule, "max_iterations": 1})
        folders.self_train_model(
            config,
            world.model,
            world.pairs("pool"),
            "sw",
            tmp_path / rule,
            sink=lambda metrics, _, told=told: told.append(metrics),
        )
        names = {name for metrics in told for name in metrics}
        assert {"selftrain/loss", "selftrain/changed", "selftrain/selected/neutral", "selftrain/precision/neutral"} <= names
        assert ("selftrain/bar/neutral" in names) == (rule == "flexmatch")
        (done,) = history(tmp_path / rule)["selftrain"]["rounds"]
        assert [len(bars) for bars in done["bars"]] == [3 if rule == "flexmatch" else 0]


@pytest.mark.parametrize("uncertainty", ["none", "evi"])
def test_self_learning_publishes_what_it_took(world: World, calibrated: Path, tmp_path: Path, uncertainty: str) -> None:
    out = tmp_path / "out"
    config = world.config(selflearn={"uncertainty": uncertainty})
    folders.self_learn_model(config, calibrated, world.pairs("pool"), "sw", out)
    source = fingerprint(folders.source_pairs(world.model, None, world.config()))
    assert verify(out, "model").parents == {"model": digest(calibrated), "pool": digest(world.pairs("pool")), "source": source}
    assert verify(out).meta == {"language": "sw", "languages": ["sw"], "stage": "selflearn"}
    assert set(history(out)) == {"calibrate", "selflearn"}
    rounds = history(out)["selflearn"]["rounds"]
    warm_ups = [{"selected": [0, 0, 0], "precision": [None, None, None]}] if uncertainty == "evi" else []
    assert [{"selected": told["selected"], "precision": told["precision"]} for told in rounds[: len(warm_ups)]] == warm_ups
    assert len(rounds) == len(warm_ups) + 2
    for told in rounds[len(warm_ups) :]:
        assert 0 < sum(told["selected"]) <= 27  # a fifth of the pool for each of three classes
        assert len(told["losses"]) > 0
    assert evaluation(world, out, world.pairs("test"), tmp_path / "e")["protocol"] == "inductive"


def test_self_learning_is_kept_when_it_was_made_from_the_same(world: World, tmp_path: Path) -> None:
    def train(**changed: Any) -> int:
        folders.self_learn_model(world.config(**changed), world.model, world.pairs("pool"), "sw", tmp_path / "out")
        return (tmp_path / "out" / WEIGHTS).stat().st_ino

    first = train()
    assert train() == first
    assert train(selflearn={"rounds": 1}) != first


def test_a_pool_is_one_folder_whether_of_one_language_or_of_several(world: World, tmp_path: Path) -> None:
    files = {code: [str(write_tsv(tmp_path / f"{code}.tsv", tiny_pairs(6, seed)))] for seed, code in enumerate(("ur", "sw"))}
    assert folders.ingest_pool(world.config(), {"sw": files["sw"] + files["ur"]}, tmp_path / "alone") == "sw"
    assert set(read_pairs(tmp_path / "alone")["language"]) == {"sw"}
    assert folders.ingest_pool(world.config(), files, tmp_path / "both") == SEVERAL
    assert read_pairs(tmp_path / "both")["language"][:] == ["ur"] * 6 + ["sw"] * 6
    assert [verify(tmp_path / f"both-{code}", "pairs").meta["language"] for code in files] == ["ur", "sw"]


def test_a_pool_that_cannot_be_used_is_named_by_its_language(world: World, tmp_path: Path) -> None:
    (tmp_path / "ur.tsv").write_text("premise\thypothesis\n\t\n")
    files = {"sw": [str(write_tsv(tmp_path / "sw.tsv", tiny_pairs(6, 1)))], "ur": [str(tmp_path / "ur.tsv")]}
    with pytest.raises(DataError, match="the pool of ur: 1 of 1 rows are bad"):
        folders.ingest_pool(world.config(), files, tmp_path / "both")
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_a_model_of_several_languages_names_the_protocol_of_each(
    world: World, tmp_path: Path, stage: Callable[..., None]
) -> None:
    urdu = tmp_path / "ur"
    folders.ingest(world.config(), "pool", [str(write_tsv(tmp_path / "ur.tsv", tiny_pairs(30, 8)))], "ur", urdu)
    merge_pairs([world.pairs("pool"), urdu], tmp_path / "both")
    stage(world.config(), world.model, tmp_path / "both", SEVERAL, tmp_path / "m")
    meta = verify(tmp_path / "m", "model").meta
    assert (meta["language"], meta["languages"]) == ("mul", ["sw", "ur"])
    expected = {("test", "ur"): "inductive", ("test", "fr"): "zero-shot", ("pool", "sw"): "transductive"}
    for (pairs, language), protocol in expected.items():
        out = tmp_path / f"{pairs}-{language}"
        found = folders.evaluate_model(world.config(), tmp_path / "m", world.pairs(pairs), language, out)
        assert found["protocol"] == protocol, (pairs, language)


def test_the_bars_of_several_languages_are_told_apart(world: World, tmp_path: Path) -> None:
    urdu = tmp_path / "ur"
    folders.ingest(world.config(), "pool", [str(write_tsv(tmp_path / "ur.tsv", tiny_pairs(30, 8)))], "ur", urdu)
    merge_pairs([world.pairs("pool"), urdu], tmp_path / "both")
    told: list[dict[str, float]] = []
    config = world.config(selftrain={"max_iterations": 1})
    both, out = tmp_path / "both", tmp_path / "m"
    folders.self_train_model(config, world.model, both, SEVERAL, out, sink=lambda metrics, _: told.append(metrics))
    (done,) = history(out)["selftrain"]["rounds"]
    assert [told[-1][f"selftrain/bar/{language}/contradiction"] for language in ("sw", "ur")] == [
        bars[2] for bars in done["bars"]
    ]


def test_a_source_model_is_trained_further(world: World, tmp_path: Path) -> None:
    more = tmp_path / "more"
    folders.ingest(world.config(), "source", [str(write_tsv(tmp_path / "more.tsv", tiny_pairs(24, 77)))], "en", more)
    start, out = load_model(world.model), tmp_path / "m"
    folders.train_source_model(world.config(source={"epochs": 1, "lr": 1e-12}), more, out, start=world.model)
    further = load_model(out)
    for name, weight in start.classifier.named_parameters():
        torch.testing.assert_close(dict(further.classifier.named_parameters())[name], weight, atol=1e-6, rtol=1e-4)
    assert read_manifest(out).parents == {"pairs": digest(more), "start": digest(world.model)}
    known, seen = (set(model.seen["source"].tolist()) for model in (start, further))
    assert known < seen


def test_a_source_model_of_another_backbone_is_not_trained_further(world: World, tmp_path: Path) -> None:
    config = world.config(source={"epochs": 1})
    other = config.model_copy(update={"backbone": config.backbone.model_copy(update={"pooling": "cls"})})
    with pytest.raises(ConfigError, match=r"was made with other settings of the backbone \(pooling\)"):
        folders.train_source_model(other, world.pairs("source"), tmp_path / "m", start=world.model)
    assert not (tmp_path / "m").exists()


def hops(path: Path, rows: Rows) -> str:
    """A table that goes from English to Spanish and on to French; one text has no French."""
    texts = sorted({row[side] for row in rows for side in ("premise", "hypothesis")})
    lines = ["source_text\ttarget_text\tsource_language\ttarget_language"]
    lines += [f"{text}\tes {text}\ten\tes" for text in texts]
    lines += [f"es {text}\t{'' if text == rows[4]['premise'] else f'fr {text}'}\tes\tfr" for text in texts]
    path.write_text("\n".join(lines) + "\n")
    return f"tsv:{path}"


def test_training_pairs_are_translated_through_another_language(world: World, tmp_path: Path) -> None:
    rows = tiny_pairs(12, 11)
    english = ingest(world.config(), rows, "source", tmp_path / "en")
    backend = hops(tmp_path / "t.tsv", rows)
    folders.translate_training_pairs(english, backend, ["en", "es", "fr"], tmp_path / "fr")
    french = read_pairs(tmp_path / "fr")
    kept = [row for number, row in enumerate(rows) if number != 4]
    assert [tuple(pair.values()) for pair in french.select_columns(["premise", "hypothesis"])] == [
        (f"fr {row['premise']}", f"fr {row['hypothesis']}") for row in kept
    ]
    assert french["label"][:] == [number % 3 for number in range(12) if number != 4]
    assert set(french["language"]) == {"fr"}
    manifest = verify(tmp_path / "fr", "pairs")
    assert manifest.parents == {"pairs": digest(english)}
    assert (manifest.meta["language"], manifest.meta["pairs"]) == ("fr", 11)
    report = json.loads((tmp_path / "fr" / "report.json").read_text())
    assert report["translator"].startswith("tsv ")
    # they train like others
    merge_pairs([english, tmp_path / "fr"], tmp_path / "both")
    folders.train_source_model(world.config(source={"epochs": 1}), tmp_path / "both", tmp_path / "m")
    assert verify(tmp_path / "m").meta["pairs"] == 23


def test_pairs_without_labels_are_not_translated_for_training(world: World, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="45 of 45 pairs have no label"):
        folders.translate_training_pairs(
            world.pairs("pool-unlabelled"), translations_through(tmp_path / "t.tsv", POOL, "x"), ["sw", "en"], tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()
