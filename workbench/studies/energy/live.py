"""Two dropdowns that move the bars: hardware and scenario, for a reader in JupyterLab."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tracking.energy_model import SCENARIOS, hardware_ids
from tracking.errors import UserError, unknown
from workbench.studies.energy.ratios import METHODS, estimate_of

if TYPE_CHECKING:
    from ipywidgets import VBox


def totals(hardware: str, scenario: str) -> dict[str, float]:
    """Each method in per cent of FP32. Raises :class:`UserError` for unknown names."""
    found = {m: estimate_of(m, hardware, scenario).total for m in METHODS}
    return {m: 100 * value / found["FP32"] for m, value in found.items()}


def explore(hardware: str = "ascend_like", scenario: str = "as_trained") -> VBox | None:
    """Bars of all methods with a dropdown for the hardware and one for the scenario; ``None`` where nobody is there to move them.

    The returned box has ``hardware``, ``scenario`` and ``figure`` for use from code. Raises :class:`UserError` for unknown names and
    where the widgets are not installed.
    """
    from workbench.explorer.entry import in_batch

    for what, given, known in (("hardware", hardware, hardware_ids()), ("scenario", scenario, SCENARIOS)):
        if given not in known:
            raise unknown(what, given, known)
    if in_batch():
        print("The dropdowns need a person at a browser: run this cell in JupyterLab.")
        return None
    try:
        return _box(hardware, scenario)
    except ModuleNotFoundError as error:
        raise UserError(
            f"explore() needs {error.name}. Install the extra that people look at things with: "
            "pip install 'efficient-workbench[lab]'."
        ) from None


def _box(hardware: str, scenario: str) -> VBox:
    import anywidget  # noqa: F401  (plotly's live figure needs it and says so late)
    import ipywidgets as w

    from tracking.figures import layout
    from tracking.styles import style_of
    from workbench.explorer.board import LiveFigure

    styles = style_of(m.split(" ")[0] for m in METHODS)
    looks = [styles[m.split(" ")[0]] for m in METHODS]
    figure = LiveFigure(layout=layout("Energy of training by method", "", "", 0))
    figure.add_bar(
        x=list(METHODS),
        name="modelled",
        textposition="outside",
        cliponaxis=False,
        hoverinfo="skip",
        marker={
            "color": [s.colour for s in looks],
            "pattern": {
                "shape": [s.hatch for s in looks],
                "bgcolor": [s.colour for s in looks],
                "fgcolor": "white",
                "solidity": 0.2,
            },
        },
    )
    figure.update_yaxes(title_text="energy [% of FP32]", range=[0, 110])
    style = {"style": {"description_width": "initial"}, "layout": w.Layout(width="20rem")}
    box = w.VBox()
    box.hardware = w.Dropdown(options=hardware_ids(), value=hardware, description="Hardware", **style)
    box.scenario = w.Dropdown(options=list(SCENARIOS), value=scenario, description="Scenario", **style)
    box.figure, words = figure, w.HTML()

    def show(_: Any = None) -> None:
        found = totals(box.hardware.value, box.scenario.value)
        words.value = f"{SCENARIOS[box.scenario.value].description}. Modelled; VGG-Small, batch 100."
        with figure.batch_update():
            figure.data[0].y, figure.data[0].text = list(found.values()), [f"{v:.3g}" for v in found.values()]
            figure.layout.title.subtitle.text = f"{box.hardware.value}, {box.scenario.value}"

    for control in (box.hardware, box.scenario):
        control.observe(show, names="value")
    box.children = [w.HBox([box.hardware, box.scenario], layout=w.Layout(flex_flow="row wrap")), words, figure]
    show()
    return box
