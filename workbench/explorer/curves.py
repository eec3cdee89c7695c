"""Curves: what to draw against what, how many points of it, and how the runs are told apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracking.figures import COLOURS, Style, thin
from tracking.metrics import METRICS
from workbench.explorer.listed import ListedRun
from workbench.explorer.rows import Rows
from workbench.modelled import METRIC, Choice

FAVOURITES = ("eval/accuracy", "eval/perplexity", "eval/loss", "train/loss")  # the first one reported is shown first
ALL_POINTS = 24_000  # points of all curves together that a browser redraws without falling behind
FEWEST_POINTS = 100
DASHES = {"solid": "", "dash": "7 4", "dot": "2 3", "dashdot": "7 3 2 3", "longdash": "11 4", "longdashdot": "11 3 2 3"}
"""Dashes of runs, one after the other, with the pattern that draws each in SVG."""
MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down")
CLEAR = "rgba(0,0,0,0)"
PART = {"line": "", "mean": "", "low": "/low", "high": "/high"}

Scale = Callable[[ListedRun], float | None]
"""What the values of a run on one axis are multiplied with; ``None``: they are not known."""


@dataclass(frozen=True)
class Line:
    """One trace of the figure: a run, or a part of the band over the seeds of a group of runs."""

    runs: tuple[ListedRun, ...]
    part: str
    name: str

    @property
    def id(self) -> str:
        return self.runs[0].key + PART[self.part]

    @property
    def version(self) -> tuple[Any, ...]:
        """Changes whenever there is something new to draw."""
        return tuple((r.key, r.version) for r in self.runs)


def style(number: int) -> Style:
    """How run ``number`` (from 1) is drawn: the project's palette, one after the other, so that a new run changes no older one.

    Seven colours, six dashes and eight markers: 42 runs before a pair of colour and dash comes again.
    """
    n = number - 1
    return Style(COLOURS[n % len(COLOURS)], [*DASHES][n % len(DASHES)], MARKERS[n % len(MARKERS)], "")


def lines(runs: Sequence[ListedRun], bands: bool) -> list[Line]:
    """What to draw: a line for each run, or one with a band for the ended runs that differ in the seed alone."""
    named = labels(runs)
    if not bands:
        return [Line((r,), "line", named[r.key]) for r in runs]
    found = []
    for members in repeated(runs):
        ended = tuple(r for r in members if r.ended and len(r.rows))
        if len(ended) > 1:
            name = f"{labels([m[0] for m in repeated(runs)])[members[0].key]} (n={len(ended)})"
            found += [Line(ended, part, name) for part in ("low", "high", "mean")]
        found += [Line((r,), "line", named[r.key]) for r in members if len(ended) < 2 or r not in ended]
    return found


def repeated(runs: Sequence[ListedRun]) -> list[list[ListedRun]]:
    """Runs that differ in the seed alone, together."""
    found: dict[str, list[ListedRun]] = {}
    for r in runs:
        spec = {k: v for k, v in vars(r.spec).items() if k not in ("seed", "threads")}
        found.setdefault(json.dumps(spec, sort_keys=True, default=str), []).append(r)
    return [*found.values()]


def labels(runs: Sequence[ListedRun]) -> dict[str, str]:
    """A short name for each run by key: its number, its method, and what tells it from the other runs of the list."""
    tasks = {r.spec.task for r in runs}
    twins: dict[str, list[Any]] = {}
    for r in runs:
        twins.setdefault(r.spec.method, []).append(r.spec)
    varied = {method: {kind: _varied([getattr(s, kind) for s in specs]) for kind in ("params", "task_params")}
              for method, specs in twins.items()}
    named = {}
    for r in runs:
        parts = [f"{r.number} {r.spec.method}"]
        if len(tasks) > 1:
            parts.append(r.spec.task)
        for kind in ("params", "task_params"):
            parts += [f"{name} {_short(value)}" for name, value in getattr(r.spec, kind).items() if name in varied[r.spec.method][kind]]
        if len({s.seed for s in twins[r.spec.method]}) > 1:
            parts.append(f"seed {r.spec.seed}")
        named[r.key] = ", ".join(parts)
    return named


def _varied(settings: Sequence[dict[str, Any]]) -> set[str]:
    """Names whose values differ; a name that some setting lacks does not."""
    return {name for name in set().union(*settings) if len({repr(s[name]) for s in settings if name in s}) > 1}


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def reported(runs: Sequence[ListedRun]) -> list[str]:
    """Metrics that some run has reported: the favourites, then the rest in the order of their declaration."""
    seen = set().union(*(r.rows.names for r in runs)) - {"step"}
    order = [*FAVOURITES, *(name for name in METRICS if name not in FAVOURITES)]
    return [name for name in order if name in seen]


def axes(names: Sequence[str]) -> list[str]:
    """What of ``names`` can be an x-axis: the step, and whatever accumulates."""
    return ["step", *(name for name in names if METRICS[name].cumulative)]


def axis_label(name: str, model: Choice) -> str:
    """Axis title with unit; modelled joules with what they are modelled for."""
    label = METRICS[name].label if name in METRICS else "step"
    return f"{label}, {model}" if name == METRIC else label


def share(max_points: int, count: int) -> int:
    """Points for each of ``count`` curves: at most ``max_points``, and fewer where there are many curves."""
    return max(4, min(max_points, max(FEWEST_POINTS, ALL_POINTS // max(count, 1))))


def series(rows: Rows, x: str, y: str, max_points: int) -> tuple[np.ndarray, np.ndarray]:
    """The points of a curve: reports that have both quantities, at most ``max_points`` of them, extremes kept."""
    xs, ys = rows.column(x), rows.column(y)
    count = min(len(xs), len(ys))  # a report may have come in between
    both = np.flatnonzero(np.isfinite(xs[:count]) & np.isfinite(ys[:count]))
    kept = both[thin(ys[both], max_points)] if both.size else both
    return xs[kept], ys[kept]


def points(line: Line, x: str, y: str, max_points: int, scales: tuple[Scale, Scale]) -> tuple[np.ndarray, np.ndarray]:
    """What a trace holds now; empty where a scale of one of its runs is not known."""
    factors = [(scales[0](r), scales[1](r)) for r in line.runs]
    if any(f is None for pair in factors for f in pair):
        return np.empty(0), np.empty(0)
    # a band is made of more points than are drawn: thinning keeps a curve's extremes, and a mean is none
    own = [series(r.rows, x, y, max_points if line.part == "line" else 4 * max_points) for r in line.runs]
    own = [(xs * fx, ys * fy) for (xs, ys), (fx, fy) in zip(own, factors, strict=True)]
    if line.part == "line":
        return own[0]
    return _band(own, line.part, max_points, unit=METRICS[y].unit)


def _band(own: Sequence[tuple[np.ndarray, np.ndarray]], part: str, max_points: int, unit: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the seeds, or an end of its 95 % interval, as far along the axis as all seeds go."""
    from tracking.statistics import on_grid

    own = [_rising(xs, ys) for xs, ys in own if len(xs)]
    table = on_grid(own)
    table = table[table.n == len(own)]
    table = table.iloc[thin(table["mean"], max_points)]
    shift = {"mean": 0.0, "low": -1.0, "high": 1.0}[part] * table.half_width.fillna(0.0)
    values = (table["mean"] + shift).to_numpy()
    return table.x.to_numpy(), np.clip(values, 0, 1) if unit == "fraction" else values


