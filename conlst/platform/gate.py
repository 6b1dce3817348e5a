"""The promotion gate: a pure decision from two sets of metrics and the configured bars. Refusal is the default."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from conlst.contract.config import Gate
from conlst.contract.paired_test import sign_test

Metrics = Mapping[str, float]
# whether it passed, what was measured, what it had to be
Check = tuple[bool, str, str]

_LABELLED = ("accuracy", "ece", "zero_shot_accuracy", "n", "parity")
_UNLABELLED = (
    *("estimated_accuracy", "english_accuracy", "source_english_accuracy"),
    *("least_label_share", "view_agreement", "unlabelled_n", "parity"),
)
_NOT_SHARES = ("n", "unlabelled_n", "parity")
# 0.35 - 0.34 is a little less than 0.01 in binary; a candidate exactly at a bar passes
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Decision:
    """Whether to promote, and every reason: all that failed, or all that was passed."""

    promote: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Paired:
    """Test pairs that only one of the two has right."""

    only_champion: int
    only_candidate: int

    @property
    def p_value(self) -> float:
        """Of McNemar's exact test, two-sided."""
        changed = self.only_champion + self.only_candidate
        return sign_test(min(self.only_champion, self.only_candidate), changed)


def decide(candidate: Metrics, champion: Metrics | None, gate: Gate, paired: Paired | None = None) -> Decision:
    """Hold a candidate against the configured bars and against the champion, or zero-shot when there is no champion.

    Args:
        candidate: with ``gate.evidence`` labels: accuracy, ece and zero_shot_accuracy as shares of one, n (labelled pairs they
            were measured on) and parity (largest difference between ONNX and torch logits). With none: what
            :mod:`conlst.reports.estimate` makes of unlabelled pairs, and the accuracy on English dev now and before adaptation.
        champion: the same metrics of the version now served; only its accuracy is compared, estimated or measured.
        gate: the bars.
        paired: both on the same labelled pairs, if their predictions were kept.
    """
    if gate.evidence == "labels":
        return _judged(candidate, champion, _LABELLED, ("accuracy",), lambda: _labelled(candidate, champion, gate, paired))
    return _judged(candidate, champion, _UNLABELLED, ("estimated_accuracy",), lambda: _unlabelled(candidate, champion, gate))


def _labelled(candidate: Metrics, champion: Metrics | None, gate: Gate, paired: Paired | None) -> Iterable[Check]:
    yield candidate["n"] >= gate.min_pairs, f"{candidate['n']:.0f} labelled pairs", f"at least {gate.min_pairs}"
    accuracy = candidate["accuracy"]
    yield accuracy >= gate.min_accuracy - _ROUNDING, f"accuracy {accuracy:.4f}", f"at least {gate.min_accuracy:g}"
    yield _gain(accuracy, champion, candidate, "accuracy", gate)
    if paired is not None:
        # a margin alone would let a real loss through on many pairs
        clearly_worse = paired.only_champion > paired.only_candidate and paired.p_value < gate.significance
        told = f"{paired.only_candidate} pairs won and {paired.only_champion} lost against the champion, p {paired.p_value:.2g}"
        yield not clearly_worse, told, f"not worse with p below {gate.significance:g}"
    yield candidate["ece"] <= gate.max_ece + _ROUNDING, f"ece {candidate['ece']:.4f}", f"at most {gate.max_ece:g}"
    yield _parity(candidate, gate)


def _unlabelled(candidate: Metrics, champion: Metrics | None, gate: Gate) -> Iterable[Check]:
    n = candidate["unlabelled_n"]
    yield n >= gate.min_pairs, f"{n:.0f} unlabelled pairs", f"at least {gate.min_pairs}"
    estimate = candidate["estimated_accuracy"]
    yield estimate >= gate.min_accuracy - _ROUNDING, f"estimated accuracy {estimate:.4f}", f"at least {gate.min_accuracy:g}"
    # not against zero-shot: self-training makes models surer than right, and every estimate takes that for a gain
    if champion is not None:
        yield _gain(estimate, champion, candidate, "estimated_accuracy", gate)
    fall = candidate["source_english_accuracy"] - candidate["english_accuracy"]
    yield fall <= gate.max_english_fall + _ROUNDING, f"English fell by {fall:.4f}", f"at most {gate.max_english_fall:g}"
    least = candidate["least_label_share"]
    yield least >= gate.min_label_share - _ROUNDING, f"rarest label {least:.4f} of pairs", f"at least {gate.min_label_share:g}"
    alike = candidate["view_agreement"]
    yield alike >= gate.min_agreement - _ROUNDING, f"dropout views agree on {alike:.4f}", f"at least {gate.min_agreement:g}"
    yield _parity(candidate, gate)


def _gain(value: float, champion: Metrics | None, candidate: Metrics, name: str, gate: Gate) -> Check:
    rival, whose = (candidate[f"zero_shot_{name}"], "zero-shot") if champion is None else (champion[name], "champion")
    gain = value - rival
    return gain >= gate.min_gain - _ROUNDING, f"gain {gain:+.4f} over {whose} {rival:.4f}", f"at least {gate.min_gain:g}"


def _parity(candidate: Metrics, gate: Gate) -> Check:
    return candidate["parity"] <= gate.max_parity, f"parity {candidate['parity']:.2e}", f"at most {gate.max_parity:g}"


def _judged(
    candidate: Metrics,
    champion: Metrics | None,
    required: Sequence[str],
    of_champion: Sequence[str],
    checks: Callable[[], Iterable[Check]],
) -> Decision:
    unknown = [problem for name in required if (problem := _problem(candidate, name, "candidate"))]
    if champion is not None:
        unknown += [problem for name in of_champion if (problem := _problem(champion, name, "champion"))]
    if unknown:
        return Decision(False, tuple(unknown))
    told = list(checks())
    failed = tuple(f"{value}: must be {bar}" for passed, value, bar in told if not passed)
    return Decision(False, failed) if failed else Decision(True, tuple(f"{value}: {bar}" for _, value, bar in told))


def _problem(metrics: Metrics, name: str, whose: str) -> str | None:
    value = metrics.get(name)
    if value is None:
        return f"{name} of the {whose} is missing"
    if not math.isfinite(value):
        return f"{name} of the {whose} is {value}"
    is_share = name not in _NOT_SHARES
    if value < 0 or (is_share and value > 1):
        return f"{name} of the {whose} is {value:g}: must be {'a share of one' if is_share else 'positive'}"
    return None
