"""What stage 1 makes of a coverage, of a source term without weight, and of averaged weights."""

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conlst.contract.config import Config, config_from_dict
from conlst.contract.errors import ConfigError
from conlst.data.tokens import TokenizedPairs
from conlst.model.backbones import load_backbone
from conlst.model.encoder import PairClassifier
from conlst.stages import calibrate as stage_module
from conlst.stages.calibrate import Step, calibrate
from conlst.stages.predict import predict_logits
from conlst.stages.progress import Progress
from conlst.training import Checkpoints
from tiny import counts_drawn, tiny_backbone, tiny_config, tiny_pairs, tokens_of

World = tuple[Path, PairClassifier, TokenizedPairs, TokenizedPairs, Tensor]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Backbone, classifier, pool, source, labels."""
    backbone = tiny_backbone(tmp_path_factory.mktemp("b"))
    start = load_backbone(config_from_dict(tiny_config(backbone)).backbone, 1)
    with torch.no_grad():
        start.classifier.classifier.weight.mul_(10)  # spread-out confidences
    return backbone, start.classifier, tokens_of(start, tiny_pairs(36, 3))[0], *tokens_of(start, tiny_pairs(30, 2))


def configured(world: World, **settings: Any) -> Config:
    section = {"lr": 1e-3, "threshold": 0.4, "batch_tokens": 96, "negatives": 2, **settings}
    return config_from_dict(tiny_config(world[0], calibrate=section))


def run(world: World, config: Config, with_source: bool = True, **more: Any) -> tuple[list[Step], dict[str, Tensor]]:
    _, classifier, pool, source, labels = world
    model = copy.deepcopy(classifier)
    english = (source, labels) if with_source else (None, None)
    return calibrate(model, pool, *english, config, **more), model.state_dict()


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(tensor.equal(right[name]) for name, tensor in left.items())


@pytest.mark.parametrize("objective", ["contrastive", "cross_entropy"])
@pytest.mark.parametrize("coverage", [0.25, 0.6])
def test_a_coverage_is_the_threshold_that_so_many_pairs_reach(
    world: World, caplog: pytest.LogCaptureFixture, objective: str, coverage: float
) -> None:
    config = configured(world, objective=objective, coverage=coverage, threshold=0.9999)
    confidence = predict_logits(world[1], world[2], config.compute, 8192).softmax(1).max(1).values
    found = sorted(confidence.tolist(), reverse=True)[round(coverage * len(confidence)) - 1]
    with caplog.at_level(logging.INFO):
        by_coverage = run(world, config)
    assert f"{found:.4f}" in caplog.text
    by_threshold = run(world, configured(world, objective=objective, threshold=found))
    assert by_coverage[0] == by_threshold[0]
    assert equal(by_coverage[1], by_threshold[1])


def test_anchors_and_negatives_share_the_threshold_that_was_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured(world, coverage=0.25)
    confidence = predict_logits(world[1], world[2], config.compute, 8192).softmax(1).max(1).values
    used: list[tuple[str, float]] = []
    for name in ("complementary_labels", "draw_negatives"):
        whole = getattr(stage_module, name)

        def record(q: Tensor, threshold: float, *more: Any, whole: Any = whole, name: str = name) -> Any:
            used.append((name, threshold))
            return whole(q, threshold, *more)

        monkeypatch.setattr(stage_module, name, record)
    run(world, config)
    assert {name for name, _ in used} == {"complementary_labels", "draw_negatives"}
    assert {(confidence >= threshold).sum().item() for _, threshold in used} == {round(0.25 * len(confidence))}


@pytest.mark.parametrize("objective", ["contrastive", "cross_entropy"])
@pytest.mark.parametrize("settings", [{"source_term": "none"}, {"source_weight": 0.0}])
def test_a_source_term_that_teaches_nothing_needs_no_source(
    world: World, monkeypatch: pytest.MonkeyPatch, objective: str, settings: dict[str, Any]
) -> None:
    config = configured(world, objective=objective, **settings)
    without = run(world, config, with_source=False)
    assert all(step.source == 0 and step.loss == pytest.approx(step.target) for step in without[0])
    read = []
    batch = TokenizedPairs.batch

    def record(self: TokenizedPairs, *args: Any) -> tuple[Tensor, Tensor]:
        read.append(self)
        return batch(self, *args)

    monkeypatch.setattr(TokenizedPairs, "batch", record)
    given = run(world, config)
    assert given[0] == without[0]
    assert equal(given[1], without[1])
    assert not any(pairs is world[3] for pairs in read)
    run(world, configured(world, objective=objective))
    assert any(pairs is world[3] for pairs in read)


def test_source_share_is_of_the_anchors(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, half = (
        counts_drawn(stage_module, monkeypatch, lambda share=share: run(world, configured(world, source_share=share)))
        for share in (1.0, 0.5)
    )
    assert max(whole) > 3
    assert half == [max(1, round(count / 2)) for count in whole]


@pytest.mark.parametrize("term", ["complementary", "literal"])
def test_a_source_term_without_source_pairs_is_refused(world: World, term: str) -> None:
    with pytest.raises(ConfigError, match=rf"calibrate\.source_term {term} needs labelled source pairs"):
        run(world, configured(world, source_term=term), with_source=False)


def test_the_stage_ends_with_the_average(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    last = run(world, configured(world))
    averaged = run(world, configured(world, ema=0.9))
    assert averaged[0] == last[0]
    assert not equal(averaged[1], last[1])
    monkeypatch.setattr(stage_module.Trainer, "finish", lambda _: None)
    assert equal(run(world, configured(world, ema=0.9))[1], last[1])


class Interrupted(Exception):
    """Stands for a kill."""


class Kill(Progress):
    def __init__(self, after: int) -> None:
        super().__init__("test")
        self._after = after

    def step(self, done: int, total: int, pairs: int, metrics: dict[str, float]) -> None:
        super().step(done, total, pairs, metrics)
        if done == self._after:
            raise Interrupted


@pytest.mark.parametrize("settings", [{"coverage": 0.4, "ema": 0.9}, {"coverage": 0.4, "source_term": "none", "ema": 0.5}])
def test_resuming_after_any_step_is_the_straight_run(world: World, tmp_path: Path, settings: dict[str, Any]) -> None:
    config = configured(world, **settings)
    straight = run(world, config)
    for after in range(1, len(straight[0]) + 1):
        kept = Checkpoints(tmp_path / str(after), 1, "same")
        with pytest.raises(Interrupted):
            run(world, config, checkpoints=kept, progress=Kill(after))
        for _ in range(2):  # the second time from the checkpoint of the last step
            resumed = run(world, config, checkpoints=kept)
            assert resumed[0] == straight[0]
            assert equal(resumed[1], straight[1])
