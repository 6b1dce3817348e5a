"""Each formula against a slow reference in Python floats, and what its gradient must do."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conlst.method.uncertainty import (
    dissonance,
    evidence_of,
    evidential_loss,
    evidential_probabilities,
    homoscedastic_loss,
    noisy_log_probabilities,
    surest,
    vacuity,
)

# no deadline: the machine may be busy with a training
REPEATABLE = settings(deadline=None, derandomize=True)
ROWS = st.integers(2, 5).flatmap(lambda classes: st.lists(st.floats(-12, 12, width=32), min_size=classes, max_size=classes))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_evidence(logits: list[float]) -> list[float]:
    """``elu(x) + 1``."""
    return [math.exp(x) if x <= 0 else x + 1 for x in logits]


def slow_evidential_loss(evidence: list[float], label: int) -> float:
    strength = math.fsum(e + 1 for e in evidence)
    total = 0.0
    for index, e in enumerate(evidence):
        p = (e + 1) / strength
        total += ((index == label) - p) ** 2 + p * (1 - p) / (strength + 1)
    return total


def slow_dissonance(evidence: list[float]) -> float:
    strength = math.fsum(e + 1 for e in evidence)
    belief = [e / strength for e in evidence]
    total = 0.0
    for k, b_k in enumerate(belief):
        above = below = 0.0
        for j, b_j in enumerate(belief):
            if j != k:
                above += b_j * (1 - abs(b_j - b_k) / (b_j + b_k) if b_j + b_k else 0.0)
                below += b_j
        total += b_k * above / below if below else 0.0
    return total


class TestEvidential:
    @REPEATABLE
    @given(ROWS)
    def test_equal_the_formulas(self, logits: list[float]) -> None:
        evidence = evidence_of(torch.tensor([logits]))
        expected = slow_evidence(logits)
        strength = math.fsum(e + 1 for e in expected)
        assert evidence[0].tolist() == pytest.approx(expected, rel=1e-5)
        assert evidential_probabilities(evidence)[0].tolist() == pytest.approx([(e + 1) / strength for e in expected], rel=1e-5)
        assert vacuity(evidence).tolist() == pytest.approx([len(logits) / strength], rel=1e-5)
        assert dissonance(evidence).tolist() == pytest.approx([slow_dissonance(expected)], rel=1e-4, abs=1e-6)
        for label in range(len(logits)):
            loss = evidential_loss(evidence, torch.tensor([label]))
            assert loss.tolist() == pytest.approx([slow_evidential_loss(expected, label)], rel=1e-4, abs=1e-6)

    def test_evidence_keeps_the_order_and_the_gradient_where_elu_rounds(self) -> None:
        logits = torch.tensor([[-30.0, -20.0, 0.0, 20.0]], requires_grad=True)
        assert torch.nn.functional.elu(logits.detach())[0, 0] + 1 == 0
        evidence = evidence_of(logits)
        assert (evidence.diff() > 0).all()
        evidence.sum().backward()
        assert logits.grad is not None
        assert logits.grad[0].tolist() == pytest.approx([math.exp(-30), math.exp(-20), 1.0, 1.0])

    def test_half_precision_logits_are_read_in_float32(self) -> None:
        assert evidence_of(torch.ones(1, 3, dtype=torch.bfloat16)).dtype == torch.float32

    def test_every_pair_has_its_own_loss_and_more_right_evidence_lowers_it(self) -> None:
        rows = torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [99.0, 0.0, 0.0]])
        none, right, wrong, much = evidential_loss(rows, torch.zeros(4, dtype=torch.int64)).tolist()
        # without evidence: p = 1/3, S = 3: 4/9 + 2/9 + 3 (2/9) / 4
        assert none == pytest.approx(6 / 9 + 6 / 36)
        assert much < right < none < wrong

    def test_gradient_descent_makes_it_sure_of_the_label(self) -> None:
        logits = torch.zeros(1, 3, requires_grad=True)
        for _ in range(200):
            (gradient,) = torch.autograd.grad(evidential_loss(evidence_of(logits), torch.tensor([1])).sum(), logits)
            logits = (logits - gradient).detach().requires_grad_()
        assert evidential_probabilities(evidence_of(logits))[0, 1] > 0.6
        assert logits[0].argmax() == 1

    @pytest.mark.parametrize(
        ("evidence", "lack", "conflict"),
        [
            ([0.0, 0.0, 0.0], 1.0, 0.0),  # nothing is known
            ([97.0, 0.0, 0.0], 0.03, 0.0),  # one class
            ([48.5, 48.5, 0.0], 0.03, 0.97),  # two at odds
            ([99.0, 99.0, 99.0], 0.01, 0.99),  # all at odds
        ],
    )
    def test_worked_examples_tell_ignorance_from_conflict(self, evidence: list[float], lack: float, conflict: float) -> None:
        row = torch.tensor([evidence])
        assert vacuity(row).item() == pytest.approx(lack)
        assert dissonance(row).item() == pytest.approx(conflict)

    @REPEATABLE
    @given(ROWS)
    def test_stand_between_zero_and_one_whatever_the_order_of_classes(self, logits: list[float]) -> None:
        evidence = evidence_of(torch.tensor([logits]))
        assert 0 <= dissonance(evidence).item() <= 1 + 1e-6
        assert 0 < vacuity(evidence).item() <= 1
        torch.testing.assert_close(dissonance(evidence.flip(1)), dissonance(evidence))


class TestHomoscedastic:
    def test_equals_the_formula(self) -> None:
        losses, spread = [0.3, 2.0, 0.0], [0.5, -1.0, 3.0]
        found = homoscedastic_loss(torch.tensor(losses), torch.tensor(spread))
        assert found.tolist() == pytest.approx([value * math.exp(-s) + s / 2 for value, s in zip(losses, spread, strict=True)])

    def test_a_log_variance_of_zero_changes_nothing(self) -> None:
        losses = torch.tensor([0.3, 2.0])
        assert homoscedastic_loss(losses, torch.zeros(2)).equal(losses)

    @pytest.mark.parametrize("loss", [0.1, 0.5, 3.0])
    def test_the_best_variance_is_twice_the_loss(self, loss: float) -> None:
        best = torch.tensor([math.log(2 * loss)], requires_grad=True)
        homoscedastic_loss(torch.tensor([loss]), best).sum().backward()
        assert best.grad is not None
        assert best.grad.item() == pytest.approx(0, abs=1e-6)


def slow_noisy(logits: list[list[float]], scales: list[float], noise: Tensor) -> list[list[float]]:
    """Average of softmaxes in probability space, draw by draw."""
    rows = []
    for index, (row, scale) in enumerate(zip(logits, scales, strict=True)):
        total = [0.0] * len(row)
        for draw in noise.tolist():
            moved = [x + math.exp(scale) * e for x, e in zip(row, draw[index], strict=True)]
            powers = [math.exp(x - max(moved)) for x in moved]
            total = [t + power / math.fsum(powers) for t, power in zip(total, powers, strict=True)]
        rows.append([math.log(t / len(noise)) for t in total])
    return rows


class TestNoisyLogProbabilities:
    @REPEATABLE
    @given(st.integers(1, 4), st.integers(2, 4), st.integers(1, 12), st.integers(0, 2**30))
    def test_equal_the_average_of_softmaxes(self, batch: int, classes: int, samples: int, seed: int) -> None:
        logits, scale = torch.randn(batch, classes, generator=seeded(seed)) * 3, torch.randn(batch, generator=seeded(seed + 1))
        found = noisy_log_probabilities(logits, scale, samples, seeded(7))
        noise = torch.randn(samples, batch, classes, generator=seeded(7))
        for row, expected in zip(found.tolist(), slow_noisy(logits.tolist(), scale.tolist(), noise), strict=True):
            assert row == pytest.approx(expected, rel=1e-4, abs=1e-5)
        torch.testing.assert_close(found.exp().sum(1), torch.ones(batch))

    def test_the_generator_and_the_number_of_samples_decide(self) -> None:
        logits, scale = torch.tensor([[2.0, 0.0, -1.0]]), torch.zeros(1)
        first = noisy_log_probabilities(logits, scale, 5, seeded(1))
        assert noisy_log_probabilities(logits, scale, 5, seeded(1)).equal(first)
        assert not noisy_log_probabilities(logits, scale, 5, seeded(2)).equal(first)
        assert not noisy_log_probabilities(logits, scale, 6, seeded(1)).equal(first)

    def test_no_noise_is_the_softmax_and_more_noise_is_less_sure(self) -> None:
        logits = torch.tensor([[3.0, 0.0, -1.0]]).repeat(3, 1)
        none, some, much = noisy_log_probabilities(logits, torch.tensor([-50.0, 0.0, 2.0]), 4000, seeded(1))
        torch.testing.assert_close(none, logits[0].log_softmax(0))
        assert none.max() > some.max() > much.max()

    def test_the_gradient_reaches_logits_and_scale_and_is_finite_where_a_probability_underflows(self) -> None:
        logits = torch.tensor([[-200.0, 0.0, 1.0]], requires_grad=True)
        scale = torch.zeros(1, requires_grad=True)
        loss = -noisy_log_probabilities(logits, scale, 10, seeded(1))[0, 0]
        assert 190 < loss.item() < 210
        loss.backward()
        assert logits.grad is not None
        assert logits.grad[0, 0].item() == pytest.approx(-1.0, abs=1e-4)
        assert scale.grad is not None
        assert scale.grad.isfinite().all()
        assert scale.grad.item() != 0

    def test_a_wrong_label_asks_for_more_noise_and_a_right_one_for_less(self) -> None:
        scale = torch.zeros(2, requires_grad=True)
        log_p = noisy_log_probabilities(torch.tensor([[3.0, 0.0, 0.0]]).repeat(2, 1), scale, 2000, seeded(1))
        (-log_p[0, 1] - log_p[1, 0]).backward()
        assert scale.grad is not None
        assert scale.grad[0] < 0 < scale.grad[1]


class TestSurest:
    @REPEATABLE
    @given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=30), st.integers(1, 6))
    def test_equals_a_loop(self, rows: list[tuple[int, int]], count: int) -> None:
        expected: list[int] = []
        for label in range(3):
            members = [index for index, row in enumerate(rows) if row[1] == label]
            expected += sorted(members, key=lambda index: (-rows[index][0], index))[:count]
        certainty, predicted = torch.tensor([float(c) for c, _ in rows]), torch.tensor([p for _, p in rows], dtype=torch.int64)
        assert surest(certainty, predicted, count).tolist() == sorted(expected)

    def test_a_class_is_not_filled_up_from_another(self) -> None:
        found = surest(torch.tensor([0.9, 0.8, 0.7, 0.4]), torch.tensor([0, 0, 0, 2]), 2)
        assert found.tolist() == [0, 1, 3]
