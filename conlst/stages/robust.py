"""The robust trainings of stage 0 that the paper compares with, one function each: the loss of a batch.

All take ``views``, the batch as ids and mask ``[batch, length]``, and after it the batch of synonym copies where there are any.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from conlst.contract.config import R3F, EptApt, Perturbation
from conlst.method.robust import attention_distance, embedding_distance, embedding_noise, symmetric_kl
from conlst.model.encoder import PairClassifier

Views = list[tuple[Tensor, Tensor]]


def r3f(
    settings: R3F, smoothing: float, model: PairClassifier, views: Views, labels: Tensor, generator: torch.Generator
) -> Tensor:
    """``CE(f(e)) + weight * symKL(f(e), f(e + noise))``, means over the batch (Aghajanyan et al., 2021).

    The noise is added to detached embeddings ``e``: the table learns from the first pass alone. Both passes have dropout of their
    own, as published, so with the published ``eps`` most of the divergence is dropout's. Under bf16 autocast the first matrix
    product rounds noise below about 1/256 of an embedding away.
    """
    ((ids, mask),) = views
    logits = model(ids, mask)
    embedded = model.embed(ids).detach()
    noise = embedding_noise(embedded.shape, settings.noise, settings.eps, generator).to(embedded.device)
    perturbed = model.classify(model.encode_embedded(embedded + noise, ids, mask))
    return F.cross_entropy(logits, labels, label_smoothing=smoothing) + settings.weight * symmetric_kl(logits, perturbed)


def perturbation(
    settings: Perturbation, smoothing: float, model: PairClassifier, views: Views, labels: Tensor, generator: torch.Generator
) -> Tensor:
    """RS-RP: ``CE(f(e + noise))``, noise of ``N(0, sigma²)`` on every component of ``e`` (Huang et al., 2021)."""
    ((ids, mask),) = views
    embedded = model.embed(ids)
    noise = embedding_noise(embedded.shape, "normal", settings.sigma, generator).to(embedded.device)
    logits = model.classify(model.encode_embedded(embedded + noise, ids, mask))
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


def ept_apt(
    settings: EptApt, smoothing: float, model: PairClassifier, views: Views, labels: Tensor, _generator: torch.Generator
) -> Tensor:
    """``CE(pair) + robust * CE(copy) - push * MSE(embeddings) + pull * MSE(attention)`` (Ding et al., 2022).

    The embeddings are the mean of what the first layer reads. The attention is taken before dropout: after it, as published, its
    noise is most of the error, and pulling would only make attention uniform. The push has no lower bound.
    """
    (ids, mask), (copy_ids, copy_mask) = views
    pair = model.look_inside(ids, mask, settings.layer)
    copy = model.look_inside(copy_ids, copy_mask, settings.layer)
    return (
        F.cross_entropy(model.classify(pair.pooled), labels, label_smoothing=smoothing)
        + settings.robust * F.cross_entropy(model.classify(copy.pooled), labels, label_smoothing=smoothing)
        - settings.push * embedding_distance(pair.embedded, mask, copy.embedded, copy_mask)
        + settings.pull * attention_distance(pair.attention, mask, copy.attention, copy_mask)
    )
