"""Data sets that are one graph with labelled nodes, and how they come from files and from PyG."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tracking.errors import UserError
from workbench.data_kinds import Arrays, Declaration

if TYPE_CHECKING:
    from workbench.datasets.graphs import Graph

MASKS = ("train_mask", "val_mask", "test_mask")
EXTRA = "pip install 'efficient-workbench[graphs]'"


@dataclass(frozen=True)
class NodeGraphs(Declaration):
    """One graph: features ``x`` float32 ``(N, P)``, or the parts ``x_data, x_indices, x_indptr, x_shape`` of a CSR
    matrix where they are ``sparse``; ``edge_index`` ``(2, E)``, both directions, no self-loops, sorted; ``y`` ``(N,)``;
    bool masks where there is a split.

    ``splits`` > 1: ``train_mask, val_mask, stopping_mask`` are ``(N, splits)`` and there is one ``test_mask`` ``(N,)``.
    """

    nodes: int
    edges: int
    """Undirected edges, each counted once, without self-loops; 0: not checked."""
    features: int
    num_classes: int
    splits: int = field(default=0, kw_only=True)
    sizes: tuple[int, ...] = field(default=(), kw_only=True)
    """Training, validation and test nodes of the data set's split; empty: not checked."""
    sparse: bool = field(default=True, kw_only=True)
    unlabelled: bool = field(default=False, kw_only=True)
    """Whether ``unlabelled_nodes`` lists nodes whose label is a placeholder."""
    json_file: str = field(default="", kw_only=True)
    """Name of the source's own JSON file, relative to the data folder, which is read where there is no npz."""

    @property
    def keys(self) -> tuple[str, ...]:
        table = ("x_data", "x_indices", "x_indptr", "x_shape") if self.sparse else ("x",)
        masks = (*MASKS, "stopping_mask")[: (0, 3, 4)[min(self.splits, 2)]]
        return (*table, "edge_index", "y", *masks, *(["unlabelled_nodes"] if self.unlabelled else []))

    def check(self, arrays: Mapping[str, np.ndarray]) -> None:
        shape = tuple(arrays["x_shape"]) if self.sparse else arrays["x"].shape
        if shape != (self.nodes, self.features):
            raise ValueError(f"features are {shape[0]} x {shape[1:]}, expected {self.nodes} x {self.features}")
        check_edges(arrays["edge_index"], self.nodes)
        if self.edges and arrays["edge_index"].shape[1] != 2 * self.edges:
            raise ValueError(f"there are {arrays['edge_index'].shape[1]} directed edges, expected {2 * self.edges}")
        y = arrays["y"]
        if y.shape != (self.nodes,) or not np.array_equal(np.unique(y), np.arange(self.num_classes)):
            raise ValueError(
                f"labels are {y.shape} of {np.unique(y)[:12].tolist()}, expected ({self.nodes},) of 0 to {self.num_classes - 1}"
            )
        for name in set(self.keys) & {*MASKS, "stopping_mask"}:
            many = self.splits > 1 and name != "test_mask"
            if arrays[name].dtype != bool or arrays[name].shape != (self.nodes, *([self.splits] if many else [])):
                raise ValueError(f"{name} is {arrays[name].dtype} {arrays[name].shape}")
        if self.sizes and (found := tuple(int(arrays[m].sum()) for m in MASKS)) != self.sizes:
            raise ValueError(f"the split is {found}, expected {self.sizes}")

    def graph(self, arrays: Mapping[str, np.ndarray], split: int = 0) -> Graph:
        """The graph with its ``split``-th split, if it has any."""
        from workbench.datasets.graphs import Graph

        masks = {
            name.removesuffix("_mask"): arrays[name][:, split] if arrays[name].ndim == 2 else arrays[name]
            for name in (*MASKS, "stopping_mask")
            if name in self.keys
        }
        labelled = None
        if self.unlabelled:
            labelled = np.ones(self.nodes, bool)
            labelled[arrays["unlabelled_nodes"]] = False
        return Graph(
            dense_features(arrays), arrays["edge_index"].astype(np.int64), arrays["y"].astype(np.int64), masks, labelled
        )

    def retrieve(self) -> tuple[Arrays, str, str]:
        try:
            import torch_geometric
        except ImportError:
            raise UserError(f"PyG, which would download it, is not installed: {EXTRA}.") from None
        from workbench.data_sources import cache_folder

        family, _, name = self.hub.partition(":")
        root = cache_folder() / "pyg" / self.name
        if family == "WikiCS":
            loaded = torch_geometric.datasets.WikiCS(str(root), is_undirected=True)[0]
        else:
            loaded = getattr(torch_geometric.datasets, family)(str(root), name)[0]
        return from_pyg(loaded, self), "", f"PyG {torch_geometric.__version__}, {self.hub}"

    def read_json(self, path: Path) -> Arrays:
        """The arrays of the source's JSON file, in the format of Wiki-CS (Mernyei & Cangea, arXiv:2007.02901)."""
        return wiki_arrays(json.loads(path.read_text(encoding="utf-8")))


