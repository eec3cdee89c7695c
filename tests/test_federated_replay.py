"""Replaying a trace: against a plain loop with a model a client; bytes, resuming, divergence, 10,000 clients."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.federated_helpers import ROUNDING, Clouds, Federation, Slope
from tests.test_engine import lasting
from tracking.codecs import Dense
from tracking.codecs.lattice import Lattice
from tracking.codecs.qsgd import QSGD
from tracking.codecs.uniform import Uniform
from tracking.errors import UserError
from workbench.control import Stopped
from workbench.federation.reweighting import client_moments
from workbench.method import derive_seed
from workbench.methods.federated.asyncsgd import AsyncSGDTraining
from workbench.methods.federated.favas import FAVASTraining
from workbench.methods.federated.fedasync import FedAsyncTraining
from workbench.methods.federated.fedavg import FedAvgTraining
from workbench.methods.federated.fedbuff import FedBuffTraining
from workbench.methods.federated.fedfix import FedFixTraining
from workbench.methods.federated.quafl import QuAFLTraining
from workbench.runs import run
from workbench.state import restore, snapshot

METHODS = (
    FedAvgTraining,
    FedBuffTraining,
    AsyncSGDTraining,
    FedAsyncTraining,
    FedFixTraining,
    FAVASTraining,
    QuAFLTraining,
)
CLASSES = pytest.mark.parametrize("cls", METHODS, ids=lambda c: c.id)


# --- brute force ------------------------------------------------------------------------------------------


class Everyone:
    """All clients with their models in full and all server models ever made; the rules in words, one client at a time."""

    def __init__(self, f: Federation) -> None:
        self.f, self.p, self.trace = f, f.method.params, f.method.schedule
        self.server = f.first()
        self.history, self.held, self.contacts = [self.server], [self.server] * self.p.clients, [0] * self.p.clients
        self.steps_seen: list[list[int]] = [[] for _ in self.held]

    def server_steps(self):
        for t in range(len(self.trace.time)):
            deliveries = []
            for k in range(self.trace.offsets[t], self.trace.offsets[t + 1]):
                i, E, version = int(self.trace.client[k]), int(self.trace.steps[k]), int(self.trace.start[k])
                start = self.held[i] if self.f.method.id == "quafl" else self.history[version]
                lr = self.p.lr * ((self.p.selected + 1) / self.p.selected if self.f.method.id == "quafl" else 1)
                end = self.f.trained(start, i, self.contacts[i], E, lr)
                self.contacts[i] += 1
                self.steps_seen[i].append(E)
                deliveries.append((i, E, t - version, start, end))
            old = self.server
            if deliveries:
                self.server = getattr(self, self.f.method.id)(old, deliveries)
            for i, _, _, _, end in deliveries:
                s = len(deliveries)
                self.held[i] = old / (s + 1) + end * s / (s + 1) if self.f.method.id == "quafl" else self.server
            self.history.append(self.server)
            yield self.server

    def fedavg(self, w, deliveries):
        return w + self.p.server_lr * sum(end - start for *_, start, end in deliveries) / len(deliveries)

    def fedbuff(self, w, deliveries):
        for _, _, tau, start, end in deliveries:
            v = 1 / math.sqrt(1 + tau) if self.p.staleness == "sqrt" else 1
            w = w + self.p.server_lr * v * (end - start) / self.p.buffer
        return w

    def asyncsgd(self, w, deliveries):
        for _, _, tau, start, end in deliveries:
            w = w + (end - start) * (min(1, self.p.patience / tau) if self.p.patience and tau else 1)
        return w

    def fedasync(self, w, deliveries):
        for _, _, tau, _, end in deliveries:
            s = {
                "constant": 1,
                "polynomial": (1 + tau) ** -self.p.a,
                "hinge": 1 if tau <= self.p.b else 1 / (self.p.a * (tau - self.p.b) + 1),
            }[self.p.staleness]
            w = (1 - self.p.mixing * s) * w + self.p.mixing * s * end
        return w

    def fedfix(self, w, deliveries):
        n, tau = self.p.clients, self.f.method.client_speeds.mean * self.p.local_steps
        for i, *_, start, end in deliveries:
            d = {
                "fedavg": 1 / n,
                "async": (1 / tau).sum() * tau[i] / n,
                "fedfix": math.ceil(tau[i] / self.p.dt) / n,
                "fedbuff": len(self.trace.time) / max((self.trace.client == i).sum(), 1) / n,
            }[self.p.scheme]
            w = w + self.p.server_lr * d * (end - start)
        return w

    def favas(self, w, deliveries):
        law = client_moments(
            self.f.method.client_speeds,
            selected=self.p.selected,
            K=self.p.local_steps,
            D=self.p.waiting_time + self.p.interaction_time,
        )
        total = w
        for i, E, _, start, end in deliveries:
            alpha = {
                "stochastic": law.positive[i] * E,
                "deterministic": law.mean[i],
                "estimated": max(np.mean(self.steps_seen[i]), 1e-3),
            }[self.p.reweighting]
            total = total + start + ((end - start) / alpha if E else 0)
        return total / (len(deliveries) + 1)

    def quafl(self, w, deliveries):
        return (w + sum(end for *_, end in deliveries)) / (len(deliveries) + 1)


COMMON = {
    "clients": st.integers(1, 6),
    "local_steps": st.integers(1, 4),
    "slow_fraction": st.sampled_from([0.0, 0.5, 1.0]),
    "step_law": st.sampled_from(["exponential", "geometric", "fixed"]),
    "slow_time": st.sampled_from([3.0, 8.0]),
    "partition": st.sampled_from(["iid", "sorted_shards", "dirichlet_equal", "fedfix"]),
    "horizon": st.sampled_from([30.0, 70.0]),
    "lr": st.sampled_from([0.05, 0.2]),
    "report_every": st.sampled_from([1e-9, 1e9]),
}
OWN = {
    "fedavg": {"selected": st.integers(1, 6), "server_lr": st.sampled_from([0.5, 1.0])},
    "fedbuff": {
        "buffer": st.integers(1, 6),
        "staleness": st.sampled_from(["none", "sqrt"]),
        "restart_from_old": st.booleans(),
    },
    "asyncsgd": {
        "jobs": st.integers(1, 9),
        "route": st.sampled_from(["uniform", "same"]),
        "patience": st.sampled_from([0.0, 2.0]),
    },
    "fedasync": {"staleness": st.sampled_from(["constant", "polynomial", "hinge"]), "b": st.sampled_from([0.0, 2.0])},
    "fedfix": {
        "scheme": st.sampled_from(["fedfix", "fedavg", "async", "fedbuff"]),
        "dt": st.sampled_from([7.0, 20.0]),
        "buffer": st.just(1),
    },
    "favas": {
        "selected": st.integers(1, 6),
        "reweighting": st.sampled_from(["stochastic", "deterministic", "estimated"]),
    },
    "quafl": {"selected": st.integers(1, 6), "scale_lr": st.just(True)},
}


@CLASSES
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_replay_equals_a_plain_loop_with_a_model_for_every_client(cls, data):
    params = {name: data.draw(values, name) for name, values in (COMMON | OWN[cls.id]).items()}
    for name in ("selected", "buffer"):
        if name in params:
            params[name] = min(params[name], params["clients"])
    try:
        f = Federation(cls, seed=data.draw(st.integers(0, 99), "seed"), **params)
    except UserError as error:  # a random round may not fit in the horizon; a client may never deliver
        assert "horizon" in str(error) or "Every client must deliver" in str(error)  # noqa: PT017
        return
    wanted = list(Everyone(f).server_steps())
    for _ in f:  # server steps at the same time are one report
        torch.testing.assert_close(f.state.server, wanted[f.state.step - 1], **ROUNDING)
    assert f.state.step == len(wanted)
    assert f.state.gradients == f.method.schedule.steps.sum()
    assert f.state.samples == f.state.gradients * f.method.params.batch_size
    assert not f.state.versions, "no version outlives the last work begun from it"


@CLASSES
def test_reports_change_nothing_and_tell_means_over_contacts(cls):
    often, once = Federation(cls), Federation(cls, report_every=1e6)
    rows = list(often)
    (total,) = list(once)
    assert torch.equal(often.state.server, once.state.server)
    assert total["train/gradients"] == rows[-1]["train/gradients"] > 0
    trace = often.method.schedule
    worked = [int((trace.steps[a:b] > 0).sum()) for a, b in zip(trace.offsets, trace.offsets[1:], strict=False)]
    losses = [row.get("train/loss", 0.0) * k for row, k in zip(rows, worked, strict=True)]
    assert total["train/loss"] == pytest.approx(sum(losses) / sum(worked))
    assert [row["clock/virtual_s"] for row in rows] == trace.time.tolist()


def test_loss_and_spread_are_those_of_the_contacted_clients():
    f = Federation(FAVASTraining, clients=5, selected=3)
    brute, trace = Everyone(f), f.method.schedule
    for t, (row, _) in enumerate(zip(f, brute.server_steps(), strict=True)):
        k = range(trace.offsets[t], trace.offsets[t + 1])
        ends = [
            f.trained(
                brute.history[trace.start[j]], int(trace.client[j]), int(trace.contact[j]), int(trace.steps[j]), 0.1
            )
            for j in k
        ]
        spread = 5 * np.mean([float((end - brute.history[t]).square().sum()) for end in ends])
        assert row["train/client_spread"] == pytest.approx(spread, rel=1e-3)


# --- the mean model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reweighting", ["stochastic", "deterministic", "estimated"])
def test_mean_model_of_favas_moves_by_the_reweighted_gradients_exactly(reweighting):
    """``mu_t = mu_{t-1} - eta/(n+1) sum_{S_t} (1/alpha_i) sum_q g_q`` with ``mu = (w + sum_i w_init_i)/(n+1)``.

    On a loss that is linear in the weights the gradients are known without any training: mean inputs of the batches.
    """
    f = Federation(FAVASTraining, Slope(), clients=7, selected=3, horizon=210.0, lr=0.3, reweighting=reweighting)
    trace, aggregator, eta, n = f.method.schedule, copy.deepcopy(f.state.aggregator), 0.3, 7
    w_init = [f.first().double()] * n
    mu = f.first().double()
    for t, _ in enumerate(f):
        k = slice(trace.offsets[t], trace.offsets[t + 1])
        drift = torch.zeros(6, dtype=torch.float64)
        for i, E, c in zip(trace.client[k].tolist(), trace.steps[k].tolist(), trace.contact[k].tolist(), strict=True):
            seen = trace.steps[(trace.client == i) & (trace.contact <= c)]
            alpha = {
                "stochastic": lambda i=i, E=E: float(aggregator.p_positive[i]) * E,
                "deterministic": lambda i=i: float(aggregator.mean_steps[i]),
                "estimated": seen.mean,
            }[reweighting]()
            if E:
                drift += f.task.train_x[f.samples(i, c, E)].double().mean(1).sum(0) / alpha
        mu = mu - eta / (n + 1) * drift
        for i in trace.client[k]:
            w_init[i] = f.state.server.double()
        # 30 server steps of float32 sums of order 10
        torch.testing.assert_close((f.state.server.double() + sum(w_init)) / (n + 1), mu, rtol=1e-5, atol=1e-4)
    assert mu.norm() > 1, "it moved"


# --- bytes ------------------------------------------------------------------------------------------------


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
    from workbench.methods.federated._exchange import upload as send

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


# --- noise, state and ends --------------------------------------------------------------------------------


@CLASSES
def test_state_goes_through_a_snapshot_in_the_middle(cls):
    whole, half = Federation(cls), Federation(cls)
    rows = list(whole)
    middle = len(rows) // 2
    for _, _ in zip(range(middle), half, strict=False):
        pass
    twin = Federation(cls)
    twin.state = restore(twin.state, copy.deepcopy(snapshot(half.state)))
    assert list(twin) == rows[middle:]
    assert torch.equal(twin.state.server, whole.state.server)


@pytest.mark.parametrize("cls", [FAVASTraining, QuAFLTraining, FedBuffTraining], ids=lambda c: c.id)
def test_stopped_in_the_middle_and_resumed_it_has_the_same_journal(cls, monkeypatch):
    params = cls.example["params"] | {"horizon": 250.0, "report_every": 20.0, "eval_every": 60.0}

    def go(**kwargs):
        return run(
            cls.id,
            "digits/perceptron",
            params,
            task_params={"train_size": 200, "test_size": 50},
            threads=1,
            tracking="off",
            progress=False,
            checkpoint_s=0,
            **kwargs,
        )

    whole = lasting(go())
    train, calls = cls.train, [0]

    def stopping(self, *args):
        calls[0] += 1
        if calls[0] == 9:  # within a server step, after others of the same report
            raise Stopped("by the test")
        return train(self, *args)

    monkeypatch.setattr(cls, "train", stopping)
    assert go(fresh=True).status == "stopped"
    monkeypatch.setattr(cls, "train", train)
    resumed = go()
    assert resumed.status == "finished"
    assert not resumed.cached
    assert lasting(resumed) == whole


class Hazard(Clouds):
    """One client's inputs are infinite."""

    def setup(self, ctx):
        super().setup(ctx)
        self.train_x = self.train_x.clone()
        self.train_x[0] = math.inf


