"""Where the modelled joules go: by level, pass and layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tracking.energy_model import hardware
from tracking.energy_model.passes import PASSES
from workbench.studies.energy.ratios import BATCH, estimate_of, vgg_small

if TYPE_CHECKING:
    import pandas
    from plotly.graph_objects import Figure


def by_level(methods: Sequence[str], hw: str, scenario: str = "as_trained") -> pandas.DataFrame:
    """Joules of an iteration by method, pass and level; the buffers nearest to the multipliers (L0A, L0B, L0C) are one level, L0."""
    import pandas

    frames = []
    for method in methods:
        e = estimate_of(method, hw, scenario)
        table = e.table().replace(
            {"level": {level.name: "L0" for level in e.hardware.levels if level.name.startswith("L0")}}
        )
        table = table.groupby(["pass", "level"], as_index=False)[f"energy_{e.unit.lower()}"].sum()
        frames.append(
            table.rename(columns=lambda c: "energy" if c.startswith("energy_") else c).assign(
                method=method, unit=e.unit
            )
        )
    found = pandas.concat(frames, ignore_index=True)
    found["share"] = found["energy"] / found.groupby("method")["energy"].transform("sum")
    found.attrs |= {"hardware": hw, "scenario": scenario}
    return found[["method", "pass", "level", "energy", "unit", "share"]]


def level_figure(found: pandas.DataFrame) -> Figure:
    """Stacked bars: a bar for each pass of each method, a piece for each level, in per cent of the method's own total."""
    import plotly.graph_objects as go

    from tracking.figures import layout, text
    from tracking.styles import style_of

    hw, scenario = found.attrs["hardware"], found.attrs["scenario"]
    totals = found.groupby(["method", "unit"], sort=False)["energy"].sum()
    levels = ["compute", *(n for n in dict.fromkeys(found["level"]) if n != "compute")]
    known = [level.name for level in hardware(hw).levels]
    levels.sort(key=lambda n: (n != "compute", known.index(n) if n in known else len(known)))
    styles = style_of(levels)
    bars = [(m, p) for m, _ in totals.index for p in PASSES if ((found["method"] == m) & (found["pass"] == p)).any()]
    names = [text(f"{m}: {p.replace('_', ' ')}") for m, p in bars]
    figure = go.Figure()
    for level in levels:
        share = found[found["level"] == level].set_index(["method", "pass"])["share"]
        figure.add_trace(
            go.Bar(
                x=[100 * float(share.get(bar, 0.0)) for bar in bars],
                y=names,
                orientation="h",
                name=level,
                marker={
                    "color": styles[level].colour,
                    "pattern": {
                        "shape": styles[level].hatch,
                        "bgcolor": styles[level].colour,
                        "fgcolor": "white",
                        "solidity": 0.2,
                    },
                },
                hovertemplate="%{y}, " + level + ": %{x:.3~g} %",
            )
        )
    sums = ", ".join(f"{m} {value:.3g} {unit}" for (m, unit), value in totals.items())
    caption = (
        f"Modelled energy of a training iteration of VGG-Small, batch {BATCH}, on {hw}, scenario {scenario}, by pass (bars) and memory "
        f"level or arithmetic (pieces), in per cent of each method's own total: {sums}."
    )
    figure.update_layout(
        layout("Where the joules go", f"100 % is: {sums}", caption, len(levels)),
        barmode="stack",
        height=140 + 34 * len(bars),
    )
    figure.update_legends(traceorder="normal")
    figure.update_xaxes(title_text="share of the method's own total [%]")
    figure.update_yaxes(autorange="reversed")
    return figure


def by_layer(methods: Sequence[str], hw: str, scenario: str = "as_trained") -> pandas.DataFrame:
    """A row for each product layer: its output, multiply-accumulates, and what each method spends on it in all passes [mJ, % of its total].

    Norms, activations and pooling are the last row.
    """
    import pandas

    products = [layer for layer in vgg_small() if layer.is_product]
    rows: dict[str, dict[str, Any]] = {
        layer.name: {
            "layer": f"{layer.kind} {number}",
            "output": " x ".join(map(str, layer.output[1:])),
            "MAC an image [M]": layer.macs / BATCH / 1e6,
        }
        for number, layer in enumerate(products, 1)
    }
    rows["rest"] = {"layer": "norms, activations, pooling", "output": "", "MAC an image [M]": 0.0}
    for method in methods:
        e = estimate_of(method, hw, scenario)
        spent = e.table().groupby("layer")["energy_j"].sum()
        for name, row in rows.items():
            joules = spent[~spent.index.isin(rows)].sum() if name == "rest" else spent[name]
            row |= {f"{method} [mJ]": 1000 * joules, f"{method} [%]": 100 * joules / e.total_j}
    return pandas.DataFrame(rows.values())
