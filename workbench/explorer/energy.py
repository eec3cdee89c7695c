"""Modelled joules on the board: for which hardware and in which scenario, changed while a run goes or after it, without training anew."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Sequence

import ipywidgets as w

from tracking.energy_model import SCENARIOS
from workbench.explorer.listed import ListedRun
from workbench.modelled import METRIC, Choice, estimate_folder, joule_hardware


class EnergyPicker:
    """Two lists and what is said about the choice; hidden unless modelled joules are on an axis.

    A first estimate for some hardware takes up to a second for a large network, so a thread makes it and then calls ``changed``.
    Until then the board shows what it showed before; ``model`` is what it shows.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self.model = Choice()
        self._known: dict[tuple[str, Choice], float | str] = {}  # joules per sample, or why there are none
        self._worker: threading.Thread | None = None
        short = {"style": {"description_width": "initial"}}
        self.hardware = w.Dropdown(options=joule_hardware(), value=self.model.hardware, description="hardware",
                                   tooltip="hardware that energy/model_j is modelled for; nothing is trained again", **short)
        self.scenario = w.Dropdown(options=list(SCENARIOS), value=self.model.scenario, description="scenario",
                                   tooltip="assumptions that energy/model_j is modelled under; nothing is trained again", **short)
        self.note = w.HTML()
        self.note.add_class("wb-note")
        bar = w.Box([self.hardware, self.scenario])
        bar.add_class("wb-bar")
        self.box = w.VBox([bar, self.note], layout=w.Layout(display="none"))
        for control in (self.hardware, self.scenario):
            control.observe(lambda _: changed(), names="value")

    @property
    def wanted(self) -> Choice:
        """What the lists say."""
        return Choice(self.hardware.value, self.scenario.value)

    def update(self, runs: Sequence[ListedRun], *, shown: bool) -> None:
        """Bring ``model``, the lists and the note up to date. ``shown``: whether modelled joules are on an axis."""
        having = [r for r in runs if _reported(r)]
        display = None if having and shown else "none"
        if self.box.layout.display != display:
            self.box.layout.display = display
        wanted = self.wanted
        missing = [r for r in having if wanted != Choice() and (r.key, wanted) not in self._known]
        if not missing:
            self.model = wanted
        elif self._worker is None:
            self._worker = threading.Thread(target=self._estimate, args=(missing, wanted), name="workbench explorer energy", daemon=True)
            self._worker.start()
        text = self._text(having, wanted, bool(missing))
        if text != self.note.value:
            self.note.value = text

    def factor(self, r: ListedRun) -> float | None:
        """What the joules that a run reported are multiplied with; ``None`` where that is not known."""
        if self.model == Choice():
            return 1.0
        per_sample, row = self._known.get((r.key, self.model)), _reported(r)
        if row is None or not isinstance(per_sample, float):
            return None
        return per_sample * row["train/samples"] / row[METRIC] if row[METRIC] else 1.0

    def _estimate(self, runs: Sequence[ListedRun], model: Choice) -> None:
        for r in runs:
            try:
                self._known[r.key, model] = estimate_folder(r.folder, *model).per_sample_j
            except Exception as error:  # a folder that was deleted or damaged meanwhile costs its own curve alone
                self._known[r.key, model] = str(error) or type(error).__name__
        self._worker = None
        self._changed()

    def _text(self, having: Sequence[ListedRun], wanted: Choice, working: bool) -> str:
        lines = [f"{wanted.hardware}: {wanted.description}."]
        if working:
            lines.append("Being worked out …")
        for r in having:
            if isinstance(why := self._known.get((r.key, wanted)), str):
                lines.append(f"Run {r.number} has no estimate: {why}")
        return f'<div aria-live="polite">{html.escape(" ".join(lines))}</div>'


def _reported(r: ListedRun) -> dict[str, float] | None:
    """The last report with modelled joules."""
    return r.rows.last_with(METRIC)
