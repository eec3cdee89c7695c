"""Figures of the DGL study: accuracy behind every module, against a parameter, and who works when."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tracking.figures import layout, text
from tracking.metrics import metric as declared
from tracking.styles import INK, style_of
from workbench.decoupled import EventLine, ReplayBuffer, Tandem

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects as go

    from workbench.comparison import Comparison
    from workbench.grouping import Group

Span = tuple[int, float, float, str]
"""Module from 0, begin, end, and what it does: ``forward``, ``backward``, or ``step``, which is both with the head."""


def module_curves(comparison: Comparison, method: str, modules: int, stage: int = 0) -> go.Figure:
    """Accuracy per epoch behind every module: mean over seeds at the epochs that all of them report.

    ``stage``: epochs of each module's own training, where one is trained after the other; 0 where all are at once.
    """
    import pandas
    import plotly.graph_objects as go

    (group,) = (g for g in comparison.groups if g.method == method)
    figure, styles = go.Figure(), style_of([f"module {j}" for j in range(1, modules + 1)])
    for j, (title, style) in enumerate(styles.items(), 1):
        tables = [t for f in group.frames if len(t := _of_module(f, j, modules, stage))]
        if tables:
            mean = pandas.concat(tables).groupby("train/epoch")["accuracy"].mean()
            figure.add_trace(go.Scatter(x=mean.index.to_numpy(), y=mean.to_numpy(), mode="lines+markers", name=title,
                                        line={"color": style.colour, "dash": style.dash, "width": 2}, marker={"symbol": style.marker}))
    figure.update_layout(layout(f"{method}: accuracy behind every module", f"mean over {len(group.runs)} seeds",
                                "Test accuracy of the head of every module over the epochs.", modules))
    figure.update_xaxes(title_text="train/epoch [epochs]")
    return figure.update_yaxes(title_text="test accuracy [fraction]")


def _of_module(frame: pandas.DataFrame, j: int, modules: int, stage: int) -> pandas.DataFrame:
    """Epochs and accuracy of module ``j``. While it is the last one there is, its accuracy is the network's."""
    epochs, network = frame["train/epoch"], frame["eval/accuracy"]
    if not stage and j == modules:
        own = network
    else:
        last = (epochs > (j - 1) * stage) & (epochs <= j * stage)
        own = frame.get(f"eval/accuracy_module_{j}", network.where(last)).where(~last, network)
    return frame[["train/epoch"]].assign(accuracy=own).dropna()


def against(points: Iterable[tuple[float, Group, str]], quantity: str, metric: str = "eval/accuracy", *, title: str, note: str = "",
            log_x: bool = False) -> go.Figure:
    """A metric's mean over seeds, with its 95 % interval, against ``quantity``: (value, group, label or "") for each point.

    Points of a method are joined in the order of their values.
    """
    import plotly.graph_objects as go

    points = sorted(points, key=lambda p: p[0])
    means, known = [g.mean(metric) for _, g, _ in points], declared(metric)
    figure, styles = go.Figure(), style_of([g.method for _, g, _ in points])
    for method, style in styles.items():
        own = [i for i, (_, g, _) in enumerate(points) if g.method == method]
        half = [means[i].half_width for i in own]
        # an interval of accuracies ends at 1
        up, down = ([min(h, room) if known.unit == "fraction" else h for h, room in zip(half, rooms, strict=True)]
                    for rooms in ([1 - means[i].mean for i in own], [means[i].mean for i in own]))
        figure.add_trace(go.Scatter(
            x=[points[i][0] for i in own], y=[means[i].mean for i in own], mode="lines+markers+text", name=text(method),
            text=[text(points[i][2]) for i in own],
            textposition=["bottom left" if i + 1 == len(points) else "top right" for i in own],  # beside the bars, inside the frame
            error_y={"type": "data", "array": up, "arrayminus": down, "thickness": 1.5, "width": 5, "color": style.colour},
            line={"color": style.colour, "dash": style.dash, "width": 2}, marker={"symbol": style.marker, "size": 10}))
    caption = (f"{known.description.capitalize()} ({metric}) against {quantity}. Bars: 95 % Student t interval over the seeds"
               f"{', cut at 0 and 1' if known.unit == 'fraction' else ''}.")
    figure.update_layout(layout(title, note or f"n = {min(len(g.runs) for _, g, _ in points)} seeds", caption, len(styles)))
    ticks = sorted({x for x, _, _ in points})
    figure.update_xaxes(title_text=text(quantity), type="log" if log_x else "linear", tickvals=ticks, ticktext=[f"{x:.3g}" for x in ticks])
    return figure.update_yaxes(title_text=text(known.label))


