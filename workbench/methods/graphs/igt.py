"""The Interferometric Graph Transform as a method: one step is one iteration of the solver on the present order's
filters.

The transform, free of the workbench, is :class:`workbench.graphs.igt.InterferometricGraphTransform`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from workbench.datasets.graphs import GraphTask
from workbench.graphs.averaging import AboutMean, Averaging
from workbench.graphs.filters import moduli, project, random_filters
from workbench.graphs.igt import FilterSearch, cascade, filter_counts, goal_of, resolve_solver
from workbench.graphs.spectrum import principal_directions
from workbench.method import Context, Progress, View
from workbench.methods.graphs._embedding import EmbeddingParams, NodeEmbedding
from workbench.methods.graphs._views import filter_views
from workbench.params import Field


class IGTParams(EmbeddingParams):
    """The transform. Sizes, averages and solver are ours: the paper's abstract names none."""

    orders: int = Field(1, ge=0, le=4, description="filtered orders beyond order 0, which is the averaged features")
    dim: int = Field(256, ge=1, le=10_000, description="principal directions to which features are reduced first")
    filters: tuple[int, ...] = Field(
        (), description="complex filters of each order; empty: half as many as the order's inputs"
    )
    averaging: Literal["symmetric", "row", "lazy", "lowrank"] = Field(
        "symmetric",
        description="operator: normalised adjacency, mean over neighbours, half way from the identity, smoothest eigenvectors",
    )
    power: int = Field(2, ge=1, le=100, description="times the average is applied")
    self_loops: float = Field(1.0, ge=0, le=100, description="weight of the edge of a node to itself")
    rank: int = Field(64, ge=1, le=10_000, description="eigenvectors (lowrank)")
    centred: bool = Field(True, description="filter what averaging removes, U - A U; false: all of U")
    objective: Literal["variation", "energy"] = Field(
        "variation",
        description="energy of averaged moduli that is maximised: variation: about their mean over all nodes; energy: all of it",
    )
    solver: Literal["auto", "mm", "pgd", "none"] = Field(
        "auto",
        description="mm: tangents and polar decompositions; pgd: projected gradient; auto: mm where it is sure to climb; none: random",
    )
    constraint: Literal["isometry", "contraction", "rows"] = Field(
        "isometry", description="filters keep all norms; enlarge none; or have rows of norm at most 1"
    )
    iterations: int = Field(25, ge=1, le=10_000, description="steps of the solver for each order")
    lr: float = Field(
        100.0, gt=0, le=1e6, description="first step of pgd, in inverse curvatures of the energy of filtered features"
    )


@dataclass
class IGTState:
    """Filters of the orders before, and the search for the present order's (``None``: order 0 is all there is)."""

    basis: Tensor
    draw: torch.Generator
    filters: list[Tensor] = field(default_factory=list)
    search: FilterSearch | None = None
    done: int = 0


class IGT(NodeEmbedding):
    """Averages of features and of moduli of learnt filters, order by order; labels are never read."""

    id = "igt"
    title = "Interferometric Graph Transform"
    family = "graphs"
    paper = "arXiv:2106.05875"
    kinds = ("node_classification",)
    example = {"task": "sbm/node", "params": {"iterations": 10}}

    Params = IGTParams
    params: IGTParams

    def init(self, task: GraphTask, ctx: Context) -> IGTState:
        x = self.inputs(task)
        # drawn on the CPU, so that both devices start from the same filters
        state = IGTState(principal_directions(x, self.params.dim, seed=ctx.seed), ctx.generator("init", cpu=True))
        resolve_solver(self.params.solver, self.goal(task))
        filter_counts(state.basis.shape[1], self.params.orders, self.params.filters or None)
        if self.params.orders:
            state.search = self.begin(self.reduced(state, task), state, task)
        return state

    def step(self, state: IGTState, task: GraphTask, ctx: Context) -> dict[str, float]:
        state.done += 1
        if state.search is None:
            return {}
        state.search.step(self.goal(task), self.params.solver, self.params.constraint)
        figures = {"train/energy": min(max(state.search.ratio, 0.0), 1.0), "train/order": len(state.filters) + 1}
        if state.done % self.params.iterations == 0 and len(state.filters) + 1 < self.params.orders:
            u = moduli(state.search.y, state.search.w)
            state.filters.append(state.search.w)
            state.search = self.begin(u, state, task)
        return figures

    def begin(self, u: Tensor, state: IGTState, task: GraphTask) -> FilterSearch:
        """The search for the filters that act on the signals ``u`` ``(N, P_n)``, from random ones."""
        operator, order = self.average(task), len(state.filters)
        count = filter_counts(state.basis.shape[1], self.params.orders, self.params.filters or None)[order]
        w = project(random_filters(u.shape[1], count, state.draw), self.params.constraint)
        return FilterSearch.begin(u - operator(u) if self.params.centred else u, w, self.goal(task), self.params.lr)

    def average(self, task: GraphTask) -> Averaging:
        p = self.params
        return task.averaging(p.averaging, p.power, p.self_loops, p.rank)

    def goal(self, task: GraphTask) -> Averaging | AboutMean:
        return goal_of(self.average(task), self.params.objective)

    def reduced(self, state: IGTState, task: GraphTask) -> Tensor:
        """Features in the principal directions, ``(N, P')``."""
        x = self.inputs(task)
        return x @ state.basis if state.basis.shape[1] < x.shape[1] else x

    def blocks(self, state: IGTState, task: GraphTask, ctx: Context) -> list[Tensor]:
        """The orders apart; of an order that is being learnt, with its present filters."""
        filters = [*state.filters, *([state.search.w] if state.search else [])]
        return list(cascade(self.reduced(state, task), self.average(task), filters, self.params.centred))

    def features(self, state: IGTState, task: GraphTask, ctx: Context) -> Tensor:
        return torch.cat(self.blocks(state, task, ctx), 1)

    @torch.no_grad()
    def views(self, state: IGTState, task: GraphTask) -> list[View]:
        """The nodes as the representation places them, the energy of the orders, and what averaging keeps of the filters."""
        mean, u, orders = self.average(task), self.reduced(state, task), []
        total = float(u.square().sum())
        for w in (*state.filters, *([state.search.w] if state.search else []), None):
            smooth = mean(u)
            orders.append((u, smooth))
            if w is not None:
                u = moduli(u - smooth if self.params.centred else u, w)
        return [*super().views(state, task), *filter_views(orders, total)]

    def progress(self, state: IGTState) -> Progress:
        return Progress(state.done, max(self.params.orders * self.params.iterations, 1))
