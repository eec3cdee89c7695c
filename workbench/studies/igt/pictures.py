"""Representations in two dimensions, and time and memory against the size of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tracking.figures import layout, text
from tracking.statistics import interval
from tracking.styles import style_of
from workbench.claims import Claim, within
from workbench.comparison import Comparison
from workbench.graphs.igt import InterferometricGraphTransform
from workbench.graphs.inputs import normalise_rows
from workbench.method import Context
from workbench.spec import resolve
from workbench.studies.igt.settings import Bench, Runs

if TYPE_CHECKING:
    import plotly.graph_objects as go

SHOWN = 800
"""Nodes of a picture, at most."""


def principal_plane(x: torch.Tensor) -> np.ndarray:
    """Coordinates ``(N, 2)`` along the two directions of largest variance, each direction's largest coordinate positive."""
    centred = (x - x.mean(0)).double()
    plane = centred @ torch.linalg.eigh(centred.T @ centred)[1].flip(1)[:, :2]
    top = plane.gather(0, plane.abs().argmax(0, keepdim=True))
    return (plane * torch.where(top < 0, -1.0, 1.0)).numpy()


def planes(bench: Bench, **params: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Principal planes of the raw features and of each order of the transform, for every node; and the labels."""
    job = resolve(**bench.run("igt", **params), device="cpu")
    task, p = job.task, job.method.params
    task.setup(Context(torch.device("cpu"), 0))
    igt = InterferometricGraphTransform(1, dim=p.dim, averaging=p.averaging, power=p.power, normalise=p.normalise)
    graph = (task.x, task.edge_index)
    zero, one = igt.fit(graph).orders_of(graph)
    kinds = {"features": normalise_rows(task.x, p.normalise), "S0": zero, "S1": one}
    return {name: principal_plane(x) for name, x in kinds.items()}, task.y.numpy()


def plane_figure(found: dict[str, np.ndarray], labels: np.ndarray, title: str, seed: int = 0) -> go.Figure:
    """A panel for each representation; colour and marker tell the communities apart. At most :data:`SHOWN` nodes, drawn at random."""
    from plotly.subplots import make_subplots

    chosen = np.random.default_rng(seed).permutation(len(labels))[:SHOWN]
    styles = style_of([f"community {c}" for c in range(int(labels.max()) + 1)])
    fig = make_subplots(rows=1, cols=len(found), subplot_titles=[text(k) for k in found], horizontal_spacing=0.04)
    for column, (kind, at) in enumerate(found.items(), 1):
        for c, (name, look) in enumerate(styles.items()):
            own = chosen[labels[chosen] == c]
            fig.add_scatter(
                x=at[own, 0],
                y=at[own, 1],
                mode="markers",
                name=text(name if column == 1 else f"{name}, {kind}"),
                legendgroup=name,
                showlegend=column == 1,
                row=1,
                col=column,
                hoverinfo="skip",
                marker={"color": look.colour, "symbol": look.marker, "size": 5, "opacity": 0.7},
            )
    caption = (
        f"Principal plane of each representation, {len(chosen)} of {len(labels)} nodes; colour and marker: communities, which no "
        "representation has seen."
    )
    fig.update_layout(layout(title, "", caption, len(styles)), margin_t=90)
    return fig.update_xaxes(showticklabels=False).update_yaxes(showticklabels=False)


# --- cost ---------------------------------------------------------------------------------------------------


def size_runs(sizes: Sequence[int], degree: float = 10.0) -> Runs:
    """One order of the transform on block models of growing size, at one mean degree and 16 features."""
    return [
        {
            "method": "igt",
            "task": "sbm/node",
            "task_params": {"nodes": n, "degree": degree, "val_size": 100},
            "params": {"orders": 1, "iterations": 10, "cluster_restarts": 1},
        }
        for n in sizes
    ]


def size_exponents(comparison: Comparison, sizes: Sequence[int], since: int = 10_000) -> dict[int, float]:
    """Slope of log time against log nodes from ``since`` nodes on, by seed: below that, time does not depend on size."""
    used = [n for n in sizes if n >= since]
    times = {n: comparison.values("igt", "clock/wall_s", **{"task.nodes": n}) for n in used}
    seeds = set.intersection(*(set(v) for v in times.values())) if times else set()
    if len(used) < 2:
        return {}
    return {s: float(np.polyfit(np.log(used), np.log([times[n][s] for n in used]), 1)[0]) for s in sorted(seeds)}


def size_claim(comparison: Comparison, sizes: Sequence[int]) -> Claim:
    """Time grows in proportion to nodes, which at one mean degree is in proportion to edges."""
    return within(
        "Time to fit grows no faster than edges do: exponent at most 1.15",
        "no figure is known",
        size_exponents(comparison, sizes),
        0.0,
        1.15,
    )


def size_figure(comparison: Comparison, sizes: Sequence[int], title: str, note: str = "") -> go.Figure:
    """Time to fit, what is remembered, and the process's highest memory, against nodes, on logarithmic axes."""
    from plotly.subplots import make_subplots

    panels = {"time to fit [s]": ("clock/wall_s",), "memory [B]": ("memory/peak_bytes", "memory/state_bytes")}
    words = {"clock/wall_s": "time to fit", "memory/peak_bytes": "process, highest", "memory/state_bytes": "state"}
    styles = style_of(words.values())
    fig = make_subplots(rows=1, cols=2, subplot_titles=[text(p) for p in panels], horizontal_spacing=0.12)
    for column, metrics in enumerate(panels.values(), 1):
        for metric in metrics:
            found = {n: comparison.values("igt", metric, **{"task.nodes": n}) for n in sizes}
            means = {n: interval(list(v.values())) for n, v in found.items() if v}
            look = styles[words[metric]]
            fig.add_scatter(
                x=list(means),
                y=[i.mean for i in means.values()],
                mode="lines+markers",
                name=text(words[metric]),
                row=1,
                col=column,
                error_y={"type": "data", "array": [i.half_width for i in means.values()], "width": 3},
                line={"color": look.colour, "dash": look.dash, "width": 2},
                marker={"symbol": look.marker, "size": 8},
                hovertemplate="%{x:.4~g}: %{y:.3~g}",
            )
    caption = (
        "Means over seeds with 95 % t intervals. Time: of learning the filters, the probe excluded. Highest memory: of the whole "
        "process, the probe and the generation of the graph included."
    )
    fig.update_layout(layout(title, note, caption, len(words)), margin_t=90)
    fig.update_xaxes(type="log", title_text="nodes")
    return fig.update_yaxes(type="log", exponentformat="power")
