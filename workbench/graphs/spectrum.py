"""The smoothest signals on a graph and the strongest directions of its features, by subspace iteration."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DENSE_UP_TO = 2000
"""Nodes up to which a dense eigendecomposition is the quicker way."""


def smoothest(
    matrix: Tensor, rank: int, *, seed: int = 0, tol: float = 1e-7, sweeps: int = 500
) -> tuple[Tensor, Tensor]:
    """The ``rank`` largest eigenvalues, descending, and eigenvectors ``(N, rank)`` of a sparse CSR matrix.

    The matrix is symmetric with a spectrum in [-1, 1]. Of a normalised adjacency matrix these are the lowest of the
    normalised Laplacian. Large matrices: subspace iteration under a Chebyshev filter (Zhou, Saad, Tiago & Chelikowsky,
    J. Comput. Phys. 2006) in float64, until residuals are below ``tol``. The sign of a vector is that of its entry
    largest in size.
    """
    n = matrix.shape[0]
    if n <= max(DENSE_UP_TO, 3 * rank):
        values, vectors = torch.linalg.eigh(matrix.to_dense().double())
        values, vectors = values.flip(0)[:rank], vectors.flip(1)[:, :rank]
    else:
        values, vectors = _filtered(matrix, rank, seed, tol, sweeps)
    top = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return values.to(matrix.dtype), (vectors * torch.where(top < 0, -1.0, 1.0)).to(matrix.dtype)


def _filtered(matrix: Tensor, rank: int, seed: int, tol: float, sweeps: int) -> tuple[Tensor, Tensor]:
    wide = torch.sparse_csr_tensor(
        matrix.crow_indices(), matrix.col_indices(), matrix.values().double(), matrix.shape, check_invariants=False
    )
    block = min(rank + max(8, rank // 4), matrix.shape[0])
    draw = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(matrix.shape[0], block, generator=draw, dtype=torch.float64).to(matrix.device)).Q
    for _ in range(sweeps):
        image = wide @ q
        values, turn = torch.linalg.eigh(q.T @ image)
        values, turn = values.flip(0), turn.flip(1)
        q, image = q @ turn, image @ turn
        residual = (image - q * values)[:, :rank].norm(dim=0).max()
        if residual < tol:
            break
        q = torch.linalg.qr(_chebyshev(wide.matmul, q, -1.0, values[-1].clamp(-0.99, 0.9999).item(), 12)).Q
    return values[:rank], q[:, :rank]


def _chebyshev(product: Callable[[Tensor], Tensor], q: Tensor, low: float, high: float, degree: int) -> Tensor:
    """``p(matrix) q`` of the polynomial that is at most 1 on ``[low, high]`` and grows fastest above it."""
    half, centre = (high - low) / 2, (high + low) / 2
    before, now = q, (product(q) - centre * q) / half
    for _ in range(degree - 1):
        before, now = now, 2 * (product(now) - centre * now) / half - before
    return now


def principal_directions(x: Tensor, dim: int, *, seed: int = 0, power: int = 4, oversampling: int = 32) -> Tensor:
    """Right singular vectors of ``x`` ``(N, P)`` with the largest singular values ``(P, dim)``, no mean removed.

    Randomised subspace iteration (Halko, Martinsson & Tropp, SIAM Review 2011), the test matrix on the feature side, so
    that a renumbering of the nodes changes nothing but rounding. Columns are orthonormal, and signed so that the
    entry largest in size is positive. ``dim >= P`` gives the identity.
    """
    p = x.shape[1]
    if dim >= p:
        return torch.eye(p, dtype=x.dtype, device=x.device)
    left, right = _both_sides(x)
    draw = torch.Generator().manual_seed(seed)
    q = torch.randn(p, min(dim + oversampling, p), generator=draw, dtype=torch.float64).to(x)
    for _ in range(power + 1):
        q = _orthonormal(right @ (left @ _orthonormal(q)))
    q = _orthonormal(q)
    small = (left @ q).double()
    q = q.double() @ torch.linalg.eigh(small.T @ small)[1].flip(1)[:, :dim]
    top = q.gather(0, q.abs().argmax(0, keepdim=True))
    return (q * torch.where(top < 0, -1.0, 1.0)).to(x.dtype)


def _both_sides(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` and its transpose, as sparse CSR where less than a tenth of the entries is filled."""
    at = x.nonzero()
    if 10 * len(at) > x.numel():
        return x, x.T
    rows, columns = at.T
    values = x[rows, columns]
    turned = torch.sort(columns, stable=True).indices
    return (
        _compressed(rows, columns, values, x.shape),
        _compressed(columns[turned], rows[turned], values[turned], x.T.shape),
    )


def _compressed(rows: Tensor, columns: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    ends = torch.cat([rows.new_zeros(1), torch.bincount(rows, minlength=shape[0]).cumsum(0)])
    return torch.sparse_csr_tensor(ends.int(), columns.int(), values, shape, check_invariants=False)


def _orthonormal(q: Tensor) -> Tensor:
    """An orthonormal basis of the columns: by the Cholesky factor of the Gram matrix, or by QR where that has none."""
    wide = q.double()
    factor, failed = torch.linalg.cholesky_ex(wide.T @ wide)
    if failed:
        return torch.linalg.qr(wide).Q.to(q.dtype)
    return torch.linalg.solve_triangular(factor, wide.T, upper=False).T.to(q.dtype)
