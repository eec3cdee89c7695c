"""Figures: the left side against the bound and its terms, sweeps, and how accumulators and errors grow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tracking.figures import layout, text
from tracking.statistics import t_factor
from tracking.styles import COLOURS, INK
from workbench.studies.boolean_convergence.sweeps import QUANTITIES
from workbench.studies.boolean_convergence.trajectories import Traces

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects as go

# colour, dash and marker of each quantity, the same in all figures of the study
LOOKS = {
    "left side": (COLOURS[0], "solid", "circle"),
    "bound": (INK, "solid", "square"),
    "start": (COLOURS[4], "dash", "diamond"),
    "noise": (COLOURS[2], "dot", "triangle-up"),
    "error": (COLOURS[3], "dashdot", "x"),
    "floor": (COLOURS[1], "longdash", "cross"),
    "printed floor": (COLOURS[1], "dot", "star"),
    "before the lemmas": (COLOURS[5], "longdashdot", "star"),
}
WORDS = {
    "left side": "left side, measured",
    "bound": "bound",
    "start": "2(f₀−f*)/(Tη)",
    "noise": "2Lσ²η",
    "error": "2L²σ²γ(1+γ)η²/(1−γ)²",
    "floor": "floor 2Ldκ",
    "printed floor": "(L/2)dκ, as printed in the theorem",
    "before the lemmas": "proof before the lemmas",
}


def mean_band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the last axis and the half-width of its 95 % t interval, NaN for a single value."""
    n = values.shape[-1]
    spread = np.std(values, axis=-1, ddof=1) / n**0.5 if n > 1 else np.full(values.shape[:-1], np.nan)
    return values.mean(-1), t_factor(n, 0.95) * spread


def bound_figure(traces: Traces, title: str, note: str = "", best: float = 0.0) -> go.Figure:
    """Left side with its band, the bound and its terms, from constants measured up to each number of steps; ``best``: best corner's."""
    lines = {
        "left side": traces.lhs,
        "bound": traces.bound(),
        **traces.terms(),
        "printed floor": traces.terms("printed")["floor"],
        "before the lemmas": traces.before_lemmas,
    }
    n = traces.lhs.shape[1]
    caption = (
        f"Mean of ||grad f(w_t)||² over the steps so far (mean of {n} seeds, band: 95 % t interval) and the theorem's bound with its "
        "four terms, from L, sigma², kappa and gamma as measured up to each number of steps, means over seeds. The error term begins "
        "where a weight has passed in every seed."
    )
    fig = _panel(title, note, caption, len(lines) + bool(best))
    for name, values in lines.items():
        mean, half = mean_band(values)
        if name == "left side":
            _band(fig, traces.points, mean, half, LOOKS[name][0])
        colour, dash, marker = LOOKS[name]
        thick = 3 if name in ("left side", "bound") else 1 if name == "printed floor" else 2
        fig.add_scatter(
            x=traces.points,
            y=np.where(mean > 0, mean, np.nan),
            mode="lines+markers",
            name=text(WORDS[name]),
            line={"color": colour, "dash": dash, "width": thick},
            marker={"symbol": marker, "size": 7, "maxdisplayed": 8},
            hovertemplate="%{x:.4~g}: %{y:.3~g}",
        )
    if best:
        fig.add_scatter(
            x=traces.points[[0, -1]],
            y=[best, best],
            mode="lines",
            name="least ||∇f||² of any corner",
            line={"color": COLOURS[0], "dash": "dot", "width": 1},
            hovertemplate="%{y:.3~g}",
        )
    fig.update_xaxes(title_text="steps T", type="log")
    return fig.update_yaxes(title_text="squared gradient norm", type="log", exponentformat="power")


