"""Graphs of other libraries as tensors: SciPy, NetworkX, PyG and plain arrays, with words for what is wrong with
them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tracking.errors import UserError, unknown
from workbench.graphs.averaging import csr

NORMS = ("none", "l1", "l2")


class NodeGraph(NamedTuple):
    """Features ``(N, P)`` and a symmetric sparse CSR adjacency matrix ``(N, N)`` without self-loops, on one device."""

    x: Tensor
    adjacency: Tensor


def normalise_rows(x: Tensor, norm: str) -> Tensor:
    """Rows of ``x`` ``(N, P)`` brought to unit ``l1`` or ``l2`` norm; rows of zeros stay. ``none``: ``x`` itself."""
    if norm not in NORMS:
        raise unknown("norm", norm, NORMS)
    if norm == "none":
        return x
    size = x.abs().sum(1, keepdim=True) if norm == "l1" else x.square().sum(1, keepdim=True).sqrt()
    return x / torch.where(size > 0, size, 1)


def as_graph(
    graph: Any, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32, symmetrise: bool = True
) -> NodeGraph:
    """Features and adjacency of a graph given as

    - a PyG ``Data`` with ``x`` and ``edge_index`` (and ``edge_weight``, where it has one),
    - a NetworkX graph whose nodes have an attribute ``x`` of equal length; nodes are taken in the graph's order,
    - a pair ``(x, edges)``: ``edges`` is an ``edge_index`` ``(2, E)`` of integers, or an adjacency matrix ``(N, N)``:
      SciPy sparse, a sparse tensor, or dense.

    Self-loops are dropped and repeated edges count once (of weighted ones the largest counts); with ``symmetrise`` an
    edge given in one direction counts in both. Raises :class:`tracking.errors.UserError` that says what is wrong: sizes
    that do not agree, NaN, negative weights, node numbers out of range, a directed graph where ``symmetrise`` is off.
    """
    x, rows, columns, weights = _parts(graph)
    x = _tensor(x)
    if x.dim() != 2 or not len(x) or not x.shape[1]:
        raise UserError(
            f"Node features are of shape {tuple(x.shape)}; they must be a table (nodes, features), neither of them 0."
        )
    x = x.to(device=device, dtype=dtype)
    if not x.isfinite().all():
        node = int((~x.isfinite()).any(1).nonzero()[0])
        raise UserError(
            f"The features of node {node} hold NaN or infinity. Replace them, for example by 0 or by the mean of the feature."
        )
    rows, columns = (_tensor(part).to(device=x.device, dtype=torch.int64) for part in (rows, columns))
    if weights is not None:
        weights = _tensor(weights).to(x.device).float()
        weights = None if bool((weights == 1).all()) else weights
    _check_edges(rows, columns, weights, len(x))
    return NodeGraph(x, _adjacency(rows, columns, weights, len(x), symmetrise))


def _check_edges(rows: Tensor, columns: Tensor, weights: Tensor | None, n: int) -> None:
    if not len(rows):
        return
    low, high = min(int(rows.min()), int(columns.min())), max(int(rows.max()), int(columns.max()))
    if low < 0 or high >= n:
        wrong = low if low < 0 else high
        raise UserError(f"Edges name node {wrong}, but there are features for {n} nodes, numbered 0 to {n - 1}.")
    if weights is not None and not (weights.isfinite() & (weights >= 0)).all():
        raise UserError("Edge weights must be finite and not negative.")


def _adjacency(rows: Tensor, columns: Tensor, weights: Tensor | None, n: int, symmetrise: bool) -> Tensor:
    keep = rows != columns if weights is None else (rows != columns) & (weights > 0)
    if not keep.all():
        rows, columns, weights = rows[keep], columns[keep], None if weights is None else weights[keep]
    key, back = rows * n + columns, columns * n + rows
    if weights is None:
        key = _different(torch.cat([key, back]) if symmetrise else key)
        values = torch.ones(len(key), device=key.device)
    else:
        key, place = (torch.cat([key, back]) if symmetrise else key).unique(return_inverse=True)
        weights = torch.cat([weights, weights]) if symmetrise else weights
        values = torch.zeros(len(key), device=key.device).scatter_reduce_(0, place, weights, "amax")
    rows, columns = key // n, key - key // n * n
    if not symmetrise:
        back, turned = torch.sort(columns * n + rows)
        if not (torch.equal(back, key) and torch.equal(values[turned], values)):
            raise UserError(
                "The graph is directed: its adjacency matrix is not symmetric. Give symmetrise=True to take each edge "
                "both ways."
            )
    ends = torch.cat([key.new_zeros(1), torch.bincount(rows, minlength=n).cumsum(0)])
    return csr(ends, columns, values, n)


def _different(key: Tensor) -> Tensor:
    """The different numbers of ``key``, ascending."""
    # NumPy sorts many times as fast as torch on the CPU
    key = torch.from_numpy(np.sort(key.numpy())) if key.device.type == "cpu" else key.sort().values
    return key[torch.cat([key.new_ones(1, dtype=torch.bool), key[1:] != key[:-1]])] if len(key) else key


def _parts(graph: Any) -> tuple[Any, Any, Any, Any]:
    """Features, rows, columns and weights (or ``None``) of a graph of any kind."""
    if isinstance(graph, (tuple, list)) and len(graph) == 2:
        x = _tensor(graph[0])
        return x, *_edges(graph[1], len(x))
    if hasattr(graph, "edge_index"):  # PyG Data
        if getattr(graph, "x", None) is None:
            raise UserError("The PyG graph has no node features (x). Set data.x, or give a pair (x, edge_index).")
        weight = getattr(graph, "edge_weight", None)
        return graph.x, graph.edge_index[0], graph.edge_index[1], weight
    if hasattr(graph, "adjacency") and hasattr(graph, "nodes"):  # NetworkX
        return _networkx(graph)
    raise UserError(
        f"A {type(graph).__name__} is no graph that can be read. Give a PyG Data, a NetworkX graph with an attribute 'x' on its "
        "nodes, or a pair (features, edges)."
    )


def _edges(edges: Any, count: int) -> tuple[Any, Any, Any]:
    if hasattr(edges, "tocoo"):  # SciPy
        matrix = edges.tocoo()
        _check_square(matrix.shape, count)
        return np.asarray(matrix.row), np.asarray(matrix.col), np.asarray(matrix.data)
    edges = _tensor(edges)
    if edges.layout != torch.strided:
        _check_square(tuple(edges.shape), count)
        matrix = edges.to_sparse_coo().coalesce()
        return matrix.indices()[0], matrix.indices()[1], matrix.values()
    if (
        edges.dim() == 2
        and edges.shape[0] == 2
        and not edges.is_floating_point()
        and not (count == 2 and edges.shape[1] == 2)
    ):
        return edges[0], edges[1], None
    if edges.dim() != 2:
        raise UserError(
            f"Edges are of shape {tuple(edges.shape)}; give an edge_index (2, E) of integers or a matrix (N, N)."
        )
    _check_square(tuple(edges.shape), count)
    at = edges.nonzero(as_tuple=True)
    return at[0], at[1], edges[at]


def _check_square(shape: tuple[int, ...], count: int) -> None:
    if shape[0] != shape[1]:
        raise UserError(
            f"The adjacency matrix is {shape[0]} x {shape[1]}; it must be square, a row and a column for each node."
        )
    if shape[0] != count:
        raise UserError(
            f"The adjacency matrix is of {shape[0]} nodes, the features of {count}. Both must list the same nodes in one order."
        )


def _networkx(graph: Any) -> tuple[Any, Any, Any, Any]:
    nodes = list(graph.nodes)
    try:
        x = np.asarray([np.atleast_1d(np.asarray(graph.nodes[v]["x"], dtype=np.float64)) for v in nodes])
    except KeyError:
        raise UserError(
            "The nodes of the NetworkX graph have no attribute 'x'. Set it, for example by networkx.set_node_attributes, or "
            "give a pair (x, networkx.to_scipy_sparse_array(graph))."
        ) from None
    except ValueError:
        raise UserError("The attributes 'x' of the NetworkX graph's nodes are not vectors of one length.") from None
    place = {v: i for i, v in enumerate(nodes)}
    edges = [(place[a], place[b], d.get("weight", 1.0)) for a, b, d in graph.edges(data=True)]
    rows, columns, weights = (np.array(part) for part in zip(*edges, strict=True)) if edges else (np.zeros(0),) * 3
    return x, rows, columns, weights


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    if hasattr(value, "toarray"):  # SciPy features
        value = value.toarray()
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise UserError(f"Values of type {array.dtype} are no numbers.")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))
