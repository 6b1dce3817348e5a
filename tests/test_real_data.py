"""Real XNLI and English NLI through the ingest, and the starter on real English development pairs."""

import pytest

from conlst.contract.config import Compute
from conlst.data.pairs import check_no_leak
from conlst.data.sources import load_source
from conlst.data.tokens import tokenize
from conlst.model.starter import load_starter
from conlst.stages.predict import predict_logits
from machine import SHARED, needs_shared_data

LANGUAGES = ["ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh"]


@needs_shared_data
@pytest.mark.parametrize("language", LANGUAGES)
def test_xnli_development_set_is_read_whole(language: str) -> None:
    ingested = load_source([str(SHARED / "xnli" / f"dev.{language}.tsv.gz")], language=language, max_bad_share=0.0)

    assert ingested.report["pairs"] == 2490
    assert ingested.report["labels"] == {"entailment": 830, "neutral": 830, "contradiction": 830, "unlabelled": 0}


@needs_shared_data
def test_source_data_does_not_hold_the_evaluation_data() -> None:
    files = sorted(str(file) for file in (SHARED / "source").glob("*train*.gz"))
    source = load_source(files, language="en")
    assert source.report["pairs"] > 65_000

    for evaluation in (SHARED / "source" / "dev_matched.en.tsv.gz", SHARED / "xnli" / "test.en.tsv.gz"):
        held_out = load_source([str(evaluation)], language="en")
        check_no_leak(source.pairs, held_out.pairs, ("source", evaluation.name))


@needs_shared_data
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_starter_knows_english_nli() -> None:
    model = load_starter()
    dev = load_source([str(SHARED / "source" / "dev_matched.en.tsv.gz")], language="en").pairs
    settings = {"max_length": model.text.max_length, "pad_id": model.text.pad_id}
    pairs = tokenize(dev["premise"], dev["hypothesis"], model.tokenizer, **settings)

    predicted = predict_logits(model.classifier, pairs, Compute(precision="fp32"), 8192).argmax(1).tolist()

    accuracy = sum(p == t for p, t in zip(predicted, dev["label"], strict=True)) / len(dev)
    assert accuracy >= 0.72
