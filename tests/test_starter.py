"""The starter: taken apart into low-rank factors and put together again."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from conlst.contract.artifacts import publish, read_manifest
from conlst.contract.config import Backbone
from conlst.contract.errors import ArtifactError, ConlstError
from conlst.model import starter
from conlst.model.backbones import load_backbone
from conlst.model.folder import Model
from conlst.model.starter import KIND, compress, expand, load_starter, write_starter
from tiny import tiny_backbone, tiny_pairs, tokens_of

FULL = 15  # the tiny backbone's matrices are 32 wide and are factored below a rank of 16


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return Backbone(name=str(tiny_backbone(tmp_path_factory.mktemp("b"))), max_length=32, projection=16)


def tuned(backbone: Backbone, rank: int) -> Model:
    """The backbone, each matrix moved along ``rank`` directions and each vector a little."""
    model = load_backbone(backbone, seed=5)
    generator = torch.Generator().manual_seed(rank)
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            if not parameter.requires_grad:
                continue
            if parameter.ndim == 2:
                out, inn = parameter.shape
                left, right = torch.randn(out, rank, generator=generator), torch.randn(rank, inn, generator=generator)
                parameter.add_(left @ right * (0.1 / math.sqrt(rank * inn)))
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
    return model


def logits(model: Model) -> Tensor:
    tokens, _ = tokens_of(model, tiny_pairs(12, 1))
    with torch.inference_mode():
        return model.classifier(*tokens.batch(torch.arange(12)))


def error(model: Model, backbone: Backbone, rank: int) -> float:
    """Root mean square of what the factors lose of the encoder's matrices."""
    built = expand(compress(model, backbone, rank), backbone).classifier.state_dict()
    lost = [
        (built[name] - weight).detach().square().mean()
        for name, weight in model.classifier.named_parameters()
        if weight.ndim == 2 and weight.requires_grad
    ]
    return float(torch.stack(lost).mean().sqrt())


def test_a_low_rank_difference_comes_back_nearly_whole(backbone: Backbone) -> None:
    model = tuned(backbone, rank=4)
    built = expand(compress(model, backbone, rank=8), backbone)
    torch.testing.assert_close(logits(built), logits(model), atol=0.02, rtol=0)
    assert (logits(built) - logits(model)).abs().max() < 0.1 * (logits(load_backbone(backbone, 5)) - logits(model)).abs().max()
    assert not built.classifier.training
    assert built.classifier.embeddings.equal(model.classifier.embeddings)