def bad_client(f: Federation) -> int:
    return next(i for i in range(f.method.params.clients) if 0 in f.method.shares.of(i))


def all_selected(cls: type) -> dict[str, int]:
    return {"selected": 4} if cls is FedAvgTraining else {}  # few rounds: the bad client is to be in one


@CLASSES
def test_drop_leaves_diverged_deliveries_out_and_counts_them(cls):
    # 15 samples a client, 3 steps of 32: its bad sample is in a delivery with probability 1 - (14/15)^96 > 0.998
    f = Federation(cls, Hazard(), on_divergence="drop", batch_size=32, **all_selected(cls))
    bad = bad_client(f)
    rows = list(f)
    assert all(math.isfinite(v) for row in rows for v in row.values())
    assert torch.isfinite(f.state.server).all()
    trace = f.method.schedule
    diverged = ((trace.client == bad) & (trace.steps > 0)).sum()
    assert rows[-1]["train/diverged"] == pytest.approx(diverged, rel=0.1)
    assert (
        f"client {bad}" not in rows_of(f, "up") or rows_of(f, "up")[f"client {bad}"][1] < 0.5 * trace.deliveries()[bad]
    )
    assert torch.isfinite(torch.stack([torch.zeros(59), *f.state.own.values()])).all()


@CLASSES
def test_stop_says_so_with_a_loss_that_is_no_number(cls):
    f = Federation(cls, Hazard(), batch_size=32, report_every=1e6, **all_selected(cls))
    row = next(iter(f))
    assert math.isnan(row["train/loss"])
    assert row["train/diverged"] == 1
    assert torch.isfinite(f.state.server).all()


