"""What only the page itself can do: see that a figure's place has another size, keep keys, put a text on the clipboard."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import anywidget
import traitlets as t

FIT = """
export default {
  render({ model, el }) {
    // plotly measures a figure where it is made, which is before it has a place, and later only when the window changes:
    // a side bar that opens, a cell that is moved, or a page that is loaded again would leave it as wide as it was
    let width = 0;
    const told = () => window.dispatchEvent(new Event("resize"));
    const seen = new ResizeObserver(() => {
      const holder = el.closest(".wb-curves");
      const drawn = holder?.querySelector(".js-plotly-plot .main-svg");
      if (!holder || !holder.clientWidth) return;
      if (holder.clientWidth !== width || (drawn && Math.abs(drawn.clientWidth - holder.clientWidth) > 2)) {
        width = holder.clientWidth;
        requestAnimationFrame(told);
      }
    });
    // A page that is still asking for the widgets there are, while the panel is being made, is told of an empty figure at times; and a
    // model of anywidget's whose module took more than two seconds hears nothing of the kernel any more, the figure's as well as this
    // one's. So a widget of another kind says what there is to be drawn, and another figure is asked for where the one that is there
    // has something else and has not moved since the last look. Each has twice as long to come as the one before.
    const PATIENCE = 1500;
    let timer, patience = PATIENCE, before;
    const last = values => { const end = values?.[values.length - 1]; return Number.isFinite(end) ? end : 0; };
    const check = () => {
      const holder = el.closest(".wb-curves"), figure = holder?.querySelector(".js-plotly-plot");
      const wanted = holder?.querySelector(".wb-drawn")?.dataset;
      if (holder?.clientWidth && figure?.layout && wanted) {  // else it is on its way, or not shown
        const count = figure.data.length, ends = figure.data.reduce((sum, trace) => sum + (last(trace.x) + last(trace.y)), 0);
        const now = `${count} ${ends} ${figure.layout.uirevision}`;
        if (count === Number(wanted.traces) && ends === Number(wanted.ends) && figure.layout.uirevision !== undefined) {
          patience = PATIENCE;
        } else if (now === before) {
          patience *= 2;
          model.send({ redraw: true });
        }
        before = now;
      }
      soon();
    };
    const soon = () => { clearTimeout(timer); timer = setTimeout(check, patience); };
    soon();
    const begin = () => {
      const holder = el.closest(".wb-curves");
      if (holder) seen.observe(holder); else requestAnimationFrame(begin);
    };
    begin();
    // the handle of a slider is what the keyboard and a screen reader meet, and only its label beside it has a name
    const name = () => {
      for (const handle of document.querySelectorAll(".wb .wb-slider .noUi-handle:not([aria-label])")) {
        const label = handle.closest(".wb-slider").querySelector("label, .widget-label");
        if (label?.textContent) handle.setAttribute("aria-label", label.textContent);
      }
    };
    // in a notebook a bare key is a command (arrows go to another cell, dd deletes one) unless a text is being typed: here it is for the
    // list, the slider or the button that has the focus
    const keep = event => {
      const command = event.ctrlKey || event.metaKey || event.altKey || ["Tab", "Escape"].includes(event.key);
      if (!command && !(event.key === "Enter" && event.shiftKey)) event.stopPropagation();
    };
    // A press of Run could overtake what was typed before it, and the run would have other values than the form: a widget keeps its next
    // change back while the kernel is busy with the last one, and a kernel takes in the messages of widgets that were made at different
    // times on different threads. This widget and the button are made together, so what was typed is told by this one, too.
    const typed = ({ target }) => {
      const number = [...target.closest(".wb-field")?.classList ?? []].find(name => name.startsWith("wb-number-"));
      if (number && target.matches("input, select")) {
        const value = target.type === "checkbox" ? target.checked : target.matches("select") ? target.selectedIndex : target.value;
        model.send({ typed: value, number: Number(number.slice("wb-number-".length)) });
      }
    };
    const named = new MutationObserver(name);
    const watch = () => {
      const panel = el.closest(".wb");
      if (!panel) { requestAnimationFrame(watch); return; }
      name();
      panel.addEventListener("keydown", keep);
      panel.addEventListener("change", typed);
      named.observe(panel, { childList: true, subtree: true });
    };
    watch();
    return () => { seen.disconnect(); named.disconnect(); clearTimeout(timer); };
  },
};
"""

COPY = """
export default {
  render({ model, el }) {
    const button = document.createElement("button");
    button.className = "jupyter-widgets jupyter-button widget-button";
    button.textContent = "Copy";
    button.title = button.ariaLabel = "copy as " + model.get("name");
    const said = document.createElement("span");
    said.setAttribute("role", "status");
    button.onclick = async () => {
      // what is on the page, and not what the kernel tells this widget: after a slow start it hears nothing of it, and copied an old text
      const texts = [...el.closest(".wb").querySelectorAll(".wb-text textarea")];
      const text = texts.find(t => el.compareDocumentPosition(t) & Node.DOCUMENT_POSITION_FOLLOWING).value;
      let done = true;
      try {
        await navigator.clipboard.writeText(text);
      } catch {  // pages that come over plain http from another machine have no clipboard of their own
        const box = document.createElement("textarea");
        box.value = text;
        document.body.append(box);
        box.select();
        done = document.execCommand("copy");
        box.remove();
        button.focus();
      }
      said.textContent = done ? "Copied." : "The browser did not let it: select the text and copy it.";
      setTimeout(() => { said.textContent = ""; }, 2000);
    };
    el.classList.add("wb-copy");
    el.append(button, said);
  },
};
"""


class Fit(anywidget.AnyWidget):
    """Nothing to see: put beside a live figure, it has the figure fill its holder (class ``wb-curves``), whatever changes the size.

    It asks for another figure (message ``redraw``) where the page's has for seconds other traces than :func:`drawn` says, or no layout.
    In its panel (class ``wb``) it names the sliders for screen readers, keeps keys from being commands of the notebook, and sends each
    change of a field (class ``wb-number-<number>``) in a message ``{"typed": value, "number": number}``.
    """

    _esm = FIT


def drawn(traces: Iterable[Any]) -> str:
    """What a page's figure is to hold, as hidden HTML: the number of traces and the sum of their last coordinates, which a report moves."""
    held = [*traces]
    ends = 0.0
    for trace in held:
        ends += _last(trace.x) + _last(trace.y)
    return f'<span class="wb-drawn" data-traces="{len(held)}" data-ends="{ends!r}"></span>'


def _last(values: Any) -> float:
    end = float(values[-1]) if values is not None and len(values) else 0.0
    return end if math.isfinite(end) else 0.0


class CopyButton(anywidget.AnyWidget):
    """A button that puts the next text behind it (class ``wb-text``) in its panel on the clipboard; ``name`` says what the text is."""

    _esm = COPY
    name = t.Unicode().tag(sync=True)
