import time

import pytest
import torch
from torch import Tensor

from conlst.contract.config import Backbone
from conlst.contract.errors import DataError
from conlst.model.backbones import load_backbone
from conlst.model.folder import Model
from conlst.model.lexicon import count_words, induce_lexicon, mutual_neighbours
from tiny import WORDS, tiny_backbone


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tiny_backbone(tmp_path_factory.mktemp("tiny"))
    return load_backbone(Backbone(name=str(folder), max_length=8, projection=4, dropout=0.5), seed=0)


def unit(rows: int, width: int, seed: int) -> Tensor:
    vectors = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1)


def slow_mutual_neighbours(source: Tensor, target: Tensor, candidates: int, margin: float) -> list[list[int]]:
    """Conneau et al. (2018), eq. 2, a pair at a time in float64."""
    s, t = source.double(), target.double()
    cosine = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in t.tolist()] for x in s.tolist()]

    def mean_of_nearest(row: list[float]) -> float:
        nearest = sorted(row, reverse=True)[:10]
        return sum(nearest) / len(nearest)

    around_source = [mean_of_nearest(row) for row in cosine]
    around_target = [mean_of_nearest([row[j] for row in cosine]) for j in range(len(t))]
    csls = [[2 * cosine[i][j] - around_source[i] - around_target[j] for j in range(len(t))] for i in range(len(s))]
    by_source = [sorted(range(len(t)), key=lambda j: -csls[i][j])[:candidates] for i in range(len(s))]
    by_target = [sorted(range(len(s)), key=lambda i: -csls[i][j])[:candidates] for j in range(len(t))]
    return [[j for j in by_source[i] if i in by_target[j] and csls[i][j] >= margin] for i in range(len(s))]


@pytest.mark.parametrize("sizes", [(40, 30), (7, 25), (25, 7), (600, 15)])
@pytest.mark.parametrize(("candidates", "margin"), [(1, -9.0), (3, 0.0), (3, 0.3), (9, -0.1)])
def test_neighbours_are_those_of_the_formula(sizes: tuple[int, int], candidates: int, margin: float) -> None:
    source, target = unit(sizes[0], 6, 1), unit(sizes[1], 6, 2)
    found = mutual_neighbours(source, target, candidates=candidates, margin=margin)
    assert found == slow_mutual_neighbours(source, target, candidates, margin)
    assert any(found)


def test_blocks_end_where_they_should() -> None:
    source = unit(1100, 16, 1)
    order = torch.randperm(1100, generator=torch.Generator().manual_seed(0))
    found = mutual_neighbours(source, source[order], candidates=1, margin=0.0)
    assert found == [[place] for place in order.argsort().tolist()]


def test_a_hub_is_no_translation_of_everything() -> None:
    """The last target word is the nearest of every source word by cosine, but near to all of them, which CSLS takes off."""
    source = torch.nn.functional.normalize(torch.eye(12) + 0.5, dim=1)
    target = torch.cat([torch.eye(12), torch.full((1, 12), 12**-0.5)])
    assert (source @ target.T).argmax(1).tolist() == [12] * 12
    assert mutual_neighbours(source, target, candidates=1, margin=0.0) == [[i] for i in range(12)]


