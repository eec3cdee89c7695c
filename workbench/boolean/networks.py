"""From a float network to a Boolean one: thresholds for ReLUs, Boolean layers between the first and the last one.

BOLD (Nguyen et al., NeurIPS 2024, arXiv:2405.16339), sections 3 and 4 and appendices C and D. The first and the last layer stay in
full precision. A Boolean layer stands in the order layer, max-pool, batch norm (if any), threshold.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tracking.errors import UserError
from workbench.boolean.activation import Fork, Threshold, Window
from workbench.boolean.layers import BooleanConv2d, BooleanLayer, BooleanLinear
from workbench.datasets.models import BasicBlock

PASSED = (nn.Flatten, nn.Identity, nn.AdaptiveAvgPool2d)
"""Modules that stay as they are."""


@dataclass(frozen=True)
class BooleanOptions:
    """How Boolean layers and thresholds are made; what is left open follows from ``batch_norm``."""

    batch_norm: bool = False
    """Keep the batch norms of the float network; else leave them out."""
    window: Window | None = None
    """Of every threshold. ``None``: approx_sign behind a batch norm, as the paper says, and tanh elsewhere."""
    scaling: bool | None = None
    """Scale upstream signals to keep their variance. ``None``: where no batch norm follows (our reading; the paper leaves it open)."""
    signal: Literal["real", "bool"] = "real"
    pad_value: Literal[0, -1] = 0
    shortcut_kernel: Literal[1, 3] = 3
    """Of the convolution in a residual block's shortcut; 3 in the paper's final networks."""

    @property
    def scale(self) -> Literal["auto"] | None:
        """Of a Boolean layer."""
        scaled = not self.batch_norm if self.scaling is None else self.scaling
        return "auto" if scaled else None

    def threshold(self, *sources: BooleanLayer) -> Threshold:
        """The threshold of the sum of what ``sources`` put out; of real-valued sums where there is none."""
        window = self.window or ("approx_sign" if self.batch_norm else "tanh")
        # a norm brings sums to unit spread, whatever their fan-in
        counted = sources and not self.batch_norm
        return Threshold.after(*sources, window=window) if counted else Threshold(window=window)

    def conv(self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, *,
             generator: torch.Generator | None = None) -> BooleanConv2d:
        """A convolution that keeps the size of its input at stride 1."""
        return BooleanConv2d(inputs, outputs, kernel, stride, padding=dilation * (kernel // 2), dilation=dilation, scale=self.scale,
                             signal=self.signal, pad_value=self.pad_value, generator=generator)


class BooleanBlock(nn.Module):
    """Residual block on Boolean values (paper, appendix D: block I), ``(n, inputs, h, w)`` of +-1 to ``(n, outputs, h/stride, w/stride)``.

    Two 3x3 convolutions with a threshold between them, plus one convolution in the shortcut, always there, so that both branches
    are integer sums of the same kind; then a threshold of the sum. With batch norm each convolution has one.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, options: BooleanOptions | None = None, *, dilation: int = 1,
                 generator: torch.Generator | None = None) -> None:
        super().__init__()
        made = options or BooleanOptions()
        self.fork = Fork()
        self.conv1 = made.conv(inputs, outputs, 3, stride, dilation, generator=generator)
        self.conv2 = made.conv(outputs, outputs, 3, 1, dilation, generator=generator)
        self.shortcut = made.conv(inputs, outputs, made.shortcut_kernel, stride, generator=generator)
        self.norm1, self.norm2, self.norm3 = (nn.BatchNorm2d(outputs) if made.batch_norm else nn.Identity() for _ in range(3))
        self.threshold1 = made.threshold(self.conv1)
        self.threshold2 = made.threshold(self.conv2, self.shortcut)

    def forward(self, x: Tensor) -> Tensor:
        x, beside = self.fork(x)
        x = self.norm2(self.conv2(self.threshold1(self.norm1(self.conv1(x)))))
        return self.threshold2(x + self.norm3(self.shortcut(beside)))


def booleanise(model: nn.Module, options: BooleanOptions | None = None, *, generator: torch.Generator | None = None) -> nn.Module:
    """The Boolean network in the place of ``model``; the first and the last layer, and norms where they are kept, are its own modules.

    Boolean weights are the signs of the float ones, which are fair coins where those were drawn symmetrically; weights that the float
    network does not have (shortcuts of residual blocks) come from ``generator``.

    Args:
        model: a network that makes its own Boolean form by a method ``boolean(options, *, generator)``, which is then called, or
            an ``nn.Sequential``, nested or not, of Linear, Conv2d, MaxPool2d(2), batch norm, ReLU, Flatten, AdaptiveAvgPool2d and
            :class:`workbench.datasets.models.BasicBlock`.
        options: how the layers are made.

    Raises :class:`tracking.errors.UserError` that names the layer that cannot be converted.
    """
    if own := getattr(model, "boolean", None):
        return own(options or BooleanOptions(), generator=generator)
    return _Conversion(model, options or BooleanOptions(), generator).model()


