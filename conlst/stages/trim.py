"""A vocabulary cut to the served languages: the pieces that their text can use, and no others.

A Unigram segmentation of a word only ever uses pieces that are substrings of it. So with every piece kept that is made of the
characters of an alphabet alone, all text of that alphabet is segmented as before, has the same rows of the table, and gets the
same answers. A character outside the alphabet becomes ``<unk>``, even where the whole vocabulary had a piece for it: choose texts
that show every character which the service should know.
"""

import json
import logging
import string
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from tokenizers import Tokenizer

from conlst.contract.artifacts import link_or_copy, publish, read_manifest
from conlst.contract.errors import ArtifactError
from conlst.runtime.graph import ExternalTensor, external_tensors
from conlst.runtime.onnx import GRAPHS, KIND, Predictor, open_session, padded
from conlst.runtime.tokens import open_tokenizer

log = logging.getLogger(__name__)

_TABLE, _TOKENIZER, _GOLDEN = "embeddings.bin", "tokenizer.json", "golden.json"


@dataclass(frozen=True)
class Trimmed:
    """How much is left: rows of the table, of how many, and characters of the alphabet."""

    rows: int
    of: int
    characters: int


def alphabet_of(folders: Sequence[Path], texts: Iterable[str]) -> frozenset[str]:
    """The characters of texts as the tokenizer sees them, in both cases, with ASCII's and those of the folders' golden pairs.

    Folders that are trimmed with one alphabet go on sharing one table.

    Args:
        folders: the published ``onnx`` folders that are to be trimmed.
        texts: of all languages that are to be served.

    Raises:
        ArtifactError: if there is no folder, or they have different tokenizers.
    """
    tokenizers = {read_manifest(folder, KIND).files[_TOKENIZER].sha256 for folder in folders}
    if len(tokenizers) != 1:
        raise ArtifactError(
            f"an alphabet is of one tokenizer, the {len(folders)} folders have {len(tokenizers)}; trim them apart"
        )
    tokenizer = Tokenizer.from_file(str(folders[0] / _TOKENIZER))
    alphabet: set[str] = set()
    golden = (text for folder in folders for pair in _golden(folder) for text in pair)
    for source in (texts, golden, [string.printable]):
        for text in source:
            normalized = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
            words = tokenizer.pre_tokenizer.pre_tokenize_str(normalized) if tokenizer.pre_tokenizer else [(normalized, None)]
            for word, _ in words:
                alphabet.update(word)
    for character in tuple(alphabet):
        alphabet.update(character.lower(), character.upper())
    return frozenset(alphabet)


def trim_vocabulary(folder: Path, alphabet: Collection[str], out: Path) -> Trimmed:
    """Publish a folder with the table's rows and the tokenizer's pieces of an alphabet, for every graph that the folder has.

    Args:
        folder: an artifact of kind ``onnx`` with a Unigram tokenizer.
        alphabet: from :func:`alphabet_of`.

    Raises:
        ArtifactError: if the folder is not of that kind, or its golden pairs are answered otherwise afterwards; nothing is
            published then.
    """
    folder, out = Path(folder), Path(out)
    whole = Predictor(folder, threads=1)
    manifest = read_manifest(folder, KIND)
    described = json.loads((folder / _TOKENIZER).read_text(encoding="utf-8"))
    kept = _kept(described, set(alphabet), folder)
    if kept[whole.pad_id] != whole.pad_id:
        # config.json has it, and a graph may compare ids with it
        raise ArtifactError(
            f"{folder / _TOKENIZER} has pieces before its padding that would go, which would renumber the padding"
        )
    graphs = [name for name in GRAPHS.values() if name in manifest.files]
    tables = [_table_of(folder / name, len(described["model"]["vocab"])) for name in graphs]
    trimmed = Trimmed(len(kept), tables[0].shape[0], len(alphabet))
    meta = {**manifest.meta, "trimmed": {"rows": trimmed.rows, "of": trimmed.of, "characters": trimmed.characters}}
    with publish(out, kind=KIND, config=manifest.config, parents={"onnx": manifest.digest}, meta=meta) as staging:
        rows = np.memmap(folder / _TABLE, mode="r").reshape(trimmed.of, -1)
        rows[kept].tofile(staging / _TABLE)
        for name in graphs:
            _write_graph(folder / name, staging / name, len(kept))
        (staging / _TOKENIZER).write_text(json.dumps(_renumbered(described, kept), ensure_ascii=False), encoding="utf-8")
        for name in sorted(manifest.files.keys() - {*graphs, _TABLE, _TOKENIZER}):
            link_or_copy(folder / name, staging / name)
        _check(whole, folder, staging, graphs, kept)
    log.info("trimmed %s to %d of %d rows for %d characters", folder, trimmed.rows, trimmed.of, trimmed.characters)
    return trimmed


