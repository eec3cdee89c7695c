"""Figures from plain data: curves with bands over seeds, Pareto fronts, histograms, bars with intervals.

Every figure is a static plotly ``Figure`` that reads on a light and on a dark page, names its unit and sample size, tells methods
apart by colour *and* by dash, marker or hatching, and carries a description in words in ``layout.meta["caption"]``.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tracking.errors import UserError
from tracking.metrics import METRICS
from tracking.metrics import metric as declared
from tracking.statistics import curve, direction, on_grid, pareto
from tracking.styles import COLOURS, INK, Style, style_of

if TYPE_CHECKING:
    import numpy as np
    import pandas
    from numpy.typing import ArrayLike
    from plotly.graph_objects import Figure

MAX_POINTS = 2000
"""Points a trace, at most: beyond, browsers grow slow and nobody sees more."""

def thin(y: ArrayLike, limit: int = MAX_POINTS) -> np.ndarray:
    """Indices of at most ``limit`` (4 or more) values that keep the ends and, of each stretch between, its lowest and highest."""
    import numpy as np

    y = np.asarray(y, float)
    if y.size <= limit:
        return np.arange(y.size)
    edges = np.linspace(1, y.size - 1, (limit - 2) // 2 + 1).astype(int)
    low, high = np.nan_to_num(y, nan=np.inf), np.nan_to_num(y, nan=-np.inf)
    inner = [i for a, b in itertools.pairwise(edges) for i in (a + low[a:b].argmin(), a + high[a:b].argmax())]
    return np.unique([0, *inner, y.size - 1])


def curves(
    groups: Mapping[str, Sequence[pandas.DataFrame]],
    metric: str,
    axis: str = "step",
    *,
    log_x: bool = False,
    log_y: bool = False,
    title: str | None = None,
    note: str = "",
    level: float = 0.95,
    styles: Mapping[str, Style] | None = None,
) -> Figure:
    """Mean line and t-interval band over the seeds of each group, as far along the axis as all its seeds go.

    Where the seeds report at the same places the line joins the means; where they do not, a seed's value holds until its next
    report, and the line is a staircase.

    Args:
        groups: run frames (:func:`tracking.journal.frame`) by name; one frame a seed.
        axis: ``"step"`` or a cumulative metric.
        note: subtitle, such as the hardware.
        styles: as from :func:`style_of`, to look the same in several figures.

    Raises UserError where no group has the metric along the axis.
    """
    import plotly.graph_objects as go

    styles = styles or style_of(groups)
    figure, hidden = go.Figure(), []
    seeds = {name: [c for c in (curve(f, metric, axis) for f in frames) if len(c[0])] for name, frames in groups.items()}
    tables = {name: on_grid(own, level=level) for name, own in seeds.items()}
    together = all(len(x) == len(tables[name]) for name, own in seeds.items() for x, _ in own)
    for name, table in tables.items():
        n = len(seeds[name])
        table = table[(table.n == n) & ((table.x > 0) | (not log_x)) & ((table["mean"] > 0) | (not log_y))]
        if n and not len(table):
            hidden.append(name)
        elif n:
            _add_curve(figure, f"{name} (n={n})", table.iloc[thin(table["mean"])], styles[name], "linear" if together else "hv", log_y,
                       fraction=declared(metric).unit == "fraction")
    if not figure.data:
        raise UserError(f"No run reports {metric} along {axis}{' at a positive value' if log_x or log_y else ''}: nothing to draw. "
                        f"Reported: {', '.join(sorted({c for fs in groups.values() for f in fs for c in f if c in METRICS}))}.")
    cut = ", cut at 0 and 1" if declared(metric).unit == "fraction" else ""
    caption = (f"{declared(metric).description.capitalize()} ({metric}) against {axis}. Line: mean over n seeds, each at its last reported "
               f"value, as far as all seeds go; band: {level:.0%} Student t interval (none for n=1{cut}).")
    note, caption = _absent(hidden, note, caption)
    figure.update_layout(layout(title or f"{metric} against {axis}", note, caption, len(groups)))
    figure.update_xaxes(_axis(axis, log_x))
    figure.update_yaxes(_axis(metric, log_y))
    return figure


def _absent(names: Sequence[str], note: str, caption: str) -> tuple[str, str]:
    """Subtitle and caption that also name who has data, but no place on these axes."""
    why = f"Not drawn, because these axes have no place for it: {', '.join(names)}."
    return (f"{note}. {why}" if note else why, f"{caption} {why}") if names else (note, caption)


def _add_curve(figure: Figure, name: str, table: pandas.DataFrame, style: Style, shape: str, log_y: bool,
               fraction: bool = False) -> None:
    import plotly.graph_objects as go

    low, high = table["mean"] - table.half_width, table["mean"] + table.half_width
    if fraction:  # what lies beyond 0 and 1 would only flatten the curves
        low, high = low.clip(0, 1), high.clip(0, 1)
    if log_y:  # a band that reaches zero has no lower edge on this scale
        low = low.clip(lower=table["mean"].min() / 10)
    common = {"x": table.x, "legendgroup": name, "mode": "lines"}
    line = {"color": style.colour, "shape": shape}
    if table.half_width.notna().any():
        edge = {**common, "line": {**line, "width": 0}, "showlegend": False, "hoverinfo": "skip"}
        figure.add_trace(go.Scatter(**edge, y=low))
        figure.add_trace(go.Scatter(**edge, y=high, fill="tonexty", fillcolor=_faded(style.colour, 0.2)))
    figure.add_trace(go.Scatter(
        **{**common, "mode": "lines+markers"}, y=table["mean"], name=text(name), customdata=table[["half_width"]].to_numpy(),
        line={**line, "dash": style.dash, "width": 2}, marker={"symbol": style.marker, "size": 8, "maxdisplayed": 12},
        hovertemplate="%{x:.4~g}: %{y:.4~g} ± %{customdata[0]:.2~g}"))


def pareto_figure(points: pandas.DataFrame, x: str, y: str, *, log_x: bool = False, log_y: bool = False, title: str | None = None,
                  note: str = "", styles: Mapping[str, Style] | None = None, no_front: str = "") -> Figure:
    """Points of ``y`` over ``x`` and the staircase of those that no other dominates, each metric in its own direction.

    ``points`` has the columns ``method``, ``n``, the two metrics and, where known, half-widths as ``"<metric> ±"``.
    Rows in which a metric is absent are not drawn. ``no_front``: why the points must not be ranked; then there is no staircase.
    Raises UserError where no row is left.
    """
    import pandas
    import plotly.graph_objects as go

    directions = [direction(x), direction(y)]
    points = points.dropna(subset=[x, y])
    if points.empty:
        raise UserError(f"No method has both {x} and {y}: nothing to draw.")
    styles = styles or style_of(points["method"])
    front = points[pareto(points[[x, y]], directions)].sort_values(x)
    placed = pandas.Series(True, points.index) & ((points[x] > 0) | (not log_x)) & ((points[y] > 0) | (not log_y))
    if not placed.any():
        raise UserError(f"No method has {x} and {y} above zero: nothing to draw on logarithmic axes.")
    figure = go.Figure()
    corner = "hv" if directions[0] == "lower" else "vh"  # what is on the front is reachable up to the next better point
    line = front[placed[front.index]]
    if not no_front:
        figure.add_trace(go.Scatter(x=line[x], y=line[y], mode="lines", name="Pareto front of the means", hoverinfo="skip",
                                    line={"color": INK, "width": 1.5, "dash": "dot", "shape": corner}))
    for row in points[placed].to_dict("records"):
        style = styles[row["method"]]
        figure.add_trace(go.Scatter(
            x=[row[x]], y=[row[y]], mode="markers", name=text(f"{row['method']} (n={row['n']})"),
            error_x=_error(row.get(f"{x} ±")), error_y=_error(row.get(f"{y} ±")),
            marker={"color": style.colour, "symbol": style.marker, "size": 12}, hovertemplate="%{x:.4~g}, %{y:.4~g}"))
    told = f"No front: {no_front}" if no_front else f"On the front: {', '.join(front['method'])}"
    caption = f"{y} ({directions[1]} is better) against {x} ({directions[0]} is better). {told}. Bars: t interval over n seeds."
    note, caption = _absent(list(points["method"][~placed]), note, caption)
    figure.update_layout(layout(title or f"{y} against {x}", note, caption, len(points)))
    figure.update_xaxes(_axis(x, log_x))
    figure.update_yaxes(_axis(y, log_y))
    return figure


def histogram(groups: Mapping[str, ArrayLike], *, quantity: str = "weight", unit: str = "", bins: int = 100, log_y: bool = False,
              title: str | None = None, note: str = "", styles: Mapping[str, Style] | None = None) -> Figure:
    """Distribution of values (weights, say) by group, in common bins, as the share of the group's values a bin holds."""
    import numpy as np
    import plotly.graph_objects as go

    arrays = {name: np.asarray(v, float).ravel() for name, v in groups.items()}
    if not 1 <= bins <= MAX_POINTS // 2:
        raise UserError(f"histogram: bins = {bins!r} is refused. Allowed: whole number, 1 <= x <= {MAX_POINTS // 2}.")
    if not any(a.size for a in arrays.values()) or not all(np.isfinite(a).all() for a in arrays.values()):
        raise UserError("histogram: give at least one value, and only finite ones.")
    edges = np.histogram_bin_edges(np.concatenate(list(arrays.values())), bins)
    styles = styles or style_of(arrays)
    figure = go.Figure()
    for name, values in arrays.items():
        if values.size:
            share = np.histogram(values, edges)[0] / values.size
            # on a log scale an empty bin is a gap, not minus infinity
            figure.add_trace(go.Scatter(
                x=edges, y=np.where(share > 0, share, np.nan if log_y else 0.0)[[*range(bins), bins - 1]], mode="lines",
                name=text(f"{name} (n={values.size})"), hovertemplate="%{x:.4~g}: %{y:.3~g}",
                line={"color": styles[name].colour, "dash": styles[name].dash, "shape": "hv", "width": 2}))
    caption = f"Share of {quantity} values in each of {bins} equal bins, n values a group."
    figure.update_layout(layout(title or f"distribution of {quantity}", note, caption, len(arrays)))
    figure.update_xaxes(title_text=text(f"{quantity} [{unit}]" if unit else quantity))
    figure.update_yaxes(title_text="share [fraction]", type="log" if log_y else "linear", exponentformat="power")
    return figure


