import math

import pytest

from conlst.contract.config import Gate
from conlst.platform.gate import Paired, decide

GATE = Gate(min_accuracy=0.6, min_gain=0.01, max_ece=0.1, min_pairs=100, max_parity=1e-4)
GOOD = {"accuracy": 0.7, "ece": 0.05, "n": 150, "zero_shot_accuracy": 0.65, "parity": 1e-5}
CHAMPION = {"accuracy": 0.68}


@pytest.mark.parametrize(
    ("change", "champion", "words"),
    [
        ({"n": 99}, None, ["99 labelled pairs"]),
        ({"accuracy": 0.59, "zero_shot_accuracy": 0.5}, None, ["accuracy 0.5900"]),
        ({"zero_shot_accuracy": 0.6901}, None, ["gain +0.0099 over zero-shot"]),
        ({}, {"accuracy": 0.6901}, ["gain +0.0099 over champion"]),
        ({}, {"accuracy": 0.8}, ["gain -0.1000 over champion"]),
        ({"ece": 0.11}, CHAMPION, ["ece 0.1100"]),
        ({"parity": 2e-4}, CHAMPION, ["parity 2.00e-04"]),
        ({"n": 5, "accuracy": 0.2, "ece": 0.9, "parity": 1}, CHAMPION, ["pairs", "accuracy", "gain", "ece", "parity"]),
    ],
)
def test_refuses_and_names_everything_that_failed(change, champion, words):
    decision = decide(GOOD | change, champion, GATE)
    assert not decision.promote
    assert len(decision.reasons) == len(words)
    assert all(word in reason for word, reason in zip(words, decision.reasons, strict=True))


@pytest.mark.parametrize("name", sorted(GOOD))
@pytest.mark.parametrize("value", [None, math.nan, math.inf, -0.1])
def test_an_unknown_metric_refuses_by_name(name, value):
    metrics = {key: number for key, number in (GOOD | {name: value}).items() if number is not None}
    decision = decide(metrics, None, GATE)
    assert not decision.promote
    assert len(decision.reasons) == 1
    assert name in decision.reasons[0]


def test_all_unknown_metrics_are_named():
    assert len(decide({}, {}, GATE).reasons) == len(GOOD) + 1


def test_percent_is_refused_instead_of_passing_every_bar():
    decision = decide(GOOD | {"accuracy": 70.0}, None, GATE)
    assert not decision.promote
    assert "share of one" in decision.reasons[0]


@pytest.mark.parametrize("champion", [{}, {"accuracy": math.nan}])
def test_a_champion_of_unknown_accuracy_refuses(champion):
    decision = decide(GOOD, champion, GATE)
    assert not decision.promote
    assert "champion" in decision.reasons[0]


@pytest.mark.parametrize(("champion", "rival"), [(None, "zero-shot"), (CHAMPION, "champion")])
def test_promotes_and_says_why(champion, rival):
    decision = decide(GOOD, champion, GATE)
    assert decision.promote
    assert len(decision.reasons) == 5
    assert rival in decision.reasons[2]


def test_exactly_at_every_bar_passes():
    # 0.35 - 0.34 is below 0.01 in floating point
    bars = Gate(min_accuracy=0.35, min_gain=0.01, max_ece=0.1, min_pairs=100, max_parity=1e-4)
    metrics = {"accuracy": 0.35, "ece": 0.1, "n": 100, "zero_shot_accuracy": 0.34, "parity": 1e-4}
    assert 0.35 - 0.34 < 0.01
    assert decide(metrics, None, bars).promote


CLEARLY_WORSE = Paired(only_champion=40, only_candidate=15)


def test_a_clear_loss_on_the_same_pairs_is_refused_whatever_the_margin():
    lenient = GATE.model_copy(update={"min_gain": -0.5})
    decision = decide(GOOD, CHAMPION, lenient, CLEARLY_WORSE)
    assert not decision.promote
    assert len(decision.reasons) == 1
    assert "15 pairs won and 40 lost" in decision.reasons[0]
    assert decide(GOOD, CHAMPION, lenient, Paired(only_champion=20, only_candidate=15)).promote
    assert decide(GOOD, CHAMPION, lenient, Paired(only_champion=15, only_candidate=40)).promote


@pytest.mark.parametrize(("significance", "promoted"), [(0.05, False), (0.01, True)])
def test_significance_says_what_a_clear_loss_is(significance, promoted):
    lenient = GATE.model_copy(update={"min_gain": -0.5, "significance": significance})
    lost = Paired(only_champion=20, only_candidate=8)
    assert 0.01 < lost.p_value < 0.05
    assert decide(GOOD, CHAMPION, lenient, lost).promote == promoted


def test_the_p_value_is_mcnemars():
    assert Paired(0, 5).p_value == pytest.approx(2 / 32)
    assert Paired(3, 3).p_value == 1


def test_a_language_may_have_its_own_margin():
    gate = GATE.model_copy(update={"margins": {"sw": -0.02}})
    assert gate.of("sw").min_gain == -0.02
    assert gate.of("fr").min_gain == GATE.min_gain


LABEL_FREE = Gate(evidence="none", min_accuracy=0.6, min_gain=0.0, min_pairs=100, max_english_fall=0.01, min_label_share=0.15)
ESTIMATED = {
    "estimated_accuracy": 0.7,
    "english_accuracy": 0.745,
    "source_english_accuracy": 0.75,
    "least_label_share": 0.3,
    "view_agreement": 0.85,
    "unlabelled_n": 500,
    "parity": 1e-5,
}


def test_without_labels_the_estimates_decide():
    decision = decide(ESTIMATED, None, LABEL_FREE)
    assert decision.promote
    assert len(decision.reasons) == 6
    assert not any("zero-shot" in reason for reason in decision.reasons)
    assert "over champion" in " ".join(decide(ESTIMATED, {"estimated_accuracy": 0.65}, LABEL_FREE).reasons)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"unlabelled_n": 99}, "unlabelled pairs"),
        ({"estimated_accuracy": 0.59}, "estimated accuracy"),
        ({"english_accuracy": 0.739}, "English fell"),
        ({"least_label_share": 0.14}, "rarest label"),
        ({"view_agreement": 0.69}, "dropout views"),
        ({"parity": 1e-3}, "parity"),
    ],
)
def test_without_labels_each_bar_refuses(change, word):
    decision = decide(ESTIMATED | change, None, LABEL_FREE)
    assert not decision.promote
    assert len(decision.reasons) == 1
    assert word in decision.reasons[0]


def test_labels_do_not_stand_in_for_estimates_nor_estimates_for_labels():
    assert not decide(ESTIMATED, {"estimated_accuracy": 0.71}, LABEL_FREE).promote
    assert len(decide(GOOD, None, LABEL_FREE).reasons) == 6
    assert not decide(ESTIMATED, None, GATE).promote
    assert "champion" in decide(ESTIMATED, CHAMPION, LABEL_FREE).reasons[0]
