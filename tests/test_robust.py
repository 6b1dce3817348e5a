"""Terms of the robust trainings against loops in float64, and what the encoder shows for them against transformers' own."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from conlst.contract.config import config_from_dict
from conlst.contract.errors import ConfigError
from conlst.method.robust import attention_distance, embedding_distance, embedding_noise, symmetric_kl
from conlst.model.backbones import load_backbone
from conlst.model.encoder import PairClassifier
from tiny import tiny_backbone, tiny_config


def test_noise_has_its_distribution_and_its_generator_decides() -> None:
    n, scale = 200_000, 0.02
    uniform, normal = (embedding_noise((n,), kind, scale, torch.Generator().manual_seed(1)) for kind in ("uniform", "normal"))
    assert uniform.abs().max() <= scale
    assert uniform.std().item() == pytest.approx(scale / math.sqrt(3), rel=0.02)
    assert normal.std().item() == pytest.approx(scale, rel=0.02)
    assert normal.abs().max() > 3 * scale
    for noise in (uniform, normal):
        assert abs(noise.mean().item()) < 5 * scale / math.sqrt(n)
    torch.manual_seed(9)
    assert embedding_noise((n,), "normal", scale, torch.Generator().manual_seed(1)).equal(normal)
    assert not embedding_noise((n,), "normal", scale, torch.Generator().manual_seed(2)).equal(normal)
    assert embedding_noise((2, 3, 4), "uniform", scale, torch.Generator()).shape == (2, 3, 4)


def test_symmetric_kl_is_both_divergences() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 7, 3) * 3
    p, q = a.double().softmax(1).tolist(), b.double().softmax(1).tolist()
    expected = 0.0
    for one, other in zip(p, q, strict=True):
        for x, y in zip(one, other, strict=True):
            expected += x * math.log(x / y) + y * math.log(y / x)
    assert symmetric_kl(a, b).item() == pytest.approx(expected / 7, rel=1e-5)
    assert symmetric_kl(a, b).item() == pytest.approx(symmetric_kl(b, a).item(), rel=1e-6)
    assert symmetric_kl(a, a) == 0


def test_symmetric_kl_teaches_both_predictions_and_survives_certainty() -> None:
    a, b = torch.tensor([[60.0, 0.0, -60.0]], requires_grad=True), torch.tensor([[0.0, 60.0, 1.0]], requires_grad=True)
    loss = symmetric_kl(a, b)
    loss.backward()
    assert loss.item() == pytest.approx(120, rel=1e-3)
    for tensor in (a, b):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().sum() > 0
    # a gradient check where nothing is saturated: float32 inside, so a coarse one
    x, y = torch.tensor([[0.3, -0.2, 0.1]], requires_grad=True), torch.tensor([[0.0, 0.5, -0.4]])
    symmetric_kl(x, y).backward()
    step = 1e-2
    for k in range(3):
        shift = torch.zeros(1, 3).index_fill_(1, torch.tensor(k), step)
        slope = (symmetric_kl(x.detach() + shift, y) - symmetric_kl(x.detach() - shift, y)).item() / (2 * step)
        assert x.grad is not None
        assert x.grad[0, k].item() == pytest.approx(slope, abs=1e-4)


def test_a_divergence_of_near_predictions_is_not_lost() -> None:
    a = torch.tensor([[2.0, 1.0, -1.0]])
    b = a + torch.tensor([[1e-3, 0.0, 0.0]])
    p, q = a.double().softmax(1), b.double().softmax(1)
    expected = ((p - q) * (p / q).log()).sum().item()
    assert symmetric_kl(a, b).item() == pytest.approx(expected, rel=1e-2)


def masks(lengths: list[int], width: int) -> Tensor:
    return (torch.arange(width) < torch.tensor(lengths)[:, None]).long()


def test_embedding_distance_is_that_of_the_means_over_tokens() -> None:
    torch.manual_seed(1)
    (a, b), lengths, others = (torch.randn(3, 5, 4), torch.randn(3, 7, 4)), [5, 2, 3], [1, 7, 4]
    expected = 0.0
    for row in range(3):
        for k in range(4):
            one = sum(a[row, i, k].double().item() for i in range(lengths[row])) / lengths[row]
            other = sum(b[row, i, k].double().item() for i in range(others[row])) / others[row]
            expected += (one - other) ** 2 / 12
    found = embedding_distance(a, masks(lengths, 5), b, masks(others, 7))
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("lengths", "others"), [([5, 2, 3], [1, 4, 3]), ([2, 5, 1], [7, 6, 7])])
def test_attention_distance_counts_the_positions_that_both_have(lengths: list[int], others: list[int]) -> None:
    torch.manual_seed(2)
    width, other_width = max(lengths), max(others)
    a = torch.rand(3, 2, width, width, requires_grad=True)
    b = torch.rand(3, 2, other_width, other_width)
    total, count = 0.0, 0
    for row in range(3):
        common = min(lengths[row], others[row])
        for head in range(2):
            for i in range(common):
                for j in range(common):
                    total += (a[row, head, i, j].double().item() - b[row, head, i, j].double().item()) ** 2
                    count += 1
    found = attention_distance(a, masks(lengths, width), b, masks(others, other_width))
    assert found.item() == pytest.approx(total / count, rel=1e-5)
    found.backward()
    assert a.grad is not None
    for row in range(3):
        common = min(lengths[row], others[row])
        assert (a.grad[row, :, common:] == 0).all()
        assert (a.grad[row, :, :, common:] == 0).all()
        assert (a.grad[row, :, :common, :common] != 0).all()


@pytest.fixture(scope="module", params=["bert", "xlm-roberta"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_backbone(tmp_path_factory.mktemp("b"), request.param)


def classifier(folder: Path, pooling: str = "mean") -> PairClassifier:
    raw = tiny_config(folder)
    raw["backbone"]["pooling"] = pooling
    return load_backbone(config_from_dict(raw).backbone, 3).classifier


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    mask = masks([9, 4, 7], 9)
    ids = torch.randint(5, 50, (3, 9)).masked_fill(mask == 0, 0)
    ids[:, 0], ids[:, 2] = 2, 3
    return ids, mask


@pytest.mark.parametrize("pooling", ["mean", "cls", "pair"])
def test_encoding_embeddings_is_encoding_their_ids(backbone: Path, pooling: str) -> None:
    model = classifier(backbone, pooling)
    ids, mask = batch()
    embedded = model.embed(ids)
    assert embedded.equal(model.embeddings[ids])
    torch.testing.assert_close(model.encode_embedded(embedded, ids, mask), model.encode(ids, mask), atol=1e-6, rtol=0)
    moved = model.encode_embedded(embedded + 0.1 * torch.randn_like(embedded), ids, mask)
    assert (moved - model.encode(ids, mask)).abs().max() > 1e-3


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("attention", ["conlst_plain", "sdpa"])
def test_the_attention_seen_inside_is_that_of_the_encoder(backbone: Path, layer: int, attention: str) -> None:
    model = classifier(backbone)
    model.encoder.set_attn_implementation(attention)
    reference = AutoModel.from_pretrained(backbone, attn_implementation="eager").eval()
    ids, mask = batch()
    inside = model.look_inside(ids, mask, layer)
    with torch.inference_mode():
        expected = reference(input_ids=ids, attention_mask=mask, output_attentions=True, output_hidden_states=True)
    assert inside.pooled.equal(model.encode(ids, mask))
    torch.testing.assert_close(inside.embedded, expected.hidden_states[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(inside.attention, expected.attentions[layer], atol=1e-6, rtol=0)
    assert (inside.attention.masked_select((mask == 0)[:, None, None, :]) == 0).all()


def test_attention_seen_in_training_is_that_before_dropout(backbone: Path) -> None:
    model = classifier(backbone).train()
    ids, mask = batch()
    torch.manual_seed(4)
    maps = model.look_inside(ids, mask, 1).attention
    torch.testing.assert_close(maps.sum(-1), torch.ones(3, 2, 9))
    assert maps.requires_grad
    # looking draws nothing
    torch.manual_seed(4)
    pooled = model.look_inside(ids, mask, 1).pooled
    torch.manual_seed(4)
    assert model.encode(ids, mask).equal(pooled)


def test_a_layer_that_is_not_there_is_refused(backbone: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"layer 2: .*Model has 2 layers, counted from 0.*choose another source\.ept_apt\.layer"
    ):
        classifier(backbone).look_inside(*batch(), 2)
