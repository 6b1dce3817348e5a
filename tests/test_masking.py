import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conlst.method.masking import mask_tokens

# no deadline: the machine may be busy with a training
REPEATABLE = settings(deadline=None, derandomize=True)

PAD, START, END, MASK = 0, 2, 3, 4
SPECIAL = (PAD, 1, START, END, MASK)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Pairs ``<s> a </s> b </s>`` of words 10, 11, … with padding behind the shorter ones."""
    attention = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.arange(attention.numel()).reshape(attention.shape) + 10
    for row, length in enumerate(lengths):
        ids[row, 0], ids[row, length // 2], ids[row, length - 1] = START, END, END
    return ids.masked_fill(~attention, PAD), attention.long()


@REPEATABLE
@given(st.lists(st.integers(3, 12), min_size=1, max_size=5), st.floats(0.05, 0.95), st.integers(0, 2**40))
def test_only_ordinary_tokens_change_and_only_to_the_mask(lengths: list[int], share: float, seed: int) -> None:
    ids, attention = batch(lengths)
    before = ids.clone()
    found = mask_tokens(ids, attention, share, MASK, SPECIAL, seeded(seed))
    assert ids.equal(before)  # the batch itself is of use to others
    assert found.dtype == ids.dtype
    for row, length in enumerate(lengths):
        for column, (old, new) in enumerate(zip(ids[row].tolist(), found[row].tolist(), strict=True)):
            if column >= length or old in SPECIAL:
                assert new == old
            else:
                assert new in (old, MASK)


def test_padding_is_known_by_the_attention_and_not_by_its_id() -> None:
    ids, attention = torch.full((4, 50), 20), torch.ones(4, 50, dtype=torch.long)
    attention[:, 30:] = 0
    found = mask_tokens(ids, attention, 0.9, MASK, (START, END), seeded())
    assert (found[:, 30:] == 20).all()
    assert (found[:, :30] == MASK).any(1).all()


@pytest.mark.parametrize("special", SPECIAL)
def test_no_special_token_is_ever_replaced(special: int) -> None:
    ids = torch.full((20, 50), special)
    found = mask_tokens(ids, torch.ones_like(ids), 0.99, 99, SPECIAL, seeded())
    assert found.equal(ids)


@pytest.mark.parametrize("share", [0.05, 0.15, 0.5, 0.9])
def test_the_share_is_of_the_ordinary_tokens(share: float) -> None:
    ids, attention = batch([200] * 50 + [40] * 50)
    ordinary = attention.bool() & (ids >= 10)
    found = mask_tokens(ids, attention, share, MASK, SPECIAL, seeded(1))
    count = int(ordinary.sum())
    masked = int((found == MASK).sum())
    assert abs(masked / count - share) < 4 * math.sqrt(share * (1 - share) / count)
    # every position alike: first and second half of a row
    halves = [int((found[:50, part] == MASK).sum()) for part in (slice(1, 100), slice(101, 199))]
    assert abs(halves[0] / (99 * 50) - halves[1] / (98 * 50)) < 4 * math.sqrt(2 * share * (1 - share) / (98 * 50))


def test_repeats_with_the_generator_and_uses_no_other() -> None:
    ids, attention = batch([60, 40, 20])
    state, generator = torch.get_rng_state(), seeded(1)
    first, second = (mask_tokens(ids, attention, 0.3, MASK, SPECIAL, generator) for _ in range(2))
    assert not first.equal(second)
    generator = seeded(1)
    assert mask_tokens(ids, attention, 0.3, MASK, SPECIAL, generator).equal(first)
    assert mask_tokens(ids, attention, 0.3, MASK, SPECIAL, generator).equal(second)
    assert torch.get_rng_state().equal(state)
