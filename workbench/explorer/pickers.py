"""Choosing what to run: by search, or by family, method, and a task of a kind that the method runs on."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import ipywidgets as w

from tracking.errors import UserError
from workbench import registry
from workbench.explorer import search
from workbench.method import Method

ALL = "all families"
SHOWN = 12  # hits of a search
FIRST = "binaryconnect"  # chosen at first where it is there: it learns in seconds, with nothing but what is installed


class Pickers:
    """A search, three lists and what is said about the choice. ``changed`` is called after a person's choice of method or task."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed, self._quiet = changed, False
        self.preset = "quick"
        self._by_hand = False  # a task that a person chose stays when the method changes, if it can
        style = {"description_width": "56px"}
        self.family = w.Dropdown(description="Family", tooltip="field of the method", style=style)
        self.method = w.Dropdown(description="Method", tooltip="algorithm to train with", style=style)
        self.task = w.Dropdown(description="Task", tooltip="data set and model; only tasks that the method runs on", style=style)
        self.about = w.HTML()
        self.about.add_class("wb-about")
        self.query = w.Text(description="Search", placeholder="methods, tasks, papers: binary, federated, 2211.03741, digits …",
                            tooltip="words that occur in a method's or a task's name, description, family or paper", style=style)
        self.hits = w.Select(options=[], rows=2, description="Found", tooltip="choose with the arrow keys or by a click", style=style)
        self.found = w.HTML()
        self.found.add_class("wb-note")
        self._hits: list[search.Hit] = []
        grid = w.Box([self.family, self.method, self.task])
        grid.add_class("wb-grid")
        seek = w.VBox([self.query, self.hits, self.found])
        seek.add_class("wb-seek")
        self.box = w.VBox([seek, grid, self.about])
        self._show_hits()
        self.choose()
        self.query.observe(self._on_query, names="value")
        self.hits.observe(self._on_hit, names="index")
        self.family.observe(self._on_family, names="value")
        self.method.observe(self._on_method, names="value")
        self.task.observe(self._on_task, names="value")

    def choose(self, method: str | None = None, task: str | None = None) -> None:
        """Look again at what is installed, and set both without calling ``changed``.

        UserError for an unknown name, or a task of a kind that the method does not run on.
        """
        id = method or self.method.value
        entry = registry.method_entry(id) if id is not None else None
        if entry is not None and task is not None:
            kind = registry.task_entry(task).literals.get("kind", "classification")
            if kind not in kinds(entry):
                raise UserError(f"Method {entry.id!r} runs on tasks of kind {', '.join(kinds(entry))}; {task!r} is of kind {kind}. "
                                f"Take one of: {', '.join(tasks_of(entry)) or 'none is here'}.")
        self._quiet = True
        try:
            self._list_families(keep=entry is None or self.family.value == entry.family)
            self._list_methods()
            if entry is not None:
                self.method.value = entry.id
            self._list_tasks()
            if task is not None:
                self.task.value, self._by_hand = task, True
        finally:
            self._quiet = False

    def start_from(self, preset: str) -> None:
        """Take the task of another preset, unless a person has chosen one."""
        self.preset, self._quiet = preset, True
        try:
            self._list_tasks()
        finally:
            self._quiet = False

    def take(self, hit: search.Hit) -> None:
        """Choose what a search has found: a method, or a task, with a method that runs on it where the present one does not."""
        if hit.what == "method":
            self.choose(hit.id)
            return
        kind = registry.task_entry(hit.id).literals.get("kind", "classification")
        present = self.method.value
        method = present if present and kind in kinds(registry.method_entry(present)) else next(
            (e.id for e in registry.methods().values() if kind in kinds(e)), None)
        if method is None:
            raise UserError(f"No method here runs on tasks of kind {kind}.")
        self.choose(method, hit.id)

    def _show_hits(self) -> None:
        """List what the words in the box find; nothing where there are none."""
        words = self.query.value.strip()
        self._hits = search.find(words) if words else []
        self._quiet, before = True, self._quiet
        try:
            self.hits.options = [hit.label for hit in self._hits]
            self.hits.index = None
            self.hits.rows = max(2, min(len(self._hits), SHOWN))
        finally:
            self._quiet = before
        self.hits.layout.display = None if self._hits else "none"
        counts = [f"{n} {what}{'s' * (n != 1)}" for what in ("method", "task") if (n := sum(h.what == what for h in self._hits))]
        text = " and ".join(counts) + " found." if self._hits else f"Nothing found. {search.nearest(words)}" if words else ""
        self.found.value = f'<div aria-live="polite">{html.escape(text)}</div>' if text else ""

    def _on_query(self, _: Any) -> None:
        self._show_hits()

    def _on_hit(self, change: Any) -> None:
        if not self._quiet and change["new"] is not None:
            try:
                self.take(self._hits[change["new"]])
            except UserError as error:
                self.found.value = f'<span class="wb-bad" role="alert">{html.escape(str(error))}</span>'
                return
            self._changed()

    def _list_families(self, keep: bool) -> None:
        """All families; the one chosen stays if it is to be kept."""
        before = self.family.value if keep else ALL
        self.family.options = [ALL, *sorted({e.family for e in registry.methods().values() if e.family})]
        self.family.value = before if before in self.family.options else ALL

    def _list_methods(self) -> None:
        """Methods of the family; the one chosen stays when it is among them."""
        entries = {e.id: e for e in registry.methods().values() if self.family.value in (ALL, e.family)}
        before = self.method.value
        self.method.options = [(e.title if e.title == e.id else f"{e.title} ({e.id})", e.id) for e in entries.values()]
        self.method.value = next((id for id in (before, FIRST, *entries) if id in entries), None)

    def _list_tasks(self) -> None:
        """Tasks of the right kind; the preset's unless a person has chosen another one that the method runs on."""
        if self.method.value is None:
            self.task.options = []
            return
        entry, before = registry.method_entry(self.method.value), self.task.value if self._by_hand else None
        names = tasks_of(entry)
        self.task.options = names
        published = attribute(entry, "published").get("task") if self.preset == "paper" else None
        self.task.value = next((t for t in (before, published, attribute(entry, "example").get("task"), *names) if t in names), None)
        self._describe()

    def _describe(self) -> None:
        lines = []
        if self.method.value is not None:
            entry = registry.method_entry(self.method.value)
            link = (f' <a href="{html.escape(entry.paper_url)}" target="_blank" rel="noopener">{html.escape(entry.paper)}</a>'
                    if entry.paper_url else f" {html.escape(entry.paper)}")
            lines.append(f"<b>{html.escape(entry.title)}.</b> {html.escape(entry.summary)}{link}")
        if self.task.value is not None:
            entry = registry.task_entry(self.task.value)
            own = "" if entry.literals.get("embedded") else " Needs its data set: see <code>workbench data list</code>."
            lines.append(f"<b>{html.escape(self.task.value)}.</b> {html.escape(entry.summary or entry.title)}{own}")
        elif self.method.value is not None:
            lines.append('<span class="wb-bad">No task of a kind that this method runs on.</span>')
        else:
            lines.append('<span class="wb-bad">No method is installed.</span>')
        self.about.value = "<br>".join(lines)

    def _on_family(self, _: Any) -> None:
        if not self._quiet:
            before, self._quiet = self.method.value, True
            try:
                self._list_methods()
            finally:
                self._quiet = False
            if self.method.value != before:
                self._on_method(None)

    def _on_method(self, _: Any) -> None:
        if not self._quiet:
            self._quiet = True
            try:
                self._list_tasks()
            finally:
                self._quiet = False
            self._changed()

    def _on_task(self, _: Any) -> None:
        if not self._quiet:
            self._by_hand = True
            self._describe()
            self._changed()


def attribute(entry: registry.Entry, name: str) -> Any:
    """A class attribute of a method: from its file where it stands there, else from the imported class, which may inherit it."""
    if name in entry.literals:
        return entry.literals[name]
    try:
        return getattr(registry.load_method(entry.id), name)
    except Exception:  # a file that cannot be imported is reported where its form would be
        return getattr(Method, name)


def kinds(entry: registry.Entry) -> tuple[str, ...]:
    """The kinds of task that a method runs on."""
    return tuple(attribute(entry, "kinds"))


def tasks_of(entry: registry.Entry) -> list[str]:
    """Ids of the tasks that a method runs on."""
    mine = kinds(entry)
    return [name for name, task in registry.tasks().items() if task.literals.get("kind", "classification") in mine]
