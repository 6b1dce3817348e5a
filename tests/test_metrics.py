"""Every measure against a slow and obvious reference, against numbers worked out by hand, and under what must not change it."""

import json
import math
from fractions import Fraction
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conlst.contract.config import Evaluate
from conlst.contract.errors import DataError
from conlst.contract.labels import Label
from conlst.reports import metrics

# no deadline and no fresh seed: a busy machine must not decide whether a test passes
REPEATABLE = settings(deadline=None, derandomize=True)
# a confident right pair, an unsure right one, a wrong one in the middle and a confident wrong one
PROBABILITIES = np.array([[0.95, 0.03, 0.02], [0.30, 0.45, 0.25], [0.20, 0.60, 0.20], [0.02, 0.02, 0.96]])
LABELS = np.array([0, 1, 2, 0])

# twelfths give exact ties, values on bin edges and on the borders of bands
_twelfths = st.tuples(st.integers(0, 12), st.integers(0, 12)).map(sorted).map(lambda cut: (cut[0], cut[1] - cut[0], 12 - cut[1]))
_row = st.one_of(
    _twelfths.map(lambda parts: tuple(part / 12 for part in parts)),
    st.lists(st.floats(0.01, 1), min_size=3, max_size=3).map(lambda parts: tuple(part / sum(parts) for part in parts)),
)
_judged = st.lists(st.tuples(_row, st.integers(0, 2)), min_size=1, max_size=40)


