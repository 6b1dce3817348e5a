"""Stage 0: cross-entropy on labelled English pairs, or one of the robust trainings that the paper compares with."""

import logging
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from conlst.contract.config import Config, Source
from conlst.contract.errors import ConfigError
from conlst.data.tokens import TokenizedPairs
from conlst.method.masking import mask_tokens
from conlst.model.encoder import PairClassifier
from conlst.model.folder import TextSettings
from conlst.parallel import world
from conlst.stages.progress import Progress
from conlst.stages.robust import Views, ept_apt, perturbation, r3f
from conlst.training import Checkpoints, Trainer, autocast, plan_batches, set_up_compute, step_generator

log = logging.getLogger(__name__)

Objective = Callable[[PairClassifier, Views, Tensor, torch.Generator], Tensor]


def train_source(
    model: PairClassifier,
    pairs: TokenizedPairs,
    labels: Tensor,
    config: Config,
    checkpoints: Checkpoints | None = None,
    progress: Progress | None = None,
    copies: TokenizedPairs | None = None,
    text: TextSettings | None = None,
) -> list[float]:
    """Fine-tune ``model`` in place.

    Of the robust trainings, ``r3f``, ``perturbation`` and ``ept_apt`` change the loss. ``synonyms`` is cross-entropy on pairs
    that the caller has put together with their copies; ``meta_learning`` comes after: :func:`conlst.stages.metalearn.meta_learn`.

    Args:
        model: a backbone with fresh heads, or any model to train further.
        pairs: source pairs.
        labels: ``[n]`` int64, their classes.
        copies: one synonym copy of each pair, in the same order, for ``source.ept_apt``.
        text: which ids masking may not touch, for ``source.masking``.

    Returns:
        The loss of every step.

    Raises:
        ConfigError: if the configuration asks for copies or masking and what it needs is missing, or if ``source.ept_apt`` cannot
            teach this model anything.
    """
    device = set_up_compute(config.compute)
    model.move_to(device).train()
    stage = config.source
    objective, sides = _objective(stage), _sides(stage, model, pairs, copies)
    if stage.masking and text is None:
        raise ConfigError("source.masking needs the tokenizer's mask id; give the model's text settings, or set it to null")
    plan = plan_batches(pairs.lengths, stage.batch_tokens, stage.epochs, config.seed, "source")
    trainer = Trainer(model, stage, len(plan), checkpoints)
    losses: list[float] = []
    if kept := checkpoints and checkpoints.load():
        trainer.restore(kept)
        losses = kept.state["losses"]

    for indices in plan[trainer.step :]:
        generator = step_generator(config.seed, "source", trainer.step)
        views = [side.batch(indices, device) for side in sides]
        if stage.masking and text:
            views = [(_masked(ids, mask, stage.masking.share, text, generator), mask) for ids, mask in views]
        own = world().share(len(indices))
        with autocast(config.compute, device):
            own_views = [(ids[own.rows], mask[own.rows]) for ids, mask in views]
            loss = own.weight * objective(model, own_views, labels[indices[own.rows]].to(device), generator)
        losses.append(trainer.update(loss, indices.tolist()))
        if progress:
            progress.step(trainer.step, len(plan), len(indices), {"loss": losses[-1]})
        if trainer.checkpoint_due():
            trainer.save(state={"losses": losses})

    trainer.finish()
    model.eval()
    return losses


def _objective(stage: Source) -> Objective:
    if stage.r3f:
        return partial(r3f, stage.r3f, stage.label_smoothing)
    if stage.perturbation:
        return partial(perturbation, stage.perturbation, stage.label_smoothing)
    if stage.ept_apt:
        return partial(ept_apt, stage.ept_apt, stage.label_smoothing)
    return partial(_cross_entropy, stage.label_smoothing)


def _cross_entropy(smoothing: float, model: PairClassifier, views: Views, labels: Tensor, _generator: torch.Generator) -> Tensor:
    ((ids, mask),) = views
    return F.cross_entropy(model(ids, mask), labels, label_smoothing=smoothing)


def _sides(stage: Source, model: PairClassifier, pairs: TokenizedPairs, copies: TokenizedPairs | None) -> list[TokenizedPairs]:
    """What a step reads at the same indices: the pairs, and their copies if they are trained on side by side."""
    if not stage.ept_apt:
        return [pairs]
    if copies is None or len(copies) != len(pairs):
        raise ConfigError(
            f"source.ept_apt needs one synonym copy of each of the {len(pairs)} pairs, in their order, and got"
            f" {'none' if copies is None else len(copies)}; make them with source.ept_apt.synonyms"
        )
    if stage.ept_apt.push > 0 and not model.embeddings.requires_grad:
        raise ConfigError(
            "source.ept_apt.push teaches nothing to frozen embeddings; set backbone.freeze_embeddings to false, or the push to 0"
        )
    return [pairs, copies]


def _masked(ids: Tensor, mask: Tensor, share: float, text: TextSettings, generator: torch.Generator) -> Tensor:
    return mask_tokens(ids, mask, share, text.mask_id, text.special_ids, generator)
