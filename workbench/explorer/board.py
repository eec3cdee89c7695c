"""The board: live curves of all runs on one figure, and a table that says the same in figures and words."""

from __future__ import annotations

import html
import threading
from typing import Any

import ipywidgets as w
import plotly.graph_objects as go

from tracking.metrics import METRICS
from tracking.report import CONFIG
from workbench.explorer import curves
from workbench.explorer.energy import EnergyPicker
from workbench.explorer.figure import LiveFigure as LiveFigure
from workbench.explorer.front import Fit, drawn
from workbench.explorer.listed import ListedRun
from workbench.explorer.session import Session
from workbench.explorer.theme import TONES
from workbench.modelled import METRIC

FEW = 30  # up to here each point gets its marker


class Board:
    """Curves and table of a session's runs. :meth:`refresh` brings both up to date and sends only what has changed."""

    def __init__(self, session: Session, max_points: int) -> None:
        self.session, self.max_points = session, max_points
        self.lock = threading.RLock()  # the ticker and the kernel's thread both write widgets
        self._drawn: dict[str, tuple[Any, ...]] = {}
        self._picked = self._quiet = False  # whether a person has chosen the metric; whether the code is setting the pickers
        short = {"style": {"description_width": "initial"}}
        self.metric = w.Dropdown(options=[curves.FAVOURITES[0]], description="Show", tooltip="metric on the y-axis", **short)
        self.axis = w.Dropdown(options=["step"], description="against", tooltip="quantity on the x-axis", **short)
        self.log_x = w.Checkbox(description="log x", indent=False, tooltip="logarithmic x-axis")
        self.log_y = w.Checkbox(description="log y", indent=False, tooltip="logarithmic y-axis")
        self.bands = w.Checkbox(description="seeds as bands", indent=False,
                                tooltip="ended runs that differ in the seed alone become one mean with its 95 % interval")
        self.energy = EnergyPicker(self.refresh)
        self.figure, self.fit, self.drawn = self._made([], curves.layout()), Fit(), w.HTML(layout=w.Layout(display="none"))
        self.fit.on_msg(lambda _, said, __: said.get("redraw") and self.redraw())
        self.table = w.HTML()
        self.table.add_class("wb-table")
        self.clear = w.Button(description="Clear ended runs", tooltip="take ended runs off this list; their results stay on disk")
        picks = w.Box([self.metric, self.axis, self.log_x, self.log_y, self.bands])
        below = w.Box([self.clear])
        picks.add_class("wb-bar")
        below.add_class("wb-bar")
        self._holder = w.Box([self.figure, self.fit, self.drawn], layout=w.Layout(width="100%", display="block"))
        self._holder.add_class("wb-curves")
        self.box = w.VBox([w.HTML("<h4>Curves</h4>"), picks, self.energy.box, self._holder, self.table, below])
        for control in (self.metric, self.axis, self.log_x, self.log_y, self.bands):
            control.observe(self._on_pick, names="value")
        self.clear.on_click(self._on_clear)
        self.refresh()

    def refresh(self) -> None:
        with self.lock:
            runs = list(self.session.runs)
            self._offer(runs)
            self.energy.update(runs, shown=METRIC in (self.axis.value, self.metric.value))
            self._draw(runs)
            table = self._rows(runs)
            if table != self.table.value:
                self.table.value = table
            self.clear.disabled = not any(r.ended for r in runs)

    def redraw(self) -> None:
        """Put another figure in the place of one that a page has not got as it is."""
        with self.lock:
            old, self.figure = self.figure, self._made(self.figure.data, self.figure.layout)
            self._holder.children = [self.figure, self.fit, self.drawn]
            old.close()

    def _made(self, data: Any, layout: Any) -> LiveFigure:
        made = LiveFigure(data=data, layout=layout)
        made.lock, made._config = self.lock, CONFIG | {"responsive": True}
        return made

    # --- pickers ----------------------------------------------------------------------------------------------

    def _offer(self, runs: list[ListedRun]) -> None:
        """Offer the metrics and axes that the runs have reported; keep what is chosen."""
        names = curves.reported(runs)
        if not names:
            return
        axes = curves.axes(names)
        metric = self.metric.value if self._picked and self.metric.value in names else names[0]
        axis = self.axis.value if self.axis.value in axes else "step"
        self._quiet = True
        try:
            for picker, options, value in ((self.metric, names, metric), (self.axis, axes, axis)):
                if list(picker.options) != options:
                    picker.options = options
                picker.value = value
        finally:
            self._quiet = False

    def _on_pick(self, change: Any) -> None:
        if not self._quiet:
            self._picked = self._picked or change["owner"] is self.metric
            self.refresh()

    def _on_clear(self, _: Any) -> None:
        self.session.clear()
        self.refresh()

    # --- curves -----------------------------------------------------------------------------------------------

    def _draw(self, runs: list[ListedRun]) -> None:
        x, y = self.axis.value, self.metric.value
        shown = curves.lines(runs, self.bands.value)
        limit = curves.share(self.max_points, len(shown))
        scales = tuple(self.energy.factor if name == METRIC else _unscaled for name in (x, y))
        there = {t.meta: t for t in self.figure.data}
        news = {}
        for line in shown:
            now = (line.version, x, y, line.name, limit, *(scale(r) for scale in scales for r in line.runs))
            if line.id not in there or self._drawn.get(line.id) != now:
                xs, ys = curves.points(line, x, y, limit, scales)
                dots = line.part in ("line", "mean") and len(xs) < FEW
                news[line.id] = {"x": xs, "y": ys, "name": line.name, "mode": "lines+markers" if dots else "lines"}
                self._drawn[line.id] = now
        if [*there] != [line.id for line in shown]:
            self._exchange(shown, there, news)
        with self.figure.batch_update():
            for id, new in news.items():
                if id in there:
                    there[id].update(**new)
            axes = (*(curves.axis_label(name, self.energy.model) for name in (x, y)), self.log_x.value, self.log_y.value)
            if self._drawn.get("") != axes:
                for axis, label, log in zip((self.figure.layout.xaxis, self.figure.layout.yaxis), axes[:2], axes[2:], strict=True):
                    axis.update(title={"text": label, "standoff": 12}, type="log" if log else "linear", autorange=True)
                self._drawn[""] = axes
            self._tell_empty(bool(runs), x, y)
        self.drawn.value = drawn(self.figure.data)  # equal values are not sent again

    def _tell_empty(self, listed: bool, x: str, y: str) -> None:
        """Words instead of axes without a curve: there are none to be read off."""
        said = ("" if any(t.x is not None and len(t.x) for t in self.figure.data) else
                f"No run has reported {y} against {x} yet." if listed else "Press Run: the curves appear here, and more runs beside them.")
        if self._drawn.get("empty") != (said,):
            self._drawn["empty"] = (said,)
            self.figure.layout.annotations = [curves.words(said)] if said else []
            for axis in (self.figure.layout.xaxis, self.figure.layout.yaxis):
                axis.visible = not said

    def _exchange(self, shown: list[curves.Line], there: dict[str, Any], news: dict[str, Any]) -> None:
        """Have the traces of ``shown`` instead of those that are there.

        All are made anew, each with all that it shows: a page that was loaded again does not hear of one more trace beside those that it
        found, and one that is still adding traces loses those that the next message changes.
        """
        made = []
        for line in shown:
            old = there.pop(line.id, None)
            if line.id not in news:
                news[line.id] = {"x": old.x, "y": old.y, "name": old.name, "mode": old.mode}
            made.append(go.Scatter(**{**curves.traces(line), **news[line.id]}, visible=True if old is None else old.visible))
        self.figure.data = []
        if made:
            self.figure.add_traces(made)

    # --- table ------------------------------------------------------------------------------------------------

    def _rows(self, runs: list[ListedRun]) -> str:
        if not runs:
            return '<h4>Runs</h4><span class="wb-note">No runs yet. Press Run; several runs queue up and are drawn together.</span>'
        name, named = self.metric.value, curves.labels(runs)
        heads = [('<span class="wb-sr">line</span>', ""), ("run", ""), ("status", ""), ("steps", "wb-num"), ("last", "wb-num"),
                 ("best", "wb-num"), ("time [s]", "wb-num"), ("key", "")]
        if METRICS[name].better is None:
            heads.remove(("best", "wb-num"))
        head = "".join(f'<th class="{c}">{t}</th>' for t, c in heads)
        body = "".join(self._row(r, name, named[r.key]) for r in runs)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        head = html.escape(curves.axis_label(name, self.energy.model))
        return f'<h4>Runs, {head}</h4><div class="wb-scroll" role="region" tabindex="0" aria-label="Runs">{table}</div>'

    def _row(self, r: ListedRun, name: str, label: str) -> str:
        last, factor = r.rows.last, self.energy.factor(r) if name == METRIC else 1.0
        steps = f"{r.progress.done}/{r.progress.total}" if r.progress else f"{last['step']:g}" if last else ""
        link = f' <a href="{html.escape(r.url)}" target="_blank" rel="noopener">MLflow</a>' if r.url else ""
        cells = [("", swatch(r.number)), ("", html.escape(label)), ("", status_word(r)), ("wb-num", steps),
                 ("wb-num", _figure(last.get(name), factor))]
        if METRICS[name].better is not None:
            cells.append(("wb-num", _figure(r.best(name), factor)))
        cells += [("wb-num", _figure(last.get("clock/wall_s"), form=".1f")), ("", f'<code title="{r.key}">{r.key[:8]}</code>{link}')]
        why = reason(r)
        more = f'<tr class="wb-why"><td></td><td colspan="{len(cells) - 1}">{why}</td></tr>' if why else ""
        return f"<tr{' class=wb-more' if why else ''}>" + "".join(f'<td class="{c}">{t}</td>' for c, t in cells) + f"</tr>{more}"


def _unscaled(_: ListedRun) -> float:
    return 1.0


def status_word(r: ListedRun) -> str:
    """The status as HTML, coloured where it matters."""
    return f'<span class="{TONES.get(r.status, "")}">{r.status}</span>'


def reason(r: ListedRun) -> str:
    """Why the status is what it is, as HTML, or nothing."""
    why = "from the cache" if r.cached else r.reason
    loud = "wb-bad" if TONES.get(r.status) == "wb-bad" else ""
    return f'<span class="{loud}">{html.escape(why)}</span>' if why else ""


def swatch(number: int) -> str:
    """The line of a run as it is in the figure."""
    style = curves.style(number)
    return (f'<svg width="34" height="8" aria-hidden="true"><line x1="0" y1="4" x2="34" y2="4" stroke="{style.colour}" '
            f'stroke-width="2.5" stroke-dasharray="{curves.DASHES[style.dash]}"/></svg>')


def _figure(value: float | None, factor: float | None = 1.0, form: str = ".4g") -> str:
    return "" if value is None or factor is None else format(factor * value, form)
