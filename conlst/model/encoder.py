"""The classifier of sentence pairs: a multilingual encoder ``θ_m`` with a classification and a contrastive head."""

from typing import Literal, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from conlst.contract.labels import ID2LABEL


class PairClassifier(nn.Module):
    """Encode a pair once with ``θ_m``, then read it with either head: ``θ_cl`` or ``θ_con``.

    Args:
        encoder: any Hugging Face encoder with ``last_hidden_state``.
        pooling: ``cls`` or ``mean``.
        dropout: applied to the pooled embedding before the classification head.
        projection: width of the contrastive head.
    """

    def __init__(self, encoder: PreTrainedModel, pooling: Literal["cls", "mean"], dropout: float, projection: int):
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        width = encoder.config.hidden_size
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, len(ID2LABEL))
        self.projector = nn.Linear(width, projection)

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Pooled sentence-pair embeddings.

        Args:
            ids: ``[batch, length]`` token ids.
            mask: ``[batch, length]``, 1 for a token and 0 for padding.

        Returns:
            ``[batch, hidden]`` float32.
        """
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state.float()  # [batch, length, hidden]
        if self.pooling == "cls":
            return hidden[:, 0]
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1)

    def classify(self, pooled: Tensor) -> Tensor:
        """Class logits ``[batch, 3]`` float32 of pooled embeddings, in the order of :class:`conlst.contract.labels.Label`."""
        return _in_float32(self.classifier, self.dropout(pooled))

    def project(self, pooled: Tensor) -> Tensor:
        """Representations ``h`` of the contrastive space, ``[batch, projection]`` float32."""
        return _in_float32(self.projector, pooled)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.classify(self.encode(ids, mask))

    @property
    def embeddings(self) -> nn.Parameter:
        """The token embedding table, ``[vocabulary, hidden]``."""
        return cast(nn.Parameter, self.encoder.get_input_embeddings().weight)

    @property
    def config(self) -> PretrainedConfig:
        return self.encoder.config

    def freeze_embeddings(self, frozen: bool) -> None:
        """Keep the embedding table fixed, or let it train."""
        self.embeddings.requires_grad_(not frozen)

    def heads(self) -> list[nn.Parameter]:
        """Parameters of ``θ_cl`` and ``θ_con``, which may have a rate of their own."""
        return [*self.classifier.parameters(), *self.projector.parameters()]

    def move_to(self, device: torch.device) -> "PairClassifier":
        """Go to a device and take the attention that is fastest there."""
        if device.type != "cpu":
            self.encoder.set_attn_implementation("sdpa")
        return self.to(device)

    @property
    def device(self) -> torch.device:
        return self.embeddings.device


def _in_float32(head: nn.Linear, pooled: Tensor) -> Tensor:
    # distances and confidences are differences of near numbers: whatever the autocast, 8 bits do not carry them
    with torch.autocast(pooled.device.type, enabled=False):
        return head(pooled.float())