def test_the_engine_ends_such_a_run_as_diverged(monkeypatch):
    train, params = FAVASTraining.train, FAVASTraining.example["params"] | {"upload": "qsgd", "horizon": 300.0}

    def poisoned(self, stack, *args):
        loss = train(self, stack, *args)
        stack[0, 0] = math.nan  # the loss is still a number; the codec would refuse the model
        return loss

    monkeypatch.setattr(FAVASTraining, "train", poisoned)
    ended = run("favas", "digits/perceptron", params, threads=1, tracking="off", progress=False)
    assert ended.status == "diverged"
    assert "train/loss = nan" in ended.reason


def test_clip_shortens_long_differences_and_drops_the_rest():
    f = Federation(FAVASTraining, Hazard(), on_divergence="clip", clip_norm=0.05, batch_size=32, lr=1.0)
    moves, inner = [], f.state.aggregator.aggregate
    f.state.aggregator.aggregate = lambda server, start, end, work: (
        moves.append((end - start).norm(dim=1)) or inner(server, start, end, work)
    )
    rows = list(f)
    lengths = torch.cat(moves)
    assert lengths.max() <= 0.05 * (1 + 1e-4)
    assert (lengths > 0.0499).any()
    assert rows[-1]["train/diverged"] > 3
    assert torch.isfinite(f.state.server).all()


