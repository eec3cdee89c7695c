"""A form built from a parameter model alone: the declaration of a method or a task is the whole of its user interface."""

from __future__ import annotations

import html
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import ipywidgets as w
from traitlets import TraitError

from tracking.errors import UserError, unknown
from workbench.explorer.fields import Field, Looks, to_text
from workbench.params import Params, parse

ESSENTIAL = {"epochs", "steps", "rounds", "horizon", "lr", "batch_size", "seed", "seeds", "train_size"}
"""What nearly everybody changes, whatever the method."""
FEW = 9  # fields up to here are all basic: nothing is gained by hiding three of them


def basic_fields(model: type[Params], start: Collection[str] = ()) -> list[str]:
    """Fields that are shown at once, in the order of their declaration; the others wait behind a button.

    Declared so (``json_schema_extra={"advanced": False}``), set by what the form starts from, essential, or new in this very class: what
    a method adds to its family is what it is about.
    """
    fields = model.model_fields
    if len(fields) <= FEW:
        return list(fields)
    inherited = set().union(*(getattr(base, "model_fields", {}) for base in model.__mro__[1:]))

    def is_basic(name: str) -> bool:
        extra = fields[name].json_schema_extra
        if isinstance(extra, dict) and "advanced" in extra:
            return not extra["advanced"]
        return name in start or name in ESSENTIAL or name not in inherited

    return [name for name in fields if is_basic(name)]


def close_all(*widgets: w.Widget) -> None:
    """Close widgets with all that they hold, their layouts and styles included."""
    for widget in widgets:
        close_all(*getattr(widget, "children", ()))
        for part in (getattr(widget, "layout", None), getattr(widget, "style", None), widget):
            if part is not None:
                part.close()


class Form:
    """Controls for the fields of ``model``, started from ``start`` (defaults where it says nothing).

    ``changed`` is called after every change, with ``lock`` held. The typed values, not the widgets, are what is validated.
    """

    def __init__(self, model: type[Params], owner: str, start: Mapping[str, Any] | None, changed: Callable[[], None],
                 lock: AbstractContextManager[Any] | None = None) -> None:
        self.model, self.owner, self._changed, self._lock = model, owner, changed, lock or nullcontext()
        self._start = parse(model, start, owner)
        looks = Looks()
        self.fields = {name: Field(name, info, getattr(self._start, name), self._on_change, looks)
                       for name, info in model.model_fields.items()}
        self.basic = basic_fields(model, start or ())
        self.rule = w.HTML()
        self.grid = w.VBox([self.fields[name].box for name in self.basic])
        self.more = w.VBox([f.box for name, f in self.fields.items() if name not in self.basic], layout=w.Layout(display="none"))
        for grid in (self.grid, self.more):
            grid.add_class("wb-fields")
        self.advanced = w.ToggleButton(tooltip="show or hide the other parameters", icon="angle-right")
        self.advanced.add_class("wb-more-button")
        self.advanced.observe(self._on_advanced, names="value")
        hidden = [self.advanced, self.more] if self.more.children else []
        self.box = w.VBox([self.grid, *hidden, self.rule])
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

    def start(self, values: Mapping[str, Any] | None) -> None:
        """Start anew from ``values`` (defaults where it says nothing); :meth:`reset` comes back to them."""
        self._start = parse(self.model, values, self.owner)
        self.reset()

    def take(self, values: Mapping[str, Any]) -> list[str]:
        """Show the values of an earlier run, defaults where it says nothing, and return in sentences what the form cannot hold.

        A value that is refused by now is shown all the same, with the error beside it.
        """
        told = [f"{self.owner[:1].upper()}{self.owner[1:]} has no parameter {name!r} any more, which was {to_text(value)}."
                for name, value in values.items() if name not in self.fields]
        for name, field in self.fields.items():
            default = getattr(self._start, name) if field.info.is_required() else field.info.get_default(call_default_factory=True)
            try:
                field.set(values.get(name, default))
            except TraitError:
                field.set(default)
                told.append(f"{name} was {to_text(values[name])}, which cannot be chosen here; on the form it is {to_text(default)}.")
        self._on_change()
        return told

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
        self._tell_advanced(parsed)
        return parsed

    def changes(self) -> dict[str, Any]:
        """The values, as JSON, that differ from the defaults; :class:`UserError` when the form is not valid."""
        parsed = parse(self.model, self.values, self.owner)
        used = parsed.model_dump(mode="json")
        return {name: used[name] for name, info in self.model.model_fields.items()
                if info.is_required() or getattr(parsed, name) != info.get_default(call_default_factory=True)}

    def close(self) -> None:
        """Let its widgets go: a kernel remembers every one that is not closed, and every page that is loaded again fetches it."""
        close_all(self.box, self.advanced, self.more)

    def _tell_advanced(self, parsed: Params | None) -> None:
        """Say how many fields wait behind the button and how many of them were changed; open it where one of them is refused."""
        hidden = [name for name in self.fields if name not in self.basic]
        if any(name in self.errors for name in hidden):
            self.advanced.value = True
        fields = self.model.model_fields
        changed = [n for n in hidden if parsed and getattr(parsed, n) != fields[n].get_default(call_default_factory=True)]
        text = f"Advanced ({len(hidden)}" + (f", {len(changed)} not at the default)" if changed else ")")
        if self.advanced.description != text:
            self.advanced.description = text

    def _on_advanced(self, change: Any) -> None:
        self.more.layout.display = None if change["new"] else "none"
        self.advanced.icon = "angle-down" if change["new"] else "angle-right"

    def _on_change(self) -> None:
        with self._lock:  # messages of pages are taken in on several threads, and the last one to look is to be the last one to write
            self.check()
            self._changed()

    def _place(self, line: str) -> tuple[str, str]:
        """The field that an error line speaks of (empty: a rule over several fields) and the line without its owner."""
        text = line.removeprefix(f"{self.owner}: ")
        name = text.partition(" = ")[0].partition(".")[0]
        return (name if name in self.fields else ""), text
