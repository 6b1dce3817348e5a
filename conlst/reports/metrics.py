"""What predictions are worth: pure functions of probabilities ``[n, 3]`` and labels ``[n]``, both in the contract's order.

The prediction is the argmax (the first of equal maxima), the *confidence* is the maximum. A pair is *clean* if its prediction is
its label, else *noisy*. Every result is independent of the order of the rows to the last bit, and what has no value because
nothing was counted is ``None``: no result holds a NaN, so all of them are JSON.

All functions raise :class:`~conlst.contract.errors.DataError` on shapes that do not fit, labels outside 0..2 and rows that are
no probability distribution.
"""

import math
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conlst.contract.config import Evaluate
from conlst.contract.errors import DataError
from conlst.contract.labels import NAMES
from conlst.contract.paired_test import sign_test

COVERAGE = (10, 20, 50, 80, 100)
_CLASSES = len(NAMES)
# float32 softmaxes miss 1 by about 1e-7; logits or percentages given by mistake miss it by far more
_SUM_TOLERANCE = 1e-4


class _Judged(NamedTuple):
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    confidence: NDArray[np.float64]
    clean: NDArray[np.bool_]


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int) -> float:
    """Mean over the pairs of ``|accuracy - mean confidence|`` of their bin, with the bins of a report's ``reliability``."""
    return _expected_calibration_error(_judge(probabilities, labels), bins)