def check_edges(edges: np.ndarray, nodes: int) -> None:
    """Raise ``ValueError`` unless ``edges`` ``(2, E)`` are sorted, each once and in both directions, between different
    nodes.
    """
    if edges.ndim != 2 or len(edges) != 2 or edges.dtype.kind not in "iu":
        raise ValueError(f"edge_index is {edges.dtype} {edges.shape}, expected integers (2, E)")
    rows, columns = edges.astype(np.int64)
    if edges.size and (edges.min() < 0 or edges.max() >= nodes):
        raise ValueError(f"edges name node {edges.max()}, there are {nodes}")
    key = rows * nodes + columns
    if (np.diff(key) <= 0).any() or (rows == columns).any() or not np.array_equal(np.sort(columns * nodes + rows), key):
        raise ValueError("edges are not sorted, repeated, one-way, or join a node with itself")


def dense_features(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """float32 ``(N, P)`` of dense features or of the parts of a CSR matrix."""
    if "x" in arrays:
        return arrays["x"].astype(np.float32)
    x = np.zeros(tuple(arrays["x_shape"]), np.float32)
    rows = np.repeat(np.arange(len(x)), np.diff(arrays["x_indptr"].astype(np.int64)))
    x[rows, arrays["x_indices"].astype(np.int64)] = arrays["x_data"]
    return x


def wiki_arrays(table: Mapping[str, Any]) -> Arrays:
    """Arrays of Wiki-CS's JSON: lists ``features, labels, links``, and masks with a row for each split.

    Links are taken both ways, repeated ones and those of an article to itself once or not at all.
    """
    from workbench.graphs.block_model import both_ways

    rows = np.repeat(np.arange(len(table["links"])), [len(to) for to in table["links"]])
    columns = np.fromiter((j for to in table["links"] for j in to), np.int64, len(rows))
    split = {f"{name}_mask": np.asarray(table[f"{name}_masks"], bool).T.copy() for name in ("train", "val", "stopping")}
    return {
        "x": np.asarray(table["features"], np.float32),
        "y": np.asarray(table["labels"], np.int64),
        "edge_index": both_ways(rows, columns, len(table["links"])),
        **split,
        "test_mask": np.asarray(table["test_mask"], bool),
    }


def from_pyg(loaded: Any, declared: NodeGraphs | None = None) -> Arrays:
    """Arrays of a PyG ``Data`` with ``x, edge_index, y``, and the masks that it (and the declaration) has."""
    from workbench.graphs.block_model import both_ways

    rows, columns = loaded.edge_index.cpu().numpy().astype(np.int64)
    x = loaded.x.cpu().numpy().astype(np.float32)
    arrays = {"edge_index": both_ways(rows, columns, len(x)), "y": loaded.y.cpu().numpy().astype(np.int64)}
    names = (
        [n for n in declared.keys if n.endswith("_mask")]
        if declared
        else [n for n in MASKS if getattr(loaded, n, None) is not None]
    )
    arrays |= {name: getattr(loaded, name).cpu().numpy().astype(bool) for name in names}
    if not declared or not declared.sparse:
        return {"x": x, **arrays}
    at = x.nonzero()
    ends = np.concatenate([[0], np.cumsum(np.bincount(at[0], minlength=len(x)))])
    if declared.unlabelled:  # where PyG fills the gaps of Citeseer's test index: no features, no edges
        degree = np.bincount(arrays["edge_index"][0], minlength=len(x))
        arrays["unlabelled_nodes"] = np.flatnonzero((degree == 0) & ~x.any(1))
    return {"x_data": x[at], "x_indices": at[1], "x_indptr": ends, "x_shape": np.array(x.shape), **arrays}