def bars_with_intervals(rows: pandas.DataFrame, metric: str, *, title: str | None = None, note: str = "",
                        styles: Mapping[str, Style] | None = None) -> Figure:
    """A bar for each row, from zero, with its interval, and its figure in print below.

    ``rows`` has the columns ``method``, ``n``, the metric and, where known, its half-width as ``"<metric> ±"``.
    """
    import plotly.graph_objects as go

    rows = rows.dropna(subset=[metric])
    if rows.empty:
        raise UserError(f"No method has {metric}: nothing to draw.")
    styles = styles or style_of(rows["method"])
    figure = go.Figure()
    for row in rows.to_dict("records"):
        style, half = styles[row["method"]], _error(row.get(f"{metric} ±"))
        shown = f"{row[metric]:.4g}" + (f" ± {half['array'][0]:.2g}" if half else "")
        figure.add_trace(go.Bar(
            x=[f"{text(row['method'])} (n={row['n']})<br>{shown}"], y=[row[metric]], error_y=half, name=text(row["method"]),
            marker={"color": style.colour, "pattern": {"shape": style.hatch, "bgcolor": style.colour, "fgcolor": "white",
                                                       "solidity": 0.2}}, hoverinfo="skip"))
    caption = f"{declared(metric).description.capitalize()} ({metric}), mean over n seeds; bars: t interval."
    figure.update_layout(layout(title or metric, note, caption, 0))
    figure.update_yaxes(_axis(metric, False), rangemode="tozero")
    return figure


