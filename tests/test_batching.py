import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conlst.data.batching import draw_of_like_length, length_batches, shuffled_batches

# no deadline: the machine may be busy with a training
REPEATABLE = settings(deadline=None, derandomize=True)

LENGTHS = st.lists(st.integers(1, 60), max_size=80).map(lambda values: torch.tensor(values, dtype=torch.int64))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def realistic(count: int, seed: int = 0) -> Tensor:
    """Lengths as of sentence pairs: most near 35 tokens, a few several times that."""
    return (torch.randn(count, generator=seeded(seed)) * 0.45 + 3.5).exp().long().clamp(8, 128)


def padded(batches: list[Tensor], lengths: Tensor) -> list[int]:
    return [len(batch) * int(lengths[batch].max()) for batch in batches]


def check(batches: list[Tensor], lengths: Tensor, budget: int) -> None:
    """Every index once, no empty batch, the budget kept wherever a batch has more than one row."""
    assert sorted(index for batch in batches for index in batch.tolist()) == list(range(len(lengths)))
    for batch, size in zip(batches, padded(batches, lengths), strict=True):
        assert len(batch)
        assert size <= budget or len(batch) == 1


class TestLengthBatches:
    @REPEATABLE
    @given(LENGTHS, st.integers(1, 300))
    def test_every_index_once_within_the_budget_longest_first(self, lengths: Tensor, budget: int) -> None:
        batches = length_batches(lengths, budget)
        check(batches, lengths, budget)
        order = [length for batch in batches for length in lengths[batch].tolist()]
        assert order == sorted(order, reverse=True)

    @REPEATABLE
    @given(LENGTHS, st.integers(1, 300))
    def test_no_batch_could_take_the_next_row(self, lengths: Tensor, budget: int) -> None:
        batches = length_batches(lengths, budget)
        for batch, size in zip(batches[:-1], padded(batches, lengths), strict=False):
            assert size // len(batch) * (len(batch) + 1) > budget

    def test_nothing_makes_no_batch(self) -> None:
        assert length_batches(torch.empty(0, dtype=torch.int64), 100) == []

    def test_a_pair_over_the_budget_is_alone(self) -> None:
        batches = length_batches(torch.tensor([5, 200, 5, 300]), 100)
        assert [batch.tolist() for batch in batches] == [[3], [1], [0, 2]]

    def test_equal_lengths_keep_their_order(self) -> None:
        assert [b.tolist() for b in length_batches(torch.full((7,), 10), 30)] == [[0, 1, 2], [3, 4, 5], [6]]

    def test_hardly_pads(self) -> None:
        lengths = realistic(5000)
        assert sum(padded(length_batches(lengths, 1024), lengths)) < 1.02 * int(lengths.sum())


