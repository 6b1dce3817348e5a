"""Stage 1: contrastive negative learning, eq. 4-8. Makes the model less sure where its pseudo-labels are wrong."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from conlst.contract.config import Calibrate, Config
from conlst.contract.errors import ConfigError, TrainingError
from conlst.data.batching import draw_of_like_length
from conlst.data.tokens import TokenizedPairs
from conlst.method.complementary import complementary_labels, draw_negatives, other_labels
from conlst.method.losses import contrastive_negative_loss, distance, literal_source_loss, negative_loss
from conlst.method.thresholds import coverage_bar
from conlst.model.encoder import PairClassifier
from conlst.parallel import world
from conlst.stages.predict import predict_logits
from conlst.stages.progress import Progress
from conlst.training import Checkpoints, Trainer, autocast, plan_batches, set_up_compute, step_generator

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """What a step showed.

    Attributes:
        loss: eq. 8, from its terms ``target`` and ``source``. The latter is 0 if it has no weight: then it is not computed.
        positive, negative: mean distance of the anchors to their twin and to their negatives.
        saturated: share of the anchors whose loss is below 0.01: they teach nothing any more.
        lonely: share of the anchors whose complementary class has no high-confidence pair.
        accuracy: what the probe measured after this step, if it was asked.
    """

    loss: float
    target: float
    source: float
    positive: float = 0.0
    negative: float = 0.0
    saturated: float = 0.0
    lonely: float = 0.0
    accuracy: float | None = None


def calibrate(
    model: PairClassifier,
    pool: TokenizedPairs,
    source: TokenizedPairs | None,
    source_labels: Tensor | None,
    config: Config,
    checkpoints: Checkpoints | None = None,
    progress: Progress | None = None,
    probe: Callable[[], float] | None = None,
) -> list[Step]:
    """Train ``model`` in place on the unlabelled pool, one epoch by default.

    Args:
        pool: all target pairs; each is an anchor, the low-confidence ones included.
        source, source_labels: labelled English pairs for eq. 7; may be ``None`` without a source term, or when its weight is 0.
        probe: asked ``config.evaluate.probes`` times for the model's accuracy (figure 5); nothing is decided by it. It sees the
            weights of its step, not their moving average.

    Returns:
        One :class:`Step` a step.

    Raises:
        TrainingError: if no pool pair reaches the threshold, so that no negative exists at all.
        ConfigError: if the source term needs source pairs and there are none.
    """
    device = set_up_compute(config.compute)
    model.move_to(device)
    stage = config.calibrate
    english = _source_of(stage, source, source_labels)
    kept = checkpoints.load() if checkpoints else None
    # without a checkpoint, q comes from the model as it was given
    q = kept.stage["q"] if kept else predict_logits(model, pool, config.compute, config.evaluate.batch_tokens).softmax(1)
    q = world().agree(q)
    threshold = stage.threshold if stage.coverage is None else coverage_bar(q.max(1).values, stage.coverage)
    _require_negatives(q, threshold, stage)
    plan = plan_batches(pool.lengths, stage.batch_tokens, stage.epochs, config.seed, "calibrate")
    trainer = Trainer(model, stage, len(plan), checkpoints)
    steps: list[Step] = []
    if kept:
        trainer.restore(kept)
        steps = [Step(**step) for step in kept.state["steps"]]
    probe_every = max(1, len(plan) // config.evaluate.probes) if config.evaluate.probes else 0

    model.train()
    for indices in plan[trainer.step :]:
        generator = step_generator(config.seed, "calibrate", trainer.step)
        complementary = complementary_labels(q[indices], threshold, generator)
        own = world().share(len(indices))
        anchors, complementary = indices[own.rows], complementary[own.rows]
        with autocast(config.compute, device):
            if stage.objective == "contrastive":
                negatives, classes = draw_negatives(q, threshold, stage.negatives, generator)
                target, facts = _contrast(model, pool, anchors, complementary, negatives, classes, stage)
            else:
                target, facts = negative_loss(model(*pool.batch(anchors, device)), complementary.to(device)), {}
            consistency = _source_term(model, *english, len(indices), stage, generator) if english else torch.zeros(())
            loss = own.weight * target + stage.source_weight * consistency
        value = trainer.update(loss, indices.tolist())
        accuracy = probe() if probe and probe_every and trainer.step % probe_every == 0 else None
        steps.append(Step(value, target.item(), consistency.item(), **facts, accuracy=accuracy))
        if progress:
            numbers = {name: number for name, number in asdict(steps[-1]).items() if number is not None}
            progress.step(trainer.step, len(plan), len(indices), numbers)
        if trainer.checkpoint_due():
            trainer.save({"q": q}, {"steps": [asdict(step) for step in steps]})

    trainer.finish()
    model.eval()
    return steps


def _contrast(
    model: PairClassifier,
    pool: TokenizedPairs,
    indices: Tensor,
    complementary: Tensor,
    negatives: Tensor,
    classes: Tensor,
    stage: Calibrate,
) -> tuple[Tensor, dict[str, float]]:
    """Eq. 6 for a batch of anchors, and what to log of it."""
    ids, mask = pool.batch(indices, model.device)
    both = model.project(model.encode(ids.repeat(2, 1), mask.repeat(2, 1)))  # two dropout views in one pass
    others = model.project(model.encode(*pool.batch(negatives, model.device)))
    if stage.normalize:
        both, others = (torch.nn.functional.normalize(h.float(), dim=1) for h in (both, others))
    anchor, twin = both.chunk(2)
    # a pair is never its own negative: its pseudo-label is not its complementary label
    is_negative = (complementary[:, None] == classes).to(model.device)
    positive = distance(anchor, twin, stage.distance)
    negative = distance(anchor[:, None], others, stage.distance)
    losses = contrastive_negative_loss(positive, negative, is_negative, stage.temperature)
    facts = {
        "positive": positive.mean().item(),
        "negative": negative[is_negative].mean().item() if is_negative.any() else 0.0,
        "saturated": (losses < 0.01).float().mean().item(),
        "lonely": (~is_negative.any(1)).float().mean().item(),
    }
    return losses.mean(), facts


def _source_of(stage: Calibrate, source: TokenizedPairs | None, labels: Tensor | None) -> tuple[TokenizedPairs, Tensor] | None:
    """Pairs and labels of eq. 7, or ``None`` where they would teach nothing: encoding them is a third of a step."""
    if stage.source_term == "none" or stage.source_weight == 0:
        return None
    if source is None or labels is None:
        raise ConfigError(f"calibrate.source_term {stage.source_term} needs labelled source pairs; give them or set it to none")
    return source, labels


def _source_term(
    model: PairClassifier, source: TokenizedPairs, labels: Tensor, anchors: int, stage: Calibrate, generator: torch.Generator
) -> Tensor:
    """Eq. 7 in the reading that the configuration chooses, on source pairs that are drawn for as many ``anchors``."""
    indices = draw_of_like_length(source.lengths, max(1, round(stage.source_share * anchors)), generator)
    truth, own = labels[indices], world().share(len(indices))
    logits = model(*source.batch(indices[own.rows], model.device))
    if stage.source_term == "literal":
        return own.weight * literal_source_loss(logits, truth[own.rows].to(model.device))
    others = other_labels(truth, logits.shape[1], generator)
    return own.weight * negative_loss(logits, others[own.rows].to(model.device))


def _require_negatives(q: Tensor, threshold: float, stage: Calibrate) -> None:
    confidence, pseudo_label = q.max(1)
    counts = torch.bincount(pseudo_label[confidence >= threshold], minlength=q.shape[1]).tolist()
    log.info("high-confidence pairs a class at %.4f: %s of %d", threshold, counts, len(q))
    if stage.objective == "contrastive" and not any(counts):
        raise TrainingError(
            f"no pool pair is surer than {threshold} (highest {confidence.max():.3f}), so there are no negatives;"
            " lower calibrate.threshold"
        )