def compression(vq: Comparison) -> list[tuple[float, Group, str]]:
    """The runs with coded links by how many times fewer bytes they sent than the one with exact links: points for :func:`against`."""
    def size(g: Group) -> float:
        return g.mean("comm/up_bytes").mean

    (exact,) = (g for g in vq.groups if g.facts.get("codec") == "dense_fp32")
    return [(size(exact) / size(g), g, f"K = {g.facts['codewords']}" if g.method == "async_dgl_vq" else str(g.facts["codec"]))
            for g in vq.groups]


# --- who waits when -----------------------------------------------------------------------------------------


def end_to_end(durations: Sequence[float], until: float) -> list[Span]:
    """Backpropagation over workers: forward through all modules, then back, a third and two thirds of each module's time."""
    now, found, modules = 0.0, [], range(len(durations))
    while now < until:
        for j, share, what in [*((j, 1 / 3, "forward") for j in modules), *((j, 2 / 3, "backward") for j in reversed(modules))]:
            found.append((j, now, now + share * durations[j], what))
            now += share * durations[j]
    return found


def in_step(durations: Sequence[float], until: float) -> list[Span]:
    """Synchronous DGL: every batch goes through all modules once, in order."""
    clock, found = Tandem(len(durations)), []
    while clock.now < until + sum(durations):
        found += [(j, *span, "step") for j, span in enumerate(clock.batch(durations, [0.0] * (len(durations) - 1)))]
    return found


def unhindered(durations: Sequence[float], until: float, buffer: int = 5) -> list[Span]:
    """Asynchronous DGL: every module at its own pace, with a replay buffer before each but the first."""
    spans: list[tuple[int, float, float]] = []
    line = EventLine(durations, [ReplayBuffer(buffer) for _ in durations[1:]], spans=spans)
    while line.now < until:
        line.turn(lambda j, item: j)
    return [(*span, "step") for span in spans]


def busy(spans: Iterable[Span], modules: int, until: float) -> float:
    """Share of the modules' time that is work."""
    return sum(max(0.0, min(end, until) - begin) for _, begin, end, _ in spans) / (modules * until)


def time_lines(durations: Sequence[float], until: float, title: str = "Who works when") -> go.Figure:
    """Work of every module as bars over virtual time, in three ways to train; a gap is a wait. ``durations``: of F + B of each module."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    ways = {"backpropagation over workers": end_to_end, "DGL in step": in_step, "asynchronous DGL": unhindered}
    drawn = {name: [s for s in way(durations, until) if s[1] < until] for name, way in ways.items()}
    heads = [f"{name}: {busy(spans, len(durations), until):.0%} of the time is work" for name, spans in drawn.items()]
    figure = make_subplots(rows=len(ways), cols=1, shared_xaxes=True, vertical_spacing=0.11, subplot_titles=heads)
    kinds = {"forward": ("#56B4E9", ""), "backward": ("#D55E00", "/"), "step": ("#0072B2", "")}
    for row, spans in enumerate(drawn.values(), 1):
        for what, (colour, hatch) in kinds.items():
            own = [(j, begin, min(end, until)) for j, begin, end, kind in spans if kind == what]
            if own:
                step = what == "step"
                figure.add_trace(go.Bar(
                    base=[a for _, a, _ in own], x=[b - a for _, a, b in own], y=[f"module {j + 1}" for j, _, _ in own], orientation="h",
                    name="both, with the head" if step else what, legendgroup=what, showlegend=row == (2 if step else 1),
                    marker={"color": colour, "pattern": {"shape": hatch, "bgcolor": colour, "fgcolor": "white", "solidity": 0.2},
                            "line": {"color": "white", "width": 1}}), row=row, col=1)
    look = layout(title, "each bar is work on one batch; a gap is a wait", "Work of every module over virtual time.", 3)
    axes = {"xaxis": look.pop("xaxis"), "yaxis": look.pop("yaxis")}
    figure.update_layout(look | {"height": 640, "barmode": "overlay", "margin": look["margin"] | {"t": 110}})  # room for the first heading
    figure.update_annotations(font={"size": 13, "color": INK}, x=0, xanchor="left")
    figure.update_xaxes(**axes["xaxis"], range=[0, until])
    figure.update_xaxes(title_text="virtual time", row=len(ways), col=1)
    return figure.update_yaxes(**axes["yaxis"], autorange="reversed")
