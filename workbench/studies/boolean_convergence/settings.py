"""What is run: problems, variants of the algorithm, baselines, and the runs of the bench. All sizes and rates are ours."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from workbench.boolean.analysis import smoothness_of
from workbench.datasets.boolean_problems import BooleanProblem
from workbench.method import Context
from workbench.spec import resolve

Runs = list[dict[str, Any]]

# where the unconstrained minimum lies decides how Boolean weights behave, so there is a problem of each kind, and a network
PROBLEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "interior": ("boolean_linear/quadratic", {"inputs": 12, "train_size": 256, "w_scale": 0.5}),
    "exterior": ("boolean_linear/logistic", {"inputs": 12, "train_size": 256, "regulariser": 0.01}),
    "corner": ("boolean_linear/quadratic", {"inputs": 12, "train_size": 256, "w_scale": 1.0, "noise": 0.0}),
    "network": ("boolean_tanh", {"inputs": 3, "hidden": 3, "train_size": 128, "w_scale": 1.0}),
}
KINDS = {
    "interior": "least squares, minimum inside the cube",
    "exterior": "logistic + nonconvex term, minimum outside the cube",
    "corner": "least squares without noise, minimum on a corner",
    "network": "two-layer tanh network, all weights ±1",
}

# The theorem's algorithm rounds stochastically, without plasticity. Unclipped it is what the proof treats, with whatever kappa a finite
# horizon has; clipping enforces A.5, as the paper's Remark A.7 suggests, at 2, the most for which unbiased rounding exists.
VARIANTS: dict[str, dict[str, Any]] = {
    "stochastic": {"rounding": "stochastic", "clip": 0.0},
    "stochastic, clipped": {"rounding": "stochastic", "clip": 2.0},
    "deterministic": {"rounding": "deterministic", "clip": 0.0},
    "deterministic, clipped": {"rounding": "deterministic", "clip": 2.0},
    "practice (plasticity)": {"rounding": "deterministic", "clip": 0.0, "plasticity": True},
}
THEOREM = ("stochastic", "stochastic, clipped")
METHOD = "error_feedback_boolean"

BASELINES: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD on R^d": ("descent_sgd", {}),
    "EF-SignSGD on R^d": ("descent_ef_signsgd", {}),
    "sign-projected SGD": ("descent_sign_projected", {}),
    "Bop": ("descent_bop", {"eta": 0.05, "threshold": 0.02}),
}
ETA, BATCH = 0.1, 16
RADIUS = 3.0  # of the cube in which the network's smoothness is sought: corners, and errors clipped at 2


def run_of(problem: str, method: str = METHOD, steps: int = 1000, **params: Any) -> dict[str, Any]:
    """One run of the bench."""
    task, sizes = PROBLEMS[problem]
    return {
        "method": method,
        "task": task,
        "task_params": sizes,
        "params": {"steps": steps, "eta": ETA, "batch_size": BATCH, **params},
    }


def theorem_runs(steps: int) -> Runs:
    """The theorem's algorithm, unclipped, on every problem."""
    return [run_of(problem, steps=steps, **VARIANTS[THEOREM[0]]) for problem in PROBLEMS]


def variant_runs(steps: int, problem: str = "exterior") -> Runs:
    """Every variant on one problem."""
    return [run_of(problem, steps=steps, **variant) for variant in VARIANTS.values()]


def baseline_runs(steps: int, problem: str = "exterior") -> Runs:
    """Every baseline on one problem."""
    return [run_of(problem, method, steps, **params) for method, params in BASELINES.values()]


# --- problems -----------------------------------------------------------------------------------------------


def task_of(problem: str, **changes: Any) -> BooleanProblem:
    """The task of a problem, set up on the CPU; ``changes`` are task parameters."""
    return _task(problem, tuple(sorted(changes.items())))


@lru_cache(maxsize=64)
def _task(problem: str, changes: tuple[tuple[str, Any], ...]) -> BooleanProblem:
    id, sizes = PROBLEMS[problem]
    task = resolve(METHOD, id, task_params={**sizes, **dict(changes)}, device="cpu").task
    task.setup(Context(torch.device("cpu"), 0))
    return task


@lru_cache(maxsize=64)
def smoothness(task: BooleanProblem) -> float:
    """``L``: exact for linear models, for a network the largest Hessian norm found (:func:`smoothness_of`)."""
    return smoothness_of(task.problem, task.problem.dim, RADIUS)


def starts(task: BooleanProblem, seeds: int | list[int]) -> Tensor:
    """The corners where runs with these seeds start, ``(len(seeds), d)``."""
    return torch.stack(
        [task.start(Context(torch.device("cpu"), s)) for s in (range(seeds) if isinstance(seeds, int) else seeds)]
    )


@lru_cache(maxsize=16)
def best_corner(task: BooleanProblem) -> tuple[float, float]:
    """Least ``||grad f||^2`` and least ``f`` over all corners, by trying all (at most 2^20)."""
    d = task.problem.dim
    if d > 20:
        raise ValueError(f"2^{d} corners are too many to try.")
    bits = torch.arange(d)
    norms, values = [], []
    for part in torch.arange(2**d).split(4096):
        w = 2.0 * ((part[:, None] >> bits) & 1).double() - 1
        norms.append(task.problem.look(w).norm2.min())
        values.append(task.problem.value(w).min())
    return float(min(norms)), float(min(values))


def problem_table(problems: Mapping[str, str] = KINDS) -> Any:
    """The problems with their constants."""
    import pandas

    rows = []
    for name, kind in problems.items():
        task = task_of(name)
        norm2, value = best_corner(task)
        rows.append(
            {
                "problem": name,
                "what": kind,
                "d": task.problem.dim,
                "n": len(task.train_y),
                "L": smoothness(task),
                "L is": "exact" if task.problem.smoothness else "estimated from below",
                "f_* at least": task.problem.lower_bound,
                "best corner: f": value,
                "best corner: ||grad f||²": norm2,
            }
        )
    return pandas.DataFrame(rows)
