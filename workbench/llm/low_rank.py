"""Low-rank parts of a compressed matrix, ``W ≈ Q + B A``: truncated singular value decomposition of what the code
leaves over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tracking.errors import UserError
from workbench.llm.packed import Packed, row_norm


def factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A (r, q) and B (p, r) with B A the best approximation of rank r in the Frobenius norm (Eckart & Young, 1936).

    The singular values are split evenly. They come from the eigenvalues of ``M M^T`` or ``M^T M``, the smaller one, in
    float64: squares cost half its digits, which leaves more than float32 has, and a GPU finds them many times sooner
    than it does a singular value decomposition.
    """
    if not 1 <= rank <= min(matrix.shape):
        raise UserError(f"Rank {rank} is refused for a {matrix.shape[0]}×{matrix.shape[1]} matrix. Allowed: 1 to "
                        f"{min(matrix.shape)}.")
    tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T.double() if tall else matrix.double()
    squares, vectors = torch.linalg.eigh(wide @ wide.T)  # ascending
    roots = squares[-rank:].flip(0).clamp(min=0).pow(0.25)  # of the singular values
    left = vectors[:, -rank:].flip(1)
    right = torch.where(roots > 0, 1 / roots, torch.zeros_like(roots))[:, None] * (left.T @ wide)
    a, b = ((left * roots).T, right.T) if tall else (right, left * roots)
    return tuple(factor.to(torch.promote_types(matrix.dtype, torch.float32)).contiguous() for factor in (a, b))


def with_low_rank(packed: Packed, a: Tensor, b: Tensor, magnitude: bool = False) -> Packed:
    """The same code with factors A (r, q), B (p, r), stored in fp16; with a magnitude (fp32) that leaves the rows as
    they are."""
    tensors = packed.tensors | {"low_rank.a": a.to(torch.float16), "low_rank.b": b.to(torch.float16)}
    packed = Packed(packed.format, packed.shape, tensors, packed.meta)
    return with_magnitude(packed) if magnitude else packed


def with_magnitude(packed: Packed) -> Packed:
    """The same matrix with the norms of its rows as numbers of their own, fp32."""
    norm = row_norm(packed.code(), packed.tensors.get("low_rank.a"), packed.tensors.get("low_rank.b"))
    return Packed(packed.format, packed.shape, packed.tensors | {"magnitude": norm}, packed.meta)


def completed(packed: Packed, weight: Tensor, rank: int, magnitude: bool) -> Packed:
    """The compressed ``weight`` (p, q) with the low-rank part and the magnitude that were asked for, where it has none of its own."""
    if rank and "low_rank.a" not in packed.tensors:
        packed = with_low_rank(packed, *factors(weight.float() - packed.code(), min(rank, *weight.shape)))
    return with_magnitude(packed) if magnitude and "magnitude" not in packed.tensors else packed


@dataclass(frozen=True)
class Residual:
    """Any quantiser, and the low-rank part of what it leaves over: ``Q = quantiser(W)``, ``B A = SVD_r(W - Q)``.

    The quantise-first order with a single pass (LoftQ with T = 1: Li et al., ICLR 2024). A rank above what a matrix
    has is cut to that; 0 adds none. A quantiser that gives a low-rank part or a magnitude keeps its own.
    """

    quantiser: Callable[..., Packed]
    rank: int
    magnitude: bool = False

    @property
    def needs(self) -> frozenset[str]:
        return self.quantiser.needs

    def __call__(self, weight: Tensor, stats: Any = None, generator: torch.Generator | None = None) -> Packed:
        return completed(self.quantiser(weight, stats, generator), weight, self.rank, self.magnitude)
