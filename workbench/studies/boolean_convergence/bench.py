"""Reading the bench's runs: groups by problem and variant, under their names here, and their curves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from workbench.comparison import Comparison
from workbench.grouping import Group
from workbench.studies.boolean_convergence.settings import BASELINES, METHOD, PROBLEMS, VARIANTS
from workbench.studies.boolean_convergence.trajectories import Traces, of_runs

if TYPE_CHECKING:
    import plotly.graph_objects as go


def group_of(comparison: Comparison, problem: str, name: str) -> Group | None:
    """The runs of a variant or a baseline on a problem; ``None`` where none finished."""
    method, params = (METHOD, {"plasticity": False, **VARIANTS[name]}) if name in VARIANTS else BASELINES[name]
    task, sizes = PROBLEMS[problem]
    wanted = {"method": method, "task": task, **params, **{f"task.{k}": v for k, v in sizes.items()}}
    return next((g for g in comparison.groups if all(g.facts.get(k) == v for k, v in wanted.items())), None)


def recorded(comparison: Comparison, problem: str, name: str) -> Traces:
    """The traces of a variant's runs on a problem."""
    group = group_of(comparison, problem, name)
    if group is None:
        raise ValueError(f"No run of {name!r} on {problem!r} finished.")
    return of_runs(group, problem)


def values(comparison: Comparison, problem: str, name: str, metric: str = "train/gradient_norm2") -> dict[int, float]:
    """Last value by seed; empty where no run finished."""
    group = group_of(comparison, problem, name)
    return group.by_seed(metric) if group else {}


def side_by_side(comparison: Comparison, problem: str, names: Iterable[str], title: str) -> go.Figure:
    """The left side of several variants or baselines against steps, both axes logarithmic."""
    groups = [replace(g, label=name) for name in names if (g := group_of(comparison, problem, name))]
    figure = Comparison(groups, comparison.left_out, comparison.metric, "step").curves(
        "train/gradient_norm2", "step", log_x=True, log_y=True
    )
    figure.update_layout(title_text=title)
    return figure.update_xaxes(title_text="steps T", dtick=1).update_yaxes(
        title_text="mean of ||∇f(w_t)||² so far", dtick="D2"
    )
