"""How right a model is in a language without labels, estimated: pure functions of probabilities ``[n, 3]``.

Nothing here reads a target label. What each estimate is off by on XNLI, where labels exist, is in docs/operations.md.
All functions raise :class:`~conlst.contract.errors.DataError` on what is no probability distribution, or on no rows.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conlst.contract.errors import DataError
from conlst.contract.labels import NAMES


def difference_of_confidences(source: ArrayLike, source_labels: ArrayLike, target: ArrayLike) -> float:
    """Source accuracy, less what the mean confidence falls by (Guillory et al., 2021, without their regression).

    Args:
        source, source_labels: predictions on labelled pairs that the model was not trained on, and their labels ``[n]``.
        target: predictions on unlabelled pairs of the language.
    """
    known, unknown = _checked(source), _checked(target)
    fall = known.max(axis=1).mean() - unknown.max(axis=1).mean()
    return float(np.clip(_right(known, source_labels).mean() - fall, 0, 1))


def average_thresholded_confidence(source: ArrayLike, source_labels: ArrayLike, target: ArrayLike) -> float:
    """ATC (Garg et al., 2022, eq. 3-4): the share of target pairs above a bar that as many source pairs pass as are right.

    The score is the negative entropy, which they found better than the largest probability.
    """
    known, unknown = _negative_entropy(_checked(source)), _negative_entropy(_checked(target))
    right = _right(_checked(source), source_labels)
    bar = np.quantile(known, 1 - right.mean())
    return float((unknown >= bar).mean())


def agreement(one: ArrayLike, other: ArrayLike) -> float:
    """Share of pairs that two models, or two dropout views of one, label alike (Jiang et al., 2022)."""
    first, second = _checked(one), _checked(other)
    if first.shape != second.shape:
        raise DataError(f"agreement compares predictions on the same pairs, not {len(first)} with {len(second)}")
    return float((first.argmax(axis=1) == second.argmax(axis=1)).mean())


def label_shares(probabilities: ArrayLike) -> dict[str, float]:
    """Share of pairs that each label is predicted for: a class near 0 has collapsed."""
    counts = np.bincount(_checked(probabilities).argmax(axis=1), minlength=len(NAMES))
    return {name: float(count / counts.sum()) for name, count in zip(NAMES, counts, strict=True)}


def _right(probabilities: NDArray[np.float64], labels: ArrayLike) -> NDArray[np.bool_]:
    truth = np.asarray(labels)
    if truth.shape != probabilities.shape[:1]:
        raise DataError(f"{truth.shape} labels do not fit {len(probabilities)} predictions")
    return np.asarray(probabilities.argmax(axis=1) == truth)


def _negative_entropy(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    logs = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    return np.asarray((probabilities * logs).sum(axis=1))


def _checked(probabilities: ArrayLike) -> NDArray[np.float64]:
    rows = np.asarray(probabilities, np.float64)
    if rows.ndim != 2 or rows.shape[1] != len(NAMES) or not len(rows):
        raise DataError(f"expected probabilities [n, {len(NAMES)}] of at least one pair, not {rows.shape}")
    if not (np.isfinite(rows).all() and (rows >= 0).all() and np.allclose(rows.sum(axis=1), 1, atol=1e-4)):
        raise DataError("the probabilities hold a row that is no distribution; apply softmax to logits first")
    return rows
