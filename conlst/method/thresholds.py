"""Which pseudo-labels to trust, and how far: one bar for all, class-wise bars, or soft weights."""

import torch
from torch import Tensor

from conlst.contract.config import SelfTrain

# a pair of a smaller weight costs a step as much as any other and moves nothing: soft weights end here
_NEGLIGIBLE = 1e-3


def trust(probabilities: Tensor, stage: SelfTrain) -> tuple[Tensor, Tensor]:
    """How much each pseudo-label counts, by the rule that the configuration names.

    Args:
        probabilities: ``[pool, classes]``; the argmax is the pseudo-label, its probability the confidence.

    Returns:
        Weights ``[pool]`` float32 in [0, 1], 0 for a pair that is not selected; all others are 1 under a rule with bars. And the
        bars ``[classes]``, empty under ``softmatch``, which has none.
    """
    if stage.rule == "softmatch":
        return softmatch_weights(probabilities), torch.empty(0)
    if stage.rule == "flexmatch":
        bars = flexmatch_bars(probabilities, stage.threshold, stage.floor)
    elif stage.rule == "quantile":
        bars = quantile_bars(probabilities, stage.coverage, stage.floor)
    elif stage.rule == "freematch":
        bars = freematch_bars(probabilities, stage.floor)
    else:
        bars = torch.full((probabilities.shape[1],), stage.threshold).clamp_min(stage.floor)
    return select(probabilities, bars).float(), bars


def select(probabilities: Tensor, bars: Tensor) -> Tensor:
    """Bool ``[pool]``: whose confidence reaches the bar of its pseudo-label."""
    confidence, pseudo_label = probabilities.max(1)
    return confidence >= bars[pseudo_label]


def flexmatch_bars(probabilities: Tensor, threshold: float, floor: float) -> Tensor:
    """A confidence bar for each class: lower for a class that the model has learned less well (Zhang et al., 2021, eq. 5-9).

    Args:
        probabilities: ``[pool, classes]``.
        threshold: γ, the highest a bar can be; it decides which pairs count as learned.
        floor: the lowest a bar may be. With three classes the bare formula falls below chance as soon as a class has been
            learned about half as well as the best, and then lets every pair of it pass.

    Returns:
        ``[classes]``: ``γ β_c / (2 - β_c)`` with ``β_c = σ_c / max(max σ, #unused)``, where ``σ_c`` counts the pairs of class
        ``c`` at or above γ and the unused are those below it.
    """
    confidence, pseudo_label = probabilities.max(1)
    learned = torch.bincount(pseudo_label[confidence >= threshold], minlength=probabilities.shape[1])
    unused = len(probabilities) - learned.sum()
    beta = learned / torch.maximum(learned.max(), unused).clamp_min(1)
    return (threshold * beta / (2 - beta)).clamp_min(floor)


def coverage_bar(confidence: Tensor, coverage: float) -> float:
    """The confidence that the surest ``coverage`` of the pairs reach: that of the last of them.

    Args:
        confidence: ``[n]``, not empty.
        coverage: share of the pairs, rounded to whole ones, at least one. Pairs as sure as the last one reach the bar too:
            nothing tells them apart.
    """
    count = max(1, round(coverage * len(confidence)))
    return confidence.sort(descending=True).values[count - 1].item()


def quantile_bars(probabilities: Tensor, coverage: float, floor: float) -> Tensor:
    """A bar for each class that its surest ``coverage`` of the pairs reach, so that no predicted class is left out.

    Args:
        probabilities: ``[pool, classes]``.
        coverage: share of each predicted class.
        floor: the lowest a bar may be, and the bar of a class that is predicted for no pair.

    Returns:
        ``[classes]``.
    """
    confidence, pseudo_label = probabilities.max(1)
    members = [confidence[pseudo_label == label] for label in range(probabilities.shape[1])]
    return torch.tensor([coverage_bar(sure, coverage) if len(sure) else floor for sure in members]).clamp_min(floor)


def freematch_bars(probabilities: Tensor, floor: float) -> Tensor:
    """The self-adaptive bars of FreeMatch (Wang et al., 2023), from the whole pool.

    The reference keeps running means over batches because its predictions change at every step. A round here predicts the whole
    pool with one model, so the plain means are taken. Its fairness loss is left out.

    Args:
        probabilities: ``[pool, classes]``.
        floor: the lowest a bar may be.

    Returns:
        ``[classes]``: the mean confidence times ``p̃_c / max p̃``, with ``p̃`` the mean prediction.
    """
    mean = probabilities.mean(0)
    return (probabilities.max(1).values.mean() * mean / mean.max()).clamp_min(floor)


def softmatch_weights(probabilities: Tensor) -> Tensor:
    """The truncated Gaussian of SoftMatch (Chen et al., 2023): 1 from the mean confidence on, less and less below it.

    As for :func:`freematch_bars`, moments of the whole pool stand for the reference's running ones.

    Args:
        probabilities: ``[pool, classes]``.

    Returns:
        ``[pool]`` float32: ``exp(-min(p - μ, 0)² / (2σ²/4))`` with μ and σ² of the pool's confidences, the 4 being the square of
        the reference's ``n_σ = 2``. Weights below 0.001, of pairs 1.86 σ or more below the mean, are 0.
    """
    confidence = probabilities.max(1).values.double()
    below = (confidence - confidence.mean()).clamp_max(0)
    # equal confidences have no variance: then all weigh 1
    variance = confidence.var(correction=0).clamp_min(1e-12)
    weights = torch.exp(-below.square() / (2 * variance / 4))
    return torch.where(weights < _NEGLIGIBLE, 0, weights).float()
