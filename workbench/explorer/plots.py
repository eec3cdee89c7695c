"""Still figures inside the panel: a few kilobytes each, where a live figure brings five megabytes of JavaScript with it."""

from __future__ import annotations

import html
import itertools
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets as w
import numpy as np

from tracking.figures import COLOURS, Style, histogram, layout, thin
from tracking.report import CONFIG
from workbench.explorer.curves import DASHES, share
from workbench.method import View

if TYPE_CHECKING:
    from plotly.graph_objects import Bar, Figure


class Plots:
    """An area with any number of still figures, each followed by its description in words."""

    def __init__(self) -> None:
        self.box = w.Output()
        self.box.add_class("wb-plots")

    def show(self, figures: Sequence[Figure]) -> None:
        """Put these figures there instead of what was there before."""
        self.box.outputs = tuple(itertools.chain.from_iterable(map(_outputs, figures)))


def _outputs(figure: Figure) -> list[dict[str, Any]]:
    meta, title = figure.layout.meta, figure.layout.title.text or "figure"
    caption = meta.get("caption", "") if isinstance(meta, dict) else ""
    drawn = json.loads(light(figure).to_json())
    drawn["config"] = CONFIG | {"responsive": True}
    shown = [{"application/vnd.plotly.v1+json": drawn, "text/plain": caption or title}]
    if caption and caption != title:
        shown.append({"text/html": f'<p class="wb-caption">{html.escape(caption)}</p>', "text/plain": caption})
    return [{"output_type": "display_data", "metadata": {}, "data": data} for data in shown]


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
        self._saying = ""
        self._wish: Callable[[], str] | None = None
        self._thread: threading.Thread | None = None

    def ask(self, work: Callable[[], str], saying: str = "Being worked out …") -> None:
        """Do ``work``, which returns what the note is to say; an error becomes the note. Meanwhile it says ``saying``, and since when."""
        self.say(saying)
        with self._lock:
            self._wish, self._saying = work, saying
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="workbench explorer pane", daemon=True)
                self._thread.start()

    def wait(self, timeout: float) -> None:
        """Block until nothing is left to do."""
        if (thread := self._thread) is not None:
            thread.join(timeout)

    def say(self, text: str, bad: bool = False, since: str = "") -> None:
        style = ' class="wb-bad"' if bad else ""
        said = f'<span aria-live="polite"{style}>{html.escape(text)}</span>' if text else ""
        self.note.value = said + f' <span aria-hidden="true">{since}</span>' * bool(since)

    def _work(self) -> None:
        while True:
            with self._lock:
                work, self._wish = self._wish, None
                if work is None:
                    self._thread = None
                    return
            done = threading.Event()
            clock = threading.Thread(target=self._tell_time, args=(done,), name="workbench explorer clock", daemon=True)
            clock.start()
            try:
                said, bad = work(), False
            except Exception as error:  # one line on the panel, whatever went wrong
                said, bad = str(error).partition("\n")[0] or type(error).__name__, True
            done.set()
            clock.join()  # or its last word would come after
            self.say(said, bad)

    def _tell_time(self, done: threading.Event) -> None:
        """Count the seconds of a piece of work that takes some: a person is to see that it goes on."""
        begin = time.monotonic()
        while not done.wait(1.0):
            self.say(self._saying, since=f"{time.monotonic() - begin:.0f} s")


