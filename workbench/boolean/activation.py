"""Threshold activation with a windowed backward signal, and the fork of a residual block.

BOLD (Nguyen et al., NeurIPS 2024, arXiv:2405.16339), section 3 and appendix C.3.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tracking.errors import UserError, unknown
from workbench.boolean._compact import pack_integers
from workbench.boolean.layers import BooleanLayer
from workbench.boolean.scaling import SPREAD, WINDOWS, window_slope

MOMENTUM = 0.1  # of the running spread, as batch norm's

Window = Literal["tanh", "rational", "exponential", "approx_sign", "none"]


class Threshold(nn.Module):
    """``+1 where s >= tau, else -1``, of any shape; backward ``z`` times a window round the threshold.

    The window weighs a signal by the distance ``|s - tau|``: a unit far from its threshold would not have changed its output, so it is
    told less. It is no derivative: the slope alpha stands within the window and does not multiply it.

    ========================  ====================================  ==========================================
    ``window``                weight at ``d = alpha |s - tau|``     use
    ========================  ====================================  ==========================================
    ``"tanh"``                ``1 - tanh(d)^2``                     the paper's, without batch norm
    ``"rational"``            ``(1 + d)^-2``                        named by the paper
    ``"exponential"``         ``exp(-d)``                           named by the paper
    ``"approx_sign"``         ``max(0, 2 - 2 d)``, alpha = 1        after a batch norm (Bi-Real Net, ECCV 2018)
    ``"none"``                1                                     ablation
    ========================  ====================================  ==========================================

    ``alpha = pi / (2 sqrt(3 fan_in))`` for a sum of ``fan_in`` products of +-1, in [-fan_in, fan_in]; max-pooled sums have the same, two
    added branches the sum of both fan-ins (our choice). The paper names the rational and exponential windows without alpha; ours
    have it, so that one window means the same at every fan-in.

    Args:
        tau: threshold, in the units of ``s``.
        fan_in: terms of the pre-activation. ``None``, for real-valued sums: ``alpha = pi / (2 sqrt(3) sigma)`` with sigma the
            running standard deviation of ``s`` over training batches (our choice), in the buffer ``sigma``; 0: none seen yet.
        compact: keep ``s`` as 16-bit integers for the backward pass; for sums of +-1 alone. Costs some time.
    """

    def __init__(self, tau: float = 0.0, window: Window = "tanh", fan_in: int | None = None, *, compact: bool = False) -> None:
        super().__init__()
        if window not in WINDOWS:
            raise unknown("window", window, WINDOWS)
        if not math.isfinite(tau):
            raise UserError(f"tau = {tau!r} must be a finite number.")
        if fan_in is not None and fan_in < 1:
            raise UserError(f"fan_in = {fan_in!r} must be at least 1, or None for real-valued pre-activations.")
        self.tau, self.window, self.fan_in, self.compact = float(tau), window, fan_in, compact
        self.tracks = fan_in is None and window not in ("approx_sign", "none")
        if self.tracks:
            self.register_buffer("sigma", torch.zeros(()))

    @classmethod
    def after(cls, *layers: BooleanLayer, **options: Any) -> Threshold:
        """The threshold of the sum of the outputs of ``layers``: one, or both branches of a residual block."""
        return cls(fan_in=sum(layer.fan_in for layer in layers), **options)

    def forward(self, s: Tensor) -> Tensor:
        return _Threshold.apply(s, self.tau, self.window, self.slope(s), self.compact)

    @torch.no_grad()
    def slope(self, s: Tensor) -> float | Tensor:
        """Alpha for the pre-activation ``s``; in training the running spread takes ``s`` in first."""
        if not self.tracks:
            return 1.0 if self.fan_in is None or self.window == "approx_sign" else window_slope(self.fan_in)
        sigma = self.sigma
        if self.training:
            seen = s.detach().to(sigma.dtype)
            # by norm and mean, several times as fast as std() on a CPU; the digits it can lose do not matter to a window
            seen = (torch.linalg.vector_norm(seen).square() / seen.numel() - seen.mean().square()).clamp_min(0).sqrt()
            sigma.copy_(torch.where(sigma == 0, seen, torch.lerp(sigma, seen, MOMENTUM)))
        return SPREAD / torch.where(sigma == 0, 1.0, sigma)  # 0: nothing seen yet, or nothing but one value

    def extra_repr(self) -> str:
        return f"tau={self.tau:g}, window={self.window!r}, fan_in={self.fan_in}, compact={self.compact}"


class _Threshold(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor, tau: float, window: str, slope: float | Tensor, compact: bool) -> Tensor:
        if window != "none" and ctx.needs_input_grad[0]:
            ctx.save_for_backward(pack_integers(s) if compact else s)
        ctx.options = tau, window, slope
        # Not torch.sign: an even fan-in meets s = tau, which is TRUE. A comparison that writes 1 and 0 as floats is, on a CPU, ten times as
        # fast as one that makes a mask to choose by.
        return torch.ge(s, tau, out=torch.empty_like(s)).mul_(2).sub_(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, z: Tensor) -> tuple[Tensor | None, ...]:
        tau, window, slope = ctx.options
        if window == "none":
            return z, None, None, None, None
        (s,) = ctx.saved_tensors
        s = s.to(z.dtype)
        d = (s - tau if tau else s) * slope
        if window == "tanh":
            return torch.ops.aten.tanh_backward(z, d.tanh_()), None, None, None, None
        d.abs_()
        if window == "rational":
            weight = d.add_(1).square_().reciprocal_()
        elif window == "exponential":
            weight = d.neg_().exp_()
        else:
            weight = d.mul_(-2).add_(2).relu_()
        return weight.mul_(z), None, None, None, None


class Fork(nn.Module):
    """Hand one tensor to several branches; their upstream signals are added and divided by ``sqrt(branches)``.

    So the variance of the signal is that of one branch (our choice, where the paper's C.2 is silent). Returns a tuple of the same tensor.
    """

    def __init__(self, branches: int = 2) -> None:
        super().__init__()
        if branches < 1:
            raise UserError(f"branches = {branches!r} must be at least 1.")
        self.branches = branches

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (_ScaleSignal.apply(x, self.branches**-0.5),) * self.branches

    def extra_repr(self) -> str:
        return f"branches={self.branches}"


class _ScaleSignal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, z: Tensor) -> tuple[Tensor, None]:
        return z * ctx.factor, None
