"""Models on their way between server and clients: every message is encoded, billed and decoded."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tracking.codecs.base import TensorCodec
from tracking.codecs.dense import Dense
from tracking.codecs.lattice import Lattice
from tracking.codecs.qsgd import QSGD
from tracking.codecs.uniform import Uniform
from workbench.method import Context, derive_seed
from workbench.methods.federated._params import FederatedParams

DENSE = {"dense_fp32": Dense("fp32"), "dense_bf16": Dense("bf16"), "lattice": Dense("fp32")}
"""Codecs of a message whose receiver has no model of its own to decode with: a first model never goes on a lattice."""


def upload(
    p: FederatedParams,
    start: Tensor,
    end: Tensor,
    clients: np.ndarray,
    contacts: np.ndarray,
    server: Tensor,
    ctx: Context,
) -> Tensor:
    """What the server gets of the models ``end`` ``(m, P)``.

    Models are sent as they are, or on the lattice round the server's own; the other codecs send the difference to the
    model ``start`` that the client began from, which the server knows. The noise of a message belongs to (seed,
    client, contact).
    """
    arrived = []
    for i, (client, contact) in enumerate(zip(clients.tolist(), contacts.tolist(), strict=True)):
        party, codec = f"client {client}", _codec(p, ctx.seed, client, contact)
        if p.upload.startswith("dense"):
            arrived.append(ctx.ledger.send(end[i], codec, "up", party).to(end))
        elif p.upload == "lattice":
            arrived.append(ctx.ledger.send(end[i], codec, "up", party, reference=server).to(end))
        else:
            arrived.append(start[i] + ctx.ledger.send(end[i] - start[i], codec, "up", party).to(end))
    return torch.stack(arrived)


def _codec(p: FederatedParams, seed: int, client: int, contact: int) -> TensorCodec:
    if p.upload.startswith("dense"):
        return DENSE[p.upload]
    rng = (derive_seed(seed, "codec", client), contact)
    if p.upload == "lattice":
        return Lattice(p.lattice_bits, p.lattice_side, rng=rng)
    if p.upload == "qsgd":
        return QSGD(p.qsgd_levels, rng=rng)
    return Uniform(int(p.upload.removeprefix("int")), rounding="stochastic", rng=rng)


def download(p: FederatedParams, model: Tensor, clients: np.ndarray, ctx: Context) -> Tensor:
    """One server model to many clients, billed to each; returns what they all get, ``(P,)``."""
    if not len(clients):
        return model
    parties = [f"client {c}" for c in clients.tolist()]
    return ctx.ledger.broadcast(model, DENSE[p.download], "down", parties)[parties[0]].to(model)


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
