"""What stands between packed layers: packing, unpacking, thresholds of sums, pooling of bits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tracking.errors import UserError
from workbench.boolean.packed import backends
from workbench.boolean.packed.backends import Backend
from workbench.boolean.packed.words import output_size, pack_bools, unpack, unpack_bools, window_slices


class ToBits(nn.Module):
    """Bits ``x >= tau``: the last dimension, or (``maps``) the channels of ``(batch, channels, height, width)``."""

    def __init__(self, maps: bool, tau: float = 0.0, backend: Backend = "auto") -> None:
        super().__init__()
        self.maps, self.tau, self.backend = maps, tau, backend

    def forward(self, x: Tensor) -> Tensor:
        return (backends.pack_maps if self.maps else backends.pack_rows)(x, self.tau, backend=self.backend)

    def extra_repr(self) -> str:
        return f"maps={self.maps}, tau={self.tau:g}"


class ToSigns(nn.Module):
    """Words of ``n`` bits as +-1 of ``dtype``: rows ``(..., n)``, or (``maps``) ``(batch, n, height, width)``."""

    def __init__(self, n: int, maps: bool, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.n, self.maps, self.dtype = n, maps, dtype

    def forward(self, words: Tensor) -> Tensor:
        if not self.maps:
            return unpack(words, self.n, self.dtype)
        # booleans are turned round, at a quarter of the traffic of floats
        bits = unpack_bools(words, self.n).permute(0, 3, 1, 2).contiguous()
        return bits.to(self.dtype).mul_(2).sub_(1)

    def extra_repr(self) -> str:
        return f"{self.n}, maps={self.maps}"


class ToReal(nn.Module):
    """Integer sums as ``dtype``: rows as they are, maps ``(batch, height, width, channels)`` with their channels
    first again.
    """

    def __init__(self, maps: bool, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.maps, self.dtype = maps, dtype

    def forward(self, sums: Tensor) -> Tensor:
        return (sums.permute(0, 3, 1, 2) if self.maps else sums).to(self.dtype, memory_format=torch.contiguous_format)


def check_matrix(x: Tensor, matrix: bool) -> None:
    """Refuse rows of more or fewer dimensions than a batch norm, now part of thresholds, was asked about."""
    if matrix and x.ndim != 2:
        raise UserError(
            f"A packed layer with a batch norm in its thresholds takes a matrix, not shape {tuple(x.shape)}: there, "
            "PyTorch's batch norm would not run along the outputs."
        )


class PackedThreshold(nn.Module):
    """Words of the bits ``(s >= bound) ^ flip`` of integer sums ``(..., outputs)``, one bound for each output."""

    def __init__(self, bound: Tensor, flip: Tensor, matrix: bool = False) -> None:
        super().__init__()
        self.matrix = matrix
        self.register_buffer("bound", bound.to(torch.int32))
        self.register_buffer("flip", pack_bools(flip))

    def forward(self, sums: Tensor) -> Tensor:
        check_matrix(sums, self.matrix)
        return pack_bools(sums >= self.bound) ^ self.flip


class BitMaxPool2d(nn.Module):
    """Max-pool of packed maps ``(batch, height, width, words)``, taken after the threshold.

    Where what follows the pool rises with its input, the threshold of the largest is the or of the thresholds: some
    value reaches the bound exactly if the largest does. Where it falls (a batch norm with a negative weight), the
    smallest result wins, which is an and; with the bit turned before and after it is an or again. ``falls``: booleans,
    one for each channel. Border padding is never the largest, as 0 never is in an or.
    """

    def __init__(self, pool: nn.MaxPool2d, falls: Tensor | None = None) -> None:
        super().__init__()
        pairs = (
            (v, v) if isinstance(v, int) else tuple(v)
            for v in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
        )
        self.kernel, self.stride, self.padding, self.dilation = pairs
        self.ceil_mode = pool.ceil_mode
        self.register_buffer("falls", None if falls is None else pack_bools(falls))

    def forward(self, words: Tensor) -> Tensor:
        size = tuple(words.shape[1:3])
        out = output_size(size, self.kernel, self.stride, self.padding, self.dilation)
        if self.ceil_mode:
            out = tuple(
                o + ((o * s < n + p) and (o - 1) * s + d * (k - 1) + 1 < n + 2 * p)
                for o, s, n, p, d, k in zip(
                    out, self.stride, size, self.padding, self.dilation, self.kernel, strict=True
                )
            )
        turned = words if self.falls is None else words ^ self.falls
        windows = window_slices(turned, self.kernel, self.stride, self.padding, self.dilation, out)
        first, *others = (windows[:, :, :, i, j] for i in range(self.kernel[0]) for j in range(self.kernel[1]))
        largest = first.clone(memory_format=torch.contiguous_format)
        for w in others:
            largest |= w
        return largest if self.falls is None else largest ^ self.falls

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"ceil_mode={self.ceil_mode}"
        )
