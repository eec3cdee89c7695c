"""Incoherent matrices: both sides are multiplied by random orthogonal matrices, and what results lies on one uniform grid."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from workbench.llm.packed import Packed, decoder, pack_bits, unpack_bits


@cache
def mixing(size: int) -> Tensor:
    """A symmetric orthogonal matrix (size, size) whose entries are small: at most ``sqrt(2 / size)`` in magnitude, float32.

    ``size = 2^k m`` with m odd: the Kronecker product of the Hadamard matrix of order 2^k (Sylvester), whose entries are all
    ``±2^(-k/2)``, and of the discrete Hartley matrix ``(cos(2 pi i j / m) + sin(2 pi i j / m)) / sqrt(m)``. A power of two is a Hadamard
    matrix; 576 is 64 · 9. QuIP# (Tseng et al., ICML 2024, section 3 and appendix) takes a Fourier matrix where there is no Hadamard
    matrix, and Hartley's is its real form.
    """
    odd = size // (size & -size)
    angle = torch.arange(odd, dtype=torch.float64)
    angle = (angle[:, None] * angle % odd) * (2 * torch.pi / odd)
    matrix = (angle.cos() + angle.sin()) / odd**0.5
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)]) / 2**0.5
    return matrix.float()


@cache
def _mixing_on(size: int, device: torch.device) -> Tensor:
    return mixing(size).to(device)


def rotate(x: Tensor, signs: Tensor) -> Tensor:
    """``x U^T`` with ``U = mixing diag(signs)``: each row of x (…, n) is rotated."""
    return (x * signs) @ _mixing_on(x.shape[-1], x.device).to(x.dtype)


def rotate_back(x: Tensor, signs: Tensor) -> Tensor:
    """``x U``: the inverse of :func:`rotate`."""
    return (x @ _mixing_on(x.shape[-1], x.device).to(x.dtype)) * signs


def pack_incoherent(codes: Tensor, step: Tensor, bits: int, row_signs: Tensor, column_signs: Tensor,
                    column: Tensor | None = None) -> Packed:
    """Store codes (p, q) of the rotated matrix, whose levels are ``step (code - (2^b - 1) / 2)``.

    ``row_signs`` (p,) and ``column_signs`` (q,), -1 or 1, take a bit each; ``column`` (q,): factors of the inputs after rotating back.
    """
    tensors = {"indices": pack_bits(codes, bits), "scales": step.float().reshape(1), "other.row_signs": pack_bits(row_signs > 0, 1),
               "other.column_signs": pack_bits(column_signs > 0, 1)}
    if column is not None:
        tensors["scales.column"] = column.half()
    return Packed("incoherent", tuple(codes.shape), tensors, {"bits": bits})


@decoder("incoherent")
def unpack_incoherent(packed: Packed) -> Tensor:
    """``U_p^T Q U_q diag(column)``, float32 (p, q)."""
    (p, q), tensors, bits = packed.shape, packed.tensors, packed.meta["bits"]
    codes = unpack_bits(tensors["indices"], bits, p * q, torch.float32).view(p, q)
    rotated = (codes - (2**bits - 1) / 2) * tensors["scales"]
    rows, columns = (unpack_bits(tensors[f"other.{side}_signs"], 1, n, torch.float32) * 2 - 1 for side, n in (("row", p), ("column", q)))
    weight = rotate_back(rotate_back(rotated, columns).T, rows).T
    return weight * tensors["scales.column"].float() if "scales.column" in tensors else weight.contiguous()