def _rising(xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of several values at one position the last."""
    last = np.append(np.diff(xs) > 0, True)
    return xs[last], ys[last]


def layout() -> dict[str, Any]:
    """Plotly layout of the curves; text and grid take their colours from the notebook's theme (:mod:`.theme`)."""
    axis = {"automargin": True, "zeroline": False, "showline": True, "ticks": "outside", "exponentformat": "power"}
    return {
        "template": "none", "height": 420, "autosize": True, "paper_bgcolor": CLEAR, "plot_bgcolor": CLEAR,
        "margin": {"l": 60, "r": 12, "t": 30, "b": 48}, "xaxis": axis, "yaxis": axis, "showlegend": True,
        "legend": {"orientation": "h", "x": 0, "yref": "container", "y": 0, "yanchor": "bottom"}, "modebar": {"bgcolor": CLEAR},
        "font": {"size": 12, "family": "system-ui, sans-serif"},
        "uirevision": "kept",  # zoom and hidden lines survive an update
    }


def words(text: str) -> dict[str, Any]:
    """A line of text in the middle of the figure."""
    return {"text": text, "showarrow": False, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5, "font": {"size": 13},
            "xshift": -24}  # half of what the left margin has more


def traces(line: Line) -> dict[str, Any]:
    """The look of a line's trace, without its points."""
    look = style(line.runs[0].number)
    common = {"meta": line.id, "legendgroup": line.id.partition("/")[0]}
    if line.part in ("low", "high"):
        red, green, blue = (int(look.colour[i:i + 2], 16) for i in (1, 3, 5))
        fill = {"fill": "tonexty", "fillcolor": f"rgba({red},{green},{blue},0.2)"} if line.part == "high" else {}
        return {**common, **fill, "mode": "lines", "line": {"width": 0, "color": look.colour}, "showlegend": False, "hoverinfo": "skip"}
    return {**common, "mode": "lines", "marker": {"symbol": look.marker, "size": 7},
            "line": {"width": 2, "color": look.colour, "dash": look.dash}}
