"""Mixup of pooled sentence-pair embeddings, eq. 9-11."""

import torch
from torch import Tensor


def mixup(pooled: Tensor, targets: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Interpolate each row with a random other one.

    Args:
        pooled: ``[batch, hidden]`` embeddings ``x``.
        targets: ``[batch, classes]`` distributions ``y``.
        alpha: of ``λ ~ Beta(alpha, alpha)``, one draw a row.

    Returns:
        ``λ x_i + (1 - λ) x_j`` and the targets mixed alike.
    """
    partner = torch.randperm(len(pooled), generator=generator).to(pooled.device)
    weight = _beta(alpha, len(pooled), generator).to(pooled)[:, None]
    return weight * pooled + (1 - weight) * pooled[partner], weight * targets + (1 - weight) * targets[partner]


def _beta(alpha: float, count: int, generator: torch.Generator) -> Tensor:
    # a beta variate is a ratio of gamma variates; torch.distributions would not take the generator
    first, second = (torch._standard_gamma(torch.full((count,), float(alpha)), generator=generator) for _ in range(2))
    return first / (first + second)
