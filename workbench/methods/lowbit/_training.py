"""Training with quantised weights: what the low-bit methods add to supervised training."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from workbench.method import Context
from workbench.methods.lowbit._levels import Weights, quantised_parameters
from workbench.methods.lowbit._optim import LowBitOptimizer
from workbench.methods.supervised import SupervisedParams, SupervisedState, SupervisedTraining, copy_with
from workbench.params import Field


class LowBitParams(SupervisedParams):
    """What every low-bit training has."""

    weights: Weights = Field("binary", description="level set of the quantised weights")
    scale: Literal["unit", "sawb"] = Field("unit", description="levels at integer values, or scaled by layer (SAWB)")
    layers: Literal["all", "inner", "conv3x3"] = Field("all", description="which layers' weights are quantised")
    activations: Literal["fp32", "binary", "4bit"] = Field("fp32", description="what the activation functions put out")


class LowBitTraining(SupervisedTraining):
    """Supervised training whose optimiser is a :class:`LowBitOptimizer`."""

    Params = LowBitParams
    params: LowBitParams

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        from workbench.methods.lowbit._activations import quantise_activations

        return quantise_activations(model, self.params.activations)

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameter groups: the quantised weights, then the others (trained plainly), if any."""
        p = self.params
        quantised = quantised_parameters(model, p.layers)
        ids = {id(w) for w in quantised}
        plain = [w for w in model.parameters() if id(w) not in ids]
        groups = [{"params": quantised, "weights": p.weights}, {"params": plain, "weights": None}]
        return [g for g in groups if g["params"]]

    def common(self) -> dict[str, Any]:
        """Keyword arguments that every :class:`LowBitOptimizer` takes."""
        p = self.params
        return dict(lr=p.lr, base=p.base, momentum=p.momentum, weight_decay=p.weight_decay, scale=p.scale)

    def optimizer(self, model: nn.Module, ctx: Context) -> LowBitOptimizer:
        raise NotImplementedError

    def deploy(self, state: SupervisedState) -> nn.Module:
        return copy_with(state.model, state.optimizer.deployed())
