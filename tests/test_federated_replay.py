"""Replaying a trace: against a plain loop with a model a client, and the mean-model identity of FAVAS."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.federated_helpers import CLASSES, ROUNDING, Federation, Slope
from tracking.errors import UserError
from workbench.federation.reweighting import client_moments
from workbench.methods.federated.favas import FAVASTraining

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
