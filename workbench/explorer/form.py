"""A form built from a parameter model alone: the declaration of a method or a task is the whole of its user interface."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as w

from tracking.errors import UserError, unknown
from workbench.explorer.fields import Field
from workbench.params import Params, parse


class Form:
    """Controls for the fields of ``model``, started from ``start`` (defaults where it says nothing).

    ``changed`` is called after every change. The typed values, not the widgets, are what is validated.
    """

    def __init__(self, model: type[Params], owner: str, start: Mapping[str, Any] | None, changed: Callable[[], None]) -> None:
        self.model, self.owner, self._changed = model, owner, changed
        self._start = parse(model, start, owner)
        self.fields = {name: Field(name, info, getattr(self._start, name), self._on_change)
                       for name, info in model.model_fields.items()}
        self.rule = w.HTML()
        self.grid = w.VBox([f.box for f in self.fields.values()])
        self.grid.add_class("wb-fields")
        self.box = w.VBox([self.grid, self.rule])
        self.errors: dict[str, str] = {}
        self.check()

    @property
    def values(self) -> dict[str, Any]:
        """What is on the form, valid or not."""
        return {name: field.get() for name, field in self.fields.items()}

    def set(self, **values: Any) -> None:
        """Set some values; :class:`UserError` for an unknown name or a refused value, and then nothing has changed."""
        if extra := [name for name in values if name not in self.fields]:
            raise unknown(f"parameter of {self.owner}", extra[0], self.fields)
        parsed = parse(self.model, {**self.values, **values}, self.owner)
        for name in values:
            self.fields[name].set(getattr(parsed, name))
        self._on_change()

    def reset(self) -> None:
        """Back to the values that the form started from."""
        for name, field in self.fields.items():
            field.set(getattr(self._start, name))
        self._on_change()

    def check(self) -> Params | None:
        """Validate, write each error beside its field, and return the parameters, or ``None`` when something is refused."""
        parsed, self.errors = None, {}
        try:
            parsed = parse(self.model, self.values, self.owner)
        except UserError as error:
            for line in str(error).splitlines():
                name, text = self._place(line)
                self.errors[name] = f"{self.errors[name]} {text}" if name in self.errors else text
        used = parsed.model_dump(mode="json") if parsed else {}
        for name, field in self.fields.items():
            field.show(used.get(name), self.errors.get(name, ""))
        rule = self.errors.get("", "")
        self.rule.value = f'<span class="wb-bad" role="alert">{html.escape(rule)}</span>' if rule else ""
        self.rule.layout.display = None if rule else "none"
        return parsed

    def changes(self) -> dict[str, Any]:
        """The values, as JSON, that differ from the defaults; :class:`UserError` when the form is not valid."""
        parsed = parse(self.model, self.values, self.owner)
        used = parsed.model_dump(mode="json")
        return {name: used[name] for name, info in self.model.model_fields.items()
                if info.is_required() or getattr(parsed, name) != info.get_default(call_default_factory=True)}

    def _on_change(self) -> None:
        self.check()
        self._changed()

    def _place(self, line: str) -> tuple[str, str]:
        """The field that an error line speaks of (empty: a rule over several fields) and the line without its owner."""
        text = line.removeprefix(f"{self.owner}: ")
        name = text.partition(" = ")[0].partition(".")[0]
        return (name if name in self.fields else ""), text
