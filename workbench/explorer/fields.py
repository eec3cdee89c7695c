"""One control for one declared parameter.

A number is typed into a text box, because a box with built-in limits changes what was typed without a word; the slider beside
it is a helper that writes into the box. What the box holds is judged by :func:`workbench.params.parse` alone.
"""

from __future__ import annotations

import ast
import html
import itertools
import json
import math
from collections.abc import Callable
from typing import Any, get_origin

import ipywidgets as w
from pydantic.fields import FieldInfo

from workbench.params import allowed, bounds, choices

DECADES = 10.0  # from this ratio between the ends of a range (or end and default) on a slider is logarithmic
STEPS = 100  # positions of a slider
SMALLEST = 1e-3  # of a slider whose range and default both begin at zero, or a millionth of the range where that is smaller
UNITS = {"s": "s", "ms": "ms", "j": "J", "bytes": "B", "bits": "bit", "bandwidth": "B/s", "hz": "Hz", "deg": "degrees"}
"""Units by the last word of a parameter's name, as the names of metrics have it."""


_numbers = itertools.count()


class Looks:
    """Makes widgets that share their layout, and those of a kind their style.

    Each of these is a model of its own that a page has to fetch, one by one where it is slow: a form has hundreds of them otherwise.
    """

    def __init__(self) -> None:
        self._layout = w.Layout()
        self._styles: dict[type, Any] = {}

    def make(self, kind: type[w.DOMWidget], *children: Any, **traits: Any) -> Any:
        """A widget of ``kind`` with the common looks; ``style`` counts for the first of a kind only."""
        if kind in self._styles:
            traits["style"] = self._styles[kind]
        made = kind(*children, layout=self._layout, **traits)
        if hasattr(made, "style"):
            self._styles.setdefault(kind, made.style)
        return made


class Field:
    """Label, control, slider where one helps, and a line that says what is allowed or what is wrong.

    ``changed`` is called after every change that a person makes. :meth:`get` returns the value as typed, valid or not.
    """

    def __init__(self, name: str, info: FieldInfo, value: Any, changed: Callable[[], None], looks: Looks | None = None) -> None:
        self.name, self.info, self._changed, self._quiet, self._place = name, info, changed, False, 0.0
        self._zero = False  # whether the left end of a logarithmic slider stands for zero
        self._make = (looks or Looks()).make
        self.control = self._build_control()
        self.slider = self._build_slider()
        self.note = self._make(w.HTML)
        self.note.add_class("wb-note")
        row = self._make(w.HBox, [self.control] if self.slider is None else [self.control, self.slider])
        self.box = self._make(w.VBox, [row, self.note])
        self.number = next(_numbers)
        self.box.add_class("wb-field")
        self.box.add_class(f"wb-number-{self.number}")  # by which a page says what was typed where
        self.set(value)
        self.control.observe(self._on_control, names="value")
        if self.slider is not None:
            self.slider.observe(self._on_slider, names="value")

    # --- value ------------------------------------------------------------------------------------------------

    def get(self) -> Any:
        """What the control holds: a number where the text is one, else the text."""
        if isinstance(self.control, w.Text):
            return from_text(self.control.value, self.info.annotation)
        return self.control.value

    def set(self, value: Any) -> None:
        """Show ``value`` without calling ``changed``."""
        self._quiet = True
        try:
            self.control.value = to_text(value) if isinstance(self.control, w.Text) else value
            self._move_slider()
        finally:
            self._quiet = False

    def typed(self, value: Any) -> None:
        """Take what a person has put into the control: a text, whether a box is checked, the position on a list."""
        if isinstance(self.control, w.Dropdown):
            self.control.index = value
        else:
            self.control.value = value

    def show(self, used: Any = None, error: str = "") -> None:
        """Write the line under the control: the error, or the value in use where it reads differently, and the description."""
        if error:
            self.note.value = f'<span class="wb-bad" role="alert">{html.escape(error)}</span>'
            return
        parts = [html.escape(self.info.description or "")]
        if isinstance(self.control, w.Text) and used is not None and to_text(used) != self.control.value.strip():
            parts.insert(0, f"<b>uses {html.escape(to_text(used))}</b>")
        limits = allowed(self.info).partition(", ")[2].replace("<=", "≤") if bounds(self.info) else ""
        if said := ", ".join(filter(None, (unit(self.name, self.info), limits))):
            parts.append(f"<i>({html.escape(said)})</i>")
        self.note.value = " ".join(filter(None, parts))

    # --- widgets ----------------------------------------------------------------------------------------------

    def _build_control(self) -> w.DOMWidget:
        tooltip = f"{self.info.description or self.name}. Allowed: {allowed(self.info)}"
        common = {"description": self.name, "tooltip": tooltip, "style": {"description_width": "initial"}}
        options = choices(self.info)
        if options is not None:
            return self._make(w.Dropdown, options=[(str(o), o) for o in options], **common)
        if self.info.annotation is bool:
            return self._make(w.Checkbox, indent=False, **common)
        return self._make(w.Text, continuous_update=False, **common)

    def _build_slider(self) -> w.DOMWidget | None:
        span = slider_span(self.info)
        if span is None:
            return None
        low, high, log = span
        self._zero = log and bounds(self.info).get("ge", 1) <= 0
        reach = f"{'0, then ' if self._zero else ''}{low:g} to {high:g}"
        # told where it is let go: else a page reports each place that the code moves it to, too, perhaps after the next value was typed
        common = {"readout": False, "description": f"{self.name}, slider", "tooltip": f"{self.name}: {reach}", "continuous_update": False,
                  "style": {"description_width": "0"}}
        if log:
            ends = math.log10(low), math.log10(high)
            slider = self._make(w.FloatLogSlider, value=low, min=ends[0], max=ends[1], step=(ends[1] - ends[0]) / STEPS, **common)
        else:
            slider = self._make(w.FloatSlider, value=low, min=low, max=high, step=(high - low) / STEPS, **common)
        slider.add_class("wb-slider")
        return slider

    def _move_slider(self) -> None:
        """Put the slider on the position nearest to the value. A browser snaps it there anyhow and would report that as a move."""
        value = self.get()
        if self.slider is None or isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return
        s, log = self.slider, isinstance(self.slider, w.FloatLogSlider)
        place = (math.log10(value) if value > 0 else s.min) if log else value
        place = min(max(s.min + round((place - s.min) / s.step) * s.step, s.min), s.max)
        self._place, s.value = place, min(max(10**place, 10**s.min), 10**s.max) if log else place

    def _on_control(self, _: Any) -> None:
        if not self._quiet:
            self._quiet = True
            try:
                self._move_slider()
            finally:
                self._quiet = False
            self._changed()

    def _on_slider(self, change: Any) -> None:
        value = change["new"]
        place = math.log10(value) if isinstance(self.slider, w.FloatLogSlider) else value
        if self._quiet or abs(place - self._place) < self.slider.step / 2:  # a browser's rounding is nobody's wish
            return
        self._place, self._quiet = place, True
        if self._zero and place < self.slider.min + self.slider.step / 2:
            value = 0.0
        try:
            self.control.value = to_text(round(value) if self.info.annotation is int else float(f"{value:.3g}"))
        finally:
            self._quiet = False
        self._changed()


