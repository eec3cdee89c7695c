"""Projected gradient: every step is followed by a projection, so that nothing but the projected weight is remembered.

The "projected" baseline of Leconte, Schechtman & Moulines, "AskewSGD", AISTATS 2023, PMLR 206:3644-3663.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from workbench.method import Context
from workbench.methods.lowbit._levels import quantised_layers
from workbench.methods.lowbit._optim import LowBitOptimizer
from workbench.methods.lowbit._training import LowBitParams, LowBitTraining, quantised_plan
from workbench.params import Field

if TYPE_CHECKING:
    from tracking.energy_model import PrecisionPlan


def to_sphere(w: Tensor) -> Tensor:
    """``w`` scaled to the norm ``sqrt(d)`` of a vector of signs, d being its number of entries; zero stays zero."""
    return w * (w.numel() ** 0.5 / torch.linalg.vector_norm(w).clamp_min(torch.finfo(w.dtype).tiny))


class ProjectedGradient(LowBitOptimizer):
    """Projected gradient over SGD or Adam: ``W <- projection(W - lr * direction(dloss/dW))``.

    The parameter is ``W``, also in the forward pass. Deployed are the nearest levels. A step shorter than half a gap
    between levels leaves a weight that is on its level where it was, so ``projection="levels"`` needs a learning rate
    that carries weights across.

    Args:
        projection: ``"levels"`` puts each weight on its nearest level, ``sign(W)`` for binary weights; ``"l2"`` scales
            each layer to the sphere of radius ``sqrt(d)``, on which the sign vectors lie.
    """

    def __init__(
        self, params: Iterable[Any], *, lr: float, projection: Literal["levels", "l2"] = "levels", **common: Any,
    ) -> None:
        if projection not in ("levels", "l2"):
            raise ValueError(f"projection = {projection!r}; allowed: 'levels', 'l2'.")
        super().__init__(params, lr=lr, projection=projection, **common)

    def _update(self, group: dict[str, Any], params: list[nn.Parameter]) -> None:
        self._descend(group, params, params, [p.grad for p in params])
        for p in params:
            p.copy_(self.quantise(p, group) if group["projection"] == "levels" else to_sphere(p))


# --- the method -------------------------------------------------------------------------------------------


class ProjectedTraining(LowBitTraining):
    """Quantised weights by projection after each step: the baseline that forgets every small step."""

    id = "projected"
    title = "Projected gradient"
    family = "lowbit"
    paper = "arXiv:2211.03741"
    kinds = ("classification",)
    example = {"task": "digits/mlp", "params": {"epochs": 8, "lr": 2.0}}

    class Params(LowBitParams):
        projection: Literal["levels", "l2"] = Field(
            "levels", description="after each step: weights to their nearest level, or layers to norm sqrt(d)")

    params: Params

    def precision(self, model: nn.Module) -> PrecisionPlan:
        p = self.params
        return quantised_plan(self.id, model, quantised_layers(model, p.layers), weights=p.weights if p.projection == "levels" else None,
                              activations=p.activations, weight_ops=2)

    def optimizer(self, model: nn.Module, ctx: Context) -> ProjectedGradient:
        return ProjectedGradient(self.groups(model), projection=self.params.projection, **self.common())
