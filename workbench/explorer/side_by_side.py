"""Runs side by side: curves, Pareto front and the table with intervals, of what has finished on the list."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ipywidgets as w

from tracking.errors import UserError
from tracking.metrics import METRICS
from tracking.report import Table, paragraphs, table_html
from workbench.comparison import AXES, COSTS, Comparison, compare
from workbench.explorer.curves import FAVOURITES, style
from workbench.explorer.plots import Plots, Worker
from workbench.explorer.session import Session
from workbench.significance import TEST


class SideBySide:
    """A comparison of the session's finished runs (:func:`workbench.compare`), worked out off the kernel's own thread."""

    def __init__(self, session: Session, tracking: Callable[[], str | None] = lambda: None) -> None:
        self.session, self.plots, self.worker, self._tracking = session, Plots(), Worker(), tracking
        self._of: tuple[Any, ...] = ()
        self._comparison: Comparison | None = None
        self._quiet = False
        short = {"style": {"description_width": "initial"}}
        self.metric = w.Dropdown(options=["eval/accuracy"], description="Compare by", tooltip="metric that is compared", **short)
        self.axis = w.Dropdown(options=["train/epoch"], description="along", tooltip="what the curves are drawn against", **short)
        self.cost = w.Dropdown(options=["clock/wall_s"], description="trade-off with", tooltip="cost of the Pareto front", **short)
        self.target = w.Text(description="Target", placeholder="none", tooltip="value of the metric to be reached: the table then says at "
                             "what time, bytes and joules", continuous_update=False, **short)
        self.log_x = w.Checkbox(description="log x", indent=False, tooltip="logarithmic x-axes")
        self.again = w.Button(description="Work out", icon="refresh", tooltip="take the runs that have finished since")
        self.report = w.Button(description="Write report", icon="file", tooltip="one self-contained HTML file, in the workbench's home")
        self.publish = w.Button(description="MLflow views", icon="external-link",
                                tooltip="publish the saved views of these figures in MLflow and link to them")
        self.links = w.HTML()
        self.links.add_class("wb-about")
        self.table = w.HTML()
        self.table.add_class("wb-table")
        bar = w.Box([self.metric, self.axis, self.cost, self.target, self.log_x, self.again, self.report, self.publish])
        bar.add_class("wb-bar")
        self.box = w.VBox([w.HTML("<h4>Side by side</h4>"), bar, self.worker.note, self.links, self.table, self.plots.box])
        for control in (self.metric, self.axis, self.cost, self.target, self.log_x):
            control.observe(lambda _: self._quiet or self.open(), names="value")
        self.again.on_click(lambda _: self.open())
        self.report.on_click(lambda _: self.worker.ask(self._report, "Writing …"))

        self.publish.on_click(lambda _: self.worker.ask(self._publish, "Asking MLflow …"))

    def open(self) -> None:
        """Work it out anew, for the runs that have finished by now."""
        self.worker.ask(self._work)

    def comparison(self) -> Comparison:
        """The finished runs of the session, grouped; made anew where runs have come or gone."""
        runs = [r for r in map(lambda r: r.run(), self.session.runs) if r is not None]
        now = tuple((r.key, r.status, r.cached) for r in runs)
        if self._comparison is None or now != self._of:
            self._comparison, self._of = compare(runs), now
        return self._comparison

    def _work(self) -> str:
        found = self.comparison()
        if not found.groups:
            self.plots.show([])
            self.table.value = ""
            return "Nothing has finished yet. " + " ".join(found.notes())
        self._offer(found)
        numbers = {r.key: r.number for r in self.session.runs}
        # a run looks as it does among the curves of the other pane; a group as its first run
        styles = {g.label: style(min(numbers[r.key] for r in g.runs)) for g in found.groups}
        c = replace(found, metric=self.metric.value, axis=self.axis.value, styles=styles)
        target = self._target()
        figures, absent = [], []
        for task in c.tasks:
            part = c.only(task)
            for draw, arguments in ((part.curves, {}), (part.pareto, {"x": self.cost.value})):
                try:
                    figures.append(draw(**arguments, log_x=self.log_x.value))
                except UserError as why:
                    absent.append(str(why).partition("\n")[0])
        if len(c.tasks) > 1:
            try:
                figures.append(c.profiles())
            except UserError as why:
                absent.append(str(why))
        self.plots.show(figures)
        self.table.value = table_html(Table(c.shown(target), TEST)) + paragraphs("\n".join(f"- {n}" for n in [*c.notes(), *absent]))
        runs, groups = sum(len(g.runs) for g in c.groups), len(c.groups)
        return f"{runs} run{'s' * (runs != 1)} in {groups} group{'s' * (groups != 1)}: those of a group differ in the seed alone."

    def _report(self) -> str:
        from tracking.address import home

        c = replace(self.comparison(), metric=self.metric.value, axis=self.axis.value)
        path = home() / "reports" / "explorer.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        return f"Written: {c.report(path, target=self._target())}"

    def _publish(self) -> str:
        from tracking.views import publish

        published = publish("workbench", tracking=self._tracking())
        shown = [f'<a href="{html.escape(link)}" target="_blank" rel="noopener">{html.escape(name)}</a>'
                 for name, link in published.links.items()]
        self.links.value = " · ".join(shown)
        return published.note or "Published. The server is started with `workbench ui`, if it is not running."

    def _target(self) -> float | None:
        text = self.target.value.strip()
        try:
            return float(text) if text else None
        except ValueError:
            raise UserError(f"Target {text!r} is refused. Allowed: number, or nothing.") from None

    def _offer(self, c: Comparison) -> None:
        """Offer what the runs have reported; keep what is chosen where it is still there."""
        names = [n for n in METRICS if METRICS[n].better and c.reported([n])]
        metrics = [*(n for n in FAVOURITES if n in names), *(n for n in names if n not in FAVOURITES)]
        self._quiet = True
        try:
            for picker, options in ((self.metric, metrics), (self.axis, ["step", *c.reported(AXES)]), (self.cost, c.reported(COSTS))):
                before = picker.value
                if list(picker.options) != options:
                    picker.options = options
                    picker.value = before if before in options else next(iter(options), None)
        finally:
            self._quiet = False
