"""Still figures inside the panel: a few kilobytes each, where a live figure brings five megabytes of JavaScript with it."""

from __future__ import annotations

import html
import itertools
import json
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets as w
import numpy as np

from tracking.figures import COLOURS, histogram, layout, style_of, thin
from workbench.explorer.curves import share
from workbench.method import View

if TYPE_CHECKING:
    from plotly.graph_objects import Bar, Figure

    from tracking.figures import Style


class Plots:
    """An area with any number of still figures, each followed by its description in words."""

    def __init__(self) -> None:
        self.box = w.Output()
        self.box.add_class("wb-plots")

    def show(self, figures: Sequence[Figure]) -> None:
        """Put these figures there instead of what was there before."""
        self.box.outputs = tuple(_output(figure) for figure in figures)


def _output(figure: Figure) -> dict[str, Any]:
    meta = figure.layout.meta
    caption = meta.get("caption", "") if isinstance(meta, dict) else ""
    drawn = json.loads(light(figure).to_json())
    drawn["config"] = {"displaylogo": False, "responsive": True}
    return {"output_type": "display_data", "metadata": {},
            "data": {"application/vnd.plotly.v1+json": drawn, "text/plain": caption or figure.layout.title.text or "figure"}}


def light(figure: Figure, limit: int = 2000) -> Figure:
    """The figure with as few points as its number of traces asks for, extremes kept."""
    most = share(limit, len(figure.data))
    for trace in figure.data:
        y = getattr(trace, "y", None)
        if trace.type == "scatter" and y is not None and len(y) > most:
            kept = thin(np.asarray(y, float), most)
            trace.update(x=np.asarray(trace.x)[kept], y=np.asarray(y)[kept])
            if trace.customdata is not None:
                trace.customdata = np.asarray(trace.customdata)[kept]
    return figure


class Worker:
    """Does one piece of work at a time on a thread of its own, and says so in ``note``; the newest wish is served last."""

    def __init__(self) -> None:
        self.note = w.HTML()
        self.note.add_class("wb-note")
        self._lock = threading.Lock()
        self._wish: Callable[[], str] | None = None
        self._thread: threading.Thread | None = None

    def ask(self, work: Callable[[], str], saying: str = "Being worked out …") -> None:
        """Do ``work``, which returns what the note is to say; an error becomes the note."""
        self.say(saying)
        with self._lock:
            self._wish = work
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="workbench explorer pane", daemon=True)
                self._thread.start()

    def wait(self, timeout: float) -> None:
        """Block until nothing is left to do."""
        if (thread := self._thread) is not None:
            thread.join(timeout)

    def say(self, text: str, bad: bool = False) -> None:
        style = ' class="wb-bad"' if bad else ""
        self.note.value = f'<div aria-live="polite"{style}>{html.escape(text)}</div>' if text else ""

    def _work(self) -> None:
        while True:
            with self._lock:
                work, self._wish = self._wish, None
                if work is None:
                    self._thread = None
                    return
            try:
                said = work()
            except Exception as error:  # one line on the panel, whatever went wrong
                self.say(str(error).partition("\n")[0] or type(error).__name__, bad=True)
            else:
                self.say(said)


def drawn(view: View) -> Figure:
    """A figure of what a method shows of itself."""
    import plotly.graph_objects as go

    caption, groups = view.note or view.title, {str(name): values for name, values in view.groups.items()}  # clients go by number
    if view.kind == "histogram":
        figure = histogram(groups, quantity=view.x or "value", title=view.title, bins=80)
        figure.layout.meta = {"caption": caption}
        return _stepped(figure).update_layout(title=TITLE)
    figure, styles = go.Figure(), style_of(groups)
    if view.kind == "bars":
        figure.add_trace(go.Bar(x=[*groups], y=[*groups.values()], marker={"color": COLOURS[0]}, name=view.title))
        figure.update_xaxes(type="category")  # a layer named 4 is no number
        figure.update_layout(bargap=0.2 if len(groups) > 3 else 0.6)
    elif view.kind == "spans":
        for name, (rows, begins, ends) in groups.items():
            figure.add_trace(_spans(name, np.asarray(rows), np.asarray(begins, float), np.asarray(ends, float), styles[name]))
        figure.update_layout(barmode="overlay", bargap=0.35)
        figure.update_yaxes(autorange="reversed", dtick=1)
    elif view.kind == "matrix":
        (values,) = groups.values()
        figure.add_trace(go.Heatmap(z=np.asarray(values, float), colorscale="Cividis", name=view.title))
        figure.update_yaxes(autorange="reversed")
    else:
        for name, (x, y) in groups.items():
            look = styles[name]
            x, y = np.asarray(x, float), np.asarray(y, float)
            kept = np.linspace(0, len(x) - 1, min(len(x), 5000)).astype(int) if len(x) else np.empty(0, int)
            figure.add_trace(go.Scatter(
                x=x[kept], y=y[kept], name=name, mode="markers" if view.kind == "points" else "lines",
                line={"color": look.colour, "dash": look.dash}, marker={"color": look.colour, "symbol": look.marker}))
    figure.update_layout(layout(view.title, "", caption, len(groups) if view.kind in ("points", "lines", "spans") else 0))
    figure.update_layout(title=TITLE)
    figure.update_xaxes(title_text=html.escape(view.x))
    figure.update_yaxes(title_text=html.escape(view.y), exponentformat="power")  # 76µ of a fraction is hard to read
    return figure


TITLE = {"font": {"size": 14}, "xref": "container", "x": 0.01}
"""Titles do not wrap: from the edge on, and small, the longest fits the narrowest pane."""
STEPPED = ("solid", "dot", "1px,5px", "4px,2px")


def _stepped(figure: Figure) -> Figure:
    """A histogram of few bins with its steps whole: long dashes leave corners out, and the frame hides what stands at an end."""
    for trace, dash in zip(figure.data, itertools.cycle(STEPPED)):
        trace.line.dash = dash
    ends = [float(end) for trace in figure.data for end in (trace.x[0], trace.x[-1])]
    room = 0.03 * (max(ends) - min(ends))
    # from the floor to the floor, so that the first and the last bin are closed
    for trace in figure.data:
        x, y = np.asarray(trace.x, float), np.asarray(trace.y, float)
        trace.update(x=[x[0], *x, x[-1]], y=[0.0, *y, 0.0])
    figure.update_xaxes(range=[min(ends) - room, max(ends) + room])
    return figure


def _spans(name: str, rows: np.ndarray, begins: np.ndarray, ends: np.ndarray, look: Style) -> Bar:
    """Bars from begin to end in their rows, at most 2000 of them; kinds are told apart by colour and by hatching."""
    import plotly.graph_objects as go

    kept = slice(None, 2000)
    hatch = {"shape": look.hatch, "fillmode": "overlay", "fgcolor": "rgba(255,255,255,0.7)", "size": 6, "solidity": 0.25}
    return go.Bar(y=rows[kept], base=begins[kept], x=(ends - begins)[kept], orientation="h", name=name, showlegend=True,
                  marker={"color": look.colour, "pattern": hatch, "line": {"color": "#fff", "width": 1}},
                  customdata=ends[kept], hovertemplate="%{base:.4~g} to %{customdata:.4~g}")
