"""What a step of a module costs, and how fast modules on workers of their own could go at best.

Costs are counted in multiply-accumulates (MAC) of convolutions and linear layers; the backward pass takes twice the forward one.
With them Belilovsky et al. (ICML 2020) argue for the speed-up of decoupled training: at most K on K workers, less where modules are
uneven or heads are dear.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """``module`` in evaluation mode without gradients; every layer's own mode is put back."""
    modes = [(layer, layer.training) for layer in module.modules()]
    try:
        with torch.no_grad():
            yield module.eval()
    finally:
        for layer, mode in modes:
            layer.training = mode


def multiply_accumulates(module: nn.Module, x: Tensor, *more: Tensor) -> tuple[int, Tensor]:
    """MACs of one forward pass ``module(x, *more)`` for each sample of ``x``, and the output, in evaluation mode."""
    counted: list[int] = []

    def count(layer: nn.Module, _: tuple[Tensor, ...], out: Tensor) -> None:
        # weight[0] holds what one output value is computed from
        counted.append(layer.weight[0].numel() * out.numel() // len(x))

    hooks = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    try:
        with evaluating(module):
            out = module(x, *more)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counted), out


@dataclass(frozen=True)
class Costs:
    """MACs a sample of every module and of its head, forward pass only.

    ``primary`` and ``heads`` have one entry a module; a module without a head has 0.
    """

    primary: tuple[int, ...]
    heads: tuple[int, ...]

    @property
    def forward(self) -> tuple[float, ...]:
        """Share of end-to-end training's time that the forward pass of each module takes."""
        return tuple(f / self._whole for f in self.primary)

    @property
    def backward(self) -> tuple[float, ...]:
        """The same for the backward pass, which computes the gradients to weights and to inputs."""
        return tuple(2 * f / self._whole for f in self.primary)

    @property
    def local(self) -> tuple[float, ...]:
        """The same for a whole step of each module with its head: F + B + H."""
        return tuple(3 * (f + h) / self._whole for f, h in zip(self.primary, self.heads, strict=True))

    @property
    def _whole(self) -> float:
        # a network without a weight layer takes no time worth counting: equal shares
        return 3 * sum(self.primary) or math.inf

    @property
    def speedup(self) -> float:
        """sum(F + B) / max(F + B + H): throughput of the modules on workers of their own, over backprop's on one."""
        return 1 / max(self.local) if any(self.local) else 1.0


def module_costs(modules: Sequence[nn.Module], heads: Sequence[nn.Module], x: Tensor) -> Costs:
    """Costs of ``modules`` and ``heads`` (one each) on inputs ``x``."""
    primary, extra = [], []
    for module, head in zip(modules, heads, strict=True):
        macs, x = multiply_accumulates(module, x)
        primary.append(macs)
        extra.append(multiply_accumulates(head, x)[0])
    return Costs(tuple(primary), tuple(extra))
