"""Where communities can be found: transform, plain averages and spectral clustering over connectivity, and the Kesten-Stigum threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from tracking.figures import layout, text
from tracking.styles import INK, style_of
from workbench.claims import Claim, differences, figure, within
from workbench.datasets.graphs import GraphParams, split
from workbench.graphs.averaging import adjacency
from workbench.graphs.block_model import planted_probabilities, signal_to_noise
from workbench.graphs.clustering import kmeans
from workbench.graphs.igt import InterferometricGraphTransform
from workbench.graphs.probe import probe_blocks
from workbench.method import derive_seed
from workbench.methods.graphs.spectral_embedding import laplacian_eigenmaps
from workbench.studies.igt.concentration import drawn_graph

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects as go

SPECTRAL, DRAWN = "spectral clustering", "orders 0 and 1, once, random"
ZERO, ONE = (
    ("order 0, averaged once", "order 0, averaged twice"),
    ("orders 0 and 1, averaged once", "orders 0 and 1, averaged twice"),
)
KINDS = (SPECTRAL, ZERO[0], ZERO[1], DRAWN, ONE[0], ONE[1])
BELOW, ABOVE = 0.5, 2.0
"""Signal to noise that counts as well below and well above the threshold of 1: near it finite graphs are neither."""


def accuracies(nodes: int, degree: float, ratio: float, seed: int) -> dict[str, float]:
    """Share of nodes labelled rightly on one graph of two equal communities, whose features differ in spread alone.

    Spectral clustering sees no label and no feature: k-means on the first eigenfunction, named as fits best. The others are a linear probe
    with 20 labels a class, on features normalised by nothing.
    """
    rng = np.random.default_rng(derive_seed(seed, "phases", round(1000 * degree), round(1000 * ratio)))
    (x, edges), y, _ = drawn_graph(nodes, degree, ratio, rng)
    protocol = GraphParams(train_per_class=20, val_size=nodes // 5, test_size=0)
    masks = split(y, np.ones(nodes, bool), {}, protocol, seed, "phases")
    sets = [torch.from_numpy(masks[name]) for name in ("train", "val", "test")]
    labels, kinds = torch.from_numpy(y), {}
    for name, power, solver in ((0, 1, "auto"), (1, 2, "auto"), (None, 1, "none")):
        igt = InterferometricGraphTransform(
            1, dim=None, averaging="row", power=power, normalise="none", solver=solver, seed=seed
        )
        zero, one = igt.fit((x, edges)).orders_of((x, edges))
        kinds |= {DRAWN: [zero, one]} if name is None else {ZERO[name]: [zero], ONE[name]: [zero, one]}
    found = {name: probe_blocks(b, labels, *sets).test_accuracy for name, b in kinds.items()}
    mean_degree = edges.shape[1] / nodes
    function = laplacian_eigenmaps(adjacency(edges, nodes), 1, mean_degree, derive_seed(seed, "eigenvectors"))[1]
    agreement = float((kmeans(function, 2, seed=seed) == labels).double().mean())
    return {SPECTRAL: max(agreement, 1 - agreement), **found}


def phases(nodes: int, degrees: Sequence[float], ratios: Sequence[float], seeds: int) -> pandas.DataFrame:
    """A row a graph: ``degree, ratio, snr, seed`` and the accuracy of each kind; ``snr`` is 1 on the threshold."""
    import pandas

    rows = []
    for degree in degrees:
        for ratio in ratios:
            c_in, c_out = (nodes * p for p in planted_probabilities(nodes, 2, degree, ratio))
            for seed in range(seeds):
                rows.append(
                    {
                        "degree": degree,
                        "ratio": ratio,
                        "snr": signal_to_noise(2, c_in, c_out),
                        "seed": seed,
                        **accuracies(nodes, degree, ratio, seed),
                    }
                )
    return pandas.DataFrame(rows)


def threshold(degrees: np.ndarray) -> np.ndarray:
    """Ratio across / within at which two equal communities are on the Kesten-Stigum threshold, at these mean degrees; NaN where none is.

    With mean degree d the threshold ``(c_in - c_out)^2 = 2 (c_in + c_out)`` is ``d ((1 - r) / (1 + r))^2 = 1``.
    """
    with np.errstate(invalid="ignore"):
        root = np.where(degrees >= 1, degrees, np.nan) ** -0.5
    return (1 - root) / (1 + root)


def phase_figure(frame: pandas.DataFrame, title: str) -> go.Figure:
    """A panel of mean accuracy for each kind over mean degree and ratio, with the threshold; figures in print."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    fig = make_subplots(
        rows=2,
        cols=3,
        subplot_titles=[text(k) for k in KINDS],
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.05,
        vertical_spacing=0.12,
    )
    degrees, ratios = (np.sort(frame[name].unique()) for name in ("degree", "ratio"))
    line = np.geomspace(degrees[0], degrees[-1], 60)
    for number, kind in enumerate(KINDS):
        at = {"row": number // 3 + 1, "col": number % 3 + 1}
        z = frame.pivot_table(index="ratio", columns="degree", values=kind, aggfunc="mean").to_numpy()
        fig.add_trace(
            go.Heatmap(
                x=np.log2(degrees),
                y=ratios,
                z=z,
                zmin=0.5,
                zmax=1,
                colorscale="Cividis",
                showscale=number == 0,
                texttemplate="%{z:.2f}",
                colorbar={"title": {"text": "accuracy"}},
                hovertemplate="%{z:.3f}",
            ),
            **at,
        )
        fig.add_scatter(
            x=np.log2(line),
            y=threshold(line),
            mode="lines",
            name="Kesten-Stigum threshold",
            showlegend=number == 0,
            line={"color": "#D55E00", "width": 3, "dash": "dash"},
            hoverinfo="skip",
            **at,
        )
    n = frame["seed"].nunique()
    caption = (
        f"Share of nodes labelled rightly, mean over {n} graphs a cell, for two equal communities; chance is 0.5. Below and left of "
        "the dashed line, at small ratios and high degrees, communities can be found from the edges alone in polynomial time."
    )
    fig.update_layout(layout(title, f"n = {n} graphs a cell", caption, 1), height=800, margin_t=120, margin_b=130)
    half = (ratios[1] - ratios[0]) / 2 if len(ratios) > 1 else 0.1
    fig.update_yaxes(range=[ratios[0] - half, ratios[-1] + half])
    fig.update_xaxes(tickvals=np.log2(degrees), ticktext=[f"{d:g}" for d in degrees])
    fig.update_xaxes(title_text="mean degree", title_standoff=20, row=2)
    return fig.update_yaxes(title_text="edges across / within", col=1)


def collapse_figure(frame: pandas.DataFrame, title: str) -> go.Figure:
    """All cells over signal to noise: if degree and ratio act through it alone, points of one kind lie on one curve."""
    import plotly.graph_objects as go

    fig, styles = go.Figure(), style_of(KINDS)
    cells = frame.groupby(["degree", "ratio"], as_index=False)[["snr", *KINDS]].mean().sort_values("snr")
    shown = cells[cells["snr"] > 0]
    for kind in KINDS:
        fig.add_scatter(
            x=shown["snr"],
            y=shown[kind],
            mode="markers",
            name=text(kind),
            hovertemplate="%{x:.3~g}: %{y:.3f}",
            marker={"color": styles[kind].colour, "symbol": styles[kind].marker, "size": 9},
        )
    fig.add_scatter(
        x=[1, 1],
        y=[0.4, 1],
        mode="lines",
        name="Kesten-Stigum threshold",
        line={"color": INK, "dash": "dash", "width": 2},
        hoverinfo="skip",
    )
    caption = (
        f"Mean accuracy over {frame['seed'].nunique()} graphs of each cell against signal to noise, (c_in - c_out)^2 / "
        "2 (c_in + c_out); chance is 0.5."
    )
    fig.update_layout(layout(title, f"n = {frame['seed'].nunique()} graphs a point", caption, len(KINDS) + 1))
    fig.update_xaxes(title_text="signal to noise (1: Kesten-Stigum threshold)", type="log")
    return fig.update_yaxes(title_text="accuracy [fraction]")


def phase_claims(frame: pandas.DataFrame) -> list[Claim]:
    """What edges alone can do on both sides of the threshold, and what order 1 adds; each figure is a seed's mean over its cells."""
    below, above = frame[frame["snr"] < BELOW], frame[frame["snr"] > ABOVE]

    def mean(part: pandas.DataFrame, kind: str) -> dict[int, float]:
        return {int(seed): float(rows[kind].mean()) for seed, rows in part.groupby("seed")}

    theory = "possible in polynomial time above the threshold, not below (Decelle et al. 2011)"
    found = [
        within(
            f"Below half of the threshold spectral clustering is near chance ({below['degree'].count()} graphs)",
            theory,
            mean(below, SPECTRAL),
            0.5,
            0.6,
            scale=100,
            digits=1,
        ),
        within(
            f"Above twice the threshold it finds most nodes ({above['degree'].count()} graphs)",
            theory,
            mean(above, SPECTRAL),
            0.85,
            1.0,
            scale=100,
            digits=1,
        ),
    ]
    gain = differences(mean(above, ONE[0]), mean(above, ZERO[0]))
    claim = within(
        "Where communities differ in spread alone and the graph tells them apart, order 1 adds more than 10 points to one average",
        "modulus keeps what averaging loses (abstract); no figure is known",
        gain,
        0.1,
        1.0,
        scale=100,
        digits=1,
    )
    told = f"order 0 {figure(mean(above, ZERO[0]), 1, 100)}, with order 1 {figure(mean(above, ONE[0]), 1, 100)}; difference {claim.ours}"
    return [*found, replace(claim, ours=told)]


def region_table(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Mean accuracy in percent of every kind below, near and above the threshold: interval over seeds, each a mean over cells."""
    import pandas

    regions = {
        f"signal to noise below {BELOW:g}": frame["snr"] < BELOW,
        f"{BELOW:g} to {ABOVE:g}": frame["snr"].between(BELOW, ABOVE),
        f"above {ABOVE:g}": frame["snr"] > ABOVE,
    }
    titles = {f"{name}, {int(chosen.sum())} graphs [%]": chosen for name, chosen in regions.items() if chosen.any()}
    means = {title: frame[chosen].groupby("seed")[list(KINDS)].mean() for title, chosen in titles.items()}
    return pandas.DataFrame(
        [{"nodes labelled by": kind, **{title: figure(list(m[kind]), 1, 100) for title, m in means.items()}} for kind in KINDS]
    )
