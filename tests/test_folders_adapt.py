"""Stages 1 and 2 and their rival from folder to folder on a tiny backbone: what they read, publish and tell."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conlst.contract.artifacts import verify
from conlst.contract.errors import ConfigError, DataError
from conlst.data.pairs import SEVERAL, fingerprint, merge_pairs, read_pairs
from conlst.stages import folders
from tiny import tiny_pairs, write_tsv
from world import KINDS_OF_POOL, POOL, STAGES, TABLE, WEIGHTS, World, digest, evaluation, history


def test_nothing_but_the_results_lies_around(world: World, calibrated: Path, adapted: Path) -> None:
    assert calibrated.is_dir()
    assert adapted.is_dir()
    assert not [path.name for path in world.folder.iterdir() if "checkpoint" in path.name or path.name.startswith(".")]


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


def test_a_model_that_keeps_no_pairs_takes_the_configuration_s(world: World, tmp_path: Path) -> None:
    config = world.config(source={"keep_pairs": 0, "epochs": 1}, data={"source": [str(world.folder / "more-source.tsv")]})
    folders.train_source_model(config, world.pairs("source"), tmp_path / "m")
    assert len(folders.source_pairs(tmp_path / "m", None, config)) == 60


def test_what_was_made_from_the_same_before_is_kept(world: World, tmp_path: Path) -> None:
    def calibrate(**changed: Any) -> int:
        folders.calibrate_model(world.config(**changed), world.model, world.pairs("pool"), "sw", tmp_path / "out")
        return (tmp_path / "out" / WEIGHTS).stat().st_ino

    first = calibrate()
    assert calibrate() == first
    assert calibrate(seed=14) != first


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


def test_what_a_teacher_was_trained_on_counts_as_seen(world: World, adapted: Path, tmp_path: Path) -> None:
    other, out = tmp_path / "other", tmp_path / "taught"
    folders.train_source_model(world.config(source={"epochs": 4}), world.pairs("more-source"), other)
    test = world.pairs("test")
    folders.calibrate_model(world.config(), world.model, test, "sw", tmp_path / "saw-the-test")
    config = world.config(selftrain={"max_iterations": 1, "rule": "fixed", "threshold": 0.4, "floor": 0.34})
    teachers = [other, tmp_path / "saw-the-test"]
    folders.self_train_model(config, world.model, world.pairs("pool"), "sw", out, teachers=teachers)
    assert evaluation(world, out, test, tmp_path / "e")["protocol"] == "transductive"
    assert evaluation(world, adapted, test, tmp_path / "f")["protocol"] == "inductive"
    with pytest.raises(DataError, match=r"60 of 60 pairs .* were trained on with labels"):
        evaluation(world, out, world.pairs("more-source"), tmp_path / "g")


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


@pytest.mark.parametrize("launched", [False, True])
def test_self_learning_is_refused_to_several_processes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launched: bool
) -> None:
    if launched:
        monkeypatch.setenv("WORLD_SIZE", "2")
    config = world.config(compute={"processes": 1 if launched else 2})
    with pytest.raises(ConfigError, match=r"self-learning trains in one process; set compute\.processes to 1"):
        folders.self_learn_model(config, world.model, world.pairs("pool"), "sw", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_self_learning_is_kept_when_it_was_made_from_the_same(world: World, tmp_path: Path) -> None:
    def train(**changed: Any) -> int:
        folders.self_learn_model(world.config(**changed), world.model, world.pairs("pool"), "sw", tmp_path / "out")
        return (tmp_path / "out" / WEIGHTS).stat().st_ino

    first = train()
    assert train() == first
    assert train(selflearn={"rounds": 1}) != first


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
