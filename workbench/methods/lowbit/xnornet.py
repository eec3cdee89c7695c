"""XNOR-Net: one-bit weights with a real scale for each filter, one-bit activations.

Rastegari, Ordonez, Redmon & Farhadi, "XNOR-Net: ImageNet Classification Using Binary Convolutional Neural Networks", ECCV 2016,
arXiv:1603.05279.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workbench.method import Context
from workbench.methods.lowbit._binary import WINDOWS, BinaryTraining, binary_layer, inner_layers, swap
from workbench.methods.lowbit._levels import sign
from workbench.methods.supervised import SupervisedState
from workbench.task import SupervisedTask

if TYPE_CHECKING:
    from tracking.energy_model import PrecisionPlan


def filter_scale(w: Tensor) -> Tensor:
    """``alpha = mean |W|`` of each filter (paper, eq. 6), shape ``(out, 1, ...)``: with ``sign(W)`` the nearest ``alpha B`` to ``W``."""
    return w.abs().flatten(1).mean(1).view(-1, *[1] * (w.dim() - 1))


class _XnorWeight(torch.autograd.Function):
    """``alpha sign(W)``; backward ``g (1/n + alpha 1[|W| <= 1])`` with ``n`` entries in a filter (paper, section 3.1)."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        alpha = filter_scale(w)
        ctx.save_for_backward(w, alpha)
        return alpha * sign(w)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        w, alpha = ctx.saved_tensors
        return grad * (1 / w[0].numel() + alpha * WINDOWS["hard_tanh"](w))


def xnor_weight(w: Tensor) -> Tensor:
    """The weight in an XNOR-Net product for the latent weight ``(out, in, ...)``."""
    return _XnorWeight.apply(w)


class ScaledBinaryTraining(BinaryTraining):
    """Latent weights are the parameters, each layer binarises its own; deployed are signs and scales."""

    def deploy(self, state: SupervisedState) -> nn.Module:
        twin = copy.deepcopy(state.model)
        for layer in inner_layers(twin):
            if hasattr(layer, "fold"):
                layer.fold()
        return twin

    def evaluate(self, state: SupervisedState, task: SupervisedTask, ctx: Context) -> dict[str, float]:
        """Of the deployed network alone: no product is ever at the latent weights."""
        return self.quality(self.deploy(state), task, ctx)

    def precision(self, model: nn.Module) -> PrecisionPlan:
        from tracking.energy_model.plan import xnor_net

        return xnor_net()


class XNORNetTraining(ScaledBinaryTraining):
    """One-bit weights with a scale a filter and one-bit activations; the scale is the closed-form best one.

    The scale ``K`` of the inputs (paper, section 3.2) is left out: it costs a real-valued convolution a layer, and batch norm follows.
    """

    id = "xnornet"
    title = "XNOR-Net"
    family = "lowbit"
    paper = "arXiv:1603.05279"
    kinds = ("classification",)
    example = {"task": "digits/mlp", "params": {"epochs": 8, "lr": 0.01}}

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        model = super().prepare(model, ctx)
        inner = inner_layers(model)
        swap(model, lambda m: any(m is layer for layer in inner), lambda m: binary_layer(m, xnor_weight))
        return model
