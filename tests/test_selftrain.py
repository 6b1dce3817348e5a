"""What stage 2 makes of the rules, weights, alignment, dropout views, a teacher and averaged weights."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conlst.contract.config import Config, config_from_dict
from conlst.contract.errors import ConfigError, TrainingError
from conlst.data.tokens import TokenizedPairs
from conlst.method.alignment import align
from conlst.method.mixup import mixup
from conlst.method.thresholds import trust
from conlst.model.backbones import load_backbone
from conlst.model.encoder import PairClassifier
from conlst.model.folder import Model
from conlst.stages import selftrain as stage_module
from conlst.stages.predict import predict_logits
from conlst.stages.progress import Progress
from conlst.stages.selftrain import Round, self_train
from conlst.training import Checkpoints, step_generator
from tiny import counts_drawn, tiny_backbone, tiny_config, tiny_pairs, tokens_of

RULES = ["flexmatch", "fixed", "quantile", "freematch", "softmatch"]


@dataclass(frozen=True)
class World:
    """A model of spread-out confidences that predicts class 0 too often, and its data."""

    backbone: Path
    start: Model
    pool: TokenizedPairs
    source: TokenizedPairs
    labels: Tensor

    def config(self, **settings: Any) -> Config:
        section = {"lr": 1e-3, "threshold": 0.7, "floor": 0.4, "batch_tokens": 128, "max_iterations": 2, "stop_below": 0.0}
        return config_from_dict(tiny_config(self.backbone, selftrain={**section, **settings}))

    def predict(self, config: Config, dropout: bool = False) -> Tensor:
        model = self.start.classifier
        return predict_logits(model, self.pool, config.compute, config.evaluate.batch_tokens, dropout).softmax(1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    backbone = tiny_backbone(tmp_path_factory.mktemp("b"))
    start = load_backbone(config_from_dict(tiny_config(backbone)).backbone, 1)
    pool, source = tokens_of(start, tiny_pairs(36, 3))[0], tokens_of(start, tiny_pairs(30, 2))
    head, compute = start.classifier.classifier, config_from_dict(tiny_config(backbone)).compute
    with torch.no_grad():
        head.weight.mul_(20)
        head.bias += torch.tensor([1.6, 0.0, 0.0]) - predict_logits(start.classifier, pool, compute, 8192).mean(0)
    return World(backbone, start, pool, *source)


@dataclass
class Outcome:
    rounds: list[Round]
    weights: dict[str, Tensor]

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Outcome)
        equal = all(self.weights[name].equal(other.weights[name]) for name in self.weights)
        return self.rounds == other.rounds and equal


class Interrupted(Exception):
    """Stands for a kill."""


class Recorder(Progress):
    """Keeps what the stage tells, and may kill it."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__("test")
        self.told: list[dict[str, float]] = []
        self._stop_after = stop_after

    def step(self, done: int, total: int, pairs: int, metrics: dict[str, float]) -> None:
        super().step(done, total, pairs, metrics)
        self.told.append(metrics)
        if len(self.told) == self._stop_after:
            raise Interrupted


def run(world: World, config: Config, **more: Any) -> Outcome:
    model = copy.deepcopy(world.start.classifier)
    rounds = self_train(model, world.pool, None, world.source, world.labels, world.start.text, config, **more)
    assert not model.training
    return Outcome(rounds, model.state_dict())


def teacher_of(pool: TokenizedPairs) -> Tensor:
    return (3 * torch.randn(len(pool), 3, generator=torch.Generator().manual_seed(7))).softmax(1)


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_selects(world: World, rule: str) -> None:
    config = world.config(rule=rule, coverage=0.3, max_iterations=1)
    q = world.predict(config)
    weights, bars = trust(q, config.selftrain)
    done = run(world, config).rounds[0]
    assert done.bars == [bars.tolist()]
    assert len(done.bars[0]) == (0 if rule == "softmatch" else 3)
    assert done.pseudo_labels == q.argmax(1).tolist()
    assert done.selected == (weights > 0).tolist()
    assert 0 < sum(done.selected) < len(world.pool)


def test_source_share_is_of_the_batch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, half = (
        counts_drawn(
            stage_module,
            monkeypatch,
            lambda share=share: run(world, world.config(rule="fixed", threshold=0.4, max_iterations=1, source_share=share)),
        )
        for share in (1.0, 0.5)
    )
    assert max(whole) > 3
    assert half == [max(1, round(count / 2)) for count in whole]


def test_a_round_without_a_strong_view_is_refused_before_the_pool_is_predicted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_module, "predict_logits", lambda *_: pytest.fail("the pool was predicted"))
    config = world.config(masking=None, mixup=None, back_translation={"backend": "tsv:none.tsv"})
    with pytest.raises(ConfigError, match=r"no strong view is left.*selftrain\.masking or selftrain\.mixup, or another backend"):
        run(world, config)


