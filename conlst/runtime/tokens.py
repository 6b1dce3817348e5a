"""Pairs of texts as token ids, cut to a model's length."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from conlst.contract.errors import ArtifactError
from conlst.runtime.unigram import Unigram

Pair = tuple[str, str]

_BLANK = "▁"
_XLM_R_WORDS = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "WhitespaceSplit"},
        {"type": "Metaspace", "replacement": _BLANK, "prepend_scheme": "always", "split": True},
    ],
}
# between what Rust takes for white space; Python's \s is more than that
_UNBROKEN = re.compile("[^\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+").findall
_FROM_BLANK = re.compile(f"{_BLANK}[^{_BLANK}]*").findall


@dataclass(frozen=True)
class Encoded:
    """Pairs as tokens.

    Attributes:
        ids: token ids of each pair, cut to the model's longest where they could be.
        lengths: ``[n]`` tokens of each pair before it was cut.
    """

    ids: list[list[int]]
    lengths: NDArray[np.int64]


class PairTokenizer(Protocol):
    """Safe to use from several threads."""

    def encode(self, pairs: Sequence[Pair], max_length: int, only_first: bool = False) -> Encoded:
        """Tokenise pairs; one over ``max_length`` loses the last tokens of its longer text, which its ``lengths`` entry shows.

        Args:
            only_first: take from the first text alone. A pair whose second text leaves it not one token stays as long as it is.
        """


def open_tokenizer(file: Path) -> PairTokenizer:
    """The tokenizer of a ``tokenizer.json``: our own small one where it is of the form that XLM-R's has, else the library's.

    Raises:
        ArtifactError: if the file does not describe a tokenizer.
    """
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
        if _is_plain_unigram(described):
            return UnigramTokenizer(described)
        # not from what was parsed: written as JSON again, scores could differ in their last digit
        return LibraryTokenizer(Tokenizer.from_file(str(file)))
    except Exception as error:  # the library raises bare Exception
        raise ArtifactError(f"{file} does not describe a tokenizer ({error}); export again") from error


class LibraryTokenizer:
    """Any tokenizer that the ``tokenizers`` library opens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, pairs: Sequence[Pair], max_length: int, only_first: bool = False) -> Encoded:
        encodings = self._tokenizer.encode_batch_fast(list(pairs))
        ids = [encoding.ids for encoding in encodings]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        for index in np.flatnonzero(lengths > max_length):
            texts = encodings[index].sequence_ids
            ids[index] = _cut(ids[index], texts, max_length, only_first)
        return Encoded(ids, lengths)


class UnigramTokenizer:
    """Our own :class:`Unigram` with the library's normaliser, and its division into words unless that is XLM-R's: the same ids in
    a fraction of the memory.

    Args:
        described: a ``tokenizer.json`` that :func:`_is_plain_unigram` accepts.
    """

    def __init__(self, described: dict[str, Any]) -> None:
        model = described["model"]
        self._unigram = Unigram([(piece, score) for piece, score in model["vocab"]], model["unk_id"])
        self._added = {token["content"]: token["id"] for token in described["added_tokens"]}
        # the longer of two that begin at the same place, like the library
        longest_first = sorted(self._added, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")").split
        emptied = {"type": "WordLevel", "vocab": self._added, "unk_token": next(iter(self._added))}
        shell = Tokenizer.from_str(json.dumps({**described, "model": emptied, "post_processor": None}))
        self._normalize = shell.normalizer.normalize_str
        if described["pre_tokenizer"] == _XLM_R_WORDS:
            self._words = _words
        else:
            divide = shell.pre_tokenizer.pre_tokenize_str
            self._words = lambda text: [word for word, _ in divide(text)]
        template = described["post_processor"]
        special = {name: entry["ids"] for name, entry in template["special_tokens"].items()}
        # a text by its number, a special token by its ids
        self._template: list[int | list[int]] = [
            "AB".index(part["Sequence"]["id"]) if "Sequence" in part else special[part["SpecialToken"]["id"]]
            for part in template["pair"]
        ]

    def encode(self, pairs: Sequence[Pair], max_length: int, only_first: bool = False) -> Encoded:
        ids, lengths = [], np.empty(len(pairs), np.int64)
        for index, pair in enumerate(pairs):
            row, texts = self._filled([self._text(text) for text in pair])
            lengths[index] = len(row)
            ids.append(_cut(row, texts, max_length, only_first) if len(row) > max_length else row)
        return Encoded(ids, lengths)

    def _text(self, text: str) -> list[int]:
        ids: list[int] = []
        # the capturing group puts the added tokens at the odd places
        for place, part in enumerate(self._split(text)):
            if place % 2:
                ids.append(self._added[part])
            elif part:
                ids += chain.from_iterable(map(self._unigram.ids, self._words(self._normalize(part))))
        return ids

    def _filled(self, texts: list[list[int]]) -> tuple[list[int], list[int | None]]:
        """ids of a pair, and for each the text it comes from, None for a special token."""
        ids: list[int] = []
        whose: list[int | None] = []
        for part in self._template:
            number, added = (part, texts[part]) if isinstance(part, int) else (None, part)
            ids += added
            whose += [number] * len(added)
        return ids, whose


def _words(text: str) -> list[str]:
    """What ``_XLM_R_WORDS`` makes of a text, without each word's place, which costs the library more than the words."""
    words = [f"{_BLANK}{word}" for word in _UNBROKEN(text)]
    if _BLANK in text:
        return [part for word in words for part in _FROM_BLANK(word.removeprefix(_BLANK) if word[1] == _BLANK else word)]
    return words


def _is_plain_unigram(described: Any) -> bool:
    """Whether everything that :class:`UnigramTokenizer` leaves out is absent."""
    model, added, template = described["model"], described["added_tokens"], described["post_processor"]
    return (
        model.get("type") == "Unigram"
        and not model.get("byte_fallback")
        and model.get("unk_id") is not None
        and described["normalizer"] is not None
        and described["pre_tokenizer"] is not None
        and bool(added)
        and not any(token[flag] for token in added for flag in ("normalized", "lstrip", "rstrip", "single_word"))
        and template is not None
        and template["type"] == "TemplateProcessing"
    )


def _cut(ids: list[int], texts: Sequence[int | None], max_length: int, only_first: bool) -> list[int]:
    """Keep every special token and the beginning of both texts, taking from the longer one first or from the first one only, as
    the library does; where the first one is too short for that, nothing is cut, as Hugging Face's pipelines have it.

    Args:
        texts: 0 or 1 for a token of the first or second text, None for a special token.
    """
    first, second = texts.count(0), texts.count(1)
    room = max(0, max_length - (len(ids) - first - second))
    if only_first:
        if room <= second:
            return ids
        left = {0: room - second, 1: second}
    else:
        short = min(first, second)
        long = max(short, room - short)
        if short + long > room:
            short, long = room // 2, room - room // 2
        left = {0: short, 1: long} if first <= second else {0: long, 1: short}
    kept = []
    for token, text in zip(ids, texts, strict=True):
        if text is None:
            kept.append(token)
        elif left[text]:
            left[text] -= 1
            kept.append(token)
    return kept
