"""The classifier of sentence pairs: a multilingual encoder ``θ_m`` with a classification and a contrastive head."""

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from conlst.contract.errors import ConfigError
from conlst.contract.labels import ID2LABEL


@dataclass(frozen=True)
class Inside:
    """What :meth:`PairClassifier.look_inside` sees of a batch.

    Attributes:
        pooled: ``[batch, hidden]`` float32, as :meth:`PairClassifier.encode` gives it.
        embedded: ``[batch, length, hidden]``, what the first layer reads: tokens and positions, normalised, after dropout.
        attention: ``[batch, heads, length, length]`` float32, a layer's attention before dropout; rows sum to one.
    """

    pooled: Tensor
    embedded: Tensor
    attention: Tensor


Pooling = Literal["cls", "mean", "pair"]


class PairClassifier(nn.Module):
    """Encode a pair once with ``θ_m``, then read it with either head: ``θ_cl`` or ``θ_con``.

    Args:
        encoder: any Hugging Face encoder with ``last_hidden_state``.
        pooling: ``cls``, ``mean`` or ``pair``, see :class:`conlst.contract.config.Backbone`.
        separator_id: the token between premise and hypothesis.
        dropout: applied to the pooled embedding before the classification head.
        projection: width of the contrastive head.
    """

    def __init__(self, encoder: PreTrainedModel, pooling: Pooling, separator_id: int, dropout: float, projection: int):
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.separator_id = separator_id
        width = encoder.config.hidden_size * (4 if pooling == "pair" else 1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, len(ID2LABEL))
        self.projector = nn.Linear(width, projection)

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Pooled sentence-pair embeddings.

        Args:
            ids: ``[batch, length]`` token ids.
            mask: ``[batch, length]``, 1 for a token and 0 for padding.

        Returns:
            ``[batch, hidden]`` float32, or ``[batch, 4 * hidden]`` with the pooling ``pair``.
        """
        return self._pool(self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state, ids, mask)

    def embed(self, ids: Tensor) -> Tensor:
        """Rows of the embedding table, ``[batch, length, hidden]``: no positions yet, nothing normalised."""
        return self.encoder.get_input_embeddings()(ids)

    def encode_embedded(self, embedded: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """:meth:`encode` of what :meth:`embed` gave for ``ids``, or was made of it; padding stands last."""
        return self._pool(self.encoder(inputs_embeds=embedded, attention_mask=mask).last_hidden_state, ids, mask)

    def look_inside(self, ids: Tensor, mask: Tensor, layer: int) -> Inside:
        """:meth:`encode`, with the embeddings and the attention of a layer, numbered from 0.

        Fused attention has no maps to give. One layer's are computed again from its input, whatever attention is chosen.

        Raises:
            ConfigError: if there is no such layer, or it is not of BERT's form.
        """
        attention = self._self_attention(layer)
        seen = self.encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        maps = _attention_maps(attention, seen.hidden_states[layer], mask)
        return Inside(self._pool(seen.last_hidden_state, ids, mask), seen.hidden_states[0], maps)

    def _self_attention(self, layer: int) -> Any:
        try:
            return self.encoder.get_submodule(f"encoder.layer.{layer}.attention.self")
        except AttributeError:
            raise ConfigError(
                f"layer {layer}: {type(self.encoder).__name__} has {self.config.num_hidden_layers} layers, counted from 0, and"
                " only encoders of BERT's form show their attention; choose another source.ept_apt.layer or backbone"
            ) from None

    def _pool(self, hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = hidden.float()  # [batch, length, hidden]
        if self.pooling == "cls":
            return hidden[:, 0]
        if self.pooling == "mean":
            return _mean(hidden, mask)
        premise, hypothesis = (_mean(hidden, text) for text in self._texts(ids, mask))
        return torch.cat([premise, hypothesis, (premise - hypothesis).abs(), premise * hypothesis], 1)

    def _texts(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Masks ``[batch, length]`` of the premise's and of the hypothesis' tokens, special tokens left out."""
        separator = (ids == self.separator_id).long()
        before = separator.cumsum(1) == 0
        # the first token is the encoder's class token
        inside = (mask * (1 - separator)).bool() & (torch.arange(ids.shape[1], device=ids.device) > 0)
        return (inside & before).long(), (inside & ~before).long()

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


def _attention_maps(attention: Any, hidden: Tensor, mask: Tensor) -> Tensor:
    """``softmax(q kᵀ scaling)`` of a self-attention module over ``hidden`` ``[batch, length, width]``, in float32."""
    query, key = (
        projection(hidden).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
        for projection in (attention.query, attention.key)
    )
    scores = (query @ key.transpose(2, 3)).float() * attention.scaling
    return scores.masked_fill(mask[:, None, None, :] == 0, -torch.inf).softmax(-1)


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1).clamp_min(1)


def _in_float32(head: nn.Linear, pooled: Tensor) -> Tensor:
    # distances and confidences are differences of near numbers: whatever the autocast, 8 bits do not carry them
    with torch.autocast(pooled.device.type, enabled=False):
        return head(pooled.float())
