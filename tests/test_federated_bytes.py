"""Bytes of federated trainings: every delivery and download on the bill, and the server using what payloads decode to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.federated_helpers import CLASSES, Federation
from tracking.codecs import Dense
from tracking.codecs.lattice import Lattice
from tracking.codecs.qsgd import QSGD
from tracking.codecs.uniform import Uniform
from workbench.method import derive_seed
from workbench.methods.federated._exchange import upload as send
from workbench.methods.federated.asyncsgd import AsyncSGDTraining
from workbench.methods.federated.favas import FAVASTraining


def rows_of(f: Federation, direction: str) -> dict[str, tuple[int, int]]:
    return {k.party: (r.bytes, r.messages) for k, r in f.ctx.ledger.rows.items() if k.direction == direction}


@CLASSES
def test_dense_bytes_are_deliveries_and_downloads_times_the_payload(cls):
    f = Federation(cls)
    f.run()
    trace, size = f.method.schedule, len(Dense().encode(f.first()))
    up = {f"client {i}": (size * k, k) for i, k in enumerate(trace.deliveries().tolist()) if k}
    assert rows_of(f, "up") == up
    if trace.kind == "rounds":  # a model at the beginning of each work
        down = trace.deliveries()
    elif trace.kind == "arrivals":  # likewise, for jobs that come in; the others have no known party
        down = np.bincount(trace.client, minlength=trace.n)
    else:  # a first model for all that ever deliver, and one at each contact
        down = trace.deliveries() + (trace.deliveries() > 0)
    assert rows_of(f, "down") == {f"client {i}": (size * k, k) for i, k in enumerate(down.tolist()) if k}


@pytest.mark.parametrize("upload", ["dense_bf16", "qsgd", "int8", "int4", "lattice"])
@pytest.mark.parametrize("cls", [FAVASTraining, AsyncSGDTraining], ids=lambda c: c.id)
def test_the_server_uses_what_the_payloads_decode_to(cls, upload, monkeypatch):
    f = Federation(cls, upload=upload, lattice_bits=14, lattice_side=1e-3)
    trace, used, size = f.method.schedule, [], 0
    inner = f.state.aggregator.aggregate
    monkeypatch.setattr(
        f.state.aggregator,
        "aggregate",
        lambda server, start, end, work: used.append((server, start, end, work)) or inner(server, start, end, work),
    )
    f.run()
    for t, (server, start, end, work) in enumerate(used):
        for j in range(len(end)):
            i, c, E = int(work.clients[j]), int(trace.contact[trace.offsets[t] + j]), int(work.steps[j])
            trained = f.trained(start[j], i, c, E, 0.1)
            rng = (derive_seed(0, "codec", i), c)
            codec = {
                "dense_bf16": Dense("bf16"),
                "qsgd": QSGD(16, rng=rng),
                "lattice": Lattice(14, 1e-3, rng=rng),
                "int8": Uniform(8, rounding="stochastic", rng=rng),
                "int4": Uniform(4, rounding="stochastic", rng=rng),
            }[upload]
            payload = codec.encode(trained if upload in ("dense_bf16", "lattice") else trained - start[j])
            size += len(payload)
            if upload == "lattice":
                want, step = codec.decode(payload, server), 1e-3
            elif upload == "dense_bf16":
                want, step = codec.decode(payload), float(trained.abs().max()) / 128
            else:
                want, step = start[j] + codec.decode(payload), float((trained - start[j]).norm()) / 7 + 1e-6
            # the independent training differs by rounding, which may tip a value to the next level: never further,
            # and hardly ever
            assert ((end[j] - want).abs() <= 1.01 * step).all()
            assert ((end[j] - want).abs() > 1e-5).float().mean() < 0.1
    up = sum(b for b, _ in rows_of(f, "up").values())
    assert up == pytest.approx(size, rel=0.02)  # the entropy codes of tipped levels differ in length
    assert up < 0.8 * sum(r.dense_bytes for k, r in f.ctx.ledger.rows.items() if k.direction == "up")


@pytest.mark.parametrize("upload", ["qsgd", "int8", "int4"])
def test_coded_uploads_are_unbiased(upload):
    """Mean over 400 seeds of the codec's noise, training held fixed: within 5 standard errors in each coordinate."""
    f = Federation(FAVASTraining, upload=upload, clients=1, selected=1)
    start = torch.zeros(1, 59)
    end = torch.randn(1, 59, generator=torch.Generator().manual_seed(0))
    got = []
    for seed in range(400):
        f.ctx.seed = seed
        got.append(send(f.method.params, start, end, np.zeros(1, np.int32), np.zeros(1, np.int32), start[0], f.ctx)[0])
    got = torch.stack(got)
    error, step = got.std(0) / 20, (got.amax(0) - got.amin(0)).max()
    # next to a level the other one is drawn a few times or never: Poisson, not normal
    assert ((got.mean(0) - end[0]).abs() <= 5 * error + 12 * step / 400).all()
    assert (error > 0).float().mean() > 0.9, "there is noise to average"


def test_half_precision_downloads_are_what_clients_begin_from():
    f = Federation(FAVASTraining, download="dense_bf16", clients=5, selected=2)
    for _ in f:
        for model in f.state.versions.values():
            assert torch.equal(model, model.bfloat16().float())
    dense = Federation(FAVASTraining, clients=5, selected=2)
    dense.run()
    assert sum(b for b, _ in rows_of(f, "down").values()) < 0.55 * sum(b for b, _ in rows_of(dense, "down").values())
