"""Sweeps over the accumulation factor, the number of weights, the batch and the horizon: the left side beside each term of the bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tracking.statistics import interval
from workbench.boolean.analysis import exponent
from workbench.methods.lowbit.error_feedback_boolean import BooleanRule
from workbench.studies.boolean_convergence.settings import ETA, VARIANTS, task_of
from workbench.studies.boolean_convergence.trajectories import Traces, follow

if TYPE_CHECKING:
    import pandas

QUANTITIES = ("left side", "start", "noise", "error", "floor", "bound")


def rule_of(variant: str) -> Callable[[Any], BooleanRule]:
    """The rule of a variant, as a function of eta."""
    p = VARIANTS[variant]
    return partial(
        BooleanRule, stochastic=p["rounding"] == "stochastic", plasticity=p.get("plasticity", False), clip=p["clip"]
    )


def rows_at(traces: Traces, at: int, **facts: Any) -> list[dict[str, Any]]:
    """A row a trajectory at point ``at``: the left side, the terms of the bound, and the constants behind them."""
    found = {
        "left side": traces.lhs,
        **traces.terms(),
        "bound": traces.bound(),
        "sigma2": traces.sigma2,
        "kappa": traces.kappa,
        "gamma": traces.gamma,
        "idle": traces.idle,
    }
    return [
        {**facts, "eta": traces.eta[i], "seed": i, **{name: float(v[at, i]) for name, v in found.items()}}
        for i in range(len(traces.eta))
    ]


def eta_sweep(
    problem: str, etas: Sequence[float], steps: int, replicas: int, variant: str = "stochastic, clipped"
) -> pandas.DataFrame:
    """Etas at one horizon."""
    import pandas

    traces = follow(task_of(problem), rule_of(variant), etas, steps=steps, replicas=replicas, points=[steps])
    return pandas.DataFrame(rows_at(traces, 0, problem=problem)).assign(
        x=lambda f: f["eta"], seed=lambda f: f["seed"] % replicas
    )


def dim_sweep(
    problem: str, dims: Sequence[int], steps: int, replicas: int, variant: str = "stochastic, clipped"
) -> pandas.DataFrame:
    """Numbers of weights of a linear problem at one eta."""
    import pandas

    return pandas.DataFrame(
        [
            row
            for d in dims
            for row in rows_at(
                follow(
                    task_of(problem, inputs=d), rule_of(variant), ETA, steps=steps, replicas=replicas, points=[steps]
                ),
                0,
                problem=problem,
                x=d,
            )
        ]
    )


def batch_sweep(
    problem: str, sizes: Sequence[int], steps: int, replicas: int, variant: str = "stochastic, clipped"
) -> pandas.DataFrame:
    """Batch sizes at one eta; ``x`` is the measured sigma^2, mean over seeds."""
    import pandas

    rows = []
    for size in sizes:
        traces = follow(
            task_of(problem), rule_of(variant), ETA, steps=steps, replicas=replicas, batch_size=size, points=[steps]
        )
        rows += rows_at(traces, 0, problem=problem, batch=size, x=float(traces.sigma2[0].mean()))
    return pandas.DataFrame(rows)


def horizon_sweep(
    problem: str, horizons: Sequence[int], replicas: int, c: float, variant: str = "stochastic, clipped"
) -> pandas.DataFrame:
    """``eta = c / sqrt(T)`` for each horizon ``T``: each trajectory is read at its own."""
    import pandas

    horizons = sorted(horizons)
    etas = [c / T**0.5 for T in horizons]
    traces = follow(
        task_of(problem), rule_of(variant), etas, steps=horizons[-1], replicas=replicas, points=list(horizons)
    )
    rows = []
    for i, T in enumerate(horizons):
        rows += rows_at(traces.only(np.arange(i * replicas, (i + 1) * replicas)), i, problem=problem, x=T)
    return pandas.DataFrame(rows)


def slopes(frame: pandas.DataFrame, quantity: str) -> dict[int, float]:
    """Exponent of a quantity against ``x``, seed by seed; seeds for which it is not known and positive at every ``x`` are absent."""
    found = {}
    for seed, own in frame.groupby("seed"):
        y = own[quantity].to_numpy()
        if len(own) > 1 and (np.isfinite(y) & (y > 0)).all():
            found[int(seed)] = exponent(own["x"], y)
    return found


def exponent_table(frame: pandas.DataFrame, expected: dict[str, str]) -> pandas.DataFrame:
    """Exponents of the left side and of each term: measured, with the t interval over seeds, and what the theorem's reading would be."""
    import pandas

    rows = []
    for quantity in QUANTITIES:
        found = list(slopes(frame, quantity).values())
        i = interval(found) if found else None
        told = (
            "not measured"
            if i is None
            else f"{i.mean:+.3f}" + (f" ± {i.half_width:.3f}" if i.n > 1 else "") + f" (n = {i.n})"
        )
        rows.append({"quantity": quantity, "exponent": told, "read with constants held": expected.get(quantity)})
    return pandas.DataFrame(rows)


# what each quantity does in x where L, sigma^2, kappa and gamma are held, as the theorem's wording suggests
HELD = {
    "eta": {"start": "-1", "noise": "+1", "error": "+2", "floor": "0"},
    "d": {"noise": "+1 through sigma²", "floor": "+1"},
    "sigma²": {"start": "0", "noise": "+1", "error": "+1", "floor": "0"},
    "T": {
        "left side": "-1/2, then 0",
        "start": "-1/2",
        "noise": "-1/2",
        "error": "-1",
        "floor": "0",
        "bound": "-1/2, then 0",
    },
}
