"""Stage 0 from folder to folder on a tiny backbone: what it learns from, what it tells, what it refuses."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from conlst.contract.artifacts import publish, read_manifest, verify
from conlst.contract.errors import ArtifactError, ConfigError, DataError
from conlst.data.pairs import merge_pairs, read_pairs
from conlst.model import starter
from conlst.model.folder import load_model
from conlst.stages import folders
from tiny import tiny_pairs, write_tsv
from world import (
    POOL,
    WEIGHTS,
    Interrupted,
    Rows,
    World,
    digest,
    evaluation,
    history,
    ingest,
    stop_at,
    train_source,
    translations_through,
)


def test_the_source_model_tells_what_it_was_made_from_and_how_good_it_is(world: World) -> None:
    manifest = verify(world.model, "model")
    assert manifest.parents == {"pairs": digest(world.pairs("source")), "dev": digest(world.pairs("dev"))}
    assert manifest.config == world.config().to_dict()
    assert (manifest.meta["language"], manifest.meta["pairs"], manifest.meta["dev_pairs"]) == ("en", 90, 30)
    assert manifest.meta["dev_accuracy"] > 0.5
    losses = history(world.model)["losses"]
    assert sum(losses[-4:]) < sum(losses[:4])
    assert len(load_model(world.model).seen["source"]) == 90


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


def test_keep_pairs_is_a_limit(world: World, tmp_path: Path) -> None:
    config = world.config(source={"keep_pairs": 10, "epochs": 1})
    folders.train_source_model(config, world.pairs("source"), tmp_path / "m")
    carried = folders.source_pairs(tmp_path / "m", None, config)
    assert len(carried) == 10
    assert set(carried["premise"]) <= set(read_pairs(world.pairs("source"))["premise"])
    # what is evaluated is checked against all of them, not only those carried
    assert len(load_model(tmp_path / "m").seen["source"]) == 90


def test_a_published_model_can_be_the_start(world: World, tmp_path: Path) -> None:
    given = str(world.model)
    folders.provide_source_model(world.config(), given, world.pairs("source"), world.pairs("dev"), tmp_path / "m")
    assert verify(tmp_path / "m", "model") == verify(world.model, "model")
    assert folders.resolve_source_model(given, tmp_path / "unused") == world.model
    with pytest.raises(ArtifactError, match="expected 'model'"):
        folders.resolve_source_model(str(world.pairs("source")), tmp_path / "unused")


def test_kept_pairs_are_the_records_of_the_source(world: World) -> None:
    assert pq.read_table(world.model / "source_pairs.parquet").schema.equals(
        read_pairs(world.pairs("source")).with_format("arrow")[:].schema
    )


def synonyms(path: Path, **words: str) -> str:
    """A table that knows these words."""
    path.write_text("".join(f"{word}\t{neighbours}\n" for word, neighbours in words.items()))
    return str(path)


def test_a_source_model_that_was_made_from_the_same_before_is_kept(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, loaded = synonyms(tmp_path / "a.tsv", she="he", river="house"), []
    load = folders.source.load_backbone
    monkeypatch.setattr(folders.source, "load_backbone", lambda *given: loaded.append(given) or load(*given))

    def is_trained(pairs: str = "source", dev: str = "dev", **changed: Any) -> bool:
        loaded.clear()
        config = world.config(source={"epochs": 1, "synonyms": {"table": table, "copies": 1}, **changed})
        folders.train_source_model(config, world.pairs(pairs), tmp_path / "m", world.pairs(dev))
        return bool(loaded)

    assert [is_trained(), is_trained()] == [True, False]
    assert [is_trained(lr=1e-4), is_trained("more-source"), is_trained(dev="test"), is_trained()] == [True] * 4
    # the same name of a table, and another word in it
    synonyms(tmp_path / "a.tsv", she="woman", river="house")
    assert [is_trained(), is_trained()] == [True, False]


def ship(world: World, folder: Path, rank: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Take the world's source model for the starter that conlst ships; returns its digest."""
    with publish(folder, kind=starter.KIND) as staging:
        starter.write_starter(load_model(world.model), world.config().backbone, rank, staging)
    monkeypatch.setattr(starter, "FOLDER", folder)
    return digest(folder)


def test_a_starter_that_was_built_is_kept_until_another_is_shipped(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = tmp_path / "built"
    made: list[tuple[int, str]] = []
    for rank in (4, 4, 2):
        shipped = ship(world, tmp_path / f"rank-{rank}", rank, monkeypatch)
        assert folders.resolve_source_model("starter", built) == built
        assert verify(built, "model").parents == {"starter": shipped}
        made.append(((built / WEIGHTS).stat().st_ino, digest(built)))
    assert made[0] == made[1]
    assert made[2][1] != made[1][1]


def test_the_starter_is_trained_further(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ship(world, tmp_path / "shipped", 4, monkeypatch)
    start = folders.resolve_source_model("starter", tmp_path / "built")
    config = world.config(source={"epochs": 1})
    folders.train_source_model(config, world.pairs("more-source"), tmp_path / "m", start=start)
    assert verify(tmp_path / "m").parents["start"] == digest(start)
    other = world.config(source={"epochs": 1}, backbone={"pooling": "cls"})
    with pytest.raises(ConfigError, match=r"was made with other settings of the backbone \(pooling\)"):
        folders.train_source_model(other, world.pairs("more-source"), tmp_path / "n", start=start)


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
    assert verify(tmp_path / "m").parents == {
        "pairs": digest(world.pairs("source")),
        "auxiliary/es": digest(spanish),
        "dev": digest(world.pairs("dev")),
    }
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


def test_meta_learning_is_refused_to_several_processes_before_any_training(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders.source, "load_backbone", lambda *_: pytest.fail("the backbone was loaded"))
    # as one of two that were started sees it
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("conlst.parallel._joined", lambda _config: nullcontext())
    with pytest.raises(ConfigError, match=r"meta-learning trains in one process; set compute\.processes to 1"):
        trained(world, tmp_path / "out", {"es": world.pairs("more-source")}, **META)


def test_auxiliary_pairs_need_labels(world: World, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the auxiliary pairs of es: 45 of 45 pairs have no label"):
        trained(world, tmp_path / "out", {"es": world.pairs("pool-unlabelled")}, **META)


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
