"""Stage 2: self-training as semi-supervised learning, eq. 9-14. Learns trusted pseudo-labels from strong views of the pairs."""

import logging
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from conlst.contract.config import Config, SelfTrain
from conlst.contract.errors import ConfigError, TrainingError
from conlst.data.batching import draw_of_like_length
from conlst.data.tokens import TokenizedPairs
from conlst.method.alignment import align, class_shares, prior_shift
from conlst.method.interpolation import interpolate, trained_weights
from conlst.method.losses import soft_cross_entropy
from conlst.method.masking import mask_tokens
from conlst.method.mixup import mixup
from conlst.method.thresholds import trust
from conlst.model.encoder import PairClassifier
from conlst.model.folder import TextSettings
from conlst.parallel import world
from conlst.stages.predict import predict_logits
from conlst.stages.progress import Progress
from conlst.training import Checkpoint, Checkpoints, Trainer, autocast, plan_batches, set_up_compute, step_generator

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Round:
    """One iteration: predict, select, train.

    Attributes:
        bars: ``[languages][classes]``, the rule's confidence bars; ``softmatch`` has none, so its rows are empty.
        pseudo_labels: ``[pool]``, the argmax of the predictions that the round began with.
        selected: ``[pool]`` bool, whose pseudo-labels are trusted, be it with a small weight.
        changed: share of the pseudo-labels that differ from the round before; 1 in the first round.
        losses: of every step; empty if the labels had settled.
    """

    bars: list[list[float]]
    pseudo_labels: list[int]
    selected: list[bool]
    changed: float
    losses: list[float]


def self_train(
    model: PairClassifier,
    pool: TokenizedPairs,
    translated: TokenizedPairs | None,
    source: TokenizedPairs,
    source_labels: Tensor,
    text: TextSettings,
    config: Config,
    checkpoints: Checkpoints | None = None,
    progress: Progress | None = None,
    teacher: Tensor | None = None,
    languages: Tensor | None = None,
) -> list[Round]:
    """Train ``model`` in place until fewer than ``stop_below`` of the pseudo-labels change, or ``max_iterations``.

    Args:
        pool: unlabelled target pairs.
        translated: the same pairs translated away and back, or ``None``: then that view is not drawn.
        source, source_labels: labelled English pairs, trained along (eq. 13).
        text: which ids masking may not touch.
        teacher: ``[pool, 3]`` probabilities, for example the mean of several source models. The first round takes them in place
            of the model's own; in later rounds the model's own are averaged with them, ``q = (now + teacher) / 2``.
        languages: ``[pool]`` int64 from 0 on, the language of each pair when the pool has several. Each is aligned and selected
            from by itself: a model is biased and sure in one language otherwise than in another.

    Returns:
        The rounds; the last one has no losses if the labels had settled.

    Raises:
        TrainingError: if no pseudo-label is trusted, or the teacher's predictions are not of this pool.
        ConfigError: if no strong view is left, back-translation being the only one and no language of the pool translated.
    """
    if teacher is not None and teacher.shape != (len(pool), 3):
        raise TrainingError(f"the teacher's predictions are {list(teacher.shape)}, not [{len(pool)}, 3]; predict this pool")
    stage = config.selftrain
    data = _Data(pool, translated, source, source_labels, text)
    if stage.max_iterations and not data.views(stage):
        raise ConfigError(
            "no strong view is left, for no language of the pool is translated: set selftrain.masking or selftrain.mixup, or"
            " another backend"
        )
    device = set_up_compute(config.compute)
    model.move_to(device)
    began = trained_weights(model) if stage.interpolation < 1 else {}
    kept = checkpoints.load() if checkpoints else None
    rounds = [Round(**done) for done in kept.state["rounds"]] if kept else []
    parts = _parts(languages, len(pool))
    shares = torch.tensor(stage.shares) if stage.shares else class_shares(source_labels, 3)

    while len(rounds) < stage.max_iterations:
        if kept:
            q, agreed = kept.stage["q"], kept.stage["agreed"]
        else:
            q, agreed = _predict(model, pool, teacher, parts, shares if stage.align else None, config, len(rounds))
            q, agreed = world().agree(q), world().agree(agreed)
        weights, bars = _trusted(q, parts, stage)
        begun = _Begun(q, agreed, weights * agreed)
        selected, pseudo = begun.weights > 0, begun.pseudo_labels
        changed = (pseudo != torch.tensor(rounds[-1].pseudo_labels)).float().mean().item() if rounds else 1.0
        _report(len(rounds), bars, selected, pseudo, changed)
        settled = changed < stage.stop_below
        losses = [] if settled else _train_round(model, data, begun, rounds, config, checkpoints, kept, progress)
        rounds.append(Round(bars, pseudo.tolist(), selected.tolist(), changed, losses))
        kept = None
        if settled:
            break

    interpolate(model, began, stage.interpolation)
    if stage.rebalance:
        logits = predict_logits(model, pool, config.compute, config.evaluate.batch_tokens)
        with torch.no_grad():
            model.classifier.bias.add_(world().agree(prior_shift(logits, shares)).to(device))
    model.eval()
    return rounds


