import random
import time
from collections import Counter
from typing import Any

import pytest
from datasets import Dataset

from conlst.contract.errors import ConfigError, DataError
from conlst.data.pairs import FEATURES, ingest
from conlst.data.substitution import WORD, Lexicon, code_switched, substitute, synonym_copies

LEXICON: Lexicon = {"cat": ("feline",), "don't": ("never",), "well-known": ("famous",), "été": ("hiver",), "i": ("ego",)}


@pytest.fixture
def pairs() -> Dataset:
    rows = [
        {"premise": "A cat sleeps.", "hypothesis": "The CAT is big", "label": "entailment", "genre": "g", "pair_id": "1"},
        {"premise": "A big dog", "hypothesis": "no cat", "label": "contradiction", "genre": "g", "pair_id": "2"},
    ]
    return ingest(rows, language="en", max_bad_share=0.0).pairs


def always(text: str, lexicon: Lexicon = LEXICON) -> str:
    return substitute(text, lexicon, 1.0, random.Random(0))


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


def test_rate_is_the_share_of_words_replaced_and_candidates_are_drawn_alike() -> None:
    lexicon = {"cat": ("x", "y", "z")}
    counts = Counter(substitute("cat " * 30_000, lexicon, 0.3, random.Random(5)).split())
    assert counts["cat"] == pytest.approx(21_000, abs=300)
    for drawn in "xyz":
        assert counts[drawn] == pytest.approx(3_000, abs=200)
    assert substitute("cat", lexicon, 0.0, random.Random(5)) == "cat"


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
    with pytest.raises(DataError, match="no word of the 2 pairs was replaced"):
        code_switched(pairs, {"fr": {"maison": ("house",)}}, {"fr": 1.0}, 0)


def test_code_switching_sends_words_to_languages_at_their_rates(pairs: Dataset) -> None:
    row = pairs[0] | {"premise": "Cat dog " * 10_000}
    many = Dataset.from_list([row], features=FEATURES)
    lexicons: dict[str, Lexicon] = {"sw": {"cat": ("paka",)}, "fr": {"cat": ("chat", "chatte"), "dog": ("chien",)}}
    (copy,) = code_switched(many, lexicons, {"fr": 0.4, "sw": 0.2}, seed=3)
    counts = Counter(copy["premise"].split())
    expected = {"Cat": 4_000, "Paka": 2_000, "Chat": 2_000, "Chatte": 2_000, "dog": 6_000, "chien": 4_000}
    assert counts.keys() == expected.keys()
    for word, count in expected.items():
        assert counts[word] == pytest.approx(count, abs=200), word


def test_code_switched_pairs_keep_order_label_and_language(pairs: Dataset) -> None:
    copy = code_switched(pairs, {"fr": {"cat": ("chat",)}}, {"fr": 1.0}, seed=3)
    assert copy.features == FEATURES
    assert list(copy["premise"]) == ["A chat sleeps.", "A big dog"]
    assert list(copy["hypothesis"]) == ["The CHAT is big", "no chat"]
    assert list(copy["pair_id"]) == ["1~switched", "2~switched"]
    for name in ("label", "language", "genre"):
        assert list(copy[name]) == list(pairs[name])


def test_code_switching_is_decided_by_the_seed_not_by_the_order_of_languages(pairs: Dataset) -> None:
    words = ("a", "cat", "sleeps", "the", "is", "big", "dog", "no")
    lexicons: dict[str, Lexicon] = {
        language: {word: tuple(f"{language}{n}" for n in "abcd") for word in words} for language in "xy"
    }
    rates = {"x": 0.5, "y": 0.5}
    first = code_switched(pairs, lexicons, rates, 1).to_list()
    turned = {"y": lexicons["y"], "x": lexicons["x"]}
    assert code_switched(pairs, turned, {"y": 0.5, "x": 0.5}, 1).to_list() == first
    assert code_switched(pairs, lexicons, rates, 2).to_list() != first


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"fr": 0.5}, r"lexicons for \['fr', 'sw'\] and rates for \['fr'\]"),
        ({"fr": 0.7, "sw": 0.4}, "at most 1 in sum"),
        ({"fr": -0.1, "sw": 0.4}, "from 0 to 1"),
        ({"fr": 0.0, "sw": 0.0}, "more than 0"),
    ],
)
def test_rates_that_are_no_probabilities_are_refused(pairs: Dataset, rates: dict[str, float], message: str) -> None:
    lexicons: dict[str, Any] = {"sw": {"cat": ("paka",)}, "fr": {"cat": ("chat",)}}
    with pytest.raises(ConfigError, match=message):
        code_switched(pairs, lexicons, rates, 0)


def test_a_long_text_without_spaces_takes_linear_time() -> None:
    started = time.process_time()
    for text in ("น้ำ" * 20_000, "a-" * 30_000, "a'" * 30_000 + "!", "-" * 60_000):
        substitute(text, LEXICON, 1.0, random.Random(0))
    # a minute and more if the expression tried every way to split a word
    assert time.process_time() - started < 10
