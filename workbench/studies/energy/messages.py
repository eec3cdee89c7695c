"""What a codec makes of a real model update: packed bytes, error, bias, and the entropy of the same symbols."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tracking.codecs.registry import codec
from tracking.codecs.vq import VectorQuantiser, fit_codebook

if TYPE_CHECKING:
    import pandas
    from plotly.graph_objects import Figure

    from workbench.runs import Run

Tensors = Mapping[str, Tensor]
CODEWORDS, VECTOR = 256, 4


class Update(NamedTuple):
    """Weights by name, where the training of a run began and where it ended."""

    start: dict[str, Tensor]
    end: dict[str, Tensor]

    @property
    def change(self) -> dict[str, Tensor]:
        """What a client of a federation would send."""
        return {name: self.end[name] - start for name, start in self.start.items()}


def update_of(run: Run) -> Update:
    """Initial weights, drawn again from the run's seed, and trained ones of an ended run. Data is needed only to build the task."""
    from workbench.method import Context

    state, job = run.state()
    ctx = Context(device=torch.device("cpu"), seed=run.spec["seed"])
    job.task.setup(ctx)
    fresh = job.method.init(job.task, ctx)
    start, end = ({name: p.detach().cpu().clone() for name, p in s.model.named_parameters()} for s in (fresh, state))
    return Update(start, end)


class Coding(NamedTuple):
    """One way to send an update: ``of(name)`` is the codec of a tensor. ``extra_bytes`` go along once (a codebook)."""

    of: Callable[[str], Any]
    flat: bool = False
    extra_bytes: int = 0


def codings(change: Tensors, seed: int = 0) -> dict[str, Coding]:
    """Every codec of the package that carries an arbitrary real tensor, at a usual setting, by the name it has in figures."""

    def one(name: str, **options: Any) -> Coding:
        made = codec(name, **options)
        return Coding(lambda _: made)

    power = {rank: codec("power_sgd", rank=rank, rng=seed) for rank in (1, 4)}
    vectors = _vectors(_flat(change))
    book = fit_codebook(vectors, min(CODEWORDS, len(vectors)), rng=seed)
    half = codec("dense_fp16").encode(book)
    side = (
        float(_flat(change).abs().max()) / 120
    )  # 8 bits reach 127.5 sides: the largest change decodes rightly from a reference of zeros
    return {
        "fp32": one("dense_fp32"),
        "fp16": one("dense_fp16"),
        "bf16": one("dense_bf16"),
        "int8": one("int8"),
        "int4": one("int4"),
        "int4, groups of 32": one("int4", group=32, scale="fp16"),
        "int4 stochastic": one("int4", rounding="stochastic", rng=seed),
        "natural": one("natural", rng=seed),
        "QSGD 16 levels": one("qsgd", rng=seed),
        "QSGD 1 level": one("qsgd", levels=1, rng=seed),
        "TernGrad": one("terngrad", rng=seed),
        "sign": one("sign"),
        "top 1 %": one("top_k", fraction=0.01),
        "top 10 %": one("top_k", fraction=0.1),
        "random 10 %": one("random_k", fraction=0.1, rng=seed),
        "lattice 8 bits": one("lattice", bits=8, side=side, dither=True, rng=seed),
        **{f"PowerSGD rank {rank}": Coding(p.of) for rank, p in power.items()},
        f"VQ {CODEWORDS} x {VECTOR}": Coding(
            lambda _: VectorQuantiser(codec("dense_fp16").decode(half)), flat=True, extra_bytes=len(half)
        ),
    }


def _flat(tensors: Tensors) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors.values()])


def _vectors(flat: Tensor) -> Tensor:
    """Rows of :data:`VECTOR` neighbours, the last one filled with zeros."""
    return torch.nn.functional.pad(flat, (0, -len(flat) % VECTOR)).reshape(-1, VECTOR)


def coded(change: Tensors, repeats: int = 8, seed: int = 0) -> pandas.DataFrame:
    """A row for each coding of an update, each tensor a message of its own (VQ: the whole update, and its codebook).

    ``bytes`` are ``len(payload)`` with headers; ``entropy_bytes`` the zero-order entropy of the symbols where it is defined; ``error`` is
    ``||Q(x) - x||^2 / ||x||^2`` in the mean of ``repeats`` messages, ``error_of_mean`` that of their mean: of an unbiased codec it
    falls as 1 / repeats, of a deterministic one not at all (PowerSGD comes nearer from message to message, as it starts from the
    last one). ``bound`` is what the codec promises for any x (omega, or 1 - delta), the worst of the tensors.
    """
    import pandas

    rows = []
    for name, coding in codings(change, seed).items():
        sent = {"update": _vectors(_flat(change))} if coding.flat else dict(change)
        size = sum(float(t.double().square().sum()) for t in sent.values())
        values, entropy, length = sum(t.numel() for t in change.values()), 0.0, coding.extra_bytes
        error = {}
        for tensor, x in sent.items():
            own = coding.of(tensor)
            payloads = [own.encode(x) for _ in range(repeats)]
            got = [_decoded(own, p, x).double() - x.double() for p in payloads]
            length += len(payloads[0])
            entropy += own.entropy_bytes(payloads[0]) if own.entropy_bytes(payloads[0]) is not None else math.nan
            error[tensor] = (
                sum(float(g.square().sum()) for g in got) / repeats,
                float((sum(got) / repeats).square().sum()),
            )
        rows.append(
            {
                "codec": name,
                "bytes": length,
                "bytes_a_value": length / values,
                "entropy_bytes_a_value": (entropy + coding.extra_bytes) / values,
                "error": sum(e for e, _ in error.values()) / size,
                "error_of_mean": sum(m for _, m in error.values()) / size,
                "unbiased": own.unbiased,
                "bound": _bound(coding, sent),
            }
        )
    frame = pandas.DataFrame(rows)
    frame.attrs |= {"values": values, "repeats": repeats}
    return frame


