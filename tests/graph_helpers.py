"""A small graph in float64, its matrices, and a transform of it, and graph tasks that are set up: what tests of graphs
share.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.task_helpers import context
from workbench import registry
from workbench.datasets.graphs import Graph, GraphParams, GraphTask
from workbench.graphs.averaging import Averaging, averaging
from workbench.graphs.block_model import block_model
from workbench.graphs.igt import InterferometricGraphTransform
from workbench.graphs.inputs import as_graph
from workbench.method import Method
from workbench.params import parse

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

# --- a random graph for peers -------------------------------------------------------------------------------

SMALL_N, SMALL_P = 24, 10
CTX = context()


class Drawn(GraphTask):
    """A random graph with a node that has no edge, and features of which one in five is not zero."""

    dataset = "drawn"

    def read(self) -> Graph:
        rng = np.random.default_rng(5)
        a = np.triu(rng.random((SMALL_N, SMALL_N)) < 0.2, 1)
        a[:, -1] = False
        x = (rng.random((SMALL_N, SMALL_P)) * (rng.random((SMALL_N, SMALL_P)) < 0.2)).astype(np.float32)
        return Graph(x, np.stack(np.nonzero(a | a.T)), np.arange(SMALL_N) % 2)


def drawn_task() -> Drawn:
    """That graph, set up."""
    it = Drawn("", parse(GraphParams, {"train_per_class": 3, "val_size": 6, "test_size": 0}, "drawn"))
    it.setup(CTX)
    return it


def adjacency_of(task: GraphTask) -> np.ndarray:
    """A as a matrix of float64."""
    a = np.zeros((task.num_nodes, task.num_nodes))
    a[tuple(task.edge_index.numpy())] = 1
    return a


def average_of(task: GraphTask) -> np.ndarray:
    """D̃^-1/2 (A + I) D̃^-1/2."""
    loops = adjacency_of(task) + np.eye(task.num_nodes)
    root = np.sqrt(loops.sum(1))
    return loops / root[:, None] / root


def whole_run(method: Method, task: GraphTask) -> Any:
    """The state at the end of a run."""
    state = method.init(task, CTX)
    while method.progress(state).done < method.progress(state).total:
        method.step(state, task, CTX)
    return state


def near(found: torch.Tensor, wanted: np.ndarray, rtol: float = 1e-5) -> None:
    """Equal but for float32 rounding: a dozen sums of tens of terms cost some 1e-6 of the largest."""
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=0, atol=rtol * np.abs(wanted).max())


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