class TestShuffledBatches:
    @REPEATABLE
    @given(LENGTHS, st.integers(1, 300), st.integers(0, 2**40))
    def test_every_index_once_within_the_budget(self, lengths: Tensor, budget: int, seed: int) -> None:
        check(shuffled_batches(lengths, budget, seeded(seed)), lengths, budget)

    def test_of_several_chunks_too(self) -> None:
        lengths = realistic(12_000)
        batches = shuffled_batches(lengths, 512, seeded())
        check(batches, lengths, 512)
        assert sum(padded(batches, lengths)) < 1.1 * int(lengths.sum())

    def test_nothing_makes_no_batch(self) -> None:
        assert shuffled_batches(torch.empty(0, dtype=torch.int64), 100, seeded()) == []

    def test_epochs_differ_and_each_repeats_with_its_generator(self) -> None:
        lengths, state = realistic(3000), torch.get_rng_state()
        generator = seeded(1)
        first, second = (shuffled_batches(lengths, 512, generator) for _ in range(2))
        again = shuffled_batches(lengths, 512, seeded(1))
        assert [b.tolist() for b in first] == [b.tolist() for b in again]
        assert [b.tolist() for b in first] != [b.tolist() for b in second]
        assert torch.get_rng_state().equal(state)
        # not the order of the batches alone: other pairs stand together
        together = [{frozenset(b.tolist()) for b in epoch} for epoch in (first, second)]
        assert len(together[0] & together[1]) < 0.05 * len(first)

    def test_batches_stand_in_no_order_of_length(self) -> None:
        # a learning rate that falls along the epoch must not meet the long pairs last
        lengths = realistic(6000)
        means = torch.tensor([lengths[b].double().mean() for b in shuffled_batches(lengths, 512, seeded(2))])
        place = torch.arange(len(means), dtype=torch.float64)
        correlation = torch.corrcoef(torch.stack([place, means.double()]))[0, 1].item()
        assert abs(correlation) < 4 / math.sqrt(len(means))

    def test_the_mean_place_of_a_pair_does_not_depend_on_its_length(self) -> None:
        lengths = torch.tensor([10] * 50 + [100] * 50)
        places = torch.zeros(100)
        for seed in range(200):
            flat = torch.cat(shuffled_batches(lengths, 100, seeded(seed)))
            # place by batch, counted in padded tokens
            places[flat] += lengths[flat].cumsum(0) / lengths.sum()
        means = places / 200
        assert abs(means[:50].mean() - means[50:].mean()) < 0.06


class TestDrawOfLikeLength:
    @REPEATABLE
    @given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(0, 20), st.integers(0, 2**40))
    def test_gives_as_many_indices_as_asked(self, values: list[int], count: int, seed: int) -> None:
        found = draw_of_like_length(torch.tensor(values), count, seeded(seed))
        assert found.shape == (count,)
        assert found.dtype == torch.int64
        assert all(0 <= index < len(values) for index in found.tolist())

    def test_every_index_is_equally_likely_however_long(self) -> None:
        lengths, count, draws = torch.tensor([5, 5, 6, 7, 9, 12, 20, 40, 90, 128]), 4, 5000
        generator = seeded(3)
        hits = torch.stack([torch.bincount(draw_of_like_length(lengths, count, generator), minlength=10) for _ in range(draws)])
        # rows of one draw go together, so the spread between draws is the measure and not the binomial one
        error = hits.double().std(0) / math.sqrt(draws)
        assert ((hits.double().mean(0) - count / 10).abs() < 4 * error).all()
        assert (error < 0.02).all()  # fine enough to see an index that is drawn a tenth less often

    def test_the_lengths_of_a_draw_are_alike(self) -> None:
        # against a plain draw of as many, which pads all rows to the longest pair that it met
        lengths, generator = realistic(5000), seeded(4)
        alike = [draw_of_like_length(lengths, 16, generator) for _ in range(200)]
        plain = [torch.randint(5000, (16,), generator=generator) for _ in range(200)]
        tokens = [sum(padded(draws, lengths)) / sum(int(lengths[draw].sum()) for draw in draws) for draws in (alike, plain)]
        assert tokens[0] - 1 < (tokens[1] - 1) / 4

    def test_draws_of_every_length_come(self) -> None:
        lengths, generator = realistic(5000), seeded(5)
        means = torch.tensor([lengths[draw_of_like_length(lengths, 16, generator)].double().mean() for _ in range(300)])
        assert means.min() < lengths.double().quantile(0.2)
        assert means.max() > lengths.double().quantile(0.8)

    def test_repeats_with_the_generator_and_uses_no_other(self) -> None:
        lengths, state = realistic(500), torch.get_rng_state()
        generator = seeded(6)
        first, second = (draw_of_like_length(lengths, 16, generator) for _ in range(2))
        assert draw_of_like_length(lengths, 16, seeded(6)).equal(first)
        assert not first.equal(second)
        assert torch.get_rng_state().equal(state)

    @pytest.mark.parametrize("count", [1, 5])
    def test_one_pair_goes_along_again_and_again(self, count: int) -> None:
        assert draw_of_like_length(torch.tensor([7]), count, seeded()).tolist() == [0] * count