def data_of(figure: Figure) -> pandas.DataFrame:
    """The figures behind a figure: one row a point of each named trace, with its half-width (or both distances) where it has one.

    Columns are named after the axes that a trace is drawn on.
    """
    import pandas

    parts = []
    for trace in figure.data:
        if trace.name is None or getattr(trace, "x", None) is None or getattr(trace, "y", None) is None:
            continue
        x_label, y_label = (_axis_of(figure, trace, letter) for letter in "xy")
        columns = {"trace": trace.name, x_label: list(trace.x), y_label: list(trace.y)}
        labels = trace.text if trace.hovertext is None else trace.hovertext
        if labels is not None and not isinstance(labels, str):  # a name for each point
            columns["point"] = list(labels)
        part = pandas.DataFrame(columns).map(_plain).rename(columns=_plain)
        errors = [e for e in (trace.error_y, trace.error_x) if e.array is not None]
        if errors and errors[0].arrayminus is not None:
            part["−"], part["+"] = list(errors[0].arrayminus), list(errors[0].array)
        elif errors:
            part["±"] = list(errors[0].array)
        elif trace.customdata is not None and len(trace.customdata):
            part["±"] = [row[0] for row in trace.customdata]
        parts.append(part.dropna(subset=[part.columns[1]]))  # a gap between two pieces of a line is no figure
    return pandas.concat(parts, ignore_index=True) if parts else pandas.DataFrame()


