"""A vocabulary cut to an alphabet answers that alphabet's text as the whole one does."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from conlst.cli import main
from conlst.contract.artifacts import publish, read_manifest
from conlst.contract.errors import ArtifactError
from conlst.runtime.onnx import KIND, Predictor
from conlst.stages.trim import alphabet_of, trim_vocabulary
from tiny_onnx import embedding_graph, tiny_onnx_folder

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
LATIN = ["▁", "a", "b", "t", "w", "u", "▁wa", "tu", "▁watu", "ab"]
CYRILLIC = ["к", "о", "т", "▁кот", "ко", "▁к"]
PAIRS = [("watu wa tab", "ab"), ("tu", "watu watu"), ("but a tub", "")]


def unigram() -> Tokenizer:
    pieces = [(piece, 0.0) for piece in SPECIAL]
    # the pieces of the two alphabets take turns, so that ids change
    mixed = [piece for pair in zip(LATIN, [*CYRILLIC, "x", "q", "z", "▁x"], strict=True) for piece in pair]
    pieces += [(piece, -1.0 - 0.37 * index) for index, piece in enumerate(mixed)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def unigram_folder(out: Path) -> Path:
    """As the export stage publishes it, with a Unigram tokenizer."""
    tokenizer, rng = unigram(), np.random.default_rng(0)
    table = rng.normal(size=(tokenizer.get_vocab_size(), 4)).astype(np.float32)
    classifier = rng.normal(size=(4, 3)).astype(np.float32)
    ids = [tokenizer.encode(*pair).ids for pair in PAIRS]
    with publish(out, kind=KIND, meta={"language": "sw"}) as staging:
        (staging / "model.onnx").write_bytes(embedding_graph(table, classifier, "embeddings.bin").SerializeToString())
        (staging / "embeddings.bin").write_bytes(table.tobytes())
        tokenizer.save(str(staging / "tokenizer.json"))
        config = {"id2label": {"0": "entailment", "1": "neutral", "2": "contradiction"}, "max_length": 16, "pad_id": 1}
        (staging / "config.json").write_text(json.dumps(config | {"language": "sw", "temperature": 1.0}))
        golden = [
            {"premise": premise, "hypothesis": hypothesis, "logits": (table[row].mean(axis=0) @ classifier).tolist()}
            for (premise, hypothesis), row in zip(PAIRS, ids, strict=True)
        ]
        (staging / "golden.json").write_text(json.dumps(golden))
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unigram_folder(tmp_path_factory.mktemp("trim") / "whole")


@pytest.fixture(scope="module")
def both(folder: Path) -> tuple[Predictor, Predictor]:
    """The whole model, and what is left of it for lower-case Latin."""
    out = folder.parent / "latin"
    trim_vocabulary(folder, alphabet_of([folder], []) - set("xqz"), out)
    return Predictor(folder, threads=1), Predictor(out, threads=1)


def test_only_the_pieces_of_the_alphabet_stay(folder: Path, tmp_path: Path) -> None:
    trimmed = trim_vocabulary(folder, alphabet_of([folder], ["watu"]) - set("xqzXQZ"), tmp_path / "out")
    kept = json.loads((tmp_path / "out" / "tokenizer.json").read_text())["model"]["vocab"]
    # the last piece has the lowest score, which is that of an unknown character
    assert [piece for piece, _ in kept] == [*SPECIAL, *LATIN, "▁x"]
    assert (trimmed.rows, trimmed.of) == (len(kept), len(SPECIAL) + 2 * len(LATIN))
    assert (tmp_path / "out" / "embeddings.bin").stat().st_size == trimmed.rows * 4 * 4
    manifest = read_manifest(tmp_path / "out", KIND)
    assert manifest.meta["trimmed"]["rows"] == trimmed.rows
    assert manifest.parents == {"onnx": read_manifest(folder, KIND).digest}


@settings(max_examples=100, deadline=None)
@given(pairs=st.lists(st.tuples(st.text("abtwu ", max_size=20), st.text("abtwu ", max_size=20)), min_size=1, max_size=4))
def test_any_text_of_the_alphabet_has_identical_logits(both: tuple[Predictor, Predictor], pairs: list[tuple[str, str]]) -> None:
    whole, trimmed = both
    assert np.array_equal(whole.logits(pairs, truncate=True), trimmed.logits(pairs, truncate=True))


def test_both_cases_ascii_and_the_golden_pairs_belong_to_the_alphabet(folder: Path) -> None:
    alphabet = alphabet_of([folder], ["Ж"])
    assert {"ж", "Ж", "z", "Z", "7", "▁", "w"} <= alphabet
    assert "к" not in alphabet


def test_golden_pairs_outside_the_alphabet_leave_nothing_behind(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"golden pair 0 .* outside the alphabet"):
        trim_vocabulary(folder, set("▁tu"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_of_other_tokenizers_are_refused(folder: Path, tmp_path: Path) -> None:
    words = tiny_onnx_folder(tmp_path / "words")
    with pytest.raises(ArtifactError, match="2 folders have 2"):
        alphabet_of([folder, words], [])
    with pytest.raises(ArtifactError, match="no Unigram tokenizer"):
        trim_vocabulary(words, set("ab"), tmp_path / "out")


def test_the_command_keeps_the_characters_of_its_texts(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts.tsv").write_text("premise\thypothesis\nкот\tток\n", encoding="utf-8")
    out = tmp_path / "small"
    assert main(["trim", "--models", str(folder), "--texts", str(tmp_path / "texts.tsv"), "--out", str(out)]) == 0
    told = json.loads(capsys.readouterr().out)
    # nothing goes: ASCII belongs to every alphabet, and the texts have the rest
    assert told["trimmed"][folder.name]["rows"] == told["trimmed"][folder.name]["of"]
    assert Predictor(out / folder.name, threads=1).logits(PAIRS).shape == (3, 3)
