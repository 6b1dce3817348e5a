"""An experiment on a tiny backbone: which cells it leaves, what it computes again, and what an interruption leaves."""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from conlst.bench.cell import Cell, read_cells
from conlst.bench.matrix import Matrix
from conlst.bench.run import Bench, run_matrix
from conlst.contract.config import load_config
from conlst.contract.errors import ArtifactError, ConfigError, DataError
from conlst.data.pairs import read_pairs
from conlst.stages import evaluate, folders
from conlst.training import Trainer
from tiny import tiny_backbone, tiny_config, tiny_pairs, write_tsv

SYSTEMS: dict[str, Any] = {
    "zero-shot": {"describes": "as it is"},
    "conl": {"describes": "stage 1", "stages": ["calibrate"]},
    "conlst": {"describes": "the paper", "stages": ["calibrate", "selftrain"]},
    "no-mixup": {"describes": "a part less", "stages": ["calibrate", "selftrain"], "settings": {"selftrain.mixup": None}},
    "selflearn": {"describes": "a rival", "stages": ["selflearn"], "settings": {"selflearn.rounds": 1, "selflearn.epochs": 1}},
    "joint": {"describes": "one for all", "stages": ["calibrate", "selftrain"], "joint": True},
    "selftrain": {"describes": "stage 2", "stages": ["selftrain"]},
    "teachers": {"describes": "taught by two", "stages": ["selftrain"], "teachers": [14]},
}
BOTH = ["sw", "fr"]
RUNS: list[dict[str, Any]] = [
    {"systems": ["zero-shot"], "languages": ["en"]},
    {"systems": ["conl", "zero-shot", "conlst", "joint", "no-mixup", "selflearn", "selftrain", "teachers"], "languages": BOTH},
    {"systems": ["conlst"], "languages": ["sw"], "pool": ["dev", "test"]},
]
STAGES = ("train_source_model", "calibrate_model", "self_train_model", "self_learn_model", "evaluate_model")


Full = tuple["Place", dict[str, int], Counter[str]]


class Killed(BaseException):
    """Stands for a kill."""


@dataclass(frozen=True)
class Place:
    """A user's folder: data, and where an experiment works and writes."""

    world: Path
    folder: Path

    @property
    def data(self) -> Path:
        return self.world / "data"

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def matrix(self, **changes: Any) -> Matrix:
        raw = {
            "config": str(self.world / "tiny.yaml"),
            "source": ["{data}/en_*.tsv"],
            "source_dev": "{data}/en-dev.tsv",
            "splits": {name: {"default": f"{{data}}/{name}.{{language}}.tsv"} for name in ("dev", "test")},
            "stage0": {"plain": {"describes": "fine-tuning"}},
            "systems": SYSTEMS,
            "runs": RUNS,
        }
        return Matrix.model_validate(raw | changes)

    def run(self, matrix: Matrix, **more: Any) -> dict[str, int]:
        return run_matrix(matrix, self.data, self.work, self.results, **more)

    def cells(self) -> dict[str, Cell]:
        return {str(cell.path.with_suffix("")): cell for cell in read_cells(self.results)}

    def stale(self, matrix: Matrix, **more: Any) -> set[str]:
        """The systems of the cells that would be made again."""
        bench = Bench(matrix, self.data, self.work, self.results, {}, **more)
        return {cell.system for cell in matrix.plan() if not bench.is_done(cell)}

    def left_behind(self) -> list[Path]:
        return [path for path in self.work.rglob("*") if path.parent.name == "shared" or "checkpoint" in path.name]


def counting(patch: pytest.MonkeyPatch, before: Callable[[str, int], None] = lambda _name, _call: None) -> Counter[str]:
    """Count the calls of the stages; ``before`` each one hears of it."""
    calls = Counter[str]()

    def counted(name: str) -> Callable[..., Any]:
        stage = getattr(folders, name)

        def call(*given: Any, **more: Any) -> Any:
            calls[name] += 1
            before(name, calls[name])
            return stage(*given, **more)

        return call

    for name in STAGES:
        patch.setattr(folders, name, counted(name))
    return calls


