"""Stage 0: cross-entropy on labelled English pairs."""

import logging

import torch.nn.functional as F
from torch import Tensor

from conlst.contract.config import Config
from conlst.data.tokens import TokenizedPairs
from conlst.model.encoder import PairClassifier
from conlst.stages.progress import Progress
from conlst.training import Checkpoints, Trainer, autocast, plan_batches, set_up_compute, step_generator

log = logging.getLogger(__name__)


def train_source(
    model: PairClassifier,
    pairs: TokenizedPairs,
    labels: Tensor,
    config: Config,
    checkpoints: Checkpoints | None = None,
    progress: Progress | None = None,
) -> list[float]:
    """Fine-tune ``model`` in place.

    Args:
        model: a backbone with fresh heads, or any model to train further.
        pairs: source pairs.
        labels: ``[n]`` int64, their classes.

    Returns:
        The loss of every step.
    """
    device = set_up_compute(config.compute)
    model.move_to(device).train()
    stage = config.source
    plan = plan_batches(pairs.lengths, stage.batch_tokens, stage.epochs, config.seed, "source")
    trainer = Trainer(model, stage, len(plan), checkpoints)
    losses: list[float] = []
    if kept := checkpoints and checkpoints.load():
        trainer.restore(kept)
        losses = kept.state["losses"]

    for indices in plan[trainer.step :]:
        step_generator(config.seed, "source", trainer.step)
        ids, mask = pairs.batch(indices, device)
        with autocast(config.compute, device):
            logits = model(ids, mask)
        loss = F.cross_entropy(logits.float(), labels[indices].to(device), label_smoothing=stage.label_smoothing)
        losses.append(trainer.update(loss, indices.tolist()))
        if progress:
            progress.step(trainer.step, len(plan), len(indices), {"loss": losses[-1]})
        if trainer.checkpoint_due():
            trainer.save(state={"losses": losses})

    model.eval()
    return losses
