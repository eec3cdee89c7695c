"""Averaging operators of a graph: what smooths a signal on its nodes.

Each is built of the symmetrically normalised adjacency matrix with self-loops, D^-1/2 (A + w I) D^-1/2, kept sparse.
The row-stochastic one, D^-1 (A + w I), is similar to it, so its powers and its adjoint cost two products with a
diagonal more.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tracking.errors import UserError, unknown

Kind = Literal["symmetric", "row", "lazy", "lowrank"]
KINDS: tuple[str, ...] = ("symmetric", "row", "lazy", "lowrank")


with warnings.catch_warnings():  # torch says once, at the first such matrix, that its interface may still change
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 1], [0], [1.0], (1, 1))


def adjacency(edge_index: Tensor, num_nodes: int) -> Tensor:
    """Sparse CSR matrix of ones, float32 ``(N, N)``, of edges ``(2, E)`` sorted by row, then column."""
    counts = torch.bincount(edge_index[0], minlength=num_nodes)
    ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return csr(ends, edge_index[1], torch.ones(edge_index.shape[1], device=edge_index.device), num_nodes)


def csr(ends: Tensor, columns: Tensor, values: Tensor, num_nodes: int) -> Tensor:
    """A square sparse CSR tensor; the parts are not checked."""
    # 32-bit indices are what MKL multiplies with; wider ones would be converted at each product
    kind = torch.int32 if max(len(columns), num_nodes) < 2**31 else torch.int64
    return torch.sparse_csr_tensor(
        ends.to(kind), columns.to(kind), values, (num_nodes, num_nodes), check_invariants=False
    )


@dataclass(frozen=True)
class Averaging:
    """The operator 𝒜 of one graph; apply it to columns ``(N, m)``.

    ``symmetric``: the normalised adjacency; ``row``: the row-stochastic one, a mean over neighbours; ``lazy``: half way
    from the identity to the symmetric one; each to the power ``power``. ``lowrank``: the projector on the ``rank``
    smoothest eigenvectors.
    """

    kind: str
    power: int
    matrix: Tensor | None
    """Sparse CSR, the symmetric normalisation ``(N, N)``."""
    root: Tensor
    """Square root of the degrees, ``(N, 1)``, self-loops included."""
    basis: Tensor | None = None
    """Orthonormal eigenvectors ``(N, rank)`` of the projector."""

    @property
    def num_nodes(self) -> int:
        return len(self.root)

    @property
    def nonnegative(self) -> bool:
        """Whether all entries are >= 0: then the smoothed energy of moduli is a convex function of the filters."""
        return self.basis is None

    def __call__(self, u: Tensor) -> Tensor:
        """𝒜 u."""
        return self._scaled(u, self.root) if self.kind == "row" else self._powers(u)

    def adjoint(self, u: Tensor) -> Tensor:
        """The transpose of 𝒜 times ``u``."""
        return self._scaled(u, 1 / self.root) if self.kind == "row" else self._powers(u)

    def gram(self, u: Tensor) -> Tensor:
        """The transpose of 𝒜 times 𝒜 u; one product where 𝒜 is a projector."""
        return self(u) if self.basis is not None else self.adjoint(self(u))

    def dense(self) -> Tensor:
        """𝒜 as a matrix ``(N, N)``, for small graphs."""
        return self(torch.eye(self.num_nodes, dtype=self.root.dtype, device=self.root.device))

    def _scaled(self, u: Tensor, root: Tensor) -> Tensor:
        return self._powers(u * root).div_(root)

    def _powers(self, u: Tensor) -> Tensor:
        if self.basis is not None:
            return self.basis @ (self.basis.T @ u)
        for _ in range(self.power):
            u = (u + self.matrix @ u).mul_(0.5) if self.kind == "lazy" else self.matrix @ u
        return u


@dataclass(frozen=True)
class AboutMean:
    """An average less its mean over all nodes, ``(I - 1 1^T / N) 𝒜``: what of it differs between nodes."""

    average: Averaging
    nonnegative = False

    @property
    def kind(self) -> str:
        return self.average.kind

    def __call__(self, u: Tensor) -> Tensor:
        """``𝒜 u`` less its mean."""
        smooth = self.average(u)
        return smooth - smooth.mean(0)

    def gram(self, u: Tensor) -> Tensor:
        """The transpose of this operator times the operator times ``u``; taking the mean off twice is taking it off once."""
        return self.average.adjoint(self(u))


def averaging(
    adjacency: Tensor,
    kind: str = "symmetric",
    power: int = 2,
    *,
    self_loops: float = 1.0,
    rank: int = 64,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Averaging:
    """Build 𝒜 from a symmetric sparse CSR adjacency matrix ``(N, N)`` with weights >= 0 and without self-loops.

    ``self_loops`` is the weight of the edge from each node to itself. Raises :class:`tracking.errors.UserError` for an
    unknown kind, and for nodes of degree 0, which nothing can average.
    """
    if kind not in KINDS:
        raise unknown("averaging operator", kind, KINDS)
    matrix, degrees = with_self_loops(adjacency, self_loops, dtype)
    if alone := int((degrees <= 0).sum()):
        raise UserError(
            f"{alone} nodes have no neighbour, so there is nothing to average there. Give self_loops > 0, or remove them."
        )
    root = degrees.sqrt()
    rows = torch.repeat_interleave(torch.arange(len(root), device=root.device), matrix.crow_indices().diff().long())
    values = matrix.values() / (root[rows] * root[matrix.col_indices().long()])
    matrix = csr(matrix.crow_indices(), matrix.col_indices(), values.to(dtype), len(root))
    root = root.to(dtype)[:, None]
    if kind != "lowrank":
        return Averaging(kind, power, matrix, root)
    from workbench.graphs.spectrum import smoothest

    return Averaging(kind, 1, None, root, smoothest(matrix, min(rank, len(root)), seed=seed)[1])


def with_self_loops(adjacency: Tensor, weight: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A + weight * I as sparse CSR, and its row sums, float64 ``(N,)``."""
    n = adjacency.shape[0]
    ends, columns, values = adjacency.crow_indices().long(), adjacency.col_indices().long(), adjacency.values().double()
    counts = ends.diff()
    rows = torch.repeat_interleave(torch.arange(n, device=columns.device), counts)
    if not weight:
        return csr(ends, columns, values, n), torch.zeros(n, dtype=torch.float64, device=columns.device).index_add_(
            0, rows, values
        )
    own = torch.arange(n, device=columns.device)
    # within its row the self-loop stands after the columns that are smaller
    before = torch.zeros(n, dtype=torch.int64, device=columns.device).index_add_(0, rows, (columns < rows).long())
    place = torch.arange(len(columns), device=columns.device) + rows + (columns > rows)
    at = ends[:-1] + own + before
    wide = columns.new_empty(len(columns) + n)
    wide[place], wide[at] = columns, own
    filled = values.new_empty(len(wide))
    filled[place], filled[at] = values, weight
    ends = ends + torch.arange(n + 1, device=columns.device)
    degrees = torch.zeros(n, dtype=torch.float64, device=columns.device).index_add_(0, rows, values) + weight
    return csr(ends, wide, filled, n), degrees