def unit(name: str, info: FieldInfo) -> str:
    """Unit of a number: as declared (``json_schema_extra={"unit": ...}``), or as its name says (``latency_s``); else nothing."""
    declared = info.json_schema_extra.get("unit") if isinstance(info.json_schema_extra, dict) else None
    number = info.annotation in (int, float, float | None, int | None)
    return str(declared) if declared else UNITS.get(name.rpartition("_")[2], "") if number and "_" in name else ""


def slider_span(info: FieldInfo) -> tuple[float, float, bool] | None:
    """Ends of a helpful slider and whether it is logarithmic; ``None`` where a slider helps nobody.

    Open ends are one position inside. Without an upper bound a slider reaches two decades above the default, and a
    logarithmic one starts three decades below it where the bound is zero: typing reaches the rest. The left end of one stands for
    zero where that is allowed.
    """
    if info.annotation not in (int, float):
        return None
    limit, default = bounds(info), info.get_default(call_default_factory=True)
    low, high = limit.get("ge", limit.get("gt")), limit.get("le", limit.get("lt", math.inf))
    if low is None or isinstance(default, bool) or not isinstance(default, int | float):
        return None
    whole = info.annotation is int
    if low >= 0 and default > 0:
        least = low if low > 0 else (1 if whole else 10.0 ** (math.floor(math.log10(default)) - 3))
        most = min(high, 100.0 * default)
        if high == math.inf or high / max(least, default) >= DECADES or (low > 0 and high / low >= DECADES):
            return (float(least), float(most if high == math.inf else high), True) if high > least else None
    if high == math.inf or high <= low:
        return None
    if default == low == limit.get("ge") == 0 and (not whole or high > STEPS):
        # what matters is mostly far below a hundredth of the range (a weight decay, a number of samples)
        return 1.0 if whole else min(SMALLEST, 1e-6 * high), float(high), True
    if (whole and high - low > 2 * STEPS) or (not whole and default == low):
        return None
    step = 1 if whole else (high - low) / STEPS
    return low + step * ("gt" in limit), high - step * ("lt" in limit), False


def to_text(value: Any) -> str:
    """A value as a person types it: shortest number, ``10, 20`` for a tuple, empty for nothing."""
    if value is None:
        return ""
    if isinstance(value, list | tuple) and not any(isinstance(v, list | tuple) for v in value):
        return ", ".join(v if isinstance(v, str) else to_text(v) for v in value)
    if isinstance(value, list | tuple):
        return json.dumps(value)
    return value if isinstance(value, str) else repr(value)


def from_text(text: str, annotation: Any) -> Any:
    """Read what :func:`to_text` writes and what people type; text that is no value of the kind comes back as it is."""
    text = text.strip()
    if annotation is str:
        return text
    if annotation in (int, float):
        for number in (int, float):
            try:
                return number(text)
            except ValueError:
                continue
        return text
    if not text:
        return () if get_origin(annotation) is tuple else None
    for form in (text, f"[{text}]") if get_origin(annotation) is not tuple else (text if text[0] in "[(" else f"[{text}]",):
        try:
            return ast.literal_eval(form)
        except (ValueError, SyntaxError):
            continue
    if get_origin(annotation) is tuple:  # names without quotes
        return tuple(part.strip() for part in text.strip("[]()").split(",") if part.strip())
    return text