def wilson_interval(correct: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share, which keeps its coverage for few pairs and for shares near 0 and 1."""
    if not 0 <= correct <= n or n == 0:
        raise DataError(f"{correct} correct of {n} pairs is not a share")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, scale = correct / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    reach = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def mcnemar(before_correct: ArrayLike, after_correct: ArrayLike) -> dict[str, int | float]:
    """McNemar's exact test: could the pairs that changed sides as well have been tossed by a coin?

    Args:
        before_correct, after_correct: ``[n]`` bool, the same pairs in the same order.

    Returns:
        The four counts and the two-sided ``p_value``: twice the smaller binomial tail, at most 1.
    """
    before, after = np.asarray(before_correct), np.asarray(after_correct)
    if before.dtype != bool or after.dtype != bool or before.ndim != 1 or before.shape != after.shape:
        raise DataError(
            f"mcnemar needs two equally long bool vectors, not {before.dtype} {before.shape} and {after.dtype} {after.shape}"
        )
    only_before, only_after = int((before & ~after).sum()), int((~before & after).sum())
    return {
        "both_correct": int((before & after).sum()),
        "only_before": only_before,
        "only_after": only_after,
        "both_wrong": int((~before & ~after).sum()),
        "p_value": sign_test(min(only_before, only_after), only_before + only_after),
    }


def evaluate_probabilities(probabilities: ArrayLike, labels: ArrayLike, evaluate: Evaluate) -> dict[str, Any]:
    """Everything a report says of one model on one labelled set, ready for JSON."""
    judged = _judge(probabilities, labels)
    return {
        **_summary(judged, evaluate),
        "confusion": _confusion(judged).tolist(),
        "per_class": _per_class(judged),
        "reliability": _reliability(judged, evaluate.bins),
        "bands": _bands(judged, evaluate.low, evaluate.high),
        "histogram": _noise_histogram(judged, evaluate.bins),
        "coverage": _equal_coverage(judged),
    }


def compare(before: ArrayLike, after: ArrayLike, labels: ArrayLike, evaluate: Evaluate) -> dict[str, Any]:
    """What a training changed on the same labelled pairs, ready for JSON.

    Args:
        before, after: ``[n, 3]``, the same pairs in the same order.

    Returns:
        ``before`` and ``after`` (the headline numbers), ``accuracy_gain``, ``bands`` and ``histogram`` with both sides,
        ``coverage`` (the most confident pairs before against equally many after), ``high_band_coverage`` (the same at the size
        that the high band had before and has after: a band that got clean by being emptied gains nothing here), ``mcnemar``.
    """
    old, new = _judge(before, labels), _judge(after, labels)
    old_bands, new_bands = (_bands(judged, evaluate.low, evaluate.high) for judged in (old, new))
    old_noise, new_noise = (_noise_histogram(judged, evaluate.bins) for judged in (old, new))
    return {
        "n": len(old.labels),
        "before": _summary(old, evaluate),
        "after": _summary(new, evaluate),
        "accuracy_gain": (int(new.clean.sum()) - int(old.clean.sum())) / len(old.labels),
        "bands": [
            {
                **{key: one[key] for key in ("band", "lower", "upper")},
                **{side: _without(row, "band", "lower", "upper") for side, row in (("before", one), ("after", other))},
            }
            for one, other in zip(old_bands, new_bands, strict=True)
        ],
        "histogram": {
            "edges": old_noise["edges"],
            "before": _without(old_noise, "edges"),
            "after": _without(new_noise, "edges"),
        },
        "coverage": [
            {"percent": percent, **_both_at(old, new, _coverage_count(percent, len(old.labels)))} for percent in COVERAGE
        ],
        "high_band_coverage": [
            {"size_of": side, **_both_at(old, new, rows[0]["count"])}
            for side, rows in (("before", old_bands), ("after", new_bands))
        ],
        "mcnemar": mcnemar(old.clean, new.clean),
    }


def _judge(probabilities: ArrayLike, labels: ArrayLike) -> _Judged:
    rows, truth = np.asarray(probabilities), np.asarray(labels)
    if rows.ndim != 2 or rows.shape[1] != _CLASSES or truth.shape != rows.shape[:1]:
        raise DataError(f"expected probabilities [n, {_CLASSES}] and labels [n], not {rows.shape} and {truth.shape}")
    if len(rows) == 0:
        raise DataError("there are no labelled pairs to evaluate")
    if not np.issubdtype(rows.dtype, np.floating):
        raise DataError(f"probabilities are of type {rows.dtype}, not floating point")
    if not np.issubdtype(truth.dtype, np.integer):
        raise DataError(f"labels are of type {truth.dtype}, not integers; evaluate labelled pairs only")
    if outside := np.flatnonzero((truth < 0) | (truth >= _CLASSES)).tolist():
        raise DataError(f"label {truth[outside[0]]} in row {outside[0]} is none of 0..{_CLASSES - 1} ({', '.join(NAMES)})")
    rows = rows.astype(np.float64)
    # negated, so that NaN counts as wrong
    wrong = ~((rows >= 0).all(axis=1) & (np.abs(rows.sum(axis=1) - 1) <= _SUM_TOLERANCE))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"row {row} of the probabilities, {rows[row].tolist()}, is no distribution; apply softmax to logits first"
        )
    predictions, truth = rows.argmax(axis=1).astype(np.int64), truth.astype(np.int64)
    return _Judged(truth, predictions, rows.max(axis=1), predictions == truth)


def _summary(judged: _Judged, evaluate: Evaluate) -> dict[str, Any]:
    n, correct = len(judged.labels), int(judged.clean.sum())
    return {
        "n": n,
        "correct": correct,
        "accuracy": correct / n,
        "accuracy_interval": list(wilson_interval(correct, n)),
        "macro_f1": _macro_f1(judged),
        "ece": _expected_calibration_error(judged, evaluate.bins),
    }


def _confusion(judged: _Judged) -> NDArray[np.int64]:
    """Counts ``[3, 3]``: rows are the truth, columns the prediction."""
    cells = np.bincount(judged.labels * _CLASSES + judged.predictions, minlength=_CLASSES**2)
    return cells.reshape(_CLASSES, _CLASSES).astype(np.int64)


def _per_class(judged: _Judged) -> dict[str, dict[str, Any]]:
    """Precision, recall and F1 of every class by name, with the counts they rest on.

    Precision is ``None`` for a class never predicted, recall for one that no label has, F1 where both are so.
    """
    matrix = _confusion(judged)
    table = {}
    for index, name in enumerate(NAMES):
        hits, truth, predicted = int(matrix[index, index]), int(matrix[index].sum()), int(matrix[:, index].sum())
        table[name] = {
            "precision": _ratio(hits, predicted),
            "recall": _ratio(hits, truth),
            "f1": _ratio(2 * hits, truth + predicted),
            "labelled": truth,
            "predicted": predicted,
        }
    return table


def _macro_f1(judged: _Judged) -> float:
    """Mean F1 of the classes that occur in the labels or in the predictions.

    A class absent from both is left out: nothing was asked and nothing was said about it, and a zero would hold a perfect
    prediction of two-class data at 2/3. A class that occurs on one side only counts as zero.
    """
    scores = [row["f1"] for row in _per_class(judged).values() if row["f1"] is not None]
    return math.fsum(scores) / len(scores)


def _reliability(judged: _Judged, bins: int) -> list[dict[str, Any]]:
    """Mean confidence and accuracy in ``bins`` bins of equal width over [0, 1].

    Bins are closed on the right, ``(lower, upper]``; the first holds 0 too. Those that end below 1/3 are empty by nature.
    """
    edges = [index / bins for index in range(bins + 1)]
    place = _bin_of(judged.confidence, edges)
    rows = []
    for index in range(bins):
        here = place == index
        count, correct = int(here.sum()), int(judged.clean[here].sum())
        rows.append(
            {
                "lower": edges[index],
                "upper": edges[index + 1],
                "count": count,
                "correct": correct,
                # fsum is exact, so the order of the rows cannot show in the last bits
                "confidence": _ratio(math.fsum(judged.confidence[here]), count),
                "accuracy": _ratio(correct, count),
            }
        )
    return rows


def _expected_calibration_error(judged: _Judged, bins: int) -> float:
    table = [row for row in _reliability(judged, bins) if row["count"]]
    return math.fsum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in table) / len(judged.labels)


def _bands(judged: _Judged, low: float, high: float) -> list[dict[str, Any]]:
    """The confidence bands of the paper's table 4: ``> high``, ``low..high`` with both borders, ``< low``."""
    above, below = judged.confidence > high, judged.confidence < low
    members = (("high", high, 1.0, above), ("middle", low, high, ~above & ~below), ("low", 1 / _CLASSES, low, below))
    rows = []
    for band, lower, upper, here in members:
        count, correct = int(here.sum()), int(judged.clean[here].sum())
        rows.append(
            {
                "band": band,
                "lower": lower,
                "upper": upper,
                "count": count,
                "correct": correct,
                "share": count / len(here),
                "accuracy": _ratio(correct, count),
            }
        )
    return rows


def _noise_histogram(judged: _Judged, bins: int) -> dict[str, list[Any]]:
    """Counts of clean and noisy pairs in ``bins`` bins of equal width from 1/3 to 1 (the paper's figures 3 and 4).

    Bins are closed on the right; the first holds 1/3 too.
    """
    edges = [(bins + (_CLASSES - 1) * index) / (_CLASSES * bins) for index in range(bins + 1)]
    place = _bin_of(judged.confidence, edges)
    return {
        "edges": edges,
        "clean": np.bincount(place[judged.clean], minlength=bins).tolist(),
        "noisy": np.bincount(place[~judged.clean], minlength=bins).tolist(),
    }


def _equal_coverage(judged: _Judged) -> list[dict[str, int | float | None]]:
    """Accuracy of the most confident pairs, for several shares of all pairs (their number is rounded up)."""
    counts = [(percent, _coverage_count(percent, len(judged.labels))) for percent in COVERAGE]
    return [{"percent": percent, "count": count, "accuracy": _accuracy_at(judged, count)} for percent, count in counts]


def _both_at(old: _Judged, new: _Judged, count: int) -> dict[str, int | float | None]:
    return {"count": count, "before": _accuracy_at(old, count), "after": _accuracy_at(new, count)}


def _coverage_count(percent: int, n: int) -> int:
    return -(-percent * n // 100)


def _accuracy_at(judged: _Judged, count: int) -> float | None:
    """Accuracy of the ``count`` most confident pairs.

    Where pairs of equal confidence stand on both sides of the cut, each counts with the accuracy of all of them: the expected
    value of a random choice. Confidences saturate at 1 often enough for another rule to make the order of the rows matter.
    """
    if count == 0:
        return None
    cut = np.sort(judged.confidence)[-count]
    above, tied = judged.confidence > cut, judged.confidence == cut
    wanted = count - int(above.sum())
    return (int(judged.clean[above].sum()) + wanted * int(judged.clean[tied].sum()) / int(tied.sum())) / count


def _bin_of(confidence: NDArray[np.float64], edges: list[float]) -> NDArray[np.int64]:
    """Index of the bin ``(lower, upper]`` of every value; rounding beyond the outermost edges is pulled back in."""
    place = np.searchsorted(edges, confidence, side="left") - 1
    return np.clip(place, 0, len(edges) - 2).astype(np.int64)


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def _without(row: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in keys}
