import math

import numpy as np
import pytest

from conlst.contract.errors import DataError
from conlst.reports.estimate import (
    agreement,
    average_thresholded_confidence,
    difference_of_confidences,
    label_shares,
)


def confident(*shares: float, label: int = 0) -> np.ndarray:
    """Rows whose ``label`` has these probabilities."""
    rows = np.repeat((1 - np.array(shares))[:, None] / 2, 3, axis=1)
    rows[:, label] = shares
    return rows


SOURCE = confident(0.9, 0.8, 0.7, 0.6)


def test_the_difference_of_confidences_is_taken_off_the_source_accuracy():
    # 3 of 4 are right at a mean confidence of 0.75; the target's is 0.55
    estimate = difference_of_confidences(SOURCE, [0, 0, 0, 1], confident(0.5, 0.6, label=2))
    assert estimate == pytest.approx(0.75 - (0.75 - 0.55))


def test_an_estimate_stays_a_share():
    assert difference_of_confidences(confident(0.4, 0.4), [0, 0], confident(0.99, 0.99)) == 1
    assert difference_of_confidences(confident(0.99, 0.99), [1, 1], confident(0.4, 0.4)) == 0


def test_atc_is_the_share_above_the_bar_that_leaves_out_as_many_source_pairs_as_are_wrong():
    # one of four is wrong: the bar lies between the entropies of 0.6 and 0.7
    target = confident(0.95, 0.75, 0.65, 0.5, 0.4)
    bar = np.quantile([_negative_entropy(row) for row in SOURCE], 0.25)
    slow = sum(_negative_entropy(row) >= bar for row in target) / 5
    assert slow == 2 / 5 or slow == 3 / 5
    assert average_thresholded_confidence(SOURCE, [0, 0, 0, 1], target) == slow


def test_atc_on_the_source_itself_gives_back_its_accuracy():
    rng = np.random.default_rng(0)
    rows = rng.dirichlet([2, 1, 1], 4000)
    labels = np.array([rng.choice(3, p=row) for row in rows])
    accuracy = (rows.argmax(1) == labels).mean()
    assert average_thresholded_confidence(rows, labels, rows) == pytest.approx(accuracy, abs=1e-3)


def test_agreement_counts_equal_labels():
    one = np.concatenate([confident(0.8, 0.8), confident(0.5, label=2)])
    other = np.concatenate([confident(0.6), confident(0.9, 0.9, label=2)])
    assert agreement(one, other) == pytest.approx(2 / 3)
    assert agreement(one, one) == 1


def test_label_shares_name_a_class_that_nothing_is_predicted_as():
    assert label_shares(np.concatenate([confident(0.8), confident(0.5, 0.5, 0.5, label=2)])) == {
        "entailment": 0.25,
        "neutral": 0.0,
        "contradiction": 0.75,
    }


def test_a_certain_prediction_has_no_entropy():
    assert average_thresholded_confidence(np.eye(3), [0, 1, 2], np.eye(3)) == 1


@pytest.mark.parametrize("rows", [np.empty((0, 3)), np.ones((2, 2)), np.full((2, 3), math.nan), np.full((2, 3), 2.0)])
def test_what_is_no_distribution_is_refused(rows):
    with pytest.raises(DataError, match=r"probabilities"):
        label_shares(rows)


def test_shapes_must_fit():
    with pytest.raises(DataError, match=r"\(3,\) labels"):
        difference_of_confidences(SOURCE, [0, 1, 2], SOURCE)
    with pytest.raises(DataError, match="4 with 1"):
        agreement(SOURCE, confident(0.5))


def _negative_entropy(row: np.ndarray) -> float:
    return sum(p * math.log(p) for p in row if p > 0)
