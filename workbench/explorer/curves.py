"""Curves: what to draw against what, how many points of it, and how the runs are told apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tracking.figures import Style, style_of, thin
from tracking.metrics import METRICS
from workbench.explorer.session import ListedRun
from workbench.modelled import METRIC, Choice

FAVOURITES = ("eval/accuracy", "eval/perplexity", "eval/loss", "train/loss")  # the first one reported is shown first

def style(number: int) -> Style:
    """How run ``number`` (from 1) is drawn: the project's palette, one after the other, so that a new run changes no older one."""
    return style_of([f"run {n}" for n in range(1, number + 1)])[f"run {number}"]


def labels(runs: Sequence[ListedRun]) -> dict[str, str]:
    """A short name for each run by key: its number, its method, and what tells it from the other runs of the list."""
    tasks = {r.spec.task for r in runs}
    named = {}
    for r in runs:
        twins = [t.spec for t in runs if t.spec.method == r.spec.method]
        parts = [f"{r.number} {r.spec.method}"]
        if len(tasks) > 1:
            parts.append(r.spec.task)
        for ours, kind in ((r.spec.params, "params"), (r.spec.task_params, "task_params")):
            parts += [f"{name} {_short(value)}" for name, value in ours.items()
                      if any(getattr(t, kind).get(name, value) != value for t in twins)]
        if len({t.seed for t in twins}) > 1:
            parts.append(f"seed {r.spec.seed}")
        named[r.key] = ", ".join(parts)
    return named


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def reported(runs: Sequence[ListedRun]) -> list[str]:
    """Metrics that some run has reported: the favourites, then the rest in the order of their declaration."""
    seen = set().union(*(row for r in runs for row in r.rows)) - {"step"}
    order = [*FAVOURITES, *(name for name in METRICS if name not in FAVOURITES)]
    return [name for name in order if name in seen]


def axes(names: Sequence[str]) -> list[str]:
    """What of ``names`` can be an x-axis: the step, and whatever accumulates."""
    return ["step", *(name for name in names if METRICS[name].cumulative)]


def axis_label(name: str, model: Choice) -> str:
    """Axis title with unit; modelled joules with what they are modelled for."""
    label = METRICS[name].label if name in METRICS else "step"
    return f"{label}, {model}" if name == METRIC else label


def series(rows: Sequence[dict[str, float]], x: str, y: str, max_points: int) -> tuple[np.ndarray, np.ndarray]:
    """The points of a curve: reports that have both quantities, at most ``max_points`` of them, extremes kept."""
    both = [(row[x], row[y]) for row in rows if x in row and y in row]
    points = np.array(both, dtype=float).reshape(-1, 2)
    kept = thin(points[:, 1], max_points)
    return points[kept, 0], points[kept, 1]


def layout() -> dict[str, Any]:
    """Plotly layout of the curves; text and grid take their colours from the notebook's theme (:mod:`.theme`)."""
    axis = {"automargin": True, "zeroline": False, "showline": True, "ticks": "outside", "exponentformat": "power"}
    return {
        "template": "none", "height": 400, "autosize": True, "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 60, "r": 12, "t": 12, "b": 48}, "xaxis": axis, "yaxis": axis, "showlegend": True,
        "legend": {"orientation": "h", "x": 0, "y": -0.22, "yanchor": "top"}, "font": {"size": 12, "family": "system-ui, sans-serif"},
        "uirevision": "kept",  # zoom and hidden lines survive an update
    }
