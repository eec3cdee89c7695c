"""Forward and backward of the Boolean layers, as autograd functions: votes for weights, and signals for what lies upstream."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from workbench.boolean._compact import pack_signs, unpack_signs


class Options(NamedTuple):
    """How a Boolean layer treats signals."""

    scale: float
    """Factor on the upstream signal."""
    boolean: bool
    """Take the sign of the received signal alone."""
    turned: bool
    """The gate is xor: sums and signals change sign."""
    compact: bool
    """Keep one bit of each input."""


class LinearVotes(torch.autograd.Function):
    """``s = x w^T + b``; backward ``q = z^T x`` and ``g = scale z w``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, options: Options) -> Tensor:
        _keep(ctx, x, w, options)
        s = F.linear(x, w)
        s = s.neg_() if options.turned else s
        return s if b is None else s.add_(b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, z: Tensor) -> tuple[Tensor | None, ...]:
        x, w = _kept(ctx)
        votes, z = _received(z, ctx.options)
        to_x, to_w, to_b = ctx.needs_input_grad[:3]
        with _exactly(z):
            g = (z @ w.to(z.dtype)).mul_(ctx.options.scale).to(x.dtype) if to_x else None
            q = _rows(z).t() @ _rows(x) if to_w else None
            return g, q, _rows(votes).sum(0) if to_b else None, None


class Conv2dVotes(torch.autograd.Function):
    """The same for a convolution; ``shape`` is (stride, padding, dilation, groups)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, options: Options, shape: tuple[Any, ...]) -> Tensor:
        _keep(ctx, x, w, options)
        ctx.shape = shape
        s = F.conv2d(x, w, None, *shape)
        s = s.neg_() if options.turned else s
        return s if b is None else s.add_(b.view(-1, 1, 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, z: Tensor) -> tuple[Tensor | None, ...]:
        x, w = _kept(ctx)
        votes, z = _received(z, ctx.options)
        to_x, to_w, to_b = ctx.needs_input_grad[:3]
        with _exactly(z):
            if z.dtype == x.dtype == w.dtype:  # one call for both: the backend lays the signal out once
                g, q = _conv_backward(z, x, w, ctx.shape, to_x, to_w)
            else:
                g = _conv_backward(z, x.to(z.dtype), w.to(z.dtype), ctx.shape, to_x, False)[0]
                q = _conv_backward(_full(z), _full(x), _full(w), ctx.shape, False, to_w)[1]
            g = g.mul_(ctx.options.scale).to(x.dtype) if to_x else None
            return g, q, _full(votes).sum((0, 2, 3)) if to_b else None, None, None


def _conv_backward(z: Tensor, x: Tensor, w: Tensor, shape: tuple[Any, ...], to_x: bool, to_w: bool) -> tuple[Tensor | None, Tensor | None]:
    if not (to_x or to_w):
        return None, None
    stride, padding, dilation, groups = shape
    mask = [to_x, to_w, False]
    return torch.ops.aten.convolution_backward(z, x, w, None, stride, padding, dilation, False, [0, 0], groups, mask)[:2]


def _keep(ctx: Any, x: Tensor, w: Tensor, options: Options) -> None:
    ctx.options = options
    packed = options.compact and ctx.needs_input_grad[1]
    ctx.packed = (x.shape, x.dtype) if packed else None
    ctx.save_for_backward(pack_signs(x) if packed else x, w)


def _kept(ctx: Any) -> tuple[Tensor, Tensor]:
    x, w = ctx.saved_tensors
    return (unpack_signs(x, *ctx.packed) if ctx.packed else x), w


def _received(z: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """The signal as the layer takes it: for the bias, then for weights and inputs."""
    z = z.sign() if options.boolean else z
    return z, -z if options.turned else z


def _exactly(z: Tensor) -> torch.autocast:
    """A backward pass under autocast would round what is to be summed."""
    return torch.autocast(z.device.type, enabled=False)


def _rows(t: Tensor) -> Tensor:
    """Samples by features, to full precision."""
    return _full(t).reshape(-1, t.shape[-1])


def _full(t: Tensor) -> Tensor:
    """At least float32: the votes of a batch are to be summed to full precision, whatever autocast did to the factors.

    Values that were rounded to bfloat16 are exact in TF32, so a GPU that may use that loses nothing by it here.
    """
    return t.float() if t.dtype in (torch.bfloat16, torch.float16) else t
