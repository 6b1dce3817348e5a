"""Terms of the robust trainings that the paper compares with: R3F, random perturbation, embedding push and attention pull."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def embedding_noise(shape: Sequence[int], kind: Literal["uniform", "normal"], scale: float, generator: torch.Generator) -> Tensor:
    """Noise for input embeddings, float32 on the CPU: uniform in [-scale, scale], or normal with standard deviation ``scale``."""
    noise = torch.empty(*shape)
    if kind == "uniform":
        return noise.uniform_(-scale, scale, generator=generator)
    return noise.normal_(0, scale, generator=generator)


def symmetric_kl(logits: Tensor, others: Tensor) -> Tensor:
    """``KL(p || q) + KL(q || p)`` of two predictions of each pair, mean over the batch (R3F; Aghajanyan et al., 2021).

    Args:
        logits, others: ``[batch, classes]``. Both get a gradient.

    The two sums are ``Σ (p - q) (log p - log q)``, of which no term is negative, and none is lost where ``p`` nears ``q``.
    """
    log_p, log_q = logits.float().log_softmax(1), others.float().log_softmax(1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(1).mean()


def embedding_distance(embedded: Tensor, mask: Tensor, other: Tensor, other_mask: Tensor) -> Tensor:
    """What EPT pushes apart: the mean squared error of two texts' mean embeddings (Ding et al., 2022).

    Args:
        embedded: ``[batch, length, hidden]``.
        mask: ``[batch, length]``, 1 for a token and 0 for padding.
        other, other_mask: the same of the copies, whose ``length`` may differ.

    Returns:
        Scalar, the mean over batch and hidden.
    """
    return F.mse_loss(_mean_of_tokens(embedded, mask), _mean_of_tokens(other, other_mask))


def attention_distance(maps: Tensor, mask: Tensor, other: Tensor, other_mask: Tensor) -> Tensor:
    """What APT pulls together: the mean squared error of two texts' attention maps (Ding et al., 2022).

    Token ``i`` of the one stands for token ``i`` of the other. Rows and columns of positions that either lacks are left out, so
    padding does not count. (With all texts padded to one length, as published, the mean runs over the padding too.)

    Args:
        maps: ``[batch, heads, length, length]``.
        mask: ``[batch, length]``, 1 for a token and 0 for padding.
        other, other_mask: the same of the copies, whose ``length`` may differ.

    Returns:
        Scalar, the mean over the batch's entries that both have, and over heads.
    """
    common = min(maps.shape[-1], other.shape[-1])
    both = (mask[:, :common] * other_mask[:, :common]).bool()
    entries = (both[:, None, :, None] & both[:, None, None, :]).to(torch.float32)  # [batch, 1, common, common]
    squared = (maps[..., :common, :common].float() - other[..., :common, :common].float()).square()
    return (squared * entries).sum() / (entries.sum() * maps.shape[1])


def _mean_of_tokens(embedded: Tensor, mask: Tensor) -> Tensor:
    weight = mask.unsqueeze(-1).float()
    return (embedded.float() * weight).sum(1) / weight.sum(1)
