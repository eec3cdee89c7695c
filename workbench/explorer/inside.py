"""A look inside an algorithm: what its own method contributes, of a run that goes on or of one that has ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ipywidgets as w

from workbench.explorer.listed import ListedRun
from workbench.explorer.plots import Plots, Worker, drawn
from workbench.explorer.session import Session
from workbench.explorer.toolbar import RunMenu


class Inside:
    """A run to choose, a button, and the figures of its method's views."""

    def __init__(self, session: Session) -> None:
        self.session, self.plots, self.worker = session, Plots(), Worker()
        self.menu = RunMenu([("Look inside", "search", "ask the method for what there is to see now", self.look)])
        self.box = w.VBox([w.HTML("<h4>Inside the algorithm</h4>"), self.menu.box, self.worker.note, self.plots.box])

    def update(self, runs: Sequence[ListedRun], named: Mapping[str, str]) -> None:
        self.menu.update(runs, named)

    def open(self) -> None:
        """Shown for the first time, it looks by itself; later a person decides."""
        if not self.plots.box.outputs and self.menu.chosen is not None:
            self.look(self.menu.chosen)

    def look(self, r: ListedRun) -> None:
        """Show the views of a run."""
        def work() -> str:
            views = r.views()
            self.plots.show([drawn(view) for view in views])
            at = f" at step {r.rows.last['step']:g}" if r.rows.last else ""
            if not views:
                return f"The method {r.spec.method} shows nothing of itself. It can: see Method.views."
            return f"{r.name}{at}."

        live = r.status in ("running", "pausing")
        self.worker.ask(work, f"Looking into {r.name}{', at its next report' if live else ''} …")
