"""X-MAML after stage 0: learn weights that one gradient step adapts to an auxiliary language (Nooralahzadeh et al., 2020)."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from conlst.contract.config import Config, MetaLearning
from conlst.contract.errors import ConfigError
from conlst.data.tokens import TokenizedPairs
from conlst.model.dropout import PLAIN_ATTENTION
from conlst.model.encoder import PairClassifier
from conlst.stages.progress import Progress
from conlst.training import Checkpoints, Trainer, autocast, plan_batches, set_up_compute, step_generator


def meta_learn(
    model: PairClassifier,
    auxiliary: Mapping[str, tuple[TokenizedPairs, Tensor]],
    config: Config,
    checkpoints: Checkpoints | None = None,
    progress: Progress | None = None,
) -> list[float]:
    """Train the fine-tuned ``model`` in place for ``source.meta_learning.steps`` outer steps.

    An outer step takes one batch of each language. Its first half, the support, makes one step of gradient descent; its second
    half, the query, is the loss of the weights after that step. The queries' gradients with respect to the weights before it are
    summed over the languages and go to Adam. Dropout is on in both halves, and its draws count as constants of a half's loss.

    Batch size, label smoothing, warm-up, gradient norm and moving average are those of ``source``; the rate falls linearly, as in
    every stage. All languages' graphs are held at once, each two passes of half a batch.

    Args:
        auxiliary: labelled pairs, and their classes ``[n]`` int64, of each of ``source.meta_learning.languages``.

    Returns:
        The sum of the query losses, of every outer step.

    Raises:
        ConfigError: if the languages are not those of the configuration, or no batch of one holds two pairs.
    """
    device = set_up_compute(config.compute)
    model.move_to(device).train()
    stage, meta = config.source, _settings(config, auxiliary)
    # fused attention has no second derivative
    model.encoder.set_attn_implementation(PLAIN_ATTENTION)
    plans = {language: _plan(language, auxiliary[language][0], meta.steps, config) for language in meta.languages}
    trainer = Trainer(model, stage.model_copy(update={"lr": meta.outer_lr, "head_lr": None}), meta.steps, checkpoints)
    parameters: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    losses: list[float] = []
    if kept := checkpoints and checkpoints.load():
        trainer.restore(kept)
        losses = kept.state["losses"]

    for step in range(trainer.step, meta.steps):
        generator = step_generator(config.seed, "metalearn", step)
        loss, taken = torch.zeros((), device=device), []
        for language in meta.languages:
            indices = plans[language][step]
            # a planned batch is sorted by length, and its halves must be alike
            support, query = indices[torch.randperm(len(indices), generator=generator)].tensor_split(2)
            before = _loss(model, parameters, *auxiliary[language], support, config)
            adapted = inner_step(parameters, before, meta.inner_lr, meta.order)
            loss = loss + _loss(model, adapted, *auxiliary[language], query, config)
            taken += indices.tolist()
        losses.append(trainer.update(loss, taken))
        if progress:
            progress.step(trainer.step, meta.steps, len(taken), {"loss": losses[-1]})
        if trainer.checkpoint_due():
            trainer.save(state={"losses": losses})

    trainer.finish()
    model.eval()
    return losses


def inner_step(parameters: dict[str, Tensor], loss: Tensor, lr: float, order: int) -> dict[str, Tensor]:
    """One step of gradient descent, ``θ' = θ - lr ∇loss(θ)``, as tensors that depend on ``θ`` (Finn et al., 2017, eq. 1).

    Args:
        parameters: ``θ``, by name; one that ``loss`` does not depend on stays as it is.
        order: 2 differentiates ``θ'`` through the gradient, 1 takes the gradient for a constant.
    """
    gradients = torch.autograd.grad(loss, tuple(parameters.values()), create_graph=order == 2, materialize_grads=True)
    return {name: value - lr * gradient for (name, value), gradient in zip(parameters.items(), gradients, strict=True)}


def _loss(
    model: PairClassifier, weights: dict[str, Tensor], pairs: TokenizedPairs, labels: Tensor, half: Tensor, config: Config
) -> Tensor:
    """Cross-entropy of the pairs at ``half``, of the model with ``weights`` in place of its own."""
    # one autocast for each half: it keeps the weights that it has cast, and the two halves' differ
    with autocast(config.compute, model.device):
        logits = functional_call(model, weights, pairs.batch(half, model.device))
        return F.cross_entropy(logits, labels[half].to(model.device), label_smoothing=config.source.label_smoothing)


def _settings(config: Config, auxiliary: Mapping[str, object]) -> MetaLearning:
    meta = config.source.meta_learning
    if meta is None:
        raise ConfigError("source.meta_learning is not set; name its auxiliary languages")
    if set(meta.languages) != set(auxiliary):
        raise ConfigError(
            f"source.meta_learning.languages are {', '.join(meta.languages)}, and there are labelled pairs of"
            f" {', '.join(auxiliary) or 'none'}; give pairs of each"
        )
    return meta


def _plan(language: str, pairs: TokenizedPairs, steps: int, config: Config) -> list[Tensor]:
    """A batch for each outer step, all pairs once before any again. A batch of a single pair has no halves and is left out."""
    plan: list[Tensor] = []
    for turn in range(steps):
        batches = plan_batches(pairs.lengths, config.source.batch_tokens, 1, config.seed, "metalearn", language, turn)
        plan += [batch for batch in batches if len(batch) > 1]
        if len(plan) >= steps:
            return plan[:steps]
    raise ConfigError(
        f"no batch of {language} holds two pairs, a support and a query; raise source.batch_tokens or give more pairs"
    )
