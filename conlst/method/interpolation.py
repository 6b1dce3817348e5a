"""Weights between two models: what training forgot comes back, most of what it learned stays (Wortsman et al., 2022, WiSE-FT)."""

import torch
from torch import Tensor, nn


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the parameters that train, by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def interpolate(model: nn.Module, began: dict[str, Tensor], share: float) -> None:
    """Set ``θ = share θ + (1 - share) θ_began`` in place.

    Args:
        began: of :func:`trained_weights`, before the training; a parameter that it does not name stays as it is.
        share: of the present weights.
    """
    for name, parameter in model.named_parameters():
        if name in began:
            parameter.lerp_(began[name], 1 - share)
