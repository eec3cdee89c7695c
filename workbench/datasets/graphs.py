"""Graphs whose nodes are to be labelled: one graph on the device, and three sets of its nodes, given or drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch

from tracking.errors import UserError
from workbench import data
from workbench.method import Context, derive_seed
from workbench.params import Field, Params
from workbench.task import Task

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.graphs.averaging import Averaging


class Graph(NamedTuple):
    """What a task reads or generates, as arrays on the host."""

    x: np.ndarray
    """Features, float32 ``(N, P)``, as the source has them: methods normalise."""
    edge_index: np.ndarray
    """int64 ``(2, E)``: each edge in both directions, no self-loops, sorted by row, then column."""
    y: np.ndarray
    """Labels, int64 ``(N,)``."""
    masks: dict[str, np.ndarray] = {}
    """The data set's own split, bool ``(N,)`` under ``train, val, test``, and ``stopping`` where it has one apart;
    empty: none.
    """
    labelled: np.ndarray | None = None
    """Nodes with a label, bool ``(N,)``; ``None``: all."""


class GraphParams(Params):
    """How the nodes are split. Fields that the protocol does not use have no effect."""

    protocol: Literal["random", "fractions"] = Field(
        "random",
        description="random: train_per_class of each class, then val_size, then test_size; fractions: shares of all nodes",
    )
    train_per_class: int = Field(20, ge=1, le=1_000_000, description="training nodes of each class (random)")
    val_size: int = Field(500, ge=1, le=10_000_000, description="validation nodes (random)")
    test_size: int = Field(1000, ge=0, le=10_000_000, description="test nodes (random); 0 = all that are left")
    train_fraction: float = Field(0.1, gt=0, lt=1, description="share of the nodes that train (fractions)")
    val_fraction: float = Field(
        0.1, gt=0, lt=1, description="share of the nodes that validate (fractions); the rest test"
    )
    split_seed: int = Field(
        -1, ge=-1, description="seed of a drawn split, apart from the seed of the run; -1 = the seed of the run"
    )


class PublicParams(GraphParams):
    """For a data set that comes with a split."""

    protocol: Literal["public", "full", "random", "fractions"] = Field(
        "public",
        description="public: the data set's split; full: its validation and test nodes, all others train; random: "
        "train_per_class of each class, then val_size, then test_size; fractions: shares of all nodes",
    )


class GraphTask(Task):
    """Base of the graph tasks. A subclass gives :meth:`read`.

    After :meth:`setup`, on the device: ``x`` float32 ``(N, P)`` as the source has it; ``edge_index`` int64 ``(2, E)``,
    each edge in both directions, no self-loops, sorted by row, then column; ``y`` int64 ``(N,)``; ``train_mask,
    val_mask, test_mask`` bool ``(N,)``, disjoint; ``stopping_mask`` bool ``(N,)``, the nodes that early stopping looks
    at (the validation nodes, where the data set has none apart); ``labelled`` bool ``(N,)``, the nodes that have a
    label; ``num_classes``. Tensors may be shared: do not write into them.
    """

    kind = "node_classification"
    Params = GraphParams
    params: GraphParams

    x: Tensor
    edge_index: Tensor
    y: Tensor
    train_mask: Tensor
    val_mask: Tensor
    test_mask: Tensor
    stopping_mask: Tensor
    labelled: Tensor
    num_classes: int

    def read(self) -> Graph:
        """The graph, from its source or generated."""
        raise NotImplementedError

    def source(self) -> dict[str, str]:
        """Where the graph came from; after :meth:`read`."""
        return {"source": f"generated, numpy {np.__version__}"}

    def setup(self, ctx: Context) -> None:
        graph = self.read()
        labelled = np.ones(len(graph.y), bool) if graph.labelled is None else graph.labelled
        seed = ctx.seed if self.params.split_seed < 0 else self.params.split_seed
        masks = split(graph.y, labelled, graph.masks, self.params, derive_seed(seed, self.dataset, "split"), self.id)
        for name, mask in masks.items():
            setattr(self, f"{name}_mask", torch.from_numpy(mask).to(ctx.device))
        for name in ("x", "edge_index", "y"):
            setattr(self, name, torch.from_numpy(getattr(graph, name)).to(ctx.device))
        self.labelled = torch.from_numpy(labelled).to(ctx.device)
        self.num_classes = int(graph.y.max()) + 1
        self._adjacency: Tensor | None = None
        self._averagings: dict[tuple, Averaging] = {}

    @property
    def num_nodes(self) -> int:
        return len(self.x)

    def adjacency(self) -> Tensor:
        """The symmetric adjacency matrix without self-loops: sparse CSR of ones, float32 ``(N, N)``, made once."""
        if self._adjacency is None:
            from workbench.graphs.averaging import adjacency

            self._adjacency = adjacency(self.edge_index, self.num_nodes)
        return self._adjacency

    def averaging(self, kind: str = "symmetric", power: int = 2, self_loops: float = 1.0, rank: int = 64) -> Averaging:
        """The averaging operator of :func:`workbench.graphs.averaging.averaging`, made at the first call with these
        arguments.
        """
        key = (kind, power, self_loops, rank)
        if key not in self._averagings:
            from workbench.graphs.averaging import averaging

            self._averagings[key] = averaging(self.adjacency(), kind, power, self_loops=self_loops, rank=rank)
        return self._averagings[key]

    def provenance(self) -> dict[str, str]:
        """What the graph was, to be recorded with a run. After :meth:`setup`."""
        counts = {
            "nodes": self.num_nodes,
            "edges": self.edge_index.shape[1] // 2,
            "features": self.x.shape[1],
            "classes": self.num_classes,
        }
        counts |= {f"{name}_nodes": int(getattr(self, f"{name}_mask").sum()) for name in ("train", "val", "test")}
        return {"dataset": self.dataset, **{k: str(v) for k, v in counts.items()}, **self.source()}


class StoredGraph(GraphTask):
    """Base of the tasks on a declared data set: its name is the task's ``dataset``."""

    Params = PublicParams

    def read(self) -> Graph:
        return data.declaration(self.dataset).graph(data.load(self.dataset))

    def source(self) -> dict[str, str]:
        return data.provenance(self.dataset)


