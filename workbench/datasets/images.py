"""Image classification with the data on the device: gather, flip and crop as uint8, then one conversion to float."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench import data
from workbench.datasets import models
from workbench.method import Context
from workbench.params import Field
from workbench.task import SupervisedParams, SupervisedTask


class ImageParams(SupervisedParams):
    """Size of an image task, of its network, and augmentation."""

    width: float = Field(1.0, gt=0, le=4, description="factor on the model's channel or unit counts")
    augment: bool = Field(True, description="random crop and flip of training images, where the data set's convention has it")


def crop_flip(images: Tensor, dy: Tensor, dx: Tensor, flipped: Tensor | None, padding: int) -> Tensor:
    """Mirror image ``i`` left to right where ``flipped[i]`` is 1, surround it with ``padding`` zeros, and take the window of its
    own size whose upper left corner is ``(dy[i], dx[i])``.

    ``images``: uint8 ``(n, c, h, w)``, contiguous; ``dy, dx``: int64 ``(n,)`` in 0 to ``2 * padding``; ``flipped``: int64 ``(n,)`` of
    0 and 1, or ``None``. Returns uint8 ``(n, c, h, w)``.
    """
    n, c, h, w = images.shape
    if flipped is not None:
        # a ^ ((a ^ b) & mask) chooses b where the mask is all ones: several times faster than torch.where on bytes
        mask = (-flipped).to(torch.uint8).view(-1, 1, 1, 1)
        images = ((images.flip(3) ^ images) & mask) ^ images
    padded = F.pad(images, (padding,) * 4)
    rows, columns = h + 2 * padding, w + 2 * padding
    # all windows as one overlapping view: the crop is a copy of whole rows, with no index for each pixel
    last = (n - 1) * c * rows * columns + 2 * padding * (columns + 1)
    windows = padded.as_strided((last + 1, c, h, w), (1, rows * columns, columns, 1))
    return windows.index_select(0, (torch.arange(n, device=images.device) * c * rows + dy) * columns + dx)


class ImageTask(SupervisedTask):
    """Base of the image tasks. A subclass declares the data set, the normalisation and the augmentation of its field."""

    Params = ImageParams
    params: ImageParams

    mean: ClassVar[tuple[float, ...]]
    """Of the training pixels on the scale 0 to 1, a value a channel."""
    std: ClassVar[tuple[float, ...]]
    pixel_max: ClassVar[float] = 255
    """Pixel value that counts as 1."""
    crop_padding: ClassVar[int] = 0
    """Zeros round an image before a random crop to its own size; 0 = no crop."""
    flip: ClassVar[bool] = False
    """Mirror half of the training images left to right."""

    def setup(self, ctx: Context) -> None:
        arrays = data.load(self.dataset)
        for split, size in (("train", self.params.train_size), ("test", self.params.test_size)):
            x, y = arrays[f"{split}_x"], arrays[f"{split}_y"]
            if size:
                rows = data.balanced_subset(y, size)
                x, y = x[rows], y[rows]
            setattr(self, f"{split}_x", torch.from_numpy(x).to(ctx.device))
            setattr(self, f"{split}_y", torch.from_numpy(y.copy()).to(ctx.device))
        declared = data.declaration(self.dataset)
        self.num_classes, self.sample_shape = declared.num_classes, declared.shape
        # (pixel / max - mean) / std, as one factor and one shift
        mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (self.mean, self.std))
        self._scale = (1 / (self.pixel_max * std)).float().to(ctx.device)
        self._shift = (-mean / std).float().to(ctx.device)

    def build_model(self, ctx: Context) -> nn.Module:
        generator = ctx.generator("init", cpu=True)
        return models.build(self.model_name, self.sample_shape, self.num_classes, self.params.width, generator).to(ctx.device)

    def batch(self, index: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        index = index.to(self.train_y.device)
        images = self.train_x.index_select(0, index)
        if generator is not None and self.params.augment and (self.crop_padding or self.flip):
            images = self.augment(images, generator)
        return self.normalise(images), self.train_y.index_select(0, index)

    def augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Random crop and flip, as the class declares them, of uint8 images ``(n, c, h, w)`` on the generator's device."""
        def draw(stop: int, *size: int) -> Tensor:
            return torch.randint(stop, size, generator=generator, device=images.device)

        dy, dx = draw(2 * self.crop_padding + 1, 2, len(images))
        return crop_flip(images, dy, dx, draw(2, len(images)) if self.flip else None, self.crop_padding)

    def test_batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return self.normalise(self.test_x[start:stop]), self.test_y[start:stop]

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 pixels to float32 of mean 0 and standard deviation 1 over the full training set."""
        return images.float().mul_(self._scale).add_(self._shift)

    def provenance(self) -> dict[str, str]:
        return super().provenance() | data.provenance(self.dataset)
