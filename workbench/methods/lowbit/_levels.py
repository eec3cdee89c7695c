"""Quantisation levels and their scales, as pure functions of tensors.

Level sets are in integer units; a layer's scale turns them into weights. SAWB ("statistics-aware weight binning", Choi et al.
2018) sets the scale from two moments of the weights: ``clip = c1 sqrt(mean w^2) - c2 mean |w|``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Weights = Literal["binary", "ternary", "2bit", "4bit", "4bit16"]
"""``4bit`` has the 17 levels -8..8 of the AskewSGD paper and code; ``4bit16`` the 16 levels that fit in four bits."""

LEVELS: dict[str, tuple[float, ...]] = {
    "binary": (-1.0, 1.0),
    "ternary": (-1.0, 0.0, 1.0),
    "2bit": tuple(float(q) for q in range(-2, 3)),
    "4bit": tuple(float(q) for q in range(-8, 9)),
    "4bit16": tuple(float(q) for q in range(-8, 8)),
}

# SAWB coefficients (c1, c2). Ternary and 2 bit: published SAWB values. 4 bit: those in the code of LUQ, which the
# AskewSGD experiments use (the published SAWB pair is 12.68, 12.80). Binary: c1 = 0, c2 = -1 gives mean |w|.
SAWB: dict[str, tuple[float, float]] = {
    "binary": (0.0, -1.0),
    "ternary": (2.587, 1.693),
    "2bit": (3.212, 2.178),
    "4bit": (12.1, 12.2),
    "4bit16": (12.1, 12.2),
}


def sign(x: Tensor) -> Tensor:
    """Sign with ``sign(0) = +1``, so that a binary weight is never zero."""
    # a comparison written straight into floats is many times as fast as where() on a boolean mask
    return torch.ge(x.detach(), 0, out=torch.empty_like(x, requires_grad=False)).mul_(2).sub_(1)


def sawb_scale(w: Tensor, weights: Weights) -> Tensor:
    """Step between neighbouring levels by SAWB: ``2 clip / (Qp - Qn)``; a positive scalar tensor.

    The 4-bit pair, a fit to bell-shaped distributions, gives a negative clip where all ``|w|`` are nearly equal; so the
    clip is at least half of ``mean |w|`` (our choice; no other pair reaches that bound).
    """
    c1, c2 = SAWB[weights]
    mean = w.abs().mean()
    clip = torch.maximum(c1 * w.square().mean().sqrt() - c2 * mean, mean / 2)
    levels = LEVELS[weights]
    return (2 * clip / (levels[-1] - levels[0])).clamp_min(1e-8)


def nearest_level(w: Tensor, levels: Tensor) -> Tensor:
    """The nearest of the sorted ``levels`` (1-D) to each entry of ``w``; a tie goes up."""
    middles = (levels[1:] + levels[:-1]) / 2
    return levels[torch.bucketize(w.contiguous(), middles, right=True)]


def quantised_layers(model: nn.Module, layers: Literal["all", "inner", "conv3x3"]) -> list[nn.Module]:
    """Layers whose weights a method quantises.

    ``all``: every linear and convolutional layer. ``inner``: all but the first and the last such layer. ``conv3x3``:
    convolutions whose kernel is neither 1 nor 7 wide (the multi-bit ImageNet code of AskewSGD).
    """
    if layers not in ("all", "inner", "conv3x3"):
        raise ValueError(f"layers = {layers!r}; allowed: 'all', 'inner', 'conv3x3'.")
    found = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    if layers == "inner":
        return found[1:-1]
    if layers == "conv3x3":
        return [m for m in found if isinstance(m, nn.modules.conv._ConvNd) and m.kernel_size[0] not in (1, 7)]
    return found


def quantised_parameters(model: nn.Module, layers: Literal["all", "inner", "conv3x3"]) -> list[nn.Parameter]:
    """Weights of :func:`quantised_layers`."""
    return [m.weight for m in quantised_layers(model, layers)]
