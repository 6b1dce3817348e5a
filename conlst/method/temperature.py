"""One temperature for a model's logits ``[n, 3]``: what they are divided by before the softmax, so that 0.8 means 80 of 100.

A temperature fitted on English takes off too little of what self-training adds to the confidence in the language itself, and
there are no labels there to fit it on. So the mean confidence is brought down to the accuracy that is estimated without labels.
docs/operations.md has what either leaves of the calibration error.
All functions raise :class:`~conlst.contract.errors.DataError` on no rows, other shapes or logits that are not finite.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conlst.contract.errors import DataError
from conlst.contract.labels import NAMES
from conlst.reports.estimate import average_thresholded_confidence

BOUNDS = (0.25, 10.0)
"""The lowest and the highest temperature that is ever given: beyond, the data say nothing."""

# halvings of the interval: far below what float64 tells apart
_HALVINGS = 60


def softmax(logits: ArrayLike, temperature: float = 1.0) -> NDArray[np.float64]:
    """``[n, 3]`` probabilities at a temperature."""
    scaled = _checked(logits) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def label_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature of the smallest negative log-likelihood of labels ``[n]`` (Guo et al., 2017)."""
    rows, truth = _checked(logits), np.asarray(labels)
    if truth.shape != rows.shape[:1]:
        raise DataError(f"{truth.shape} labels do not fit {len(rows)} rows of logits")
    of_label = rows[np.arange(len(rows)), truth].mean()
    # the derivative by 1/T, which is where the likelihood is concave: it has one zero
    return _falling_through(lambda t: float((softmax(rows, t) * rows).sum(axis=1).mean()), float(of_label))


def confidence_temperature(logits: ArrayLike, confidence: float) -> float:
    """The temperature at which the mean of the largest probability is ``confidence``, or the bound next to it."""
    rows = _checked(logits)
    return _falling_through(lambda t: float(softmax(rows, t).max(axis=1).mean()), confidence)


def label_free_temperature(english: ArrayLike, english_labels: ArrayLike, target: ArrayLike) -> float:
    """The temperature at which the mean confidence in the language is the accuracy that is estimated there (ATC).

    Args:
        english, english_labels: logits on labelled English pairs that nothing was trained on, and their labels ``[n]``.
        target: logits on unlabelled pairs of the language.
    """
    estimated = average_thresholded_confidence(softmax(english), english_labels, softmax(target))
    return confidence_temperature(target, estimated)


def _falling_through(value: Callable[[float], float], wanted: float) -> float:
    """Where a function that falls with the temperature has a value."""
    low, high = BOUNDS
    for _ in range(_HALVINGS):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if value(middle) > wanted else (low, middle)
    return float(np.sqrt(low * high))


def _checked(logits: ArrayLike) -> NDArray[np.float64]:
    rows = np.asarray(logits, np.float64)
    if rows.ndim != 2 or rows.shape[1] != len(NAMES) or not len(rows) or not np.isfinite(rows).all():
        raise DataError(f"expected finite logits [n, {len(NAMES)}] of at least one pair, not {rows.shape}")
    return rows
