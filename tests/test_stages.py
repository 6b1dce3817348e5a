"""The three training loops: a run that is interrupted anywhere and resumed is the straight run, bit for bit."""

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from conlst.contract.config import Config, config_from_dict
from conlst.contract.errors import ArtifactError, TrainingError
from conlst.data.tokens import TokenizedPairs
from conlst.model.backbones import load_backbone
from conlst.model.encoder import PairClassifier
from conlst.model.folder import Model
from conlst.stages.calibrate import Step, calibrate
from conlst.stages.predict import predict_logits
from conlst.stages.progress import Progress
from conlst.stages.selftrain import Round, self_train
from conlst.stages.source import train_source
from conlst.training import Checkpoints
from tiny import tiny_backbone, tiny_config, tiny_pairs, tokens_of


class Interrupted(Exception):
    """Stands for a kill."""


class Recorder(Progress):
    """Keeps what a stage tells, and may interrupt it."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__("test")
        self.told: list[dict[str, float]] = []
        self.pairs: list[int] = []
        self._stop_after = stop_after

    def step(self, done: int, total: int, pairs: int, metrics: dict[str, float]) -> None:
        super().step(done, total, pairs, metrics)
        self.told.append(metrics)
        self.pairs.append(pairs)
        if len(self.told) == self._stop_after:
            raise Interrupted


@dataclass
class Outcome:
    result: Any
    weights: dict[str, Tensor]

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Outcome)
        equal = all(self.weights[name].equal(other.weights[name]) for name in self.weights)
        return self.result == other.result and equal


@dataclass(frozen=True)
class World:
    """A source model that knows its task somewhat, and data for every stage."""

    backbone: Path
    start: Model
    source: TokenizedPairs
    labels: Tensor
    pool: TokenizedPairs
    translated: TokenizedPairs

    def config(self, **sections: Any) -> Config:
        base: dict[str, dict[str, Any]] = {
            "source": {"lr": 1e-3, "batch_tokens": 128, "epochs": 1},
            "calibrate": {"lr": 1e-3, "threshold": 0.5, "batch_tokens": 96, "negatives": 2},
            "selftrain": {"lr": 1e-3, "threshold": 0.6, "floor": 0.4, "batch_tokens": 128, "max_iterations": 2},
        }
        for name, section in sections.items():
            base[name] = {**base.get(name, {}), **section} if isinstance(section, dict) else section
        compute = {"device": "cpu", "precision": "fp32", "threads": 1, **base.pop("compute", {})}
        return config_from_dict(tiny_config(self.backbone, **base, compute=compute))

    def classifier(self) -> PairClassifier:
        return copy.deepcopy(self.start.classifier)


def run(
    stage: str, world: World, config: Config, checkpoints: Checkpoints | None = None, progress: Progress | None = None
) -> Outcome:
    model = world.classifier()
    result: Any
    if stage == "source":
        result = train_source(model, world.source, world.labels, config, checkpoints, progress)
    elif stage == "calibrate":
        result = calibrate(model, world.pool, world.source, world.labels, config, checkpoints, progress)
    else:
        translated = world.translated if stage == "selftrain-translated" else None
        result = self_train(
            model, world.pool, translated, world.source, world.labels, world.start.text, config, checkpoints, progress
        )
    assert not model.training
    return Outcome(result, model.state_dict())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    backbone = tiny_backbone(tmp_path_factory.mktemp("b"))
    trained = config_from_dict(tiny_config(backbone, source={"lr": 3e-3, "batch_tokens": 256, "epochs": 8}))
    start = load_backbone(trained.backbone, 1)
    source, labels = tokens_of(start, tiny_pairs(90, 1))
    train_source(start.classifier, source, labels, trained)
    few, few_labels = tokens_of(start, tiny_pairs(45, 2))
    pool, _ = tokens_of(start, tiny_pairs(36, 3))
    translated, _ = tokens_of(start, tiny_pairs(36, 4))
    return World(backbone, start, few, few_labels, pool, translated)


CALIBRATIONS = [
    {"objective": objective, "source_term": term}
    for objective in ("contrastive", "cross_entropy")
    for term in ("complementary", "literal", "none")
]
CASES: list[Any] = [
    pytest.param("source", {}, id="source"),
    *(
        pytest.param("calibrate", {"calibrate": {**case, "source_weight": 0.1}}, id="-".join(case.values()))
        for case in CALIBRATIONS
    ),
    pytest.param("selftrain", {}, id="selftrain"),
    pytest.param("selftrain-translated", {}, id="selftrain-translated"),
]
BF16 = [
    pytest.param("source", {"compute": {"precision": "bf16"}}, id="source-bf16"),
    pytest.param("calibrate", {"compute": {"precision": "bf16"}}, id="calibrate-bf16"),
    pytest.param("selftrain-translated", {"compute": {"precision": "bf16"}}, id="selftrain-bf16"),
]


def interrupted(stage: str, world: World, config: Config, kept: Checkpoints, after: int) -> None:
    with pytest.raises(Interrupted):
        run(stage, world, config, kept, Recorder(stop_after=after))


@pytest.mark.parametrize(("stage", "sections"), CASES)
def test_resuming_after_any_step_is_the_straight_run(world: World, tmp_path: Path, stage: str, sections: dict[str, Any]) -> None:
    config = world.config(**sections)
    told = Recorder()
    straight = run(stage, world, config, progress=told)
    assert len(told.told) >= 4
    for after in range(1, len(told.told) + 1):
        kept = Checkpoints(tmp_path / str(after), 1, "same")
        interrupted(stage, world, config, kept, after)
        assert run(stage, world, config, kept) == straight, f"interrupted after step {after}"
        # the last checkpoint is still there: it ends the run without a further step
        again = Recorder()
        assert run(stage, world, config, kept, again) == straight
        assert not again.told


@pytest.mark.parametrize(("stage", "sections"), [*CASES, *BF16])
def test_a_run_that_dies_again_and_again_is_the_straight_run(
    world: World, tmp_path: Path, stage: str, sections: dict[str, Any]
) -> None:
    config = world.config(**sections)
    straight = run(stage, world, config)
    kept = Checkpoints(tmp_path / "c", 2, "same")
    lives = 1
    while True:
        try:
            ended = run(stage, world, config, kept, Recorder(stop_after=3))
            break
        except Interrupted:
            lives += 1
    assert lives > 1
    assert ended == straight


@pytest.mark.parametrize(("stage", "sections"), BF16)
def test_bf16_differs_from_fp32_and_resumes_too(world: World, tmp_path: Path, stage: str, sections: dict[str, Any]) -> None:
    straight = run(stage, world, world.config(**sections))
    assert straight != run(stage, world, world.config())
    assert {tensor.dtype for tensor in straight.weights.values() if tensor.is_floating_point()} == {torch.float32}
    kept = Checkpoints(tmp_path / "c", 1, "same")
    interrupted(stage, world, world.config(**sections), kept, 3)
    assert run(stage, world, world.config(**sections), kept) == straight


@pytest.mark.parametrize(("stage", "sections"), CASES)
def test_the_seed_decides(world: World, stage: str, sections: dict[str, Any]) -> None:
    torch.manual_seed(1)
    first = run(stage, world, world.config(**sections, seed=1))
    torch.manual_seed(2)
    assert run(stage, world, world.config(**sections, seed=1)) == first
    assert run(stage, world, world.config(**sections, seed=2)) != first


@pytest.mark.parametrize("stage", ["source", "calibrate", "selftrain"])
def test_another_run_s_and_a_damaged_checkpoint_are_refused(world: World, tmp_path: Path, stage: str) -> None:
    config = world.config()
    interrupted(stage, world, config, Checkpoints(tmp_path / "c", 1, "this"), 2)
    with pytest.raises(ArtifactError, match="another run"):
        run(stage, world, config, Checkpoints(tmp_path / "c", 1, "other"))
    file = tmp_path / "c" / "checkpoint.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"checkpoint\.safetensors"):
        run(stage, world, config, Checkpoints(tmp_path / "c", 1, "this"))


@pytest.mark.parametrize(
    ("stage", "loss"),
    [
        ("source", "conlst.stages.source.F.cross_entropy"),
        ("calibrate", "conlst.stages.calibrate.contrastive_negative_loss"),
        ("selftrain", "conlst.stages.selftrain.soft_cross_entropy"),
    ],
)
def test_a_nan_loss_stops_names_pairs_and_moves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, stage: str, loss: str
) -> None:
    module, _, name = loss.rpartition(".")
    whole = F.cross_entropy if stage == "source" else vars(__import__(module, fromlist=[name]))[name]
    monkeypatch.setattr(loss, lambda *args, **more: whole(*args, **more) * float("nan"))
    model = world.classifier()
    monkeypatch.setattr(World, "classifier", lambda _: model)
    with pytest.raises(TrainingError, match=r"step 0: loss nan.* pairs \[\d+(, \d+)*\]"):
        run(stage, world, world.config())
    assert all(tensor.equal(world.start.classifier.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("stage", ["source", "calibrate", "selftrain"])
def test_frozen_embeddings_stay_and_are_not_in_the_checkpoint(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    table = "encoder.embeddings.word_embeddings.weight"
    before = world.start.classifier.state_dict()[table].clone()
    free = run(stage, world, world.config()).weights[table]
    assert not free.equal(before)

    frozen = world.classifier()
    frozen.freeze_embeddings(True)
    monkeypatch.setattr(World, "classifier", lambda _: frozen)
    kept = Checkpoints(tmp_path / "c", 1, "x")
    after = run(stage, world, world.config(), kept).weights
    assert after[table].equal(before)
    assert not after["encoder.embeddings.position_embeddings.weight"].equal(
        world.start.classifier.state_dict()["encoder.embeddings.position_embeddings.weight"]
    )
    assert not [name for name in load_file(tmp_path / "c" / "checkpoint.safetensors") if "word_embeddings" in name]


@pytest.mark.parametrize("training", [True, False])
def test_predictions_stand_in_order_and_the_mode_is_restored(world: World, training: bool) -> None:
    model = world.classifier().train(training)
    config = world.config()
    logits = predict_logits(model, world.pool, config.compute, 64)
    assert model.training is training
    assert predict_logits(model, world.pool, config.compute, 64).equal(logits)
    assert len(set(world.pool.lengths.tolist())) > 3
    model.eval()
    with torch.inference_mode():
        alone = torch.cat([model(*world.pool.batch(torch.tensor([index]))) for index in range(len(world.pool))])
    torch.testing.assert_close(logits, alone, atol=1e-5, rtol=0)


def test_source_training_learns(world: World) -> None:
    losses = run("source", world, world.config(source={"epochs": 6})).result
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_first_loss_is_the_cross_entropy_of_the_model_as_given(world: World, smoothing: float) -> None:
    backbone = {"name": str(world.backbone), "max_length": 32, "dropout": 0.0}
    config = world.config(backbone=backbone, source={"batch_tokens": 100_000, "label_smoothing": smoothing})
    model = load_backbone(config.backbone, 4).classifier
    probabilities = predict_logits(model, world.source, config.compute, 100_000).double().softmax(1)
    losses = train_source(model, world.source, world.labels, config)
    truth = F.one_hot(world.labels, 3) * (1 - smoothing) + smoothing / 3
    assert losses[0] == pytest.approx(-(truth * probabilities.log()).sum(1).mean().item(), rel=1e-5)


def test_calibration_takes_every_pool_pair_as_an_anchor(world: World) -> None:
    told = Recorder()
    steps = run("calibrate", world, world.config(calibrate={"epochs": 2}), progress=told).result
    assert sum(told.pairs) == 2 * len(world.pool)
    assert len(steps) == len(told.told)


@pytest.mark.parametrize("case", CALIBRATIONS)
def test_the_loss_is_the_weighted_sum_of_its_terms(world: World, case: dict[str, str]) -> None:
    for step in run("calibrate", world, world.config(calibrate={**case, "source_weight": 0.3})).result:
        assert step.loss == pytest.approx(step.target + 0.3 * step.source, abs=1e-5)
        assert step.target >= 0
        if case["source_term"] == "none":
            assert step.source == 0
        else:
            assert (step.source < 0) is (case["source_term"] == "literal")


@pytest.mark.parametrize(("distance", "normalize"), [("euclidean", False), ("squared_euclidean", True), ("cosine", False)])
def test_dropout_twins_are_nearer_than_negatives(world: World, distance: str, normalize: bool) -> None:
    config = world.config(calibrate={"distance": distance, "normalize": normalize, "lr": 1e-9})
    for step in run("calibrate", world, config).result:
        assert 0 < step.positive < step.negative
        if normalize:
            assert step.negative <= 4


def test_a_small_temperature_saturates_and_a_large_one_leaves_a_choice_among_equals(world: World) -> None:
    def target(temperature: float) -> list[Step]:
        return run("calibrate", world, world.config(calibrate={"temperature": temperature, "lr": 1e-9})).result

    assert all(step.saturated > 0.9 and step.target < 0.1 for step in target(1e-3))
    for step in target(1e6):
        assert step.saturated == step.lonely == 0
        # one positive and K = 2 negatives at nearly the same distance
        assert step.target == pytest.approx(math.log(3), rel=1e-3)


def test_an_anchor_without_negatives_is_lonely_and_teaches_nothing(world: World) -> None:
    config = world.config(calibrate={"threshold": 0.34, "source_term": "none"})
    pseudo = predict_logits(world.classifier(), world.pool, config.compute, 4096).argmax(1)
    same = (pseudo == pseudo.mode().values).nonzero().squeeze(1)
    rows = [world.pool.ids[world.pool.offsets[i] : world.pool.offsets[i + 1]] for i in same]
    offsets = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    alike = TokenizedPairs(torch.cat(rows), offsets, world.pool.pad_id)
    model = world.classifier()
    # every complementary class differs from the one that all negatives have
    steps = calibrate(model, alike, world.source, world.labels, config)
    assert [(step.lonely, step.saturated, step.target) for step in steps] == [(1.0, 1.0, 0.0)] * len(steps)
    assert all(tensor.equal(world.start.classifier.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_without_a_source_term_the_contrastive_stage_leaves_the_classification_head(world: World) -> None:
    before = world.start.classifier.state_dict()
    without = run("calibrate", world, world.config(calibrate={"source_term": "none"})).weights
    assert without["classifier.weight"].equal(before["classifier.weight"])
    assert not without["projector.weight"].equal(before["projector.weight"])
    withal = run("calibrate", world, world.config(calibrate={"source_weight": 1.0})).weights
    assert not withal["classifier.weight"].equal(before["classifier.weight"])
    ablation = run("calibrate", world, world.config(calibrate={"objective": "cross_entropy", "source_term": "none"})).weights
    assert ablation["projector.weight"].equal(before["projector.weight"])
    assert not ablation["classifier.weight"].equal(before["classifier.weight"])


def test_a_threshold_that_no_pair_reaches_is_refused_where_negatives_are_needed(world: World) -> None:
    too_high = {"threshold": 0.9999}
    with pytest.raises(TrainingError, match=r"surer than 0\.9999 \(highest 0\.\d+\).*lower calibrate\.threshold"):
        run("calibrate", world, world.config(calibrate=too_high))
    assert run("calibrate", world, world.config(calibrate={**too_high, "objective": "cross_entropy"})).result


@pytest.mark.parametrize("probes", [0, 2])
def test_probes_come_when_they_should_and_change_nothing(world: World, tmp_path: Path, probes: int) -> None:
    config = world.config(evaluate={"probes": probes})
    straight = run("calibrate", world, config)

    def probed(checkpoints: Checkpoints | None = None, progress: Progress | None = None) -> Outcome:
        model = world.classifier()

        def probe() -> float:
            logits = predict_logits(model, world.source, config.compute, 256)
            return (logits.argmax(1) == world.labels).float().mean().item()

        steps = calibrate(model, world.pool, world.source, world.labels, config, checkpoints, progress, probe)
        return Outcome(steps, model.state_dict())

    found = probed()
    measured = [number for number, step in enumerate(found.result, 1) if step.accuracy is not None]
    every = len(found.result) // 2
    assert measured == ([every, 2 * every] if probes else [])
    assert Outcome([replace(step, accuracy=None) for step in found.result], found.weights) == straight
    # what was measured before an interruption is kept
    kept = Checkpoints(tmp_path / "c", 1, "same")
    with pytest.raises(Interrupted):
        probed(kept, Recorder(stop_after=len(found.result) - 1))
    assert probed(kept) == found


def test_a_round_reports_what_it_selected(world: World) -> None:
    config = world.config()
    rounds: list[Round] = run("selftrain", world, config).result
    assert 1 <= len(rounds) <= config.selftrain.max_iterations
    q = predict_logits(world.classifier(), world.pool, config.compute, config.evaluate.batch_tokens).softmax(1)
    confidence, pseudo = q.max(1)
    first = rounds[0]
    assert first.changed == 1
    assert first.pseudo_labels == pseudo.tolist()
    (own,) = first.bars
    bars = [own[label] for label in pseudo.tolist()]
    assert first.selected == [sure >= bar for sure, bar in zip(confidence.tolist(), bars, strict=True)]
    assert all(config.selftrain.floor - 1e-6 <= bar <= config.selftrain.threshold + 1e-6 for bar in own)
    moved = sum(old != new for old, new in zip(first.pseudo_labels, rounds[1].pseudo_labels, strict=True))
    assert rounds[1].changed == pytest.approx(moved / len(pseudo))


def test_only_selected_pairs_are_trained_on(world: World) -> None:
    told = Recorder()
    config = world.config(selftrain={"max_iterations": 1, "epochs": 2})
    rounds = run("selftrain", world, config, progress=told).result
    assert 0 < sum(rounds[0].selected) < len(world.pool)
    assert sum(told.pairs) == 2 * sum(rounds[0].selected)
    for step in told.told:
        assert step["loss"] == pytest.approx(step["supervised"] + step["unsupervised"], rel=1e-5)


def test_it_stops_when_the_labels_have_settled(world: World, tmp_path: Path) -> None:
    config = world.config(selftrain={"lr": 1e-12, "max_iterations": 5})
    told = Recorder()
    straight = run("selftrain", world, config, progress=told)
    assert [bool(done.losses) for done in straight.result] == [True, False]
    assert straight.result[1].changed == 0
    for after in (1, len(told.told)):
        kept = Checkpoints(tmp_path / str(after), 1, "same")
        interrupted("selftrain", world, config, kept, after)
        assert run("selftrain", world, config, kept) == straight


def test_it_never_goes_beyond_max_iterations(world: World) -> None:
    rounds = run("selftrain", world, world.config(selftrain={"max_iterations": 3, "stop_below": 0.0})).result
    assert [bool(done.losses) for done in rounds] == [True, True, True]


def test_bars_that_no_pair_reaches_are_refused(world: World) -> None:
    with pytest.raises(TrainingError, match=r"lower selftrain\.threshold and selftrain\.floor"):
        run("selftrain", world, world.config(selftrain={"threshold": 0.9999, "floor": 0.9999}))


@pytest.mark.parametrize("view", ["masking", "mixup", "back_translation"])
def test_each_view_can_stand_alone(world: World, view: str) -> None:
    settings = {"masking": {"share": 0.5}, "mixup": {"alpha": 4.0}, "back_translation": {"backend": "tsv:none"}}
    only = {name: value if name == view else None for name, value in settings.items()}
    config = world.config(selftrain={**only, "max_iterations": 1})
    stage = "selftrain-translated" if view == "back_translation" else "selftrain"
    alone = run(stage, world, config)
    assert alone.result[0].losses
    # each view really is another one
    plain = {**settings, "back_translation": None}
    assert alone != run("selftrain", world, world.config(selftrain={**plain, "max_iterations": 1}))


def test_translations_take_the_place_of_their_pairs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    only = {"masking": None, "mixup": None, "back_translation": {"backend": "tsv:none"}, "max_iterations": 1}
    config = world.config(selftrain=only)
    seen: list[int] = []
    batch = TokenizedPairs.batch

    def record(self: TokenizedPairs, indices: Tensor, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        if self is world.translated:
            seen.extend(indices.tolist())
        return batch(self, indices, device)

    monkeypatch.setattr(TokenizedPairs, "batch", record)
    rounds = run("selftrain-translated", world, config).result
    assert sorted(seen) == [index for index, chosen in enumerate(rounds[0].selected) if chosen]


def test_a_target_weight_of_zero_trains_on_the_source_alone(world: World) -> None:
    told = Recorder()
    run("selftrain", world, world.config(selftrain={"target_weight": 0.0, "max_iterations": 1}), progress=told)
    assert all(step["loss"] == pytest.approx(step["supervised"], rel=1e-6) for step in told.told)
