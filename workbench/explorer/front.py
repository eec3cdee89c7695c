"""What only the page itself can do: see that a figure's place has another size, keep keys, put a text on the clipboard."""

from __future__ import annotations

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
      soon();
    });
    // a page that is still asking for the widgets there are, while the panel is being made, is told of an empty figure at times;
    // each time that another figure is asked for, it has twice as long to come as the one before
    const PATIENCE = 3000;
    let timer, patience = PATIENCE;
    const check = () => {
      const holder = el.closest(".wb-curves"), figure = holder?.querySelector(".js-plotly-plot");
      if (!holder?.clientWidth) return;  // whoever shows it looks again
      if (!figure?.layout) { soon(); return; }  // on its way
      if (figure.data.length === model.get("traces") && figure.layout.uirevision !== undefined) { patience = PATIENCE; return; }
      patience *= 2;
      model.send({ redraw: true });
      soon();
    };
    const soon = () => { clearTimeout(timer); timer = setTimeout(check, patience); };
    model.on("change:traces", soon);
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
    const named = new MutationObserver(name);
    const watch = () => {
      const panel = el.closest(".wb");
      if (!panel) { requestAnimationFrame(watch); return; }
      name();
      panel.addEventListener("keydown", keep);
      named.observe(panel, { childList: true, subtree: true });
    };
    watch();
    return () => { seen.disconnect(); named.disconnect(); clearTimeout(timer); model.off("change:traces", soon); };
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
    """Nothing to see: put beside a live figure, it has the figure fill its holder (class ``wb-curves``), whatever changes the size.

    It asks for another figure (message ``redraw``) where the page's has other than ``traces`` traces for seconds, or no layout.
    In its panel (class ``wb``) it names the sliders for screen readers, and keeps keys from being commands of the notebook.
    """

    _esm = FIT
    traces = t.Int().tag(sync=True)


class CopyButton(anywidget.AnyWidget):
    """A button that puts ``text`` on the clipboard; ``name`` says what the text is."""

    _esm = COPY
    name = t.Unicode().tag(sync=True)
    text = t.Unicode().tag(sync=True)