def arrays(pairs: list[tuple[tuple[float, ...], int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([row for row, _ in pairs]), np.array([label for _, label in pairs])


def report(probabilities: Any, labels: Any, **settings: Any) -> dict[str, Any]:
    return metrics.evaluate_probabilities(probabilities, labels, Evaluate(**settings))


def facts(probabilities: np.ndarray, labels: np.ndarray) -> list[tuple[float, int, int]]:
    """Confidence, prediction and label of every pair, in plain Python."""
    rows = probabilities.tolist()
    return [(max(row), row.index(max(row)), label) for row, label in zip(rows, labels.tolist(), strict=True)]


def slow_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> float:
    error = 0.0
    for index in range(bins):
        here = [
            (confidence, prediction == label)
            for confidence, prediction, label in facts(probabilities, labels)
            if index / bins < confidence <= (index + 1) / bins or (index == bins - 1 and confidence > 1)
        ]
        if here:
            confidence = sum(pair[0] for pair in here) / len(here)
            right = sum(pair[1] for pair in here) / len(here)
            error += len(here) / len(labels) * abs(right - confidence)
    return error


def slow_macro_f1(probabilities: np.ndarray, labels: np.ndarray) -> float:
    scores = []
    for name in range(3):
        pairs = [(prediction == name, label == name) for _, prediction, label in facts(probabilities, labels)]
        hits = sum(predicted and true for predicted, true in pairs)
        either = sum(predicted for predicted, _ in pairs) + sum(true for _, true in pairs)
        if either:
            scores.append(2 * hits / either)
    return sum(scores) / len(scores)


def slow_accuracy_at(probabilities: np.ndarray, labels: np.ndarray, count: int) -> Fraction:
    """Fill up from the most confident group of equals; of the last one, take the expected share of right pairs."""
    judged = facts(probabilities, labels)
    right, room = Fraction(0), count
    for confidence in sorted({pair[0] for pair in judged}, reverse=True):
        group = [prediction == label for found, prediction, label in judged if found == confidence]
        taken = min(room, len(group))
        right += Fraction(taken * sum(group), len(group))
        room -= taken
    return right / count


def slow_p_value(only_before: int, only_after: int) -> Fraction:
    """Share of all sequences of tosses that are at most as likely as the one seen."""
    tosses = only_before + only_after
    seen = math.comb(tosses, only_before)
    as_rare = sum(math.comb(tosses, heads) for heads in range(tosses + 1) if math.comb(tosses, heads) <= seen)
    return Fraction(as_rare, 2**tosses)


def test_accuracy_by_hand() -> None:
    assert report(PROBABILITIES, LABELS)["accuracy"] == 0.5


def test_confusion_has_the_truth_in_rows() -> None:
    expected = [[1, 0, 1], [0, 1, 0], [0, 1, 0]]
    assert report(PROBABILITIES, LABELS)["confusion"] == expected


@REPEATABLE
@given(_judged)
def test_confusion_counts_every_pair_once(pairs: list[tuple[tuple[float, ...], int]]) -> None:
    probabilities, labels = arrays(pairs)
    expected = [[0] * 3 for _ in range(3)]
    for _, prediction, label in facts(probabilities, labels):
        expected[label][prediction] += 1
    assert report(probabilities, labels)["confusion"] == expected


def test_equal_maxima_are_the_first_class() -> None:
    assert report(np.array([[0.2, 0.4, 0.4]]), np.array([2]))["confusion"][2][1] == 1


def test_per_class_by_hand() -> None:
    table = report(PROBABILITIES, LABELS)["per_class"]
    assert table["entailment"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "labelled": 2, "predicted": 1}
    assert table["neutral"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "labelled": 1, "predicted": 2}
    assert table["contradiction"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "labelled": 1, "predicted": 1}


def test_per_class_has_no_value_where_nothing_was_counted() -> None:
    table = report(np.array([[0.8, 0.1, 0.1]]), np.array([1]))["per_class"]
    assert (table["entailment"]["precision"], table["entailment"]["recall"]) == (0.0, None)
    assert (table["neutral"]["precision"], table["neutral"]["recall"]) == (None, 0.0)
    assert [table["contradiction"][score] for score in ("precision", "recall", "f1")] == [None, None, None]


def test_macro_f1_by_hand() -> None:
    assert report(PROBABILITIES, LABELS)["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)


def test_macro_f1_leaves_out_a_class_that_occurs_nowhere() -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0]])
    assert report(probabilities, np.array([0, 1]))["macro_f1"] == 1.0


@pytest.mark.parametrize(("labels", "expected"), [([0, 2], (2 / 3 + 0) / 2), ([0, 1], (2 / 3 + 0) / 2)])
def test_macro_f1_counts_a_class_that_occurs_on_one_side_as_zero(labels: list[int], expected: float) -> None:
    assert report(np.array([[0.9, 0.1, 0.0]] * 2), np.array(labels))["macro_f1"] == pytest.approx(expected)


@REPEATABLE
@given(_judged)
def test_macro_f1_is_the_reference(pairs: list[tuple[tuple[float, ...], int]]) -> None:
    assert report(*arrays(pairs))["macro_f1"] == pytest.approx(slow_macro_f1(*arrays(pairs)), abs=1e-12)


def test_calibration_error_by_hand() -> None:
    # bins of a tenth: {.95 right, .96 wrong}, {.45 right}, {.60 wrong}
    expected = (2 * abs(0.5 - 0.955) + abs(1 - 0.45) + abs(0 - 0.60)) / 4
    assert metrics.expected_calibration_error(PROBABILITIES, LABELS, 10) == pytest.approx(expected, abs=1e-15)


def test_calibration_error_of_an_honest_model_is_zero() -> None:
    probabilities = np.array([[0.75, 0.25, 0.0]] * 4)
    assert metrics.expected_calibration_error(probabilities, np.array([0, 0, 0, 1]), 10) == 0.0


@REPEATABLE
@given(_judged, st.integers(2, 20))
def test_calibration_error_is_the_reference(pairs: list[tuple[tuple[float, ...], int]], bins: int) -> None:
    expected = slow_calibration_error(*arrays(pairs), bins)
    assert metrics.expected_calibration_error(*arrays(pairs), bins) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("confidence", "upper"), [(0.4, 0.4), (0.6, 0.6), (0.7, 0.7), (0.61, 0.7), (1.0, 1.0)])
def test_reliability_bins_are_closed_on_the_right(confidence: float, upper: float) -> None:
    rest = 1 - confidence
    row = [confidence, min(rest, 0.35), rest - min(rest, 0.35)]
    (filled,) = [row for row in report(np.array([row]), np.array([0]))["reliability"] if row["count"]]
    assert filled["upper"] == upper
    assert filled["confidence"] == confidence


def test_reliability_has_no_value_in_an_empty_bin() -> None:
    table = report(PROBABILITIES, LABELS)["reliability"]
    assert [row["count"] for row in table] == [0, 0, 0, 0, 1, 1, 0, 0, 0, 2]
    assert (table[0]["confidence"], table[0]["accuracy"]) == (None, None)
    assert (table[9]["confidence"], table[9]["accuracy"]) == (pytest.approx(0.955), 0.5)


