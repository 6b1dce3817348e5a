"""The rival of stages 1 and 2: iterative self-learning with uncertainty (Xu et al., 2021), as SL-EVI, SL-LOU, SL-LEU or plain.

Each round takes the surest pairs of every predicted class, and trains on all that were ever taken. What differs is the loss and
what "surest" means; see :func:`self_learn`.
"""

import logging
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conlst.contract.config import Config, SelfLearn
from conlst.data.batching import draw_of_like_length, length_batches
from conlst.data.tokens import TokenizedPairs
from conlst.method.uncertainty import (
    dissonance,
    evidence_of,
    evidential_loss,
    homoscedastic_loss,
    noisy_log_probabilities,
    surest,
    vacuity,
)
from conlst.model.encoder import PairClassifier
from conlst.stages.progress import Progress
from conlst.training import Checkpoints, Trainer, autocast, plan_batches, set_up_compute, step_generator

log = logging.getLogger(__name__)

_VACUITY_WEIGHT = 0.1
_UNLABELLED = -1


@dataclass(frozen=True)
class Round:
    """One iteration: predict, take, train.

    Attributes:
        selected: ``[pool]`` bool, the pairs taken in this round. None in the warm-up of ``evi`` and ``leu``.
        pseudo_labels: ``[pool]``, of all pairs taken so far; -1 for the others.
        losses: of every step.
    """

    selected: list[bool]
    pseudo_labels: list[int]
    losses: list[float]


class UncertainClassifier(nn.Module):
    """A classifier and what its uncertainty learns beside it, which is thrown away with this object.

    Args:
        model: the classifier; trained in place.
        languages: how many, the source's included.

    Attributes:
        log_scale: reads the noise of ``leu`` from the pooled embedding. Zero at first: noise of standard deviation 1.
        log_variance: ``[languages]``, the noise of ``lou``. Zero at first: plain cross-entropy.
    """

    def __init__(self, model: PairClassifier, languages: int):
        super().__init__()
        self.model = model
        self.log_scale = nn.Linear(model.classifier.in_features, 1)
        nn.init.zeros_(self.log_scale.weight)
        nn.init.zeros_(self.log_scale.bias)
        self.log_variance = nn.Parameter(torch.zeros(languages))

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[batch, classes]`` and, for ``leu``, the logarithm of their noise's standard deviation ``[batch]``."""
        pooled = self.model.encode(ids, mask)
        with torch.autocast(pooled.device.type, enabled=False):
            log_scale = self.log_scale(pooled.float()).squeeze(1)
        return self.model.classify(pooled), log_scale

    def heads(self) -> list[nn.Parameter]:
        """What has the head's rate: the model's heads and the uncertainty's parameters."""
        return [*self.model.heads(), *self.log_scale.parameters(), self.log_variance]


def self_learn(
    model: PairClassifier,
    pool: TokenizedPairs,
    source: TokenizedPairs,
    source_labels: Tensor,
    config: Config,
    checkpoints: Checkpoints | None = None,
    progress: Progress | None = None,
    languages: Tensor | None = None,
) -> list[Round]:
    """Train ``model`` in place for ``rounds`` rounds, fewer if the pool is used up.

    The uncertainty decides the loss and which pairs are surest:

    * ``none``: cross-entropy; confidence.
    * ``lou``: cross-entropy weighted by a learned variance of the pair's language; confidence.
    * ``leu``: cross-entropy of the softmax averaged over Gaussian noise, whose scale is read from the pair; confidence of that
      average.
    * ``evi``: squared error under a Dirichlet distribution; low ``0.1 vacuity + dissonance``.

    The source model has learned cross-entropy. For ``leu`` and ``evi`` a warm-up comes before the first selection: one pass over
    as many source pairs as the pool has, with the uncertainty's own loss.

    What comes out is the classifier alone. After ``evi`` its logits still stand for evidence, but evaluation reads them through
    softmax: the argmax is the same, the confidences are not those of the Dirichlet distribution.

    Args:
        pool: unlabelled target pairs.
        source, source_labels: labelled English pairs, trained along. A step's loss is the mean over its target and source pairs.
        languages: ``[pool]`` int64 from 0 on, the language of each pair when the pool has several. Each gives ``share`` of its
            own pairs, and has its own variance in ``lou``.

    Returns:
        The rounds; of ``leu`` and ``evi`` the first is the warm-up.
    """
    device = set_up_compute(config.compute)
    stage = config.selflearn
    languages = torch.zeros(len(pool), dtype=torch.int64) if languages is None else languages
    english = torch.full((len(source),), int(languages.max()) + 1)
    learner = UncertainClassifier(model.move_to(device), int(english[0]) + 1).to(device)
    warm_ups = 1 if stage.uncertainty in ("leu", "evi") else 0
    kept = checkpoints.load() if checkpoints else None
    rounds = [Round(**done) for done in kept.state["rounds"]] if kept else []
    pseudo = kept.stage["pseudo"] if kept else torch.full((len(pool),), _UNLABELLED)

    while len(rounds) < warm_ups + stage.rounds:
        number, warming = len(rounds), len(rounds) < warm_ups
        if kept:
            selected, losses = kept.stage["selected"], kept.state["losses"]
        else:
            selected, losses = torch.zeros(len(pool), dtype=torch.bool), []
            if not warming:
                left = (pseudo == _UNLABELLED).nonzero().squeeze(1)
                if not len(left):
                    log.info("self-learning ends before round %d: the whole pool is taken", number)
                    break
                taken, predicted = _take_surest(learner, pool, left, languages, config, number)
                selected[taken] = True
                pseudo[taken] = predicted
                _report(number, selected, pseudo)
        plan = _plan(pool, source, pseudo, config, number, warming)
        trainer = Trainer(learner, stage, len(plan), checkpoints)
        if kept:
            trainer.restore(kept)
            kept = None
        learner.train()
        for indices in plan[trainer.step :]:
            generator = step_generator(config.seed, "selflearn", number, trainer.step)
            with autocast(config.compute, device):
                if warming:
                    each = _losses(learner, source, indices, source_labels, english, stage, generator)
                else:
                    companions = draw_of_like_length(source.lengths, max(1, round(stage.source_share * len(indices))), generator)
                    target = _losses(learner, pool, indices, pseudo, languages, stage, generator)
                    along = _losses(learner, source, companions, source_labels, english, stage, generator)
                    each = torch.cat([target, along])
            losses.append(trainer.update(each.mean(), indices.tolist()))
            if progress:
                earlier = sum(len(done.losses) for done in rounds)
                progress.step(earlier + trainer.step, earlier + len(plan), len(indices), {"loss": losses[-1]})
            if trainer.checkpoint_due():
                state = {"rounds": [vars(done) for done in rounds], "losses": losses}
                trainer.save({"pseudo": pseudo, "selected": selected}, state)
        trainer.finish()
        rounds.append(Round(selected.tolist(), pseudo.tolist(), losses))

    model.eval()
    return rounds