# --- splits -------------------------------------------------------------------------------------------------


def split(
    y: np.ndarray, labelled: np.ndarray, given: dict[str, np.ndarray], p: GraphParams, seed: int, owner: str
) -> dict[str, np.ndarray]:
    """Disjoint masks ``train, val, test``, and ``stopping``, of labelled nodes by the protocol, each bool ``(N,)``.

    The random protocol is that of Shchur et al. (2018, arXiv:1811.05868) with the sizes of Yang, Cohen & Salakhutdinov
    (ICML 2016). Raises :class:`tracking.errors.UserError` when a set would be empty or nodes are too few.
    """
    rng = np.random.default_rng(seed)
    if p.protocol in ("public", "full"):
        if not given:
            raise UserError(f"Task {owner!r} has no split of its own. Choose protocol 'random' or 'fractions'.")
        masks = {name: mask & labelled for name, mask in given.items()}
        if p.protocol == "full":
            masks["train"] = labelled & ~masks["val"] & ~masks["test"]
    elif p.protocol == "random":
        masks = _random(y, labelled, p, rng, owner)
    else:
        masks = _fractions(labelled, p, rng)
    if empty := [name for name in ("train", "val", "test") if not masks[name].any()]:
        raise UserError(f"Task {owner!r}: no node is left for {', '.join(empty)}. Make the other sets smaller.")
    return {"stopping": masks["val"], **masks}


def _random(
    y: np.ndarray, labelled: np.ndarray, p: GraphParams, rng: np.random.Generator, owner: str
) -> dict[str, np.ndarray]:
    order = rng.permutation(np.flatnonzero(labelled))
    by_class = order[np.argsort(y[order], kind="stable")]  # within a class in random order
    counts = np.bincount(y[order])
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    train = by_class[rank < p.train_per_class]
    rest = order[~np.isin(order, train)]
    if p.val_size + max(p.test_size, 1) > len(rest):
        raise UserError(
            f"Task {owner!r}: {len(order)} nodes have a label and {len(train)} train, so {len(rest)} are left; val_size "
            f"{p.val_size} and test_size {p.test_size or 'at least 1'} ask for more. Make them smaller."
        )
    stop = p.val_size + p.test_size if p.test_size else len(rest)
    return _masks(len(y), train, rest[: p.val_size], rest[p.val_size : stop])


def _fractions(labelled: np.ndarray, p: GraphParams, rng: np.random.Generator) -> dict[str, np.ndarray]:
    order = rng.permutation(np.flatnonzero(labelled))
    first, second = int(p.train_fraction * len(order)), int((p.train_fraction + p.val_fraction) * len(order))
    return _masks(len(labelled), order[:first], order[first:second], order[second:])


def _masks(count: int, *sets: np.ndarray) -> dict[str, np.ndarray]:
    masks = {name: np.zeros(count, bool) for name in ("train", "val", "test")}
    for mask, nodes in zip(masks.values(), sets, strict=True):
        mask[nodes] = True
    return masks
