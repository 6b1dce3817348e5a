import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conlst.contract.config import SelfTrain
from conlst.method.thresholds import (
    coverage_bar,
    flexmatch_bars,
    freematch_bars,
    quantile_bars,
    select,
    softmatch_weights,
    trust,
)

# no deadline: the machine may be busy with a training
REPEATABLE = settings(deadline=None, derandomize=True)


def naive_bars(rows: list[list[float]], classes: int, threshold: float) -> list[float]:
    """Zhang et al. (2021), eq. 5-9, with the convex map and the warm-up, pair by pair and without a floor."""
    learned, unused = [0] * classes, 0
    for row in rows:
        if max(row) >= threshold:
            learned[row.index(max(row))] += 1
        else:
            unused += 1
    best = max(max(learned), unused)
    bars = []
    for sigma in learned:
        beta = sigma / best if best else 0.0
        bars.append(threshold * beta / (2 - beta))
    return bars


def pool(*groups: tuple[int, int, float]) -> Tensor:
    """Rows of (how many, class, confidence); what is left goes to the other two classes in equal parts."""
    rows = []
    for count, label, confidence in groups:
        row = [(1 - confidence) / 2] * 3
        row[label] = confidence
        rows += [row] * count
    return torch.tensor(rows).reshape(-1, 3)


