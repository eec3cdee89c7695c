"""The benchmarks as one offline page: every row in a table, and the rows that belong to a curve as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas
import plotly.graph_objects as go

from tracking.figures import layout, text
from tracking.report import Picture, Table, report
from tracking.styles import style_of

Row = dict[str, Any]
COLUMNS = ("name", "ours", "peer", "unit", "ratio", "target", "met", "n", "skipped")


def on_curve(row: Row, figure: str, x: float, x_title: str, ours: str, peer: str = "") -> Row:
    """``row`` as a point of a figure: at ``x`` (title with unit), on the line ``ours`` and, where it has a peer, on ``peer``."""
    return row | {"curve": {"figure": figure, "x": x, "x_title": x_title, "ours": ours, "peer": peer}}


def write(path: Path, rows: list[Row], provenance: dict[str, Any]) -> Path:
    """Write the page to ``path``."""
    known = [column for column in COLUMNS if any(column in row for row in rows)]
    table = pandas.DataFrame([{column: row.get(column) for column in known} for row in rows])
    caption = "Ours and a peer measured in turn in one run; a ratio above 1 is in our favour unless its target says otherwise."
    curves = [("Curve: " + name, Picture(drawn)) for name, drawn in figures(rows).items()]
    return report(path, "Benchmarks", [("All rows", Table(table, caption)), *curves], provenance)


def figures(rows: list[Row]) -> dict[str, go.Figure]:
    """A figure for each curve, both axes logarithmic: what grows by factors is judged by slope."""
    drawn: dict[str, go.Figure] = {}
    for name in dict.fromkeys(row["curve"]["figure"] for row in rows if "curve" in row and "ours" in row):
        points = [row for row in rows if row.get("curve", {}).get("figure") == name and "ours" in row]
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in points:
            for side in ("ours", "peer"):
                if row["curve"][side] and row.get(side) is not None:
                    lines.setdefault(row["curve"][side], []).append((row["curve"]["x"], row[side]))
        styles, figure = style_of(lines), go.Figure()
        for line, values in lines.items():
            xs, ys = zip(*sorted(values), strict=True)
            style = styles[line]
            figure.add_scatter(x=xs, y=ys, name=text(line), mode="lines+markers", line={"color": style.colour, "dash": style.dash},
                               marker={"symbol": style.marker, "size": 9})
        unit, x_title = points[0]["unit"], points[0]["curve"]["x_title"]
        caption = f"{name}: {unit} against {x_title}, medians of the turns of each row."
        figure.update_layout(layout(name, "", caption, len(lines)))
        figure.update_xaxes(title=text(x_title), type="log")
        figure.update_yaxes(title=text(f"[{unit}]"), type="log")
        drawn[name] = figure
    return drawn
