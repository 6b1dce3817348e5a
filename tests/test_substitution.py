import random
import time
from collections import Counter

import pytest
from datasets import Dataset

from conlst.contract.errors import DataError
from conlst.data.pairs import FEATURES, ingest
from conlst.data.substitution import WORD, Lexicon, substitute, synonym_copies

LEXICON: Lexicon = {"cat": ("feline",), "don't": ("never",), "well-known": ("famous",), "été": ("hiver",), "i": ("ego",)}


@pytest.fixture
def pairs() -> Dataset:
    rows = [
        {"premise": "A cat sleeps.", "hypothesis": "The CAT is big", "label": "entailment", "genre": "g", "pair_id": "1"},
        {"premise": "A big dog", "hypothesis": "no cat", "label": "contradiction", "genre": "g", "pair_id": "2"},
    ]
    return ingest(rows, language="en", max_bad_share=0.0).pairs


def always(text: str, lexicon: Lexicon = LEXICON) -> str:
    return substitute(text, lexicon, random.Random(0))


@pytest.mark.parametrize(
    ("text", "replaced"),
    [
        ("a cat, the 'cat'  (cat)!\n", "a feline, the 'feline'  (feline)!\n"),
        ("Cat CAT cAt", "Feline FELINE feline"),
        ("I i", "Ego ego"),
        ("cats concat cat2 cat_", "cats concat feline2 feline_"),
        ("don't Don't don", "never Never don"),
        ("Well-known well-knowns -cat-", "Famous well-knowns -feline-"),
        ("l’été, Été", "l’été, Hiver"),
        ("", ""),
        ("123 ... 🙂", "123 ... 🙂"),
    ],
)
def test_whole_words_are_replaced_and_nothing_else(text: str, replaced: str) -> None:
    assert always(text) == replaced


@pytest.mark.parametrize("word", ["हिन्दी", "کتاب", "مُحَمَّد", "می‌خواهم", "κόσμος", "дом", "don’t", "rock-n-roll"])
def test_a_word_is_one_match_in_every_script(word: str) -> None:
    assert WORD.findall(f"({word}, {word}) 3") == [word, word]
    assert always(f"{word}.", {word: ("cat",)}) == "cat."


def test_the_word_drawn_for_itself_keeps_its_capitals() -> None:
    assert always("McCat mccat", {"mccat": ("mccat",)}) == "McCat mccat"


def test_candidates_are_drawn_alike() -> None:
    counts = Counter(always("cat " * 9_000, {"cat": ("x", "y", "z")}).split())
    assert counts.keys() == {"x", "y", "z"}
    assert all(count == pytest.approx(3_000, abs=200) for count in counts.values())


def test_synonym_copies_draw_a_word_as_often_as_each_neighbour(pairs: Dataset) -> None:
    row = pairs[0] | {"premise": "Cat " * 9_000}
    many = Dataset.from_list([row], features=FEATURES)
    (copy,) = synonym_copies(many, {"cat": ("feline", "puss")}, copies=1, seed=3)
    counts = Counter(copy["premise"].split())
    assert counts.keys() == {"Cat", "Feline", "Puss"}
    assert all(count == pytest.approx(3_000, abs=200) for count in counts.values())


def test_synonym_copies_stand_copy_after_copy_with_ids_of_their_own(pairs: Dataset) -> None:
    copies = synonym_copies(pairs, {"cat": ("puss",), "big": ("large",)}, copies=3, seed=3)
    assert copies.features == FEATURES
    assert copies["pair_id"] == ["1~synonyms1", "2~synonyms1", "1~synonyms2", "2~synonyms2", "1~synonyms3", "2~synonyms3"]
    for name in ("label", "language", "genre"):
        assert list(copies[name]) == list(pairs[name]) * 3
    assert set(copies["premise"][::2]) <= {"A cat sleeps.", "A puss sleeps."}
    assert set(copies["hypothesis"][::2]) <= {f"The {cat} is {big}" for cat in ("CAT", "PUSS") for big in ("big", "large")}
    assert len({(row["premise"], row["hypothesis"]) for row in copies}) > 2


def test_synonym_copies_follow_the_rows_order_and_the_seed(pairs: Dataset) -> None:
    lexicon = {word: tuple("abcdefgh") for word in ("a", "cat", "sleeps", "the", "is", "big", "dog", "no")}
    first, again, other = (synonym_copies(pairs, lexicon, 2, seed).to_list() for seed in (1, 1, 2))
    assert first == again != other
    assert [row["label"] for row in synonym_copies(pairs.select([1, 0]), lexicon, 1, 1)] == [2, 0]


def test_a_lexicon_without_any_word_of_the_pairs_is_refused(pairs: Dataset) -> None:
    with pytest.raises(DataError, match="no word of the 2 pairs was replaced"):
        synonym_copies(pairs, {"maison": ("demeure",)}, 1, 0)


def test_a_long_text_without_spaces_takes_linear_time() -> None:
    started = time.process_time()
    for text in ("น้ำ" * 20_000, "a-" * 30_000, "a'" * 30_000 + "!", "-" * 60_000):
        always(text)
    # a minute and more if the expression tried every way to split a word
    assert time.process_time() - started < 10
