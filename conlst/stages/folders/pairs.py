"""Pairs between artifact folders, and pairs as the stages take them."""

import json
import logging
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor

from conlst.contract.artifacts import read_manifest
from conlst.contract.cache import cache_folder
from conlst.contract.config import Config
from conlst.contract.errors import ConfigError, UnsupportedDirection
from conlst.data.backtranslation import TranslationCache, back_translate, open_backend
from conlst.data.pairs import Ingested, read_pairs, require_labels, text_hash, write_pairs
from conlst.data.sources import load_source
from conlst.data.tokens import TokenizedPairs
from conlst.data.translated import translate_pairs
from conlst.model.folder import Model
from conlst.stages.evaluate import SOURCE_LANGUAGE

log = logging.getLogger(__name__)

HISTORY = "history.json"
KEPT_PAIRS = "source_pairs.parquet"


def translate_training_pairs(pairs: Path, backend: str, path: Sequence[str], out: Path) -> None:
    """Publish labelled pairs translated by machine, for stage 0.

    Args:
        path: languages that each text goes through; the pairs are in the first one, and are published in the last.
    """
    translated, translator = read_pairs(pairs), open_backend(backend)
    cache = TranslationCache(cache_folder() / "translations.sqlite")
    for source, target in pairwise(path):
        translated = translate_pairs(translated, source, target, translator, cache)
    report = {"language": path[-1], "pairs": len(translated), "translator": f"{translator.name} {translator.version}"}
    write_pairs(Ingested(translated, [], report), out, parents={"pairs": read_manifest(pairs).digest})


def source_pairs(model: Path, given: Path | None, config: Config) -> Dataset:
    """The labelled English pairs that train along: those given, else those that the model carries, else the configuration's."""
    if given is not None:
        pairs = read_pairs(given)
    elif (model / KEPT_PAIRS).is_file():
        pairs = Dataset(pq.read_table(model / KEPT_PAIRS))
    else:
        log.info("%s carries no training pairs, the source terms use data.source: %s", model, ", ".join(config.data.source))
        loaded = load_source(
            list(config.data.source),
            language=SOURCE_LANGUAGE,
            genres=config.data.genres,
            max_bad_share=config.data.max_bad_share,
        )
        pairs = loaded.pairs
    require_labels(pairs, "the source data")
    return pairs


def translated_view(config: Config, pool: Dataset) -> Dataset | None:
    """The pool's pairs translated and back, each in its own language.

    Pairs of a language that the backend does not translate keep their texts; ``None`` if that is so for all, or nothing is set.
    """
    rows: dict[str, list[int]] = {}
    for row, language in enumerate(pool["language"]):
        rows.setdefault(language, []).append(row)
    settings = config.selftrain.back_translation
    if settings is None:
        log.info("%s trains without the back-translation view: selftrain.back_translation is not set", ", ".join(rows))
        return None
    pivots = {language: settings.pivots.get(language, "en") for language in rows}
    if itself := [language for language, pivot in pivots.items() if pivot == language]:
        raise ConfigError(f"selftrain.back_translation.pivots sends {', '.join(itself)} through itself; name another language")
    translator, cache = open_backend(settings.backend), TranslationCache(cache_folder() / "translations.sqlite")
    views, translated = [], False
    for language, pivot in pivots.items():
        view = pool.select(rows[language])
        try:
            view, translated = back_translate(view, language, pivot, translator, cache), True
        except UnsupportedDirection as error:
            log.warning("%s trains without the back-translation view: %s", language, error)
        views.append(view)
    order = np.argsort(np.concatenate(list(rows.values())))
    return concatenate_datasets(views).select(order) if translated else None


def tokens_of(pairs: Dataset, model: Model) -> TokenizedPairs:
    tokens = model.tokenize(pairs["premise"], pairs["hypothesis"])
    if tokens.truncated:
        log.info("%d of %d pairs are longer than %d tokens and were cut", tokens.truncated, len(tokens), model.text.max_length)
    return tokens


def labels_of(pairs: Dataset) -> Tensor:
    return torch.tensor(pairs["label"], dtype=torch.int64)


def hashes_of(pairs: Dataset) -> Tensor:
    """First 8 bytes of each pair's text hash, ``[n]`` int64."""
    words = (bytes.fromhex(text_hash(p, h)[:16]) for p, h in zip(pairs["premise"], pairs["hypothesis"], strict=True))
    return torch.tensor([int.from_bytes(word, signed=True) for word in words], dtype=torch.int64)


def read_history(model: Path) -> dict[str, Any]:
    """What the stages of a model kept of their training; empty if none was trained here."""
    file = model / HISTORY
    return json.loads(file.read_text()) if file.is_file() else {}


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True))
