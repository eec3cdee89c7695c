"""One federated round: modelled joules of the clients' steps beside those that media from the literature give its messages, on request."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from tracking.codecs.registry import codec
from tracking.energy_model import Layer, estimate_layers, trace
from tracking.errors import UserError, unknown
from tracking.links import media, network_joules
from tracking.links.media import NOTE

if TYPE_CHECKING:
    import pandas
    from plotly.graph_objects import Figure

    from tracking.report import Table

CODECS = ("dense_fp32", "int8", "sign")
"""Of the upload; the model goes down in fp32."""
HOPS = 3
"""Switches between two racks of a data centre, for the medium that counts by the hop (our choice)."""


class Round(NamedTuple):
    """One round of federated averaging as each of its clients sees it."""

    local_steps: int = 20
    batch_size: int = 50


ROUND = Round()

NETWORKS: dict[str, tuple[str, tuple[int, int, int]]] = {
    "perceptron on MNIST": ("perceptron", (1, 28, 28)),
    "VGG-Small on CIFAR-10": ("vgg_small", (3, 32, 32)),
}


class Sent(NamedTuple):
    """A network as the energy model sees it, and the bytes of its weights by codec."""

    layers: tuple[Layer, ...]
    parameters: int
    payload_bytes: dict[str, int]


@lru_cache
def network(name: str, batch_size: int) -> Sent:
    """Trace of a network of :data:`NETWORKS` for a local batch; payloads are those of random tensors of its shapes (the codecs here have
    a fixed length).
    """
    import torch

    from workbench.datasets import models

    if name not in NETWORKS:
        raise unknown("network", name, NETWORKS)
    model, shape = NETWORKS[name]
    made = models.build(model, shape, 10, 1.0, torch.Generator().manual_seed(0))
    payloads = {c: sum(len(codec(c).encode(p)) for p in made.parameters()) for c in CODECS}
    return Sent(trace(made, (batch_size, *shape)), sum(p.numel() for p in made.parameters()), payloads)


def round_energy(
    hardware: str, chosen: Sequence[str] = (), setting: Round = ROUND, scenario: str = "as_trained"
) -> pandas.DataFrame:
    """A row for each network, codec of the upload and medium: what one client's round takes in computing and in messages.

    Without media there are bytes and no joules of a network: ``chosen`` is the explicit wish, because the choice of the medium decides
    every conclusion. ``network_j`` has the interval ``network_low`` to ``network_high`` of its source; ``ratio`` is network over compute.
    Raises :class:`UserError` for hardware without joules and for unknown media.
    """
    import pandas

    per_hop = {row["medium"]: row["per_hop"] for row in media()}
    rows = []
    for name in NETWORKS:
        sent = network(name, setting.batch_size)
        step = estimate_layers(sent.layers, "fp32", hardware, scenario)
        compute = setting.local_steps * step.total_j
        for form in CODECS:
            down, up = sent.payload_bytes["dense_fp32"], sent.payload_bytes[form]
            row = {
                "network": name,
                "parameters": sent.parameters,
                "upload": form,
                "down_bytes": down,
                "up_bytes": up,
                "compute_j": compute,
            }
            for medium in chosen:
                if medium not in per_hop:
                    raise unknown("medium", medium, per_hop)
                found = network_joules(down + up, medium, HOPS if per_hop[medium] else None)
                rows.append(
                    row
                    | {
                        "medium": f"{medium}, {HOPS} hops" if per_hop[medium] else medium,
                        "network_j": found.joules,
                        "network_low": found.low,
                        "network_high": found.high,
                        "ratio": found.joules / compute,
                        "year": found.year,
                        "boundary": found.boundary,
                        "tag": found.tag,
                    }
                )
            if not chosen:
                rows.append(row)
    frame = pandas.DataFrame(rows)
    frame.attrs |= {"hardware": hardware, "scenario": scenario, "setting": setting}
    return frame


def shown_rounds(frame: pandas.DataFrame) -> Table:
    """:func:`round_energy` for reading, dense uploads only: a row for each medium, two columns for each network.

    Raises :class:`UserError` where no medium was chosen.
    """
    import pandas

    from tracking.report import Table

    if "medium" not in frame:
        raise UserError(
            "No medium was chosen, so there are no network joules to show. "
            "Name some: round_energy(hardware, ['fixed_access_2020'])."
        )
    dense = frame[frame["upload"] == CODECS[0]]
    table, facts = {}, []
    for name, own in dense.groupby("network", sort=False):
        by = own.set_index("medium")
        table |= {f"{name} [J]": by["network_j"], f"{name}, network / compute": by["ratio"]}
        first = own.iloc[0]
        moved = (first["down_bytes"] + first["up_bytes"]) / 1e6
        facts.append(f"{name}: {first['compute_j']:.3g} J of computing, {moved:.3g} MB of messages")
    shown = pandas.DataFrame(table).reset_index()
    shown["figure is"] = dense.drop_duplicates("medium")["tag"].to_numpy()
    caption = f"Joules of the messages of one client's round, fp32 down and up; {'; '.join(facts)}. All modelled. {NOTE}"
    return Table(shown, caption)


def media_table() -> Table:
    """What the figure of each medium covers, and where it is from."""
    import pandas

    from tracking.report import Table

    rows = [
        {
            "medium": row["medium"] + (", a hop" if row["per_hop"] else ""),
            "year": None if row["year"] is None else str(row["year"]),
            "J a bit": f"{row['joules_per_bit']['value']:.2e}",
            "interval": f"{row['joules_per_bit']['low']:.1e} to {row['joules_per_bit']['high']:.1e}",
            "boundary": row["boundary"],
            "source": row["source"],
        }
        for row in media()
    ]
    return Table(pandas.DataFrame(rows), "Joules a bit by medium: the figure, its system boundary and its source.")


def round_figure(frame: pandas.DataFrame) -> Figure:
    """Network over compute energy by medium; right of the line at 1 the network dominates."""
    import plotly.graph_objects as go

    from tracking.figures import layout, text
    from tracking.styles import COLOURS, INK

    hardware, setting = frame.attrs["hardware"], frame.attrs["setting"]
    names = list(dict.fromkeys(frame["medium"]))
    groups = [(n, c) for n in NETWORKS for c in (CODECS[0], CODECS[-1])]
    figure = go.Figure()
    for number, (name, form) in enumerate(groups):
        own = frame[(frame["network"] == name) & (frame["upload"] == form)]
        colour, marker = COLOURS[number // 2], ("circle", "square", "diamond", "cross")[number]
        low, high = own["network_low"] / own["compute_j"], own["network_high"] / own["compute_j"]
        figure.add_trace(
            go.Scatter(
                x=own["ratio"],
                y=[names.index(m) + 0.17 * (number - (len(groups) - 1) / 2) for m in own["medium"]],
                mode="markers",
                name=text(f"{name}, upload {form}"),
                hovertext=own["medium"].map(text),
                hovertemplate="%{hovertext}: %{x:.2~g}",
                marker={"color": colour, "symbol": marker, "size": 10},
                error_x={
                    "type": "data",
                    "array": high - own["ratio"],
                    "arrayminus": own["ratio"] - low,
                    "thickness": 1.5,
                    "width": 4,
                    "color": colour,
                },
            )
        )
    figure.add_vline(1, line={"color": INK, "width": 1.5, "dash": "dot"})
    caption = (
        f"One client's round: {setting.local_steps} steps of {setting.batch_size} images, modelled in fp32 on {hardware}, model down and "
        "up once. Horizontal: joules of its messages over joules of its steps, interval of the medium's figure; left of the dotted "
        f"line computing dominates, right of it the network. {NOTE}"
    )
    figure.update_layout(
        layout(
            "Network against compute energy of a federated round",
            f"compute modelled on {hardware}",
            caption,
            len(groups),
        ),
        height=240 + 55 * len(names),
    )
    figure.update_xaxes(title_text="network / compute energy", type="log", exponentformat="power", dtick=1)
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=[text(n.replace("_", " ")) for n in names], autorange="reversed"
    )
    return figure


def dominates(frame: pandas.DataFrame) -> dict[str, str]:
    """By medium, which of the two dominates a round with dense uploads: ``network``, ``compute``, or ``it depends``.

    On the whole interval of the medium and for every network, else it depends.
    """
    found = {}
    for medium, own in frame[frame["upload"] == CODECS[0]].groupby("medium", sort=False):
        low, high = (own["network_low"] / own["compute_j"]).min(), (own["network_high"] / own["compute_j"]).max()
        found[str(medium)] = "network" if low > 1 else "compute" if high < 1 else "it depends"
    return found
