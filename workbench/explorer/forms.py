"""The three forms of a run: parameters of the method, of the task, and of the run itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import ipywidgets as w

from tracking.errors import UserError, unknown
from workbench import registry
from workbench.explorer import presets
from workbench.explorer.form import Form
from workbench.params import Field, Params

HEADS = {"method": "Method parameters", "task": "Task parameters", "run": "Run"}


def run_params() -> type[Params]:
    """What belongs to the run itself: seeds and device, with the devices of this machine."""
    from typing import Literal

    import torch

    cuda = tuple(f"cuda:{n}" for n in range(torch.cuda.device_count()))
    devices = Literal[("auto", "cpu", *cuda)]

    class RunParams(Params):
        seed: int = Field(0, ge=0, description="same seed, same data order and initial weights, whatever the method")
        seeds: int = Field(1, ge=1, le=100, description="runs queued at once: with this seed and the next ones")
        device: devices = Field("auto", description="auto takes CUDA where there is one")

    return RunParams


def on_device(kind: str) -> dict[str, str]:
    """The device to choose for a run that was made on ``kind`` (cpu or cuda): nothing where that is what ``auto`` takes here."""
    import torch

    return {} if kind == ("cuda" if torch.cuda.is_available() else "cpu") else {"device": "cuda:0" if kind == "cuda" else kind}


class Forms(dict[str, Form]):
    """Forms by part (``method``, ``task``, ``run``); empty where the method or the task cannot be loaded. ``box`` shows them."""

    def __init__(self, changed: Callable[[], None], lock: AbstractContextManager[Any]) -> None:
        self._changed, self._lock = changed, lock
        self._chosen: tuple[str | None, str | None] = (None, None)
        self._heads = {part: w.HTML(f"<h4>{head}</h4>") for part, head in HEADS.items()}
        self.box = w.VBox()

    def build(self, method: str | None, task: str | None, preset: str) -> str:
        """Have the forms of a method and a task; what was typed for a part that stays is kept. Returns what went wrong, or nothing."""
        trouble, self._chosen, before = "", (method, task), [*self.values()]
        try:
            starts = self._starts(preset)
            self._keep("method", registry.load_method(method).Params if method else None, f"method {method!r}", starts["method"])
            self._keep("task", registry.load_task(task).Params if task else None, f"task {task!r}", starts["task"])
            if "run" not in self:
                self["run"] = Form(run_params(), "the run", None, self._changed, self._lock)
        except UserError as error:
            trouble = str(error)
        except Exception as error:  # a method's file of somebody who is just writing it
            trouble = f"{method} on {task} cannot be loaded: {type(error).__name__}: {error}"
        if trouble:
            self.clear()
        shown = [part for part in HEADS if part in self and self[part].fields]
        self.box.children = [child for part in shown for child in (self._heads[part], self[part].box)]
        for form in before:
            if form not in self.values():
                form.close()
        return trouble

    def restart(self, preset: str) -> None:
        """Start the forms of method and task from another preset."""
        for part, values in self._starts(preset).items():
            if part in self:
                self[part].start(values)

    def typed(self, number: int, value: Any) -> None:
        """What a person has put into the control of field ``number``, from a page; nothing where that field is gone."""
        with self._lock:
            for field in [field for form in self.values() for field in form.fields.values() if field.number == number]:
                field.typed(value)

    def reset(self) -> None:
        """Put all back to what they started from."""
        for form in self.values():
            form.reset()

    def set(self, task_params: Mapping[str, Any] | None = None, **values: Any) -> None:
        """Set values by name, wherever the name is; the method's comes first, and ``task_params`` are the task's."""
        given: dict[str, dict[str, Any]] = {"method": {}, "task": dict(task_params or {}), "run": {}}
        for name, value in values.items():
            part = next((p for p in HEADS if p in self and name in self[p].fields), None)
            if part is None:
                raise unknown("parameter", name, [n for form in self.values() for n in form.fields])
            given[part][name] = value
        self.fill(given)

    def fill(self, given: Mapping[str, Mapping[str, Any]]) -> None:
        """Set values by part; when one is refused, all stay as they were."""
        before = {part: form.values for part, form in self.items()}
        try:
            for part, changes in given.items():
                if changes:
                    self[part].set(**changes)
        except UserError:
            for part, form in self.items():
                for name, value in before[part].items():
                    form.fields[name].set(value)
                form.check()
            raise

    def take(self, given: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Have the values of an earlier run, by part, and defaults where it says nothing. Returns what does not fit, in sentences."""
        told = [sentence for part, values in given.items() for sentence in self[part].take(values)]
        return told + [error for form in self.values() for error in form.errors.values()]

    def of_run(self) -> Params:
        """Seeds and device; :class:`UserError` where they are refused."""
        checked = self["run"].check()
        if checked is None:
            raise UserError("\n".join(self["run"].errors.values()))
        return checked

    def _starts(self, preset: str) -> dict[str, Mapping[str, Any] | None]:
        """What the forms of method and task start from."""
        method, task = self._chosen
        if method is None:
            return {"method": None, "task": None}
        return presets.start(presets.of_method(registry.load_method(method))[preset], task)

    def _keep(self, part: str, model: type[Params] | None, owner: str, start: Mapping[str, Any] | None) -> None:
        """Have a form for ``model``, started from ``start`` unless it is there already."""
        there = self.get(part)
        if model is None:
            self.pop(part, None)
        elif there is None or (there.model, there.owner) != (model, owner):
            self[part] = Form(model, owner, start, self._changed, self._lock)
