"""VGG-Small, one training iteration of 100 images: each method in per cent of FP32, as a band, beside the published ratios."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from tracking.energy_model import SCENARIOS, Estimate, Layer, PrecisionPlan, compare, estimate_layers, trace
from tracking.energy_model import plan as plans
from tracking.errors import unknown

if TYPE_CHECKING:
    import pandas
    from plotly.graph_objects import Figure

    from tracking.energy_model import Hardware, Scenario

BATCH = 100


class Row(NamedTuple):
    """A method as the energy model sees it. ``norm``: with the network's batch norms."""

    plan: PrecisionPlan
    norm: bool
    family: str


def _bold(bits: int, norm: bool) -> tuple[str, Row]:
    return f"BOLD {bits}-bit signals{', norm' if norm else ''}", Row(
        plans.bold(bits), norm, "BOLD + norm" if norm else "BOLD"
    )


METHODS: dict[str, Row] = {
    "FP32": Row(plans.fp32(), True, "FP32"),
    "BinaryConnect": Row(plans.binaryconnect(), True, "BinaryConnect"),
    "XNOR-Net": Row(plans.xnor_net(), True, "XNOR-Net"),
    "BinaryNet": Row(plans.binarynet(), True, "BinaryNet"),
    **dict(_bold(bits, norm) for norm in (True, False) for bits in (16, 8, 1)),
}

# Energy of a training iteration in per cent of FP32, VGG-Small, CIFAR-10: Nguyen et al., BOLD, NeurIPS 2024, arXiv:2405.16339, Table 2.
# The table is an image: these are recollections of it. Some are supported by ratios that the text states.
PUBLISHED: dict[str, dict[str, float]] = {
    "ascend_like": {
        "FP32": 100.0,
        "BinaryConnect": 38.59,
        "XNOR-Net": 34.21,
        "BinaryNet": 32.60,
        "BOLD": 3.64,
        "BOLD + norm": 4.87,
    },
    "v100_like": {
        "FP32": 100.0,
        "BinaryConnect": 48.49,
        "XNOR-Net": 45.68,
        "BinaryNet": 43.61,
        "BOLD": 2.78,
        "BOLD + norm": 3.71,
    },
}
_SUPPORT = {
    ("ascend_like", "BOLD"): "recollection; the text's 'almost 27x' agrees",
    ("v100_like", "BOLD"): "recollection; the text's '36x' agrees",
    ("v100_like", "BinaryNet"): "recollection; the text's 'more than 15x' above BOLD agrees",
    ("ascend_like", "BOLD + norm"): "recollection; the text's 'below 5 %' agrees",
    ("v100_like", "BOLD + norm"): "recollection; the text's 'below 5 %' agrees",
}
# the signal widths are rows of their own, so the scenario that changes them is not in their bands
BAND = tuple(name for name in SCENARIOS if name != "fully_boolean")


def standing(hardware: str, family: str) -> str:
    """How well a published figure is known."""
    return "by definition" if family == "FP32" else _SUPPORT.get((hardware, family), "recollection, unchecked")


@lru_cache
def vgg_small(batch: int = BATCH) -> tuple[Layer, ...]:
    """Trace of the workbench's VGG-Small (three linear layers) on CIFAR-10 images; nothing is computed."""
    import torch

    from workbench.datasets.models import vgg_small as network

    with torch.device("meta"):
        return trace(network((3, 32, 32), 10), (batch, 3, 32, 32))