def test_scores_stay_in_float32_under_autocast() -> None:
    base = unit(1, 32, 0)
    source = torch.nn.functional.normalize(base + 0.02 * unit(60, 32, 1), dim=1)
    target = torch.nn.functional.normalize(source + 0.002 * unit(60, 32, 2), dim=1)
    plain = mutual_neighbours(source, target, candidates=1, margin=0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert mutual_neighbours(source, target, candidates=1, margin=0.0) == plain
    assert plain == [[i] for i in range(60)]


def test_thousands_of_words_take_seconds() -> None:
    source, target = unit(2_000, 64, 1), unit(20_000, 64, 2)
    started = time.process_time()
    mutual_neighbours(source, target, candidates=3, margin=0.0)
    assert time.process_time() - started < 30


def test_words_are_embedded_alone_and_pooled_with_dropout_off(model: Model) -> None:
    words = ["cat", "house", "red", "two", "river"]
    targets = ["city", "cat", "blue", "red", "three", "house"]
    model.classifier.train()
    lexicon = induce_lexicon(model, words, targets, candidates=1, margin=-9.0, prefix="")
    assert model.classifier.training
    model.classifier.eval()

    def embed(word: str) -> Tensor:
        ids = torch.tensor([model.tokenizer.encode(word).ids])
        with torch.no_grad():
            return torch.nn.functional.normalize(model.classifier.encode(ids, torch.ones_like(ids)), dim=1)[0]

    nearest = slow_mutual_neighbours(torch.stack([*map(embed, words)]), torch.stack([*map(embed, targets)]), 1, -9.0)
    assert lexicon == {word: (targets[near[0]],) for word, near in zip(words, nearest, strict=True) if near}
    assert {word: lexicon[word] for word in ("cat", "house", "red")} == {word: (word,) for word in ("cat", "house", "red")}


def test_candidates_margin_and_prefix_each_change_the_lexicon(model: Model) -> None:
    source, target = WORDS[:30], WORDS[15:]
    one = induce_lexicon(model, source, target, candidates=1, prefix="")
    three = induce_lexicon(model, source, target, candidates=3, prefix="")
    strict = induce_lexicon(model, source, target, candidates=3, margin=0.2, prefix="")
    prefixed = induce_lexicon(model, source, target, candidates=3, prefix="the dog ")
    assert max(map(len, one.values())) == 1 < max(map(len, three.values())) <= 3
    assert sum(map(len, strict.values())) < sum(map(len, three.values()))
    assert all(set(strict[word]) <= set(three[word]) for word in strict)
    assert prefixed != three
    assert induce_lexicon(model, source, target, candidates=3, prefix="") == three
    assert all(three.values())


def test_a_word_longer_than_the_model_reads_is_cut(model: Model) -> None:
    long = "-".join(["cat"] * 40)
    assert induce_lexicon(model, ["cat", long], ["cat", "dog"], candidates=1, margin=-9.0, prefix="")["cat"] == ("cat",)


def test_no_words_is_an_error(model: Model) -> None:
    with pytest.raises(DataError, match="both languages, not 0 and 1"):
        induce_lexicon(model, [], ["cat"], prefix="")
    with pytest.raises(DataError, match="both languages, not 1 and 0"):
        induce_lexicon(model, ["cat"], [], prefix="")


def test_words_are_counted_in_lower_case_the_commonest_first() -> None:
    texts = ["Der Hund, der HUND!", "Ein Hund-Haus 12, hund", "ein Haus und Aal", "Aal"]
    assert count_words(texts, 2) == ["hund", "aal", "der", "ein"] == count_words(texts[::-1], 2)
    assert count_words(texts, 1) == ["hund", "aal", "der", "ein", "haus", "hund-haus", "und"]
    assert count_words(texts, 4) == []


@pytest.mark.slow
def test_the_embedded_encoder_knows_common_words() -> None:
    model = load_backbone(Backbone(), seed=0)
    english = [
        "school",
        "money",
        "water",
        "island",
        "government",
        "death",
        "technology",
        "history",
        "hospital",
        "music",
        "winter",
    ]
    spanish = [
        "música",
        "escuela",
        "dinero",
        "agua",
        "isla",
        "gobierno",
        "muerte",
        "tecnología",
        "historia",
        "hospital",
        "invierno",
    ]
    lexicon = induce_lexicon(model, english, spanish, candidates=1, prefix="query: ")
    expected = dict(zip(english, [*spanish[1:10], spanish[0], spanish[10]], strict=True))
    assert sum(lexicon.get(word) == (expected[word],) for word in english) >= 9
