"""The promotion gate: a pure decision from two sets of metrics and the configured bars. Refusal is the default."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from conlst.contract.config import Gate

Metrics = Mapping[str, float]

_SHARES = ("accuracy", "ece", "zero_shot_accuracy")
_REQUIRED = (*_SHARES, "n", "parity")
# 0.35 - 0.34 is a little less than 0.01 in binary; a candidate exactly at a bar passes
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Decision:
    """Whether to promote, and every reason: all that failed, or all that was passed."""

    promote: bool
    reasons: tuple[str, ...]


def decide(candidate: Metrics, champion: Metrics | None, gate: Gate) -> Decision:
    """Hold a candidate against the configured bars and against the champion, or zero-shot when there is no champion.

    Args:
        candidate: accuracy, ece and zero_shot_accuracy as shares of one, n (labelled pairs they were measured on) and
            parity (largest difference between ONNX and torch logits).
        champion: the same metrics of the version now served; only its accuracy is compared.
    """
    unknown = [problem for name in _REQUIRED if (problem := _problem(candidate, name, "candidate"))]
    rival, rival_name, rival_key = (candidate, "zero-shot", "zero_shot_accuracy")
    if champion is not None:
        rival, rival_name, rival_key = (champion, "champion", "accuracy")
        unknown += [problem for problem in [_problem(champion, "accuracy", "champion")] if problem]
    if unknown:
        return Decision(False, tuple(unknown))

    accuracy, gain = candidate["accuracy"], candidate["accuracy"] - rival[rival_key]
    checks = (
        (candidate["n"] >= gate.min_pairs, f"{candidate['n']:.0f} labelled pairs", f"at least {gate.min_pairs}"),
        (accuracy >= gate.min_accuracy - _ROUNDING, f"accuracy {accuracy:.4f}", f"at least {gate.min_accuracy:g}"),
        (
            gain >= gate.min_gain - _ROUNDING,
            f"gain {gain:+.4f} over {rival_name} {rival[rival_key]:.4f}",
            f"at least {gate.min_gain:g}",
        ),
        (candidate["ece"] <= gate.max_ece + _ROUNDING, f"ece {candidate['ece']:.4f}", f"at most {gate.max_ece:g}"),
        (candidate["parity"] <= gate.max_parity, f"parity {candidate['parity']:.2e}", f"at most {gate.max_parity:g}"),
    )
    failed = tuple(f"{value}: must be {bar}" for passed, value, bar in checks if not passed)
    return Decision(False, failed) if failed else Decision(True, tuple(f"{value}: {bar}" for _, value, bar in checks))


def _problem(metrics: Metrics, name: str, whose: str) -> str | None:
    value = metrics.get(name)
    if value is None:
        return f"{name} of the {whose} is missing"
    if not math.isfinite(value):
        return f"{name} of the {whose} is {value}"
    if value < 0 or (name in _SHARES and value > 1):
        return f"{name} of the {whose} is {value:g}: must be {'a share of one' if name in _SHARES else 'positive'}"
    return None
