"""A graph of the user's own, from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from tracking.errors import UserError
from workbench.data_files import check_sum
from workbench.data_graphs import EXTRA, MASKS, dense_features, from_pyg
from workbench.datasets.graphs import Graph, GraphParams, GraphTask
from workbench.graphs.block_model import both_ways
from workbench.params import Field


class OwnGraphParams(GraphParams):
    """Where the graph is."""

    path: str = Field(
        "",
        description="file of the graph: .npz with x (or x_data, x_indices, x_indptr, x_shape), edge_index, y and, where "
        "it has a split, train_mask, val_mask, test_mask; or .pt of a PyG Data with the same names",
    )
    protocol: Literal["public", "full", "random", "fractions"] = Field(
        "fractions",
        description="public: the masks of the file; full: its validation and test nodes, all others train; random: "
        "train_per_class of each class, then val_size, then test_size; fractions: shares of all nodes",
    )


class OwnGraph(GraphTask):
    """Any graph with features and labels on its nodes, from a file; edges are taken both ways, a negative label means
    none.
    """

    dataset = "own_graph"
    models = ("node",)
    title = "A graph of your own"
    kind = "node_classification"
    embedded = False

    Params = OwnGraphParams
    params: OwnGraphParams

    def read(self) -> Graph:
        if not self.params.path:
            raise UserError(
                "Task 'own_graph/node' needs a file: set its parameter 'path' to an .npz or .pt file of a graph."
            )
        path = Path(self.params.path).expanduser()
        if not path.is_file():
            raise UserError(
                f"There is no file {path}. Set the parameter 'path' of task 'own_graph/node' to an .npz or .pt file of a graph."
            )
        if path.suffix not in (".npz", ".pt"):
            raise UserError(
                f"{path} is neither .npz nor .pt. Save the graph's arrays by numpy.savez, or its PyG Data by torch.save."
            )
        try:
            arrays = load_npz(path) if path.suffix == ".npz" else load_pyg(path)
            return checked(arrays)
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, EOFError) as error:
            raise UserError(
                f"{path} cannot be read as a graph: {str(error).splitlines()[0] if str(error) else type(error).__name__}."
            ) from error

    def source(self) -> dict[str, str]:
        path = Path(self.params.path).expanduser()
        digest = check_sum(path)
        return {"source": f"{path.name}, sha256 {digest[:16]}", "digest": digest[:16]}


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """Arrays of an npz file, pickles refused."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def load_pyg(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a PyG ``Data`` that ``torch.save`` wrote; no code in the file is run."""
    import torch

    try:
        import torch_geometric  # its classes are registered as safe
        from torch_geometric.data.data import Data, DataEdgeAttr, DataTensorAttr
        from torch_geometric.data.storage import GlobalStorage
    except ImportError:
        raise UserError(f"{path} is of PyG, which is not installed: {EXTRA}.") from None
    del torch_geometric
    with torch.serialization.safe_globals([Data, DataEdgeAttr, DataTensorAttr, GlobalStorage]):
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # broken bytes raise what they lead to
            raise ValueError(
                f"it is no plain PyG Data ({next(iter(str(error).splitlines()), type(error).__name__)})"
            ) from error
    return from_pyg(loaded[0] if isinstance(loaded, tuple) else loaded)


def checked(arrays: dict[str, np.ndarray]) -> Graph:
    """The graph of a file's arrays; raises ``ValueError`` or ``KeyError`` saying what is wrong."""
    for name in ("edge_index", "y"):
        if name not in arrays:
            raise KeyError(f"it has no array {name!r}; it has {', '.join(sorted(arrays)) or 'none'}")
    x, y = dense_features(arrays), np.asarray(arrays["y"]).reshape(-1).astype(np.int64)
    if x.ndim != 2 or len(x) != len(y):
        raise ValueError(f"features are {x.shape}, labels are of {len(y)} nodes")
    if not np.isfinite(x).all():
        raise ValueError("features hold NaN or infinity")
    rows, columns = np.asarray(arrays["edge_index"]).astype(np.int64, casting="same_kind")
    if len(rows) and (min(rows.min(), columns.min()) < 0 or max(rows.max(), columns.max()) >= len(y)):
        raise ValueError(
            f"edges name nodes {min(rows.min(), columns.min())} to {max(rows.max(), columns.max())}, there are {len(y)}"
        )
    masks = {name.removesuffix("_mask"): arrays[name].astype(bool) for name in MASKS if name in arrays}
    if masks and (len(masks) < 3 or any(mask.shape != y.shape for mask in masks.values())):
        raise ValueError("a split needs train_mask, val_mask and test_mask, one value for each node")
    labelled = y >= 0
    classes = np.unique(y[labelled])
    if not np.array_equal(classes, np.arange(len(classes))) or len(classes) < 2:
        raise ValueError(
            f"labels are {classes[:12].tolist()}, expected 0 to the number of classes - 1, each of at least two present"
        )
    return Graph(x, both_ways(rows, columns, len(y)), np.maximum(y, 0), masks, labelled)
