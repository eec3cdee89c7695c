"""A live figure that comes up on a slow page, too, and that threads and pages loaded again may meet at any time."""

from __future__ import annotations

import contextlib
from copy import deepcopy
from typing import Any

import plotly.graph_objects as go
import traitlets as t

DRAW = """
// plotly is megabytes of JavaScript. A module of anywidget's has two seconds to come up, or its widget never does, and a busy page (a slow
// machine, a notebook that is being opened) needs longer for that much. So this small one comes up, and fetches plotly when there is
// something to be drawn, in its own time and once a page.
const load = bundle => {
  const kept = (globalThis.workbenchModules ??= new Map());
  if (!kept.has(bundle)) {
    const url = URL.createObjectURL(new Blob([bundle], { type: "text/javascript" }));
    const loaded = import(url).finally(() => URL.revokeObjectURL(url));
    kept.set(bundle, loaded);
    loaded.catch(() => kept.delete(bundle));
  }
  return kept.get(bundle);
};

export default () => {
  let made;
  // what was changed meanwhile was told to nobody: the kernel, if there is one, says how the figure stands now
  const begin = async model => {
    const drawing = (await load(model.get("_bundle"))).default();
    return new Promise(resolve => {
      const start = () => {
        clearTimeout(alone);
        model.off("msg:custom", told);
        drawing.initialize({ model });
        resolve(drawing);
      };
      const told = said => said.begin && start();
      const alone = setTimeout(start, 5000);
      model.on("msg:custom", told);
      model.send({ begin: true });
    });
  };
  return {
    async render({ model, el }) {
      made ??= begin(model);
      try {
        return (await made).render({ model, el });
      } catch (error) {
        made = undefined;
        el.textContent = `The figure cannot be drawn: ${error}`;
        throw error;
      }
    },
  };
};
"""


class LiveFigure(go.FigureWidget):
    """A FigureWidget that a page can be loaded again with: plotly only tells new pages what the figure held when it was made.

    And one that may be drawn by a thread. While a message from a page is taken in, traits tell of no change; plotly says what is to be
    drawn by setting a trait and setting it back, which nobody would hear of then. So whoever draws holds ``lock``.
    """

    _bundle = t.Unicode(str(go.FigureWidget._esm)).tag(sync=True)
    _esm = DRAW
    lock: Any = contextlib.nullcontext()

    def set_state(self, sync_data: dict[str, Any]) -> None:
        with self.lock:
            super().set_state(sync_data)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.open()
        self.on_msg(self._on_begin)

    def open(self) -> None:
        """Tell the pages of it: once it is whole, because a page may be deaf to all that comes later (see :mod:`.front`)."""
        if hasattr(self, "_layout_obj"):
            super().open()

    def get_state(self, key: Any = None, drop_defaults: bool = False) -> dict[str, Any]:
        state = super().get_state(key, drop_defaults)
        if hasattr(self, "_layout_obj"):  # the figure is made
            with self.lock:  # or it is copied while it changes
                for name, now in (("_widget_data", self._data), ("_widget_layout", self._layout_obj._props)):
                    if key is None or name in state:
                        state[name] = self.trait_metadata(name, "to_json")(deepcopy(now), self)
        return state

    def _on_begin(self, _: Any, said: Any, __: Any) -> None:
        """A page begins to draw: it is told all, and of each change from here on."""
        if isinstance(said, dict) and said.get("begin"):
            with self.lock:
                self.send_state(["_widget_data", "_widget_layout"])
                self.send({"begin": True})