class TestFlexmatchBars:
    @REPEATABLE
    @given(st.integers(0, 80), st.integers(2, 6), st.sampled_from([0.5, 0.75, 0.875]), st.floats(0, 6), st.integers(0, 2**30))
    def test_equal_the_formula(self, size: int, classes: int, threshold: float, sharpness: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        q = (torch.randn(size, classes, generator=generator) * sharpness).softmax(1)
        bare = naive_bars(q.tolist(), classes, threshold)
        for floor in (0.0, 0.4, 0.5):
            found = flexmatch_bars(q, threshold, floor)
            assert found.shape == (classes,)
            assert found.tolist() == pytest.approx([max(bar, floor) for bar in bare], abs=1e-6)

    def test_a_worked_example(self) -> None:
        # σ = 6, 3, 0 and 4 unused: β = 1, 1/2, 0
        q = pool((6, 0, 0.95), (3, 1, 0.92), (4, 2, 0.6))
        assert flexmatch_bars(q, 0.9, 0.0).tolist() == pytest.approx([0.9, 0.9 * 0.5 / 1.5, 0.0])

    def test_many_unused_pairs_lower_every_bar(self) -> None:
        # the warm-up: 12 unused against 6 of the best class
        q = pool((6, 0, 0.95), (3, 1, 0.92), (12, 2, 0.6))
        assert flexmatch_bars(q, 0.9, 0.0).tolist() == pytest.approx([0.9 * 0.5 / 1.5, 0.9 * 0.25 / 1.75, 0.0])

    def test_threshold_itself_counts_as_learned(self) -> None:
        assert flexmatch_bars(pool((1, 0, 0.9)), 0.9, 0.0)[0].item() == pytest.approx(0.9)
        assert flexmatch_bars(pool((1, 0, 0.8999)), 0.9, 0.0)[0].item() == 0

    def test_the_best_class_has_the_threshold_for_a_bar(self) -> None:
        assert flexmatch_bars(pool((5, 0, 0.95), (5, 1, 0.95), (5, 2, 0.95)), 0.9, 0.5).tolist() == pytest.approx([0.9] * 3)

    @pytest.mark.parametrize("floor", [1 / 3, 0.5, 0.7])
    def test_a_pool_that_nothing_is_learned_of_gets_the_floor(self, floor: float) -> None:
        assert flexmatch_bars(pool((7, 0, 0.5), (3, 2, 0.89)), 0.9, floor).tolist() == pytest.approx([floor] * 3)

    def test_no_pool_gets_the_floor(self) -> None:
        assert flexmatch_bars(torch.empty(0, 3), 0.9, 0.5).tolist() == [0.5] * 3

    @REPEATABLE
    @given(st.integers(1, 60), st.floats(0.34, 0.99), st.integers(0, 2**30))
    def test_stand_between_floor_and_threshold(self, size: int, threshold: float, seed: int) -> None:
        q = (torch.randn(size, 3, generator=torch.Generator().manual_seed(seed)) * 4).softmax(1)
        bars = flexmatch_bars(q, threshold, 1 / 3)
        assert (bars >= 1 / 3 - 1e-6).all()
        assert (bars <= threshold + 1e-6).all()
        order = torch.randperm(size, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(flexmatch_bars(q[order], threshold, 1 / 3), bars)
        torch.testing.assert_close(flexmatch_bars(q[:, [2, 0, 1]], threshold, 1 / 3), bars[[2, 0, 1]])

    def test_without_a_floor_a_bar_falls_below_chance(self) -> None:
        # the reason for the floor: class 1 is learned half as well as class 0 (β = 0.51), as any of three classes may be
        q = pool((100, 0, 0.97), (51, 1, 0.97), (100, 2, 0.97), (40, 1, 0.34))
        bare = flexmatch_bars(q, 0.95, 0.0)
        assert bare[1] < 1 / 3
        chance = q.argmax(1) == 1
        assert select(q, bare)[chance].all()  # every guess of the class passes
        assert select(q, flexmatch_bars(q, 0.95, 0.5))[chance].sum() == 51  # the sure ones alone

    @pytest.mark.parametrize(("learned", "below"), [(51, True), (53, False)])
    def test_chance_is_crossed_where_beta_is_0_5195(self, learned: int, below: bool) -> None:
        bars = flexmatch_bars(pool((100, 0, 0.97), (learned, 1, 0.97), (100, 2, 0.97)), 0.95, 0.0)
        assert (bars[1].item() < 1 / 3) is below


class TestSelect:
    def test_each_pair_by_the_bar_of_its_own_class(self) -> None:
        q = pool((1, 0, 0.8), (1, 1, 0.8), (1, 2, 0.8), (1, 0, 0.95), (1, 1, 0.5))
        found = select(q, torch.tensor([0.9, 0.6, 0.8]))
        assert found.dtype == torch.bool
        assert found.tolist() == [False, True, True, True, False]

    @REPEATABLE
    @given(st.integers(0, 50), st.tuples(*[st.floats(0.2, 1)] * 3), st.integers(0, 2**30))
    def test_equals_a_loop(self, size: int, bars: tuple[float, float, float], seed: int) -> None:
        q = (torch.randn(size, 3, generator=torch.Generator().manual_seed(seed)) * 2).softmax(1)
        bar = torch.tensor(bars)
        expected = [max(row) >= bar[row.index(max(row))].item() for row in q.tolist()]
        assert select(q, bar).tolist() == expected

    def test_may_choose_none(self) -> None:
        assert not select(pool((4, 0, 0.89)), torch.tensor([0.9, 0.5, 0.5])).any()


def random_pool(size: int, seed: int, sharpness: float = 2.0) -> Tensor:
    return (torch.randn(size, 3, generator=torch.Generator().manual_seed(seed)) * sharpness).softmax(1)


class TestCoverageBar:
    @REPEATABLE
    @given(st.integers(1, 60), st.sampled_from([0.01, 0.07, 0.25, 0.4, 0.5, 0.99, 1.0]), st.integers(0, 2**30))
    def test_that_share_reaches_it(self, size: int, coverage: float, seed: int) -> None:
        confidence = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        bar = coverage_bar(confidence, coverage)
        reached = [sure >= bar for sure in confidence.tolist()]
        assert sum(reached) == max(1, round(coverage * size))
        assert bar == min(sure for sure, has in zip(confidence.tolist(), reached, strict=True) if has)

    def test_equals_pass_together(self) -> None:
        assert coverage_bar(torch.tensor([0.9, 0.7, 0.7, 0.7, 0.6]), 0.4) == pytest.approx(0.7)


class TestQuantileBars:
    @REPEATABLE
    @given(st.integers(1, 60), st.sampled_from([0.05, 0.25, 0.4, 1.0]), st.floats(0, 0.9), st.integers(0, 2**30))
    def test_take_the_surest_of_each_class(self, size: int, coverage: float, floor: float, seed: int) -> None:
        q = random_pool(size, seed)
        chosen = set()
        for label in range(3):
            members = sorted((i for i, row in enumerate(q.tolist()) if row.index(max(row)) == label), key=lambda i: -max(q[i]))
            chosen |= set(members[: max(1, round(coverage * len(members)))])
        expected = {i for i in chosen if max(q[i]) >= torch.tensor(floor)}
        assert set(select(q, quantile_bars(q, coverage, floor)).nonzero().flatten().tolist()) == expected

    def test_a_class_that_is_never_predicted_has_the_floor(self) -> None:
        q = pool((2, 0, 0.8), (2, 0, 0.7), (1, 2, 0.6))
        assert quantile_bars(q, 0.5, 0.4).tolist() == pytest.approx([0.8, 0.4, 0.6])
        assert quantile_bars(q, 0.5, 0.75).tolist() == pytest.approx([0.8, 0.75, 0.75])

    def test_equals_pass_together(self) -> None:
        q = pool((1, 1, 0.9), (3, 1, 0.7), (4, 1, 0.6))
        assert select(q, quantile_bars(q, 0.25, 0.5)).sum() == 4


class TestFreematchBars:
    @REPEATABLE
    @given(st.integers(1, 60), st.integers(0, 2**30))
    def test_equal_the_formula(self, size: int, seed: int) -> None:
        q = random_pool(size, seed)
        rows = q.tolist()
        common = math.fsum(max(row) for row in rows) / size
        mean = [math.fsum(row[label] for row in rows) / size for label in range(3)]
        bare = [common * share / max(mean) for share in mean]
        for floor in (0.0, 0.5):
            assert freematch_bars(q, floor).tolist() == pytest.approx([max(bar, floor) for bar in bare], abs=1e-6)

    def test_a_worked_example(self) -> None:
        q = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.6, 0.2]])
        # mean confidence 0.7, mean prediction (0.5, 0.35, 0.15)
        assert freematch_bars(q, 0.0).tolist() == pytest.approx([0.7, 0.49, 0.21])


