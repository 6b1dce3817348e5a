"""One temperature: recovered where it is known, bounded where nothing is known, and better than none in a shifted language."""

import numpy as np
import pytest
from numpy.typing import NDArray

from conlst.contract.errors import DataError
from conlst.method.temperature import BOUNDS, confidence_temperature, label_free_temperature, label_temperature, softmax
from conlst.reports.metrics import expected_calibration_error


def drawn(n: int, spread: float, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits, and labels drawn from their own softmax: calibrated at temperature 1."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 3)) * spread
    cumulated = softmax(logits).cumsum(axis=1)
    return logits, (rng.random((n, 1)) > cumulated[:, :2]).sum(axis=1)


def slow_temperature(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    grid = np.geomspace(*BOUNDS, 801)
    return float(grid[np.argmin([-np.log(softmax(logits, t)[np.arange(len(labels)), labels]).mean() for t in grid])])


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.7])
def test_labels_give_back_the_factor_that_the_logits_were_stretched_by(factor: float) -> None:
    logits, labels = drawn(5000, 2.0, 1)
    found = label_temperature(factor * logits, labels)
    assert found == pytest.approx(factor, rel=0.08)
    assert found == pytest.approx(slow_temperature(factor * logits, labels), rel=5e-3)


def test_the_wanted_confidence_is_met() -> None:
    logits, _ = drawn(500, 3.0, 2)
    for wanted in (0.5, 0.6, 0.8):
        assert softmax(logits, confidence_temperature(logits, wanted)).max(axis=1).mean() == pytest.approx(wanted, abs=1e-9)


def test_what_no_temperature_reaches_gives_the_bound() -> None:
    logits, _ = drawn(200, 2.0, 3)
    assert confidence_temperature(logits, 0.2) == pytest.approx(BOUNDS[1])
    assert confidence_temperature(logits, 1.0) == pytest.approx(BOUNDS[0])
    # always right wants no doubt, always wrong wants nothing but doubt
    assert label_temperature(logits, logits.argmax(axis=1)) == pytest.approx(BOUNDS[0])
    assert label_temperature(logits, logits.argmin(axis=1)) == pytest.approx(BOUNDS[1])


def test_a_language_that_the_model_is_worse_in_is_calibrated_without_its_labels() -> None:
    english, english_labels = drawn(4000, 3.0, 4)
    target, target_labels = drawn(4000, 1.5, 5)
    # in both the model says more than it knows
    english, target = 2 * english, 2 * target
    before = expected_calibration_error(softmax(target), target_labels, 10)
    after = expected_calibration_error(
        softmax(target, label_free_temperature(english, english_labels, target)), target_labels, 10
    )
    assert after < 0.5 * before


@pytest.mark.parametrize("logits", [np.empty((0, 3)), np.zeros((2, 2)), np.array([[0.0, np.nan, 1.0]]), np.zeros(3)])
def test_what_is_no_table_of_logits_is_refused(logits: NDArray[np.float64]) -> None:
    with pytest.raises(DataError, match="expected finite logits"):
        softmax(logits)
    with pytest.raises(DataError, match="expected finite logits"):
        confidence_temperature(logits, 0.5)


def test_labels_of_other_pairs_are_refused() -> None:
    with pytest.raises(DataError, match="do not fit"):
        label_temperature(np.zeros((2, 3)), [0, 1, 2])
