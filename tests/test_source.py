"""Robust trainings of stage 0: each loss is its formula, every option changes what it says, a resumed run is the straight one."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conlst.contract.config import Config, config_from_dict
from conlst.contract.errors import ConfigError
from conlst.data.tokens import TokenizedPairs
from conlst.method.masking import mask_tokens
from conlst.model.backbones import load_backbone
from conlst.model.encoder import PairClassifier
from conlst.model.folder import Model
from conlst.stages.progress import Progress
from conlst.stages.source import train_source
from conlst.training import Checkpoints, plan_batches, step_generator
from tiny import tiny_backbone, tiny_config, tiny_pairs, tokens_of

EPT_APT = {"synonyms": "none.tsv", "layer": 1}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "plain": {},
    "masking": {"masking": {"share": 0.3}},
    "r3f": {"r3f": {"eps": 1e-3}},
    "r3f-masking": {"r3f": {"eps": 1e-3, "noise": "normal"}, "masking": {"share": 0.3}},
    "perturbation": {"perturbation": {"sigma": 0.1}},
    "ept_apt": {"ept_apt": EPT_APT},
    "ept_apt-masking": {"ept_apt": EPT_APT, "masking": {"share": 0.3}},
    "ema": {"ema": 0.9},
}
CASES = [pytest.param(section, id=name) for name, section in OBJECTIVES.items()]


class Interrupted(Exception):
    """Stands for a kill."""


class Stopper(Progress):
    """Counts the steps, and may interrupt the stage."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__("test")
        self.steps = 0
        self._stop_after = stop_after

    def step(self, done: int, total: int, pairs: int, metrics: dict[str, float]) -> None:
        super().step(done, total, pairs, metrics)
        self.steps += 1
        if self.steps == self._stop_after:
            raise Interrupted


@dataclass
class Outcome:
    losses: list[float]
    weights: dict[str, Tensor]

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Outcome)
        return self.losses == other.losses and all(self.weights[name].equal(other.weights[name]) for name in self.weights)


@dataclass(frozen=True)
class World:
    backbone: Path
    start: Model
    pairs: TokenizedPairs
    labels: Tensor
    copies: TokenizedPairs

    def config(self, dropout: float = 0.1, seed: int = 13, precision: str = "fp32", **section: Any) -> Config:
        source = {"lr": 1e-3, "batch_tokens": 128, "epochs": 1, **section}
        raw = tiny_config(self.backbone, source=source, seed=seed)
        raw["backbone"]["dropout"] = dropout
        raw["compute"]["precision"] = precision
        return config_from_dict(raw)

    def classifier(self, config: Config) -> PairClassifier:
        return copy.deepcopy(self.start.classifier) if config.backbone.dropout else load_backbone(config.backbone, 1).classifier

    def run(self, config: Config, checkpoints: Checkpoints | None = None, progress: Progress | None = None) -> Outcome:
        model = self.classifier(config)
        losses = train_source(
            model, self.pairs, self.labels, config, checkpoints, progress, copies=self.copies, text=self.start.text
        )
        assert not model.training
        return Outcome(losses, {name: tensor.clone() for name, tensor in model.state_dict().items()})

    def first_loss(self, **section: Any) -> float:
        """Of one batch of all pairs, by the model as given, without dropout."""
        return self.run(self.config(dropout=0, batch_tokens=100_000, **section)).losses[0]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    backbone = tiny_backbone(tmp_path_factory.mktemp("b"))
    start = load_backbone(config_from_dict(tiny_config(backbone)).backbone, 1)
    rows = tiny_pairs(45, 1)
    pairs, labels = tokens_of(start, rows)
    # copies of other lengths than their pairs: some words become two, some texts lose one
    changed = [
        {**row, "premise": row["premise"].replace("the", "a red") if n % 2 else " ".join(row["premise"].split()[1:])}
        for n, row in enumerate(rows)
    ]
    copies, _ = tokens_of(start, changed)
    assert not copies.lengths.equal(pairs.lengths)
    return World(backbone, start, pairs, labels, copies)


