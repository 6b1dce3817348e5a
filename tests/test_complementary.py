from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conlst.method.complementary import complementary_labels, draw_negatives, other_labels

# no deadline: the machine may be busy with a training
REPEATABLE = settings(deadline=None, derandomize=True)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distributions(count: int, classes: int = 3, seed: int = 0) -> Tensor:
    return (torch.randn(count, classes, generator=seeded(seed)) * 3).softmax(1)


def chi_square(counts: list[int]) -> float:
    """Pearson's statistic against equal shares; its mean is one less than the number of cells."""
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


@st.composite
def clear_distributions(draw: st.DrawFn) -> Tensor:
    """Rows without ties, of three to six classes."""
    classes = draw(st.integers(3, 6))
    rows = draw(st.lists(st.permutations(range(1, classes + 1)), min_size=1, max_size=8))
    sharpness = draw(st.floats(0.01, 12))
    return (torch.tensor(rows, dtype=torch.float32) * sharpness).softmax(1)


class TestComplementaryLabels:
    @REPEATABLE
    @given(clear_distributions(), st.floats(0.05, 0.99), st.integers(0, 2**40))
    def test_both_branches_of_eq_4(self, q: Tensor, threshold: float, seed: int) -> None:
        found = complementary_labels(q, threshold, seeded(seed))
        assert found.shape == (len(q),)
        assert found.dtype == torch.int64
        for row, label in zip(q.tolist(), found.tolist(), strict=True):
            top, bottom = row.index(max(row)), row.index(min(row))
            assert label in range(len(row))
            assert label != top
            if max(row) < threshold - 1e-6:
                assert label == bottom

    def test_threshold_itself_counts_as_high(self) -> None:
        # 0.9 in float32 is a little less than 0.9
        q = torch.tensor([[0.9, 0.08, 0.02]]).repeat(400, 1)
        assert set(complementary_labels(q, 0.9, seeded()).tolist()) == {1, 2}
        assert set(complementary_labels(q, 0.901, seeded()).tolist()) == {2}

    @pytest.mark.parametrize("classes", [3, 5])
    @pytest.mark.parametrize("top", [0, 1, 2])
    def test_is_uniform_over_the_rest_whatever_the_model_thinks_of_it(self, classes: int, top: int) -> None:
        q = torch.full((20_000, classes), 1e-4)
        q[:, (top + 1) % classes] = 0.04  # a second favourite is drawn no less often
        q[:, top] = 0.95
        counts = Counter(complementary_labels(q, 0.9, seeded(top)).tolist())
        assert set(counts) == set(range(classes)) - {top}
        assert chi_square(list(counts.values())) < 16  # beyond the 0.1 % point of 3 degrees of freedom

    def test_draws_are_independent_of_one_another(self) -> None:
        q = torch.tensor([[0.98, 0.01, 0.01]]).repeat(20_000, 1)
        found = complementary_labels(q, 0.9, seeded(4)).tolist()
        pairs = Counter(zip(found[::2], found[1::2], strict=True))
        assert len(pairs) == 4
        assert chi_square(list(pairs.values())) < 16

    def test_high_and_low_rows_of_a_batch_keep_apart(self) -> None:
        q = torch.tensor([[0.95, 0.04, 0.01], [0.5, 0.1, 0.4], [0.01, 0.04, 0.95], [0.34, 0.36, 0.30]])
        drawn = [complementary_labels(q, 0.9, seeded(seed)).tolist() for seed in range(60)]
        assert [set(column) for column in zip(*drawn, strict=True)] == [{1, 2}, {1}, {0, 1}, {2}]

    def test_is_drawn_again_at_every_step_and_repeats_with_the_generator(self) -> None:
        q = torch.tensor([[0.98, 0.01, 0.01]]).repeat(64, 1)
        state, generator = torch.get_rng_state(), seeded(3)
        first, second = (complementary_labels(q, 0.9, generator) for _ in range(2))
        assert not first.equal(second)
        generator = seeded(3)
        assert complementary_labels(q, 0.9, generator).equal(first)
        assert complementary_labels(q, 0.9, generator).equal(second)
        assert torch.get_rng_state().equal(state)  # nobody else's randomness was used

    def test_does_not_change_what_it_reads(self) -> None:
        q = distributions(10)
        before = q.clone()
        complementary_labels(q, 0.9, seeded())
        draw_negatives(q, 0.5, 2, seeded())
        assert q.equal(before)