def drawn(view: View) -> Figure:
    """A figure of what a method shows of itself."""
    import plotly.graph_objects as go

    groups = {str(name): values for name, values in view.groups.items()}  # clients go by number
    looks = {name: _look(n) for n, name in enumerate(groups)}
    if view.kind == "matrix":
        return _matrices(view, groups)
    if view.kind == "histogram":
        figure = _stepped(histogram(groups, quantity=view.x or "value", title=view.title, bins=80, styles=looks))
        figure.layout.meta = {"caption": view.note}
        figure.update_xaxes(exponentformat="power")
        figure.update_yaxes(title_standoff=ROOM)
        return figure.update_layout(title=TITLE)
    figure = go.Figure()
    if view.kind == "bars":
        figure.add_trace(_bars(view.title, groups))
        figure.update_xaxes(type="category")  # a layer named 4 is no number
        figure.update_layout(bargap=max(0.2, 1 - 0.2 * len(groups)))
    elif view.kind == "spans":
        for name, (rows, begins, ends) in groups.items():
            figure.add_trace(_spans(name, np.asarray(rows), np.asarray(begins, float), np.asarray(ends, float), looks[name]))
        figure.update_layout(barmode="overlay", bargap=0.35)
        figure.update_yaxes(autorange="reversed", dtick=1)
    else:
        for name, (x, y) in groups.items():
            x, y = np.asarray(x, float), np.asarray(y, float)
            kept = np.linspace(0, len(x) - 1, min(len(x), 5000)).astype(int) if len(x) else np.empty(0, int)
            figure.add_trace(go.Scatter(
                x=x[kept], y=y[kept], name=name, mode="markers" if view.kind == "points" else "lines",
                line={"color": looks[name].colour, "dash": looks[name].dash},
                marker={"color": looks[name].colour, "symbol": looks[name].marker, "size": 7}))
    figure.update_layout(layout(view.title, "", view.note, len(groups) if view.kind in ("points", "lines", "spans") else 0))
    figure.update_layout(title=TITLE)
    figure.update_xaxes(title_text=html.escape(view.x))
    figure.update_yaxes(title_text=html.escape(view.y), title_standoff=ROOM, exponentformat="power")  # 76µ of a fraction is hard to read
    return figure


TITLE = {"font": {"size": 14}, "xref": "container", "x": 0.01}
"""Titles do not wrap: from the edge on, and small, the longest fits the narrowest pane."""
ROOM = 12
"""Pixels between the figures and the title of an upright axis."""
STEPPED = ("solid", "2px,2px", "6px,2px", "6px,2px,2px,2px")
MARKS, HATCHES = ("circle", "x", "square-open", "triangle-up", "cross", "diamond-open"), ("", "/", "x", "-", "\\", "+", ".")
SIGNED = ((0.0, COLOURS[0]), (0.5, "#f5f5f5"), (1.0, COLOURS[1]))
"""Colours of values on both sides of zero."""


def _look(n: int) -> Style:
    """How the group at place ``n`` of a view is drawn: in the order of the palette, with another second cue each."""
    return Style(COLOURS[n % len(COLOURS)], [*DASHES][n % len(DASHES)], MARKS[n % len(MARKS)], HATCHES[n % len(HATCHES)])


def _matrices(view: View, groups: Mapping[str, Any]) -> Figure:
    """Matrices beside each other in one scale of colours, which is symmetric where there are values on both sides of zero."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    arrays = [np.asarray(values, float) for values in groups.values()]
    figure = make_subplots(1, len(arrays), subplot_titles=[html.escape(name) for name in groups], horizontal_spacing=0.06)
    for column, values in enumerate(arrays, 1):
        figure.add_trace(go.Heatmap(z=values, coloraxis="coloraxis", name=[*groups][column - 1] or view.title), 1, column)
    low, high = min(a.min() for a in arrays), max(a.max() for a in arrays)
    far = max(-low, high)
    scale = {"colorscale": SIGNED, "cmin": -far, "cmax": far} if low < 0 < high else {"colorscale": "Cividis"}
    named = figure.layout.annotations  # of the matrices; a layout has none of its own
    figure.update_layout(layout(view.title, "", view.note, 0))
    figure.update_layout(title=TITLE, annotations=named, height=400, margin={"t": 72},
                         coloraxis={**scale, "colorbar": {"title": {"text": html.escape(view.z), "side": "right"}, "thickness": 14}})
    figure.update_annotations(font={"size": 12})
    figure.update_xaxes(title_text=html.escape(view.x), showgrid=False, zeroline=False)
    figure.update_yaxes(autorange="reversed", showgrid=False, zeroline=False)
    figure.update_yaxes(title_text=html.escape(view.y), title_standoff=ROOM, col=1)
    return figure


def _bars(title: str, groups: Mapping[str, Any]) -> Bar:
    """A bar for each group, with its figure in print where there is room for it: a short one can be read, too."""
    import plotly.graph_objects as go

    values = [float(v) for v in groups.values()]
    said = [f"{v:.3g}" for v in values] if len(values) <= 12 else None
    return go.Bar(x=[*groups], y=values, name=title, marker={"color": COLOURS[0]}, text=said, textposition="outside", cliponaxis=False,
                  hovertemplate="%{x}: %{y:.4~g}<extra></extra>")


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
