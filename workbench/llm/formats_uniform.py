"""Uniform grids: ``w = s (code - z)`` with a scale, and where the grid is asymmetric a zero point, for each group of
inputs.

A group is ``group_size`` consecutive inputs of one row; the last one of a row is as long as what is left. 0: the whole
row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from workbench.llm.packed import Packed, decoder, fused, pack_bits, unpack_bits

TILE = 1 << 16
"""Weights decoded at a time by the fused product where there is no kernel: 256 KB, which a core's second-level cache
holds."""


def group_count(q: int, group_size: int) -> int:
    """Groups of a row of q inputs."""
    return -(-q // (group_size or q))


def groups_of(values: Tensor, group_size: int) -> list[Tensor]:
    """The groups of each row of ``values`` (p, q): (p, groups, length) of the full ones, then of a shorter last one where there is one."""
    p, q = values.shape
    size = group_size or q
    count = q // size
    parts = [values[:, :count * size].reshape(p, count, size), values[:, count * size:].reshape(p, 1, q - count * size)]
    return [part for part in parts if 0 not in part.shape]


def per_input(values: Tensor, q: int, group_size: int) -> Tensor:
    """One value a group (p, groups) to one an input (p, q)."""
    return values.repeat_interleave(group_size or q, dim=1)[:, :q]


def pack_uniform(codes: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, group_size: int) -> Packed:
    """Store codes (p, q) in 0 to 2^b - 1, scales (p, groups) as fp16 and zero points (p, groups), whole numbers in b
    bits.

    ``zeros=None`` is the symmetric grid, whose zero is the code 2^(b-1).
    """
    tensors = {"indices": pack_bits(codes, bits), "scales": scales.to(torch.float16)}
    if zeros is not None:
        tensors["zeros"] = pack_bits(zeros, bits)
    return Packed("uniform", tuple(codes.shape), tensors, {"bits": bits, "group_size": group_size})


@decoder("uniform")
def unpack_uniform(packed: Packed) -> Tensor:
    """s (code - z), float32 (p, q)."""
    (p, q), bits, size = packed.shape, packed.meta["bits"], packed.meta["group_size"]
    codes = unpack_bits(packed.tensors["indices"], bits, p * q, torch.float32).view(p, q)
    zeros = zero_points(packed)
    codes -= zeros if isinstance(zeros, int) else per_input(zeros, q, size)
    return codes.mul_(per_input(packed.tensors["scales"].float(), q, size))


def zero_points(packed: Packed) -> Tensor | int:
    """The code that stands for zero: float32 (p, groups), or the one number of a symmetric grid."""
    if "zeros" not in packed.tensors:
        return 2 ** (packed.meta["bits"] - 1)
    scales = packed.tensors["scales"]
    return unpack_bits(packed.tensors["zeros"], packed.meta["bits"], scales.numel(), torch.float32).view_as(scales)


@fused("uniform")
def times_uniform(packed: Packed, x: Tensor) -> Tensor:
    """x (n, q) float32 to ``x W^T`` (n, p): by a Numba kernel that reads each code once where there is one, else a few
    rows of W at a time. On a GPU, where many small steps would wait for each other, all of W is decoded."""
    if x.device.type != "cpu":
        return x @ unpack_uniform(packed).T
    if (product := _kernel(packed)) is not None:
        return product(packed, x)
    (p, q), bits, size = packed.shape, packed.meta["bits"], packed.meta["group_size"]
    codes, scales = packed.tensors["indices"], packed.tensors["scales"].float()
    zeros = zero_points(packed)
    rows = max(8, TILE // q // 8 * 8)  # eight rows of codes end at a whole byte
    out = x.new_empty(len(x), p)
    for start in range(0, p, rows):
        stop = min(start + rows, p)
        tile = unpack_bits(codes[start * q * bits // 8:-(-stop * q * bits // 8)], bits, (stop - start) * q, torch.float32).view(-1, q)
        tile -= zeros if isinstance(zeros, int) else per_input(zeros[start:stop], q, size)
        out[:, start:stop] = x @ tile.mul_(per_input(scales[start:stop], q, size)).T
    return out


def _kernel(packed: Packed) -> Callable[[Packed, Tensor], Tensor] | None:
    """The Numba product, where Numba is installed and whole bytes hold the codes of a group."""
    if not has_numba():
        return None
    from workbench.llm import uniform_product

    return uniform_product.times if uniform_product.fits(packed) else None


@cache
def has_numba() -> bool:
    return find_spec("numba") is not None