def _decoded(own: Any, payload: bytes, x: Tensor) -> Tensor:
    return own.decode(payload, reference=torch.zeros_like(x)) if own.needs_reference else own.decode(payload)


def _bound(coding: Coding, sent: Tensors) -> float | None:
    """The largest relative error that the codec allows itself on any of the tensors; ``None`` where it states none."""
    bounds = []
    for name, x in sent.items():
        own, n = coding.of(name), x.numel()
        omega, delta = own.variance(n), own.contraction(n)
        bounds.append(omega if omega is not None else None if delta is None else 1 - delta)
    return None if None in bounds else max(bounds)


def shown_codecs(frame: pandas.DataFrame) -> pandas.DataFrame:
    """:func:`coded` for reading."""
    import pandas

    repeats = frame.attrs["repeats"]
    return pandas.DataFrame(
        {
            "codec": frame["codec"],
            "bytes a value": frame["bytes_a_value"],
            "entropy bound [B a value]": frame["entropy_bytes_a_value"],
            "times smaller than fp32": 4 / frame["bytes_a_value"],
            "relative squared error": frame["error"],
            f"of the mean of {repeats}": frame["error_of_mean"],
            "unbiased": ["yes" if u else "no" for u in frame["unbiased"]],
            "promised for any update": frame["bound"],
        }
    )


def codec_figure(frame: pandas.DataFrame) -> Figure:
    """Relative squared error against bytes a value, both logarithmic; squares are biased codecs, circles unbiased ones."""
    import plotly.graph_objects as go

    from tracking.figures import layout, text
    from tracking.labels import label_places
    from tracking.styles import COLOURS

    lossy = frame[frame["error"] > 0].copy()
    x, y = (np.log(lossy[c]) for c in ("bytes_a_value", "error"))
    lossy["place"] = label_places((x - x.min()) / np.ptp(x), (y - y.min()) / np.ptp(y), lossy["codec"])
    figure = go.Figure()
    for unbiased, name, colour, marker in (
        (True, "unbiased", COLOURS[0], "circle"),
        (False, "biased", COLOURS[1], "square"),
    ):
        own = lossy[lossy["unbiased"] == unbiased]
        figure.add_trace(
            go.Scatter(
                x=own["bytes_a_value"],
                y=own["error"],
                mode="markers+text",
                name=name,
                text=own["codec"].map(text),
                textposition=own["place"],
                textfont={"size": 11},
                cliponaxis=False,
                marker={"color": colour, "symbol": marker, "size": 10},
                hovertemplate="%{text}: %{x:.3~g} B a value, error %{y:.2~e}",
            )
        )
    bound = lossy.dropna(subset=["entropy_bytes_a_value"])
    figure.add_trace(
        go.Scatter(
            x=bound["entropy_bytes_a_value"],
            y=bound["error"],
            mode="markers",
            name="entropy of the same symbols",
            marker={"color": "#767676", "symbol": "line-ns-open", "size": 11, "line": {"width": 2}},
            hovertext=bound["codec"].map(text),
            hovertemplate="%{hovertext}: entropy %{x:.3~g} B a value",
        )
    )
    exact = ", ".join(frame.loc[frame["error"] == 0, "codec"])
    caption = (
        f"A real update of {frame.attrs['values']:,} weights. Horizontal: packed bytes a value, headers, scales, places and codebooks "
        f"included; ticks: zero-order entropy of the symbols. Vertical: ||Q(x) - x||² / ||x||², mean of {frame.attrs['repeats']} messages. "
        f"Exact, so not on this scale: {exact or 'none'} (4 bytes a value)."
    )
    figure.update_layout(
        layout("What a message loses, and what it weighs", "left and low is better", caption, 3), height=560
    )
    ticks = [0.03, 0.1, 0.3, 1, 2, 4]
    figure.update_xaxes(
        title_text="packed size [B a value]", type="log", tickvals=ticks, ticktext=[f"{t:g}" for t in ticks]
    )
    figure.update_yaxes(title_text="relative squared error", type="log", exponentformat="power")
    return figure


def exact_messages(update: Update) -> pandas.DataFrame:
    """The codecs for tensors of few values, on those of the same training: signs of the weights, which signs turned, a ternary update.

    Each decodes to what was sent; ``bytes a value`` stands beside the entropy bound.
    """
    import pandas

    end, start = _flat(update.end), _flat(update.start)
    tern = codec("terngrad")
    change = _flat(update.change)
    objects = [
        ("signs of the trained weights", "levels", torch.where(end >= 0, 1.0, -1.0)),
        ("weights whose sign has turned", "mask", (end >= 0) != (start >= 0)),
        ("the update rounded to three values", "ternary", tern.decode(tern.encode(change))),
    ]
    rows = []
    for what, name, value in objects:
        own = codec(name)
        payload = own.encode(value)
        if not torch.equal(own.decode(payload).to(value.dtype), value):
            raise AssertionError(f"the codec {name!r} is not exact")
        bound = own.entropy_bytes(payload)
        rows.append(
            {
                "what is sent": what,
                "codec": name,
                "values": value.numel(),
                "packed bytes": len(payload),
                "bits a value": 8 * len(payload) / value.numel(),
                "entropy bound [bits a value]": None if bound is None else 8 * bound / value.numel(),
            }
        )
    return pandas.DataFrame(rows)
