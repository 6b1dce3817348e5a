"""Copies of labelled pairs whose words are replaced: by synonyms, or by words of other languages."""

import logging
import random
import re
import unicodedata
from collections.abc import Callable, Mapping
from itertools import accumulate

import pyarrow as pa
from datasets import Dataset, concatenate_datasets

from conlst.contract.errors import ConfigError, DataError

# lower-case word, in NFC, to what may stand in its place
Lexicon = Mapping[str, tuple[str, ...]]

# vowel signs of Indic and Arabic script are no letters for `re`, nor are the joiners between them
_MARKS = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c) in ("Mn", "Mc")) + "\u200c\u200d"
_LETTERS = rf"[^\W\d_]+(?:[{_MARKS}]+[^\W\d_]*)*"
# a run of letters, with apostrophes and hyphens between letters
WORD = re.compile(rf"{_LETTERS}(?:['’‐-]{_LETTERS})*")

_log = logging.getLogger(__name__)


def substitute(text: str, lexicon: Lexicon, rate: float, generator: random.Random) -> str:
    """Replace each word that the lexicon has with probability ``rate``, by a uniform draw from its candidates.

    All else stays as it is. A candidate gets the word's capitals: of all letters, or of the first. Text without spaces between
    its words is one long word here and hardly ever in a lexicon.
    """

    def draw(word: str) -> str | None:
        candidates = lexicon.get(word)
        if candidates is None or generator.random() >= rate:
            return None
        return _one_of(candidates, generator)

    return _replace(text, draw)


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
        _copy(pairs, f"~synonyms{number}", lambda text: substitute(text, with_itself, 1.0, generator))
        for number in range(1, copies + 1)
    ]
    return concatenate_datasets(made)


def code_switched(pairs: Dataset, lexicons: Mapping[str, Lexicon], rates: Mapping[str, float], seed: int) -> Dataset:
    """A copy of each pair with some words in other languages, as in CoSDA-ML (Qin et al., 2020).

    Each word is sent to language ``l`` with probability ``rates[l]``, and stays if that language's lexicon lacks it or it is sent
    to none. With one language this is :func:`substitute`; with several, a sentence mixes them.

    Args:
        lexicons: from the pairs' language, by language.
        rates: by the same languages; at most 1 in sum.

    Returns:
        The copies in the pairs' order, with their labels and language; ids end in ``~switched``.

    Raises:
        ConfigError: if the languages of the two differ, or the rates are no probabilities.
        DataError: if no word of the pairs was replaced.
    """
    if lexicons.keys() != rates.keys():
        raise ConfigError(f"code-switching has lexicons for {sorted(lexicons)} and rates for {sorted(rates)}; give both for each")
    if not lexicons or min(rates.values()) < 0 or not 0 < sum(rates.values()) <= 1 + 1e-9:
        raise ConfigError(f"the rates of code-switching {dict(rates)} must be from 0 to 1, and more than 0 and at most 1 in sum")
    generator = random.Random(seed)
    languages = sorted(lexicons)
    bars = list(accumulate(rates[language] for language in languages))

    def draw(word: str) -> str | None:
        sent = generator.random()
        for language, bar in zip(languages, bars, strict=True):
            if sent < bar:
                candidates = lexicons[language].get(word)
                return None if candidates is None else _one_of(candidates, generator)
        return None

    return _copy(pairs, "~switched", lambda text: _replace(text, draw))


def _replace(text: str, draw: Callable[[str], str | None]) -> str:
    """The text with every word for which ``draw``, asked in lower case, gives another one."""

    def replacement(match: re.Match[str]) -> str:
        word = match[0]
        lower = word.lower()
        drawn = draw(lower)
        # the very word drawn again keeps even capitals within it
        return word if drawn is None or drawn == lower else _in_capitals_of(word, drawn)

    return WORD.sub(replacement, text)


def _in_capitals_of(word: str, candidate: str) -> str:
    if len(word) > 1 and word.isupper():
        return candidate.upper()
    return candidate[0].upper() + candidate[1:] if word[0].isupper() else candidate


def _one_of(candidates: tuple[str, ...], generator: random.Random) -> str:
    # three times as fast as choice()
    return candidates[int(generator.random() * len(candidates))]


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
