"""Dropout whose mask costs an eighth of PyTorch's on a CPU, where drawing masks is the slowest part of a training step.

PyTorch draws one number from its serial generator for each element. Here one 64-bit draw serves eight elements, so a
probability is rounded to a multiple of 1/256 (0.1 becomes 26/256); the scale is that of the rounded one, so the expectation is
unchanged. Draws come from the global generator: ``torch.manual_seed`` decides them, as for ``torch.nn.Dropout``.
"""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zero elements of ``x`` with probability ``p`` (rounded to 1/256 on a CPU) and scale the others up."""
    bar = min(255, round(256 * p))
    if not training or bar == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    draws = torch.empty(math.ceil(x.numel() / 8), dtype=torch.int64).random_(-(2**63), None)
    kept = (draws.view(torch.uint8)[: x.numel()] >= bar).view(x.shape)
    return x * kept.to(x.dtype).mul_(256 / (256 - bar))


class Dropout(nn.Module):
    """Takes the place of ``torch.nn.Dropout``."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)


def replace_dropout(module: nn.Module) -> None:
    """Put :class:`Dropout` in the place of every ``torch.nn.Dropout`` below ``module``."""
    for name, child in module.named_children():
        if isinstance(child, nn.Dropout):
            setattr(module, name, Dropout(child.p))
        else:
            replace_dropout(child)


def plain_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention written out, with the module's own dropout.

    On a CPU short sequences gain nothing from a fused kernel, and its backward pass is slower than this.

    Args:
        query, key, value: ``[batch, heads, length, width]``.
        attention_mask: additive or boolean, broadcastable to ``[batch, heads, length, length]``.
    """
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + attention_mask
    weights = cast(nn.Module, module.dropout)(scores.float().softmax(-1).to(value.dtype))
    return (weights @ value).transpose(1, 2).contiguous(), None


# the name that `attn_implementation` takes, and the kind of mask that goes with it
PLAIN_ATTENTION = "conlst_plain"
AttentionInterface.register(PLAIN_ATTENTION, plain_attention)
AttentionMaskInterface.register(PLAIN_ATTENTION, sdpa_mask)
