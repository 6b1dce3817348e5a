import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from conlst.contract.errors import BackendError, DataError
from conlst.data.backtranslation.cache import TranslationCache
from conlst.data.pairs import FEATURES, ingest
from conlst.data.translated import translate_pairs


class Fake:
    """Marks every text with the target language; keeps what it was asked."""

    name, version = "fake", "1"

    def __init__(self, empty: tuple[str, ...] = ()) -> None:
        self.asked: list[tuple[list[str], str, str]] = []
        self._empty = empty

    def translate(self, texts: list[str], source: str, target: str) -> list[str]:
        self.asked.append((texts, source, target))
        return ["" if text in self._empty else f"{text}>{target}" for text in texts]


@pytest.fixture
def cache(tmp_path: Path) -> TranslationCache:
    return TranslationCache(tmp_path / "translations.sqlite")


def pairs_of(*labels: str) -> Dataset:
    rows: list[dict[str, Any]] = [
        {"premise": premise, "hypothesis": hypothesis, "label": label, "genre": f"g{number}", "pair_id": str(number)}
        for number, (premise, hypothesis, label) in enumerate(zip("aac", "bca", labels, strict=True))
    ]
    return ingest(rows, language="en", max_bad_share=0.0).pairs


@pytest.fixture
def pairs() -> Dataset:
    return pairs_of("neutral", "entailment", "contradiction")


def test_both_texts_are_translated_one_way_and_once(pairs: Dataset, cache: TranslationCache) -> None:
    translator = Fake()
    translated = translate_pairs(pairs, "en", "sw", translator, cache)
    assert translator.asked == [(["a", "c", "b"], "en", "sw")]
    assert translated.features == FEATURES
    assert list(translated["premise"]) == ["a>sw", "a>sw", "c>sw"]
    assert list(translated["hypothesis"]) == ["b>sw", "c>sw", "a>sw"]
    assert list(translated["language"]) == ["sw"] * 3
    for name in ("label", "genre", "pair_id"):
        assert list(translated[name]) == list(pairs[name])


def test_a_second_run_comes_from_the_cache(pairs: Dataset, cache: TranslationCache) -> None:
    first, again = translate_pairs(pairs, "en", "sw", Fake(), cache), Fake()
    assert translate_pairs(pairs, "en", "sw", again, cache).to_list() == first.to_list()
    assert again.asked == []


@pytest.mark.parametrize(("empty", "kept"), [("b", ["1", "2"]), ("c", ["0"])])
def test_pairs_without_a_translation_are_left_out_and_counted(
    pairs: Dataset, cache: TranslationCache, caplog: pytest.LogCaptureFixture, empty: str, kept: list[str]
) -> None:
    translated = translate_pairs(pairs, "en", "sw", Fake((empty,)), cache)
    assert list(translated["pair_id"]) == kept
    assert [row["label"] for row in translated] == [pairs["label"][int(pair_id)] for pair_id in kept]
    assert [row["premise"] for row in translated] == [f"{pairs['premise'][int(pair_id)]}>sw" for pair_id in kept]
    assert f"translated {len(kept)} pairs en-sw by fake; {3 - len(kept)} were left out" in caplog.text


def test_nothing_left_out_is_no_warning(pairs: Dataset, cache: TranslationCache, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        translate_pairs(pairs, "en", "sw", Fake(), cache)
    assert [record.levelno for record in caplog.records if "0 were left out" in record.getMessage()] == [logging.INFO]


def test_a_selection_keeps_its_order(pairs: Dataset, cache: TranslationCache) -> None:
    turned = translate_pairs(pairs.select([2, 0]), "en", "sw", Fake(), cache)
    assert list(turned["pair_id"]) == ["2", "0"]
    assert list(turned["premise"]) == ["c>sw", "a>sw"]


def test_what_cannot_be_translated_is_refused(pairs: Dataset, cache: TranslationCache) -> None:
    with pytest.raises(BackendError, match="en cannot be translated into itself"):
        translate_pairs(pairs, "en", "en", Fake(), cache)
    with pytest.raises(DataError, match="pairs to translate into sw: 1 of 3 pairs have no label"):
        translate_pairs(pairs_of("neutral", "", "neutral"), "en", "sw", Fake(), cache)
    with pytest.raises(DataError, match="fake translated no pair from en to sw"):
        translate_pairs(pairs, "en", "sw", Fake(("a",)), cache)