@dataclass(frozen=True)
class _Data:
    """What all rounds read; see :func:`self_train`."""

    pool: TokenizedPairs
    translated: TokenizedPairs | None
    source: TokenizedPairs
    source_labels: Tensor
    text: TextSettings

    def views(self, stage: SelfTrain) -> list[str]:
        """The strong views that there are."""
        return [name for name, has in (("mask", stage.masking), ("mixup", stage.mixup), ("translate", self.translated)) if has]


@dataclass(frozen=True)
class _Begun:
    """What a round begins with: ``q`` ``[pool, 3]`` and ``agreed`` ``[pool]`` of :func:`_predict`, and each pair's weight."""

    q: Tensor
    agreed: Tensor
    weights: Tensor

    @property
    def pseudo_labels(self) -> Tensor:
        return self.q.argmax(1)


def _train_round(
    model: PairClassifier,
    data: _Data,
    begun: _Begun,
    rounds: list[Round],
    config: Config,
    checkpoints: Checkpoints | None,
    kept: Checkpoint | None,
    progress: Progress | None,
) -> list[float]:
    """Train on the trusted pseudo-labels and on source pairs (eq. 12-14); returns the loss of every step.

    Args:
        rounds: those before this one.
        kept: the checkpoint to go on from, if it is of this round.

    Raises:
        TrainingError: if no pseudo-label is trusted.
    """
    stage, number = config.selftrain, len(rounds)
    chosen = (begun.weights > 0).nonzero().squeeze(1)
    if not len(chosen):
        raise TrainingError(
            "no pseudo-label is trusted; lower selftrain.threshold and selftrain.floor, or ask fewer selftrain.views"
        )
    batches = plan_batches(data.pool.lengths[chosen], stage.batch_tokens, stage.epochs, config.seed, "selftrain", number)
    plan = [chosen[batch] for batch in batches]
    trainer = Trainer(model, stage, len(plan), checkpoints)
    losses: list[float] = []
    if kept:
        trainer.restore(kept)
        losses = kept.state["losses"]
    earlier = sum(len(done.losses) for done in rounds)
    model.train()
    for indices in plan[trainer.step :]:
        generator = step_generator(config.seed, "selftrain", number, trainer.step)
        companions = draw_of_like_length(data.source.lengths, max(1, round(stage.source_share * len(indices))), generator)
        with autocast(config.compute, model.device):
            supervised = _source_loss(model, data, companions)
            unsupervised = _strong_view_loss(model, data, begun, indices, stage, generator)
            loss = supervised + stage.target_weight * unsupervised
        losses.append(trainer.update(loss, indices.tolist()))
        if progress:
            terms = {"loss": losses[-1], "supervised": supervised.item(), "unsupervised": unsupervised.item()}
            progress.step(earlier + trainer.step, earlier + len(plan), len(indices), terms)
        if trainer.checkpoint_due():
            state = {"rounds": [vars(done) for done in rounds], "losses": losses}
            trainer.save({"q": begun.q, "agreed": begun.agreed}, state)
    trainer.finish()
    return losses