def test_rules_select_differently(world: World) -> None:
    chosen = [tuple(run(world, world.config(rule=rule, coverage=0.3, max_iterations=1)).rounds[0].selected) for rule in RULES]
    assert len(set(chosen)) == len(RULES)


@pytest.mark.parametrize("view", ["masking", "mixup"])
def test_the_target_loss_is_the_mean_of_weight_times_loss(world: World, monkeypatch: pytest.MonkeyPatch, view: str) -> None:
    """A single step on the whole selection, against the loss written out for each pair."""
    single = {"masking": None, "mixup": None, view: {"masking": {"share": 1e-9}, "mixup": {"alpha": 4.0}}[view]}
    config = world.config(rule="softmatch", max_iterations=1, batch_tokens=100_000, lr=1e-9, **single)
    weights, _ = trust(world.predict(config), config.selftrain)
    pseudo = world.predict(config).argmax(1)
    partial = weights[(weights > 0) & (weights < 0.9)]
    assert len(partial) > 3
    seen: list[tuple[Tensor, Tensor]] = []
    whole = stage_module.soft_cross_entropy
    mixed: list[tuple[Tensor, Tensor]] = []

    def record(logits: Tensor, targets: Tensor) -> Tensor:
        seen.append((logits.detach(), targets))
        return whole(logits, targets)

    def mix(pooled: Tensor, targets: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        state = generator.get_state()
        rows = torch.eye(len(pooled))
        mixed.append((targets, mixup(rows, rows, alpha, generator)[0]))
        generator.set_state(state)
        return mixup(pooled, targets, alpha, generator)

    monkeypatch.setattr(stage_module, "soft_cross_entropy", record)
    monkeypatch.setattr(stage_module, "mixup", mix)
    told = Recorder()
    run(world, config, progress=told)
    ((logits, targets),) = seen
    order = stage_module.plan_batches(world.pool.lengths[weights > 0], 100_000, 1, config.seed, "selftrain", 0)[0]
    chosen = (weights > 0).nonzero().flatten()[order]
    log_p = logits.double().log_softmax(1)
    shares = mixed[0][1] if view == "mixup" else torch.eye(len(chosen))  # of each pair in each row
    total = 0.0
    for row in range(len(chosen)):
        for share, pair in zip(shares[row].tolist(), chosen.tolist(), strict=True):
            total -= share * weights[pair].item() * log_p[row, pseudo[pair]].item()
    assert told.told[0]["unsupervised"] == pytest.approx(total / len(chosen), rel=1e-4)
    assert targets.sum(1).tolist() == pytest.approx((shares @ weights[chosen]).tolist(), rel=1e-5)


def test_interpolation_stands_between_the_weights_before_and_after(world: World) -> None:
    before = world.start.classifier.state_dict()
    after = run(world, world.config()).weights
    between = run(world, world.config(interpolation=0.25)).weights
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved
    for name in before:
        torch.testing.assert_close(between[name], 0.75 * before[name] + 0.25 * after[name])
    assert not torch.equal(between[moved[0]], after[moved[0]])


def test_interpolation_knows_the_beginning_after_a_resume(world: World, tmp_path: Path) -> None:
    config = world.config(interpolation=0.5, max_iterations=2)
    whole = run(world, config)
    checkpoints = Checkpoints(tmp_path / "kept", every=1, identity="x")
    with pytest.raises(Interrupted):
        run(world, config, checkpoints=checkpoints, progress=Recorder(stop_after=len(whole.rounds[0].losses) + 1))
    resumed = run(world, config, checkpoints=checkpoints)
    assert all(torch.equal(resumed.weights[name], whole.weights[name]) for name in whole.weights)


def test_hard_rules_train_on_whole_labels(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, rows = stage_module.soft_cross_entropy, []

    def record(logits: Tensor, targets: Tensor) -> Tensor:
        rows.extend(targets.sum(1).tolist())
        return whole(logits, targets)

    monkeypatch.setattr(stage_module, "soft_cross_entropy", record)
    run(world, world.config(max_iterations=1))
    assert rows == pytest.approx([1.0] * len(rows))
    assert rows


def test_alignment_comes_before_labels_and_bars(world: World) -> None:
    config = world.config(rule="fixed", align=True, max_iterations=1)
    shares = torch.tensor([(world.labels == label).float().mean() for label in range(3)])
    plain = world.predict(config)
    aligned = align(plain, shares)
    assert not aligned.argmax(1).equal(plain.argmax(1))
    done = run(world, config).rounds[0]
    assert done.pseudo_labels == aligned.argmax(1).tolist()
    assert done.selected == (aligned.max(1).values >= 0.7).tolist()


@pytest.mark.parametrize("aligned", [False, True])
def test_every_view_must_agree(world: World, aligned: bool) -> None:
    def chosen(views: int) -> list[bool]:
        return run(world, world.config(rule="fixed", views=views, align=aligned, max_iterations=1)).rounds[0].selected

    config = world.config()
    shares = torch.bincount(world.labels) / len(world.labels)

    def read(q: Tensor) -> Tensor:
        return align(q, shares) if aligned else q

    q = read(world.predict(config))
    expected = q.max(1).values >= 0.7
    assert chosen(0) == expected.tolist()
    for view in range(4):
        step_generator(config.seed, "selftrain", 0, "view", view)
        expected &= read(world.predict(config, dropout=True)).argmax(1) == q.argmax(1)
        if view in (0, 3):
            assert chosen(view + 1) == expected.tolist()
    assert 0 < sum(chosen(4)) < sum(chosen(0))


def test_predictions_with_dropout_vary_and_the_mode_is_restored(world: World) -> None:
    config = world.config()
    assert not world.start.classifier.training
    torch.manual_seed(1)
    first, second = world.predict(config, dropout=True), world.predict(config, dropout=True)
    torch.manual_seed(1)
    assert world.predict(config, dropout=True).equal(first)
    assert not second.equal(first)
    assert not world.start.classifier.training
    assert world.predict(config).equal(world.predict(config))


def test_a_teacher_begins_and_then_has_half_a_say(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, config = teacher_of(world.pool), world.config(rule="fixed")
    own: list[Tensor] = []
    whole = stage_module.predict_logits

    def record(model: PairClassifier, *args: Any) -> Tensor:
        own.append(whole(model, *args).softmax(1))
        return own[-1].log()

    monkeypatch.setattr(stage_module, "predict_logits", record)
    first, second = run(world, config, teacher=teacher).rounds
    assert first.pseudo_labels == teacher.argmax(1).tolist()
    assert first.selected == (teacher.max(1).values >= 0.7).tolist()
    assert len(own) == 1  # not asked in the first round
    both = (own[0] + teacher) / 2
    assert second.pseudo_labels == both.argmax(1).tolist()
    assert second.selected == (both.max(1).values >= 0.7).tolist()
    assert second.pseudo_labels not in (own[0].argmax(1).tolist(), first.pseudo_labels)


def test_a_teacher_is_aligned_and_checked_by_views_too(world: World) -> None:
    teacher, shares = teacher_of(world.pool), torch.bincount(world.labels) / len(world.labels)
    done = run(world, world.config(align=True, max_iterations=1, views=1), teacher=teacher).rounds[0]
    pseudo = align(teacher, shares).argmax(1)
    assert done.pseudo_labels == pseudo.tolist()
    step_generator(world.config().seed, "selftrain", 0, "view", 0)
    view = align(world.predict(world.config(), dropout=True), shares).argmax(1)
    assert not any(chosen and not same for chosen, same in zip(done.selected, (view == pseudo).tolist(), strict=True))


@pytest.mark.parametrize("shape", [(35, 3), (36, 2)])
def test_a_teacher_of_another_pool_is_refused(world: World, shape: tuple[int, int]) -> None:
    with pytest.raises(TrainingError, match=rf"teacher's predictions are \[{shape[0]}, {shape[1]}\], not \[36, 3\]"):
        run(world, world.config(), teacher=torch.full(shape, 1 / 3))


def test_views_that_never_agree_are_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    config, whole = world.config(views=1), stage_module.predict_logits

    def contrary(model: PairClassifier, pool: TokenizedPairs, *args: Any) -> Tensor:
        logits = whole(model, pool, *args)
        if not args[-1]:
            return logits
        return F.one_hot((world.predict(config).argmax(1) + 1) % 3, 3).float()

    monkeypatch.setattr(stage_module, "predict_logits", contrary)
    with pytest.raises(TrainingError, match=r"or ask fewer selftrain\.views"):
        run(world, config)


def test_each_round_ends_with_the_average(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    last, averaged = run(world, world.config()), run(world, world.config(ema=0.9))
    # the first rounds see the same model; the next one begins with the averaged weights
    assert averaged.rounds[0] == last.rounds[0]
    assert averaged.rounds[1].losses != last.rounds[1].losses
    seen: list[dict[str, Tensor]] = []
    whole = stage_module.predict_logits

    def record(model: PairClassifier, *args: Any) -> Tensor:
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return whole(model, *args)

    monkeypatch.setattr(stage_module, "predict_logits", record)
    run(world, world.config(ema=0.9))
    single = run(world, world.config(ema=0.9, max_iterations=1)).weights
    assert all(tensor.equal(seen[1][name]) for name, tensor in single.items())


@pytest.mark.parametrize(
    ("rule", "settings", "taught"),
    [
        ("flexmatch", {"align": True}, True),
        ("fixed", {"views": 2}, False),
        ("quantile", {"align": True, "views": 2, "ema": 0.9}, True),
        ("freematch", {"align": True, "ema": 0.5}, False),
        ("softmatch", {"views": 1, "ema": 0.9}, False),
    ],
)
def test_resuming_around_each_round_s_end_is_the_straight_run(
    world: World, tmp_path: Path, rule: str, settings: dict[str, Any], taught: bool
) -> None:
    config = world.config(rule=rule, batch_tokens=64, coverage=0.8, **settings)
    teacher = teacher_of(world.pool) if taught else None
    told = Recorder()
    straight = run(world, config, progress=told, teacher=teacher)
    first, both = len(straight.rounds[0].losses), len(told.told)
    assert both > first > 1
    for after in sorted({1, first, first + 1, both}):
        kept = Checkpoints(tmp_path / str(after), 1, "same")
        with pytest.raises(Interrupted):
            run(world, config, checkpoints=kept, progress=Recorder(after), teacher=teacher)
        for _ in range(2):  # the second time from the checkpoint of the last step
            assert run(world, config, checkpoints=kept, teacher=teacher) == straight, f"interrupted after step {after}"


def test_languages_are_aligned_and_selected_from_by_themselves(world: World) -> None:
    """Two languages with opposite biases: together they look unbiased."""
    languages = (world.predict(world.config()).argmax(1) == 0).long()
    config = world.config(rule="quantile", coverage=0.5, floor=0.34, align=True, max_iterations=1)
    shares = torch.bincount(world.labels) / len(world.labels)
    q = world.predict(config)
    selected = torch.zeros(len(q), dtype=torch.bool)
    bars = []
    for language in (0, 1):
        members = languages == language
        q[members] = align(q[members], shares)
        weights, own = trust(q[members], config.selftrain)
        selected[members] = weights > 0
        bars.append(own.tolist())
    done = run(world, config, languages=languages).rounds[0]
    assert done.pseudo_labels == q.argmax(1).tolist()
    assert done.selected == selected.tolist()
    assert done.bars == bars
    together = run(world, config).rounds[0]
    assert together.pseudo_labels != done.pseudo_labels


def test_a_rebalanced_model_predicts_the_sources_shares(world: World) -> None:
    shares = torch.bincount(world.labels) / len(world.labels)
    config = world.config(rebalance=True)
    outcome = run(world, config)
    model = copy.deepcopy(world.start.classifier)
    model.load_state_dict(outcome.weights)
    found = predict_logits(model, world.pool, config.compute, config.evaluate.batch_tokens).softmax(1).mean(0)
    torch.testing.assert_close(found, shares, atol=1e-3, rtol=0)
    plain = run(world, world.config())
    assert plain.rounds == outcome.rounds
    moved = [name for name, weight in plain.weights.items() if not weight.equal(outcome.weights[name])]
    assert moved == ["classifier.bias"]


def test_without_an_iteration_only_the_bias_moves(world: World) -> None:
    outcome = run(world, world.config(rebalance=True, max_iterations=0))
    assert outcome.rounds == []
    before = world.start.classifier.state_dict()
    assert [name for name in before if not before[name].equal(outcome.weights[name])] == ["classifier.bias"]


def test_no_iteration_and_no_rebalancing_is_nothing(world: World) -> None:
    with pytest.raises(ConfigError, match="max_iterations 0 does nothing without rebalance"):
        world.config(max_iterations=0)


def test_shares_that_are_known_take_the_place_of_the_sources(world: World) -> None:
    shares = (0.2, 0.5, 0.3)
    config = world.config(rule="fixed", align=True, rebalance=True, shares=shares, max_iterations=1)
    outcome = run(world, config)
    assert outcome.rounds[0].pseudo_labels == align(world.predict(config), torch.tensor(shares)).argmax(1).tolist()
    model = copy.deepcopy(world.start.classifier)
    model.load_state_dict(outcome.weights)
    found = predict_logits(model, world.pool, config.compute, config.evaluate.batch_tokens).softmax(1).mean(0)
    torch.testing.assert_close(found, torch.tensor(shares), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"align": True, "shares": (0.5, 0.3, 0.3)}, "add up to 1.1, not to 1"),
        ({"align": True, "shares": (1.0, 0.0, 0.0)}, "shares"),
        ({"shares": (0.5, 0.3, 0.2)}, "changes nothing without align or rebalance"),
    ],
)
def test_wrong_shares_are_refused(world: World, settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        world.config(**settings)
