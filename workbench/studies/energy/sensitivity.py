"""What BOLD's share of FP32 depends on: widths, batch, prices, and the constants' own intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from tracking.energy_model import Hardware, estimate_layers, hardware
from tracking.energy_model import plan as plans
from tracking.energy_model import scenario as scenarios
from tracking.energy_model.hardware import Constant
from tracking.energy_model.search import reprice
from workbench.studies.energy.ratios import BATCH, vgg_small, without_norm

if TYPE_CHECKING:
    import pandas
    from plotly.graph_objects import Figure

    from tracking.energy_model import Scenario


def _percent(
    plan: plans.PrecisionPlan, hw: Hardware, scenario: Scenario | str = "as_trained", batch: int = BATCH
) -> float:
    """BOLD without norms, in per cent of FP32 with norms."""
    layers = vgg_small(batch)
    return (
        100
        * estimate_layers(without_norm(layers), plan, hw, scenario).total
        / estimate_layers(layers, "fp32", hw, scenario).total
    )


def _sums(format: str) -> Scenario:
    return dataclasses.replace(scenarios.named("as_trained"), name=f"sums_{format}", accumulators=format)


def sensitivity(hw: str, batches: Sequence[int], dram: Sequence[float], signals: int = 8) -> pandas.DataFrame:
    """BOLD in per cent of FP32 when one thing changes: a row for each ``(quantity, value)`` with ``percent``; the rest as trained.

    Quantities: width of signals, width of integer partial sums, images a batch, price of the outermost memory in pJ/bit. But in the
    first, signals have ``signals`` bits.
    """
    import pandas

    h, plan = hardware(hw), plans.bold(signals)
    outermost = h.levels[0].name
    rows = [("signals [bit]", b, _percent(plans.bold(b), h)) for b in (1, 8, 16, 32)]
    rows += [("partial sums [bit]", b, _percent(plan, h, _sums(f"int{b}"))) for b in (8, 12, 16, 24, 32)]
    rows += [("batch [images]", b, _percent(plan, h, batch=b)) for b in batches]
    rows += [
        (f"{outermost} [pJ/bit]", v, _percent(plan, h.at({f"{outermost}.read": v, f"{outermost}.write": v})))
        for v in dram
    ]
    frame = pandas.DataFrame(rows, columns=["quantity", "value", "percent"])
    frame.attrs |= {"hardware": hw, "signals": signals}
    return frame


def sensitivity_figure(frame: pandas.DataFrame) -> Figure:
    """A panel for each quantity, with one scale of the ratio for all."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    from tracking.figures import layout
    from tracking.styles import style_of

    quantities = list(dict.fromkeys(frame["quantity"]))
    styles = style_of(quantities)
    figure = make_subplots(rows=2, cols=2, shared_yaxes="all", vertical_spacing=0.22, horizontal_spacing=0.06)
    style = layout(
        "What BOLD's share of FP32 depends on",
        f"VGG-Small on {frame.attrs['hardware']}; one thing changed at a time",
        f"Modelled energy of BOLD without norms in per cent of FP32, VGG-Small on {frame.attrs['hardware']}, when one quantity "
        f"changes and the rest stays as trained (signals of {frame.attrs['signals']} bits, batch {BATCH}). Quantities on logarithmic axes.",
        0,
    )
    figure.update_layout(style, height=560)
    figure.update_xaxes(style["xaxis"])
    figure.update_yaxes(style["yaxis"])
    for i, quantity in enumerate(quantities):
        own, at = frame[frame["quantity"] == quantity], {"row": i // 2 + 1, "col": i % 2 + 1}
        look = styles[quantity]
        figure.add_trace(
            go.Scatter(
                x=own["value"],
                y=own["percent"],
                mode="lines+markers",
                name=quantity,
                line={"color": look.colour, "dash": look.dash},
                marker={"symbol": look.marker, "size": 9},
                hovertemplate="%{x:.4~g}: %{y:.3~g} %",
            ),
            **at,
        )
        figure.update_xaxes(
            title_text=quantity, type="log", tickvals=own["value"], ticktext=[f"{v:g}" for v in own["value"]], **at
        )
        figure.update_yaxes(title_text="energy [% of FP32]" if i % 2 == 0 else "", rangemode="tozero", **at)
    return figure


def tornado(hw: str, signals: int = 8) -> pandas.DataFrame:
    """BOLD's share of FP32 in per cent with each constant at the ends of its interval: ``at_low`` and ``at_high``.

    Constants that err together move together, as in :meth:`Hardware.sample`, and schedules stay as they are, as in
    :meth:`Estimate.draws`. The widest row is first; constants without effect are left out.
    """
    import pandas

    h, layers = hardware(hw), vgg_small()
    pair = estimate_layers(without_norm(layers), plans.bold(signals), h), estimate_layers(layers, "fp32", h)

    def percent(changed: Hardware) -> float:
        bold, real = (sum(sum(w.energy(changed, reprice).values()) for w in e.works) for e in pair)
        return 100 * bold / real

    groups: dict[str, dict[str, Constant]] = {}
    for name, constant in h.constants().items():
        family = name.partition(".")[0]
        own_group = family == "extra" or name == "mac.bool_pair"
        groups.setdefault(name if own_group else family, {})[name] = constant
    middle, rows = percent(h), []
    for group, members in groups.items():
        at_low, at_high = (percent(h.at({name: getattr(c, end) for name, c in members.items()})) for end in ("low", "high"))
        if max(abs(at_low - middle), abs(at_high - middle)) > 1e-9 * middle:
            rows.append(
                {
                    "constant": _named(group),
                    "interval": _interval(members.values()),
                    "at_low": at_low,
                    "percent": middle,
                    "at_high": at_high,
                }
            )
    frame = pandas.DataFrame(rows)
    order = (frame["at_high"] - frame["at_low"]).abs().sort_values(ascending=False).index
    frame = frame.loc[order].reset_index(drop=True)
    frame.attrs |= {"hardware": hw, "signals": signals}
    return frame


def _named(group: str) -> str:
    names: Mapping[str, str] = {
        "mac": "price table of arithmetic",
        "mac.bool_pair": "a Boolean pair",
        "extra.scale": "scale of all arithmetic",
    }
    return names.get(group, f"{group} access")


def _interval(members: Iterable[Constant]) -> str:
    """The interval of constants that move together, if it is one."""
    first, *others = members
    if all((c.low, c.high) == (first.low, first.high) for c in others):
        return f"{first.low:g} to {first.high:g}{'' if first.unit == '1' else ' ' + first.unit}"
    return "each in its own interval"


def tornado_figure(frame: pandas.DataFrame) -> Figure:
    """Bars from the figure at the low end to the one at the high end of each constant's interval."""
    import plotly.graph_objects as go

    from tracking.figures import layout, text
    from tracking.styles import COLOURS, INK

    hw, middle = frame.attrs["hardware"], frame["percent"].iloc[0]
    names = [text(f"{c} ({i})") for c, i in zip(frame["constant"], frame["interval"], strict=True)]
    figure = go.Figure()
    for column, name, colour, marker in (
        ("at_low", "at the interval's low end", COLOURS[0], "circle"),
        ("at_high", "at its high end", COLOURS[1], "diamond"),
    ):
        figure.add_trace(
            go.Bar(
                x=frame[column] - middle,
                y=names,
                base=middle,
                orientation="h",
                showlegend=False,
                hoverinfo="skip",
                width=0.5,
                marker={"color": colour, "opacity": 0.35},
            )
        )
        figure.add_trace(
            go.Scatter(
                x=frame[column],
                y=names,
                mode="markers",
                name=name,
                marker={"color": colour, "symbol": marker, "size": 11},
                hovertemplate="%{y}: %{x:.3~g} %",
            )
        )
    figure.add_vline(middle, line={"color": INK, "width": 1.5, "dash": "dot"})
    caption = (
        f"BOLD (signals of {frame.attrs['signals']} bits, no norms) in per cent of FP32, VGG-Small on {hw}, as trained: {middle:.2f} % "
        "(dotted). Each bar: one constant, or those that err together, moved to the ends of its interval; schedules unchanged."
    )
    figure.update_layout(
        layout(
            "What the constants' intervals do",
            f"VGG-Small on {hw}, BOLD with {frame.attrs['signals']}-bit signals",
            caption,
            2,
        ),
        barmode="overlay",
        height=160 + 38 * len(frame),
    )
    figure.update_xaxes(title_text="energy [% of FP32]")
    figure.update_yaxes(autorange="reversed")
    return figure
