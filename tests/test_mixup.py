import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conlst.method.mixup import mixup


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def marked(count: int) -> Tensor:
    """Rows ``(i, i²)``: what a mix was made of can be solved for."""
    index = torch.arange(count, dtype=torch.float64)
    return torch.stack([index, index.square()], 1)


def solve(mixed: Tensor) -> tuple[Tensor, Tensor]:
    """Partner and λ of every row of a mix of :func:`marked` rows; λ is NaN for a row mixed with itself."""
    own = torch.arange(len(mixed), dtype=torch.float64)
    first, second = mixed[:, 0] - own, mixed[:, 1] - own.square()  # (1 - λ)(j - i) and (1 - λ)(j² - i²)
    alone = first.abs() < 1e-9
    partner = torch.where(alone, own, second / first - own)
    return partner.round().long(), torch.where(alone, torch.nan, 1 - first / (partner - own))


def weights(alpha: float, count: int, seed: int) -> Tensor:
    rows = marked(count)
    mixed, _ = mixup(rows, rows, alpha, seeded(seed))
    found = solve(mixed)[1]
    return found[~found.isnan()].clamp(0, 1)


def beta_below(x: float, alpha: int) -> float:
    """Distribution function of Beta(alpha, alpha) for a whole alpha, as a binomial sum."""
    n = 2 * alpha - 1
    return math.fsum(math.comb(n, k) * x**k * (1 - x) ** (n - k) for k in range(alpha, n + 1))


def test_rows_and_targets_are_mixed_alike() -> None:
    pooled = torch.randn(32, 8, generator=seeded(0), dtype=torch.float64)
    labels = F.one_hot(torch.randint(3, (32,), generator=seeded(1)), 3).double()
    identity = torch.eye(32, dtype=torch.float64)
    # rows of the identity come back as the coefficients of the mix
    coefficients, targets = mixup(identity, labels, 4.0, seeded(2))
    mixed, again = mixup(pooled, identity, 4.0, seeded(2))
    torch.testing.assert_close(again, coefficients)
    torch.testing.assert_close(mixed, coefficients @ pooled)
    torch.testing.assert_close(targets, coefficients @ labels)
    for row, values in enumerate(coefficients):
        assert int((values != 0).sum()) in (1, 2)
        assert 0 <= values[row] <= 1
        assert values.sum().item() == pytest.approx(1)


def test_lambda_and_partner_can_be_recovered() -> None:
    rows = marked(500)
    mixed, same = mixup(rows, rows, 4.0, seeded(3))
    assert mixed.equal(same)
    partner, weight = solve(mixed)
    assert sorted(partner.tolist()) == list(range(500))  # each row is a partner once
    own = torch.arange(500)
    assert int((partner == own).sum()) < 8  # one is expected in a random order
    weight = weight.nan_to_num(1.0)
    torch.testing.assert_close(weight[:, None] * rows + (1 - weight[:, None]) * rows[partner], mixed)
    assert len(set(weight.tolist())) > 490  # one draw a row


def test_one_hot_labels_stay_distributions() -> None:
    labels = F.one_hot(torch.randint(3, (400,), generator=seeded(0)), 3).float()
    mixed, targets = mixup(torch.randn(400, 16, generator=seeded(1)), labels, 4.0, seeded(2))
    assert mixed.shape == (400, 16)
    assert targets.dtype == torch.float32
    torch.testing.assert_close(targets.sum(1), torch.ones(400))
    assert (targets >= 0).all()
    assert ((targets > 0).sum(1) <= 2).all()
    assert ((targets > 0).sum(1) == 2).any()


@pytest.mark.parametrize("alpha", [0.5, 1.0, 4.0, 16.0])
def test_lambda_has_the_moments_of_its_distribution(alpha: float) -> None:
    count = 20_000
    found = weights(alpha, count, 5)
    variance = 1 / (4 * (2 * alpha + 1))
    fourth = 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3))
    assert abs(found.mean().item() - 0.5) < 4 * math.sqrt(variance / count)
    assert abs(found.var().item() - variance) < 4 * math.sqrt((fourth - variance**2) / count)


@pytest.mark.parametrize("alpha", [1, 2, 4])
def test_lambda_follows_its_distribution(alpha: int) -> None:
    found = weights(float(alpha), 10_000, 6).sort().values.tolist()
    n = len(found)
    gap = max(max(abs(beta_below(x, alpha) - k / n), abs(beta_below(x, alpha) - (k + 1) / n)) for k, x in enumerate(found))
    assert gap < 1.95 / math.sqrt(n)  # Kolmogorov's 0.1 % point
    other = 3 - alpha if alpha < 3 else 3
    assert max(abs(beta_below(x, other) - k / n) for k, x in enumerate(found)) > 3 / math.sqrt(n)  # and no other


def test_a_whole_alpha_is_a_number_too() -> None:
    pooled = torch.randn(8, 4, generator=seeded(0))
    assert mixup(pooled, pooled, 4, seeded(1))[0].equal(mixup(pooled, pooled, 4.0, seeded(1))[0])


@pytest.mark.parametrize("alpha", [0.01, 0.1])
def test_a_small_alpha_gives_no_nan(alpha: float) -> None:
    # both gamma variates may underflow
    mixed, targets = mixup(torch.ones(5000, 2), torch.ones(5000, 3), alpha, seeded(7))
    assert mixed.isfinite().all()
    assert targets.isfinite().all()


def test_repeats_with_the_generator_and_uses_no_other() -> None:
    pooled, targets, state = torch.randn(16, 4, generator=seeded(0)), torch.eye(16), torch.get_rng_state()
    generator = seeded(1)
    first, second = mixup(pooled, targets, 4.0, generator), mixup(pooled, targets, 4.0, generator)
    assert not first[0].equal(second[0])
    generator = seeded(1)
    for expected in (first, second):
        found = mixup(pooled, targets, 4.0, generator)
        assert found[0].equal(expected[0])
        assert found[1].equal(expected[1])
    assert torch.get_rng_state().equal(state)


def test_a_single_row_is_itself() -> None:
    pooled, targets = torch.randn(1, 4, generator=seeded(0)), torch.tensor([[0.0, 1.0, 0.0]])
    mixed = mixup(pooled, targets, 4.0, seeded(1))
    torch.testing.assert_close(mixed[0], pooled)
    torch.testing.assert_close(mixed[1], targets)


def test_gradients_reach_both_halves_of_a_mix() -> None:
    pooled = torch.randn(12, 4, generator=seeded(0), requires_grad=True)
    before = pooled.detach().clone()
    mixed, targets = mixup(pooled, torch.eye(12), 4.0, seeded(1))
    mixed.sum().backward()
    assert pooled.grad is not None
    torch.testing.assert_close(pooled.grad, targets.sum(0)[:, None].expand(12, 4))
    assert pooled.detach().equal(before)