def test_the_error_falls_as_the_rank_rises(backbone: Backbone) -> None:
    model = tuned(backbone, rank=32)
    errors = [error(model, backbone, rank) for rank in (1, 2, 4, 8, FULL)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.6 * errors[0]
    # from half the width on, a matrix is kept whole in float16
    assert error(model, backbone, 16) < 0.05 * errors[-1]


def test_factors_are_the_best_of_their_rank_but_for_rounding(backbone: Backbone) -> None:
    name = "encoder.encoder.layer.0.attention.self.query.weight"
    model = tuned(backbone, rank=32)
    difference = model.classifier.state_dict()[name] - load_backbone(backbone, 0).classifier.state_dict()[name]
    best = torch.linalg.svdvals(difference)[4:].norm()
    built = expand(compress(model, backbone, 4), backbone).classifier.state_dict()[name]
    assert (built - model.classifier.state_dict()[name]).norm() < 1.02 * best


def test_heads_do_not_depend_on_the_seed_that_drew_them(backbone: Backbone) -> None:
    model = tuned(backbone, rank=2)
    built = expand(compress(model, backbone, 4), backbone)
    for name in ("classifier.weight", "classifier.bias", "projector.weight", "projector.bias"):
        assert built.classifier.state_dict()[name].equal(model.classifier.state_dict()[name].half().float())


def test_it_is_small_and_leaves_the_embeddings_out(backbone: Backbone) -> None:
    tensors = compress(tuned(backbone, rank=2), backbone, 2)
    assert not [name for name in tensors if "word_embeddings" in name]
    factors = {name: tensor for name, tensor in tensors.items() if name.endswith(("/left", "/right"))}
    assert factors
    assert {tensor.dtype for tensor in factors.values()} == {torch.int8}
    assert {tensor.dtype for name, tensor in tensors.items() if name not in factors} == {torch.float16}


@pytest.fixture
def folder(backbone: Backbone, tmp_path: Path) -> Path:
    model = replace(tuned(backbone, rank=2), seen={"source": torch.tensor([3, 4])})
    return published(model, backbone, tmp_path / "starter")


def published(model: Model, backbone: Backbone, out: Path) -> Path:
    with publish(out, kind=KIND) as staging:
        write_starter(model, backbone, 4, staging)
    return out


def test_a_published_starter_loads(backbone: Backbone, folder: Path) -> None:
    model = load_starter(folder)
    torch.testing.assert_close(logits(model), logits(tuned(backbone, rank=2)), atol=0.02, rtol=0)
    assert model.digest == read_manifest(folder, KIND).digest
    assert model.seen["source"].tolist() == [3, 4]
    assert model.freeze_embeddings


def test_the_same_model_makes_the_same_starter(backbone: Backbone, folder: Path, tmp_path: Path) -> None:
    model = replace(tuned(backbone, rank=2), seen={"source": torch.tensor([3, 4])})
    again = published(model, backbone, tmp_path / "again")
    assert read_manifest(again).digest == read_manifest(folder).digest


@pytest.mark.parametrize("name", ["starter.safetensors", "seen.safetensors", "backbone.json"])
def test_an_altered_starter_is_refused(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        load_starter(folder)


def test_a_starter_that_was_not_published_is_refused(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="never published"):
        load_starter(folder)


def test_a_tensor_that_the_backbone_lacks_is_refused(backbone: Backbone) -> None:
    tensors = compress(tuned(backbone, rank=2), backbone, 4)
    with pytest.raises(ArtifactError, match=r"layer\.9"):
        expand({**tensors, "encoder.encoder.layer.9.output.dense.bias": torch.zeros(32)}, backbone)


@pytest.mark.parametrize("fault", ["shape", "scale"])
def test_tensors_that_do_not_fit_are_refused(backbone: Backbone, fault: str) -> None:
    tensors = compress(tuned(backbone, rank=2), backbone, 4)
    if fault == "shape":
        tensors["classifier.bias"] = torch.zeros(5).half()
    else:
        del tensors["encoder.encoder.layer.0.output.dense.weight/left/scale"]
    with pytest.raises(ArtifactError):
        expand(tensors, backbone)


def test_a_missing_tensor_is_refused(backbone: Backbone) -> None:
    tensors = compress(tuned(backbone, rank=2), backbone, 4)
    del tensors["classifier.weight"]
    with pytest.raises(ArtifactError, match=r"classifier\.weight"):
        expand(tensors, backbone)


def test_a_starter_of_a_backbone_that_is_not_here_is_refused(folder: Path, tmp_path: Path) -> None:
    settings = json.loads((folder / "backbone.json").read_text())
    with publish(tmp_path / "other", kind=KIND) as staging:
        for name in ("starter.safetensors", "seen.safetensors"):
            save_file(load_file(folder / name), staging / name)
        (staging / "backbone.json").write_text(json.dumps({**settings, "name": "nowhere"}))
    with pytest.raises(ConlstError, match="nowhere"):
        load_starter(tmp_path / "other")


def test_the_shipped_starter_is_whole_small_and_frozen() -> None:
    model = load_starter()
    assert sum(path.stat().st_size for path in starter.FOLDER.iterdir()) <= 10_000_000
    assert model.freeze_embeddings
    assert len(model.seen["source"])
    assert all(torch.isfinite(parameter).all() for parameter in model.classifier.parameters())