@pytest.mark.parametrize("section", CASES)
def test_resuming_after_any_step_is_the_straight_run(world: World, tmp_path: Path, section: dict[str, Any]) -> None:
    config = world.config(**section)
    told = Stopper()
    straight = world.run(config, progress=told)
    assert told.steps >= 4
    for after in range(1, told.steps + 1):
        kept = Checkpoints(tmp_path / str(after), 1, "same")
        with pytest.raises(Interrupted):
            world.run(config, kept, Stopper(after))
        assert world.run(config, kept) == straight, f"interrupted after step {after}"


@pytest.mark.parametrize("section", CASES)
def test_bf16_trains_and_resumes_too(world: World, tmp_path: Path, section: dict[str, Any]) -> None:
    config = world.config(**section, precision="bf16")
    straight = world.run(config)
    assert straight != world.run(world.config(**section))
    assert all(torch.isfinite(tensor).all() for tensor in straight.weights.values())
    kept = Checkpoints(tmp_path / "c", 2, "same")
    with pytest.raises(Interrupted):
        world.run(config, kept, Stopper(3))
    assert world.run(config, kept) == straight


@pytest.mark.parametrize("section", CASES)
def test_the_seed_decides(world: World, section: dict[str, Any]) -> None:
    torch.manual_seed(1)
    first = world.run(world.config(**section, seed=1))
    torch.manual_seed(2)
    assert world.run(world.config(**section, seed=1)) == first
    assert world.run(world.config(**section, seed=2)) != first


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"masking": {"share": 0.15}}),
        ({"masking": {"share": 0.15}}, {"masking": {"share": 0.4}}),
        ({}, {"r3f": {}}),
        ({"r3f": {}}, {"r3f": {"weight": 5.0}}),
        ({"r3f": {"eps": 0.01}}, {"r3f": {"eps": 0.1}}),
        ({"r3f": {"eps": 0.1}}, {"r3f": {"eps": 0.1, "noise": "normal"}}),
        ({}, {"perturbation": {}}),
        ({"perturbation": {}}, {"perturbation": {"sigma": 0.1}}),
        ({}, {"ept_apt": EPT_APT}),
        ({"ept_apt": EPT_APT}, {"ept_apt": {**EPT_APT, "push": 1.0}}),
        ({"ept_apt": EPT_APT}, {"ept_apt": {**EPT_APT, "pull": 9.0}}),
        ({"ept_apt": EPT_APT}, {"ept_apt": {**EPT_APT, "robust": 0.5}}),
        ({"ept_apt": EPT_APT}, {"ept_apt": {**EPT_APT, "layer": 0}}),
        ({"ept_apt": EPT_APT}, {"ept_apt": EPT_APT, "masking": {"share": 0.15}}),
        ({}, {"ema": 0.9}),
    ],
)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_every_option_makes_another_model(world: World, one: dict[str, Any], other: dict[str, Any], smoothing: float) -> None:
    first, second = (world.run(world.config(**section, label_smoothing=smoothing)) for section in (one, other))
    assert first != second


@pytest.mark.parametrize("objective", ["r3f", "perturbation", "ept_apt"])
def test_the_gradient_of_a_step_is_finite_and_reaches_the_table(world: World, objective: str) -> None:
    before = world.start.classifier.state_dict()["encoder.embeddings.word_embeddings.weight"]
    after = world.run(world.config(**OBJECTIVES[objective])).weights["encoder.embeddings.word_embeddings.weight"]
    assert not after.equal(before)