def _parts(languages: Tensor | None, size: int) -> list[Tensor]:
    """Indices of each language's pairs."""
    if languages is None:
        return [torch.arange(size)]
    return [(languages == language).nonzero().squeeze(1) for language in range(int(languages.max()) + 1)]


def _trusted(q: Tensor, parts: list[Tensor], stage: SelfTrain) -> tuple[Tensor, list[list[float]]]:
    """:func:`trust` for each language by itself: weights ``[pool]``, bars ``[languages][classes]``."""
    weights, bars = torch.empty(len(q)), []
    for members in parts:
        weights[members], language_bars = trust(q[members], stage)
        bars.append(language_bars.tolist())
    return weights, bars


def _predict(
    model: PairClassifier,
    pool: TokenizedPairs,
    teacher: Tensor | None,
    parts: list[Tensor],
    shares: Tensor | None,
    config: Config,
    iteration: int,
) -> tuple[Tensor, Tensor]:
    """What a round begins with.

    Args:
        parts: indices of each language's pairs.
        shares: ``[3]``, what every prediction is aligned to, the dropout views among them; ``None`` leaves them as they are.

    Returns:
        ``q`` ``[pool, 3]``; and ``[pool]`` bool, whether every dropout view of the model has the argmax of ``q``.
    """

    def predict_now(dropout: bool = False) -> Tensor:
        return predict_logits(model, pool, config.compute, config.evaluate.batch_tokens, dropout).softmax(1)

    def aligned(probabilities: Tensor) -> Tensor:
        if shares is not None:
            for members in parts:
                probabilities[members] = align(probabilities[members], shares)
        return probabilities

    if teacher is None:
        q = predict_now()
    elif iteration == 0:
        q = teacher.clone()
    else:
        q = (predict_now() + teacher) / 2
    q = aligned(q)
    agreed = torch.ones(len(pool), dtype=torch.bool)
    for view in range(config.selftrain.views):
        step_generator(config.seed, "selftrain", iteration, "view", view)
        agreed &= aligned(predict_now(dropout=True)).argmax(1) == q.argmax(1)
    return q, agreed


def _source_loss(model: PairClassifier, data: _Data, companions: Tensor) -> Tensor:
    """Eq. 12 for the source pairs at ``companions``."""
    own = world().share(len(companions))
    beside = companions[own.rows]
    logits = model(*data.source.batch(beside, model.device)).float()
    return own.weight * F.cross_entropy(logits, data.source_labels[beside].to(model.device))


def _strong_view_loss(
    model: PairClassifier, data: _Data, begun: _Begun, indices: Tensor, stage: SelfTrain, generator: torch.Generator
) -> Tensor:
    """Eq. 14 for one batch, which takes one of the views that there are: the mean over the batch of weight times loss.

    The sum of the weights does not divide it, as in FixMatch: a batch of doubtful pairs teaches less than one of sure pairs.
    """
    views = data.views(stage)
    view = views[int(torch.randint(len(views), (1,), generator=generator))]
    read = data.translated if view == "translate" and data.translated else data.pool
    ids, mask = read.batch(indices, model.device)
    # a label carries its weight, so that mixup mixes both alike
    targets = (begun.weights[indices, None] * F.one_hot(begun.pseudo_labels[indices], 3)).to(model.device)
    if view == "mask" and stage.masking:
        ids = mask_tokens(ids, mask, stage.masking.share, data.text.mask_id, data.text.special_ids, generator)
    own = world().share(len(indices))
    targets = targets[own.rows]
    pooled = model.encode(ids[own.rows], mask[own.rows])
    if view == "mixup" and stage.mixup:
        pooled, targets = mixup(pooled, targets, stage.mixup.alpha, generator)
    return own.weight * soft_cross_entropy(model.classify(pooled), targets)


def _report(iteration: int, bars: list[list[float]], selected: Tensor, pseudo: Tensor, changed: float) -> None:
    counts = torch.bincount(pseudo[selected], minlength=3).tolist()
    log.info(
        "self-training round %d: bars %s, selected %s of %d, pseudo-labels changed %.2f %%",
        iteration,
        [[round(bar, 3) for bar in language_bars] for language_bars in bars],
        counts,
        len(pseudo),
        100 * changed,
    )
