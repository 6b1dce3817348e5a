"""Predictions of whole pools: what the stages start from and what evaluation measures."""

import torch
from torch import Tensor

from conlst.contract.config import Compute
from conlst.data.batching import length_batches
from conlst.data.tokens import TokenizedPairs
from conlst.model.encoder import PairClassifier
from conlst.training import autocast


@torch.inference_mode()
def predict_logits(
    model: PairClassifier, pairs: TokenizedPairs, compute: Compute, batch_tokens: int, dropout: bool = False
) -> Tensor:
    """Class logits ``[n, 3]`` float32 of all pairs, in their order. The model's training mode is restored.

    Args:
        dropout: leave dropout on, drawn from the global generator; seed it first.
    """
    was_training = model.training
    model.train(dropout)
    logits = torch.empty(len(pairs), 3)
    for indices in length_batches(pairs.lengths, batch_tokens):
        ids, mask = pairs.batch(indices, model.device)
        with autocast(compute, model.device):
            logits[indices] = model(ids, mask).float().cpu()
    model.train(was_training)
    return logits
