"""X-MAML: its gradient against one by hand, every option, and that a resumed run is the straight one, bit for bit."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conlst.contract.config import Config, config_from_dict
from conlst.contract.errors import ArtifactError, ConfigError, TrainingError
from conlst.data.tokens import TokenizedPairs
from conlst.model.backbones import load_backbone
from conlst.model.dropout import Dropout
from conlst.model.encoder import PairClassifier
from conlst.model.folder import Model
from conlst.stages.metalearn import inner_step, meta_learn
from conlst.stages.progress import Progress
from conlst.stages.source import train_source
from conlst.training import Checkpoints
from tiny import tiny_backbone, tiny_config, tiny_pairs, tokens_of

Auxiliary = dict[str, tuple[TokenizedPairs, Tensor]]


class Interrupted(Exception):
    """Stands for a kill."""


class Stopper(Progress):
    """Keeps how many pairs each step had, and may interrupt the stage."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__("test")
        self.pairs: list[int] = []
        self._stop_after = stop_after

    def step(self, done: int, total: int, pairs: int, metrics: dict[str, float]) -> None:
        super().step(done, total, pairs, metrics)
        self.pairs.append(pairs)
        if len(self.pairs) == self._stop_after:
            raise Interrupted


@dataclass
class Outcome:
    losses: list[float]
    weights: dict[str, Tensor]
    gradients: dict[str, Tensor]

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Outcome)
        return self.losses == other.losses and all(self.weights[name].equal(other.weights[name]) for name in self.weights)


@dataclass(frozen=True)
class World:
    """A fine-tuned model and two auxiliary languages."""

    backbone: Path
    start: Model
    auxiliary: Auxiliary

    def config(self, seed: int = 13, precision: str = "fp32", source: dict[str, Any] | None = None, **section: Any) -> Config:
        meta = {"languages": ["ar", "es"], "inner_lr": 0.1, "outer_lr": 1e-3, "steps": 5, **section}
        raw = tiny_config(self.backbone, source={"batch_tokens": 160, **(source or {}), "meta_learning": meta}, seed=seed)
        raw["compute"]["precision"] = precision
        return config_from_dict(raw)

    def run(
        self,
        config: Config,
        checkpoints: Checkpoints | None = None,
        progress: Progress | None = None,
        change: Callable[[PairClassifier], None] | None = None,
    ) -> Outcome:
        model = copy.deepcopy(self.start.classifier)
        if change:
            change(model)
        auxiliary = {language: self.auxiliary[language] for language in config.source.meta_learning.languages}  # type: ignore[union-attr]
        losses = meta_learn(model, auxiliary, config, checkpoints, progress)
        assert not model.training
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return Outcome(losses, model.state_dict(), gradients)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    backbone = tiny_backbone(tmp_path_factory.mktemp("b"))
    trained = config_from_dict(tiny_config(backbone, source={"lr": 3e-3, "batch_tokens": 256, "epochs": 3}))
    start = load_backbone(trained.backbone, 1)
    train_source(start.classifier, *tokens_of(start, tiny_pairs(60, 1)), trained)
    auxiliary = {language: tokens_of(start, tiny_pairs(30, seed)) for seed, language in enumerate(("ar", "es", "ru"), 2)}
    return World(backbone, start, auxiliary)


def test_the_gradient_through_an_inner_step_is_that_by_hand() -> None:
    # support ½θᵀAθ - bᵀθ and query ½θᵀCθ - dᵀθ: θ' = θ - α(Aθ - b), and the gradient is (I - αA)(Cθ' - d)
    torch.manual_seed(0)
    a, c = (m @ m.T for m in torch.randn(2, 4, 4, dtype=torch.float64))
    b, d, theta = torch.randn(3, 4, dtype=torch.float64)
    rate = 0.3
    by_hand = theta - rate * (a @ theta - b)
    first = c @ by_hand - d
    second = first - rate * a @ first

    for order, expected in ((1, first), (2, second)):
        weights = {"theta": theta.clone().requires_grad_()}
        support = weights["theta"] @ a @ weights["theta"] / 2 - b @ weights["theta"]
        adapted = inner_step(weights, support, rate, order)
        torch.testing.assert_close(adapted["theta"].detach(), by_hand, rtol=0, atol=1e-12)
        query = adapted["theta"] @ c @ adapted["theta"] / 2 - d @ adapted["theta"]
        (gradient,) = torch.autograd.grad(query, weights["theta"])
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)
    assert (first - second).abs().max() > 0.1


def test_a_weight_that_the_support_does_not_move_still_learns_from_the_query() -> None:
    weights = {
        name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in (("used", 2.0), ("not", 3.0))
    }
    adapted = inner_step(weights, weights["used"] ** 2, 0.25, 2)
    assert adapted["used"].item() == 2 - 0.25 * 4
    assert adapted["not"].item() == 3
    (adapted["used"] * adapted["not"]).backward()
    # d/du of (u - α 2u) n is (1 - 2α) n
    assert weights["used"].grad == 0.5 * 3
    assert weights["not"].grad == 1


