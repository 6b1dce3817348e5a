"""Which pseudo-labels to trust: FlexMatch's class-wise bars."""

import torch
from torch import Tensor


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


def select(probabilities: Tensor, bars: Tensor) -> Tensor:
    """Bool ``[pool]``: whose confidence reaches the bar of its pseudo-label."""
    confidence, pseudo_label = probabilities.max(1)
    return confidence >= bars[pseudo_label]
