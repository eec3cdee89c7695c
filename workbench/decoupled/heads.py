"""Auxiliary heads: what turns the output of a module into class scores, for its local loss.

Belilovsky, Eickenberg & Oyallon, "Decoupled greedy learning of CNNs", ICML 2020 (arXiv:1901.08164), with the sizes of its official
code. That code counts a batch norm of 2c parameters into its MLP heads and never applies it; it is left out here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tracking.errors import UserError, unknown
from workbench.datasets.models import initialise, pooled_mlp
from workbench.decoupled.costs import evaluating


def _conv(channels: int, kernel: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]


def mlp_sr(c: int, h: int, w: int, outputs: int) -> list[nn.Module]:
    """Pooled to ceil(h/4) x ceil(w/4); three 1x1 convolutions; pooled to 2x2; three hidden layers of 4c units."""
    convolutions = [layer for _ in range(3) for layer in _conv(c, 1)]
    return [nn.AdaptiveAvgPool2d((math.ceil(h / 4), math.ceil(w / 4))), *convolutions, *pooled_mlp(c, outputs, 3, _grid(h, w))]


def mlp(c: int, h: int, w: int, outputs: int) -> list[nn.Module]:
    """The same without convolutions, pooled to 2x2 at once: the head of the buffer experiments."""
    return pooled_mlp(c, outputs, 3, _grid(h, w))


def cnn(c: int, h: int, w: int, outputs: int) -> list[nn.Module]:
    """Two 3x3 convolutions at full resolution; pooled to 2x2; batch norm; linear."""
    grid = _grid(h, w)
    return [*_conv(c, 3), *_conv(c, 3), nn.AdaptiveAvgPool2d(grid), nn.BatchNorm2d(c), nn.Flatten(), nn.Linear(c * grid**2, outputs)]


def average(c: int, h: int, w: int, outputs: int) -> list[nn.Module]:
    """Mean over all positions, then linear."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, outputs)]


def linear(c: int, h: int, w: int, outputs: int) -> list[nn.Module]:
    """Linear in all values."""
    return [nn.Flatten(), nn.Linear(c * h * w, outputs)]


def conv5(c: int, h: int, w: int, outputs: int) -> list[nn.Module]:
    """Three 5x5 convolutions, as many as a DNI synthesiser has, the last one, like its, zero at first; mean over positions; linear."""
    last = nn.Conv2d(c, c, 5, padding=2, bias=False)
    return [*_conv(c, 5), *_conv(c, 5), last, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, outputs)]


HEADS: dict[str, Callable[[int, int, int, int], list[nn.Module]]] = {
    "mlp_sr": mlp_sr, "mlp": mlp, "cnn": cnn, "average": average, "linear": linear, "conv5": conv5,
}


def _grid(h: int, w: int) -> int:
    """Side of what the classifier sees: 2, or 1 where there is one position only, as in the output of a linear layer."""
    return 1 if h == w == 1 else 2


def auxiliary_head(kind: str, shape: Sequence[int], outputs: int, generator: torch.Generator | None = None) -> nn.Module:
    """A head for module outputs ``(n, *shape)`` with ``shape`` (c, h, w), or (c,), which counts as c channels of one position.

    Weights are drawn from ``generator`` where one is given (and the global generators left alone). Raises :class:`UserError` for
    an unknown kind or another shape.
    """
    if kind not in HEADS:
        raise unknown("auxiliary head", kind, HEADS)
    if len(shape) not in (1, 3):
        raise UserError(f"An auxiliary head takes module outputs (c, h, w) or (c,); these have the shape {tuple(shape)}.")
    c, h, w = shape if len(shape) == 3 else (*shape, 1, 1)
    with torch.random.fork_rng(devices=[], enabled=generator is not None):
        head = nn.Sequential(*[nn.Unflatten(1, (c, 1, 1))] * (len(shape) == 1), *HEADS[kind](c, h, w, outputs))
    if generator is not None:
        initialise(head, generator)
    if kind == "conv5":
        nn.init.zeros_([m for m in head if isinstance(m, nn.Conv2d)][-1].weight)
    return head


def auxiliary_heads(modules: Sequence[nn.Module], kind: str, x: Tensor, generator: torch.Generator | None = None) -> list[nn.Module]:
    """A head for every module but the last, which ends with the network's own classifier and gets an ``nn.Identity``.

    ``x``: inputs of the first module, on its device; only shapes matter. Modules are left as they are.
    """
    shapes = []
    for module in modules:
        with evaluating(module):
            x = module(x)
        shapes.append(tuple(x.shape[1:]))
    outputs = math.prod(shapes[-1])
    return [*(auxiliary_head(kind, shape, outputs, generator).to(x.device) for shape in shapes[:-1]), nn.Identity()]
