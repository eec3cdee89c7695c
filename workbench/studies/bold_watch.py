"""Looks inside Boolean training: accumulators while a run goes, and the spread of signals from layer to layer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from workbench.boolean import BooleanLayer
from workbench.boolean.networks import BooleanOptions, booleanise
from workbench.datasets import models
from workbench.runs import run

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects as go


class Watched(NamedTuple):
    """One run looked at while it went: accumulators by epoch, and a table of its layers at the same moments."""

    histogram: go.Figure
    table: pandas.DataFrame


def watch(spec: dict[str, Any], fractions: tuple[float, ...], bound: float = 3.0, **options: Any) -> Watched:
    """Run ``spec`` of BOLD once more and keep accumulators and flips at these fractions of its epochs.

    Drawn is ``m w / threshold``, cut to ``[-bound, bound]``: a weight flips at 1, and what has gathered on the negative side holds it.
    The run is repeated even where it is in the cache: an observer sees only what happens.
    """
    import pandas

    from tracking.figures import histogram

    epochs = spec["params"]["epochs"]
    wanted = sorted({max(1, round(f * epochs)) for f in fractions})
    seen: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []

    def look(report: Any) -> None:
        if report.state.batch or report.state.epoch not in wanted:
            return
        epoch, optimizer = report.state.epoch, report.state.optimizer.optimizers["boolean"]
        layers = [(name, m) for name, m in report.state.model.named_modules() if isinstance(m, BooleanLayer)]
        pull = {name: (optimizer.accumulator(m.weight) * m.weight.detach() / optimizer.param_groups[0]["threshold"]).flatten().cpu()
                for name, m in layers}
        everything = torch.cat(list(pull.values()))
        seen[f"epoch {epoch}"] = everything.clamp(-bound, bound).numpy().copy()
        for (name, m), part in zip(layers, optimizer.layers(), strict=True):
            rows.append({"epoch": epoch, "layer": name, "weights": m.weight.numel(), "flips so far": part.total_flips,
                         "plasticity": part.beta, "held (m w < 0) [%]": round(100 * (pull[name] < 0).float().mean().item(), 1),
                         "beyond -1 [%]": round(100 * (pull[name] < -1).float().mean().item(), 2)})

    run(**spec, observer=look, fresh=True, **options)
    drawn = histogram(seen, quantity="m w / threshold", log_y=True, title="Accumulators", bins=120,
                      note=f"a weight flips at 1; values beyond {bound:g} are drawn at {bound:g}")
    return Watched(drawn, pandas.DataFrame(rows))


def signal_spread(width: float = 0.25, samples: int = 64, seed: int = 0) -> pandas.DataFrame:
    """Standard deviation of the signal that each Boolean layer of VGG-Small receives at the start, with and without scaling.

    In units of the one that the uppermost receives. The constants are made for this to stay near 1 (appendix C.2); the loss is a random
    linear one, on random images, so that the signals at the top are independent.
    """
    import pandas

    columns: dict[str, dict[str, float]] = {}
    for scaling in (True, False):
        generator = torch.Generator().manual_seed(seed)
        network = booleanise(models.build("vgg_small", (3, 32, 32), 10, width, generator), BooleanOptions(scaling=scaling))
        top = nn.Sequential(*list(network.children())[:-1])
        found: dict[str, float] = {}

        def received(m: nn.Module, _: Any, z: tuple[Tensor, ...], name: str, found: dict[str, float] = found) -> None:
            found[name] = z[0].std().item()

        layers = [(name, m) for name, m in top.named_modules() if isinstance(m, BooleanLayer)]
        hooks = [m.register_full_backward_hook(partial(received, name=name)) for name, m in layers]
        outputs = top(torch.randn(samples, 3, 32, 32, generator=generator))
        outputs.backward(torch.randn(outputs.shape, generator=generator))
        for hook in hooks:
            hook.remove()
        last = next(iter(found.values()))  # signals come from the top
        columns["scaled" if scaling else "as they come"] = {name: value / last for name, value in reversed(found.items())}
    return pandas.DataFrame(columns).rename_axis("layer").reset_index()


def spread_figure(frame: pandas.DataFrame) -> go.Figure:
    """:func:`signal_spread` as lines on a logarithmic axis."""
    import plotly.graph_objects as go

    from tracking.figures import layout
    from tracking.styles import style_of

    names = [c for c in frame if c != "layer"]
    styles, fig = style_of(names), go.Figure()
    places = [f"layer {i + 1}" for i in range(len(frame))]
    for name in names:
        style = styles[name]
        fig.add_scatter(x=places, y=frame[name], name=name, mode="lines+markers", line={"color": style.colour, "dash": style.dash},
                        marker={"symbol": style.marker, "size": 9}, hovertemplate="%{x}: %{y:.3~g}")
    caption = ("Standard deviation of the signal that each Boolean layer of VGG-Small receives before training, as a multiple of what the "
               "uppermost receives; input on the left. Logarithmic.")
    fig.update_layout(layout("Signals keep their spread", "Boolean layers of VGG-Small, without batch norm", caption, len(names)))
    fig.update_yaxes(title_text="standard deviation [of the uppermost]", type="log", exponentformat="power")
    fig.update_xaxes(title_text="Boolean layer, from input to output")
    return fig

