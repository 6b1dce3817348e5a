"""Self-learning with uncertainty: what is taken, what is learned, and that a resumed run is the straight one, bit for bit."""

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from conlst.contract.config import Config, config_from_dict
from conlst.contract.errors import ArtifactError, TrainingError
from conlst.data.batching import draw_of_like_length
from conlst.data.tokens import TokenizedPairs
from conlst.method.uncertainty import noisy_log_probabilities
from conlst.model.backbones import load_backbone
from conlst.model.encoder import PairClassifier
from conlst.model.folder import Model
from conlst.stages.predict import predict_logits
from conlst.stages.progress import Progress
from conlst.stages.selflearn import Round, UncertainClassifier, self_learn
from conlst.stages.source import train_source
from conlst.training import Checkpoints, step_generator
from tiny import tiny_backbone, tiny_config, tiny_pairs, tokens_of

UNCERTAINTIES = ["none", "lou", "leu", "evi"]
WARMED = ["leu", "evi"]
POOL = 30
STILL: dict[str, Any] = {"lr": 1e-12, "head_lr": 1e-12}  # nothing moves, so every round sees the model as given


class Interrupted(Exception):
    """Stands for a kill."""


class Recorder(Progress):
    """Keeps what the stage tells, and may interrupt it."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__("test")
        self.told: list[tuple[int, int, int]] = []
        self._stop_after = stop_after

    def step(self, done: int, total: int, pairs: int, metrics: dict[str, float]) -> None:
        super().step(done, total, pairs, metrics)
        self.told.append((done, total, pairs))
        if len(self.told) == self._stop_after:
            raise Interrupted


@dataclass(frozen=True)
class World:
    """A source model that knows its task somewhat, and data."""

    backbone: Path
    start: Model
    source: TokenizedPairs
    labels: Tensor
    pool: TokenizedPairs

    def config(self, uncertainty: str = "none", seed: int = 13, backbone: dict[str, Any] | None = None, **section: Any) -> Config:
        base = {"lr": 1e-3, "head_lr": 1e-2, "batch_tokens": 200, "rounds": 2, "share": 0.1, "epochs": 2, "samples": 4}
        raw = tiny_config(self.backbone, selflearn={**base, "uncertainty": uncertainty, **section}, seed=seed)
        raw["backbone"] |= backbone or {}
        return config_from_dict(raw)

    def logits(self, config: Config) -> Tensor:
        """Of the pool, by the model as given."""
        return predict_logits(self.start.classifier, self.pool, config.compute, config.evaluate.batch_tokens)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    backbone = tiny_backbone(tmp_path_factory.mktemp("b"))
    trained = config_from_dict(tiny_config(backbone, source={"lr": 3e-3, "batch_tokens": 256, "epochs": 8}))
    start = load_backbone(trained.backbone, 1)
    source, labels = tokens_of(start, tiny_pairs(90, 1))
    train_source(start.classifier, source, labels, trained)
    few, few_labels = tokens_of(start, tiny_pairs(45, 2))
    pool, _ = tokens_of(start, tiny_pairs(POOL, 3))
    return World(backbone, start, few, few_labels, pool)


def run(
    world: World,
    config: Config,
    kept: Checkpoints | None = None,
    progress: Progress | None = None,
    languages: Tensor | None = None,
) -> tuple[list[Round], dict[str, Tensor]]:
    model = copy.deepcopy(world.start.classifier)
    rounds = self_learn(model, world.pool, world.source, world.labels, config, kept, progress, languages)
    assert not model.training
    return rounds, model.state_dict()


def same(one: tuple[list[Round], dict[str, Tensor]], other: tuple[list[Round], dict[str, Tensor]]) -> bool:
    return one[0] == other[0] and all(one[1][name].equal(other[1][name]) for name in one[1])


def taken(done: Round) -> list[int]:
    return [index for index, chosen in enumerate(done.selected) if chosen]


def best_of_each_class(certainty: list[float], predicted: list[int], among: list[int], count: int) -> list[int]:
    best = []
    for label in range(3):
        members = [index for index in among if predicted[index] == label]
        best += sorted(members, key=lambda index: -certainty[index])[:count]
    return sorted(best)


@pytest.mark.parametrize("ema", [0.0, 0.5])
@pytest.mark.parametrize("uncertainty", UNCERTAINTIES)
def test_resuming_after_any_step_is_the_straight_run(world: World, tmp_path: Path, uncertainty: str, ema: float) -> None:
    config = world.config(uncertainty, ema=ema)
    told = Recorder()
    straight = run(world, config, progress=told)
    assert len(told.told) >= 4
    for after in range(1, len(told.told) + 1):
        kept = Checkpoints(tmp_path / str(after), 1, "same")
        with pytest.raises(Interrupted):
            run(world, config, kept, Recorder(after))
        assert same(run(world, config, kept), straight), f"interrupted after step {after}"
        # the last checkpoint is still there: it ends the run without a further step
        again = Recorder()
        assert same(run(world, config, kept, again), straight)
        assert not again.told


@pytest.mark.parametrize("uncertainty", UNCERTAINTIES)
def test_a_run_that_dies_again_and_again_is_the_straight_run(world: World, tmp_path: Path, uncertainty: str) -> None:
    config = world.config(uncertainty)
    languages = torch.arange(POOL) % 2
    straight = run(world, config, languages=languages)
    kept = Checkpoints(tmp_path / "c", 2, "same")
    deaths = 0
    while deaths < 20:
        try:
            ended = run(world, config, kept, Recorder(4), languages)
            break
        except Interrupted:
            deaths += 1
    assert 0 < deaths < 20
    assert same(ended, straight)


def test_another_run_s_checkpoint_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(world, world.config(), Checkpoints(tmp_path / "c", 1, "this"), Recorder(2))
    with pytest.raises(ArtifactError, match="another run"):
        run(world, world.config(), Checkpoints(tmp_path / "c", 1, "other"))


@pytest.mark.parametrize("uncertainty", UNCERTAINTIES)
def test_the_seed_decides(world: World, uncertainty: str) -> None:
    torch.manual_seed(1)
    first = run(world, world.config(uncertainty, seed=1))
    torch.manual_seed(2)
    assert same(run(world, world.config(uncertainty, seed=1)), first)
    assert not same(run(world, world.config(uncertainty, seed=2)), first)


def test_every_uncertainty_is_another_training(world: World) -> None:
    found = [run(world, world.config(uncertainty)) for uncertainty in UNCERTAINTIES]
    assert all(not same(one, other) for number, one in enumerate(found) for other in found[:number])


@pytest.mark.parametrize(
    "other", [{"rounds": 3}, {"share": 0.2}, {"epochs": 1}, {"source_share": 2.0}, {"samples": 5}, {"ema": 0.9}], ids=str
)
def test_every_setting_changes_the_run(world: World, other: dict[str, Any]) -> None:
    assert not same(run(world, world.config("leu", **other)), run(world, world.config("leu")))


@pytest.mark.parametrize("uncertainty", UNCERTAINTIES)
def test_rounds_take_new_pairs_of_each_class_and_keep_the_old_ones(world: World, uncertainty: str) -> None:
    config = world.config(uncertainty, rounds=3, epochs=1)
    told = Recorder()
    rounds, _ = run(world, config, progress=told)
    warm_ups = int(uncertainty in WARMED)
    assert len(rounds) == 3 + warm_ups
    pseudo = [-1] * POOL
    for done in rounds[warm_ups:]:
        new = taken(done)
        assert new
        assert all(pseudo[index] == -1 for index in new)
        labels = [done.pseudo_labels[index] for index in new]
        assert max(labels.count(label) for label in range(3)) <= 3  # a tenth of 30
        pseudo = [done.pseudo_labels[index] if index in new else label for index, label in enumerate(pseudo)]
        assert done.pseudo_labels == pseudo
    # a round trains on all that was taken so far, once in each epoch
    trained = [sum(label >= 0 for label in done.pseudo_labels) or POOL for done in rounds]
    assert sum(pairs for _, _, pairs in told.told) == sum(trained)
    assert told.told[-1][0] == told.told[-1][1] == sum(len(done.losses) for done in rounds) == len(told.told)


@pytest.mark.parametrize("uncertainty", UNCERTAINTIES)
def test_the_surest_are_taken(world: World, uncertainty: str) -> None:
    config = world.config(uncertainty, **STILL)
    logits = world.logits(config).tolist()
    certainty, predicted = [], []
    for row in logits:
        predicted.append(row.index(max(row)))
        if uncertainty == "evi":
            evidence = [math.exp(x) if x <= 0 else x + 1 for x in row]
            total = sum(evidence) + 3
            conflict = 0.0
            for k in range(3):
                others = [j for j in range(3) if j != k]
                balances = [1 - abs(evidence[j] - evidence[k]) / (evidence[j] + evidence[k]) for j in others]
                weighted = sum(evidence[j] * balance for j, balance in zip(others, balances, strict=True))
                conflict += evidence[k] / total * weighted / sum(evidence[j] for j in others)
            certainty.append(-(0.1 * 3 / total + conflict))
        else:
            certainty.append(1 / sum(math.exp(x - max(row)) for x in row))
    rounds = run(world, config)[0]
    left = list(range(POOL))
    for number, done in list(enumerate(rounds))[int(uncertainty in WARMED) :]:
        if uncertainty == "leu":
            generator = step_generator(config.seed, "selflearn", number, "selection")
            averages = noisy_log_probabilities(torch.tensor(logits)[left], torch.zeros(len(left)), 4, generator).tolist()
            for index, row in zip(left, averages, strict=True):
                certainty[index], predicted[index] = max(row), row.index(max(row))
        assert taken(done) == best_of_each_class(certainty, predicted, left, 3)
        assert [done.pseudo_labels[index] for index in taken(done)] == [predicted[index] for index in taken(done)]
        left = [index for index in left if index not in taken(done)]


@pytest.mark.parametrize(("conflict", "first"), [(1.01, True), (0.99, False)])
def test_vacuity_counts_a_tenth_of_dissonance(
    world: World, monkeypatch: pytest.MonkeyPatch, conflict: float, first: bool
) -> None:
    # down the pool a pair lacks ten less and conflicts about one more than the pair before
    monkeypatch.setattr("conlst.stages.selflearn.vacuity", lambda evidence: -10.0 * torch.arange(len(evidence)))
    monkeypatch.setattr("conlst.stages.selflearn.dissonance", lambda evidence: conflict * torch.arange(len(evidence)))
    config = world.config("evi", **STILL)
    predicted = world.logits(config).argmax(1).tolist()
    certainty = [-float(index) if first else float(index) for index in range(POOL)]
    assert taken(run(world, config)[0][1]) == best_of_each_class(certainty, predicted, list(range(POOL)), 3)


def test_it_trains_with_dropout_and_predicts_without(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[tuple[bool, bool]] = []
    forward = UncertainClassifier.forward

    def record(self: UncertainClassifier, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        modes.append((self.model.training, torch.is_grad_enabled()))
        return forward(self, ids, mask)

    monkeypatch.setattr(UncertainClassifier, "forward", record)
    run(world, world.config("evi"))
    assert set(modes) == {(True, True), (False, False)}


def test_confidence_and_evidence_take_others(world: World) -> None:
    plain, evidential = (run(world, world.config(uncertainty, share=0.07, **STILL))[0] for uncertainty in ("none", "evi"))
    assert taken(plain[0]) != taken(evidential[1])


@pytest.mark.parametrize("uncertainty", UNCERTAINTIES)
def test_the_first_loss_is_the_mean_of_the_uncertainty_s_loss_over_target_and_source(world: World, uncertainty: str) -> None:
    config = world.config(uncertainty, backbone={"dropout": 0.0}, batch_tokens=100_000, source_share=0.5, **STILL)
    model = load_backbone(config.backbone, 4).classifier
    rounds = self_learn(copy.deepcopy(model), world.pool, world.source, world.labels, config)
    number = int(uncertainty in WARMED)
    chosen = torch.tensor([index for index, label in enumerate(rounds[number].pseudo_labels) if label >= 0])
    generator = step_generator(config.seed, "selflearn", number, 0)
    along = draw_of_like_length(world.source.lengths, round(0.5 * len(chosen)), generator)
    pseudo = torch.tensor(rounds[number].pseudo_labels)
    terms: list[float] = []
    for pairs, indices, labels in ((world.pool, chosen, pseudo), (world.source, along, world.labels)):
        logits = predict_logits(model, pairs, config.compute, 4096)[indices]
        noise = torch.randn(4, *logits.shape, generator=generator) if uncertainty == "leu" else torch.zeros(1, *logits.shape)
        # the batch comes in an order of its own, and noise is drawn by place
        order = _order(world, config, chosen, number) if pairs is world.pool else range(len(indices))
        for place, row in enumerate(order):
            label = int(labels[indices[row]])
            draws = [(logits[row] + noise[sample, place]).double().softmax(0).tolist() for sample in range(len(noise))]
            if uncertainty == "evi":
                alpha = [(math.exp(x) if x <= 0 else x + 1) + 1 for x in logits[row].tolist()]
                p = [a / sum(alpha) for a in alpha]
                errors = (((k == label) - p[k]) ** 2 + p[k] * (1 - p[k]) / (sum(alpha) + 1) for k in range(3))
                terms.append(sum(errors))
            else:
                # lou weighs by e^0 at first
                terms.append(-math.log(sum(draw[label] for draw in draws) / len(draws)))
    assert rounds[number].losses[0] == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def _order(world: World, config: Config, chosen: Tensor, number: int) -> list[int]:
    """Places in ``chosen`` of the pairs of the round's first and only batch."""
    lengths = world.pool.lengths[chosen]
    generator = step_generator(config.seed, "selflearn", number, "epoch", 0)
    shuffled = torch.randperm(len(chosen), generator=generator)
    return shuffled[lengths[shuffled].argsort(stable=True)].tolist()


