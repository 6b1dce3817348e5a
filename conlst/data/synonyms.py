"""Tables of synonyms: a word and what may stand in its place, out of WordNet's database or a TSV."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from conlst.contract.errors import DataError
from conlst.data.substitution import WORD, Lexicon

_PARTS = ("noun", "verb", "adj", "adv")
# the most that any word has in the table of counter-fitted neighbours which RS-DA was published with
_MOST = 8
# WordNet has nouns, verbs, adjectives and adverbs. What it says of these words is mostly about another word in the same letters
# ("can": tin; "will": volition; "in": inch), and a label hangs on them
_CLOSED_CLASS_WORDS = """
a an the this that these those some any all each every either neither both no none one another other such own same
i me my mine you your yours he him his she her hers it its we us our ours they them their theirs who whom whose which what
am is are was were be been being have has had having do does did doing done will would shall should can could may might must
about above across after against along among around as at before behind below beneath beside between beyond by down during
for from in inside into like near of off on onto out outside over past since through throughout till to toward towards under
until up upon with within without and or nor but if unless while whereas because though although than whether so yet
not never only just even very too also then there here where when why how
"""
_CLOSED_CLASS = frozenset(_CLOSED_CLASS_WORDS.split())
# where an adjective may stand: ill(p) only after the verb
_MARKER = re.compile(r"\((?:a|p|ip)\)$")


def read_synonyms(spec: str) -> Lexicon:
    """Read ``wordnet:<folder>`` or a TSV of a word and its neighbours, separated by spaces.

    A TSV has no header. The folder is WordNet 3's database: ``index.noun``, ``data.noun`` and so on, as Debian's package
    wordnet-base installs it in ``/usr/share/wordnet``. Of each part of speech the first sense of a word counts, the most
    frequent one, and in it the single words; eight at most in all. Left out are, because they are mostly another word in the
    same letters: pronouns, auxiliaries and the like; single letters; a first sense whose word has capitals (``China`` for
    "china"); and a part of speech that WordNet's counts never met while they met another (the noun "company" is counted, the
    verb is not).

    Raises:
        DataError: if a file is missing or malformed, with its line; or if there is no synonym in it.
    """
    scheme, colon, where = spec.partition(":")
    lexicon = _wordnet(Path(where)) if colon and scheme == "wordnet" else _table(Path(spec))
    if not lexicon:
        raise DataError(f"{spec} holds no synonyms; give wordnet:<folder of WordNet's database> or a TSV of words and neighbours")
    return lexicon


@dataclass(frozen=True)
class _Sense:
    """The first sense of a word in one part of speech; ``counted`` tells that WordNet's tagged texts have the word in it."""

    counted: bool
    synonyms: list[str]


def _table(path: Path) -> Lexicon:
    lexicon: dict[str, tuple[str, ...]] = {}
    for number, line in _lines(path):
        fields = unicodedata.normalize("NFC", line).split("\t")
        if len(fields) != 2:
            raise DataError(f"{path}, line {number}: {len(fields)} fields; write a word, one tab, and its neighbours")
        word = fields[0].lower()
        if not WORD.fullmatch(word):
            raise DataError(f"{path}, line {number}: {fields[0]!r} is not one word; a table replaces single words")
        if word in lexicon:
            raise DataError(f"{path}, line {number}: {word!r} stands in an earlier line; put its neighbours into one")
        neighbours = tuple(neighbour for neighbour in dict.fromkeys(fields[1].split()) if neighbour != word)
        if not neighbours:
            raise DataError(f"{path}, line {number}: {word!r} has no neighbours; take the line out")
        lexicon[word] = neighbours
    return lexicon


def _wordnet(folder: Path) -> Lexicon:
    senses: dict[str, list[_Sense]] = {}
    for part in _PARTS:
        for word, sense in _first_senses(folder / f"index.{part}", folder / f"data.{part}"):
            senses.setdefault(word, []).append(sense)
    lexicon: dict[str, tuple[str, ...]] = {}
    for word, found in senses.items():
        counted = [sense for sense in found if sense.counted] or found
        if synonyms := list(dict.fromkeys(synonym for sense in counted for synonym in sense.synonyms)):
            lexicon[word] = tuple(synonyms[:_MOST])
    return lexicon


def _first_senses(index: Path, data: Path) -> Iterator[tuple[str, _Sense]]:
    """Every single word of an index: ``lemma pos senses pointers [pointer…] senses counted offset [offset…]``."""
    synsets = _read(data)
    for number, line in _lines(index):
        # the licence
        if line.startswith("  "):
            continue
        fields = line.split()
        try:
            pointers = int(fields[3])
            counted, offset = int(fields[5 + pointers]) > 0, int(fields[6 + pointers])
        except (ValueError, IndexError):
            raise DataError(f"{index}, line {number}: not an entry of WordNet 3's index; install the database anew") from None
        word = fields[0]
        if _is_open_class(word):
            words = _synset(synsets, offset, data)
            synonyms = [other for other in words if other != word and other.islower() and _is_open_class(other)]
            yield word, _Sense(counted, synonyms if word in words else [])


def _is_open_class(word: str) -> bool:
    return len(word) > 1 and word not in _CLOSED_CLASS and WORD.fullmatch(word) is not None


def _synset(synsets: bytes, offset: int, data: Path) -> list[str]:
    """The words of the line at an offset: ``offset file type words(hexadecimal) word id [word id…] …``."""
    end = synsets.find(b"\n", offset)
    fields = synsets[offset : end if end >= 0 else len(synsets)].decode("utf-8", "replace").split()
    try:
        count = int(fields[3], 16)
        words = fields[4 : 4 + 2 * count : 2]
        whole = int(fields[0]) == offset and len(words) == count > 0
    except (ValueError, IndexError):
        whole = False
    if not whole:
        number = synsets.count(b"\n", 0, offset) + 1
        raise DataError(f"{data}, line {number}: no synset at byte {offset}, where the index sees one; install the database anew")
    return [_MARKER.sub("", word) for word in words]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their numbers."""
    for number, line in enumerate(_read(path).split(b"\n"), start=1):
        try:
            text = line.decode().removesuffix("\r")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, line {number}: not UTF-8 ({error}); convert the file to UTF-8") from error
        if text.strip():
            yield number, text


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"synonyms cannot be read: {error}; Debian's wordnet-base has WordNet in /usr/share/wordnet") from error
