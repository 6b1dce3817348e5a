"""Which precision is served: INT8, if it answers unlabelled text as float32 does and is as right where labels are known."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conlst.contract.config import Export

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Labelled:
    """Logits ``[n, 3]`` of both precisions on pairs whose labels ``[n]`` are known; ``name`` says which pairs."""

    name: str
    fp32: Logits
    int8: Logits
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Verdict:
    """The part ``precision`` of a model's card.

    Attributes:
        served: ``fp32`` or ``int8``.
        pairs: unlabelled pairs that were compared.
        accuracy: of ``fp32`` and ``int8`` on the labelled pairs that ``reason`` names.
        agreement: share of the unlabelled pairs that both label alike.
    """

    served: str
    reason: str
    allowed_drop: float
    pairs: int = 0
    accuracy: dict[str, float] | None = None
    agreement: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def judge(fp32: Logits, int8: Logits, labelled: Labelled, export: Export) -> Verdict:
    """Hold INT8 against float32.

    Args:
        fp32, int8: logits ``[n, 3]`` on unlabelled pairs of the language.
        labelled: of the language if it has labels, else English.
    """
    agreement = float((fp32.argmax(axis=1) == int8.argmax(axis=1)).mean())
    accuracy = {
        name: float((logits.argmax(axis=1) == labelled.labels).mean())
        for name, logits in (("fp32", labelled.fp32), ("int8", labelled.int8))
    }
    drop = accuracy["fp32"] - accuracy["int8"]
    shown = f"int8 agrees with fp32 on {agreement:.2%} of {len(fp32)} unlabelled pairs, {export.min_agreement:.0%} is asked for"
    right = (
        f"on {len(labelled.labels)} {labelled.name} it has {accuracy['int8']:.2%} right, fp32 {accuracy['fp32']:.2%},"
        f" and {100 * export.max_drop:g} points may be lost"
    )
    # a drop of exactly what is allowed passes, whatever the subtraction rounds to
    kept = agreement >= export.min_agreement and drop <= export.max_drop + 1e-9
    return Verdict("int8" if kept else "fp32", f"{shown}; {right}", export.max_drop, len(fp32), accuracy, agreement)
