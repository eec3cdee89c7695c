"""What there is to see inside a network of few bits: weights before and after quantisation, votes for flips, flips by layer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn

from workbench.boolean._flip_optimizer import LayerReport
from workbench.method import View
from workbench.methods.lowbit._optim import LowBitOptimizer

LAYERS = 6
"""Layers that are told apart in one histogram, at most; more are drawn as one."""


def values(*tensors: Tensor) -> np.ndarray:
    """All entries, flat, float32."""
    return np.concatenate([t.detach().float().cpu().numpy().ravel() for t in tensors])


def quantised_views(latent: Mapping[str, Tensor], deployed: Mapping[str, Tensor]) -> list[View]:
    """Weights before and after quantisation, by layer: the pile-up at the levels, and how far the latent weights are from them."""
    if not deployed:
        return []
    groups = {"latent": values(*latent.values()), "deployed": values(*deployed.values())}
    far = {name: float((latent[name].detach() - q.detach()).abs().mean()) for name, q in deployed.items()}
    return [View("Quantised weights", "histogram", groups, x="weight", note="Latent: what is trained. Deployed: what is shipped."),
            View("Distance of the latent weights from their levels", "bars", far, x="layer", y="mean |latent - deployed|")]


def latent_views(model: nn.Module, optimizer: LowBitOptimizer) -> list[View]:
    """The same where the optimiser holds the latent weights."""
    deployed, names = optimizer.deployed(), {p: n.removesuffix(".weight") for n, p in model.named_parameters()}
    return quantised_views({names[p]: optimizer.latent(p) for p in deployed}, {names[p]: q for p, q in deployed.items()})


def weight_views(model: nn.Module) -> list[View]:
    """Distribution of the weights, by layer."""
    weights = {name.removesuffix(".weight"): p for name, p in model.named_parameters() if p.dim() > 1}
    return [View("Weights", "histogram", _few(weights), x="weight")] if weights else []


def flip_views(reports: Mapping[str, LayerReport]) -> list[View]:
    """Flips by layer, since the start and in the last step; nothing before the first step."""
    if not reports:
        return []
    return [View("Flips since the start", "bars", {name: r.total_flips / r.size for name, r in reports.items()}, x="layer",
                 y="flips for each weight of the layer"),
            View("Flips of the last step", "bars", {name: r.flip_rate for name, r in reports.items()}, x="layer",
                 y="share of the layer's weights [fraction]")]


def vote_view(votes: Mapping[str, Tensor], x: str, note: str) -> View:
    """Votes against the weights, ``m w``, by layer: a weight of +-1 flips where they pass a threshold."""
    return View("Votes against the weights", "histogram", _few(votes), x=x, note=note)


def _few(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """By layer where these are few."""
    if len(tensors) > LAYERS:
        return {f"all {len(tensors)} layers": values(*tensors.values())}
    return {f"layer {name}": values(t) for name, t in tensors.items()}
