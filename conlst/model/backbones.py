"""Pretrained encoders by name: ``embedded:e5-small``, ``hub:<id>``, or a local folder in Hugging Face form."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, AutoTokenizer

from conlst.contract.config import Backbone
from conlst.contract.errors import BackendError, ConfigError
from conlst.model.embedded import load_embedded_e5
from conlst.model.folder import Model, TextSettings, build_classifier, set_embeddings

_EMBEDDED = "embedded:e5-small"


def load_backbone(backbone: Backbone, seed: int) -> Model:
    """A pretrained encoder with two fresh heads, drawn from ``seed``.

    Raises:
        BackendError: if the weights cannot be had or belong to no encoder that conlst can use.
        ConfigError: if ``max_length`` exceeds the encoder's positions.
    """
    torch.manual_seed(seed)
    if backbone.name == _EMBEDDED:
        embedded = load_embedded_e5()
        config, weights, tokenizer = embedded.config, embedded.weights, embedded.tokenizer
        special = {name: tokenizer.token_to_id(name) for name in ("<s>", "</s>", "<pad>", "<unk>", "<mask>")}
        pad, mask = special["<pad>"], special["<mask>"]
        specials = tuple(sorted(special.values()))
    elif backbone.name.startswith("embedded:"):
        raise ConfigError(f"backbone.name {backbone.name!r}: the only embedded backbone is {_EMBEDDED}")
    else:
        config, weights, tokenizer, pad, mask, specials = _from_transformers(backbone)
    # RoBERTa's positions start behind the padding id
    offset = config.pad_token_id + 1 if config.model_type in ("xlm-roberta", "roberta") else 0
    if backbone.max_length > config.max_position_embeddings - offset:
        raise ConfigError(
            f"backbone.max_length {backbone.max_length} exceeds the {config.max_position_embeddings - offset} positions"
            f" of {backbone.name}"
        )
    classifier = build_classifier(config, backbone.pooling, backbone.dropout, backbone.projection)
    table = weights.pop("embeddings.word_embeddings.weight")
    set_embeddings(classifier, table)
    missing, unexpected = classifier.encoder.load_state_dict(weights, strict=False)
    if missing != ["embeddings.word_embeddings.weight"] or unexpected:
        raise BackendError(f"{backbone.name} is not a plain encoder that conlst can use: {[*missing, *unexpected][:3]}")
    classifier.freeze_embeddings(backbone.freeze_embeddings)
    return Model(
        classifier.eval(),
        tokenizer,
        TextSettings(backbone.max_length, pad, mask, specials),
        backbone.freeze_embeddings,
        digest=f"{backbone.name}@{backbone.revision}" if backbone.revision else backbone.name,
    )


def _from_transformers(backbone: Backbone) -> tuple:
    name = backbone.name.removeprefix("hub:")
    if not backbone.name.startswith("hub:") and not Path(name).is_dir():
        raise ConfigError(f"backbone.name {backbone.name!r} is no folder; write hub:{name} to fetch it from the hub")
    try:
        config = AutoConfig.from_pretrained(name, revision=backbone.revision)
        encoder = AutoModel.from_pretrained(name, revision=backbone.revision, use_safetensors=True, dtype=torch.float32)
        slow_or_fast = AutoTokenizer.from_pretrained(name, revision=backbone.revision)
    except OSError as error:
        raise BackendError(f"backbone {backbone.name!r} cannot be loaded: {error}") from error
    tokenizer: Tokenizer | None = getattr(slow_or_fast, "backend_tokenizer", None)
    pad, mask = slow_or_fast.pad_token_id, slow_or_fast.mask_token_id
    if tokenizer is None or pad is None or mask is None:
        raise BackendError(f"backbone {backbone.name!r} needs a fast tokenizer with a padding and a mask token")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    weights = {key: value for key, value in encoder.state_dict().items() if not key.startswith("pooler.")}
    return config, weights, tokenizer, pad, mask, tuple(sorted(slow_or_fast.all_special_ids))