@pytest.fixture(scope="module", autouse=True)
def _without_pictures() -> Iterator[None]:
    """Drawing takes longer than training here, and has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "_draw", lambda *_: [])
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    backbone = tiny_backbone(folder / "backbone")
    config = tiny_config(
        backbone,
        backbone={"name": str(backbone), "max_length": 32, "projection": 16, "freeze_embeddings": True},
        compute={"device": "cpu", "precision": "fp32", "threads": 1, "checkpoint_every": 2},
        source={"lr": 5e-3, "batch_tokens": 256, "epochs": 16},
        calibrate={"lr": 1e-3, "threshold": 0.4, "batch_tokens": 256, "negatives": 2},
        selftrain={"lr": 1e-3, "threshold": 0.5, "floor": 0.34, "batch_tokens": 256, "max_iterations": 1},
        selflearn={"batch_tokens": 256},
        evaluate={"probes": 2},
    )
    (folder / "tiny.yaml").write_text(json.dumps(config))  # JSON is YAML
    (folder / "data").mkdir()
    files = {"en_1": 50, "en_2": 40, "en-dev": 30, "test.en": 24, "dev.sw": 33, "test.sw": 36, "dev.fr": 39, "test.fr": 30}
    for seed, (name, count) in enumerate(files.items(), start=1):
        write_tsv(folder / "data" / f"{name}.tsv", tiny_pairs(count, seed))
    return folder


@pytest.fixture(scope="module")
def full(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Full:
    """The whole matrix once; the counts that it told, and its calls."""
    place = Place(world, tmp_path_factory.mktemp("full"))
    with pytest.MonkeyPatch.context() as patch:
        calls = counting(patch)
        return place, place.run(place.matrix()), calls


@pytest.fixture
def again(full: Full, tmp_path: Path) -> Place:
    """A copy of what the whole matrix left."""
    shutil.copytree(full[0].folder, tmp_path, dirs_exist_ok=True)
    return Place(full[0].world, tmp_path)


@pytest.fixture
def fresh(world: Path, tmp_path: Path) -> Place:
    return Place(world, tmp_path)


@pytest.fixture
def trained(again: Place) -> Place:
    """A copy without cells: the source models are there, and nothing is done."""
    shutil.rmtree(again.results)
    return again


def test_every_cell_lies_at_its_place_with_its_protocol(full: Full) -> None:
    place, counts, _ = full
    adapting = ["conl", "conlst", "joint", "no-mixup", "selflearn", "selftrain", "teachers"]
    expected = {
        "zero-shot/en-supervised-test-13": "supervised",
        "conlst/sw-transductive-test-13": "transductive",
        **{f"zero-shot/{language}-zero-shot-test-13": "zero-shot" for language in BOTH},
        **{f"{system}/{language}-inductive-test-13": "inductive" for system in adapting for language in BOTH},
    }
    assert {name: cell.protocol for name, cell in place.cells().items()} == expected
    assert counts == {"planned": 18, "done": 18, "kept": 0}


def test_a_cell_says_what_was_trained_and_tested(full: Full) -> None:
    cells = full[0].cells()
    one = cells["conlst/sw-inductive-test-13"]
    assert (one.describes, one.started_from, one.tested, one.seed) == ("the paper", "plain", "test", 13)
    assert (one.pool, one.n, cells["conlst/sw-transductive-test-13"].pool) == (33, 36, 69)
    assert one.comparison is not None
    assert one.comparison["before"]["accuracy"] == cells["zero-shot/sw-zero-shot-test-13"].accuracy
    assert one.config["selftrain"]["mixup"] is not None
    assert cells["no-mixup/sw-inductive-test-13"].config["selftrain"]["mixup"] is None
    start = cells["zero-shot/fr-zero-shot-test-13"]
    assert (start.pool, start.comparison, start.languages_joint) == (0, None, None)


def test_a_joint_cell_says_its_languages_and_has_all_their_pools(full: Full) -> None:
    cells = full[0].cells()
    for language, count in (("sw", 36), ("fr", 30)):
        joint = cells[f"joint/{language}-inductive-test-13"]
        assert (joint.languages_joint, joint.pool, joint.n) == (("sw", "fr"), 72, count)
    assert {cell.languages_joint for cell in cells.values() if cell.system != "joint"} == {None}


def test_timings_steps_and_traces_are_there(full: Full) -> None:
    for name, cell in full[0].cells().items():
        system = SYSTEMS[cell.system]
        assert [stage.name for stage in cell.stages] == ["source", *system.get("stages", [])], name
        for stage in cell.stages:
            assert stage.seconds > 0.001
            assert stage.steps > 0
            assert (stage.trace is not None) == (stage.name == "calibrate")
            assert (stage.selected is not None) == (stage.name in ("selftrain", "selflearn"))
    # all that started from one model tell its one training
    assert len({cell.stages[0].seconds for cell in full[0].cells().values()}) == 1


def test_what_systems_have_in_common_is_computed_once(full: Full) -> None:
    assert full[2] == {
        "train_source_model": 2,  # the teachers' second
        "calibrate_model": 4,  # of sw, of fr, of both, and of sw with its test pairs
        "self_train_model": 10,
        "self_learn_model": 2,
        "evaluate_model": 3 + 15,
    }
    cells = full[0].cells()
    seconds = {cells[f"{name}/sw-inductive-test-13"].stages[1].seconds for name in ("conl", "conlst", "no-mixup")}
    assert len(seconds) == 1


def test_every_system_is_another_model(full: Full) -> None:
    # equal accuracies are no wonder on so few pairs; equal calibration errors would be
    found = [cell.evaluation["ece"] for name, cell in full[0].cells().items() if "/sw-" in name]
    assert len(set(found)) == len(found) == 9


def test_no_model_that_was_only_on_the_way_is_left(full: Full) -> None:
    assert full[0].left_behind() == []
    assert len(list((full[0].work / "source").glob("plain-1[34]-*/manifest.json"))) == 2


def test_a_second_run_computes_nothing_and_needs_no_data(again: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counting(monkeypatch)
    counts = run_matrix(again.matrix(), again.folder / "gone", again.work, again.results)
    assert counts == {"planned": 18, "done": 0, "kept": 18}
    assert not calls
    assert not (again.work / "shared").exists() or not again.left_behind()


@pytest.mark.slow
def test_several_processes_compute_the_same_cells(full: Full, fresh: Place) -> None:
    counts = fresh.run(fresh.matrix(), jobs=3)
    assert counts == full[1]
    expected, found = full[0].cells(), fresh.cells()
    assert found.keys() == expected.keys()
    assert all(same(found[name], expected[name]) for name in expected)
    assert {cell.machine.jobs for cell in found.values()} == {3}
    assert fresh.left_behind() == []


def test_a_failing_process_is_told(fresh: Place) -> None:
    data = fresh.folder / "data"
    shutil.copytree(fresh.data, data)
    (data / "test.fr.tsv").write_text("premise\thypothesis\tlabel\nun\tdeux\tperhaps\n")
    runs = [{"systems": ["zero-shot"], "languages": ["fr"]}]
    with pytest.raises(DataError, match=r"test\.fr\.tsv"):
        run_matrix(fresh.matrix(runs=runs), data, fresh.work, fresh.results, jobs=2)
    assert not fresh.results.exists()


def test_no_jobs_are_refused(fresh: Place) -> None:
    with pytest.raises(ConfigError, match="0 jobs"):
        fresh.run(fresh.matrix(), jobs=0)


def changed(name: str, **values: Any) -> dict[str, Any]:
    return {"systems": SYSTEMS | {name: SYSTEMS[name] | values}}


ALL = set(SYSTEMS)
SPLITS = {
    "dev": {"default": "{data}/dev.{language}.tsv", "fr": "{data}/other.tsv"},
    "test": {"default": "{data}/test.{language}.tsv"},
}


@pytest.mark.parametrize(
    ("changes", "stale"),
    [
        ({}, set()),
        ({"settings": {"compute.threads": 2, "compute.checkpoint_every": 7, "evaluate.batch_tokens": 64}}, set()),
        ({"settings": {"gate.min_pairs": 7}}, set()),
        (changed("conlst", describes="said otherwise"), set()),
        ({"groups": {"method": ["conlst"]}, "development": ["sw"]}, set()),
        ({"settings": {"selflearn.lr": 1e-3}}, {"selflearn"}),
        ({"settings": {"selftrain.lr": 1e-4}}, {"conlst", "no-mixup", "joint", "selftrain", "teachers"}),
        ({"settings": {"calibrate.lr": 1e-4}}, {"conl", "conlst", "no-mixup", "joint"}),
        (changed("conl", settings={"calibrate.lr": 1e-4}), {"conl"}),
        (changed("conl", settings={"selftrain.lr": 1e-4}), set()),
        (changed("teachers", teachers=[15]), {"teachers"}),
        (changed("conl", stages=["calibrate", "selflearn"]), {"conl"}),
        ({"settings": {"source.lr": 1e-3}}, ALL),
        ({"settings": {"backbone.max_length": 31}}, ALL),
        ({"settings": {"compute.precision": "bf16"}}, ALL),
        ({"settings": {"evaluate.bins": 5}}, ALL),
        ({"stage0": {"plain": {"describes": "fine-tuning", "settings": {"source.epochs": 3}}}}, ALL),
        ({"stage0": {"plain": {"describes": "fine-tuning", "pairs": 60}}}, ALL),
        ({"source": ["{data}/en_1.tsv"]}, ALL),
        ({"splits": SPLITS}, ALL - {"zero-shot"}),
        ({"runs": [*RUNS[:2], RUNS[2] | {"pool": ["test"]}]}, {"conlst"}),
        ({"runs": [RUNS[0], RUNS[1] | {"languages": ["fr", "sw"]}, RUNS[2]]}, {"joint"}),
        ({"runs": [RUNS[1] | {"seeds": [14]}]}, ALL),
    ],
)
def test_a_changed_setting_makes_stale_what_it_touches(full: Full, changes: dict[str, Any], stale: set[str]) -> None:
    assert full[0].stale(full[0].matrix(**changes)) == stale


@pytest.mark.parametrize(
    ("changes", "touched"),
    [({"settings": {"compute.precision": "auto"}}, ALL), (changed("conl", settings={"compute.precision": "auto"}), {"conl"})],
)
def test_a_precision_that_the_machine_chose_counts_as_what_it_is(
    full: Full, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], touched: set[str]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    assert full[0].stale(full[0].matrix(**changes)) == set()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert full[0].stale(full[0].matrix(**changes)) == touched


def test_another_starter_makes_stale_what_starts_from_it(full: Full, monkeypatch: pytest.MonkeyPatch) -> None:
    place = full[0]
    stage0 = {"plain": {"describes": "fine-tuning"}, "starter": {"describes": "shipped", "model": "starter"}}
    systems = {name: {"describes": name, "start": name} for name in stage0}
    matrix = place.matrix(stage0=stage0, systems=systems, runs=[{"systems": list(stage0), "languages": ["en"]}])
    bench = Bench(matrix, place.data, place.work, place.results, {})
    before = {cell.system: bench._identity(cell) for cell in matrix.plan()}
    monkeypatch.setattr("conlst.bench.run.shipped_digest", lambda: "of another")
    after = {cell.system: bench._identity(cell) for cell in matrix.plan()}
    assert [name for name in stage0 if before[name] != after[name]] == ["starter"]


def test_another_subset_makes_everything_stale(full: Full) -> None:
    assert full[0].stale(full[0].matrix(), subset=20) == ALL


def test_what_a_setting_does_not_touch_is_kept(again: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    before = again.cells()
    calls = counting(monkeypatch)
    counts = again.run(
        again.matrix(settings={"calibrate.lr": 2e-3}, runs=[{"systems": ["zero-shot", "conl"], "languages": ["fr"]}])
    )
    assert counts == {"planned": 2, "done": 1, "kept": 1}
    # neither the source model nor its evaluation is made again
    assert calls == {"calibrate_model": 1, "evaluate_model": 1}
    after = again.cells()
    assert [name for name in after if after[name] != before[name]] == ["conl/fr-inductive-test-13"]
    assert after["conl/fr-inductive-test-13"].config["calibrate"]["lr"] == 2e-3


def test_an_evaluation_that_kept_less_is_not_compared_with_but_made_anew(again: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conlst.bench.run.KEPT", ("labels", "logits", "records", "more"))
    calls = counting(monkeypatch)
    again.run(again.matrix(settings={"calibrate.lr": 3e-3}, runs=[{"systems": ["conl"], "languages": ["fr"]}]))
    assert calls == {"calibrate_model": 1, "evaluate_model": 2}


def test_another_measure_is_measured_anew_without_training(again: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counting(monkeypatch)
    again.run(again.matrix(settings={"evaluate.high": 0.8}, runs=[{"systems": ["zero-shot"], "languages": ["fr"]}]))
    assert calls == {"evaluate_model": 1}
    bands = again.cells()["zero-shot/fr-zero-shot-test-13"].evaluation["bands"]
    assert [band["lower"] for band in bands if band["band"] == "high"] == [0.8]


def test_other_data_under_the_same_name_makes_another_source_model(trained: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    data = trained.folder / "data"
    shutil.copytree(trained.data, data)
    write_tsv(data / "en_2.tsv", tiny_pairs(40, 99))
    calls = counting(monkeypatch)
    run_matrix(trained.matrix(runs=RUNS[:1]), data, trained.work, trained.results)
    assert calls["train_source_model"] == 1


def same(one: Cell, other: Cell) -> bool:
    """Whether two cells differ in nothing but when and how fast they were made, and from which state of the checkout."""

    def facts(cell: Cell) -> dict[str, Any]:
        raw = cell.model_dump(exclude={"finished", "machine", "commit", "dirty"})
        return raw | {"stages": [stage | {"seconds": 0} for stage in raw["stages"]]}

    return facts(one) == facts(other)


ONE = {"runs": [RUNS[1] | {"systems": ["zero-shot", "conl", "conlst", "no-mixup"], "languages": ["sw"]}]}


def killed(place: Place, name: str, call: int) -> None:
    """Run ``ONE`` until a stage is called so many times."""

    def before(found: str, number: int) -> None:
        if (found, number) == (name, call):
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        counting(patch, before)
        with pytest.raises(Killed):
            place.run(place.matrix(**ONE))


def test_a_kill_between_stages_leaves_what_was_done(full: Full, trained: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(trained, "self_train_model", 2)
    assert {name.partition("/")[0] for name in trained.cells()} == {"zero-shot", "conl", "conlst"}
    calls = counting(monkeypatch)
    assert trained.run(trained.matrix(**ONE)) == {"planned": 4, "done": 1, "kept": 3}
    # the calibrated model was left for it
    assert calls == {"self_train_model": 1, "evaluate_model": 1}
    assert trained.left_behind() == []
    straight = full[0].cells()
    for name, cell in trained.cells().items():
        assert same(cell, straight[name]), name


def test_a_kill_within_a_stage_is_gone_on_from(full: Full, fresh: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Trainer.save
    for stage in ("source", "calibrate", "selftrain"):

        def saved(trainer: Trainer, *given: Any, until: str = stage, **more: Any) -> None:
            save(trainer, *given, **more)
            assert trainer._checkpoints is not None
            if trainer._checkpoints.folder.name.endswith(f"{until}-checkpoint"):
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "save", saved)
            with pytest.raises(Killed):
                fresh.run(fresh.matrix(**ONE))
        assert any(path.name.endswith(f"{stage}-checkpoint") for path in fresh.left_behind())
    fresh.run(fresh.matrix(**ONE))
    assert fresh.left_behind() == []
    straight = full[0].cells()
    for name, cell in fresh.cells().items():
        assert same(cell, straight[name]), name
        # of the last stage only the first system's was interrupted
        assert [stage.seconds for stage in cell.stages[:2]] == [None] * len(cell.stages[:2])


def lose_times(place: Place) -> None:
    for file in place.work.rglob("*.seconds"):
        file.unlink()


def test_a_stage_that_lost_its_time_is_kept_and_its_time_unknown(trained: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(trained, "self_train_model", 1)
    shutil.rmtree(trained.results)
    lose_times(trained)
    calls = counting(monkeypatch)
    trained.run(trained.matrix(**ONE))
    assert (calls["train_source_model"], calls["calibrate_model"]) == (0, 0)
    stages = trained.cells()["conlst/sw-inductive-test-13"].stages
    assert [(stage.name, stage.seconds) for stage in stages[:2]] == [("source", None), ("calibrate", None)]
    assert stages[2].seconds > 0.001
    assert all(stage.steps > 0 for stage in stages)


def test_a_damaged_model_without_its_time_is_named_and_left(trained: Place) -> None:
    lose_times(trained)
    (model,) = (trained.work / "source").glob("plain-13-*")
    weights = model / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"weights\.safetensors is not the file that was published"):
        trained.run(trained.matrix(**ONE))
    assert weights.exists()


def test_what_a_kill_left_after_the_last_cell_is_cleared(again: Place) -> None:
    matrix = again.matrix(**ONE)
    (again.results / "no-mixup" / "sw-inductive-test-13.json").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger("conlst.bench.run"), "info", kill)  # which tells that the cell is written
        with pytest.raises(Killed):
            again.run(matrix)
    assert again.left_behind()
    assert again.run(matrix) == {"planned": 4, "done": 0, "kept": 4}
    assert again.left_behind() == []


def kill(*_given: Any, **_more: Any) -> None:
    raise Killed


def test_pairs_that_the_source_model_learned_are_not_tested(trained: Place) -> None:
    splits = {"dev": {"default": "{data}/dev.{language}.tsv"}, "test": {"default": "{data}/en_1.tsv"}}
    with pytest.raises(DataError, match=r"50 of 50 pairs .* were trained on with labels"):
        trained.run(trained.matrix(splits=splits, runs=RUNS[1:2]))
    assert not trained.results.exists()


def test_a_split_that_is_another_protocol_than_its_name_says_is_refused_before_anything_is_trained(
    fresh: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counting(monkeypatch)
    splits = {"dev": {"default": "{data}/test.{language}.tsv"}, "test": {"default": "{data}/test.{language}.tsv"}}
    with pytest.raises(ConfigError, match="is planned as inductive, but the texts say transductive"):
        fresh.run(fresh.matrix(splits=splits, runs=[{"systems": ["conl"], "languages": ["sw"]}]))
    assert not calls
    assert not fresh.results.exists()


def test_system_restricts(trained: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counting(monkeypatch)
    assert trained.run(trained.matrix(), systems=["selflearn", "zero-shot"]) == {"planned": 5, "done": 5, "kept": 0}
    assert {cell.system for cell in trained.cells().values()} == {"selflearn", "zero-shot"}
    assert calls == {"self_learn_model": 2, "evaluate_model": 2}
    with pytest.raises(ConfigError, match="no system 'cnl'; it has conl, conlst, joint"):
        trained.run(trained.matrix(), systems=["conl", "cnl"])


def test_a_subset_is_of_every_split_and_the_same_in_pool_and_test(fresh: Place) -> None:
    # too few to be sure of anything, so everything counts as sure
    settings = {"source.epochs": 2, "calibrate.threshold": 0.34, "selftrain.threshold": 0.34, "selftrain.floor": 0.34}
    runs = [{"systems": ["zero-shot", "conl"], "languages": ["sw"], "pool": ["dev", "test"], "seeds": [13, 14]}]
    fresh.run(fresh.matrix(settings=settings, runs=runs), subset=12)
    cells = fresh.cells()
    assert {(name, cell.pool, cell.n) for name, cell in cells.items()} == {
        *((f"conl/sw-transductive-test-{seed}", 24, 12) for seed in (13, 14)),
        *((f"zero-shot/sw-zero-shot-test-{seed}", 0, 12) for seed in (13, 14)),
    }
    source = next((fresh.work / "pairs").glob("source-en-*"))
    assert len(read_pairs(source)) == 12
    # one draw for all seeds: their accuracies are of the same pairs
    assert len(list((fresh.work / "pairs").glob("test-sw-*"))) == 2
    for subset in (0, -3):
        with pytest.raises(ConfigError, match=f"a subset of {subset} pairs is none"):
            fresh.run(fresh.matrix(settings=settings, runs=runs), subset=subset)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"source": ["{data}/none_*.tsv"]}, r"none_\*\.tsv"),
        ({"source_dev": "{data}/none.tsv"}, r"none\.tsv"),
        (
            {"splits": {"dev": {"default": "{data}/dev.{language}.tsv"}, "test": {"default": "{data}/no.{language}.tsv"}}},
            r"no\.en\.tsv",
        ),
        (
            {"splits": {"dev": {"default": "{data}/no.{language}.tsv"}, "test": {"default": "{data}/test.{language}.tsv"}}},
            r"no\.(sw|fr)\.tsv",
        ),
    ],
    ids=["source", "source_dev", "test", "pool"],
)
def test_missing_data_is_told_before_anything_is_computed(
    fresh: Place, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], named: str
) -> None:
    calls = counting(monkeypatch)
    with pytest.raises(ConfigError, match=rf"no file is named .*{named}; give the folder of the data with --data"):
        fresh.run(fresh.matrix(**changes))
    with pytest.raises(ConfigError, match=r"no file is named .*nowhere.*--data"):
        run_matrix(fresh.matrix(), fresh.folder / "nowhere", fresh.work, fresh.results)
    assert not calls
    assert not fresh.work.exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"settings": {"calibrate.rate": 1}}, r"calibrate\.rate"),
        ({"stage0": {"plain": {"describes": "x", "settings": {"source.lr": 0}}}}, r"stage0\.plain: .*source\.lr"),
        (changed("teachers", settings={"selftrain.rule": "best"}), r"systems\.teachers: .*selftrain\.rule"),
        ({"config": "nonesuch"}, "no configuration 'nonesuch'"),
        (
            {"splits": {"dev": {"sw": "{data}/dev.sw.tsv"}, "test": {"default": "{data}/test.{language}.tsv"}}},
            "splits.dev has no file for fr",
        ),
    ],
)
def test_wrong_settings_are_told_before_anything_is_computed(
    fresh: Place, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], named: str
) -> None:
    calls = counting(monkeypatch)
    with pytest.raises(ConfigError, match=named):
        fresh.run(fresh.matrix(**changes))
    assert not calls


def test_translations_are_trained_on_or_learned_from_as_an_auxiliary_language(fresh: Place) -> None:
    rows = [*tiny_pairs(50, 1), *tiny_pairs(40, 2)]
    lines = ["source_text\ttarget_text"]
    lines += [f"{text}\told {text}" for text in sorted({row[side] for row in rows for side in ("premise", "hypothesis")})]
    (fresh.folder / "translations.tsv").write_text("\n".join(lines) + "\n")
    translate = {"backend": f"tsv:{fresh.folder / 'translations.tsv'}", "path": ["en", "es"], "pairs": 20}
    meta = {"source.meta_learning": {"languages": ["es"], "steps": 2}}
    matrix = fresh.matrix(
        settings={"source.epochs": 1},
        stage0={
            "mt": {"describes": "translated", "translate": translate},
            "maml": {"describes": "meta-learning", "settings": meta, "translate": translate | {"as_auxiliary": True}},
        },
        systems={name: {"describes": name, "start": name} for name in ("mt", "maml")},
        runs=[{"systems": ["mt", "maml"], "languages": ["sw"]}],
    )
    fresh.run(matrix)
    cells = fresh.cells()
    assert {cell.started_from for cell in cells.values()} == {"mt", "maml"}
    models = {path.name.partition("-")[0]: path for path in (fresh.work / "source").iterdir() if path.is_dir()}
    carried = {name: folders.source_pairs(model, None, load_config(fresh.world / "tiny.yaml")) for name, model in models.items()}
    assert {name: sorted(set(pairs["language"])) for name, pairs in carried.items()} == {"mt": ["en", "es"], "maml": ["en"]}
    assert {name: len(pairs) for name, pairs in carried.items()} == {"mt": 110, "maml": 90}
    assert len(folders.read_history(models["maml"])["meta_losses"]) == 2
    steps = {cell.started_from: cell.stages[0].steps for cell in cells.values()}
    assert steps["maml"] == len(folders.read_history(models["maml"])["losses"]) + 2


def test_a_model_that_exists_is_not_trained(again: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    (model,) = (again.work / "source").glob("plain-13-*[!s]")
    given = {"plain": {"describes": "given", "model": str(model)}}
    calls = counting(monkeypatch)
    again.run(again.matrix(stage0=given, runs=[RUNS[0] | {"seeds": [13, 14]}], systems={"zero-shot": SYSTEMS["zero-shot"]}))
    # both seeds are one model, which was evaluated before
    assert not calls
    cells = again.cells()
    assert cells["zero-shot/en-supervised-test-13"].accuracy == cells["zero-shot/en-supervised-test-14"].accuracy