class _Conversion:
    """Walks through a network once; remembers what put out the values at hand."""

    def __init__(self, model: nn.Module, options: BooleanOptions, generator: torch.Generator | None) -> None:
        self.source, self.options, self.generator = model, options, generator
        layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
        if len(layers) < 3:
            raise UserError(f"This network has {len(layers)} layers with weights. The first and the last one stay in full precision, so "
                            "three or more are needed for a Boolean one. Take mlp, cnn, vgg_small or a ResNet.")
        self.ends = layers[0], layers[-1]
        self.sums: tuple[BooleanLayer, ...] = ()  # Boolean layers whose sums are at hand, none: real values
        self.boolean = False  # whether the values at hand are +-1
        self.normed = False  # whether a batch norm stands behind the last layer

    def model(self) -> nn.Module:
        if not isinstance(self.source, nn.Sequential):
            raise UserError(f"A {type(self.source).__name__} cannot be made Boolean: only an nn.Sequential says in which order its layers "
                            "run.")
        return self._sequential(self.source, "")

    def _sequential(self, module: nn.Sequential, prefix: str) -> nn.Sequential:
        children = list(module.named_children())
        made: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (name, child) in enumerate(children):
            converted = self._convert(child, f"{prefix}{name}", [c for _, c in children[i + 1:]])
            if converted is not None:
                made[name] = converted
        return nn.Sequential(made)

    def _convert(self, m: nn.Module, name: str, following: list[nn.Module]) -> nn.Module | None:
        """What stands in the place of ``m``; ``None``: nothing."""
        if isinstance(m, nn.Sequential):
            return self._sequential(m, f"{name}.")
        if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd)):
            return self._layer(m, name, following)
        if isinstance(m, BasicBlock):
            return self._block(m, name)
        if isinstance(m, _BatchNorm):
            self.normed = True
            return m if self.options.batch_norm else None
        if isinstance(m, nn.ReLU):
            if self.options.batch_norm and not self.normed:
                raise _refused(name, m, "batch_norm is on, and no batch norm stands before it; turn it off, or take a network with norms")
            sums, self.sums, self.boolean = self.sums, (), True
            return self.options.threshold(*sums).to(_device(self.source))
        if isinstance(m, nn.MaxPool2d):
            if self.boolean:
                raise _refused(name, m, "a maximum over signs is nearly always +1; pool before the activation, behind the layer")
            return m
        if isinstance(m, PASSED):
            return m
        raise _refused(name, m, "known are Linear, Conv2d, MaxPool2d, batch norms, ReLU, Flatten, AdaptiveAvgPool2d and BasicBlock")

    def _layer(self, m: nn.Module, name: str, following: list[nn.Module]) -> nn.Module:
        self.normed = False
        if m in self.ends:
            self.sums, self.boolean = (), False
            return m
        if not self.boolean:
            raise _refused(name, m, "it would see real values, for no ReLU stands between it and the layer before")
        if m.bias is not None:
            raise _refused(name, m, "a Boolean layer has no real-valued bias; build it with bias=False")
        common = {"scale": self.options.scale, "signal": self.options.signal, "generator": self.generator}
        if isinstance(m, nn.Linear):
            layer: BooleanLayer = BooleanLinear(m.in_features, m.out_features, **common)
        elif type(m) is nn.Conv2d and m.padding_mode == "zeros" and not isinstance(m.padding, str):
            layer = BooleanConv2d(m.in_channels, m.out_channels, m.kernel_size, m.stride, m.padding, m.dilation, m.groups,
                                  pad_value=self.options.pad_value, pooled=_pooled(following, name), **common)
        else:
            raise _refused(name, m, "of convolutions only Conv2d with zero padding of a given width can be Boolean")
        self.sums, self.boolean = (layer,), False
        return _with_signs(layer, m.weight)

    def _block(self, block: BasicBlock, name: str) -> BooleanBlock:
        if not self.boolean:
            raise _refused(name, block, "its input would be real values, for no ReLU stands before it")
        conv = block.conv1
        made = BooleanBlock(conv.in_channels, conv.out_channels, conv.stride[0], self.options, generator=self.generator)
        for ours, theirs in ((made.conv1, block.conv1), (made.conv2, block.conv2)):
            _with_signs(ours, theirs.weight)
        return made.to(conv.weight.device)


@torch.no_grad()
def _with_signs(layer: BooleanLayer, weight: Tensor) -> BooleanLayer:
    """``layer`` on the device of ``weight`` and with its signs, 0 going to +1."""
    layer.to(weight.device)
    layer.weight.copy_(torch.where(weight < 0, -1.0, 1.0))
    return layer


def _pooled(following: list[nn.Module], name: str) -> bool:
    """Whether a 2x2 max-pool comes between a convolution and its activation."""
    for m in following:
        if isinstance(m, nn.MaxPool2d):
            if (_area(m.kernel_size), _area(m.stride)) != (4, 4):
                raise _refused(name, m, "the scale of the signals is known for 2x2 pools with stride 2 only")
            return True
        if not isinstance(m, (_BatchNorm, nn.Identity)):
            return False
    return False


def _area(size: int | tuple[int, ...]) -> int:
    return size**2 if isinstance(size, int) else math.prod(size)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _refused(name: str, m: nn.Module, why: str) -> UserError:
    return UserError(f"Layer {name!r} ({type(m).__name__}) cannot be made Boolean: {why}.")