def sweep_figure(frame: pandas.DataFrame, x: str, title: str, note: str = "") -> go.Figure:
    """The left side and the bound with its terms against what is swept: means over seeds with t intervals."""
    n = frame.groupby("x")["seed"].nunique().min()
    caption = (
        f"Means over {n} seeds with 95 % t intervals against {x}: the theorem's left side, its bound and its four terms from measured "
        "constants. An error term is missing where some seed had no flip."
    )
    fig = _panel(title, note, caption, len(QUANTITIES))
    for name in QUANTITIES:
        table = frame.pivot(index="x", columns="seed", values=name)
        mean, half = mean_band(table.to_numpy())
        colour, dash, marker = LOOKS[name]
        fig.add_scatter(
            x=table.index,
            y=np.where(mean > 0, mean, np.nan),
            name=text(WORDS[name]),
            mode="lines+markers",
            error_y={
                "type": "data",
                "array": np.minimum(half, 0.9 * mean),
                "thickness": 1.5,
                "width": 4,
                "color": colour,
            },
            line={"color": colour, "dash": dash, "width": 3 if name in ("left side", "bound") else 2},
            marker={"symbol": marker, "size": 8},
            hovertemplate="%{x:.4~g}: %{y:.3~g}",
        )
    fig.update_xaxes(title_text=text(x), type="log")
    return fig.update_yaxes(title_text="squared gradient norm", type="log", exponentformat="power")


def growth_figure(
    traces: Mapping[str, Traces], quantity: str, label: str, title: str, note: str = "", **lines: float
) -> go.Figure:
    """One quantity (``eta kappa``, or a name in the traces) against steps for several settings; ``lines``: levels to compare with."""
    fig = _panel(title, note, f"{label} against steps, mean over seeds with 95 % t interval.", len(traces) + len(lines))
    markers = ("circle", "square", "diamond", "triangle-up", "cross", "x")
    dashes = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
    for i, (name, t) in enumerate(traces.items()):
        values = t.eta * t.kappa if quantity == "eta kappa" else getattr(t, quantity)
        mean, half = mean_band(values)
        _band(fig, t.points, mean, half, COLOURS[i])
        fig.add_scatter(
            x=t.points,
            y=np.where(mean > 0, mean, np.nan),
            name=text(f"{name} (n={values.shape[1]})"),
            mode="lines+markers",
            line={"color": COLOURS[i], "dash": dashes[i], "width": 2},
            marker={"symbol": markers[i], "size": 7, "maxdisplayed": 8},
            hovertemplate="%{x:.4~g}: %{y:.3~g}",
        )
    span = [min(t.points[0] for t in traces.values()), max(t.points[-1] for t in traces.values())]
    for name, level in lines.items():
        fig.add_scatter(
            x=span,
            y=[level, level],
            mode="lines",
            name=text(name.replace("_", " ")),
            line={"color": INK, "dash": "dot", "width": 1},
        )
    fig.update_xaxes(title_text="steps T", type="log")
    return fig.update_yaxes(title_text=text(label), type="log", exponentformat="power")


def _panel(title: str, note: str, caption: str, entries: int) -> Any:
    import plotly.graph_objects as go

    # a legend in the order of the traces, which fills would turn round; decades alone on the axes
    figure = go.Figure().update_layout(layout(title, note, caption, entries), legend_traceorder="normal")
    return figure.update_yaxes(dtick=1).update_xaxes(dtick="D2")


def _band(fig: Any, x: np.ndarray, mean: np.ndarray, half: np.ndarray, colour: str) -> None:
    """A shaded interval, cut a decade below the mean, because a logarithmic scale knows no zero."""
    if not np.isfinite(half).all():
        return
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    edge = {"x": x, "mode": "lines", "line": {"width": 0, "color": colour}, "showlegend": False, "hoverinfo": "skip"}
    fig.add_scatter(**edge, y=np.maximum(mean - half, mean / 10))
    fig.add_scatter(**edge, y=mean + half, fill="tonexty", fillcolor=f"rgba({red},{green},{blue},0.2)")
