"""Quantised activations: sign with a tanh' surrogate, and 4 bits with a SAWB scale.

Both as in the experiments of AskewSGD (arXiv:2211.03741); the 4-bit rule is that of LUQ's code (arXiv:2112.10769).
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tracking.errors import UserError
from workbench.methods.lowbit._levels import SAWB, sign

EVAL_MOMENTUM = 0.1


class SignTanh(torch.autograd.Function):
    """Sign (0 goes to +1) forward, derivative of tanh backward: ``1 - tanh(x)^2``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return sign(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (1 - x.tanh().square())


class BinaryActivation(nn.Module):
    """Sign in the place of ReLU. Put a batch norm before it."""

    def forward(self, x: Tensor) -> Tensor:
        return SignTanh.apply(x)


class _StraightThrough(torch.autograd.Function):
    """Forward the second argument, hand its gradient to the first. (``x + (q - x)`` would round.)"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, q: Tensor) -> Tensor:
        return q

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def straight_through(x: Tensor, q: Tensor) -> Tensor:
    """``q`` with the derivative of ``x`` (identity)."""
    return _StraightThrough.apply(x, q)


def activation_clip(x: Tensor) -> Tensor:
    """Largest value represented, by SAWB with the 4-bit pair: ``12.1 sqrt(mean x^2) - 12.2 mean |x|``, a scalar.

    Kept to at most ``max |x|``, and at that where SAWB's value is not positive (a nearly constant ``|x|``): our choice, the
    rule being a fit to bell-shaped distributions.
    """
    c1, c2 = SAWB["4bit"]
    top = x.abs().amax()
    clip = c1 * x.square().mean().sqrt() - c2 * x.abs().mean()
    return torch.where(clip > 0, torch.minimum(clip, top), top)


class FourBitActivation(nn.Module):
    """Round to 16 evenly spaced values; the gradient passes straight through.

    Values are ``{0..15} clip/15`` as long as no negative input has been seen in training, from then on ``{-8..7}
    2 clip/15``, for good. (The authors' code keeps 15 as the upper end of the signed range, which 4 bits cannot hold.)

    In training the clip is that of the batch. In evaluation it is an exponential moving average over training batches
    (momentum 0.1, as batch norm's), so that one sample's output does not depend on the others in its batch: our choice.

    Buffers: ``clip`` (scalar; 0: no training batch seen yet, when evaluation takes the batch's), ``signed`` (bool).
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("clip", torch.zeros(()))
        self.register_buffer("signed", torch.zeros((), dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            clip, signed = self.clip, self.signed
            if self.training or clip == 0:
                clip = activation_clip(x)
                signed = signed | (x < 0).any()
            if self.training:
                first = self.clip == 0
                self.clip.copy_(torch.where(first, clip, torch.lerp(self.clip, clip.to(self.clip), EVAL_MOMENTUM)))
                self.signed.copy_(signed)
            step = (clip * (1 + signed.to(clip.dtype)) / 15).clamp_min(torch.finfo(x.dtype).tiny).to(x.dtype)
            q = torch.clamp(torch.round(x / step), torch.where(signed, -8.0, 0.0), torch.where(signed, 7.0, 15.0)) * step
        return straight_through(x, q)


def quantise_activations(model: nn.Module, kind: Literal["fp32", "binary", "4bit"]) -> nn.Module:
    """Replace every ``nn.ReLU`` in place: ``"binary"`` by sign, ``"4bit"`` by ReLU and rounding; returns the model.

    ``"fp32"`` changes nothing. Raises :class:`tracking.errors.UserError` when there is no such module to replace.
    """
    makers = {"fp32": None, "binary": lambda relu: BinaryActivation(),
              "4bit": lambda relu: nn.Sequential(copy.copy(relu), FourBitActivation())}
    if kind not in makers:
        raise ValueError(f"kind = {kind!r}; allowed: {', '.join(makers)}.")
    if makers[kind] is None:
        return model
    found = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()
             if isinstance(child, nn.ReLU)]
    if not found:
        raise UserError(f"activations = {kind!r} needs a network with nn.ReLU modules, and this one has none. Use 'fp32'.")
    for parent, name, relu in found:
        setattr(parent, name, makers[kind](relu).to(next(model.parameters()).device))
    return model
