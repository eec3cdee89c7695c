"""The panel: pickers, form, buttons and panes put together, with the same verbs for a hand and for code."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

import ipywidgets as w
import pandas  # noqa: F401  (plotly looks into it while it draws, and must not find what another thread has half imported)

from tracking.errors import UserError, unknown
from workbench import registry
from workbench.explorer import curves, presets, snippets, theme
from workbench.explorer.board import Board
from workbench.explorer.forms import Forms, on_device
from workbench.explorer.listed import ListedRun, Request, spec_of
from workbench.explorer.panes import CopyAs, Inside, Panes, Past, SideBySide
from workbench.explorer.pickers import Pickers
from workbench.explorer.preview import Preview
from workbench.explorer.search import Hit, find
from workbench.explorer.session import Session
from workbench.explorer.toolbar import RunMenu, Toolbar, stop_one

log = logging.getLogger("workbench")


class Explorer:
    """The explorer. Display it as the last value of a cell; every button has a verb of the same name."""

    def __init__(self, session: Session | None = None, tracking: str | None = None, max_points: int = 2000) -> None:
        self.session = session or Session()
        self.tracking = tracking
        self._trouble = ""
        self.board = Board(self.session, max_points)
        self._lock = self.board.lock
        self.forms = Forms(self._on_form, self._lock)
        self.toolbar = Toolbar({"Run": self._pressed(self.run), "Pause": self._pressed(self._toggle), "Stop": self._pressed(self.stop),
                                "Stop all": self._pressed(self.stop_all), "Reset": self._pressed(self.reset)})
        self.toolbar.preset.observe(lambda change: self.toolbar.quiet or self._press(lambda: self.preset(change["new"])), names="value")
        self.preview = Preview(lambda: self.session.live)
        self.menu = RunMenu([
            ("Into the form", "edit", "put its parameters into the form", self._pressed(self.load)),
            ("Duplicate", "copy", "put its parameters into the form, with the next seed", self._pressed(self.duplicate)),
            ("Re-run", "repeat", "repeat it from its first step, whatever its folder holds", self._pressed(self.rerun)),
            ("Stop it", "stop", "stop it, or take it off the queue", self._pressed(stop_one))])
        self.board.box.children = [*self.board.box.children, self.menu.box]
        self.copies, self.inside = CopyAs(), Inside(self.session)
        self.side_by_side = SideBySide(self.session, lambda: self.tracking)
        self.past = Past(lambda: self.tracking, self._told(self.load, "It is on the form."),
                         self._told(self.show, "It is among the curves."))
        self.panes = Panes({"Runs": self.board, "Side by side": self.side_by_side, "Inside": self.inside, "Past runs": self.past,
                            "Copy as": self.copies})
        self.pickers = Pickers(self._on_pick)
        self._on_pick()
        self.board.fit.on_msg(lambda _, said, __: "typed" in said and self.forms.typed(said["number"], said["typed"]))
        head = w.VBox([self.pickers.box, self.toolbar.bar, self.toolbar.start, self.toolbar.status, self.preview.html])
        head.add_class("wb-head")
        page = w.Box([self.forms.box, self.panes.box])
        page.add_class("wb-page")
        self.box = w.VBox([w.HTML(f"<style>{theme.CSS}</style>", layout=w.Layout(display="none")), head, page])
        self.box.add_class("wb")
        self.session.listen(self.refresh)
        self.refresh()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        self.preview.begin()  # nobody reads a preview before the panel is shown
        # bands and tables need it, and importing it takes seconds: nobody is to wait for that at a click
        threading.Thread(target=import_module, args=("scipy.stats",), name="statistics", daemon=True).start()
        return self.box._repr_mimebundle_(**kwargs)

    @property
    def closed(self) -> bool:
        """Whether its widgets are gone (``Widget.close_all()``), so that it can be shown no more."""
        return self.box.comm is None

    def configure(self, tracking: str | None, max_points: int) -> None:
        """New settings: for the runs and curves from now on."""
        self.tracking, self.board.max_points = tracking, max_points
        with self._lock:
            self.pickers.choose()  # files may have come since
            self._on_pick()

    # --- verbs ------------------------------------------------------------------------------------------------

    @property
    def runs(self) -> list[ListedRun]:
        """The runs on the list, oldest first."""
        return list(self.session.runs)

    def search(self, query: str) -> list[Hit]:
        """Methods and tasks in which every word of ``query`` occurs, best first."""
        return find(query)

    def choose(self, method: str | None = None, task: str | None = None) -> None:
        """Choose a method, a task or both; the form starts from the preset, as after a choice by hand."""
        with self._lock:
            self.pickers.choose(method, task)
            self._on_pick()

    def preset(self, name: str) -> None:
        """Start the form from the method's example (``"quick"``) or from its paper's setting (``"paper"``: the declared defaults, where no
        such setting is kept). Its task is chosen, too, unless a person has chosen one.
        """
        if name not in presets.NAMES:
            raise unknown("preset", name, presets.NAMES)
        with self._lock:
            self.pickers.start_from(name)
            self._on_pick()
            self.forms.restart(name)

    def set(self, task_params: Mapping[str, Any] | None = None, **values: Any) -> None:
        """Set parameters of the method, of the task, ``seed``, ``seeds`` and ``device``. A refused value raises; then nothing has changed.

        A name that the method and the task share is the method's; ``task_params`` reaches the task's.
        """
        with self._lock:
            self.forms.set(task_params, **values)

    def reset(self) -> None:
        """Put the form back to what it started from."""
        with self._lock:
            self.forms.reset()

    def run(self) -> ListedRun:
        """Queue what is on the form, one run for each of its seeds; one run trains at a time. Returns the first of them.

        UserError for whatever is wrong with the form, and where all of these runs are on their way already.
        """
        with self._lock:
            requests = self.requests()
        return self.session.submit_all(requests)[0]

    def pause(self) -> None:
        """Pause the run that is training, at its next step."""
        self._with_current(ListedRun.pause)

    def resume(self) -> None:
        """Let it go on."""
        self._with_current(ListedRun.resume)

    def stop(self) -> None:
        """Stop the run that is training, at its next step; the next one in the queue starts."""
        self._with_current(ListedRun.stop)

    def stop_all(self) -> None:
        """Stop the run that is training and take the others off the queue."""
        self.session.stop_all()
        self.refresh()

    def rerun(self, run: ListedRun | int) -> ListedRun:
        """Repeat a run of the list, given as such or by its number, from its first step."""
        return self.session.rerun(self._listed(run))

    def load(self, run: Any) -> list[str]:
        """Put the parameters of a run into the form: one of the list (or its number), or a past one as :meth:`show` takes it.

        Returns what of it the form cannot hold, in sentences: parameters that are gone since, a device that is not here, a budget.
        UserError where its method or task is not here, and then nothing has changed.
        """
        spec = self._listed(run).spec if isinstance(run, ListedRun | int) else spec_of(self.past.folder(run))
        for what, name, known in (("method", spec.method, registry.methods()), ("task", spec.task, registry.tasks())):
            if name not in known:
                raise UserError(f"This run was made with the {what} {name!r}, which is not here, so there is no form for it. "
                                "It can be drawn beside the others all the same.")
        with self._lock:
            self.choose(spec.method, spec.task)
            if not self.forms:
                raise UserError(self._trouble)
            told = self.forms.take({"method": spec.params, "task": spec.task_params, "run": {"seed": spec.seed, **on_device(spec.device)}})
        if spec.budget:
            caps = ", ".join(f"{name} {cap:g}" for name, cap in spec.budget.items())
            told.append(f"It ended at a budget ({caps}), which no form holds: see workbench.run.")
        return told

    def duplicate(self, run: ListedRun | int) -> list[str]:
        """As :meth:`load`, with the first seed above its own that is not on the list."""
        spec = self._listed(run).spec
        told = self.load(run)
        twins = next(g for g in curves.repeated(self.runs) if any(r.spec is spec for r in g))
        taken = {r.spec.seed for r in twins}
        with self._lock:
            self.forms["run"].set(seed=next(s for s in range(spec.seed + 1, spec.seed + len(taken) + 2) if s not in taken))
        return told

    def show(self, run: Any) -> ListedRun:
        """Draw a past run beside the others: by the name of its folder or the beginning of it, or by the id or link of its MLflow run."""
        return self.session.show(self.past.folder(run), self.tracking)

    def request(self) -> Request:
        """What is on the form, as arguments of ``workbench.run`` (of its first seed); UserError when something on it is refused."""
        return self.requests()[0]

    def requests(self) -> list[Request]:
        """As :meth:`request`, one for each seed."""
        method, task = self.pickers.method.value, self.pickers.task.value
        if method is None or task is None:
            raise UserError("Choose a method and a task first.")
        if not self.forms:
            raise UserError(self._trouble)
        of_run = self.forms.of_run()
        first = Request(method, task, self.forms["method"].changes(), self.forms["task"].changes(), of_run.seed,
                        None if of_run.device == "auto" else of_run.device, self.tracking)
        return [replace(first, seed=seed) for seed in range(of_run.seed, of_run.seed + of_run.seeds)]

    def python(self) -> str:
        """The runs on the form as a Python script."""
        return snippets.python(self.requests())

    def cli(self) -> str:
        """The runs on the form as shell commands."""
        return snippets.cli(self.requests())

    def papermill(self) -> str:
        """The runs on the form as papermill calls of ``notebooks/run.ipynb``."""
        return snippets.papermill(self.requests())

    # --- view -------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Bring everything that depends on the runs up to date."""
        with self._lock:
            self.board.refresh()
            runs = self.runs
            named = curves.labels(runs)
            self.menu.update(runs, named)
            self.inside.update(runs, named)
            self.toolbar.update(runs, self.session.current, self._trouble)
            self.preview.look()

    def _press(self, verb: Callable[[], Any]) -> None:
        """A verb behind a button: its errors are written on the panel."""
        self._trouble = ""
        try:
            if isinstance(said := verb(), list) and said:  # what a form cannot hold of a run
                self._trouble = " ".join(said)
        except UserError as error:
            self._trouble = str(error)
        except Exception as error:  # a button has no cell to show a traceback in: without a word a click would seem lost
            log.exception("A button of the explorer failed.")
            self._trouble = f"{type(error).__name__}: {error} (a fault of ours; the log of the kernel says where)"
        self.refresh()

    def _pressed(self, verb: Callable[..., Any]) -> Callable[..., None]:
        return lambda *arguments: self._press(lambda: verb(*arguments))

    def _told(self, verb: Callable[[Any], Any], done: str) -> Callable[[Any], str]:
        """A verb behind a button with a line of its own, which says the trouble, too, or ``done``."""
        def press(run: Any) -> str:
            self._press(lambda: verb(run))
            if self._trouble:
                raise UserError(" ".join(self._trouble.split("\n")))
            return done

        return press

    def _toggle(self) -> None:
        current = self.session.current
        (self.resume if current is not None and current.status in ("paused", "pausing") else self.pause)()

    def _with_current(self, act: Callable[[ListedRun], None]) -> None:
        current = self.session.current
        if current is not None:
            act(current)
        self.refresh()

    def _listed(self, run: ListedRun | int) -> ListedRun:
        if isinstance(run, ListedRun):
            return run
        known = {r.number: r for r in self.runs}
        if run not in known:
            raise unknown("run number", str(run), map(str, known))
        return known[run]

    # --- form -------------------------------------------------------------------------------------------------

    def _on_pick(self) -> None:
        with self._lock:
            method, task, preset = self.pickers.method.value, self.pickers.task.value, self.pickers.preset
            self._trouble = self.forms.build(method, task, preset)
            chosen = registry.load_method(method) if "method" in self.forms else None
            labels = {name: p.label for name, p in presets.of_method(chosen).items()} if chosen else {name: name for name in presets.NAMES}
            self.toolbar.offer(labels, preset, presets.in_words(chosen, preset, task) if chosen else "")
            self._on_form()
            self.refresh()

    def _on_form(self) -> None:
        """Write the texts to copy and the cost; without a valid form there is nothing to copy and nothing to run."""
        try:
            requests, trouble = self.requests(), ""
        except UserError as error:
            requests, trouble = [], str(error)
        self.toolbar.run.disabled = not requests
        self.copies.update(requests, trouble)
        self.preview.ask(requests)
