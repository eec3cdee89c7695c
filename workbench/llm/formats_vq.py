"""Decoder of vector-quantised matrices: codebook gather, block scales, columns put back.

Tensors: ``indices`` (stages x vectors, packed), ``codebooks`` float16 (stages, K, d), ``scales.codes`` uint8,
``scales.tops`` and ``scales.offset`` float32, and, where columns were ordered, ``permutation`` (row blocks x q, packed).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.llm.packed import Packed, decoder, fused, pack_bits, unpack_bits
from workbench.llm.vq.kmeans import host
from workbench.llm.vq.ordering import ROWS, inverse, permute
from workbench.llm.vq.scales import BlockScales


@decoder("vq")
def vq(packed: Packed) -> Tensor:
    """``s ⊙ sum_stages C[codes]`` with the columns of every row block where they were; (p, q)."""
    (p, q), meta, books = packed.shape, packed.meta, packed.tensors["codebooks"]
    stages, size, d = books.shape
    count = vector_count(p, q, d, meta["axis"])
    codes = unpack_bits(packed.tensors["indices"], index_bits(size), stages * count).view(stages, count)
    return to_weight(matrix(look_up(books, codes), p, q, meta["axis"]), packed.tensors, meta)


@fused("vq")
def product(packed: Packed, x: Tensor) -> Tensor:
    """``x Q^T`` (n, p): by the kernel where there is one for the matrix, on a CPU and for few inputs; elsewhere Q is decoded."""
    if x.device.type == "cpu" and host() is not None:
        from workbench.llm import vq_product

        if vq_product.fits(packed, len(x)):
            return vq_product.times(packed, x)
    return x @ vq(packed).T


def look_up(books: Tensor, codes: Tensor) -> Tensor:
    """Sum over stages of the codewords: ``books`` (stages, K, d), ``codes`` (stages, n) give float32 (n, d)."""
    found = books[0].float().T[:, codes[0]]  # coordinate by coordinate: rows of a matrix, where vectors stand upright
    for book, code in zip(books[1:], codes[1:], strict=True):
        found = found + book.float().T[:, code]
    return found.T


def to_weight(latent: Tensor, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Tensor:
    """Multiply by the block scales and put the columns back: the end that all ReALLM formats share."""
    p, q = latent.shape
    weight = latent * stored_scales(tensors, meta["group"]).dense(p, q)
    if "permutation" in tensors:
        weight = permute(weight, inverse(unpack_order(tensors["permutation"], p, q)))
    return weight.contiguous()


def stored_scales(tensors: Mapping[str, Tensor], group: int) -> BlockScales:
    """The block scales among a matrix's tensors."""
    return BlockScales(tensors["scales.codes"], tensors["scales.tops"], tensors["scales.offset"], group)


def index_bits(size: int) -> int:
    """Bits of a number below ``size``; at least one."""
    return max((size - 1).bit_length(), 1)


def pack_order(order: Tensor) -> Tensor:
    """Column order (row blocks, q) in ``ceil(log2 q)`` bits an entry."""
    return pack_bits(order, index_bits(order.shape[1]))


def unpack_order(packed: Tensor, p: int, q: int) -> Tensor:
    """The inverse of :func:`pack_order` for a matrix (p, q)."""
    blocks = -(-p // ROWS)
    return unpack_bits(packed, index_bits(q), blocks * q).view(blocks, q)


def vector_count(p: int, q: int, d: int, axis: str) -> int:
    """Vectors of dimension d in a (p, q) matrix; the last ones may reach beyond it."""
    return -(-p // d) * q if axis == "rows" else p * -(-q // d)


def vectors(matrix: Tensor, d: int, axis: str) -> Tensor:
    """(n, d): d consecutive rows at one column (``rows``), or d consecutive columns of a row (``columns``).

    Where d does not divide the axis, the last row or column is repeated; :func:`matrix` drops what was added.
    """
    p, q = matrix.shape
    if axis == "columns":
        return F.pad(matrix[None], (0, -q % d), mode="replicate")[0].reshape(-1, d)
    tall = torch.cat([matrix, matrix[-1:].expand(-p % d, q)]) if p % d else matrix
    return tall.view(-1, d, q).transpose(0, 1).reshape(d, -1).T


def matrix(vectors: Tensor, p: int, q: int, axis: str) -> Tensor:
    """The (p, q) matrix whose vectors (n, d) these are."""
    d = vectors.shape[1]
    if axis == "columns":
        return vectors.reshape(p, -1)[:, :q]
    return vectors.T.reshape(d, -1, q).transpose(0, 1).reshape(-1, q)[:p]
