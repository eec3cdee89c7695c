"""Photographs of any size on a device: whole ones, and batches of windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Photos:
    """uint8 images ``(3, h, w)`` one after another in one flat tensor. Indices are int64 tensors on its device."""

    pixels: Tensor
    sizes: Tensor
    """int64 ``(n, 2)``: height and width."""
    begins: Tensor
    """int64 ``(n,)``: where each image begins."""

    @classmethod
    def of(cls, images: Sequence[Tensor], device: torch.device | str = "cpu") -> Photos:
        """Pack images ``(3, h, w)``."""
        sizes = torch.tensor([image.shape[1:] for image in images], dtype=torch.int64).view(-1, 2)
        lengths = 3 * sizes.prod(1)
        pixels = torch.cat([image.reshape(-1) for image in images])
        return cls(pixels.to(device), sizes.to(device), (lengths.cumsum(0) - lengths).to(device))

    def __len__(self) -> int:
        return len(self.sizes)

    def image(self, i: int) -> Tensor:
        """One image, uint8 ``(3, h, w)``."""
        (h, w), begin = self.sizes[i].tolist(), int(self.begins[i])
        return self.pixels[begin:begin + 3 * h * w].view(3, h, w)

    def windows(self, image: Tensor, top: Tensor, left: Tensor, side: int, turn: Tensor | None = None) -> Tensor:
        """Square windows, uint8 ``(n, 3, side, side)``, whose upper left corners are ``(top, left)`` of the images at ``image``.

        ``turn``, 0 to 7 for each window, is one of the eight ways to lay a square on itself: bit 0 exchanges rows and columns of the
        window, then bit 1 turns its rows and bit 2 its columns about.
        """
        place = torch.arange(side, device=self.pixels.device)
        i, j = place.view(1, side, 1), place.view(1, 1, side)
        if turn is not None:
            def bit(k: int) -> Tensor:
                return (turn >> k & 1).bool().view(-1, 1, 1)

            i, j = torch.where(bit(0), j, i), torch.where(bit(0), i, j)
            i, j = torch.where(bit(1), side - 1 - i, i), torch.where(bit(2), side - 1 - j, j)
        height, width = self.sizes[image].view(-1, 2, 1, 1).unbind(1)
        first = self.begins[image].view(-1, 1, 1) + (top.view(-1, 1, 1) + i) * width + left.view(-1, 1, 1) + j
        channel = torch.arange(3, device=self.pixels.device).view(1, 3, 1, 1)
        return self.pixels[first.unsqueeze(1) + channel * (height * width).unsqueeze(1)]
