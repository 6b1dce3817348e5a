"""Predictions whose classes have known shares: in one pass (Berthelot et al., 2020, ReMixMatch), or until they have them."""

import torch
from torch import Tensor

_EPSILON = 1e-6
# of the logarithm of a share; each pass leaves a fraction of what the one before left
_SETTLED = 1e-5
_MOST_PASSES = 1000


def class_shares(labels: Tensor, classes: int) -> Tensor:
    """Share of each class among ``labels`` ``[n]``: ``[classes]`` float32, sums to one."""
    return torch.bincount(labels, minlength=classes) / len(labels)


def align(probabilities: Tensor, shares: Tensor) -> Tensor:
    """Scale every prediction by ``shares / mean prediction`` and renormalise it.

    A single pass, as in the reference: the mean of the result is near ``shares``, not equal to it, because renormalising moves it
    again. The mean is that of the whole pool, where the reference has a running one over batches.

    Args:
        probabilities: ``[pool, classes]``, rows sum to one.
        shares: ``[classes]``, the shares that the classes should have.

    Returns:
        ``[pool, classes]``, rows sum to one.
    """
    # a class that is never predicted must not divide by zero
    scaled = probabilities * ((shares + _EPSILON) / (probabilities.mean(0) + _EPSILON))
    return scaled / scaled.sum(1, keepdim=True)


def prior_shift(logits: Tensor, shares: Tensor) -> Tensor:
    """What to add to the logits so that the mean prediction is ``shares``: :func:`align` again and again, until nothing moves.

    Correcting a classifier for other class priors moves its biases alone (Saerens et al., 2002). There the new priors are
    estimated, here they are given.

    Args:
        logits: ``[pool, classes]``.
        shares: ``[classes]``, the shares that the classes should have, none of them zero.

    Returns:
        ``[classes]`` float32, with mean zero.
    """
    logits, shift = logits.double(), torch.zeros(len(shares), dtype=torch.float64)
    for _ in range(_MOST_PASSES):
        step = torch.log((shares + _EPSILON) / ((logits + shift).softmax(1).mean(0) + _EPSILON))
        shift += step
        if step.abs().max() < _SETTLED:
            break
    return (shift - shift.mean()).float()
