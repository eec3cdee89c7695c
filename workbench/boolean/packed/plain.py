"""The packed products in plain PyTorch, on any device: exact and slow, for machines without Numba or Triton.

Weights are unpacked to +-1 a part at a time, so memory stays near that of the packed network.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.boolean.packed.words import BITS, from_lanes, pack, pack_bools, unpack, unpack_bools

PART = 1 << 22  # weights unpacked at a time: 16 MB
EXACT = 1 << 24  # float32 counts without rounding up to here


def _parts(lanes: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """The weights as +-1 rows, all 64 bits of every word, in parts made one after the other."""
    step = max(2, PART // (lanes.shape[1] * 32 * lanes.shape[2]) // 2 * 2)
    for part in lanes.split(step):
        rows = from_lanes(part, part.shape[0] * part.shape[2])
        yield unpack(rows, rows.shape[1] * BITS, dtype)


def product(
    x: Tensor, lanes: Tensor, n: int, shift: Tensor, pattern: Tensor, bound: Tensor | None, flip: Tensor | None
) -> Tensor:
    """See :func:`workbench.boolean.packed.backends.product`."""
    width = x.shape[1] * BITS
    dtype = torch.float32 if width < EXACT else torch.float64
    inputs = unpack(x, width, dtype)
    s = torch.cat([F.linear(inputs, w) for w in _parts(lanes, dtype)], 1).to(torch.int32)
    s = s - (width - n)  # the bits past the end are 0 in both and agree: each counted as one vote
    s = s + shift[pattern.long()].repeat(x.shape[0] // pattern.numel(), 1)
    if bound is None:
        return s
    outputs = flip.numel() * BITS
    reached = F.pad(s >= bound, (0, outputs - s.shape[1]))
    return pack_bools(reached ^ unpack_bools(flip, outputs))


def real(x: Tensor, lanes: Tensor) -> Tensor:
    """See :func:`workbench.boolean.packed.backends.real`."""
    return torch.cat([F.linear(x, w[:, : x.shape[1]]) for w in _parts(lanes, x.dtype)], 1)


def pack_maps(x: Tensor, tau: float) -> Tensor:
    """See :func:`workbench.boolean.packed.backends.pack_maps`."""
    return pack_bools((x >= tau).permute(0, 2, 3, 1).contiguous())


pack_rows = pack
