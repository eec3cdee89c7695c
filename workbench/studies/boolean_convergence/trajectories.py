"""Many trajectories at once, and what the theorem needs from them; the same from runs of the bench."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from workbench.boolean.analysis import Constants, before_lemmas, terms
from workbench.datasets.boolean_problems import BooleanProblem
from workbench.grouping import Group
from workbench.method import derive_seed
from workbench.methods.lowbit._descent import DescentState, Rule, iterate, report_points
from workbench.methods.lowbit.error_feedback_boolean import BooleanRule
from workbench.studies.boolean_convergence.settings import BATCH, smoothness, starts, task_of

# what a trace keeps of a tally, and the bench's name for it
FIELDS = {
    "lhs": "train/gradient_norm2",
    "sigma2": "train/signal_moment",
    "kappa": "train/accumulator_bound",
    "gamma": "train/contraction",
    "idle": "train/idle",
    "error2": "train/residual_norm2",
    "rounding2": "train/rounding_norm2",
    "flips": "train/flips",
}


@dataclass
class Traces:
    """Figures of ``r`` trajectories at ``k`` numbers of steps: arrays ``(k, r)``; what was never measured is NaN.

    ``lhs`` is the theorem's left side, the mean of ``||grad f(w_t)||^2`` over the steps so far; ``sigma2``, ``kappa``
    and ``gamma`` are maxima so far; ``error2`` and ``rounding2`` means of ``||e||^2`` and ``||h||^2``; ``idle`` the
    share of steps in which no weight passed.
    """

    points: np.ndarray
    smoothness: float
    dim: int
    eta: np.ndarray
    gap: np.ndarray
    data: dict[str, np.ndarray]

    def __getattr__(self, name: str) -> np.ndarray:
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def steps(self) -> np.ndarray:
        """The numbers of steps as a column."""
        return self.points[:, None].astype(float)

    @property
    def constants(self) -> Constants:
        """The theorem's constants as measured up to each point."""
        return Constants(self.smoothness, self.sigma2, self.gamma, self.kappa, self.dim, self.eta, self.gap)

    def terms(self, form: str = "derived") -> dict[str, np.ndarray]:
        """The bound's terms, ``(k, r)`` each. Before a weight has passed there is no gamma and so no error term: NaN."""
        return terms(self.constants, self.steps, form)

    def bound(self, form: str = "derived", *, without_error: bool = False) -> np.ndarray:
        """The right side; an error term that is not known counts nothing, which makes a check of the bound the stricter."""
        found = self.terms(form)
        return (
            found["start"]
            + found["noise"]
            + found["floor"]
            + (0 if without_error else np.nan_to_num(found["error"], nan=0.0))
        )

    @property
    def before_lemmas(self) -> np.ndarray:
        """The proof's inequality with measured ``||e||^2`` and ``||h||^2``."""
        return before_lemmas(self.constants, self.steps, self.error2, self.rounding2)

    def only(self, columns: np.ndarray) -> Traces:
        """Some of the trajectories."""
        return Traces(
            self.points,
            self.smoothness,
            self.dim,
            self.eta[columns],
            self.gap[columns],
            {k: v[:, columns] for k, v in self.data.items()},
        )


def follow(
    task: BooleanProblem,
    rule: Callable[[torch.Tensor], Rule],
    eta: Any,
    *,
    steps: int,
    replicas: int,
    batch_size: int = BATCH,
    seed: int = 0,
    points: list[int] | None = None,
) -> Traces:
    """Run ``replicas`` trajectories for each ``eta``, all in one loop.

    They start at the corners of runs with seeds 0, 1, ..., the same for each eta, and are ordered by eta, then replica.
    ``rule`` makes the update rule from a column of etas ``(r, 1)``.
    """
    etas = np.atleast_1d(np.asarray(eta, float)).repeat(replicas)
    w = starts(task, replicas).repeat(len(etas) // replicas, 1)
    the_rule = rule(torch.from_numpy(etas)[:, None])
    order, draws = (
        torch.Generator().manual_seed(derive_seed(seed, "follow", purpose)) for purpose in ("order", "rounding")
    )
    state = DescentState(w, the_rule.begin(w), order, draws)
    points = points or report_points(steps, 40)
    kept: list[dict[str, torch.Tensor]] = []
    for point in points:
        iterate(task.problem, the_rule, state, batch_size, point - state.tally.steps)
        kept.append(
            _figures(state.tally, torch.from_numpy(etas), boolean=isinstance(the_rule, BooleanRule))
            | {"norm2": task.problem.look(state.w).norm2}
        )
    data = {name: torch.stack([k[name] for k in kept]).numpy() for name in kept[0]}
    gap = (task.problem.value(w) - task.problem.lower_bound).numpy()
    return Traces(np.array(points), smoothness(task), task.problem.dim, etas, gap, data)


def _figures(t: Any, eta: torch.Tensor, boolean: bool) -> dict[str, torch.Tensor]:
    """What is kept of a tally."""
    found = {"lhs": t.gradient2 / t.steps, "sigma2": t.sigma2.clone(), "flips": t.flips.clone()}
    if boolean:
        passed = t.spent > 0
        found |= {
            "kappa": t.m_max / eta,
            "idle": t.idle / t.steps,
            "error2": t.e2 / t.steps,
            "rounding2": t.h2 / t.steps,
            "error2_max": t.e2_max.clone(),
            "rounding2_max": t.h2_max.clone(),
            "spent_max": t.spent_max.clone(),
            "gamma": torch.where(passed, t.gamma, torch.nan),
            "biased": torch.where(passed, t.biased / t.spent, torch.nan),
        }
    return found


def of_runs(group: Group, problem: str) -> Traces:
    """The traces that the runs of a group have recorded, one a seed."""
    task, frames = task_of(problem), group.frames
    w = starts(task, [r.spec["seed"] for r in group.runs])
    gap = (task.problem.value(w) - task.problem.lower_bound).numpy()
    absent = np.full(len(frames[0]), np.nan)
    data = {
        name: np.stack([f[metric].to_numpy(float) if metric in f else absent for f in frames], 1)
        for name, metric in FIELDS.items()
        if any(metric in f for f in frames)
    }
    return Traces(
        frames[0]["step"].to_numpy(int),
        smoothness(task),
        task.problem.dim,
        np.full(len(frames), group.facts["eta"]),
        gap,
        data,
    )
