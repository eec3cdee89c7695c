"""How uneven a partition is, as numbers for tables and as a figure of who holds what."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from workbench.federation.partition import Partition, checked_labels

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from plotly.graph_objects import Figure


class LabelDivergence(NamedTuple):
    """Total variation distance, 0 to 1, of each client's label law from that of the whole data set."""

    mean: float
    """Over clients, each counting once."""
    max: float
    per_client: np.ndarray
    """float64 (n,)."""


def label_divergence(partition: Partition, labels: ArrayLike) -> LabelDivergence:
    """Of clients' label laws from that of all ``labels``: half the sum over classes of the differences of shares."""
    counts = partition.class_counts(labels)
    labels = checked_labels(labels)
    distances = 0.5 * np.abs(counts / partition.sizes[:, None] - np.bincount(labels) / len(labels)).sum(1)
    return LabelDivergence(float(distances.mean()), float(distances.max()), distances)


def who_holds_what(partition: Partition, labels: ArrayLike, *, title: str | None = None, note: str = "") -> Figure:
    """A row of bars for each class, a bar for each client that holds some of it, as high as it holds samples.

    All rows have one scale. A class is told by its row beside the colour. For up to 12 clients the counts are in print;
    hover text has them always.
    """
    import plotly.graph_objects as go

    from tracking.figures import layout, text
    from tracking.styles import style_of

    counts = partition.class_counts(labels)
    classes, largest = np.flatnonzero(counts.any(0)), int(counts.max())
    names = [f"class {c}" for c in classes]
    styles = style_of(names)
    printed = partition.clients <= 12
    step = largest * (1.8 if printed else 1.15)  # from one row's zero to the next one's, with room for the print
    figure = go.Figure()
    for row, (c, name) in enumerate(zip(classes, names, strict=True)):
        holders = np.flatnonzero(counts[:, c])
        held = counts[holders, c]
        figure.add_trace(go.Bar(
            x=holders, y=held, base=np.full(len(held), row * step), name=text(f"{name} (n={held.sum()})"),
            marker={"color": styles[name].colour, "line": {"width": 0}}, text=held, cliponaxis=False,
            width=0.85,  # else bars are as wide as the smallest gap between a class's holders
            textposition="outside" if printed else "none", hovertemplate="client %{x}: %{text} samples"))
    spread = label_divergence(partition, labels)
    low, high = partition.sizes.min(), partition.sizes.max()
    sizes = f"{low}" if low == high else f"{low} to {high}"
    facts = (f"{partition.clients} clients of {sizes} samples; highest bar: {largest} samples; "
             f"total variation of label laws: mean {spread.mean:.3f}, max {spread.max:.3f}")
    caption = f"Samples of each class (rows) that each client (across) holds; all rows on one scale. {facts}."
    figure.update_layout(layout(title or "who holds what", f"{note}; {facts}" if note else facts, caption, 0))
    height = int(np.clip((42 if printed else 34) * len(classes) + 160, 430, 1500))
    figure.update_layout(barmode="overlay", height=height)
    figure.update_xaxes(title_text="client [index]", range=[-0.7, partition.clients - 0.3])
    ticks = range(0, len(classes), -(-len(classes) // 40))  # 40 labels at most: more would run into one another
    figure.update_yaxes(title_text="samples [count] by class [label]", range=[0, len(classes) * step],
                        tickvals=[row * step for row in ticks], ticktext=[str(classes[row]) for row in ticks])
    return figure