def logits_of(model: PairClassifier, pairs: TokenizedPairs, noise: Tensor | None = None) -> Tensor:
    """Of each pair by itself, without dropout; ``noise`` ``[n, length, hidden]`` is added to its embeddings."""
    model.eval()
    rows = []
    for index in range(len(pairs)):
        ids, mask = pairs.batch(torch.tensor([index]))
        embedded = model.embeddings[ids]
        if noise is not None:
            embedded = embedded + noise[index : index + 1, : ids.shape[1]]
        rows.append(model.classifier(model.encode_embedded(embedded, ids, mask)))
    return torch.cat(rows)


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> float:
    truth = F.one_hot(labels, 3).double() * (1 - smoothing) + smoothing / 3
    return -(truth * logits.double().log_softmax(1)).sum(1).mean().item()


def only_batch(world: World, config: Config) -> Tensor:
    """The pairs in the order in which a single batch of all has them."""
    (indices,) = plan_batches(world.pairs.lengths, 100_000, 1, config.seed, "source")
    return indices


def noise_of(world: World, config: Config, kind: str, scale: float) -> Tensor:
    """What the first step draws, ``[n, length, hidden]``, put back into the order of the pairs."""
    indices, generator = only_batch(world, config), step_generator(config.seed, "source", 0)
    noise = torch.empty(len(indices), int(world.pairs.lengths.max()), 32)
    drawn = (
        noise.uniform_(-scale, scale, generator=generator) if kind == "uniform" else noise.normal_(0, scale, generator=generator)
    )
    return drawn[indices.argsort()]


