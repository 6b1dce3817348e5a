"""Complementary labels and the negatives that they choose, eq. 4 and 5."""

import torch
from torch import Tensor


def complementary_labels(probabilities: Tensor, threshold: float, generator: torch.Generator) -> Tensor:
    """A class that each target pair is believed not to be of, eq. 4.

    Args:
        probabilities: ``[batch, classes]``, the model's ``q``.
        threshold: γ. From it on, the class is drawn uniformly from all but the argmax; below it, it is the argmin.
        generator: draws; call anew at every step.

    Returns:
        ``[batch]`` int64.
    """
    confidence, pseudo_label = probabilities.max(1)
    drawn = other_labels(pseudo_label, probabilities.shape[1], generator)
    return torch.where(confidence >= threshold, drawn, probabilities.argmin(1))


def other_labels(labels: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """For each label, one of the other classes, uniformly. ``[batch]`` to ``[batch]``."""
    step = torch.randint(1, classes, labels.shape, generator=generator)
    return (labels + step) % classes


def draw_negatives(probabilities: Tensor, threshold: float, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Up to ``count`` high-confidence pool pairs of each class, shared by the step's anchors, eq. 5.

    Drawn once for each class and not once for each anchor: an anchor of complementary class ``c`` still sees ``count`` uniform
    draws of class ``c``, while a step encodes ``classes * count`` negatives in place of ``batch * count``.

    Args:
        probabilities: ``[pool, classes]``, ``q`` of the whole pool.
        threshold: γ, from which a pair counts as high-confidence.
        count: K.

    Returns:
        Pool indices ``[n]`` and their pseudo-labels ``[n]``, ``n <= classes * count``. Draws are without replacement.
    """
    confidence, pseudo_label = probabilities.max(1)
    chosen = []
    for label in range(probabilities.shape[1]):
        members = ((pseudo_label == label) & (confidence >= threshold)).nonzero().squeeze(1)
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    indices = torch.cat(chosen)
    return indices, pseudo_label[indices]