class TestOtherLabels:
    @REPEATABLE
    @given(st.lists(st.integers(0, 2), min_size=1, max_size=20), st.integers(0, 2**40))
    def test_never_the_label_itself(self, labels: list[int], seed: int) -> None:
        found = other_labels(torch.tensor(labels), 3, seeded(seed))
        assert found.dtype == torch.int64
        assert all(a != b and 0 <= b < 3 for a, b in zip(labels, found.tolist(), strict=True))

    @pytest.mark.parametrize("label", [0, 1, 2])
    def test_uniform_over_the_others(self, label: int) -> None:
        counts = Counter(other_labels(torch.full((20_000,), label), 3, seeded(label)).tolist())
        assert set(counts) == {0, 1, 2} - {label}
        assert chi_square(list(counts.values())) < 11

    def test_of_two_classes_is_the_other(self) -> None:
        assert other_labels(torch.tensor([0, 1, 1, 0]), 2, seeded()).tolist() == [1, 0, 0, 1]


class TestDrawNegatives:
    @REPEATABLE
    @given(st.integers(0, 60), st.floats(0.34, 0.99), st.integers(1, 9), st.integers(0, 2**30))
    def test_are_sure_distinct_and_of_their_class(self, size: int, threshold: float, count: int, seed: int) -> None:
        q = distributions(size, seed=seed)
        indices, classes = draw_negatives(q, threshold, count, seeded(seed))
        assert indices.dtype == torch.int64
        assert len(indices) == len(classes) == len(set(indices.tolist()))
        for index, label in zip(indices.tolist(), classes.tolist(), strict=True):
            row = q[index].tolist()
            assert row.index(max(row)) == label
            assert q[index].max() >= threshold
        for label in range(3):
            members = int(((q.argmax(1) == label) & (q.max(1).values >= threshold)).sum())
            assert int((classes == label).sum()) == min(count, members)

    def test_threshold_itself_counts(self) -> None:
        q = torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.8999, 0.0501]])
        assert draw_negatives(q, 0.9, 4, seeded())[0].tolist() == [0]

    def test_fewer_than_k_are_all_taken_once(self) -> None:
        q = torch.tensor([[0.95, 0.03, 0.02]] * 3 + [[0.02, 0.03, 0.95]])
        indices, classes = draw_negatives(q, 0.9, 10, seeded())
        assert sorted(zip(indices.tolist(), classes.tolist(), strict=True)) == [(0, 0), (1, 0), (2, 0), (3, 2)]

    def test_none_is_sure_enough(self) -> None:
        indices, classes = draw_negatives(torch.full((5, 3), 1 / 3), 0.9, 4, seeded())
        assert indices.tolist() == classes.tolist() == []

    def test_no_pool(self) -> None:
        indices, classes = draw_negatives(torch.empty(0, 3), 0.9, 4, seeded())
        assert indices.tolist() == classes.tolist() == []

    def test_every_member_is_as_likely_and_so_is_every_set(self) -> None:
        # five sure pairs of class 1 between others
        q = torch.tensor([[0.95, 0.03, 0.02], [0.02, 0.95, 0.03], [0.1, 0.5, 0.4], [0.02, 0.95, 0.03]] * 2 + [[0.02, 0.96, 0.02]])
        generator, drawn = seeded(5), Counter[tuple[int, ...]]()
        for _ in range(4000):
            indices, classes = draw_negatives(q, 0.9, 2, generator)
            drawn[tuple(sorted(indices[classes == 1].tolist()))] += 1
        assert len(drawn) == 10  # five choose two
        assert chi_square(list(drawn.values())) < 30  # beyond the 0.1 % point of 9 degrees of freedom
        members = Counter(index for chosen, times in drawn.items() for index in chosen for _ in range(times))
        assert set(members) == {1, 3, 5, 7, 8}

    def test_repeats_with_the_generator_and_uses_no_other(self) -> None:
        q, state = distributions(200), torch.get_rng_state()
        first, second = draw_negatives(q, 0.5, 4, seeded(1)), draw_negatives(q, 0.5, 4, seeded(1))
        assert all(a.equal(b) for a, b in zip(first, second, strict=True))
        assert not draw_negatives(q, 0.5, 4, seeded(2))[0].equal(first[0])
        assert torch.get_rng_state().equal(state)

    def test_a_pair_is_never_its_own_negative(self) -> None:
        q = distributions(300, seed=7)
        for seed in range(10):
            generator = seeded(seed)
            complementary = complementary_labels(q, 0.8, generator)
            indices, classes = draw_negatives(q, 0.8, 50, generator)
            assert not (complementary[indices] == classes).any()
