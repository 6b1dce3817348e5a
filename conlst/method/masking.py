"""Random masking of tokens, a strong view of stage 2."""

import torch
from torch import Tensor


def mask_tokens(
    ids: Tensor, attention: Tensor, share: float, mask_id: int, special_ids: tuple[int, ...], generator: torch.Generator
) -> Tensor:
    """Replace a random share of each pair's ordinary tokens by the mask token.

    Args:
        ids: ``[batch, length]``.
        attention: ``[batch, length]``, 0 for padding.
        share: probability of a token to be replaced.
        special_ids: never replaced.

    Returns:
        New ids; special tokens and padding are as they were.
    """
    ordinary = attention.bool() & ~torch.isin(ids, torch.tensor(special_ids, device=ids.device))
    chosen = torch.rand(ids.shape, generator=generator).to(ids.device) < share
    return ids.masked_fill(ordinary & chosen, mask_id)
