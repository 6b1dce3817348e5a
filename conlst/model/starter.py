"""The starter: a source model small enough to ship, as low-rank differences from the embedded backbone.

Fine-tuning moves a matrix little and along few directions, so the difference of each matrix is kept as two thin factors in int8,
one float16 scale a row (and column); vectors are kept whole. The full model is built again in seconds.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from conlst.contract.artifacts import read_manifest, verify
from conlst.contract.config import Backbone
from conlst.contract.errors import ArtifactError, ConfigError
from conlst.model.backbones import load_backbone
from conlst.model.folder import Model

FOLDER = Path(__file__).parent / "starter"
KIND = "starter"


def compress(model: Model, backbone: Backbone, rank: int) -> dict[str, Tensor]:
    """The difference of a fine-tuned model from its backbone.

    Args:
        model: fine-tuned with frozen embeddings.
        backbone: what it was fine-tuned from.
        rank: of each matrix' difference.

    Returns:
        Tensors by ``<parameter>`` (vectors and heads, float16) or ``<parameter>/left`` and ``/right`` with their scales.
    """
    base = load_backbone(backbone, seed=0).classifier.state_dict()
    tensors: dict[str, Tensor] = {}
    for name, weight in model.classifier.named_parameters():
        if not weight.requires_grad:
            continue
        if name.startswith(("classifier.", "projector.")):
            tensors[name] = weight.detach().half()
        elif weight.ndim == 2 and min(weight.shape) > 2 * rank:
            u, s, v = torch.linalg.svd(weight.detach() - base[name], full_matrices=False)
            root = s[:rank].sqrt()
            tensors |= _pack(f"{name}/left", (u[:, :rank] * root).T) | _pack(f"{name}/right", v[:rank] * root[:, None])
        else:
            tensors[name] = (weight.detach() - base[name]).half()
    return tensors


def expand(tensors: dict[str, Tensor], backbone: Backbone) -> Model:
    """Build the model that :func:`compress` took apart.

    Raises:
        ArtifactError: if the tensors do not fit the backbone.
    """
    model = load_backbone(backbone, seed=0)
    parameters = {name: p for name, p in model.classifier.named_parameters() if p.requires_grad}
    names = {name.partition("/")[0] for name in tensors}
    if names != parameters.keys():
        raise ArtifactError(f"the starter and {backbone.name} differ in {min(names ^ parameters.keys())}; install conlst anew")
    try:
        with torch.no_grad():
            for name, parameter in parameters.items():
                if name.startswith(("classifier.", "projector.")):
                    parameter.copy_(tensors[name])
                elif name in tensors:
                    parameter.add_(tensors[name])
                else:
                    parameter.add_(_unpack(tensors, f"{name}/left").T @ _unpack(tensors, f"{name}/right"))
    except (RuntimeError, KeyError) as error:
        raise ArtifactError(f"the starter does not fit {backbone.name} ({error}); install conlst anew") from error
    return model


def write_starter(model: Model, backbone: Backbone, rank: int, folder: Path) -> None:
    """Write factors and settings into ``folder``, which the caller publishes.

    Raises:
        ConfigError: if the model's embedding table was trained: it is far too large to ship.
    """
    if not model.freeze_embeddings:
        raise ConfigError("only a model with frozen embeddings can be kept as a starter; train with backbone.freeze_embeddings")
    tensors = {name: tensor.contiguous() for name, tensor in compress(model, backbone, rank).items()}
    save_file(tensors, folder / "starter.safetensors")
    save_file(model.seen, folder / "seen.safetensors")
    (folder / "backbone.json").write_text(json.dumps(backbone.model_dump(mode="json"), indent=1, sort_keys=True))


def load_starter(folder: Path | None = None) -> Model:
    """Build the shipped source model, or another starter.

    Raises:
        ArtifactError: if the folder is not whole.
    """
    folder = folder or FOLDER
    digest = verify(folder, KIND).digest
    model = expand(load_file(folder / "starter.safetensors"), starter_backbone(folder))
    return replace(model, digest=digest, seen=load_file(folder / "seen.safetensors"))


def shipped_digest() -> str:
    """Which starter this conlst ships."""
    return read_manifest(FOLDER, KIND).digest


def starter_backbone(folder: Path | None = None) -> Backbone:
    """What the shipped source model, or another starter, was fine-tuned from."""
    return Backbone.model_validate_json(((folder or FOLDER) / "backbone.json").read_text())


def _pack(name: str, factor: Tensor) -> dict[str, Tensor]:
    """One int8 row a direction, with its scale."""
    scale = factor.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    return {f"{name}": (factor / scale).round().to(torch.int8).contiguous(), f"{name}/scale": scale.half()}


def _unpack(tensors: dict[str, Tensor], name: str) -> Tensor:
    return tensors[name].float() * tensors[f"{name}/scale"].float()
