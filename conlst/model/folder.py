"""A model on disk: two safetensors files, the tokenizer and what is needed to build the encoder again. Nothing unpickles.

The token embedding table has a file of its own. While it is frozen, every model adapted from a source has the very same table:
the file is then linked, not written again, and content-addressed storage holds it once.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig

from conlst.contract.artifacts import link_or_copy, publish, verify
from conlst.contract.errors import ArtifactError
from conlst.contract.labels import ID2LABEL, check_id2label
from conlst.data.tokens import TokenizedPairs, tokenize
from conlst.model.dropout import PLAIN_ATTENTION, replace_dropout
from conlst.model.encoder import PairClassifier, Pooling

_EMBEDDINGS = "embeddings.safetensors"
_WEIGHTS = "weights.safetensors"
_SEEN = "seen.safetensors"


@dataclass(frozen=True)
class TextSettings:
    """How a pair becomes tokens.

    Attributes:
        max_length: longest pair in tokens.
        pad_id, mask_id, separator_id: ids of the padding and the mask token, and of the one between premise and hypothesis.
        special_ids: ids that no augmentation may replace.
    """

    max_length: int
    pad_id: int
    mask_id: int
    separator_id: int
    special_ids: tuple[int, ...]


@dataclass(frozen=True)
class Model:
    """A classifier with its tokenizer.

    Attributes:
        digest: of the folder it was read from, or a name for a model that was built.
        embeddings_file: published file whose table this model's frozen one equals, or ``None``.
        seen: hashes ``[n]`` int64 of the texts that it was trained on: ``source`` with labels, ``pool`` without. Evaluation
            refuses the first and calls the second transductive.
    """

    classifier: PairClassifier
    tokenizer: Tokenizer
    text: TextSettings
    freeze_embeddings: bool
    digest: str
    embeddings_file: Path | None = None
    seen: dict[str, Tensor] = field(default_factory=dict)

    def tokenize(self, premises: Sequence[str], hypotheses: Sequence[str]) -> TokenizedPairs:
        """Pairs as this model reads them; one that is too long is cut, and counted."""
        return tokenize(premises, hypotheses, self.tokenizer, max_length=self.text.max_length, pad_id=self.text.pad_id)


def build_classifier(
    config: PretrainedConfig,
    pooling: Pooling,
    separator_id: int,
    dropout: float,
    projection: int,
    attention: str = PLAIN_ATTENTION,
) -> PairClassifier:
    """A classifier whose embedding table is still to be set with :func:`set_embeddings`.

    The table is built for the padding row alone: initialising 250,000 rows only to overwrite them takes longer than loading them.
    """
    small = type(config).from_dict(
        {
            **config.to_dict(),
            "vocab_size": (config.pad_token_id or 0) + 1,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
        }
    )
    encoder = AutoModel.from_config(small, attn_implementation=attention)
    if getattr(encoder, "pooler", None) is not None:
        # the pooled embedding is ours; transformers' pooler would stay without gradient
        encoder.pooler = None
    encoder.config.vocab_size = config.vocab_size
    classifier = PairClassifier(encoder, pooling, separator_id, dropout, projection)
    replace_dropout(classifier)
    return classifier


def set_embeddings(classifier: PairClassifier, table: Tensor) -> None:
    """Give the encoder its token embeddings, ``[vocabulary, hidden]``."""
    padding = classifier.encoder.config.pad_token_id
    classifier.encoder.set_input_embeddings(nn.Embedding.from_pretrained(table, freeze=False, padding_idx=padding))


def save_model(
    model: Model,
    folder: Path,
    *,
    config: dict[str, Any],
    parents: dict[str, str] | None = None,
    meta: dict[str, Any] | None = None,
    write_more: Callable[[Path], None] | None = None,
) -> None:
    """Publish a model as an artifact folder of kind ``model``.

    Args:
        write_more: writes further files into the folder before its manifest, for example a training's history.
    """
    classifier = model.classifier
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.state_dict().items()}
    table = state.pop(_table_name(classifier))
    description = {
        "id2label": {str(key): value for key, value in ID2LABEL.items()},
        "pooling": classifier.pooling,
        "dropout": classifier.dropout.p,
        "projection": classifier.projector.out_features,
        "freeze_embeddings": model.freeze_embeddings,
        "text": vars(model.text),
    }
    with publish(folder, kind="model", config=config, parents=parents, meta=meta) as staging:
        save_file(state, staging / _WEIGHTS)
        save_file({name: hashes.contiguous() for name, hashes in model.seen.items()}, staging / _SEEN)
        if model.freeze_embeddings and model.embeddings_file is not None:
            link_or_copy(model.embeddings_file, staging / _EMBEDDINGS)
        else:
            save_file({"table": table}, staging / _EMBEDDINGS)
        # transformers notes where it read the encoder, which says nothing elsewhere
        encoder = {key: value for key, value in classifier.config.to_dict().items() if key != "_name_or_path"}
        (staging / "encoder.json").write_text(json.dumps(encoder, indent=1, sort_keys=True))
        (staging / "model.json").write_text(json.dumps(description, indent=1, sort_keys=True))
        model.tokenizer.save(str(staging / "tokenizer.json"), pretty=False)
        if write_more:
            write_more(staging)


def load_model(folder: Path, attention: str = PLAIN_ATTENTION) -> Model:
    """Read a published model.

    Args:
        folder: an artifact folder of kind ``model``.
        attention: transformers' ``attn_implementation``; export takes ``eager``.

    Raises:
        ArtifactError: if the folder is incomplete, altered, or does not fit its own description.
        LabelError: if its labels stand in another order.
    """
    folder = Path(folder)
    digest = verify(folder, "model").digest
    description = json.loads((folder / "model.json").read_text())
    check_id2label(description["id2label"], str(folder / "model.json"))
    raw = json.loads((folder / "encoder.json").read_text())
    config = AutoConfig.for_model(**raw)
    text = TextSettings(**{**description["text"], "special_ids": tuple(description["text"]["special_ids"])})
    classifier = build_classifier(
        config, description["pooling"], text.separator_id, description["dropout"], description["projection"], attention
    )
    table = load_file(folder / _EMBEDDINGS)["table"]
    if table.shape != (config.vocab_size, config.hidden_size):
        raise ArtifactError(
            f"{folder / _EMBEDDINGS} holds a table of shape {tuple(table.shape)}, which does not fit encoder.json"
        )
    set_embeddings(classifier, table)
    try:
        missing, unexpected = classifier.load_state_dict(load_file(folder / _WEIGHTS), strict=False)
    except RuntimeError as error:
        raise ArtifactError(f"{folder / _WEIGHTS} does not fit encoder.json: {error}") from error
    if unexpected or missing != [_table_name(classifier)]:
        raise ArtifactError(f"{folder / _WEIGHTS} does not fit encoder.json: {[*unexpected, *missing][:3]}")
    classifier.freeze_embeddings(description["freeze_embeddings"])
    return Model(
        classifier.eval(),
        Tokenizer.from_file(str(folder / "tokenizer.json")),
        text,
        description["freeze_embeddings"],
        digest,
        folder / _EMBEDDINGS,
        load_file(folder / _SEEN),
    )


def read_seen(folder: Path) -> dict[str, Tensor]:
    """:attr:`Model.seen` of a published model, without the rest of it."""
    return load_file(folder / _SEEN)


def _table_name(classifier: PairClassifier) -> str:
    return next(name for name, parameter in classifier.named_parameters() if parameter is classifier.embeddings)
