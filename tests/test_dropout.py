"""Our dropout on the CPU, and attention written out, against PyTorch's and transformers' own."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel

from conlst.model.dropout import PLAIN_ATTENTION, Dropout, dropout, plain_attention, replace_dropout
from tiny import tiny_backbone


@pytest.mark.parametrize(("p", "share"), [(0.1, 26 / 256), (0.5, 0.5), (0.9, 230 / 256)])
def test_share_of_zeros_is_the_rounded_probability(p: float, share: float) -> None:
    torch.manual_seed(0)
    n = 1_000_000
    zeros = (dropout(torch.ones(n), p, training=True) == 0).float().mean().item()
    assert abs(zeros - share) < 5 * (share * (1 - share) / n) ** 0.5


@pytest.mark.parametrize("p", [0.1, 0.3, 0.9])
def test_scale_keeps_the_expectation(p: float) -> None:
    torch.manual_seed(1)
    kept = dropout(torch.ones(1_000_000), p, training=True)
    assert kept.mean().item() == pytest.approx(1, abs=5 * (p / (1 - p)) ** 0.5 / 1000)
    assert len(kept.unique()) == 2


def test_mask_has_no_pattern_along_the_eight_bytes_of_a_draw() -> None:
    torch.manual_seed(2)
    zeros = (dropout(torch.ones(80_000, 8), 0.5, training=True) == 0).float()
    assert zeros.mean(0).sub(0.5).abs().max() < 5 * 0.5 / 80_000**0.5
    centred = zeros - zeros.mean(0)
    correlation = (centred.T @ centred / len(zeros) * 4).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / 80_000**0.5


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (2, 3, 11)])
def test_shapes_that_are_no_multiple_of_eight(shape: tuple[int, ...]) -> None:
    assert dropout(torch.randn(shape), 0.5, training=True).shape == shape


def test_the_global_seed_decides() -> None:
    x = torch.randn(100)

    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return dropout(x, 0.5, training=True)

    assert draw(3).equal(draw(3))
    assert not draw(3).equal(draw(4))
    torch.manual_seed(3)
    assert not dropout(x, 0.5, training=True).equal(dropout(x, 0.5, training=True))


def test_evaluation_and_probability_zero_change_nothing_and_draw_nothing() -> None:
    x = torch.randn(10)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert Dropout(0.5).eval()(x) is x
    assert dropout(x, 0.0, training=True) is x
    assert torch.get_rng_state().equal(before)


def test_gradient_has_the_mask_and_the_scale_of_the_forward_pass() -> None:
    torch.manual_seed(6)
    x = torch.rand(1000, requires_grad=True)
    y = Dropout(0.3)(x)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad * x.detach(), y.detach(), rtol=0, atol=0)
    assert (x.grad == 0).any()


def test_low_precision_stays_low_precision() -> None:
    assert dropout(torch.ones(16, dtype=torch.bfloat16), 0.5, training=True).dtype == torch.bfloat16


def test_the_highest_probability_that_the_configuration_allows() -> None:
    assert torch.isfinite(dropout(torch.ones(64), 0.999, training=True)).all()


def test_every_dropout_of_a_model_is_replaced(tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(tiny_backbone(tmp_path / "b"))
    rates = {name: child.p for name, child in model.named_modules() if isinstance(child, nn.Dropout)}
    replace_dropout(model)
    assert rates
    assert {name: child.p for name, child in model.named_modules() if isinstance(child, Dropout)} == rates
    assert not [child for child in model.modules() if isinstance(child, nn.Dropout)]


class _Attention(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.dropout = Dropout(p)


@pytest.mark.parametrize("mask", [None, "boolean", "additive"])
def test_plain_attention_is_scaled_dot_product_attention(mask: str | None) -> None:
    torch.manual_seed(7)
    query, key, value = torch.randn(3, 2, 4, 5, 8)
    allowed = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    allowed[0, :, :, 3:] = False
    given = {None: None, "boolean": allowed, "additive": torch.zeros(allowed.shape).masked_fill(~allowed, -1e9)}[mask]
    expected = nn.functional.scaled_dot_product_attention(query, key, value, allowed if mask else None)
    found, weights = plain_attention(_Attention(0.5).eval(), query, key, value, given)
    assert weights is None
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-6, rtol=1e-5)


def test_plain_attention_takes_the_scaling_it_is_given() -> None:
    torch.manual_seed(8)
    query, key, value = torch.randn(3, 1, 1, 4, 8)
    expected = nn.functional.scaled_dot_product_attention(query, key, value, scale=0.7)
    found, _ = plain_attention(_Attention(0).eval(), query, key, value, None, scaling=0.7)
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-6, rtol=1e-5)


def test_plain_attention_drops_weights_in_training_only() -> None:
    torch.manual_seed(9)
    # every value is one, so each output is the sum of the weights that were kept
    query, key, value = torch.randn(4, 2, 8, 4), torch.randn(4, 2, 8, 4), torch.ones(4, 2, 8, 4)
    attention = _Attention(0.5)
    kept, _ = plain_attention(attention.train(), query, key, value, None)
    whole, _ = plain_attention(attention.eval(), query, key, value, None)
    torch.testing.assert_close(whole, torch.ones_like(whole))
    assert kept.std() > 0.1


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
@pytest.mark.parametrize("other", ["sdpa", "eager"])
def test_encoders_see_the_same_with_plain_attention(tmp_path: Path, kind: str, other: str) -> None:
    folder = tiny_backbone(tmp_path / kind, kind)
    plain, reference = (AutoModel.from_pretrained(folder, attn_implementation=name).eval() for name in (PLAIN_ATTENTION, other))
    torch.manual_seed(10)
    ids = torch.randint(5, 50, (3, 9))
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    mask[1, 1:] = 0
    ids = ids.masked_fill(mask == 0, 0)
    with torch.inference_mode():
        found, expected = (model(input_ids=ids, attention_mask=mask).last_hidden_state for model in (plain, reference))
    torch.testing.assert_close(found[mask == 1], expected[mask == 1], atol=1e-5, rtol=0)
