"""The same answers as Hugging Face's zero-shot pipeline, given the same model."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast, ZeroShotClassificationPipeline
from transformers.modeling_outputs import SequenceClassifierOutput

from conlst.contract.labels import ID2LABEL
from served import Server, serve
from serving.zero_shot import hypotheses, ranked
from tiny_onnx import WORDS, tiny_onnx_folder, tiny_tokenizer, tiny_weights

TEXTS = ["watu wawili wanacheza mpira uwanjani", "mvua inanyesha leo", "mtu"]
LABELS = ["mpira", "mvua", "watu"]
TEMPLATE = "leo {}"
MAX_LENGTH = 64
SPECIAL = 4  # of a pair: <s> … </s></s> … </s>


class MeanOfEmbeddings(PreTrainedModel):
    """What the tiny ONNX graph computes, as the library wants a model."""

    config_class = PretrainedConfig

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        table, classifier = (torch.tensor(weights) for weights in tiny_weights())
        self.table, self.head = torch.nn.Parameter(table), torch.nn.Parameter(classifier)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> SequenceClassifierOutput:
        mask = attention_mask[..., None].to(self.table.dtype)
        pooled = (self.table[input_ids] * mask).sum(1) / mask.sum(1)
        return SequenceClassifierOutput(logits=pooled @ self.head)


@pytest.fixture(scope="module")
def theirs() -> ZeroShotClassificationPipeline:
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer(), model_max_length=MAX_LENGTH, **names)
    config = PretrainedConfig(id2label=ID2LABEL, label2id={name: number for number, name in ID2LABEL.items()})
    return ZeroShotClassificationPipeline(model=MeanOfEmbeddings(config), tokenizer=tokenizer, device="cpu")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    # raw logits are asked for, so the temperature must not show
    return serve(f"sw={tiny_onnx_folder(tmp_path_factory.mktemp('zero') / 'sw', max_length=MAX_LENGTH, temperature=3.0)}")


def ask(server: Server, **question: Any) -> list[dict[str, Any]]:
    answer = server.ask("POST", "/zero-shot", json={"template": TEMPLATE, "language": "sw", **question})
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join), min_size=1, max_size=4),
    labels=st.lists(st.sampled_from(WORDS), min_size=1, max_size=6, unique=True),
    multi_label=st.booleans(),
)
def test_labels_and_scores_are_the_pipelines(
    theirs: ZeroShotClassificationPipeline, server: Server, texts: list[str], labels: list[str], multi_label: bool
) -> None:
    expected = theirs(texts, candidate_labels=labels, hypothesis_template=TEMPLATE, multi_label=multi_label)
    for ours, other in zip(ask(server, texts=texts, labels=labels, multi_label=multi_label), expected, strict=True):
        np.testing.assert_allclose(ours["scores"], other["scores"], atol=1e-5)
        by_label = dict(zip(other["labels"], other["scores"], strict=True))
        np.testing.assert_allclose([by_label[label] for label in ours["labels"]], ours["scores"], atol=1e-5)


@pytest.mark.parametrize("words", [90, 2])
@pytest.mark.parametrize("template", [TEMPLATE, "leo {}" + " mtu" * 20, "mtu " * 40 + "{}", "mtu " * 58 + "{}"])
def test_what_is_cut_is_cut_as_in_the_pipeline(
    theirs: ZeroShotClassificationPipeline, server: Server, template: str, words: int
) -> None:
    text = " ".join((WORDS * 10)[:words])
    # the tiny model is linear: of labels that compete, what is left of the text would not show
    expected = theirs(text, candidate_labels=LABELS, hypothesis_template=template, multi_label=True)
    (ours,) = ask(server, text=text, labels=LABELS, template=template, multi_label=True, truncate=True)
    assert ours["truncated"] is (words + len(template.split()) + SPECIAL > MAX_LENGTH)
    assert dict(zip(ours["labels"], ours["scores"], strict=True)) == pytest.approx(
        dict(zip(expected["labels"], expected["scores"], strict=True)), abs=1e-5
    )


@pytest.mark.parametrize("options", [{"truncate": True}, {"truncate": True, "partial": True}, {}])
@pytest.mark.parametrize("place", [0, 2])
def test_a_label_that_leaves_no_room_is_named(server: Server, options: dict[str, Any], place: int) -> None:
    labels = [*LABELS[:2]]
    labels.insert(place, "mtu " * (MAX_LENGTH - SPECIAL - 1) + "mtu")
    question = {"texts": TEXTS, "labels": labels, "template": "{}", "language": "sw", **options}
    error = server.refusal(422, "too_long", server.ask("POST", "/zero-shot", json=question))
    assert error["message"].startswith(f"label {place} leaves no room for a text among the {MAX_LENGTH} tokens")
    assert "index" not in error
    # with one token less there is
    labels[place] = labels[place].removesuffix(" mtu")
    answer = server.ask("POST", "/zero-shot", json={**question, "truncate": True})
    assert [result["truncated"] for result in answer.json()["results"]] == [True, True, False]


def test_one_text_is_answered_as_in_a_list(server: Server) -> None:
    (alone,) = ask(server, text=TEXTS[1], labels=LABELS)
    together = ask(server, texts=TEXTS, labels=LABELS)[1]
    assert alone["labels"] == together["labels"]
    assert alone["scores"] == pytest.approx(together["scores"], abs=1e-6)
    assert sum(alone["scores"]) == pytest.approx(1)


def test_the_template_is_english_unless_another_is_given(server: Server, theirs: ZeroShotClassificationPipeline) -> None:
    answer = server.ask("POST", "/zero-shot", json={"text": TEXTS[0], "labels": LABELS, "language": "sw"})
    expected = theirs(TEXTS[0], candidate_labels=LABELS)
    assert answer.json()["results"][0]["scores"] == pytest.approx(expected["scores"], abs=1e-5)


def test_the_language_is_told_and_a_long_text_is_cut_only_on_demand(server: Server) -> None:
    question = {"text": "mvua " * 80, "labels": LABELS, "language": "sw"}
    error = server.refusal(422, "too_long", server.ask("POST", "/zero-shot", json=question))
    assert error["index"] == 0
    body = server.ask("POST", "/zero-shot", json={**question, "truncate": True}).json()
    assert (body["language"], body["language_source"], body["results"][0]["truncated"]) == ("sw", "given", True)
    assert body["model"]["name"] == "nli-sw"


@pytest.mark.parametrize(
    ("question", "status", "kind", "named"),
    [
        ({"text": "leo", "labels": []}, 400, "invalid_request", "labels is empty"),
        ({"texts": [], "labels": ["mvua"]}, 400, "invalid_request", "texts is empty"),
        ({"text": "leo", "labels": ["mvua", "leo", "mvua"]}, 400, "invalid_request", "labels 0 and 2"),
        ({"text": "leo", "labels": ["mvua"], "template": "no place"}, 400, "invalid_request", "the template"),
        ({"text": "leo", "labels": ["mvua"], "template": "{} and {}"}, 400, "invalid_request", "the template"),
        ({"text": "leo", "labels": ["mvua"], "template": "{0.__class__}"}, 400, "invalid_request", "the template"),
        ({"text": "leo", "texts": ["leo"], "labels": ["mvua"]}, 400, "invalid_request", "text"),
        ({"texts": ["leo", " "], "labels": ["mvua"]}, 422, "empty_text", "text 1"),
        ({"text": "leo", "labels": ["mvua", ""]}, 422, "empty_text", "label 1"),
        ({"text": "leo" * 1400, "labels": ["mvua"]}, 422, "too_long", "text 0: it has 4200 characters, at most 4000"),
        ({"texts": ["leo"] * 9, "labels": [f"m{n}" for n in range(8)]}, 413, "too_many_pairs", "72 pairs"),
    ],
)
def test_what_cannot_be_asked_is_named(server: Server, question: dict[str, Any], status: int, kind: str, named: str) -> None:
    error = server.refusal(status, kind, server.ask("POST", "/zero-shot", json={"language": "sw", **question}))
    assert named in error["message"]


@pytest.mark.parametrize(
    ("question", "named"),
    [
        ({"labels": ["mvua", "mtu " * 1100]}, "label 1 has 4400 characters, at most 4000 are read: shorten it"),
        ({"labels": ["mvua"], "template": "mtu " * 1100 + "{}"}, "the template has 4402 characters"),
        ({"labels": ["mvua", ""]}, "label 1 is empty"),
    ],
)
def test_what_belongs_to_all_texts_is_neither_cut_nor_refused_alone(server: Server, question: dict[str, Any], named: str) -> None:
    answer = server.ask("POST", "/zero-shot", json={"text": "leo", "truncate": True, "partial": True, **question})
    error = answer.json()["error"]
    assert answer.status_code == 422
    assert named in error["message"]
    assert "truncate" not in error["message"]


def test_a_text_with_too_many_characters_is_cut_on_demand_and_told(server: Server) -> None:
    texts = ["mvua " * 900, "leo"]
    long, short = ask(server, texts=texts, labels=LABELS, truncate=True)
    assert (long["truncated"], short["truncated"]) == (True, False)
    assert [long, short] == ask(server, texts=[text[:4000] for text in texts], labels=LABELS, truncate=True)


def test_a_partial_answer_has_errors_in_their_places(server: Server) -> None:
    texts = [" ", TEXTS[0], "mvua " * 80, "mvua " * 900, TEXTS[1]]
    refused = server.refusal(
        422, "empty_text", server.ask("POST", "/zero-shot", json={"texts": texts, "labels": LABELS, "language": "sw"})
    )
    assert refused["index"] == 0
    told = ask(server, texts=texts, labels=LABELS, partial=True)
    assert [result.get("error", {}).get("type") for result in told] == ["empty_text", None, "too_long", "too_long", None]
    assert told[0] == {"error": {"type": "empty_text", "message": "text 0: it is empty"}}
    for result, alone in zip((told[1], told[4]), ask(server, texts=TEXTS[:2], labels=LABELS), strict=True):
        assert result["labels"] == alone["labels"]
        assert result["scores"] == pytest.approx(alone["scores"], abs=1e-6)
    body = {"texts": texts[:1], "labels": LABELS, "language": "sw", "partial": True}
    nothing = server.ask("POST", "/zero-shot", json=body).json()
    assert (nothing["language"], nothing["model"], nothing["models"]) == (None, None, {})


def test_a_partial_answer_leaves_out_what_has_no_language_or_is_no_text(server: Server) -> None:
    body = {"texts": ["1234", "Watoto wanacheza mpira uwanjani leo", "\ud83d"], "labels": LABELS, "partial": True}
    content = json.dumps(body).encode()
    answer = server.ask("POST", "/zero-shot", content=content, headers={"content-type": "application/json"}).json()
    kinds = [result.get("error", {}).get("type") for result in answer["results"]]
    assert kinds == ["unknown_language", None, "invalid_text"]
    assert (answer["language"], answer["language_source"]) == ("sw", "detected")


def test_a_text_that_breaks_the_model_fails_alone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = server.catalogue.model_for("sw").predictor
    poison = predictor.encode([(TEXTS[1], f"leo {LABELS[2]}")]).ids[0]
    run = predictor.run

    def fragile(rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        if poison in rows:
            raise RuntimeError("no answer for this one")
        return run(rows)

    monkeypatch.setattr(predictor, "run", fragile)
    told = ask(server, texts=TEXTS, labels=LABELS, partial=True)
    assert [result.get("error", {}).get("type") for result in told] == [None, "internal", None]
    body = {"texts": TEXTS, "labels": LABELS, "language": "sw", "template": TEMPLATE}
    assert server.refusal(500, "internal", server.ask("POST", "/zero-shot", json=body))["index"] == 1


def test_a_label_is_put_into_the_template_as_it_stands() -> None:
    assert hypotheses("Hii ni {}.", ["{x}", "%s"]) == ["Hii ni {x}.", "Hii ni %s."]


def test_equal_scores_stand_as_in_the_pipeline() -> None:
    assert ranked(["a", "b", "c"], np.array([0.2, 0.6, 0.2])) == (["b", "c", "a"], [0.6, 0.2, 0.2])
