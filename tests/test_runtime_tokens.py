"""Our Unigram tokenizer against the library's, with the real vocabulary of the embedded model."""

import json
import random
import sys
import threading
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from conlst.contract.errors import ArtifactError
from conlst.model.embedded import load_embedded_e5
from conlst.runtime.tokens import LibraryTokenizer, PairTokenizer, UnigramTokenizer, _words, open_tokenizer
from conlst.runtime.unigram import Unigram
from tiny_onnx import tiny_tokenizer

SENTENCES = [
    "The cat is sleeping on the red sofa.",
    "Paka analala kwenye sofa nyekundu.",
    "بلی سرخ صوفے پر سو رہی ہے۔",
    "猫在红色的沙发上睡觉。",
    "แมวนอนบนโซฟาสีแดง",
    "बिल्ली लाल सोफे पर सो रही है।",
    "Кошка спит на красном диване.",
]
ODD = [
    ("", ""),
    (" ", "\t\n\u3000"),
    ("a</s>b", "<s><s> x <mask>y"),
    ("</s", "<unk><pad>é"),
    ("\u200b\ufeff\x00\x01", "ﬁ ａｂｃ ｛＜ｓ＞｝"),
    ("😀😀🏳️‍🌈 ok", "\U0010ffff\U0010ffffa\u0378"),
    ("x" * 300, "y z " * 90),
    ("▁ ▁a", "a▁b"),
]
SPECIAL = 4  # of a pair: <s> … </s></s> … </s>


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    load_embedded_e5().tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def ours(file) -> PairTokenizer:
    return open_tokenizer(file)


@pytest.fixture(scope="module")
def library(file) -> Tokenizer:
    return Tokenizer.from_file(str(file))


def test_the_real_tokenizer_is_opened_as_our_own(ours):
    assert isinstance(ours, UnigramTokenizer)
    assert ours._words is _words


@pytest.mark.parametrize("max_length", [512, 31, 30, 9, 8, SPECIAL])
def test_ids_lengths_and_cuts_are_the_librarys(ours, library, max_length):
    pairs = ODD + [(one, other) for one in SENTENCES for other in SENTENCES]
    library.no_truncation()
    whole = [len(encoding.ids) for encoding in library.encode_batch_fast(pairs)]
    library.enable_truncation(max_length, strategy="longest_first")
    cut = [encoding.ids for encoding in library.encode_batch_fast(pairs)]

    found = ours.encode(pairs, max_length)

    assert found.ids == cut
    assert found.lengths.tolist() == whole


def cut_first(library: Tokenizer, pair: tuple[str, str], max_length: int) -> list[int]:
    """As Hugging Face's zero-shot pipeline has it: what cannot be cut is left as it is."""
    library.enable_truncation(max_length, strategy="only_first")
    try:
        return library.encode(*pair).ids
    except Exception as error:
        if "too short" not in str(error):
            raise
    library.no_truncation()
    return library.encode(*pair).ids


@pytest.mark.parametrize("max_length", [512, 31, 30, 9, 8, SPECIAL + 1])
def test_the_first_text_alone_is_cut_as_the_library_does(ours, library, max_length):
    pairs = ODD + [(one, other) for one in SENTENCES for other in SENTENCES]
    found = ours.encode(pairs, max_length, only_first=True)
    assert found.ids == [cut_first(library, pair, max_length) for pair in pairs]
    assert found.lengths.tolist() == ours.encode(pairs, max_length).lengths.tolist()


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.text("ab <>/s▁\u3000中กé😀\u0301ǅ1", max_size=40))
def test_any_text_has_the_librarys_ids(ours, library, one, other):
    library.no_truncation()
    assert ours.encode([(one, other)], 512).ids == [library.encode(one, other).ids]


_BETWEEN = [char for char in map(chr, range(sys.maxunicode + 1)) if char.isspace() or unicodedata.category(char) in ("Cc", "Cf")]


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from([*_BETWEEN, *"aé中▁▁▁   "]), max_size=12))
def test_words_of_any_text_are_the_librarys(library, text):
    # not normalised, which would take most of the characters out that could be white space or not
    assert _words(text) == [word for word, _ in library.pre_tokenizer.pre_tokenize_str(text)]


def test_words_are_divided_where_the_library_divides_them(library):
    assert len(_BETWEEN) > 200
    for char in _BETWEEN:
        text = f"a{char}b"
        assert _words(text) == [word for word, _ in library.pre_tokenizer.pre_tokenize_str(text)], hex(ord(char))


