"""What stands beside the form, one pane at a time: each is chosen with a button, so that the keyboard alone is enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as w

from workbench.explorer import snippets
from workbench.explorer.front import CopyButton
from workbench.explorer.inside import Inside as Inside
from workbench.explorer.listed import Request
from workbench.explorer.past import Past as Past
from workbench.explorer.side_by_side import SideBySide as SideBySide


class Panes:
    """Named panes, each with a ``box``; one that has an ``open()`` is told when it is shown."""

    def __init__(self, panes: Mapping[str, Any]) -> None:
        self._panes = dict(panes)
        self.choice = w.ToggleButtons(options=[*panes], tooltips=[f"show: {name}" for name in panes])
        self.choice.add_class("wb-panes")
        for name, pane in panes.items():
            pane.box.layout.display = None if name == self.choice.value else "none"
        self.box = w.VBox([self.choice, *(pane.box for pane in panes.values())])
        self.choice.observe(self._on_choice, names="value")

    def _on_choice(self, change: Any) -> None:
        for name, pane in self._panes.items():
            display = None if name == change["new"] else "none"
            if pane.box.layout.display != display:
                pane.box.layout.display = display
        if hasattr(shown := self._panes[change["new"]], "open"):
            shown.open()


class CopyAs:
    """The form as text, in three languages."""

    def __init__(self) -> None:
        self.texts = {name: w.Textarea(layout=w.Layout(height="150px"), description=name, tooltip=f"this run as {name}")
                      for name in ("Python", "Command line", "Papermill")}
        for text in self.texts.values():
            text.add_class("wb-text")
        self.buttons = {name: CopyButton(name=name) for name in self.texts}
        heads = {name: w.Box([w.HTML(f"<h4>{name}</h4>"), button]) for name, button in self.buttons.items()}
        for head in heads.values():
            head.add_class("wb-bar")
        self.box = w.VBox([child for name, text in self.texts.items() for child in (heads[name], text)])

    def update(self, requests: Sequence[Request], trouble: str) -> None:
        """Write the texts, or what is wrong with the form."""
        for name, make in (("Python", snippets.python), ("Command line", snippets.cli), ("Papermill", snippets.papermill)):
            self.texts[name].value = make(requests) if requests else f"The form has an error:\n{trouble}\n"
