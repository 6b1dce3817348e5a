import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conlst.method.alignment import align, class_shares, prior_shift


def test_shares_are_counted() -> None:
    assert class_shares(torch.tensor([2, 0, 0, 2, 2]), 3).tolist() == pytest.approx([0.4, 0.0, 0.6])
    assert class_shares(torch.tensor([1]), 4).tolist() == [0, 1, 0, 0]


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 30), st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(any), st.integers(0, 2**30))
def test_equals_a_loop(size: int, counts: list[int], seed: int) -> None:
    q = torch.randn(size, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(1)
    shares = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    found = align(q, shares)
    mean = [sum(row[label] for row in q.tolist()) / size for label in range(3)]
    for row, aligned in zip(q.tolist(), found.tolist(), strict=True):
        scaled = [p * (share + 1e-6) / (m + 1e-6) for p, share, m in zip(row, shares.tolist(), mean, strict=True)]
        assert aligned == pytest.approx([p / sum(scaled) for p in scaled], rel=1e-9)


def test_a_pool_that_has_the_shares_stays() -> None:
    q = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])
    torch.testing.assert_close(align(q, torch.full((3,), 1 / 3)), q)


def test_a_class_that_is_predicted_too_often_loses_its_doubtful_pairs() -> None:
    q = torch.tensor([[0.9, 0.05, 0.05], [0.5, 0.4, 0.1], [0.5, 0.1, 0.4]])
    aligned = align(q, torch.full((3,), 1 / 3))
    assert q.argmax(1).tolist() == [0, 0, 0]
    assert aligned.argmax(1).tolist() == [0, 1, 2]
    # one pass comes nearer and does not arrive
    off, before = (aligned.mean(0) - 1 / 3).abs().max(), (q.mean(0) - 1 / 3).abs().max()
    assert 0.005 < off < before


def test_a_class_that_is_never_predicted_stays_finite() -> None:
    q = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    aligned = align(q, torch.full((3,), 1 / 3))
    assert aligned.isfinite().all()
    assert aligned[:, 2].tolist() == [0, 0]
    torch.testing.assert_close(aligned.sum(1), torch.ones(2))


@settings(deadline=None, derandomize=True)
@given(st.integers(2, 30), st.lists(st.integers(1, 5), min_size=3, max_size=3), st.integers(0, 2**30))
def test_shifted_predictions_have_the_shares(size: int, counts: list[int], seed: int) -> None:
    logits = 2 * torch.randn(size, 3, generator=torch.Generator().manual_seed(seed))
    shares = torch.tensor(counts, dtype=torch.float32) / sum(counts)
    shift = prior_shift(logits, shares)
    torch.testing.assert_close((logits + shift).softmax(1).mean(0), shares, atol=1e-4, rtol=0)
    assert shift.mean().item() == pytest.approx(0, abs=1e-6)


def test_a_shift_is_alignment_again_and_again() -> None:
    logits, shares = (
        torch.randn(50, 3, generator=torch.Generator().manual_seed(1)) + torch.tensor([1.0, 0, 0]),
        torch.full((3,), 1 / 3),
    )
    again = logits.softmax(1)
    for _ in range(100):
        again = align(again, shares)
    torch.testing.assert_close((logits + prior_shift(logits, shares)).softmax(1), again, atol=1e-4, rtol=0)


def test_a_class_that_is_all_but_never_predicted_leaves_the_shift_finite() -> None:
    logits = torch.tensor([[200.0, 0.0, -300.0], [100.0, 50.0, -300.0]])
    assert prior_shift(logits, torch.full((3,), 1 / 3)).isfinite().all()
