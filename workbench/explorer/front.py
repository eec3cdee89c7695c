"""The two things that only the page itself can do: see that a figure's place has another size, and put a text on the clipboard."""

from __future__ import annotations

import anywidget
import traitlets as t

FIT = """
export default {
  render({ el }) {
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
    const begin = () => {
      const holder = el.closest(".wb-curves");
      if (holder) seen.observe(holder); else requestAnimationFrame(begin);
    };
    begin();
    return () => seen.disconnect();
  },
};
"""

COPY = """
export default {
  render({ model, el }) {
    const button = document.createElement("button");
    button.className = "jupyter-widgets jupyter-button widget-button";
    button.textContent = "Copy";
    const name = () => { button.title = button.ariaLabel = "copy as " + model.get("name"); };
    name();
    model.on("change:name", name);
    const said = document.createElement("span");
    said.setAttribute("role", "status");
    button.onclick = async () => {
      const text = model.get("text");
      try {
        await navigator.clipboard.writeText(text);
      } catch {  // pages that come over plain http from another machine have no clipboard of their own
        const box = document.createElement("textarea");
        box.value = text;
        document.body.append(box);
        box.select();
        document.execCommand("copy");
        box.remove();
        button.focus();
      }
      said.textContent = "Copied.";
      setTimeout(() => { said.textContent = ""; }, 2000);
    };
    el.classList.add("wb-copy");
    el.append(button, said);
  },
};
"""


class Fit(anywidget.AnyWidget):
    """Nothing to see: put beside a live figure, it has the figure fill its holder (class ``wb-curves``), whatever changes the size."""

    _esm = FIT


class CopyButton(anywidget.AnyWidget):
    """A button that puts ``text`` on the clipboard; ``name`` says what the text is."""

    _esm = COPY
    name = t.Unicode().tag(sync=True)
    text = t.Unicode().tag(sync=True)
