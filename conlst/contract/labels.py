"""The label contract. Swapped labels are this field's most frequent real bug, so there is one order, asserted everywhere."""

from collections.abc import Mapping
from enum import IntEnum

from conlst.contract.errors import LabelError


class Label(IntEnum):
    """Entailment 0, neutral 1, contradiction 2: in data, logits, ONNX outputs and answers alike."""

    ENTAILMENT = 0
    NEUTRAL = 1
    CONTRADICTION = 2

    @property
    def text(self) -> str:
        return self.name.lower()


NAMES = tuple(label.text for label in Label)
ID2LABEL = {int(label): label.text for label in Label}
# XNLI 1.0's TSV files write the third label so
_SPELLINGS = {**{label.text: label for label in Label}, "contradictory": Label.CONTRADICTION}


def parse_label(text: str) -> Label:
    """Read a label by name.

    Bare numbers are refused: three public orders of 0, 1, 2 exist, and the wrong one gives silent nonsense.

    Raises:
        LabelError: if the name is not one of the three.
    """
    try:
        return _SPELLINGS[text.strip().lower()]
    except KeyError:
        raise LabelError(f"label {text!r} is not one of {', '.join(NAMES)}; write labels by name") from None


def check_id2label(id2label: Mapping[int | str, str], where: str) -> None:
    """Refuse a model whose outputs stand in another order than the contract's.

    Raises:
        LabelError: naming ``where`` and the order found there.
    """
    # JSON has no keys but text
    found = {int(key) if str(key).isdecimal() else key: str(value).lower() for key, value in id2label.items()}
    if found != ID2LABEL:
        raise LabelError(f"{where} orders its labels as {found}, conlst as {ID2LABEL}; convert the classifier's rows first")
