"""Pieces of graph encoders that take sparse features as they are: bags of words hold one value in a hundred."""

from __future__ import annotations

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracking.errors import UserError
from workbench.graphs.averaging import adjacency, averaging


def pyg() -> ModuleType:
    """``torch_geometric.nn``, or a sentence on how to get it."""
    try:
        import torch_geometric.nn
    except ImportError:
        raise UserError(
            "This method needs PyTorch Geometric, which is not installed here: "
            "pip install 'efficient-workbench[graphs]'."
        ) from None
    return torch_geometric.nn


class SparseLinear(nn.Module):
    """``X W^T + b`` as torch's Linear has it, for ``X`` ``(N, inputs)`` dense or sparse CSR; Glorot weights, zero bias."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.xavier_uniform_(self.weight)
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        out = x @ self.weight.T
        return out if self.bias is None else out + self.bias


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Dropout of ``x``, dense or sparse CSR: of a sparse matrix only stored entries are drawn for, the others are zero anyhow."""
    if not training or x.layout != torch.sparse_csr:
        return F.dropout(x, p, training)
    return _csr(x.crow_indices(), x.col_indices(), F.dropout(x.values(), p), x.shape)


class GraphConvolution(nn.Module):
    """``Â X W + b`` (Kipf & Welling, ICLR 2017, eq. 2, without the non-linearity); Glorot weights, zero bias.

    ``X`` is dense or sparse CSR ``(N, inputs)``, ``adjacency`` the normalised ``Â``, sparse CSR ``(N, N)``. PyG's GCNConv is the same on
    dense features; it cannot take sparse ones.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return adjacency @ (x @ self.weight) + self.bias


def symmetric_adjacency(edge_index: Tensor, num_nodes: int) -> Tensor:
    """``Â = D̃^-1/2 (A + I) D̃^-1/2`` as sparse CSR float32 ``(N, N)``, for edges ``(2, E)`` sorted by row, then column, without loops."""
    return averaging(adjacency(edge_index, num_nodes), "symmetric", 1).matrix


def with_edges_dropped(edge_index: Tensor, share: float) -> Tensor:
    """Edges ``(2, E)`` without a random share of them; each direction is drawn for on its own, as in the official code of GRACE."""
    keep = torch.rand(edge_index.shape[1], device=edge_index.device) >= share
    return edge_index[:, keep]


def with_features_masked(x: Tensor, share: float) -> Tensor:
    """``x`` (dense or sparse CSR) with a random share of its columns set to zero in all rows."""
    keep = (torch.rand(x.shape[1], device=x.device) >= share).to(x.dtype)
    if x.layout == torch.sparse_csr:
        return _csr(x.crow_indices(), x.col_indices(), x.values() * keep[x.col_indices()], x.shape)
    return x * keep


def shuffled(x: Tensor, order: Tensor) -> Tensor:
    """Rows of ``x`` in another order: ``x[order]``, of a sparse CSR matrix too."""
    if x.layout != torch.sparse_csr:
        return x[order]
    crow, counts = x.crow_indices(), x.crow_indices().diff()[order]
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    # entry k of the result lies in its row r and is entry k - starts[r] of row order[r]
    shift = torch.repeat_interleave(crow[order] - starts[:-1], counts)
    places = torch.arange(len(shift), device=x.device) + shift
    return _csr(starts, x.col_indices()[places], x.values()[places], x.shape)


def _csr(ends: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.sparse_csr_tensor(ends, columns, values, shape, check_invariants=False)
