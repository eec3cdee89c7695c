"""The Interferometric Graph Transform of one large graph: node features for community labels, learnt without labels.

After N. Grinsztajn, L. Leconte, P. Preux & E. Oyallon, "Interferometric Graph Transform for Community Labeling", 2021
(arXiv:2106.05875), whose abstract describes an iteration of linear operators and moduli that demodulates features
towards low graph frequencies. The orders, sizes and solver below are a reconstruction in the style of E. Oyallon's
"Interferometric Graph Transform", ICML 2020 (arXiv:2006.05722): each choice is a parameter, and none is claimed to be
that of the 2021 paper.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracking.errors import UserError, unknown
from workbench.graphs.averaging import AboutMean, Averaging, averaging
from workbench.graphs.filters import (
    CONSTRAINTS,
    ROWS,
    curvature,
    energy_gradient,
    mm_step,
    moduli,
    pgd_step,
    project,
    random_filters,
)
from workbench.graphs.inputs import as_graph, normalise_rows
from workbench.graphs.spectrum import principal_directions

SOLVERS = ("auto", "mm", "pgd", "none")
OBJECTIVES = ("variation", "energy")
LONGEST = 1e6
"""Step of ``pgd`` beyond which a longer one changes nothing: the gradient alone is projected."""


def cascade(
    u: Tensor, mean: Callable[[Tensor], Tensor], filters: Sequence[Tensor], centred: bool = True
) -> Iterator[Tensor]:
    """The orders ``S_0, S_1 …`` of signals ``u`` ``(N, P)``, one after another.

    ``S_n = A U_n`` with ``U_0 = u`` and ``U_{n+1} = |(U_n - A U_n) W_{n+1}|``; ``mean`` is A, and ``centred=False``
    leaves the subtraction out. With an expectation for A these are the orders of E-IGT.
    """
    for w in (*filters, None):
        smooth = mean(u)
        yield smooth
        if w is not None:
            u = moduli(u - smooth if centred else u, w)


@dataclass
class FilterSearch:
    """Learning of one order's filters on fixed signals ``y`` ``(N, P)``: what it remembers from step to step.

    ``w`` ``(P, 2K)`` always satisfies the constraint; ``energy`` and ``gradient`` are those of ``|A |y W| |_F^2`` at
    ``w``, with A the operator of :func:`goal_of`; ``total`` is ``|y|_F^2``. ``finished`` is set when no step gains
    anything.
    """

    y: Tensor
    w: Tensor
    energy: float
    gradient: Tensor
    total: float
    lr: float
    """Next step of ``pgd`` in inverse curvatures, which know neither the number of nodes nor the scale of features."""
    finished: bool = False
    curvature: float = 0.0
    """Of ``|yW|_F^2``; 0 before the first step that needs it."""

    @classmethod
    def begin(cls, y: Tensor, w: Tensor, operator: Averaging | AboutMean, lr: float = 1.0) -> FilterSearch:
        """A search that starts from the filters ``w``."""
        total = sum(part.double().square().sum().item() for part in y.split(ROWS))
        return cls(y, w.to(y), *energy_gradient(y, w.to(y), operator.gram), total, lr, finished=total == 0)

    @property
    def ratio(self) -> float:
        """Share of the energy of ``y`` that the operator leaves of the moduli; it does not fall from step to step."""
        return self.energy / self.total if self.total else 0.0

    def step(self, operator: Averaging | AboutMean, solver: str = "auto", constraint: str = "isometry") -> None:
        """One iteration of the solver."""
        solver = resolve_solver(solver, operator)
        if solver == "none" or self.finished:
            return
        if solver == "mm":
            self.w = mm_step(self.gradient, constraint)
            self.energy, self.gradient = energy_gradient(self.y, self.w, operator.gram)
        else:
            self.curvature = self.curvature or curvature(self.y)
            tried = self.lr / self.curvature
            self.w, self.energy, self.gradient, step = pgd_step(
                self.y, self.w, self.energy, self.gradient, operator.gram, constraint, tried
            )
            self.finished = step == 0
            if step:  # a step that went well at once may be too short
                self.lr = min(4 * self.lr, LONGEST) if step == tried else step * self.curvature


def goal_of(operator: Averaging, objective: str) -> Averaging | AboutMean:
    """The operator whose energy of moduli is maximised: the average, or what of it differs between nodes."""
    if objective not in OBJECTIVES:
        raise unknown("objective", objective, OBJECTIVES)
    return AboutMean(operator) if objective == "variation" else operator


def resolve_solver(solver: str, operator: Averaging | AboutMean) -> str:
    """``auto`` becomes ``mm``, or ``pgd`` where the operator has negative entries, with which ``mm`` need not climb."""
    if solver not in SOLVERS:
        raise unknown("solver", solver, SOLVERS)
    if solver == "mm" and not operator.nonnegative:
        raise UserError(
            "Solver 'mm' needs an operator without negative entries: objective 'energy', and an average other than "
            "'lowrank'. Choose solver 'pgd' or 'auto'."
        )
    return ("mm" if operator.nonnegative else "pgd") if solver == "auto" else solver


def filter_counts(inputs: int, orders: int, filters: Sequence[int] | None) -> list[int]:
    """Filters of each order: as given, or half as many as inputs, which is the least that keeps all energy."""
    if filters is not None:
        if len(filters) != orders or any(k < 1 for k in filters):
            raise UserError(
                f"filters = {tuple(filters)!r} must name a number of filters, at least 1, for each of the {orders} orders."
            )
        return list(filters)
    counts = []
    for _ in range(orders):
        inputs = -(-inputs // 2)
        counts.append(inputs)
    return counts


class InterferometricGraphTransform:
    """Node features ``[S_0 | S_1 | … ]``: neighbourhood averages of features, and of moduli of filtered features.

    Args:
        orders: number of filtered orders beyond ``S_0``; 0 gives the averaged features.
        dim: principal directions to which features are reduced first; ``None`` keeps all.
        filters: complex filters K of each order; ``None``: half as many as its inputs, so that no energy is lost.
        averaging: ``symmetric``, ``row``, ``lazy`` or ``lowrank``, see :mod:`workbench.graphs.averaging`.
        power: power of the averaging operator. Even powers of the symmetric one have a spectrum in [0, 1]: then the
            features of all orders together have no more energy than the node features.
        self_loops: weight of the edge of a node to itself.
        rank: eigenvectors of ``lowrank``.
        centred: filter what averaging removes (``U - A U``), or all of it.
        objective: what of the averaged moduli's energy learning maximises: ``variation`` between nodes, or all
            ``energy``, see :mod:`workbench.graphs.filters`.
        solver: ``mm``, ``pgd``, ``auto`` (``mm`` where it is sure to climb) or ``none`` (random filters).
        constraint: ``isometry``, ``contraction`` or ``rows``, see :mod:`workbench.graphs.filters`.
        iterations: steps of the solver for each order, at most.
        tol: relative gain of energy under which an order ends before.
        lr: first step of ``pgd``, in inverse curvatures of the energy of filtered features; it grows and shrinks.
        normalise: norm of each node's features, ``l2``, ``l1`` or ``none``.
        seed: of the first filters; one seed gives the same filters on every device up to rounding.
        device: where to compute; ``None``: where the features are.
        dtype: ``float32`` or ``float64``.

    After :meth:`fit`: ``basis_`` ``(P, P')``; ``filters_``, a list of ``(P_n, 2 K_n)``; ``ratios_``, for each order the
    share of energy before and after each step; ``n_features_in_``. Learnt are these alone, so another graph with
    the same features can be transformed.

    Graphs are given as :func:`workbench.graphs.inputs.as_graph` describes: a PyG ``Data``, a NetworkX graph, or ``(x,
    edges)``.
    """

    def __init__(
        self,
        orders: int = 2,
        dim: int | None = 256,
        filters: tuple[int, ...] | None = None,
        averaging: str = "symmetric",
        power: int = 2,
        self_loops: float = 1.0,
        rank: int = 64,
        centred: bool = True,
        objective: str = "variation",
        solver: str = "auto",
        constraint: str = "isometry",
        iterations: int = 25,
        tol: float = 1e-4,
        lr: float = 100.0,
        normalise: str = "l2",
        seed: int = 0,
        device: str | torch.device | None = None,
        dtype: str = "float32",
    ) -> None:
        for name in inspect.signature(type(self)).parameters:
            setattr(self, name, locals()[name])

    # --- scikit-learn's conventions -----------------------------------------------------------------------

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments by name."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **values: Any) -> InterferometricGraphTransform:
        """Change arguments; an unknown name is an error."""
        for name, value in values.items():
            if name not in self.get_params():
                raise unknown("parameter", name, self.get_params())
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = {name: p.default for name, p in inspect.signature(type(self)).parameters.items()}
        changed = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items() if value != defaults[name])
        return f"{type(self).__name__}({changed})"

    # --- fit and transform --------------------------------------------------------------------------------

    def fit(self, graph: Any, y: None = None) -> InterferometricGraphTransform:
        """Learn the filters on a graph, order by order; ``y`` is there for pipelines and is not read."""
        u, operator, _ = self._prepare(graph, fitting=True)
        self._learn(u, operator)
        return self

    def fit_transform(self, graph: Any, y: None = None) -> Any:
        """:meth:`fit`, then :meth:`transform` of the same graph, at less cost."""
        u, operator, like = self._prepare(graph, fitting=True)
        return like(torch.cat(self._learn(u, operator), 1))

    def transform(self, graph: Any) -> Any:
        """Features ``(N, D)``, all orders side by side: a tensor for features given as one, else a NumPy array."""
        orders, like = self._orders(graph)
        return like(torch.cat(list(orders), 1))

    def orders_of(self, graph: Any) -> list[Any]:
        """The orders ``S_0, S_1 …`` apart, each ``(N, D_n)``."""
        orders, like = self._orders(graph)
        return [like(s) for s in orders]

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names ``s<order>_<number>`` of the columns."""
        self._fitted()
        sizes = [self.basis_.shape[1], *(w.shape[1] // 2 for w in self.filters_)]
        return np.array([f"s{order}_{i}" for order, size in enumerate(sizes) for i in range(size)], dtype=object)

    def _orders(self, graph: Any) -> tuple[Iterator[Tensor], Callable[[Tensor], Any]]:
        u, operator, like = self._prepare(graph, fitting=False)
        filters = [w.to(u) for w in self.filters_]  # learnt on another device perhaps
        return cascade(u, operator, filters, self.centred), like

    def _learn(self, u: Tensor, operator: Averaging, draw: torch.Generator | None = None) -> list[Tensor]:
        """Learn the filters, the first ones drawn from ``draw``; returns the orders of ``u``."""
        draw, goal = draw or torch.Generator().manual_seed(self.seed), goal_of(operator, self.objective)
        self.filters_, self.ratios_, smooth = [], [], [operator(u)]
        for count in filter_counts(u.shape[1], self.orders, self.filters):
            y = u - smooth[-1] if self.centred else u
            start = random_filters(y.shape[1], count, draw)
            search = FilterSearch.begin(y, project(start, self.constraint), goal, self.lr)
            ratios = [search.ratio]
            for _ in range(self.iterations):
                search.step(goal, self.solver, self.constraint)
                ratios.append(search.ratio)
                if search.finished or ratios[-1] - ratios[-2] < self.tol * ratios[-2]:
                    break
            self.filters_.append(search.w)
            self.ratios_.append(ratios)
            u = moduli(y, search.w)
            smooth.append(operator(u))
        return smooth

    def _prepare(self, graph: Any, *, fitting: bool) -> tuple[Tensor, Averaging, Callable[[Tensor], Any]]:
        if self.dtype not in ("float32", "float64"):
            raise unknown("dtype", str(self.dtype), ("float32", "float64"))
        if self.constraint not in CONSTRAINTS:
            raise unknown("constraint", self.constraint, CONSTRAINTS)
        dtype = getattr(torch, self.dtype)
        x, matrix = as_graph(graph, device=self.device, dtype=dtype)
        operator = averaging(
            matrix, self.averaging, self.power, self_loops=self.self_loops, rank=self.rank, seed=self.seed, dtype=dtype
        )
        x = normalise_rows(x, self.normalise)
        if fitting:
            self.n_features_in_ = x.shape[1]
            self.basis_ = principal_directions(x, self.dim or x.shape[1], seed=self.seed)
        else:
            self._fitted()
            if x.shape[1] != self.n_features_in_:
                raise UserError(
                    f"The graph's nodes have {x.shape[1]} features; the transform was fitted on {self.n_features_in_}."
                )
        given = graph[0] if isinstance(graph, (tuple, list)) else getattr(graph, "x", None)
        like = (lambda s: s) if isinstance(given, Tensor) else (lambda s: s.cpu().numpy())
        return (x @ self.basis_.to(x) if self.basis_.shape[1] < x.shape[1] else x), operator, like

    def _fitted(self) -> None:
        if not hasattr(self, "filters_"):
            raise UserError("This InterferometricGraphTransform is not fitted yet. Call fit(graph) first.")