class TestSoftmatchWeights:
    @REPEATABLE
    @given(st.integers(2, 60), st.integers(0, 2**30))
    def test_equal_the_formula(self, size: int, seed: int) -> None:
        q = random_pool(size, seed)
        sure = [max(row) for row in q.tolist()]
        mean = math.fsum(sure) / size
        variance = math.fsum((one - mean) ** 2 for one in sure) / size
        bare = [math.exp(-(min(one - mean, 0) ** 2) / (2 * variance / 4)) for one in sure]
        found = softmatch_weights(q)
        assert found.dtype == torch.float32
        assert found.tolist() == pytest.approx([weight if weight >= 1e-3 else 0 for weight in bare], abs=1e-6)
        assert ((found > 0) == torch.tensor([weight >= 1e-3 for weight in bare])).all()

    def test_the_surest_weigh_one_and_the_least_sure_nothing(self) -> None:
        found = softmatch_weights(pool((30, 0, 0.9), (30, 1, 0.95), (1, 2, 0.4), (1, 2, 0.82)))
        assert found[:60].eq(1).logical_or(found[:60] > 0.8).all()
        assert found[60] == 0
        assert 0 < found[61] < 1

    @pytest.mark.parametrize("count", [1, 2, 7])
    def test_equal_confidences_all_weigh_one(self, count: int) -> None:
        assert softmatch_weights(pool((count, 1, 0.7))).tolist() == pytest.approx([1.0] * count)


class TestTrust:
    Q = random_pool(200, 5)

    def rule(self, **settings: Any) -> SelfTrain:
        return SelfTrain.model_validate({"floor": 0.4, **settings})

    @pytest.mark.parametrize(
        ("rule", "bars"),
        [
            ("flexmatch", flexmatch_bars(Q, 0.8, 0.4)),
            ("fixed", torch.full((3,), 0.8)),
            ("quantile", quantile_bars(Q, 0.3, 0.4)),
            ("freematch", freematch_bars(Q, 0.4)),
        ],
    )
    def test_bars_give_weights_of_zero_and_one(self, rule: str, bars: Tensor) -> None:
        weights, found = trust(self.Q, self.rule(rule=rule, threshold=0.8, coverage=0.3))
        assert found.equal(bars)
        assert weights.dtype == torch.float32
        assert weights.equal(select(self.Q, bars).float())
        assert 0 < weights.sum() < len(self.Q)

    def test_softmatch_has_weights_and_no_bars(self) -> None:
        weights, bars = trust(self.Q, self.rule(rule="softmatch"))
        assert bars.tolist() == []
        assert weights.equal(softmatch_weights(self.Q))

    @pytest.mark.parametrize("rule", ["flexmatch", "fixed", "quantile", "freematch"])
    def test_no_bar_is_below_the_floor(self, rule: str) -> None:
        _, bars = trust(self.Q, self.rule(rule=rule, threshold=0.6, coverage=1.0, floor=0.97))
        assert bars.tolist() == pytest.approx([0.97] * 3)
