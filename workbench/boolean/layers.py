"""Boolean linear and convolution layers: +-1 weights, votes as backward signals.

BOLD (Nguyen et al., NeurIPS 2024, arXiv:2405.16339), section 3 and appendices B and C. In +-1 units an xnor is a product and the
number of TRUEs is, up to a constant, a sum. So with inputs ``X``, weights ``W`` and the received signal ``Z = dloss/ds``::

    s = X W^T          pre-activation, in [-n, n]
    Q = Z^T X          weight signal, summed over the batch; lands in weight.grad for the Boolean optimiser, never scaled
    G = c Z W          upstream signal; c keeps its variance from layer to layer (:mod:`workbench.boolean.scaling`)

Inputs may be +-1 (Boolean neuron) or real (each weight adds or subtracts its input). A real-weight layer on Boolean inputs is
an ordinary ``nn.Linear`` or ``nn.Conv2d`` under Adam: no class of its own is needed.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracking.errors import UserError, unknown
from workbench.boolean._functions import Conv2dVotes, LinearVotes, Options
from workbench.boolean.scaling import conv_scale, linear_scale

Pair = int | tuple[int, int]
Scale = Literal["auto"] | float | None


def mark_boolean(p: nn.Parameter) -> nn.Parameter:
    """Tag a parameter as Boolean, for :func:`workbench.boolean.split_parameters`; its values are to be +-1."""
    p.is_boolean = True
    return p


def random_signs(shape: tuple[int, ...], *, generator: torch.Generator | None = None, device: Any = None, dtype: Any = None) -> Tensor:
    """Independent fair +-1; a generator on another device than ``device`` is drawn from there and the values are moved."""
    source = generator.device if generator is not None else device
    bits = torch.randint(2, shape, generator=generator, device=source, dtype=torch.int8)
    return (2 * bits - 1).to(device, dtype or torch.get_default_dtype())


class BooleanLayer(nn.Module):
    """What the Boolean layers share: options, initialisation, and the tag on their parameters."""

    def __init__(self, shape: tuple[int, ...], bias: bool, scale: float, signal: str, gate: str, compact: bool, device: Any, dtype: Any,
                 generator: torch.Generator | None) -> None:
        super().__init__()
        if min(shape) < 1:
            raise UserError(f"{type(self).__name__} was given a weight of shape {shape}: every size must be at least 1, and a "
                            "number of channels a multiple of groups.")
        if signal not in ("real", "bool"):
            raise unknown("signal", signal, ("real", "bool"))
        if gate not in ("xnor", "xor"):
            raise unknown("gate", gate, ("xnor", "xor"))
        self.scale, self.signal, self.gate, self.compact = scale, signal, gate, compact
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(shape[0], device=device, dtype=dtype)) if bias else None
        self._mark()
        self.reset_parameters(generator)

    @property
    def fan_in(self) -> int:
        """Number of +-1 terms in a pre-activation."""
        return self.weight[0].numel()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw every weight TRUE or FALSE with probability 1/2, from ``generator`` or PyTorch's own."""
        for p in self.parameters(recurse=False):
            p.copy_(random_signs(p.shape, generator=generator, device=p.device, dtype=p.dtype))

    def _mark(self) -> None:
        for p in self.parameters(recurse=False):
            mark_boolean(p)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._mark()  # a copied parameter has lost its attributes

    def _options(self) -> Options:
        return Options(self.scale, self.signal == "bool", self.gate == "xor", self.compact)

    def _words(self) -> str:
        return (f"bias={self.bias is not None}, scale={self.scale:.4g}, signal={self.signal!r}, gate={self.gate!r}, "
                f"compact={self.compact}")


def _factor(scale: Scale, auto: float) -> float:
    if scale is None:
        return 1.0
    if scale == "auto":
        return auto
    if isinstance(scale, str) or not math.isfinite(scale):
        raise UserError(f"scale = {scale!r}; allowed: 'auto' (variance-preserving), a number, or None (1, as with a batch norm behind).")
    return float(scale)


