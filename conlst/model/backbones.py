"""Pretrained encoders by name: ``embedded:e5-small``, ``hub:<id>``, or a local folder in Hugging Face form."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig

from conlst.contract.config import Backbone
from conlst.contract.errors import BackendError, ConfigError
from conlst.model.embedded import load_embedded_e5
from conlst.model.folder import Model, TextSettings, build_classifier, set_embeddings

_EMBEDDED = "embedded:e5-small"
_TABLE = "embeddings.word_embeddings.weight"

_log = logging.getLogger(__name__)


def load_backbone(backbone: Backbone, seed: int) -> Model:
    """A pretrained encoder with two fresh heads, drawn from ``seed``.

    Raises:
        BackendError: if the weights cannot be had or belong to no encoder that conlst can use.
        ConfigError: if ``max_length`` exceeds the encoder's positions.
    """
    torch.manual_seed(seed)
    if backbone.name == _EMBEDDED:
        pretrained = _from_package()
    elif backbone.name.startswith("embedded:"):
        raise ConfigError(f"backbone.name {backbone.name!r}: the only embedded backbone is {_EMBEDDED}")
    else:
        pretrained = _from_transformers(backbone)
    config, weights = pretrained.config, pretrained.weights
    # RoBERTa's positions start behind the padding id
    offset = pretrained.pad_id + 1 if config.model_type in ("xlm-roberta", "roberta") else 0
    if backbone.max_length > config.max_position_embeddings - offset:
        raise ConfigError(
            f"backbone.max_length {backbone.max_length} exceeds the {config.max_position_embeddings - offset} positions"
            f" of {backbone.name}"
        )
    classifier = build_classifier(config, backbone.pooling, pretrained.separator_id, backbone.dropout, backbone.projection)
    table = weights.pop(_TABLE, None)
    if table is None:
        raise BackendError(f"{backbone.name} is not a plain encoder that conlst can use: it has no {_TABLE}")
    set_embeddings(classifier, table)
    missing, unexpected = classifier.encoder.load_state_dict(weights, strict=False)
    if missing != [_TABLE] or unexpected:
        raise BackendError(f"{backbone.name} is not a plain encoder that conlst can use: {[*missing, *unexpected][:3]}")
    classifier.freeze_embeddings(backbone.freeze_embeddings)
    return Model(
        classifier.eval(),
        pretrained.tokenizer,
        TextSettings(backbone.max_length, pretrained.pad_id, pretrained.mask_id, pretrained.separator_id, pretrained.special_ids),
        backbone.freeze_embeddings,
        digest=f"{backbone.name}@{backbone.revision}" if backbone.revision else backbone.name,
    )


@dataclass(frozen=True)
class _Pretrained:
    config: PretrainedConfig
    weights: dict[str, Tensor]
    tokenizer: Tokenizer
    pad_id: int
    mask_id: int
    separator_id: int
    special_ids: tuple[int, ...]


def _from_package() -> _Pretrained:
    embedded = load_embedded_e5()
    ids = {piece: embedded.tokenizer.token_to_id(piece) or 0 for piece in ("<s>", "</s>", "<pad>", "<unk>", "<mask>")}
    specials = tuple(sorted(ids.values()))
    return _Pretrained(embedded.config, embedded.weights, embedded.tokenizer, ids["<pad>"], ids["<mask>"], ids["</s>"], specials)


def _from_transformers(backbone: Backbone) -> _Pretrained:
    name = backbone.name.removeprefix("hub:")
    if not backbone.name.startswith("hub:") and not Path(name).is_dir():
        raise ConfigError(f"backbone.name {backbone.name!r} is no folder; write hub:{name} to fetch it from the hub")
    if backbone.revision is None and not Path(name).is_dir():
        _log.warning("backbone %s names no revision and may change; pin it as backbone.revision: <commit>", backbone.name)
    try:
        config = AutoConfig.from_pretrained(name, revision=backbone.revision)
        encoder, loading = AutoModel.from_pretrained(
            name, revision=backbone.revision, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
        words = AutoTokenizer.from_pretrained(name, revision=backbone.revision)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise BackendError(f"backbone {backbone.name!r} cannot be loaded: {error}") from error
    # transformers draws what a checkpoint lacks at random, and only logs it
    if lacking := sorted(key for key in loading["missing_keys"] if not key.startswith("pooler.")):
        raise BackendError(f"backbone {backbone.name!r} lacks {lacking[0]}; its weights are not whole")
    tokenizer: Tokenizer | None = getattr(words, "backend_tokenizer", None)
    separator_id = words.eos_token_id if words.sep_token_id is None else words.sep_token_id
    if tokenizer is None or None in (words.pad_token_id, words.mask_token_id, separator_id):
        raise BackendError(f"backbone {backbone.name!r} needs a fast tokenizer with a padding, a mask and a separator token")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    # the pooled embedding is ours, see build_classifier
    weights = {key: value for key, value in encoder.state_dict().items() if not key.startswith("pooler.")}
    specials = tuple(sorted(words.all_special_ids))
    return _Pretrained(config, weights, tokenizer, words.pad_token_id, words.mask_token_id, separator_id, specials)
