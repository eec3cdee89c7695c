"""Perplexity against total bits a weight, and matrices as pictures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tracking.figures import layout, style_of, text
from tracking.metrics import metric
from tracking.styles import INK
from workbench.studies.reallm.settings import METHODS, REFERENCE

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects as go
    from torch import Tensor

    from workbench.comparison import Comparison

BITS, LOSS = "memory/bits_per_weight", "eval/loss"
WORST = math.exp(20)
"""Perplexities above are drawn at the edge: a uniform guess among 49,152 tokens has that vocabulary's size, e^10.8."""
PIXELS = 192
"""Rows and columns of a matrix that are drawn, at most."""


def results(comparison: Comparison) -> pandas.DataFrame:
    """A row a setting: method, width of the codes, code and total bits a weight, loss and perplexity, relative error of the last matrix.

    Perplexity is that of the mean loss over seeds. ``front``: no other setting has both fewer bits and less loss.
    """
    import pandas

    names = {method: name for name, method in METHODS.items()} | {REFERENCE: "uncompressed"}
    rows = []
    for g in comparison.groups:
        loss, bits = g.mean(LOSS), g.mean(BITS)
        rows.append({"method": names.get(g.method, g.method), "bits": g.facts["bits"] if g.method != REFERENCE else None,
                     "code bits": g.mean("memory/code_bits_per_weight").mean, "total bits": bits.mean, "loss [nats]": loss.mean,
                     "loss ±": loss.half_width, "perplexity": math.exp(min(loss.mean, 700.0)), "n": loss.n,
                     "seconds": g.mean("clock/wall_s").mean})
    table = pandas.DataFrame(rows)
    finite = table.dropna(subset=["total bits", "loss [nats]"])
    table["front"] = [_on_front(row, finite) for _, row in table.iterrows()]
    return table.sort_values(["total bits", "loss [nats]"], kind="stable").reset_index(drop=True)


def _on_front(row: Any, others: pandas.DataFrame) -> bool:
    bits, loss = row["total bits"], row["loss [nats]"]
    return not (((others["total bits"] <= bits) & (others["loss [nats]"] <= loss)
                 & ((others["total bits"] < bits) | (others["loss [nats]"] < loss))).any() or math.isnan(loss))


def pareto_figure(table: pandas.DataFrame, title: str, note: str = "") -> go.Figure:
    """Perplexity (log scale) over total bits a weight: a line a method through its widths, the model as it is as a level."""
    import plotly.graph_objects as go

    methods = [m for m in dict.fromkeys([*METHODS, *table["method"]]) if m in set(table["method"]) and m != "uncompressed"]
    styles, figure = style_of(methods), go.Figure()
    for name in methods:
        part = table[table["method"] == name].sort_values("total bits")
        low, high = (np.exp(np.minimum(part["loss [nats]"] + sign * part["loss ±"].fillna(0), 20)) for sign in (-1, 1))
        y = part["perplexity"].clip(upper=WORST)
        figure.add_trace(go.Scatter(
            x=part["total bits"], y=y, mode="lines+markers", name=text(name),
            line={"color": styles[name].colour, "dash": styles[name].dash},
            marker={"symbol": styles[name].marker, "size": 9}, text=[f"{name}, {b} bits" for b in part["bits"]],
            error_y={"type": "data", "array": np.maximum(high - y, 0), "arrayminus": np.maximum(y - low, 0), "thickness": 1},
            hovertemplate="%{text}: %{x:.2f} bits a weight, perplexity %{y:.4~g}"))
    reference = table[table["method"] == "uncompressed"]["perplexity"]
    if len(reference):
        ends = [float(f(table.loc[table["method"] != "uncompressed", "total bits"])) for f in (min, max)]
        figure.add_trace(go.Scatter(x=ends, y=[float(reference.iloc[0])] * 2, mode="lines", name="uncompressed, 16 bits",
                                    line={"color": INK, "dash": "dot"}, hovertemplate="uncompressed: %{y:.4~g}"))
    caption = (f"{metric('eval/perplexity').description.capitalize()} against all bits stored for the compressed matrices, over their "
               "weights. A line joins the widths of a method; bars: 95 % interval of the mean loss over seeds."
               + (f" Values above {WORST:.1e} are drawn there." if (table["perplexity"] > WORST).any() else ""))
    figure.update_layout(layout(title, note, caption, len(figure.data)))
    figure.update_xaxes(title_text="total bits a weight [bit]")
    figure.update_yaxes(title_text="perplexity", type="log", exponentformat="power")
    return figure


def heat_maps(pictures: dict[str, Tensor], title: str, note: str = "") -> go.Figure:
    """Matrices side by side from their upper left corner, up to ``PIXELS`` each way, on one diverging scale cut at three deviations."""
    from plotly import graph_objects as go
    from plotly.subplots import make_subplots

    parts = {name: matrix[:PIXELS, :PIXELS].float().numpy() for name, matrix in pictures.items()}
    figure = make_subplots(rows=1, cols=len(parts), subplot_titles=[text(n) for n in parts], horizontal_spacing=0.04)
    limit = 3 * max(float(part.std()) for part in parts.values())
    for column, (name, part) in enumerate(parts.items(), 1):
        figure.add_trace(go.Heatmap(z=np.round(part / limit * 3, 2), zmin=-3, zmax=3, colorscale="RdBu", name=text(name),
                                    showscale=column == 1, colorbar={"title": {"text": "deviations"}},
                                    hovertemplate="row %{y}, column %{x}: %{z}"), 1, column)
    caption = (f"Weights in standard deviations, blue positive, red negative, of the first {PIXELS} rows and columns at most: "
               f"{', '.join(parts)}.")
    figure.update_layout(layout(title, note, caption, 0))
    figure.update_yaxes(autorange="reversed", showticklabels=False)
    return figure