def test_threads_do_not_disturb_one_another(ours):
    pairs = [(one, other) for one in SENTENCES for other in SENTENCES]
    expected = ours.encode(pairs, 20).ids
    found: list[list[list[int]]] = []
    threads = [threading.Thread(target=lambda: found.append(ours.encode(pairs, 20).ids)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 8


@pytest.mark.parametrize("max_length", [30, 11, 10, 7, SPECIAL])
def test_another_tokenizer_is_the_librarys_and_cuts_as_it_does(tmp_path, max_length):
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    tokenizer = open_tokenizer(tmp_path / "tokenizer.json")
    assert isinstance(tokenizer, LibraryTokenizer)
    pairs = [("watu " * first, "leo " * second) for first in range(9) for second in range(9)]
    reference = tiny_tokenizer()
    whole = [len(encoding.ids) for encoding in reference.encode_batch(pairs)]
    reference.enable_truncation(max_length, strategy="longest_first")

    found = tokenizer.encode(pairs, max_length)

    assert found.ids == [encoding.ids for encoding in reference.encode_batch(pairs)]
    assert found.lengths.tolist() == whole


@pytest.mark.parametrize("max_length", [30, 11, 10, 7, SPECIAL + 1])
def test_another_tokenizer_cuts_the_first_text_alone_as_the_library_does(tmp_path, max_length):
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    pairs = [("watu " * first, "leo " * second) for first in range(9) for second in range(9)]
    found = open_tokenizer(tmp_path / "tokenizer.json").encode(pairs, max_length, only_first=True)
    reference = tiny_tokenizer()
    assert found.ids == [cut_first(reference, pair, max_length) for pair in pairs]


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"type": "Unigram", "unk_id": 0, "byte_fallback": True, "vocab": [["<unk>", 0.0], ["▁", -1.0], ["a", -2.0]]}},
        {"pre_tokenizer": None},
        {"normalizer": None},
        {"post_processor": None},
        {"added_tokens": []},
        {"lstrip": True},
    ],
)
def test_what_our_own_leaves_out_is_left_to_the_library(tmp_path, change):
    described = _small_unigram()
    flags = {name: change.pop(name) for name in tuple(change) if name == "lstrip"}
    described.update(change)
    for token in described["added_tokens"]:
        token.update(flags)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(described))
    reference = Tokenizer.from_file(str(path))

    tokenizer = open_tokenizer(path)

    assert isinstance(tokenizer, LibraryTokenizer)
    assert tokenizer.encode([("a b", "ab")], 9).ids == [reference.encode("a b", "ab").ids]


def test_the_small_form_itself_is_our_own(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(_small_unigram()))
    assert isinstance(open_tokenizer(tmp_path / "tokenizer.json"), UnigramTokenizer)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": 1}'])
def test_what_is_no_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ArtifactError, match="does not describe a tokenizer"):
        open_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("seed", range(5))
def test_segmentation_is_the_best_of_all_that_there_are(seed):
    rng = random.Random(seed)
    words = {"".join(rng.choices("abc", k=rng.randrange(1, 5))) for _ in range(12)}
    pieces = [("<unk>", 0.0), *((word, -10 * rng.random()) for word in sorted(words))]
    unigram = Unigram(pieces, 0)
    for _ in range(50):
        word = "".join(rng.choices("abcd", k=rng.randrange(1, 8)))
        best = max(_every_way(word, dict(pieces)), key=lambda way: way[0])
        fused = [identity for index, identity in enumerate(best[1]) if identity or not index or best[1][index - 1]]
        assert list(unigram.ids(word)) == fused, word


def test_a_piece_may_hold_any_character() -> None:
    unigram = Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -1.0), ("a\0b", -1.0), ("\0", -3.0)], 0)
    assert [unigram.ids(word) for word in ("a", "a\0b", "\0a", "ba")] == [(1,), (3,), (4, 1), (2, 1)]


def test_only_words_are_kept_and_not_what_stands_between_the_blanks_of_other_scripts():
    unigram = Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0), ("ab", -2.5)], 0)
    line = "ab" * 2000
    assert unigram.ids(line) == (3,) * 2000
    assert unigram._kept.cache_info().currsize == 0
    assert unigram.ids("abb") == unigram.ids("abb") == (3, 2)
    assert unigram._kept.cache_info()[:2] == (1, 1)


def _every_way(word: str, scores: dict[str, float]) -> list[tuple[float, list[int]]]:
    """Score and ids of every segmentation; a lone character that is no piece is unknown."""
    if not word:
        return [(0.0, [])]
    names, ways = list(scores), []
    for end in range(1, len(word) + 1):
        piece = word[:end]
        if piece in scores:
            head = (scores[piece], names.index(piece))
        elif end == 1:
            head = (min(scores.values()) - 10, 0)
        else:
            continue
        ways += [(head[0] + score, [head[1], *ids]) for score, ids in _every_way(word[end:], scores)]
    return ways


def _small_unigram() -> dict:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 0, "content": "<unk>", **flags}],
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {},
        },
        "decoder": None,
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": False, "vocab": [["<unk>", 0.0], ["a", -1.0], ["b", -2.0]]},
    }
