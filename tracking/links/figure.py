"""Seconds of a message against its bytes, for several links: where latency ends to matter and bandwidth begins to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tracking.errors import UserError
from tracking.links.link import Direction, Link, check_direction
from tracking.styles import INK, Style, style_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def seconds_figure(links: Mapping[str, Link], direction: Direction = "up", sizes: Sequence[int] | None = None, *, title: str | None = None,
                   note: str = "", styles: Mapping[str, Style] | None = None) -> Figure:
    """Expected seconds against payload bytes, both on log axes; an open marker where each link turns from latency- to bandwidth-bound.

    ``sizes``: payloads in bytes, 1 B to 1 GB where left out. Raises UserError without links or without plotly.
    """
    try:
        import plotly.graph_objects as go

        from tracking.figures import layout, text
    except ImportError:
        raise UserError("seconds_figure: plotly is missing here. Install the extra: pip install 'efficient-workbench[lab]'.") from None
    check_direction(direction)
    if not links:
        raise UserError("seconds_figure: give at least one link.")
    x = sorted({int(s) for s in (np.geomspace(1, 1e9, 91).round() if sizes is None else sizes)})
    if len(x) < 2 or x[0] < 1:
        raise UserError("seconds_figure: sizes need two payloads of 1 B or more at least.")
    styles = styles or style_of(links)
    figure, crossings = go.Figure(), []
    for name, link in links.items():
        style, at = styles[name], link.crossing_bytes(direction)
        figure.add_trace(go.Scatter(x=x, y=[link.seconds(n, direction) for n in x], mode="lines", name=text(name), legendgroup=name,
                                    line={"color": style.colour, "dash": style.dash, "width": 2}, hovertemplate="%{x:.4~s}B: %{y:.4~g} s"))
        if x[0] <= at <= x[-1]:
            crossings.append(f"{name} {at:,.0f} B")
            figure.add_trace(go.Scatter(
                x=[at], y=[link.seconds(int(at), direction)], mode="markers", name=text(f"{name}: from latency- to bandwidth-bound"),
                legendgroup=name, showlegend=False, hovertemplate="%{x:.4~s}B: %{y:.4~g} s, twice the latency",
                marker={"color": style.colour, "symbol": f"{style.marker}-open", "size": 12, "line": {"width": 2}}))
        elif not math.isfinite(at) or at < x[0]:
            crossings.append(f"{name} nowhere" if at else f"{name} always bandwidth-bound")
    caption = (f"Modelled seconds of one message {direction} against its payload. Open marker: to its left latency takes the greater part "
               f"of the time, to its right bandwidth does ({'; '.join(crossings) or 'outside these sizes'}).")
    figure.update_layout(layout(title or f"seconds against bytes, {direction}", note, caption, len(links)))
    figure.update_xaxes(title_text="payload [B]", type="log", exponentformat="SI", color=INK)
    figure.update_yaxes(title_text="time [s]", type="log", exponentformat="power", color=INK)
    return figure
