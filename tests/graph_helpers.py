"""A small graph in float64, its matrices, and a transform of it, and graph tasks that are set up: what tests of graphs
share.
"""

from __future__ import annotations

import numpy as np
import torch

from tests.task_helpers import context
from workbench import registry
from workbench.datasets.graphs import GraphTask
from workbench.graphs.averaging import Averaging, averaging
from workbench.graphs.block_model import block_model
from workbench.graphs.igt import InterferometricGraphTransform
from workbench.graphs.inputs import as_graph

F64 = torch.float64
N, P = 60, 12
KINDS = ["symmetric", "row", "lazy", "lowrank"]


def small_graph() -> tuple[torch.Tensor, torch.Tensor]:
    """Features and edges of a graph with two communities, in float64."""
    rng = np.random.default_rng(0)
    edges = block_model(np.array([25, 35]), np.array([[0.3, 0.05], [0.05, 0.2]]), rng)
    return torch.from_numpy(rng.standard_normal((N, P)) * np.linspace(2, 0.3, P)), torch.from_numpy(edges)


def dense(graph, self_loops: float = 1.0) -> np.ndarray:
    """Its adjacency matrix with self-loops."""
    a = np.zeros((N, N))
    a[tuple(graph[1].numpy())] = 1
    return a + self_loops * np.eye(N)


def operator_of(graph, kind: str, power: int = 2, self_loops: float = 1.0) -> Averaging:
    """Its average of a kind, in float64."""
    return averaging(as_graph(graph, dtype=F64).adjacency, kind, power, self_loops=self_loops, rank=7, dtype=F64)


def transform(**changes) -> InterferometricGraphTransform:
    return InterferometricGraphTransform(
        **{"dim": None, "normalise": "none", "dtype": "float64", "iterations": 12} | changes
    )


def task_of(id: str, seed: int = 0, **values) -> GraphTask:
    """A graph task that is set up."""
    cls = registry.load_task(id if "/" in id else f"{id}/node")
    it = cls("node", cls.Params(**values))
    it.setup(context(seed))
    return it