@pytest.mark.parametrize("uncertainty", UNCERTAINTIES)
def test_a_warm_up_over_source_pairs_comes_where_the_head_is_new(world: World, monkeypatch: Any, uncertainty: str) -> None:
    seen: list[int] = []
    batch = TokenizedPairs.batch

    def record(self: TokenizedPairs, indices: Tensor, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        if self is world.pool:
            raise Interrupted
        seen.extend(indices.tolist())
        return batch(self, indices, device)

    monkeypatch.setattr(TokenizedPairs, "batch", record)
    with pytest.raises(Interrupted):
        run(world, world.config(uncertainty, epochs=3))
    # as many source pairs as the pool has, once, and no target pair before them
    assert len(seen) == len(set(seen)) == (POOL if uncertainty in WARMED else 0)
    monkeypatch.undo()
    first = run(world, world.config(uncertainty))[0][0]
    assert bool(taken(first)) is (uncertainty not in WARMED)
    assert first.losses


def test_a_small_source_is_passed_once(world: World) -> None:
    few = torch.arange(6)
    source = TokenizedPairs(world.source.ids[: world.source.offsets[6]], world.source.offsets[:7], world.source.pad_id)
    told = Recorder()
    self_learn(copy.deepcopy(world.start.classifier), world.pool, source, world.labels[few], world.config("evi"), None, told)
    assert told.told[0][2] == 6


@pytest.mark.parametrize("uncertainty", UNCERTAINTIES)
def test_parameters_of_the_uncertainty_are_checkpointed_and_thrown_away(world: World, tmp_path: Path, uncertainty: str) -> None:
    _, weights = run(world, world.config(uncertainty), Checkpoints(tmp_path / "c", 1, "x"), languages=torch.arange(POOL) % 2)
    assert set(weights) == set(world.start.classifier.state_dict())
    kept = load_file(tmp_path / "c" / "checkpoint.safetensors")
    assert kept["model/log_variance"].shape == (3,)  # two target languages and the source's
    assert kept["model/log_variance"].ne(0).tolist() == [uncertainty == "lou"] * 3
    assert kept["model/log_scale.weight"].any().item() is (uncertainty == "leu")
    assert kept["model/log_scale.bias"].any().item() is (uncertainty == "leu")


def test_languages_have_variances_of_their_own(world: World, tmp_path: Path) -> None:
    run(world, world.config("lou"), Checkpoints(tmp_path / "c", 1, "x"), languages=torch.arange(POOL) % 2)
    variances = load_file(tmp_path / "c" / "checkpoint.safetensors")["model/log_variance"]
    assert len(set(variances.tolist())) == 3


def test_parameters_of_the_uncertainty_have_the_head_s_rate(world: World, tmp_path: Path) -> None:
    def moved(head_lr: float) -> float:
        folder = tmp_path / str(head_lr)
        run(world, world.config("lou", head_lr=head_lr), Checkpoints(folder, 1, "x"))
        return load_file(folder / "checkpoint.safetensors")["model/log_variance"].abs().max().item()

    assert moved(1e-2) > 100 * moved(1e-5)
    learner = UncertainClassifier(world.start.classifier, 2)
    assert {id(parameter) for parameter in learner.heads()} == {
        id(parameter) for name, parameter in learner.named_parameters() if not name.startswith("model.encoder")
    }


def test_each_language_gives_its_share(world: World) -> None:
    languages = (torch.arange(POOL) >= 20).long()
    config = world.config(share=0.1, rounds=1, **STILL)
    logits = world.logits(config)
    certainty, predicted = (column.tolist() for column in logits.softmax(1).max(1))
    first, second = list(range(20)), list(range(20, POOL))
    expected = best_of_each_class(certainty, predicted, first, 2) + best_of_each_class(certainty, predicted, second, 1)
    assert taken(run(world, config, languages=languages)[0][0]) == expected
    assert taken(run(world, config)[0][0]) == best_of_each_class(certainty, predicted, first + second, 3)


def test_a_tiny_share_still_takes_one_of_each_class(world: World) -> None:
    config = world.config(share=0.001, rounds=1)
    done = run(world, config)[0][0]
    labels = [done.pseudo_labels[index] for index in taken(done)]
    assert sorted(labels) == world.logits(config).argmax(1).unique().tolist()


@pytest.mark.parametrize("uncertainty", ["none", "evi"])
def test_it_ends_when_the_pool_is_used_up(world: World, tmp_path: Path, uncertainty: str) -> None:
    config = world.config(uncertainty, share=1.0, rounds=4)
    told = Recorder()
    straight = run(world, config, progress=told)
    assert len(straight[0]) == 1 + int(uncertainty == "evi")
    assert all(straight[0][-1].selected)
    kept = Checkpoints(tmp_path / "c", 1, "same")
    with pytest.raises(Interrupted):
        run(world, config, kept, Recorder(len(told.told)))
    assert same(run(world, config, kept), straight)


def test_frozen_embeddings_stay_and_are_not_in_the_checkpoint(world: World, tmp_path: Path) -> None:
    model = copy.deepcopy(world.start.classifier)
    model.freeze_embeddings(True)
    before = model.embeddings.detach().clone()
    kept = Checkpoints(tmp_path / "c", 1, "x")
    self_learn(model, world.pool, world.source, world.labels, world.config("leu"), kept)
    assert model.embeddings.equal(before)
    assert not [name for name in load_file(tmp_path / "c" / "checkpoint.safetensors") if "word_embeddings" in name]


def test_a_nan_loss_stops_names_pairs_and_moves_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conlst.stages.selflearn.homoscedastic_loss", lambda losses, _: losses * float("nan"))
    model: PairClassifier = copy.deepcopy(world.start.classifier)
    with pytest.raises(TrainingError, match=r"step 0: loss nan.* pairs \[\d+(, \d+)*\]"):
        self_learn(model, world.pool, world.source, world.labels, world.config("lou"))
    assert all(tensor.equal(world.start.classifier.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_the_scale_is_float32_whatever_the_autocast(world: World) -> None:
    learner = UncertainClassifier(copy.deepcopy(world.start.classifier), 2)
    torch.nn.init.ones_(learner.log_scale.weight)
    with torch.autocast("cpu", torch.bfloat16):
        logits, log_scale = learner(*world.pool.batch(torch.arange(4)))
    assert logits.dtype == log_scale.dtype == torch.float32
    assert log_scale.shape == (4,)


@pytest.mark.parametrize("uncertainty", UNCERTAINTIES)
def test_bf16_trains_and_resumes(world: World, tmp_path: Path, uncertainty: str) -> None:
    raw = world.config(uncertainty).to_dict()
    config = config_from_dict({**raw, "compute": {**raw["compute"], "precision": "bf16"}})
    straight = run(world, config)
    assert not same(straight, run(world, world.config(uncertainty)))
    kept = Checkpoints(tmp_path / "c", 1, "same")
    with pytest.raises(Interrupted):
        run(world, config, kept, Recorder(3))
    assert same(run(world, config, kept), straight)
