"""Copies of labelled pairs whose words are replaced by synonyms."""

import logging
import random
import re
import unicodedata
from collections.abc import Callable, Mapping

import pyarrow as pa
from datasets import Dataset, concatenate_datasets

from conlst.contract.errors import DataError

# lower-case word, in NFC, to what may stand in its place
Lexicon = Mapping[str, tuple[str, ...]]

# vowel signs of Indic and Arabic script are no letters for `re`, nor are the joiners between them
_MARKS = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c) in ("Mn", "Mc")) + "\u200c\u200d"
_LETTERS = rf"[^\W\d_]+(?:[{_MARKS}]+[^\W\d_]*)*"
# a run of letters, with apostrophes and hyphens between letters
WORD = re.compile(rf"{_LETTERS}(?:['’‐-]{_LETTERS})*")

_log = logging.getLogger(__name__)


def substitute(text: str, lexicon: Lexicon, generator: random.Random) -> str:
    """Replace each word that the lexicon has by a uniform draw from its candidates.

    All else stays as it is. A candidate gets the word's capitals: of all letters, or of the first. Text without spaces between
    its words is one long word here and hardly ever in a lexicon.
    """

    def replacement(match: re.Match[str]) -> str:
        word = match[0]
        lower = word.lower()
        candidates = lexicon.get(lower)
        if candidates is None:
            return word
        # three times as fast as choice()
        drawn = candidates[int(generator.random() * len(candidates))]
        # the very word drawn again keeps even capitals within it
        return word if drawn == lower else _in_capitals_of(word, drawn)

    return WORD.sub(replacement, text)


def synonym_copies(pairs: Dataset, lexicon: Lexicon, copies: int, seed: int) -> Dataset:
    """The copies of RS-DA, without the pairs themselves: each word a uniform draw from {itself} ∪ its neighbours.

    Huang et al. (2021), "Improving Zero-Shot Cross-Lingual Transfer Learning via Robust Training", data augmentation with
    counter-fitted neighbours; here words are found without their punctuation and whatever their capitals.

    Returns:
        ``copies`` times the pairs, one whole copy after the other, each in the order of ``pairs``. Labels are kept; the ids of
        the second copy end in ``~synonyms2``. A copy may equal its pair.

    Raises:
        DataError: if no word of the pairs was replaced, because the lexicon has none of them.
    """
    generator = random.Random(seed)
    with_itself = {word: (word, *neighbours) for word, neighbours in lexicon.items()}
    made = [
        _copy(pairs, f"~synonyms{number}", lambda text: substitute(text, with_itself, generator))
        for number in range(1, copies + 1)
    ]
    return concatenate_datasets(made)


def _in_capitals_of(word: str, candidate: str) -> str:
    if len(word) > 1 and word.isupper():
        return candidate.upper()
    return candidate[0].upper() + candidate[1:] if word[0].isupper() else candidate


def _copy(pairs: Dataset, suffix: str, change: Callable[[str], str]) -> Dataset:
    """The pairs with changed texts and ids that end in ``suffix``."""
    table: pa.Table = pairs.with_format("arrow")[:]
    old = {name: table[name].to_pylist() for name in ("premise", "hypothesis", "pair_id")}
    new = {name: [change(text) for text in old[name]] for name in ("premise", "hypothesis")}
    changed = sum(
        a != b or c != d for a, b, c, d in zip(old["premise"], new["premise"], old["hypothesis"], new["hypothesis"], strict=True)
    )
    if not changed:
        raise DataError(f"no word of the {len(table)} pairs was replaced; give a lexicon of their language")
    _log.info("copies %s: words were replaced in %d of %d pairs", suffix, changed, len(table))
    for name, values in (new | {"pair_id": [f"{pair_id}{suffix}" for pair_id in old["pair_id"]]}).items():
        column = table.schema.get_field_index(name)
        table = table.set_column(column, table.schema.field(name), [values])
    return Dataset(table)
