"""The panel: pickers, form, buttons, board and copy-as put together, with the same verbs for a hand and for code."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as w

from tracking.errors import UserError, unknown
from workbench import registry
from workbench.explorer import snippets, theme
from workbench.explorer.board import Board, reason, status_word
from workbench.explorer.form import Form
from workbench.explorer.pickers import Pickers
from workbench.explorer.session import ListedRun, Request, Session
from workbench.params import Field, Params


def run_params() -> type[Params]:
    """What belongs to the run itself: seed and device, with the devices of this machine."""
    from typing import Literal

    import torch

    cuda = tuple(f"cuda:{n}" for n in range(torch.cuda.device_count()))
    devices = Literal[("auto", "cpu", *cuda)]

    class RunParams(Params):
        seed: int = Field(0, ge=0, description="same seed, same data order and initial weights, whatever the method")
        device: devices = Field("auto", description="auto takes CUDA where there is one")

    return RunParams


class Explorer:
    """The explorer. Display it as the last value of a cell; every button has a verb of the same name."""

    def __init__(self, session: Session | None = None, tracking: str | None = None, max_points: int = 2000) -> None:
        self.session = session or Session()
        self.tracking = tracking
        self._trouble = ""
        self._forms: dict[str, Form] = {}
        self.board = Board(self.session, max_points)
        self._lock = self.board.lock
        self.form_box = w.VBox()
        self._build_buttons()
        self.texts = {name: w.Textarea(layout=w.Layout(height="190px"), tooltip=f"this run as {name}; select all and copy")
                      for name in ("Python", "Command line", "Papermill")}
        copy_as = w.Tab(children=[*self.texts.values()], titles=[*self.texts])
        self.pickers = Pickers(self._on_pick)
        self._on_pick()
        head = w.VBox([self.pickers.box, self.buttons, self.status])
        head.add_class("wb-head")
        page = w.Box([self.form_box, w.VBox([self.board.box, w.HTML("<h4>Copy as</h4>"), copy_as])])
        page.add_class("wb-page")
        self.box = w.VBox([w.HTML(f"<style>{theme.CSS}</style>", layout=w.Layout(display="none")), head, page])
        self.box.add_class("wb")
        self.session.listen(self.refresh)
        self.refresh()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
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

    def choose(self, method: str | None = None, task: str | None = None) -> None:
        """Choose a method, a task or both; the form starts from the method's example, as after a choice by hand."""
        with self._lock:
            self.pickers.choose(method, task)
            self._on_pick()

    def set(self, task_params: Mapping[str, Any] | None = None, **values: Any) -> None:
        """Set parameters of the method, of the task, ``seed`` and ``device``. A refused value raises, and the form stays as it was.

        A name that the method and the task share is the method's; ``task_params`` reaches the task's.
        """
        given: dict[str, dict[str, Any]] = {"method": {}, "task": dict(task_params or {}), "run": {}}
        for name, value in values.items():
            part = next((p for p in ("method", "task", "run") if p in self._forms and name in self._forms[p].fields), None)
            if part is None:
                raise unknown("parameter", name, [n for form in self._forms.values() for n in form.fields])
            given[part][name] = value
        with self._lock:
            before = {part: form.values for part, form in self._forms.items()}
            try:
                for part, changes in given.items():
                    if changes:
                        self._forms[part].set(**changes)
            except UserError:
                for part, form in self._forms.items():
                    for name, value in before[part].items():
                        form.fields[name].set(value)
                    form.check()
                raise

    def reset(self) -> None:
        """Put the form back to what it started from."""
        with self._lock:
            for form in self._forms.values():
                form.reset()

    def run(self) -> ListedRun:
        """Queue what is on the form; one run trains at a time. UserError for whatever is wrong with it."""
        return self.session.submit(self.request())

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

    def request(self) -> Request:
        """What is on the form, as arguments of ``workbench.run``; UserError when something on it is refused."""
        method, task = self.pickers.method.value, self.pickers.task.value
        if method is None or task is None:
            raise UserError("Choose a method and a task first.")
        if "method" not in self._forms:
            raise UserError(self._trouble)
        of_run = self._forms["run"].check()
        if of_run is None:
            raise UserError("\n".join(self._forms["run"].errors.values()))
        return Request(method, task, self._forms["method"].changes(), self._forms["task"].changes(), of_run.seed,
                       None if of_run.device == "auto" else of_run.device, self.tracking)

    def python(self) -> str:
        """The run on the form as a Python script."""
        return snippets.python(self.request())

    def cli(self) -> str:
        """The run on the form as a shell command."""
        return snippets.cli(self.request())

    def papermill(self) -> str:
        """The run on the form as a papermill call of ``notebooks/run.ipynb``."""
        return snippets.papermill(self.request())

    # --- view -------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Bring everything that depends on the runs up to date."""
        with self._lock:
            self.board.refresh()
            current = self.session.current
            waiting = sum(r.status == "queued" for r in self.runs)
            held = current is not None and current.status in ("paused", "pausing")
            for button, off in ((self.pause_button, current is None or current.status in ("queued", "stopping")),
                                (self.stop_button, current is None or current.status == "stopping"),
                                (self.stop_all_button, waiting == 0)):
                if button.disabled != off:
                    button.disabled = off
            label, icon = ("Resume", "play") if held else ("Pause", "pause")
            if self.pause_button.description != label:
                self.pause_button.description, self.pause_button.icon = label, icon
            text = self._status_html(current, waiting)
            if text != self.status.value:
                self.status.value = text

    def _status_html(self, current: ListedRun | None, waiting: int) -> str:
        trouble = f'<div class="wb-bad" role="alert">{html.escape(self._trouble)}</div>' if self._trouble else ""
        if current is None:
            last = self.runs[-1] if self.runs else None
            line = f"{html.escape(last.name)} {_state(last)}" if last else "Nothing has run yet."
            return f'{trouble}<div role="status">{line}</div>'
        done, total = current.progress or (0, 0)
        bar = f'<progress max="{max(total, 1)}" value="{done}"></progress> {done}/{total}' if current.progress else ""
        queue = f", {waiting} queued" if waiting and current.status != "queued" else ""
        return f'{trouble}<div role="status">{html.escape(current.name)} {_state(current)} {bar}{queue}</div>'

    def _build_buttons(self) -> None:
        def button(text: str, icon: str, tip: str, verb: Callable[[], Any], style: str = "") -> w.Button:
            made = w.Button(description=text, icon=icon, tooltip=tip, button_style=style)
            made.on_click(lambda _: self._press(verb))
            return made

        self.run_button = button("Run", "play", "queue what is on the form", self.run, "primary")
        self.pause_button = button("Pause", "pause", "pause the run that is training, or let it go on", self._toggle)
        self.stop_button = button("Stop", "stop", "stop the run that is training", self.stop)
        self.stop_all_button = button("Stop all", "ban", "stop it and empty the queue", self.stop_all)
        self.reset_button = button("Reset", "undo", "put the form back to the method's example", self.reset)
        self.buttons = w.Box([self.run_button, self.pause_button, self.stop_button, self.stop_all_button, self.reset_button])
        self.buttons.add_class("wb-bar")
        self.status = w.HTML()
        self.status.add_class("wb-status")

    def _press(self, verb: Callable[[], Any]) -> None:
        """A verb behind a button: its errors are written on the panel."""
        self._trouble = ""
        try:
            verb()
        except UserError as error:
            self._trouble = str(error)
        self.refresh()

    def _toggle(self) -> None:
        current = self.session.current
        (self.resume if current is not None and current.status in ("paused", "pausing") else self.pause)()

    def _with_current(self, act: Callable[[ListedRun], None]) -> None:
        current = self.session.current
        if current is not None:
            act(current)
        self.refresh()

    # --- form -------------------------------------------------------------------------------------------------

    def _on_pick(self) -> None:
        """Build the forms of the chosen method and task; what was typed for a part that stays is kept."""
        method, task = self.pickers.method.value, self.pickers.task.value
        self._trouble = ""
        try:
            example = registry.load_method(method).example if method else {}
            self._keep("method", registry.load_method(method).Params if method else None, f"method {method!r}", example.get("params"))
            self._keep("task", registry.load_task(task).Params if task else None, f"task {task!r}",
                       example.get("task_params") if example.get("task") == task else None)
            if "run" not in self._forms:
                self._forms["run"] = Form(run_params(), "the run", None, self._on_form)
        except UserError as error:
            self._trouble = str(error)
        except Exception as error:  # a method's file of somebody who is just writing it
            self._trouble = f"{method} on {task} cannot be loaded: {type(error).__name__}: {error}"
        if self._trouble:
            self._forms = {}
        heads = {"method": "Method parameters", "task": "Task parameters", "run": "Run"}
        shown = [(heads[part], self._forms[part]) for part in heads if part in self._forms and self._forms[part].fields]
        self.form_box.children = [child for head, form in shown for child in (w.HTML(f"<h4>{head}</h4>"), form.box)]
        self._on_form()
        self.refresh()

    def _keep(self, part: str, model: type[Params] | None, owner: str, start: Mapping[str, Any] | None) -> None:
        """Have a form for ``model``, started from ``start`` unless it is there already."""
        there = self._forms.get(part)
        if model is None:
            self._forms.pop(part, None)
        elif there is None or (there.model, there.owner) != (model, owner):
            self._forms[part] = Form(model, owner, start, self._on_form)

    def _on_form(self) -> None:
        """Write the texts to copy; without a valid form there is nothing to copy and nothing to run."""
        try:
            request, trouble = self.request(), ""
        except UserError as error:
            request, trouble = None, str(error)
        self.run_button.disabled = request is None
        for name, make in (("Python", snippets.python), ("Command line", snippets.cli), ("Papermill", snippets.papermill)):
            self.texts[name].value = make(request) if request else f"The form has an error:\n{trouble}\n"


def _state(r: ListedRun) -> str:
    why = reason(r)
    return status_word(r) + (f": {why}" if why else "")
