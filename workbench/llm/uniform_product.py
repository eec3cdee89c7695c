"""The fused dequantise-multiply of uniform grids as a Numba kernel: every byte of codes is read once, and no weight is
ever in memory.

For a row of W and an input x, ``sum_j s (c_j - z) x_j`` over a group is ``s (sum_j c_j x_j - z sum_j x_j)``. Codes
that share a word of bytes are taken apart by shifts; x is laid out so that codes of one shift meet neighbours, which
the compiler makes vector instructions of.
"""

from __future__ import annotations

from itertools import pairwise

import numba
import numpy as np
import torch
from torch import Tensor

from workbench.boolean.packed.host import share
from workbench.boolean.packed.simd import kernel
from workbench.llm.formats_uniform import zero_points
from workbench.llm.packed import Packed

F = np.float32

CODES = {2: 4, 3: 8, 4: 2, 8: 1}
"""Codes in the smallest run of whole bytes, by their bits: a word. Other widths are decoded in tiles."""


def fits(packed: Packed) -> bool:
    """Whether whole words hold the codes of each group."""
    codes, q = CODES.get(packed.meta["bits"], 0), packed.shape[1]
    return bool(codes) and q % codes == 0 and (packed.meta["group_size"] or q) % codes == 0


def times(packed: Packed, x: Tensor) -> Tensor:
    """x (n, q) float32 on the CPU to ``x W^T`` (n, p)."""
    (p, q), bits = packed.shape, packed.meta["bits"]
    size, codes = packed.meta["group_size"] or q, CODES[packed.meta["bits"]]
    scales, zeros = packed.tensors["scales"].float(), zero_points(packed)
    edges = np.minimum(np.arange(scales.shape[1] + 1) * size, q)
    # (n, codes a word, words): input j meets the code at place j mod (codes a word)
    streams = x.reshape(len(x), q // codes, codes).transpose(1, 2).contiguous().numpy()
    sums = torch.stack([x[:, a:b].sum(1) for a, b in pairwise(edges.tolist())], 1)
    out, table, factors = np.empty((len(x), p), np.float32), packed.tensors["indices"].numpy().reshape(p, -1), scales.numpy()
    share(lambda first, last: _PRODUCTS[bits](table, factors, streams, edges // codes, out, first, last), p, 1, p * q * len(x))
    return torch.from_numpy(out).sub_(sums @ (scales * zeros).T)


@numba.njit(nogil=True, fastmath=True)
def _word_sums_2(codes, x, sums):
    for k in range(len(sums)):
        c = np.int32(codes[k])
        sums[k] = F(c & 3) * x[0, k] + F(c >> 2 & 3) * x[1, k] + F(c >> 4 & 3) * x[2, k] + F(c >> 6) * x[3, k]


@numba.njit(nogil=True, fastmath=True)
def _word_sums_3(codes, x, sums):
    for k in range(len(sums)):
        c = np.int32(codes[3 * k]) | np.int32(codes[3 * k + 1]) << 8 | np.int32(codes[3 * k + 2]) << 16
        sums[k] = (F(c & 7) * x[0, k] + F(c >> 3 & 7) * x[1, k] + F(c >> 6 & 7) * x[2, k] + F(c >> 9 & 7) * x[3, k]
                   + F(c >> 12 & 7) * x[4, k] + F(c >> 15 & 7) * x[5, k] + F(c >> 18 & 7) * x[6, k] + F(c >> 21) * x[7, k])


@numba.njit(nogil=True, fastmath=True)
def _word_sums_4(codes, x, sums):
    for k in range(len(sums)):
        c = np.int32(codes[k])
        sums[k] = F(c & 15) * x[0, k] + F(c >> 4) * x[1, k]


@numba.njit(nogil=True, fastmath=True)
def _word_sums_8(codes, x, sums):
    for k in range(len(sums)):
        sums[k] = F(codes[k]) * x[0, k]


def _product(word_sums):
    """Rows ``first`` to ``last`` of the product without zero points: sums of words, then of groups."""

    @kernel
    def product(table, scales, streams, edges, out, first, last):
        sums = np.empty(edges[-1], np.float32)
        for row in range(first, last):
            for n in range(len(streams)):
                word_sums(table[row], streams[n], sums)
                total = F(0)
                for g in range(len(edges) - 1):
                    part = F(0)
                    for k in range(edges[g], edges[g + 1]):
                        part += sums[k]
                    total += scales[row, g] * part
                out[n, row] = total

    return product


_PRODUCTS = {2: _product(_word_sums_2), 3: _product(_word_sums_3), 4: _product(_word_sums_4), 8: _product(_word_sums_8)}
