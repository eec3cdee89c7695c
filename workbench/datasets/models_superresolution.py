"""EDSR in the sizes of super-resolution papers: residual blocks without norms, then sub-pixel upsampling.

Lim, Son, Kim, Nah & Lee, "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPR workshops 2017, arXiv:1707.02921.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracking.errors import unknown
from workbench.datasets.models import initialise, scaled

if TYPE_CHECKING:
    from workbench.boolean.networks import BooleanOptions

MODELS: dict[str, tuple[int, int]] = {"edsr_small": (8, 256), "edsr_baseline": (16, 64)}
"""Residual blocks and channels. The small one is that of arXiv:2405.16339; the baseline has 1.37 M parameters at scale 2."""

MEAN = (114.4440, 111.4605, 103.0200)
"""Of red, green and blue over the photographs of DIV2K on the scale 0 to 255, which EDSR takes off its inputs."""

Skip = Literal["none", "bicubic"]


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Bicubic interpolation (a = -1/2) of float images ``(n, c, h, w)``, antialiased where it shrinks (as Pillow)."""
    return F.interpolate(images, size=(height, width), mode="bicubic", antialias=True, align_corners=False)


class Bicubic(nn.Module):
    """Enlarge images ``(n, c, h, w)`` by bicubic interpolation: what a network has to beat."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return resize(x, self.scale * x.shape[2], self.scale * x.shape[3])


class ResidualBlock(nn.Module):
    """Convolution, ReLU, convolution, added to the input (Lim et al., Fig. 2c)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.relu(self.conv1(x)))


class EDSR(nn.Module):
    """Low-resolution images ``(n, 3, h, w)`` on the scale 0 to 255 to ``(n, 3, scale h, scale w)`` on the same scale.

    Within, the scale is 0 to 1. ``body`` stands between the first convolution and the last of the low-resolution part; the long skip
    goes round both.

    Args:
        scale: 2, 3 or 4; the last is two steps of 2.
        body: module that keeps the shape; ``None``: ``blocks`` residual blocks.
        skip: ``"bicubic"`` adds the enlarged input to the output, so that the network learns the difference (as VDSR, Kim et al.,
            CVPR 2016; not in EDSR).
    """

    def __init__(self, scale: int, blocks: int, channels: int, skip: Skip = "none", body: nn.Module | None = None) -> None:
        super().__init__()
        self.scale, self.blocks, self.channels, self.skip = scale, blocks, channels, skip
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks))) if body is None else body
        self.body_end = nn.Conv2d(channels, channels, 3, padding=1)
        steps = [2] * int(math.log2(scale)) if scale in (2, 4) else [scale]
        layers: list[nn.Module] = []
        for step in steps:
            layers += [nn.Conv2d(channels, channels * step**2, 3, padding=1), nn.PixelShuffle(step)]
        self.tail = nn.Sequential(*layers, nn.Conv2d(channels, 3, 3, padding=1))
        self.enlarge = Bicubic(scale) if skip == "bicubic" else None
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        features = self.head((x - self.mean) / 255)
        out = 255 * self.tail(features + self.body_end(self.body(features)))
        return out + (self.mean if self.enlarge is None else self.enlarge(x))

    def boolean(self, options: BooleanOptions | None = None, *, generator: torch.Generator | None = None) -> EDSR:
        """This network with a Boolean body (arXiv:2405.16339, section 4): a threshold, then a Boolean block for each residual block.

        In full precision stay, as its own modules, the first convolution, the last one of the body, which sees Boolean inputs, the
        upsampler with the last convolution, and the long skip. Which of them do is our reading: the paper shows it in a figure alone.
        """
        from workbench.boolean.networks import BooleanBlock, BooleanOptions

        made, device = options or BooleanOptions(), self.head.weight.device
        body = nn.Sequential(made.threshold(), *(BooleanBlock(self.channels, self.channels, options=made, generator=generator)
                                                 for _ in range(self.blocks))).to(device)
        return with_modules(self, body=body)


def with_modules(model: nn.Module, **modules: nn.Module) -> Any:
    """A network of the same class with other modules under these names; the rest are ``model``'s own. ``model`` stays as it is."""
    twin = copy.copy(model)
    # tables of its own: of hooks, parameters, buffers and modules
    vars(twin).update({name: copy.copy(value) for name, value in vars(model).items() if isinstance(value, dict)})
    twin._modules.update(modules)
    return twin


def build(name: str, scale: int, width: float, blocks: int, skip: Skip, generator: torch.Generator) -> EDSR:
    """A network of :data:`MODELS` on the CPU, initialised from ``generator`` alone; ``blocks`` = 0 takes the model's own number.

    Raises :class:`tracking.errors.UserError` for an unknown name.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    own, channels = MODELS[name]
    with torch.random.fork_rng(devices=[]):  # layers draw default weights when they are made
        return initialise(EDSR(scale, blocks or own, scaled(channels, width), skip), generator)
