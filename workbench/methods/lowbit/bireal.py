"""Bi-Real Net: one-bit convolutions with real-valued shortcuts, a closer derivative of the sign, magnitude-aware weights.

Liu, Wu, Luo, Yang, Liu & Cheng, "Bi-Real Net: Enhancing the Performance of 1-bit CNNs With Improved Representational Capability and
Advanced Training Algorithm", ECCV 2018, arXiv:1808.00278.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workbench.datasets.models import BasicBlock
from workbench.method import Context
from workbench.methods.lowbit._binary import WINDOWS, BinaryActivation, BinaryParams, binary_layer, inner_layers, sign_ste, swap
from workbench.methods.lowbit._levels import sign
from workbench.methods.lowbit.xnornet import ScaledBinaryTraining, filter_scale
from workbench.params import Field

if TYPE_CHECKING:
    from tracking.energy_model import PrecisionPlan


class _MagnitudeAwareSign(torch.autograd.Function):
    """``alpha sign(W)`` with ``alpha = mean |W|`` of a filter; backward ``g alpha 1[|W| <= 1]``, alpha as a constant (paper, eqs. 7-8)."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        alpha = filter_scale(w)
        ctx.save_for_backward(w, alpha)
        return alpha * sign(w)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        w, alpha = ctx.saved_tensors
        return grad * alpha * WINDOWS["hard_tanh"](w)


def magnitude_aware_sign(w: Tensor) -> Tensor:
    """Binary weight whose gradient grows with the magnitude of its filter; ``w``: ``(out, in, ...)``."""
    return _MagnitudeAwareSign.apply(w)


class BiRealBlock(nn.Module):
    """The two convolutions of a basic block, each between a sign and a batch norm, each with a real-valued shortcut (paper, Fig. 3).

    Where the block changes its size, the first shortcut is the original block's, in full precision.
    """

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2, self.shortcut = block.conv1, block.bn1, block.conv2, block.bn2, block.shortcut
        self.sign1, self.sign2 = BinaryActivation("approx_sign"), BinaryActivation("approx_sign")

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(self.sign1(x))) + self.shortcut(x)
        return self.bn2(self.conv2(self.sign2(x))) + x


# --- the method -------------------------------------------------------------------------------------------


class BiRealTraining(ScaledBinaryTraining):
    """One-bit weights and activations with ApproxSign; in residual networks the real values go on beside each binary layer.

    In a plain network ReLU becomes a sign and there is no shortcut. In a residual one, blocks become :class:`BiRealBlock` and
    the other ReLUs go, as in the authors' network, so its first and last layer face real values. (The authors put
    an average pooling into the shortcuts that change the size; ours are those of the task's network.)
    """

    id = "bireal"
    title = "Bi-Real Net"
    family = "lowbit"
    paper = "arXiv:1808.00278"
    kinds = ("classification",)
    example = {"task": "digits/mlp", "params": {"epochs": 8, "lr": 0.01}}

    class Params(BinaryParams):
        magnitude_aware: bool = Field(
            True, description="weights alpha sign(W), gradients to W times alpha, alpha = mean |W| of a filter; else plain sign(W)")

    params: Params

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        inner_layers(model)
        residual = swap(model, lambda m: isinstance(m, BasicBlock), BiRealBlock)
        swap(model, lambda m: isinstance(m, nn.ReLU), lambda _: nn.Identity() if residual else BinaryActivation("approx_sign"))
        rule = magnitude_aware_sign if self.params.magnitude_aware else sign_ste
        binary = {id(layer) for layer in inner_layers(model)} - {id(layer) for layer in real_shortcuts(model).values()}
        swap(model, lambda m: id(m) in binary, lambda m: binary_layer(m, rule))
        return model

    def precision(self, model: nn.Module) -> PrecisionPlan:
        from tracking.energy_model.plan import FP32

        return dataclasses.replace(super().precision(model), name=self.id, overrides=tuple((name, FP32) for name in real_shortcuts(model)))


def real_shortcuts(model: nn.Module) -> dict[str, nn.Module]:
    """Convolutions on the shortcuts, by name: they stay in full precision."""
    return {f"{path}.{name}": layer for path, block in model.named_modules() if isinstance(block, BiRealBlock)
            for name, layer in block.named_modules() if name.startswith("shortcut") and isinstance(layer, nn.Conv2d)}
