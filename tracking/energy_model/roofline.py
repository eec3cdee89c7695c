"""Roofline (Williams, Waterman & Patterson, CACM 2009): whether arithmetic or the outermost memory bounds each pass of each layer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tracking.energy_model.hardware import Hardware
from tracking.energy_model.passes import PASSES, Work, as_row
from tracking.energy_model.prices import is_float
from tracking.energy_model.product import bits
from tracking.errors import UserError

if TYPE_CHECKING:
    import pandas
    from plotly.graph_objects import Figure

    from tracking.energy_model.estimate import Estimate


def peak(hardware: Hardware, a: str, b: str) -> float:
    """Multiply-accumulates per second for factors of two formats: the rate of the narrowest unit that takes both.

    Raises :class:`UserError` for hardware that states no such rate.
    """
    rates = {m[1]: c.value for name, c in hardware.extras.items() if (m := re.fullmatch(r"(\w+)_macs_per_s", name))}
    wide = max(bits(a), bits(b))
    real = is_float(a) or is_float(b)
    fitting = [(bits(f), -rate) for f, rate in rates.items() if bits(f) >= wide and (is_float(f) or not real)]
    if not fitting:
        raise UserError(f"{hardware.id} states no peak rate for {a} x {b}. Known: {', '.join(sorted(rates)) or 'none'}. Add "
                        "<format>_macs_per_s to the extras of its file.")
    return -min(fitting)[1]


def bandwidth(hardware: Hardware) -> float:
    """Bytes per second of the outermost memory. Raises :class:`UserError` for hardware that does not state it."""
    if "dram_bytes_per_s" not in hardware.extras:
        raise UserError(f"{hardware.id} states no memory bandwidth. Add dram_bytes_per_s to the extras of its file.")
    return hardware.extras["dram_bytes_per_s"].value


def seconds(item: Work, hardware: Hardware) -> float:
    """Time of a piece of work if arithmetic and data movement overlap wholly: the longer of the two. A lower bound."""
    moving = item.moved_bits(hardware)[hardware.levels[0].name] / 8 / bandwidth(hardware)
    if item.cost is None:
        return moving
    return max(moving, item.macs / peak(hardware, *item.cost.product.multiplied))


def roofline(estimate: Estimate) -> pandas.DataFrame:
    """A row for each product of an estimate.

    Columns: ``layer kind pass``; ``macs``; ``dram_bytes``; ``intensity_mac_per_byte``; ``peak_mac_per_s``; ``attainable_mac_per_s``,
    the least of peak and intensity times bandwidth; ``time_s``; ``bound``: "compute" or "memory".
    """
    import pandas

    hardware, rows = estimate.hardware, []
    for item in estimate.works:
        if item.cost is None:
            continue
        moved = item.moved_bits(hardware)[hardware.levels[0].name] / 8
        top, time = peak(hardware, *item.cost.product.multiplied), seconds(item, hardware)
        rows.append(as_row(item) | {
            "macs": item.macs, "dram_bytes": moved, "intensity_mac_per_byte": item.macs / moved if moved else float("inf"),
            "peak_mac_per_s": top, "attainable_mac_per_s": item.macs / time, "time_s": time,
            "bound": "compute" if item.macs / top >= time else "memory"})
    if not rows:
        raise UserError("The estimate has no products: there is no roofline to draw.")
    frame = pandas.DataFrame(rows)
    frame.attrs |= {"hardware": hardware.id, "scenario": estimate.scenario.name, "plan": estimate.plan.name, "kind": "modelled"}
    return frame


def roofline_figure(estimate: Estimate) -> Figure:
    """Attainable rate of every product over its intensity, below the hardware's roofs; log scales."""
    import numpy as np
    import plotly.graph_objects as go

    from tracking.figures import layout, text
    from tracking.styles import INK, style_of

    frame = roofline(estimate)
    frame = frame[np.isfinite(frame.intensity_mac_per_byte)]
    wide = bandwidth(estimate.hardware)
    figure = go.Figure()
    styles = style_of(PASSES)
    for name, own in frame.groupby("pass", sort=False):
        figure.add_trace(go.Scatter(
            x=own.intensity_mac_per_byte, y=own.attainable_mac_per_s, mode="markers", name=name.replace("_", " "),
            text=own.layer.map(text),
            marker={"color": styles[name].colour, "symbol": styles[name].marker, "size": 10},
            hovertemplate="%{text}<br>%{x:.3~g} MAC/B, %{y:.3~s} MAC/s"))
    low = frame.intensity_mac_per_byte.min() / 2
    for top in sorted(frame.peak_mac_per_s.unique()):
        knee, high = top / wide, max(frame.intensity_mac_per_byte.max(), top / wide) * 2
        figure.add_trace(go.Scatter(x=[min(low, knee), knee, high], y=[min(low, knee) * wide, top, top], mode="lines", showlegend=False,
                                    line={"color": INK, "width": 1.5}, hovertemplate=f"roof of {top:.3g} MAC/s"))
    caption = (f"Modelled: each point is a product of one pass of one layer, under the roofs of {estimate.hardware.id} (outermost memory "
               f"{wide:.3g} B/s). Plan {estimate.plan.name}, scenario {estimate.scenario.name}.")
    figure.update_layout(layout(f"Roofline of {estimate.hardware.id}", f"plan {estimate.plan.name}, scenario {estimate.scenario.name}",
                                 caption, len(figure.data)))
    figure.update_xaxes(title_text="arithmetic intensity at the outermost memory [MAC/B]", type="log", exponentformat="power", dtick="D2")
    figure.update_yaxes(title_text="attainable rate [MAC/s]", type="log", exponentformat="power", dtick="D2")
    return figure