def test_bands_by_hand() -> None:
    high, middle, low = report(PROBABILITIES, LABELS)["bands"]
    assert (high["band"], high["count"], high["correct"], high["share"], high["accuracy"]) == ("high", 2, 1, 0.5, 0.5)
    assert (middle["band"], middle["count"], middle["share"], middle["accuracy"]) == ("middle", 1, 0.25, 0.0)
    assert (low["band"], low["count"], low["share"], low["accuracy"]) == ("low", 1, 0.25, 1.0)


def test_the_middle_band_holds_both_its_borders() -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.5, 0.3, 0.2]])
    assert [row["count"] for row in report(probabilities, np.array([0, 0]))["bands"]] == [0, 2, 0]


def test_an_empty_band_has_no_accuracy() -> None:
    (high, *_) = report(PROBABILITIES[1:3], LABELS[1:3])["bands"]
    assert (high["count"], high["share"], high["accuracy"]) == (0, 0.0, None)


@REPEATABLE
@given(_judged)
def test_bands_are_the_reference(pairs: list[tuple[tuple[float, ...], int]]) -> None:
    judged = facts(*arrays(pairs))
    members = {
        "high": [pair for pair in judged if pair[0] > 0.75],
        "middle": [pair for pair in judged if 0.5 <= pair[0] <= 0.75],
        "low": [pair for pair in judged if pair[0] < 0.5],
    }
    for row in report(*arrays(pairs), low=0.5, high=0.75)["bands"]:
        right = [prediction == label for _, prediction, label in members[row["band"]]]
        assert (row["count"], row["correct"]) == (len(right), sum(right))
        assert row["accuracy"] == (sum(right) / len(right) if right else None)


def test_noise_histogram_by_hand() -> None:
    histogram = report(PROBABILITIES, LABELS, bins=4)["histogram"]
    assert histogram["edges"] == pytest.approx([1 / 3, 1 / 2, 2 / 3, 5 / 6, 1])
    assert histogram["clean"] == [1, 0, 0, 1]
    assert histogram["noisy"] == [0, 1, 0, 1]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_noise_histogram_holds_both_ends(kind: type[np.floating[Any]]) -> None:
    third = kind(1) / kind(3)
    histogram = report(np.array([[third] * 3, [1, 0, 0]], dtype=kind), np.array([0, 0]), bins=6)["histogram"]
    assert histogram["clean"] == [1, 0, 0, 0, 0, 1]
    assert (histogram["edges"][0], histogram["edges"][-1]) == (1 / 3, 1.0)


@REPEATABLE
@given(_judged, st.integers(2, 20))
def test_noise_histogram_is_the_reference(pairs: list[tuple[tuple[float, ...], int]], bins: int) -> None:
    histogram = report(*arrays(pairs), bins=bins)["histogram"]
    expected: dict[bool, list[int]] = {True: [0] * bins, False: [0] * bins}
    for confidence, prediction, label in facts(*arrays(pairs)):
        place = next((i for i, upper in enumerate(histogram["edges"][1:]) if confidence <= upper), bins - 1)
        expected[prediction == label][place] += 1
    assert (histogram["clean"], histogram["noisy"]) == (expected[True], expected[False])


def test_equal_coverage_by_hand() -> None:
    rows = report(PROBABILITIES, LABELS)["coverage"]
    # by confidence: wrong, right, wrong, right; 10 % and 20 % of four pairs are rounded up to one, 80 % to all
    assert [(row["percent"], row["count"]) for row in rows] == [(10, 1), (20, 1), (50, 2), (80, 4), (100, 4)]
    assert [row["accuracy"] for row in rows] == [0.0, 0.0, 0.5, 0.5, 0.5]


def test_equals_at_the_cut_count_with_their_mean() -> None:
    probabilities = np.array([[1.0, 0.0, 0.0]] * 4)
    _, _, half, _, _ = report(probabilities, np.array([0, 1, 1, 1]))["coverage"]
    assert half == {"percent": 50, "count": 2, "accuracy": 0.25}


@REPEATABLE
@given(_judged)
def test_equal_coverage_is_the_reference(pairs: list[tuple[tuple[float, ...], int]]) -> None:
    for row in report(*arrays(pairs))["coverage"]:
        assert row["count"] == math.ceil(Fraction(row["percent"] * len(pairs), 100))
        assert row["accuracy"] == pytest.approx(float(slow_accuracy_at(*arrays(pairs), row["count"])), abs=1e-12)


