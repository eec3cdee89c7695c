"""The low-rank part of W ≈ Q + B A: truncated singular values, and the alternation with a quantiser.

The alternation starts with the singular values and stops at the first rise of the error (LQ-LoRA: Guo et al., ICLR 2024, algorithm 1,
which ReALLM's released code follows; Bedin et al., arXiv:2405.13155).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from tracking.errors import UserError
from workbench.llm.low_rank import factors

Code = TypeVar("Code")
OVERSAMPLING, POWER = 10, 2
"""Extra directions and power iterations of the randomised singular value decomposition (Halko, Martinsson & Tropp, SIAM Review 2011)."""
FLOOR = 1e-4
"""Least weight of a row or column, as a share of the largest (our choice): the factors are divided by it."""


def truncated_svd(matrix: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``B`` (p, r) and ``A`` (r, q) with ``B A`` the best approximation of rank r; each takes the square roots of the singular values.

    Exact where ``rank + 10`` reaches the smaller side, randomised (algorithm 4.4 of Halko et al.) elsewhere.
    """
    p, q = matrix.shape
    width = rank + OVERSAMPLING
    if width >= min(p, q):
        a, b = factors(matrix, rank)
        return b, a
    basis = torch.linalg.qr(matrix @ torch.randn(q, width, generator=generator, dtype=matrix.dtype).to(matrix.device)).Q
    for _ in range(POWER):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    a, b = factors(basis.T @ matrix, rank)
    return basis @ b, a


@dataclass(frozen=True)
class Importance:
    """Weights of the squared errors of a matrix's entries: ``sum_ij w_ij (W - W^)_ij^2``.

    Attributes:
        entries: (p, q), or (1, q) where all rows weigh alike.
        row, column: (p,) and (q,): square roots whose outer product stands in for ``entries`` in the singular value decomposition.
    """

    entries: Tensor
    row: Tensor | None
    column: Tensor

    @classmethod
    def of_hessian(cls, hessian: Tensor) -> Importance:
        """From the diagonal of the layer's Hessian ``2/n X^T X`` (q, q): what an input's square amounts to."""
        diagonal = hessian.diagonal().float().clamp(min=0)
        return cls(diagonal[None], None, _floored(diagonal.sqrt()))

    @classmethod
    def of_fisher(cls, fisher: Tensor) -> Importance:
        """From the empirical Fisher information (p, q). The weighted decomposition has no closed form for one weight an entry, so that it
        sees the roots of row and column means (LQ-LoRA, section 3.3).
        """
        fisher = fisher.float().clamp(min=0)
        return cls(fisher, _floored(fisher.mean(1).sqrt()), _floored(fisher.mean(0).sqrt()))

    def error(self, difference: Tensor) -> float:
        """Root of the weighted sum of squares."""
        return float((difference.square() * self.entries).sum(dtype=torch.float64).sqrt())


def _floored(weights: Tensor) -> Tensor:
    top = weights.max()
    return weights.clamp(min=float(FLOOR * top)) if top > 0 else torch.ones_like(weights)


@dataclass(frozen=True)
class Alternation(Generic[Code]):
    """What :func:`alternate` found: the quantiser's code, float16 factors (or None), and the errors of the steps kept, not rising."""

    code: Code
    a: Tensor | None
    b: Tensor | None
    errors: list[float]


def alternate(
    weight: Tensor,
    rank: int,
    quantise: Callable[[Tensor], tuple[Code, Tensor]],
    *,
    steps: int,
    generator: torch.Generator,
    importance: Importance | None = None,
    tolerance: float = 0.0,
) -> Alternation[Code]:
    """Find Q and B A in turns: ``B A`` of ``W - Q``, then Q of ``W - B A``, until the error no longer falls.

    Args:
        weight: float32 (p, q).
        quantise: gives what is stored of a matrix, and the matrix that this stands for.
        steps: most turns. Rank 0 needs and makes one.
        importance: weights of the error and of the singular value decomposition; plain Frobenius without.
        tolerance: a turn that lowers the error by less than this share is the last one.

    The factors are rounded to float16, as they are stored, before the quantiser sees what they leave.
    """
    p, q = weight.shape
    if not 0 <= rank <= min(p, q):
        raise UserError(f"The rank of a {p}x{q} matrix is from 0 to {min(p, q)}, not {rank}.")
    code, best = None, Alternation(None, None, None, [])
    quantised: Tensor | float = 0.0
    for _ in range(max(steps, 1) if rank else 1):
        a, b = _factors(weight - quantised, rank, generator, importance) if rank else (None, None)
        low = b.float() @ a.float() if rank else 0.0
        code, quantised = quantise(weight - low)
        left = weight - low - quantised
        error = importance.error(left) if importance else float(left.square().sum(dtype=torch.float64).sqrt())
        if best.errors and not error < best.errors[-1]:
            break
        last = bool(best.errors) and error > (1 - tolerance) * best.errors[-1]
        best = Alternation(code, a, b, [*best.errors, error])
        if last:
            break
    return best


def _factors(residual: Tensor, rank: int, generator: torch.Generator, importance: Importance | None) -> tuple[Tensor, Tensor]:
    if importance is None:
        b, a = truncated_svd(residual, rank, generator)
    else:
        rows = importance.row[:, None] if importance.row is not None else 1.0
        b, a = truncated_svd(rows * residual * importance.column, rank, generator)
        b, a = b / rows, a / importance.column
    a, b = a.half(), b.half()
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise UserError("The low-rank factors leave the range of float16; scale the weights down or take rank 0.")
    return a, b


def to_lora(a: Tensor, b: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Factors for an adapter that computes ``W0 x + (alpha / r) B A x``: both divided by the root of ``alpha / r``.

    Their scaled product is then ``b a``; without the division the start would be off by ``alpha / r``.
    """
    root = (alpha / len(a)) ** 0.5
    return a.float() / root, b.float() / root
