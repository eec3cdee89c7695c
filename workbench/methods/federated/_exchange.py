"""Models on their way between server and clients: every message is encoded, billed and decoded."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tracking.codecs.base import Codec
from tracking.codecs.dense import Dense
from tracking.codecs.lattice import Lattice
from tracking.codecs.levels import Levels
from tracking.codecs.qsgd import QSGD
from tracking.codecs.randomness import keys, uniform
from tracking.codecs.uniform import Uniform
from workbench.method import Context, derive_seed
from workbench.methods.federated._params import FederatedParams
from workbench.methods.lowbit._levels import LEVELS, Weights, sawb_scale

DENSE = {"dense_fp32": Dense("fp32"), "dense_bf16": Dense("bf16"), "lattice": Dense("fp32")}
"""Codecs of a message whose receiver has no model of its own to decode with: a first model never goes on a lattice."""


class Part(NamedTuple):
    """A stretch of the flat vector of a network: one parameter."""

    size: int
    quantised: bool


class Layout(NamedTuple):
    """What the flat vector of a partly quantised network is made of, for messages of level numbers."""

    parts: Sequence[Part] = ()
    scales: Sequence[float] = ()
    """Steps between levels by quantised part, where they are fixed."""


def upload(
    p: FederatedParams,
    start: Tensor,
    end: Tensor,
    clients: np.ndarray,
    contacts: np.ndarray,
    server: Tensor,
    ctx: Context,
    layout: Layout = Layout(),  # noqa: B008
) -> Tensor:
    """What the server gets of the models ``end`` ``(m, P)``.

    Models are sent as they are, as level numbers, or on the lattice round the server's own; the other codecs send the
    difference to the model ``start`` that the client began from, which the server knows. The noise of a message belongs
    to (seed, client, contact). ``layout`` is what the vector is made of, for level numbers.
    """
    arrived = []
    for i, (client, contact) in enumerate(zip(clients.tolist(), contacts.tolist(), strict=True)):
        party, codec = f"client {client}", _codec(p, ctx.seed, client, contact, start[i], layout)
        if p.upload.startswith("dense") or p.upload == "levels":
            arrived.append(ctx.ledger.send(end[i], codec, "up", party).to(end))
        elif p.upload == "lattice":
            arrived.append(ctx.ledger.send(end[i], codec, "up", party, reference=server).to(end))
        else:
            arrived.append(start[i] + ctx.ledger.send(end[i] - start[i], codec, "up", party).to(end))
    return torch.stack(arrived)


def _codec(p: FederatedParams, seed: int, client: int, contact: int, start: Tensor, layout: Layout) -> Codec:
    if p.upload.startswith("dense"):
        return DENSE[p.upload]
    rng = (derive_seed(seed, "codec", client), contact)
    if p.upload == "levels":
        return LevelNumbers(p.quantised_weights, layout, start, rng)
    if p.upload == "lattice":
        return Lattice(p.lattice_bits, p.lattice_side, rng=rng)
    if p.upload == "qsgd":
        return QSGD(p.qsgd_levels, rng=rng)
    return Uniform(int(p.upload.removeprefix("int")), rounding="stochastic", rng=rng)


class LevelNumbers:
    """A model whose quantised parameters lie near levels: numbers of levels for these, float32 for the others.

    Weights between two levels go to one of them at random without bias, those on a level stay: so a message is the more
    exact the further a client's weights have settled. The step between levels is that of the client's training where it
    is fixed, else by SAWB of ``start``, the model it received; and as much longer as it takes for the outer levels to
    enclose all weights.
    """

    name = "levels"

    def __init__(self, weights: Weights, layout: Layout, start: Tensor, rng: tuple[int, int]) -> None:
        self.weights, self.parts, self.start, self.keys = weights, layout.parts, start, keys(rng)
        self.scales = layout.scales

    def encode(self, value: Tensor) -> bytes:
        own, begun = (x.cpu().split([part.size for part in self.parts]) for x in (value, self.start))
        noise = torch.from_numpy(uniform(self.keys.next(), sum(part.size for part in self.parts if part.quantised)))
        fixed, payloads, plain = iter(self.scales), [], [value.new_empty(0, device="cpu")]
        for part, w, w0 in zip(self.parts, own, begun, strict=True):
            if part.quantised:
                scale = torch.tensor(next(fixed), dtype=w.dtype) if self.scales else sawb_scale(w0, self.weights)
                payloads.append(Levels().encode(self._rounded(w, scale, noise[: part.size])))
                noise = noise[part.size :]
            else:
                plain.append(w)
        return b"".join(struct.pack("<I", len(p)) + p for p in (*payloads, Dense("fp32").encode(torch.cat(plain))))

    def _rounded(self, w: Tensor, scale: Tensor, noise: Tensor) -> Tensor:
        levels = LEVELS[self.weights]
        low, gap = levels[0], levels[1] - levels[0]
        scale = torch.stack([scale, w.amax() / levels[-1], w.amin() / low]).amax()
        place = ((w / scale - low) / gap).add_(noise).floor_().clamp_(0, len(levels) - 1)
        return (low + gap * place) * scale

    def decode(self, payload: bytes) -> Tensor:
        found, rest = [], memoryview(payload)
        while len(rest):
            end = 4 + struct.unpack("<I", rest[:4])[0]
            found.append(bytes(rest[4:end]))
            rest = rest[end:]
        quantised = iter([Levels().decode(p) for p in found[:-1]])
        plain = iter(Dense("fp32").decode(found[-1]).split([part.size for part in self.parts if not part.quantised]))
        return torch.cat([next(quantised if part.quantised else plain) for part in self.parts])


def message_bytes(p: FederatedParams, like: Tensor) -> tuple[int, int]:
    """Encoded lengths of a delivery and of a server's model, of as many values as ``like``; for codecs of fixed length."""
    down = Lattice(p.lattice_bits, p.lattice_side) if p.download == "lattice" else DENSE[p.download]
    return len(_codec(p, 0, 0, 0, like, Layout()).encode(like)), len(down.encode(like))


def download(p: FederatedParams, model: Tensor, clients: np.ndarray, ctx: Context) -> Tensor:
    """One server model to many clients, billed to each; returns what they all get, ``(P,)``."""
    if not len(clients):
        return model
    parties = [f"client {c}" for c in clients.tolist()]
    return ctx.ledger.multicast(model, DENSE[p.download], "down", parties).to(model)


def download_on_lattice(p: FederatedParams, model: Tensor, clients: np.ndarray, own: Tensor, ctx: Context) -> Tensor:
    """One server model to many clients on a lattice; each decodes with its own model ``own[i]``. Returns ``(m, P)``."""
    parties = [f"client {c}" for c in clients.tolist()]
    got = ctx.ledger.broadcast(
        model, Lattice(p.lattice_bits, p.lattice_side), "down", parties, dict(zip(parties, own, strict=True))
    )
    return torch.stack([got[party] for party in parties]).to(own)


class Groups:
    """Positions of equal numbers in a vector of numbers below ``size``."""

    def __init__(self, keys: np.ndarray, size: int) -> None:
        self.order = np.argsort(keys, kind="stable")
        self.ends = np.searchsorted(keys[self.order], np.arange(size + 1))

    def of(self, key: int) -> np.ndarray:
        """Ascending positions of ``key``."""
        return self.order[self.ends[key] : self.ends[key + 1]]