def test_mcnemar_by_hand() -> None:
    # 1 lost, 5 gained: 2 * (1 + 6) / 64
    before = np.array([True] + [False] * 5 + [True] * 3 + [False])
    after = np.array([False] + [True] * 5 + [True] * 3 + [False])
    found = metrics.mcnemar(before, after)
    assert found == {"both_correct": 3, "only_before": 1, "only_after": 5, "both_wrong": 1, "p_value": 14 / 64}


@pytest.mark.parametrize(("lost", "gained"), list(product((0, 1, 2, 5, 8, 13), repeat=2)))
def test_mcnemar_is_the_exact_binomial_test(lost: int, gained: int) -> None:
    before = np.array([True] * lost + [False] * gained, dtype=bool)
    assert metrics.mcnemar(before, ~before)["p_value"] == pytest.approx(float(slow_p_value(lost, gained)), rel=1e-14)


def test_mcnemar_stays_finite_for_thousands_of_changes() -> None:
    before = np.zeros(6000, dtype=bool)
    assert metrics.mcnemar(before, ~before)["p_value"] == 0.0
    before[:3000] = True
    assert metrics.mcnemar(before, ~before)["p_value"] == 1.0


@pytest.mark.parametrize(
    ("before", "after"),
    [([True], [True, False]), ([1, 0], [0, 1]), ([[True]], [[False]])],
    ids=["lengths", "integers", "matrix"],
)
def test_mcnemar_refuses_what_are_no_two_bool_vectors(before: list[Any], after: list[Any]) -> None:
    with pytest.raises(DataError, match="bool"):
        metrics.mcnemar(np.array(before), np.array(after))