class BooleanLinear(BooleanLayer):
    """Boolean linear layer: ``(..., in_features)`` to ``(..., out_features)``, pre-activations in +-1 units.

    Args:
        bias: add a Boolean bias of one vote, trained as if its input were TRUE.
        scale: factor on the upstream signal: ``"auto"`` is ``sqrt(2 / out_features)`` (C.2), ``None`` is 1, which is our choice where a
            batch norm follows, because that scales signals itself.
        signal: ``"bool"`` keeps the sign of the received signal alone, 0 staying 0; ``"real"`` takes it as it comes.
        gate: ``"xor"`` turns the sign of the sum and of both signals, for parity with the {0, 1} form; the bias keeps its own.
        compact: keep one bit of each input for the backward pass, not the input itself; inputs are to be +-1. Costs some time.
        generator: source of the initial weights.

    Raises :class:`tracking.errors.UserError` for an unknown option.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = False, *, scale: Scale = "auto", signal: Literal["real", "bool"] = "real",
        gate: Literal["xnor", "xor"] = "xnor", compact: bool = False, device: Any = None, dtype: Any = None,
        generator: torch.Generator | None = None,
    ) -> None:
        factor = _factor(scale, linear_scale(max(out_features, 1)))
        super().__init__((out_features, in_features), bias, factor, signal, gate, compact, device, dtype, generator)

    def forward(self, x: Tensor) -> Tensor:
        return LinearVotes.apply(x, self.weight, self.bias, self._options())

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, {self._words()}"


class BooleanConv2d(BooleanLayer):
    """Boolean convolution: ``(batch, in_channels, height, width)`` to pre-activations in +-1 units.

    Args:
        pad_value: what stands beyond the border: 0, the neutral third logic value, or -1, FALSE, as zero padding is in the {0, 1} form.
        pooled: a 2x2 max-pool follows, before the threshold: doubles the ``"auto"`` scale (C.2).
        scale: factor on the upstream signal: ``"auto"`` is ``sqrt(2 v / (out_channels k_x k_y / groups))``.
        bias, signal, gate, compact, generator: as in :class:`BooleanLinear`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Pair, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1,
        groups: int = 1, bias: bool = False, *, pad_value: Literal[0, -1] = 0, pooled: bool = False, scale: Scale = "auto",
        signal: Literal["real", "bool"] = "real", gate: Literal["xnor", "xor"] = "xnor", compact: bool = False, device: Any = None,
        dtype: Any = None, generator: torch.Generator | None = None,
    ) -> None:
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise UserError(f"groups = {groups} must divide in_channels = {in_channels} and out_channels = {out_channels}.")
        if pad_value not in (0, -1):
            raise UserError(f"pad_value = {pad_value!r}; allowed: 0 (neutral), -1 (FALSE).")
        kernel_size, stride = _pair(kernel_size), _pair(stride)
        auto = conv_scale(max(out_channels, 1), kernel_size, stride, groups=groups, pooled=pooled)
        super().__init__((out_channels, in_channels // groups, *kernel_size), bias, _factor(scale, auto), signal, gate, compact,
                         device, dtype, generator)
        self.stride, self.padding, self.dilation, self.groups = stride, _pair(padding), _pair(dilation), groups
        self.pad_value, self.pooled = pad_value, pooled

    def forward(self, x: Tensor) -> Tensor:
        padding = self.padding
        if self.pad_value and any(padding):
            (top, left), padding = padding, (0, 0)
            x = F.pad(x, (left, left, top, top), value=self.pad_value)
        return Conv2dVotes.apply(x, self.weight, self.bias, self._options(), (self.stride, padding, self.dilation, self.groups))

    def extra_repr(self) -> str:
        out, inputs, *kernel = self.weight.shape
        return (f"{inputs * self.groups}, {out}, kernel_size={tuple(kernel)}, stride={self.stride}, padding={self.padding}, "
                f"dilation={self.dilation}, groups={self.groups}, pad_value={self.pad_value}, pooled={self.pooled}, {self._words()}")


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)