@pytest.mark.parametrize("noise", ["uniform", "normal"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_r3f_is_cross_entropy_and_weighted_divergence(world: World, noise: str, smoothing: float) -> None:
    section = {"r3f": {"weight": 3.0, "eps": 0.3, "noise": noise}, "label_smoothing": smoothing}
    config = world.config(dropout=0, batch_tokens=100_000, **section)
    model = world.classifier(config)
    with torch.inference_mode():
        clean = logits_of(model, world.pairs)
        perturbed = logits_of(model, world.pairs, noise_of(world, config, noise, 0.3))
    p, q = clean.double().softmax(1), perturbed.double().softmax(1)
    divergence = (p * (p / q).log() + q * (q / p).log()).sum(1).mean().item()
    assert divergence > 1e-4
    expected = cross_entropy(clean, world.labels, smoothing) + 3 * divergence
    assert world.first_loss(**section) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_perturbation_is_the_cross_entropy_of_perturbed_embeddings(world: World, smoothing: float) -> None:
    section = {"perturbation": {"sigma": 0.3}, "label_smoothing": smoothing}
    config = world.config(dropout=0, batch_tokens=100_000, **section)
    with torch.inference_mode():
        perturbed = logits_of(world.classifier(config), world.pairs, noise_of(world, config, "normal", 0.3))
    expected = cross_entropy(perturbed, world.labels, smoothing)
    assert world.first_loss(**section) == pytest.approx(expected, rel=1e-5)
    assert abs(expected - world.first_loss(label_smoothing=smoothing)) > 1e-4


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_ept_apt_is_the_sum_of_its_four_terms(world: World, smoothing: float) -> None:
    weights = {"push": 0.7, "pull": 50.0, "robust": 0.4, "layer": 1}
    section = {"ept_apt": {"synonyms": "none.tsv", **weights}, "label_smoothing": smoothing}
    config = world.config(dropout=0, batch_tokens=100_000, **section)
    model = world.classifier(config)
    push, squares, count = [], 0.0, 0
    with torch.inference_mode():
        clean, copied = logits_of(model, world.pairs), logits_of(model, world.copies)
        for index in range(len(world.pairs)):
            pair, other = (model.look_inside(*side.batch(torch.tensor([index])), 1) for side in (world.pairs, world.copies))
            push.append((pair.embedded[0].double().mean(0) - other.embedded[0].double().mean(0)).square().mean().item())
            common = min(pair.attention.shape[-1], other.attention.shape[-1])
            difference = pair.attention[0, :, :common, :common].double() - other.attention[0, :, :common, :common].double()
            squares, count = squares + difference.square().sum().item(), count + difference.numel()
    terms = [
        cross_entropy(clean, world.labels, smoothing),
        0.4 * cross_entropy(copied, world.labels, smoothing),
        -0.7 * sum(push) / len(push),
        50 * squares / count,
    ]
    assert all(abs(term) > 1e-3 for term in terms)
    assert world.first_loss(**section) == pytest.approx(sum(terms), rel=1e-5)


def test_r3f_holds_the_noisy_embeddings_as_constants(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    encode = PairClassifier.encode_embedded

    def record(self: PairClassifier, embedded: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        seen.append(embedded.requires_grad)
        return encode(self, embedded, ids, mask)

    monkeypatch.setattr(PairClassifier, "encode_embedded", record)
    world.run(world.config(r3f={}))
    assert set(seen) == {False}
    seen.clear()
    world.run(world.config(perturbation={}))
    assert set(seen) == {True}


def test_masking_is_drawn_anew_and_keeps_special_tokens(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def record(ids: Tensor, *args: Any) -> Tensor:
        seen.append((ids, mask_tokens(ids, *args)))
        return seen[-1][1]

    monkeypatch.setattr("conlst.stages.source.mask_tokens", record)
    world.run(world.config(batch_tokens=100_000, epochs=2, masking={"share": 0.4}))
    text = world.start.text
    (first, masked), (second, again) = seen
    for before, after in seen:
        changed = before != after
        assert set(after[changed].tolist()) == {text.mask_id}
        assert not torch.isin(before[changed], torch.tensor(text.special_ids)).any()
        ordinary = ~torch.isin(before, torch.tensor(text.special_ids))
        assert changed.sum() / ordinary.sum() == pytest.approx(0.4, abs=0.1)
    back = [plan.argsort() for plan in plan_batches(world.pairs.lengths, 100_000, 2, 13, "source")]
    assert first[back[0]].equal(second[back[1]])
    assert not masked[back[0]].equal(again[back[1]])


def test_copies_are_read_at_their_pairs_indices(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, list[int]] = {id(world.pairs): [], id(world.copies): []}
    batch = TokenizedPairs.batch

    def record(self: TokenizedPairs, indices: Tensor, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        seen[id(self)] += indices.tolist()
        return batch(self, indices, device)

    monkeypatch.setattr(TokenizedPairs, "batch", record)
    world.run(world.config(ept_apt=EPT_APT))
    assert sorted(seen[id(world.pairs)]) == list(range(45))
    assert seen[id(world.pairs)] == seen[id(world.copies)]
    seen[id(world.copies)].clear()
    world.run(world.config(r3f={}))
    assert not seen[id(world.copies)]


def test_what_is_missing_is_named(world: World) -> None:
    text = world.start.text
    shorter, _ = tokens_of(world.start, tiny_pairs(44, 1))
    for copies, got in ((None, "none"), (shorter, "44")):
        config = world.config(ept_apt=EPT_APT)
        with pytest.raises(ConfigError, match=rf"source\.ept_apt needs one synonym copy of each of the 45 pairs.*got {got}"):
            train_source(world.classifier(config), world.pairs, world.labels, config, copies=copies, text=text)
    config = world.config(masking={})
    with pytest.raises(ConfigError, match=r"source\.masking needs the tokenizer's mask id"):
        train_source(world.classifier(config), world.pairs, world.labels, config)
    with pytest.raises(ConfigError, match="layer 5: BertModel has 2 layers"):
        world.run(world.config(ept_apt={"synonyms": "none.tsv"}))


def test_a_push_on_frozen_embeddings_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = copy.deepcopy(world.start.classifier)
    frozen.freeze_embeddings(True)
    monkeypatch.setattr(World, "classifier", lambda *_: frozen)
    with pytest.raises(ConfigError, match=r"source\.ept_apt\.push.*backbone\.freeze_embeddings"):
        world.run(world.config(ept_apt=EPT_APT))
    assert world.run(world.config(ept_apt={**EPT_APT, "push": 0})).losses
    # the others teach the rest of the encoder
    for section in ({"r3f": {}}, {"perturbation": {}}):
        assert world.run(world.config(**section)).losses