# worked out from the closed form with z = 1.959964
@pytest.mark.parametrize(
    ("correct", "n", "lower", "upper"),
    [(5, 10, 0.236593, 0.763407), (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (80, 100, 0.711171, 0.866633)],
)
def test_wilson_interval_by_hand(correct: int, n: int, lower: float, upper: float) -> None:
    assert metrics.wilson_interval(correct, n) == pytest.approx((lower, upper), abs=2e-6)


@REPEATABLE
@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_ends_of_the_wilson_interval_solve_the_score_equation(case: tuple[int, int]) -> None:
    correct, n = case
    for end in metrics.wilson_interval(correct, n):
        assert 0 <= end <= 1
        assert n * (correct / n - end) ** 2 == pytest.approx(1.959963984540054**2 * end * (1 - end), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_interval_of_no_share_is_refused(correct: int, n: int) -> None:
    with pytest.raises(DataError, match="not a share"):
        metrics.wilson_interval(correct, n)


@REPEATABLE
@given(_judged)
def test_an_evaluation_is_json_and_agrees_with_its_parts(pairs: list[tuple[tuple[float, ...], int]]) -> None:
    probabilities, labels = arrays(pairs)
    evaluation = report(probabilities, labels, bins=7, low=0.4, high=0.8)
    assert json.loads(json.dumps(evaluation, allow_nan=False)) == evaluation
    assert evaluation["n"] == len(pairs)
    assert evaluation["accuracy"] == evaluation["correct"] / len(pairs)
    assert tuple(evaluation["accuracy_interval"]) == metrics.wilson_interval(evaluation["correct"], len(pairs))
    assert evaluation["ece"] == metrics.expected_calibration_error(probabilities, labels, 7)


@REPEATABLE
@given(_judged, st.randoms(use_true_random=False))
def test_the_order_of_the_pairs_changes_nothing(pairs: list[tuple[tuple[float, ...], int]], random: Any) -> None:
    shuffled = random.sample(pairs, len(pairs))
    one, other = (report(*arrays(side)) for side in (pairs, shuffled))
    assert one == other


@REPEATABLE
@given(st.lists(st.tuples(_row, _row, st.integers(0, 2)), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_the_order_of_the_pairs_changes_no_comparison(triples: list[tuple[Any, Any, int]], random: Any) -> None:
    def compared(rows: list[tuple[Any, Any, int]]) -> dict[str, Any]:
        before, after, labels = (np.array(column) for column in zip(*rows, strict=True))
        return metrics.compare(before, after, labels, Evaluate())

    assert compared(triples) == compared(random.sample(triples, len(triples)))


@REPEATABLE
@given(_judged)
def test_saying_everything_twice_doubles_counts_only(pairs: list[tuple[tuple[float, ...], int]]) -> None:
    once, twice = (report(*arrays(side)) for side in (pairs, pairs * 2))
    assert (twice["n"], twice["correct"]) == (2 * once["n"], 2 * once["correct"])
    for measure in ("accuracy", "macro_f1", "ece"):
        assert twice[measure] == pytest.approx(once[measure], abs=1e-12)
    for one, two in zip(once["bands"], twice["bands"], strict=True):
        assert (two["count"], two["accuracy"], two["share"]) == (2 * one["count"], one["accuracy"], one["share"])


@REPEATABLE
@given(_judged)
def test_full_coverage_is_the_accuracy_and_bins_hold_every_pair(pairs: list[tuple[tuple[float, ...], int]]) -> None:
    evaluation = report(*arrays(pairs))
    assert evaluation["coverage"][-1] == {"percent": 100, "count": len(pairs), "accuracy": evaluation["accuracy"]}
    assert sum(row["count"] for row in evaluation["reliability"]) == len(pairs)
    assert sum(row["count"] for row in evaluation["bands"]) == len(pairs)
    assert sum(evaluation["histogram"]["clean"]) == evaluation["correct"]
    assert sum(evaluation["histogram"]["noisy"]) == len(pairs) - evaluation["correct"]


def test_float32_and_float64_agree() -> None:
    generator = np.random.default_rng(3)
    probabilities = generator.dirichlet([1, 1, 1], 500)
    labels = generator.integers(0, 3, 500)
    wide, narrow = (report(side, labels) for side in (probabilities, probabilities.astype(np.float32)))
    assert narrow["bands"] == wide["bands"]
    assert narrow["ece"] == pytest.approx(wide["ece"], abs=1e-6)


def test_compare_by_hand() -> None:
    # the high band gets clean by losing its wrong pair; at the size it had before, it shows what that is worth
    before = np.array([[0.95, 0.05, 0.0], [0.94, 0.06, 0.0], [0.6, 0.4, 0.0], [0.4, 0.35, 0.25]])
    after = np.array([[0.97, 0.03, 0.0], [0.55, 0.45, 0.0], [0.4, 0.6, 0.0], [0.4, 0.35, 0.25]])
    found = metrics.compare(before, after, np.array([0, 1, 1, 2]), Evaluate())
    assert (found["n"], found["before"]["correct"], found["after"]["correct"], found["accuracy_gain"]) == (4, 1, 2, 0.25)
    high, middle, low = found["bands"]
    assert (high["band"], high["lower"], high["upper"]) == ("high", 0.9, 1.0)
    assert high["before"] == {"count": 2, "correct": 1, "share": 0.5, "accuracy": 0.5}
    assert high["after"] == {"count": 1, "correct": 1, "share": 0.25, "accuracy": 1.0}
    assert (middle["before"]["count"], middle["after"]["count"], middle["after"]["accuracy"]) == (1, 2, 0.5)
    assert low["before"] == low["after"] == {"count": 1, "correct": 0, "share": 0.25, "accuracy": 0.0}
    assert found["high_band_coverage"] == [
        {"size_of": "before", "count": 2, "before": 0.5, "after": 1.0},
        {"size_of": "after", "count": 1, "before": 1.0, "after": 1.0},
    ]
    assert found["coverage"][2] == {"percent": 50, "count": 2, "before": 0.5, "after": 1.0}
    assert found["mcnemar"] == {"both_correct": 1, "only_before": 0, "only_after": 1, "both_wrong": 2, "p_value": 1.0}
    assert found["histogram"]["before"] == {"clean": [0] * 9 + [1], "noisy": [1, 0, 0, 1, 0, 0, 0, 0, 0, 1]}
    assert sum(found["histogram"]["after"]["noisy"]) == 2


def test_an_emptied_high_band_is_compared_without_a_nan() -> None:
    unsure = np.full((4, 3), 1 / 3)
    found = metrics.compare(PROBABILITIES, unsure, LABELS, Evaluate())
    assert found["bands"][0]["after"] == {"count": 0, "correct": 0, "share": 0.0, "accuracy": None}
    assert found["high_band_coverage"][1] == {"size_of": "after", "count": 0, "before": None, "after": None}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@REPEATABLE
@given(st.lists(st.tuples(_row, _row, st.integers(0, 2)), min_size=1, max_size=30))
def test_comparing_the_other_way_round_is_the_mirror(triples: list[tuple[Any, Any, int]]) -> None:
    before, after, labels = (np.array(column) for column in zip(*triples, strict=True))
    there, back = metrics.compare(before, after, labels, Evaluate()), metrics.compare(after, before, labels, Evaluate())
    assert there["accuracy_gain"] == -back["accuracy_gain"]
    assert (there["before"], there["after"]) == (back["after"], back["before"])
    assert there["mcnemar"]["p_value"] == back["mcnemar"]["p_value"]
    for one, other in zip(there["coverage"], back["coverage"], strict=True):
        assert (one["before"], one["after"], one["count"]) == (other["after"], other["before"], other["count"])


def test_both_sides_of_a_comparison_are_the_evaluations() -> None:
    after = PROBABILITIES[:, [0, 2, 1]]
    found = metrics.compare(PROBABILITIES, after, LABELS, Evaluate())
    for side, probabilities in (("before", PROBABILITIES), ("after", after)):
        evaluation = report(probabilities, LABELS)
        assert found[side] == {key: evaluation[key] for key in found[side]}
        assert found["histogram"][side]["clean"] == evaluation["histogram"]["clean"]
        assert [row[side] for row in found["coverage"]] == [row["accuracy"] for row in evaluation["coverage"]]


_WRONG: dict[str, tuple[Any, Any, str]] = {
    "one label too few": (PROBABILITIES, LABELS[:-1], r"\(4, 3\) and \(3,\)"),
    "two classes": (PROBABILITIES[:, :2], LABELS, r"\(4, 2\)"),
    "one pair without its axis": (PROBABILITIES[0], LABELS[:1], r"\(3,\)"),
    "labels as a column": (PROBABILITIES, LABELS[:, None], r"\(4, 1\)"),
    "no pairs": (np.empty((0, 3)), np.empty(0, dtype=int), "no labelled pairs"),
    "label 3": (PROBABILITIES, np.array([0, 1, 3, 0]), "label 3 in row 2"),
    "label -1": (PROBABILITIES, np.array([-1, 1, 2, 0]), "label -1 in row 0"),
    "no label": (PROBABILITIES, np.array([0, 1, None, 0]), "labelled pairs only"),
    "labels as floats": (PROBABILITIES, LABELS.astype(float), "float64"),
    "logits": (np.log(PROBABILITIES), LABELS, "row 0.*softmax"),
    "percentages": (100 * PROBABILITIES, LABELS, "row 0"),
    "whole numbers": (np.eye(3, dtype=int), np.array([0, 1, 2]), "int64"),
    "negative part": (np.array([[1.2, -0.2, 0.0]]), np.array([0]), "row 0"),
    "NaN": (np.array([[0.2, 0.3, 0.5], [np.nan, 0.5, 0.5]]), np.array([0, 1]), "row 1"),
    "infinite": (np.array([[np.inf, 0.5, 0.5]]), np.array([0]), "row 0"),
    "sum of 0.99": (np.array([[0.5, 0.3, 0.19]]), np.array([0]), "row 0"),
}


@pytest.mark.parametrize("case", _WRONG)
def test_what_cannot_be_trusted_is_refused_by_every_measure(case: str) -> None:
    probabilities, labels, message = _WRONG[case]
    measures: list[Any] = [
        lambda rows, truth: metrics.expected_calibration_error(rows, truth, 10),
        report,
        lambda rows, truth: metrics.compare(rows, rows, truth, Evaluate()),
    ]
    for measure in measures:
        with pytest.raises(DataError, match=message):
            measure(probabilities, labels)


def test_compare_refuses_other_pairs_on_either_side() -> None:
    for before, after in ((PROBABILITIES[:3], PROBABILITIES), (PROBABILITIES, PROBABILITIES[:3])):
        with pytest.raises(DataError, match="expected probabilities"):
            metrics.compare(before, after, LABELS, Evaluate())


def test_labels_may_be_the_contracts_enum() -> None:
    assert report(PROBABILITIES, [Label.ENTAILMENT, Label.NEUTRAL, Label.CONTRADICTION, Label.ENTAILMENT])["accuracy"] == 0.5


def test_a_sum_off_by_float32_rounding_is_accepted() -> None:
    assert report(np.array([[0.7, 0.2, 0.1]]) * (1 + 1e-6), np.array([0]))["accuracy"] == 1.0


def test_coverage_shares_grow_to_all_pairs() -> None:
    assert all(one < other for one, other in pairwise(metrics.COVERAGE))
    assert metrics.COVERAGE[-1] == 100
