"""Distribution alignment: predictions whose classes have known shares (Berthelot et al., 2020, ReMixMatch)."""

import torch
from torch import Tensor


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
    scaled = probabilities * ((shares + 1e-6) / (probabilities.mean(0) + 1e-6))
    return scaled / scaled.sum(1, keepdim=True)