def _plan(
    pool: TokenizedPairs, source: TokenizedPairs, pseudo: Tensor, config: Config, number: int, warming: bool
) -> list[Tensor]:
    """Batches of a round: indices of source pairs in the warm-up, of all pool pairs taken so far in the others."""
    stage = config.selflearn
    if warming:
        generator = step_generator(config.seed, "selflearn", number, "source pairs")
        chosen, lengths, epochs = torch.randperm(len(source), generator=generator)[: len(pool)], source.lengths, 1
    else:
        chosen, lengths, epochs = (pseudo != _UNLABELLED).nonzero().squeeze(1), pool.lengths, stage.epochs
    batches = plan_batches(lengths[chosen], stage.batch_tokens, epochs, config.seed, "selflearn", number)
    return [chosen[batch] for batch in batches]


def _losses(
    learner: UncertainClassifier,
    pairs: TokenizedPairs,
    indices: Tensor,
    labels: Tensor,
    languages: Tensor,
    stage: SelfLearn,
    generator: torch.Generator,
) -> Tensor:
    """The uncertainty's loss of each pair of a batch, ``[batch]``."""
    logits, log_scale = learner(*pairs.batch(indices, learner.model.device))
    truth = labels[indices].to(logits.device)
    if stage.uncertainty == "evi":
        return evidential_loss(evidence_of(logits), truth)
    if stage.uncertainty == "leu":
        return F.nll_loss(noisy_log_probabilities(logits, log_scale, stage.samples, generator), truth, reduction="none")
    losses = F.cross_entropy(logits, truth, reduction="none")
    if stage.uncertainty == "lou":
        return homoscedastic_loss(losses, learner.log_variance[languages[indices].to(logits.device)])
    return losses


def _take_surest(
    learner: UncertainClassifier, pool: TokenizedPairs, left: Tensor, languages: Tensor, config: Config, number: int
) -> tuple[Tensor, Tensor]:
    """Pool indices of the surest pairs of each language and predicted class among ``left``, and their predicted classes."""
    stage = config.selflearn
    logits, log_scale = _predict(learner, pool, left, config)
    generator = step_generator(config.seed, "selflearn", number, "selection")
    certainty, predicted = _certainty(logits, log_scale, stage, generator)
    taken = []
    for language in languages[left].unique():
        members = (languages[left] == language).nonzero().squeeze(1)
        count = max(1, round(stage.share * int((languages == language).sum())))
        taken.append(members[surest(certainty[members], predicted[members], count)])
    rows = torch.cat(taken)
    return left[rows], predicted[rows]


def _certainty(logits: Tensor, log_scale: Tensor, stage: SelfLearn, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """How sure each prediction is, ``[n]``, higher is surer; and the predicted class ``[n]``."""
    if stage.uncertainty == "evi":
        evidence = evidence_of(logits)
        return -(_VACUITY_WEIGHT * vacuity(evidence) + dissonance(evidence)), logits.argmax(1)
    noisy = stage.uncertainty == "leu"
    log_p = noisy_log_probabilities(logits, log_scale, stage.samples, generator) if noisy else logits.log_softmax(1)
    certainty, predicted = log_p.max(1)
    return certainty, predicted


@torch.inference_mode()
def _predict(learner: UncertainClassifier, pool: TokenizedPairs, left: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Logits ``[left, 3]`` and log scales ``[left]`` of the pairs at ``left``, in their order, dropout off."""
    learner.eval()
    logits, log_scale = torch.empty(len(left), 3), torch.empty(len(left))
    for rows in length_batches(pool.lengths[left], config.evaluate.batch_tokens):
        with autocast(config.compute, learner.model.device):
            some = learner(*pool.batch(left[rows], learner.model.device))
        logits[rows], log_scale[rows] = (part.float().cpu() for part in some)
    return logits, log_scale


def _report(number: int, selected: Tensor, pseudo: Tensor) -> None:
    counts = torch.bincount(pseudo[selected], minlength=3).tolist()
    trained = int((pseudo != _UNLABELLED).sum())
    log.info("self-learning round %d: takes %s, trains on %d of %d pairs", number, counts, trained, len(pseudo))
