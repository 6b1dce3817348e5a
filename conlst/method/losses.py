"""Losses of both stages: negative learning (eq. 1), contrastive negative learning (eq. 6), source consistency (eq. 7)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Distance = Literal["euclidean", "squared_euclidean", "cosine"]


def negative_loss(logits: Tensor, complementary: Tensor) -> Tensor:
    """Mean ``-log(1 - p[complementary])``, eq. 1: "this pair is *not* of that class".

    Args:
        logits: ``[batch, classes]``.
        complementary: ``[batch]``, a class that each pair is believed not to be of.

    ``1 - p`` underflows just where the model is confidently wrong, so it is taken as a difference of two log-sum-exps, whose
    gradient does not vanish there.
    """
    logits = logits.float()
    others = logits.scatter(1, complementary[:, None], -torch.inf)
    return (logits.logsumexp(1) - others.logsumexp(1)).mean()


def literal_source_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Eq. 7 as printed, mean ``log(1 - p[label])``: unbounded below as ``p`` nears one.

    Args:
        logits: ``[batch, classes]``.
        labels: ``[batch]``, the true classes.
    """
    return -negative_loss(logits, labels)


def distance(a: Tensor, b: Tensor, kind: Distance) -> Tensor:
    """Distance of representations along the last dimension, other dimensions broadcast.

    Args:
        a, b: ``[..., width]``.

    Returns:
        ``[...]`` float32. Differences are squared and summed: the matrix-product form loses every digit when norms dwarf
        distances. The gradient is finite at distance zero.
    """
    a, b = a.float(), b.float()
    if kind == "cosine":
        return 1 - F.cosine_similarity(a, b, dim=-1)
    squared = (a - b).square().sum(-1)
    return squared if kind == "squared_euclidean" else squared.clamp_min(1e-12).sqrt()


def contrastive_negative_loss(positive: Tensor, negative: Tensor, is_negative: Tensor, temperature: float) -> Tensor:
    """Eq. 6 with ``⟨a, b⟩ = exp(-d(a, b) / τ)``: pull the dropout twin, push pairs of the complementary class.

    Args:
        positive: ``[batch]`` distance of each anchor to its second view.
        negative: ``[batch, n]`` distances to the step's negatives.
        is_negative: ``[batch, n]`` bool, which of them belong to the anchor's ``N_i``.
        temperature: τ.

    Returns:
        ``[batch]``, for each anchor ``-log softmax`` of the positive among itself and its negatives. Zero for an anchor without a
        negative: there is nothing to tell it apart from.
    """
    similarity = torch.cat([positive[:, None], negative], 1) / -temperature  # [batch, 1 + n]
    member = torch.cat([is_negative.new_ones(len(is_negative), 1), is_negative], 1)
    logits = similarity.masked_fill(~member, -torch.inf)
    return logits.logsumexp(1) - logits[:, 0]


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with class distributions for targets, as mixup makes them (eq. 10).

    Args:
        logits: ``[batch, classes]``.
        targets: ``[batch, classes]``; a row sums to one, or to the weight of its pair.
    """
    return -(targets * logits.float().log_softmax(1)).sum(1).mean()
