import pytest

from conlst.contract.errors import ConlstError, LabelError
from conlst.contract.labels import ID2LABEL, NAMES, Label, check_id2label, parse_label


def test_the_order_never_changes() -> None:
    # written out a second time: published models, ONNX outputs and clients all rely on it
    assert [(int(label), label.text) for label in Label] == [(0, "entailment"), (1, "neutral"), (2, "contradiction")]
    assert NAMES == ("entailment", "neutral", "contradiction")
    assert ID2LABEL == {0: "entailment", 1: "neutral", 2: "contradiction"}


@pytest.mark.parametrize("label", list(Label))
def test_a_name_is_read_back_in_any_case(label: Label) -> None:
    for text in (label.text, label.text.upper(), label.text.title(), f"  {label.text}\n"):
        assert parse_label(text) is label


def test_xnli_spells_the_third_label_differently() -> None:
    assert parse_label("contradictory") is Label.CONTRADICTION


@pytest.mark.parametrize("text", ["0", "1", "2", "-1", "2.0"])
def test_bare_numbers_are_refused_with_the_fix(text: str) -> None:
    with pytest.raises(LabelError, match="write labels by name") as caught:
        parse_label(text)
    assert repr(text) in str(caught.value)
    assert isinstance(caught.value, ConlstError)


@pytest.mark.parametrize("text", ["", " ", "-", "entail", "not_entailment", "LABEL_0", "neutral,contradiction", "ENTAILMENT_"])
def test_what_is_no_label_is_refused(text: str) -> None:
    with pytest.raises(LabelError, match="is not one of entailment, neutral, contradiction"):
        parse_label(text)


@pytest.mark.parametrize(
    "id2label",
    [
        {0: "entailment", 1: "neutral", 2: "contradiction"},
        {"0": "entailment", "1": "neutral", "2": "contradiction"},  # as JSON writes it
        {2: "CONTRADICTION", 0: "Entailment", 1: "Neutral"},
    ],
)
def test_a_model_in_the_contract_s_order_passes(id2label: dict[int | str, str]) -> None:
    check_id2label(id2label, "the model")


@pytest.mark.parametrize(
    "id2label",
    [
        {0: "contradiction", 1: "neutral", 2: "entailment"},  # MNLI models of facebook
        {0: "contradiction", 1: "entailment", 2: "neutral"},  # cross-encoders
        {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"},
        {0: "entailment", 1: "not_entailment"},
        {0: "entailment", 1: "neutral", 2: "contradiction", 3: "other"},
        {1: "entailment", 2: "neutral", 3: "contradiction"},
        {0: "entailment", 1: "neutral", 2: "contradictory"},
        {},
    ],
)
def test_any_other_order_is_refused_with_both_orders(id2label: dict[int | str, str]) -> None:
    with pytest.raises(LabelError, match="convert the classifier's rows first") as caught:
        check_id2label(id2label, "models/other")
    message = str(caught.value)
    assert message.startswith("models/other")
    assert str(ID2LABEL) in message
    assert str({int(key): value.lower() for key, value in id2label.items()}) in message


@pytest.mark.parametrize("key", ["LABEL_0", "entailment", ""])
def test_keys_that_are_no_numbers_are_refused_as_labels(key: str) -> None:
    with pytest.raises(LabelError, match="models/other"):
        check_id2label({key: "entailment", 1: "neutral", 2: "contradiction"}, "models/other")