def _axis_of(figure: Figure, trace: Any, letter: str) -> str:
    """Title of the axis of a trace, or of the one whose scale it shares, or its letter; ``"x2"`` is ``layout.xaxis2``."""
    def axis(id: str) -> Any:
        return figure.layout[f"{letter}axis{id[1:]}"]

    own = axis(getattr(trace, f"{letter}axis") or letter)
    return own.title.text or (axis(own.matches).title.text if own.matches else None) or letter


def layout(title: str, note: str, caption: str, entries: int) -> dict[str, Any]:
    """The house style as plotly layout: ``note`` is the subtitle, ``caption`` the description in words, ``entries`` the legend's length."""
    return {
        "title": {"text": text(title), "subtitle": {"text": text(note)}, "x": 0, "xref": "paper"}, "meta": {"caption": caption},
        "template": "none", "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "colorway": list(COLOURS),
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": INK, "activecolor": COLOURS[0]},
        "font": {"color": INK, "family": "system-ui, sans-serif", "size": 13}, "height": 430 + 20 * max(0, entries - 3),
        "margin": {"l": 70, "r": 20, "t": 80 if note else 60, "b": 60}, "hovermode": "closest",
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0}, "showlegend": entries > 0,
    } | {axis: {"gridcolor": "rgba(128,128,128,0.25)", "zerolinecolor": "rgba(128,128,128,0.4)", "linecolor": INK, "showline": True,
                "ticks": "outside", "automargin": True} for axis in ("xaxis", "yaxis")}


def _axis(name: str, log: bool) -> dict[str, Any]:
    known = None if name == "step" else declared(name)
    prefixes = known is not None and (known.cumulative or known.unit == "B")  # 2M beside [B], but 0.002 of a fraction stays 0.002
    return {"title": {"text": text(known.label if known else "step")}, "type": "log" if log else "linear",
            "exponentformat": "SI" if prefixes else "power"}


def _error(half_width: float | None) -> dict[str, Any] | None:
    known = half_width is not None and half_width == half_width
    return {"type": "data", "array": [half_width], "thickness": 1.5, "width": 5, "color": INK} if known else None


def _faded(colour: str, opacity: float) -> str:
    red, green, blue = (int(colour[i:i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def _plain(value: Any) -> Any:
    return html.unescape(value.replace("<br>", ": ")) if isinstance(value, str) else value


def text(words: Any) -> str:
    """Plain text for plotly, which reads tags in labels."""
    return html.escape(str(words), quote=False)
