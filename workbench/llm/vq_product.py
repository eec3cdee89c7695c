"""The fused dequantise-multiply of vector-quantised matrices as a Numba kernel: the codebook stays in the first-level cache, every
index is read once, and no weight is ever in memory.

d rows of W share their indices. For them and an input x, the sum over a scale group of codeword times x_j is made first; d scales a
group then bring it to the d outputs.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from workbench.boolean.packed.host import share
from workbench.boolean.packed.simd import kernel
from workbench.llm.formats_vq import index_bits, stored_scales, unpack_order
from workbench.llm.packed import Packed, unpack_bits
from workbench.llm.vq.ordering import ROWS

FEW = 8
"""Inputs up to which walking the indices for each of them is cheaper than decoding once."""


def fits(packed: Packed, rows: int) -> bool:
    """Whether there is a kernel for this matrix and so many inputs: vectors of 2 or 4 whole rows, one stage."""
    stages, _, d = packed.tensors["codebooks"].shape
    return packed.meta["axis"] == "rows" and stages == 1 and d in _SUMS and packed.shape[0] % d == 0 and rows <= FEW


def times(packed: Packed, x: Tensor) -> Tensor:
    """x (n, q) float32 on the CPU to ``x Q^T`` (n, p)."""
    (p, q), book = packed.shape, packed.tensors["codebooks"][0].float().numpy()
    size, d = book.shape
    narrow = torch.uint8 if size <= 256 else torch.int32
    codes = unpack_bits(packed.tensors["indices"], index_bits(size), p // d * q, narrow).view(-1, q).numpy()
    scales = stored_scales(packed.tensors, packed.meta["group"]).values().view(p, -1).numpy()
    if "permutation" in packed.tensors:
        placed = x[:, unpack_order(packed.tensors["permutation"], p, q)].transpose(0, 1).contiguous().numpy()
    else:
        placed = x.contiguous().numpy()[None]
    out = np.empty((len(x), p), np.float32)
    share(lambda first, last: _SUMS[d](codes, book, scales, placed, packed.meta["group"], out, first, last), p // d, 1, p * q * len(x) // 8)
    return torch.from_numpy(out)


@kernel
def _sums_2(codes, book, scales, placed, group, out, first, last):
    q = codes.shape[1]
    for strip in range(first, last):
        block = min(2 * strip // ROWS, placed.shape[0] - 1)
        for n in range(placed.shape[1]):
            a = b = np.float32(0)
            for g in range(scales.shape[1]):
                s, t = _pairs(codes, book, placed, block, n, strip, g * group, min((g + 1) * group, q))
                a += scales[2 * strip, g] * s
                b += scales[2 * strip + 1, g] * t
            out[n, 2 * strip], out[n, 2 * strip + 1] = a, b


@kernel
def _sums_4(codes, book, scales, placed, group, out, first, last):
    q = codes.shape[1]
    for strip in range(first, last):
        block = min(4 * strip // ROWS, placed.shape[0] - 1)
        for n in range(placed.shape[1]):
            a = b = c = d = np.float32(0)
            for g in range(scales.shape[1]):
                s, t, u, v = _fours(codes, book, placed, block, n, strip, g * group, min((g + 1) * group, q))
                a += scales[4 * strip, g] * s
                b += scales[4 * strip + 1, g] * t
                c += scales[4 * strip + 2, g] * u
                d += scales[4 * strip + 3, g] * v
            out[n, 4 * strip], out[n, 4 * strip + 1], out[n, 4 * strip + 2], out[n, 4 * strip + 3] = a, b, c, d


@numba.njit(nogil=True, fastmath=True)
def _pairs(codes, book, placed, block, n, strip, begin, end):
    s = t = np.float32(0)
    for j in range(begin, end):
        k, x = codes[strip, j], placed[block, n, j]
        s += book[k, 0] * x
        t += book[k, 1] * x
    return s, t


@numba.njit(nogil=True, fastmath=True)
def _fours(codes, book, placed, block, n, strip, begin, end):
    s = t = u = v = np.float32(0)
    for j in range(begin, end):
        k, x = codes[strip, j], placed[block, n, j]
        s += book[k, 0] * x
        t += book[k, 1] * x
        u += book[k, 2] * x
        v += book[k, 3] * x
    return s, t, u, v


_SUMS = {2: _sums_2, 4: _sums_4}
