"""How fast the transform of a random graph tends to its expectation, E-IGT, as nodes have more neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from tracking.figures import layout, text
from tracking.statistics import interval
from tracking.styles import INK, style_of
from workbench.claims import Claim, within
from workbench.graphs.block_model import block_model, planted_probabilities
from workbench.graphs.expectation import expected_transform, mixing
from workbench.graphs.igt import InterferometricGraphTransform
from workbench.method import derive_seed

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects as go

WIDE, NARROW, DIM = 1.5, 0.5, 16
"""Standard deviations of a community's own features and of all others, and features; all means are 0."""
STATEMENT = "the transform concentrates around its expectation (abstract); the rate is our derivation"


def deviations(y: np.ndarray) -> np.ndarray:
    """Standard deviations of the features of nodes of two communities, ``(n, DIM)``: each is wide in its own half."""
    own = (np.arange(DIM) * 2 // DIM)[None] == y[:, None]
    return np.where(own, WIDE, NARROW)


def drawn_features(y: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Gaussian features ``(n, DIM)`` of mean 0 that tell communities apart by their spread alone."""
    return torch.from_numpy((rng.standard_normal((len(y), DIM)) * deviations(y)).astype(np.float32))


def drawn_graph(
    nodes: int, degree: float, ratio: float, rng: np.random.Generator
) -> tuple[tuple[torch.Tensor, ...], np.ndarray, np.ndarray]:
    """``(x, edge_index)`` of two equal communities, their labels ``(N,)`` and the probabilities of an edge ``(2, 2)``."""
    p_in, p_out = planted_probabilities(nodes, 2, degree, ratio)
    probabilities = np.array([[p_in, p_out], [p_out, p_in]])
    sizes = np.array([nodes // 2, nodes - nodes // 2])
    y = np.repeat([0, 1], sizes)
    return (drawn_features(y, rng), torch.from_numpy(block_model(sizes, probabilities, rng))), y, probabilities


def transform_errors(
    nodes: int, degree: float, ratio: float, seed: int, orders: int = 2, samples: int = 100_000
) -> list[float]:
    """``sqrt(mean_i |S_n(i) - E S_n(c(i))|^2) / sqrt(mean_i |x_i|^2)`` for each order n of one random graph of two equal
    communities.

    Filters are learnt on another graph of the same law, so that they are independent of what is averaged. The average is the mean over
    a node's neighbours and itself.
    """
    rng = np.random.default_rng(derive_seed(seed, "concentration", nodes, round(1000 * degree), round(1000 * ratio)))
    transform = InterferometricGraphTransform(orders, dim=None, averaging="row", power=1, normalise="none", seed=seed)
    transform.fit(drawn_graph(nodes, degree, ratio, rng)[0])
    graph, y, probabilities = drawn_graph(nodes, degree, ratio, rng)
    found = transform.orders_of(graph)
    law = np.repeat([0, 1], samples // 2)
    mixture = mixing(torch.from_numpy(np.bincount(y)), torch.from_numpy(probabilities))
    expected = expected_transform(drawn_features(law, rng), torch.from_numpy(law), mixture, transform.filters_)
    scale = graph[0].square().sum(1).mean().sqrt()
    return [float((s - e[y]).square().sum(1).mean().sqrt() / scale) for s, e in zip(found, expected, strict=True)]


def errors(settings: Iterable[tuple[int, float, float]], seeds: int) -> pandas.DataFrame:
    """A row a graph and order: ``nodes, degree, ratio, order, seed, error``; settings are (nodes, mean degree, ratio across / within)."""
    import pandas

    rows = []
    for nodes, degree, ratio in settings:
        for seed in range(seeds):
            for order, error in enumerate(transform_errors(nodes, degree, ratio, seed)):
                rows.append(
                    {"nodes": nodes, "degree": degree, "ratio": ratio, "order": order, "seed": seed, "error": error}
                )
    return pandas.DataFrame(rows)


def rates(frame: pandas.DataFrame, along: str) -> dict[int, dict[int, float]]:
    """Slope of log error against the logarithm of ``degree`` or ``nodes``: by order and seed.

    The mean degree d is the right abscissa: ``E 1 / (D + 1) = (1 - exp(-d)) / d`` for a Poisson number D of neighbours and the node
    itself, so that the error of order 0 is ``sqrt((1 - exp(-d)) / d)`` of the features' root mean square.
    """
    slopes: dict[int, dict[int, float]] = {}
    for (order, seed), part in frame.groupby(["order", "seed"]):
        x = np.log(part[along].to_numpy(float))
        slopes.setdefault(int(order), {})[int(seed)] = float(np.polyfit(x, np.log(part["error"].to_numpy(float)), 1)[0])
    return slopes


def rate_table(degree: pandas.DataFrame, nodes: pandas.DataFrame) -> pandas.DataFrame:
    """Fitted exponents with their 95 % intervals, by order."""
    import pandas

    rows = []
    for frame, along in ((degree, "degree"), (nodes, "nodes")):
        for order, slopes in rates(frame, along).items():
            i = interval(list(slopes.values()))
            rows.append(
                {
                    "order": f"S{order}",
                    "error ~ x^slope, x": "neighbours" if along == "degree" else "nodes, at one mean degree",
                    "slope": i.mean,
                    "±": i.half_width,
                    "n": i.n,
                    "predicted": -0.5 if along == "degree" else 0.0,
                }
            )
    return pandas.DataFrame(rows)


def rate_claims(degree: pandas.DataFrame, nodes: pandas.DataFrame) -> list[Claim]:
    """That errors fall as the root of the degree, and do not fall with the number of nodes alone."""
    by_degree, by_nodes = rates(degree, "degree"), rates(nodes, "nodes")
    found = [
        within(
            f"The error of order {n} falls as one over the root of the number of neighbours: slope within 0.05 of -1/2",
            STATEMENT,
            by_degree[n],
            -0.55,
            -0.45,
            digits=3,
        )
        for n in sorted(by_degree)
    ]
    last = max(by_nodes)
    return [
        *found,
        within(
            f"At one mean degree more nodes alone do not change the error of order {last}: slope within 0.05 of 0",
            STATEMENT,
            by_nodes[last],
            -0.05,
            0.05,
            digits=3,
        ),
    ]


def error_figure(frames: Mapping[str, tuple[pandas.DataFrame, str]], title: str) -> go.Figure:
    """Errors on logarithmic axes, a panel for what grows: means over seeds with t intervals, and the line of the predicted slope.

    ``frames`` by panel title: errors, and the column that grows.
    """
    from plotly.subplots import make_subplots

    orders = sorted({int(n) for frame, _ in frames.values() for n in frame["order"]})
    styles = style_of([f"S{n}" for n in orders])
    seeds = min(frame["seed"].nunique() for frame, _ in frames.values())
    figure = make_subplots(rows=1, cols=len(frames), shared_yaxes=True, horizontal_spacing=0.04)
    for column, (panel, (frame, along)) in enumerate(frames.items(), 1):
        for n in orders:
            name, table = f"S{n}", frame[frame["order"] == n].pivot(index=along, columns="seed", values="error")
            found = [interval(row) for row in table.to_numpy()]
            x, mean = table.index.to_numpy(float), np.array([i.mean for i in found])
            look = styles[name]
            figure.add_scatter(
                x=x,
                y=mean,
                mode="lines+markers",
                name=text(name if column == 1 else f"{name}, {panel}"),
                legendgroup=name,
                showlegend=column == 1,
                row=1,
                col=column,
                hovertemplate="%{x:.4~g}: %{y:.3~g}",
                error_y={"type": "data", "array": [i.half_width for i in found], "thickness": 1.5, "width": 3},
                line={"color": look.colour, "dash": look.dash, "width": 2},
                marker={"symbol": look.marker, "size": 8},
            )
            slope = -0.5 if along == "degree" else 0.0
            guide = mean[0] * (x / x[0]) ** slope
            figure.add_scatter(
                x=x,
                y=guide,
                mode="lines",
                name="predicted slope",
                legendgroup="guide",
                row=1,
                col=column,
                showlegend=column == 1 and n == orders[0],
                line={"color": INK, "dash": "dot", "width": 1},
            )
        figure.update_xaxes(title_text=text(panel), type="log", row=1, col=column)
    caption = (
        f"Root mean squared distance of the transform from its expectation over the features' root mean square, by order; means over "
        f"{seeds} seeds with 95 % t intervals; dotted: slope -1/2 against neighbours, 0 against nodes, from the first point on."
    )
    figure.update_layout(layout(title, f"n = {seeds} graphs a point", caption, len(orders) + 1))
    figure.update_yaxes(type="log", exponentformat="power")
    return figure.update_yaxes(title_text="error / root mean square of the features", row=1, col=1)
