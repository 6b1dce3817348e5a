"""Pairs as tokens: tokenised once, kept flat, cut into batches of nearly equal length."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor


@dataclass(frozen=True)
class TokenizedPairs:
    """Token ids of ``n`` pairs in one flat array.

    Attributes:
        ids: ``[total]`` int32, the pairs' ids one after the other.
        offsets: ``[n + 1]`` int64, where each pair begins.
        pad_id: id that fills a batch's shorter rows.
        truncated: how many pairs lost tokens to the length limit.
    """

    ids: Tensor
    offsets: Tensor
    pad_id: int
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """``[n]`` tokens of each pair."""
        return self.offsets.diff()

    def batch(self, indices: Tensor, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Pad the pairs at ``indices`` to the longest of them.

        Returns:
            ids and attention mask, both ``[batch, length]`` int64.
        """
        starts = self.offsets[indices]
        lengths = self.offsets[indices + 1] - starts
        columns = torch.arange(int(lengths.max()))
        mask = columns < lengths[:, None]
        flat = (starts[:, None] + columns).clamp_max(len(self.ids) - 1)
        ids = torch.where(mask, self.ids[flat].long(), self.pad_id)
        return ids.to(device), mask.long().to(device)


def tokenize(
    premises: Sequence[str], hypotheses: Sequence[str], tokenizer: Tokenizer, *, max_length: int, pad_id: int
) -> TokenizedPairs:
    """Tokenise pairs; one over ``max_length`` loses tokens of its longer text, and is counted."""
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    encodings = tokenizer.encode_batch_fast(list(zip(premises, hypotheses, strict=True)))
    lengths = np.fromiter((len(encoding) for encoding in encodings), np.int64, len(encodings))
    offsets = np.concatenate([[0], lengths.cumsum()])
    ids = np.empty(offsets[-1], np.int32)
    for start, encoding in zip(offsets[:-1], encodings, strict=True):
        ids[start : start + len(encoding)] = encoding.ids
    truncated = sum(bool(encoding.overflowing) for encoding in encodings)
    return TokenizedPairs(torch.from_numpy(ids), torch.from_numpy(offsets), pad_id, truncated)
