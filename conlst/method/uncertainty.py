"""Three uncertainties of self-learning, their losses and what each says of a prediction (Xu et al., 2021).

Evidential (EVI), heteroscedastic (LEU) and homoscedastic (LOU). Losses come one a pair: the stage averages them.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def evidence_of(logits: Tensor) -> Tensor:
    """Evidence ``elu(logit) + 1`` for each class: positive, and in the order of the logits.

    Args:
        logits: ``[batch, classes]``.

    Returns:
        ``[batch, classes]`` float32. Written as ``exp(min(x, 0)) + max(x, 0)``, because ``elu(x) + 1`` rounds to zero below -17
        and loses its gradient there.
    """
    logits = logits.float()
    return logits.clamp_max(0).exp() + logits.relu()


def evidential_probabilities(evidence: Tensor) -> Tensor:
    """Mean of the Dirichlet distribution with ``α = evidence + 1``: ``p = α / S`` with ``S = Σ α``. ``[batch, classes]``."""
    alpha = evidence + 1
    return alpha / alpha.sum(1, keepdim=True)


def evidential_loss(evidence: Tensor, labels: Tensor) -> Tensor:
    """Expected squared error under the Dirichlet distribution (Sensoy et al., 2018, eq. 5): ``Σ (y - p)² + p (1 - p) / (S + 1)``.

    Args:
        evidence: ``[batch, classes]``.
        labels: ``[batch]``.

    Returns:
        ``[batch]``. Without the divergence from the uniform Dirichlet distribution, as Xu et al. (2021) train.
    """
    p = evidential_probabilities(evidence)
    truth = F.one_hot(labels, evidence.shape[1]).to(p)
    strength = (evidence + 1).sum(1, keepdim=True)
    return ((truth - p).square() + p * (1 - p) / (strength + 1)).sum(1)


def vacuity(evidence: Tensor) -> Tensor:
    """Lack of evidence, ``classes / S``: ``[batch]`` in (0, 1], 1 without any evidence."""
    return evidence.shape[1] / (evidence + 1).sum(1)


def dissonance(evidence: Tensor) -> Tensor:
    """Conflict of evidence (Jøsang et al., 2018): near 1 where classes have much of it and equally, 0 where one has all of it.

    Args:
        evidence: ``[batch, classes]``.

    Returns:
        ``[batch]``: ``Σ_k b_k Σ_{j≠k} b_j Bal(j, k) / Σ_{j≠k} b_j`` with the beliefs ``b = evidence / S`` and
        ``Bal(j, k) = 1 - |b_j - b_k| / (b_j + b_k)``. A quotient of two zeros counts as zero: no belief, no conflict.
    """
    belief = evidence / (evidence + 1).sum(1, keepdim=True)
    one, other = belief[:, :, None], belief[:, None, :]
    balance = _quotient(2 * torch.minimum(one, other), one + other)  # the same as 1 - |one - other| / (one + other)
    apart = 1 - torch.eye(belief.shape[1], device=belief.device)
    return (belief * _quotient((other * balance * apart).sum(2), (other * apart).sum(2))).sum(1)


def homoscedastic_loss(losses: Tensor, log_variance: Tensor) -> Tensor:
    """Weigh each pair's loss by the learned noise of its language, ``loss e^{-s} + s / 2`` (Kendall et al., 2018).

    Args:
        losses: ``[batch]``.
        log_variance: ``[batch]``, ``s`` of each pair's language.

    Returns:
        ``[batch]``.
    """
    return losses * (-log_variance).exp() + log_variance / 2


def noisy_log_probabilities(logits: Tensor, log_scale: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """Average the softmax over Gaussian noise on the logits (Kendall & Gal, 2017, eq. 12).

    Args:
        logits: ``[batch, classes]``.
        log_scale: ``[batch]``, logarithm of the noise's standard deviation for each pair.
        samples: draws that are averaged.
        generator: draws the noise.

    Returns:
        ``[batch, classes]``, the logarithm of the average: its negative at the label is the loss. Averaged as a log-sum-exp,
        since a probability may underflow in every draw.
    """
    noise = torch.randn(samples, *logits.shape, generator=generator).to(logits.device)
    noisy = logits.float() + log_scale.float().exp()[:, None] * noise  # [samples, batch, classes]
    return noisy.log_softmax(2).logsumexp(0) - math.log(samples)


def surest(certainty: Tensor, predicted: Tensor, count: int) -> Tensor:
    """The ``count`` surest of each predicted class, or all of a class that has fewer.

    Args:
        certainty: ``[n]``, higher is surer; of equals the first is taken.
        predicted: ``[n]``.

    Returns:
        Indices ``[m]``, in ascending order.
    """
    order = certainty.argsort(descending=True, stable=True)
    taken = [order[predicted[order] == label][:count] for label in predicted.unique()]
    return torch.cat(taken).sort().values if taken else order


def _quotient(a: Tensor, b: Tensor) -> Tensor:
    return a / b.clamp_min(torch.finfo(b.dtype).tiny)
