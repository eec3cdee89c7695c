"""The buttons and the line that says how things stand."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as w

from tracking.errors import UserError
from workbench.explorer.board import reason, status_word
from workbench.explorer.listed import ListedRun
from workbench.explorer.presets import NAMES


class Toolbar:
    """Run, Pause, Stop, Stop all, Reset and the preset, and the status below. ``verbs`` has a function for each button."""

    def __init__(self, verbs: Mapping[str, Callable[[], Any]]) -> None:
        def button(name: str, icon: str, tip: str, style: str = "") -> w.Button:
            made = w.Button(description=name, icon=icon, tooltip=tip, button_style=style)
            made.on_click(lambda _: verbs[name]())
            return made

        self.run = button("Run", "play", "queue what is on the form", "primary")
        self.pause = button("Pause", "pause", "pause the run that is training, or let it go on")
        self.pause.add_class("wb-steady")  # Resume is longer: the buttons beside it stay where they are
        self.stop = button("Stop", "stop", "stop the run that is training; the next one in the queue starts")
        self.stop_all = button("Stop all", "ban", "stop it and empty the queue")
        self.reset = button("Reset", "undo", "put the form back to its preset")
        self.preset = w.Dropdown(options=[(name, name) for name in NAMES], description="Preset",
                                 tooltip="where the form starts: the method's example, which learns in seconds, or the paper's setting",
                                 style={"description_width": "initial"})
        self.start = w.HTML()
        self.start.add_class("wb-note")
        self.quiet = False
        """Whether the code is setting the preset."""
        self.bar = w.Box([self.run, self.pause, self.stop, self.stop_all, self.reset, self.preset])
        self.bar.add_class("wb-bar")
        self.status = w.HTML()
        self.status.add_class("wb-status")

    def offer(self, labels: Mapping[str, str], chosen: str, said: str) -> None:
        """Name the presets of a method, choose one, and say what it is."""
        options = [(label, name) for name, label in labels.items()]
        self.quiet = True
        try:
            if list(self.preset.options) != options:
                self.preset.options = options
            self.preset.value = chosen
        finally:
            self.quiet = False
        text = f'<div aria-live="polite">{html.escape(said)}</div>' if said else ""
        if self.start.value != text:
            self.start.value = text

    def update(self, runs: Sequence[ListedRun], current: ListedRun | None, trouble: str) -> None:
        """Bring buttons and status up to date; only what has changed is sent."""
        waiting = sum(r.status == "queued" for r in runs)
        held = current is not None and current.status in ("paused", "pausing")
        for button, off in ((self.pause, current is None or current.status in ("queued", "stopping")),
                            (self.stop, current is None or current.status == "stopping"), (self.stop_all, waiting == 0)):
            if button.disabled != off:
                button.disabled = off
        label, icon = ("Resume", "play") if held else ("Pause", "pause")
        if self.pause.description != label:
            self.pause.description, self.pause.icon = label, icon
        text = _status_html(runs, current, waiting, trouble)
        if text != self.status.value:
            self.status.value = text


def _status_html(runs: Sequence[ListedRun], current: ListedRun | None, waiting: int, trouble: str) -> str:
    loud = f'<div class="wb-bad" role="alert">{html.escape(trouble)}</div>' if trouble else ""
    if current is None:
        last = runs[-1] if runs else None
        line = f"{html.escape(last.name)} {_state(last)}" if last else "Nothing has run yet."
        return f'{loud}<div role="status">{line}</div>'
    done, total = current.progress or (0, 0)
    bar = (f'<progress max="{max(total, 1)}" value="{done}" aria-label="progress"></progress> {done}/{total}' if current.progress else "")
    queue = f", {waiting} queued" if waiting and current.status != "queued" else ""
    return f'{loud}<div role="status">{html.escape(current.name)} {_state(current)} {bar}{queue}</div>'


def _state(r: ListedRun) -> str:
    why = reason(r)
    return status_word(r) + (f": {why}" if why else "")


def stop_one(run: ListedRun) -> None:
    """Stop a run of the list, or take it off the queue. One that has ended raises UserError: else the click would seem lost."""
    if run.ended:
        raise UserError(f"{run.name} is {run.status} already.")
    run.stop()


class RunMenu:
    """A list of the session's runs and buttons that act on the one chosen. ``acts``: (label, icon, tooltip, function of the run)."""

    def __init__(self, acts: Sequence[tuple[str, str, str, Callable[[ListedRun], Any]]], name: str = "Run") -> None:
        self._runs: dict[int, ListedRun] = {}
        self.pick = w.Dropdown(options=[("no run yet", None)], description=name, tooltip="the run that the buttons beside act on",
                               style={"description_width": "initial"})
        self.buttons = {}
        for label, icon, tip, act in acts:
            made = self.buttons[label] = w.Button(description=label, icon=icon, tooltip=tip, disabled=True)
            made.on_click(lambda _, act=act: self.chosen is None or act(self.chosen))
        self.box = w.Box([self.pick, *self.buttons.values()])
        self.box.add_class("wb-bar")

    @property
    def chosen(self) -> ListedRun | None:
        return self._runs.get(self.pick.value)

    def update(self, runs: Sequence[ListedRun], named: Mapping[str, str]) -> None:
        """Offer the runs. The choice stays, but where it is the newest run it moves on to one that is newer still."""
        before, newest = self.pick.value, max(self._runs, default=None)
        self._runs = {r.number: r for r in runs}
        options = [(named[r.key], r.number) for r in runs] or [("no run yet", None)]
        if list(self.pick.options) != options:
            self.pick.options = options
            self.pick.value = before if before in self._runs and before != newest else max(self._runs, default=None)
        for button in self.buttons.values():
            if button.disabled != (not runs):
                button.disabled = not runs