def without_norm(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The same network without its norms."""
    return tuple(layer for layer in layers if layer.kind != "norm")


def layers_of(method: str, batch: int = BATCH) -> tuple[Layer, ...]:
    """Trace of VGG-Small as a method of :data:`METHODS` trains it."""
    found = vgg_small(batch)
    return found if METHODS[method].norm else without_norm(found)


def estimate_of(
    method: str, hardware: Hardware | str, scenario: Scenario | str = "as_trained", batch: int = BATCH
) -> Estimate:
    """Modelled training iteration of a method of :data:`METHODS`."""
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    return estimate_layers(layers_of(method, batch), METHODS[method].plan, hardware, scenario)


def parts(method: str, hardware: str) -> dict[str, float]:
    """What a method takes as trained, by level, in per cent of FP32's total on this hardware, the largest first."""
    total = estimate_of("FP32", hardware).total
    found = estimate_of(method, hardware)
    shares = found.table().groupby("level")[f"energy_{found.unit.lower()}"].sum() * (100 / total)
    return shares.sort_values(ascending=False).to_dict()


def ratios(hardware: str, draws: int = 0, seed: int = 0, methods: Sequence[str] = tuple(METHODS)) -> pandas.DataFrame:
    """A row for each method (FP32 among them): per cent of FP32 on this hardware.

    ``percent`` as trained; ``scenario_low`` and ``scenario_high`` over :data:`BAND`; ``low`` and ``high`` with the constants drawn as
    well (90 % of ``draws``; the same as the former where 0); ``published`` and its ``standing``; ``percent_<scenario>``.
    """
    if wrong := [m for m in methods if m not in METHODS]:
        raise unknown("method", wrong[0], METHODS)
    traces, chosen = {m: layers_of(m) for m in methods}, {m: METHODS[m].plan for m in methods}
    frame = compare(traces, chosen, hardware, BAND, reference="FP32", n=draws, seed=seed)
    percents = frame[[f"percent_{name}" for name in BAND]]
    families = [METHODS[m].family for m in frame.index]
    frame.insert(1, "scenario_low", percents.min(axis=1))
    frame.insert(2, "scenario_high", percents.max(axis=1))
    frame.insert(5, "published", [PUBLISHED.get(hardware, {}).get(f) for f in families])
    frame.insert(6, "standing", [standing(hardware, f) if hardware in PUBLISHED else "" for f in families])
    frame = frame.rename(columns={"percent_low": "low", "percent_high": "high"}).rename_axis("method").reset_index()
    frame.attrs["draws"] = draws
    return frame


def shown(frame: pandas.DataFrame) -> pandas.DataFrame:
    """:func:`ratios` for reading."""
    import pandas

    def band(low: str, high: str) -> list[str]:
        return [f"{a:.3g} to {b:.3g}" for a, b in zip(frame[low], frame[high], strict=True)]

    table = {
        "method": frame["method"],
        "as trained [%]": frame["percent"].round(2),
        "over scenarios [%]": band("scenario_low", "scenario_high"),
    }
    if frame.attrs["draws"]:
        table["and constants [%]"] = band("low", "high")
    return pandas.DataFrame({**table, "published [%]": frame["published"], "published figure is": frame["standing"]})


def ratio_figure(frame: pandas.DataFrame) -> Figure:
    """Each method's figure as trained with its bands, on a logarithmic axis, and the published figure beside it."""
    import plotly.graph_objects as go

    from tracking.figures import layout, text
    from tracking.styles import COLOURS, INK

    hardware, draws = frame.attrs["hardware"], frame.attrs["draws"]
    names = frame["method"].map(text)
    figure = go.Figure()
    for low, high, name, width in (("low", "high", "constants too", 2), ("scenario_low", "scenario_high", "scenarios", 8)):
        if name == "scenarios" or draws:
            ends = zip(frame[low], frame[high], [None] * len(frame), strict=True)
            figure.add_trace(
                go.Scatter(
                    x=list(itertools.chain.from_iterable(ends)),
                    y=[n for n in names for _ in range(3)],
                    mode="lines",
                    name=f"band over {name}",
                    line={"color": INK if width == 2 else "rgba(118,118,118,0.5)", "width": width},
                    hovertemplate="%{y}: %{x:.3~g} %",
                )
            )
    figure.add_trace(
        go.Scatter(
            x=frame["percent"],
            y=names,
            mode="markers",
            name="modelled, as trained",
            marker={"color": COLOURS[0], "symbol": "circle", "size": 11},
            hovertemplate="%{y}: %{x:.3~g} %",
        )
    )
    known = frame.dropna(subset=["published"])
    if len(known):
        figure.add_trace(
            go.Scatter(
                x=known["published"],
                y=known["method"].map(text),
                mode="markers",
                name="published (recollection)",
                marker={"color": COLOURS[1], "symbol": "diamond-open", "size": 12, "line": {"width": 2}},
                hovertext=known["standing"].map(text),
                hovertemplate="%{y}: %{x:.4~g} % (%{hovertext})",
            )
        )
    thin = f"; thin: constants drawn as well (90 % of {draws} draws)" if draws else ""
    caption = (
        f"Modelled energy of a training iteration of VGG-Small, batch {BATCH}, in per cent of FP32 on {hardware}. Filled: formats as "
        f"trained. Thick: over {len(BAND)} scenarios{thin}. Open diamond: published ratio (arXiv:2405.16339, Table 2, "
        "recollection), the same for all signal widths, which the paper does not state."
    )
    figure.update_layout(
        layout(f"Energy of training by method, {hardware}", "VGG-Small, batch 100; scale logarithmic", caption, 4),
        height=520,
    )
    ticks = [2, 3, 5, 10, 20, 30, 50, 100]
    figure.update_xaxes(title_text="energy [% of FP32]", type="log", tickvals=ticks, ticktext=[str(t) for t in ticks])
    figure.update_yaxes(autorange="reversed", title_text="")
    return figure