def _golden(folder: Path) -> list[tuple[str, str]]:
    return [(pair["premise"], pair["hypothesis"]) for pair in json.loads((folder / _GOLDEN).read_text(encoding="utf-8"))]


def _kept(described: dict[str, Any], alphabet: set[str], folder: Path) -> NDArray[np.int64]:
    """Old ids of the rows that stay, rising; their places are the new ids."""
    model, processor = described["model"], described["post_processor"]
    if model.get("type") != "Unigram" or model.get("byte_fallback") or (processor or {}).get("type") != "TemplateProcessing":
        raise ArtifactError(f"{folder / _TOKENIZER} is no Unigram tokenizer with a template, and only such a one can be trimmed")
    pieces = model["vocab"]
    # the lowest score sets that of an unknown character, so it has to stay
    lowest = min(range(len(pieces)), key=lambda index: pieces[index][1])
    kept = {token["id"] for token in described["added_tokens"]} | {model["unk_id"], lowest}
    kept.update(index for index, (piece, _) in enumerate(pieces) if alphabet.issuperset(piece))
    return np.array(sorted(kept))


def _renumbered(described: dict[str, Any], kept: NDArray[np.int64]) -> dict[str, Any]:
    """The tokenizer with the kept pieces alone, every id in it the new one."""
    new = {old: index for index, old in enumerate(kept.tolist())}
    model, processor = described["model"], described["post_processor"]
    special = {name: {**token, "ids": [new[old] for old in token["ids"]]} for name, token in processor["special_tokens"].items()}
    pieces = [model["vocab"][old] for old in new if old < len(model["vocab"])]
    return {
        **described,
        "truncation": None,
        "padding": None,
        "added_tokens": [{**token, "id": new[token["id"]]} for token in described["added_tokens"]],
        "post_processor": {**processor, "special_tokens": special},
        "model": {**model, "unk_id": new[model["unk_id"]], "vocab": pieces},
    }


def _table_of(graph: Path, pieces: int) -> ExternalTensor:
    tensors = external_tensors(graph)
    if len(tensors) != 1 or tensors[0].location != _TABLE or tensors[0].offset or tensors[0].shape[0] < pieces:
        raise ArtifactError(f"{graph} does not keep one table of {pieces} rows or more in {_TABLE}; export again")
    return tensors[0]


def _write_graph(graph: Path, out: Path, rows: int) -> None:
    """The same graph over a table of another height."""
    # without its table: onnx refuses one that is a hard link
    model = onnx.load(graph, load_external_data=False)
    table = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    before = table.dims[0]
    table.dims[0] = rows
    place = {entry.key: entry for entry in table.external_data}
    if "length" in place:
        place["length"].value = str(int(place["length"].value) // before * rows)
    out.write_bytes(model.SerializeToString(deterministic=True))


def _check(whole: Predictor, folder: Path, trimmed: Path, graphs: Iterable[str], kept: NDArray[np.int64]) -> None:
    """Hold every trimmed graph against the whole one on the golden pairs: the same pieces, and the very same logits.

    Raises:
        ArtifactError: naming the first pair that is answered otherwise.
    """
    pairs = _golden(folder)
    before = whole.encode(pairs).ids
    after = open_tokenizer(trimmed / _TOKENIZER).encode(pairs, whole.max_length).ids
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        if old != kept[new].tolist():
            raise ArtifactError(f"golden pair {index} of {folder} has characters outside the alphabet; make it with alphabet_of")
    for name in graphs:
        answers = [
            open_session(place / name, 1).run(["logits"], padded(ids, whole.pad_id))[0]
            for place, ids in ((folder, before), (trimmed, after))
        ]
        if not np.array_equal(*answers):
            raise ArtifactError(f"{folder / name} answers golden pairs otherwise with the trimmed table; nothing was published")