def test_our_dropout_has_the_second_derivatives_of_its_mask() -> None:
    def product(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return Dropout(0.4)(x.square()).pow(3)

    x = torch.rand(11, dtype=torch.float64) + 0.5
    x.requires_grad_()
    assert torch.autograd.gradgradcheck(product, x)


@pytest.mark.parametrize("attention", ["conlst_plain", "sdpa"])
@pytest.mark.parametrize("pooling", ["mean", "pair"])
def test_a_step_s_gradient_sums_the_languages_and_sees_the_support_s_curvature(
    world: World, attention: str, pooling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tiny_config(world.backbone)
    raw["backbone"] |= {"dropout": 0.0, "pooling": pooling}
    model = load_backbone(config_from_dict(raw).backbone, 1).classifier
    rate, halves = 0.3, []
    batch = TokenizedPairs.batch

    def record(self: TokenizedPairs, indices: Tensor, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        halves.append((self, indices))
        return batch(self, indices, device)

    def found(order: int) -> Outcome:
        halves.clear()
        monkeypatch.setattr(TokenizedPairs, "batch", record)
        start = copy.deepcopy(model)
        start.encoder.set_attn_implementation(attention)
        config = world.config(order=order, inner_lr=rate, steps=1, outer_lr=1e-9, source={"max_grad_norm": 1e9})
        losses = meta_learn(start, {name: world.auxiliary[name] for name in ("ar", "es")}, config)
        monkeypatch.setattr(TokenizedPairs, "batch", batch)
        return Outcome(losses, {}, {name: p.grad for name, p in start.named_parameters() if p.grad is not None})

    outcomes = {order: found(order) for order in (1, 2)}
    labels = {id(pairs): truth for pairs, truth in world.auxiliary.values()}
    names = [name for name, _ in model.named_parameters() if not name.startswith("projector")]
    parameters = [dict(model.named_parameters())[name] for name in names]

    def gradient(point: list[Tensor], half: tuple[TokenizedPairs, Tensor]) -> tuple[list[Tensor], float]:
        with torch.no_grad():
            for parameter, value in zip(parameters, point, strict=True):
                parameter.copy_(value)
        pairs, indices = half
        loss = F.cross_entropy(model(*batch(pairs, indices)), labels[id(pairs)][indices])
        return list(torch.autograd.grad(loss, parameters)), loss.item()

    theta = [parameter.detach().clone() for parameter in parameters]
    sums = {order: [torch.zeros_like(t) for t in theta] for order in (1, 2)}
    value = 0.0
    assert len(halves) == 4
    for support, query in (halves[:2], halves[2:]):
        assert support[0] is query[0]
        descent, _ = gradient(theta, support)
        g, loss = gradient([t - rate * d for t, d in zip(theta, descent, strict=True)], query)
        value += loss
        # curvature times g as a central difference of the support's gradient
        h = 1e-2 / torch.cat([x.flatten() for x in g]).norm().item()
        up, _ = gradient([t + h * x for t, x in zip(theta, g, strict=True)], support)
        down, _ = gradient([t - h * x for t, x in zip(theta, g, strict=True)], support)
        for k in range(len(theta)):
            sums[1][k] += g[k]
            sums[2][k] += g[k] - rate * (up[k] - down[k]) / (2 * h)

    def flat(tensors: list[Tensor]) -> Tensor:
        return torch.cat([t.flatten() for t in tensors])

    for order, outcome in outcomes.items():
        assert outcome.losses == [pytest.approx(value, rel=1e-5)]
        expected, got = flat(sums[order]), flat([outcome.gradients[name] for name in names])
        assert (got - expected).norm() < 0.01 * (flat(sums[1]) - flat(sums[2])).norm()
    assert (flat(sums[1]) - flat(sums[2])).norm() > 0.02 * flat(sums[1]).norm()


CASES = [
    pytest.param({}, id="order-2"),
    pytest.param({"order": 1}, id="order-1"),
    pytest.param({"source": {"ema": 0.9}}, id="ema"),
    pytest.param({"precision": "bf16"}, id="bf16"),
]


@pytest.mark.parametrize("section", CASES)
def test_resuming_after_any_step_is_the_straight_run(world: World, tmp_path: Path, section: dict[str, Any]) -> None:
    config = world.config(**section)
    told = Stopper()
    straight = world.run(config, progress=told)
    assert len(told.pairs) == len(straight.losses) == 5
    for after in range(1, 6):
        kept = Checkpoints(tmp_path / str(after), 1, "same")
        with pytest.raises(Interrupted):
            world.run(config, kept, Stopper(after))
        assert world.run(config, kept) == straight, f"interrupted after step {after}"
    sparse = Checkpoints(tmp_path / "sparse", 2, "same")
    with pytest.raises(Interrupted):
        world.run(config, sparse, Stopper(4))
    assert world.run(config, sparse) == straight
    with pytest.raises(ArtifactError, match="another run"):
        world.run(config, Checkpoints(tmp_path / "sparse", 2, "other"))


@pytest.mark.parametrize(
    "section",
    [
        {"order": 1},
        {"inner_lr": 0.05},
        {"outer_lr": 5e-4},
        {"steps": 4},
        {"languages": ["ar"]},
        {"languages": ["ar", "ru"]},
        {"seed": 14},
        {"precision": "bf16"},
        {"source": {"label_smoothing": 0.2}},
        {"source": {"ema": 0.9}},
        {"source": {"max_grad_norm": 0.01, "weight_decay": 0.1}},
    ],
)
def test_every_option_makes_another_model(world: World, section: dict[str, Any]) -> None:
    assert world.run(world.config(**section)) != world.run(world.config())


def test_the_rates_of_stage_0_are_not_those_of_the_outer_step(world: World) -> None:
    assert world.run(world.config(source={"lr": 0.5, "head_lr": 0.7})) == world.run(world.config())


def test_the_run_s_seed_decides_and_no_other(world: World) -> None:
    torch.manual_seed(1)
    first = world.run(world.config())
    torch.manual_seed(2)
    assert world.run(world.config()) == first


def test_halves_are_disjoint_alike_and_of_every_language(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, list[int]]] = []
    names = {id(pairs): language for language, (pairs, _) in world.auxiliary.items()}
    batch = TokenizedPairs.batch

    def record(self: TokenizedPairs, indices: Tensor, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        seen.append((names[id(self)], indices.tolist()))
        return batch(self, indices, device)

    monkeypatch.setattr(TokenizedPairs, "batch", record)
    told = Stopper()
    world.run(world.config(steps=12), progress=told)
    assert [language for language, _ in seen] == ["ar", "ar", "es", "es"] * 12
    differences = []
    for (language, support), (_, query) in zip(seen[::2], seen[1::2], strict=True):
        assert not set(support) & set(query)
        assert 0 <= len(support) - len(query) <= 1
        lengths = world.auxiliary[language][0].lengths.double()
        differences.append((lengths[support].mean() - lengths[query].mean()).item())
    # neither half is the longer one as a rule
    assert min(differences) < 0 < max(differences)
    assert told.pairs == [sum(len(half) for _, half in seen[4 * n : 4 * n + 4]) for n in range(12)]
    # all pairs come before any comes again
    taken = [index for language, half in seen if language == "ar" for index in half]
    assert len(set(taken[:25])) == 25
    assert len(taken) > 30


def test_adapting_becomes_easier(world: World) -> None:
    losses = world.run(world.config(steps=40, outer_lr=3e-3)).losses
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_a_frozen_table_stays_and_the_rest_learns(world: World) -> None:
    table = "encoder.embeddings.word_embeddings.weight"
    before = world.start.classifier.state_dict()
    frozen = world.run(world.config(), change=lambda model: model.freeze_embeddings(True)).weights
    free = world.run(world.config()).weights
    assert frozen[table].equal(before[table])
    assert not free[table].equal(before[table])
    for name in ("encoder.encoder.layer.0.attention.self.query.weight", "classifier.weight"):
        assert not frozen[name].equal(before[name])
    # the contrastive head has no part in the loss
    assert free["projector.weight"].equal(before["projector.weight"])


def test_what_is_missing_is_named(world: World) -> None:
    model = copy.deepcopy(world.start.classifier)
    with pytest.raises(ConfigError, match=r"source\.meta_learning is not set"):
        meta_learn(model, {}, config_from_dict(tiny_config(world.backbone)))
    with pytest.raises(ConfigError, match=r"languages are ar, es, and there are labelled pairs of ar, ru"):
        meta_learn(model, {name: world.auxiliary[name] for name in ("ar", "ru")}, world.config())
    with pytest.raises(ConfigError, match=r"labelled pairs of none"):
        meta_learn(model, {}, world.config())
    with pytest.raises(ConfigError, match=r"no batch of ar holds two pairs.*raise source\.batch_tokens"):
        world.run(world.config(source={"batch_tokens": 16}))


def test_a_step_that_overflows_is_refused_and_moves_nothing(world: World) -> None:
    model = copy.deepcopy(world.start.classifier)
    auxiliary = {name: world.auxiliary[name] for name in ("ar", "es")}
    with pytest.raises(TrainingError, match="step 0: loss"):
        meta_learn(model, auxiliary, world.config(inner_lr=1e38))
    assert all(tensor.equal(world.start.classifier.state_dict()[name]) for name, tensor in model.state_dict().items())