CHILD = """
import resource, sys, torch
torch.set_num_threads(1)
from tests.federated_helpers import Federation
from workbench.methods.federated.favas import FAVASTraining
from workbench.registry import load_task
cls = load_task("digits/perceptron")
task = cls("perceptron", cls.Params())
setup = type(task).setup
def many(self, ctx):
    setup(self, ctx)
    self.train_x, self.train_y = self.train_x.repeat(14, 1, 1, 1), self.train_y.repeat(14)
type(task).setup = many
f = Federation(FAVASTraining, task, clients=10_000, selected=2000, local_steps=20, batch_size=32, horizon=140.0, lr=0.5)
f.run()
accuracy = f.method.evaluate(f.state, task, f.ctx)["eval/accuracy"]
print(f.state.gradients, accuracy, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_ten_thousand_clients_fit_in_four_gibibytes():
    child = subprocess.run(
        [sys.executable, "-c", CHILD],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"PYTHONPATH": "."},
        timeout=280,
    )
    assert child.returncode == 0, child.stderr
    gradients, accuracy, peak = map(float, child.stdout.split())
    assert gradients > 200_000
    assert accuracy > 0.3  # chance is 0.1; twenty server steps, each of a fifth of one gradient step of the mean model
    assert peak * 1024 < 4 * 2**30  # Linux counts in KiB
