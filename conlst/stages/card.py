"""What a served model tells of itself: its temperature, what its answers look like, what it was measured to know."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from conlst.contract.config import Evaluate
from conlst.method.temperature import label_free_temperature, softmax
from conlst.reports.estimate import label_shares
from conlst.reports.metrics import expected_calibration_error

CONFIDENCE_BINS = 10
_EVALUATED = ("n", "accuracy", "ece", "protocol", "bands")


def temperature_card(
    target: NDArray[np.float32],
    labels: NDArray[np.int64] | None,
    english: tuple[NDArray[np.float32], NDArray[np.int64]] | None,
    evaluate: Evaluate,
) -> dict[str, Any]:
    """The part ``temperature``.

    Args:
        target: logits ``[n, 3]`` on pairs of the language.
        labels: theirs, which only tell the calibration error.
        english: logits on labelled English pairs, and their labels.
    """
    if english is None:
        return {"value": 1.0, "fitted_on": "nothing: there were no labelled English pairs", "ece": None}
    value = label_free_temperature(*english, target)
    ece = None
    if labels is not None:
        errors = [expected_calibration_error(softmax(target, t), labels, evaluate.bins) for t in (1.0, value)]
        ece = {"before": errors[0], "after": errors[1]}
    fitted_on = f"{len(target)} unlabelled pairs of the language, by the accuracy that {len(english[1])} English pairs let expect"
    return {"value": value, "fitted_on": fitted_on, "ece": ece}


def reference_card(target: NDArray[np.float32], temperature: float) -> dict[str, Any]:
    """The part ``reference``: what served answers are compared with to see that text has changed."""
    probabilities = softmax(target, temperature)
    counts, _ = np.histogram(probabilities.max(axis=1), bins=CONFIDENCE_BINS, range=(0, 1))
    return {"pairs": len(target), "confidence": counts.tolist(), "labels": label_shares(probabilities)}


def evaluation_card(evaluation: dict[str, Any] | None) -> dict[str, Any] | None:
    """The part ``evaluation``: the headline of ``evaluation.json``, of float32 before the temperature."""
    return None if evaluation is None else {name: evaluation[name] for name in _EVALUATED}
