"""Conditions of the network as parameters: presence, whom the server draws, how long messages take; and what contradicts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.federated_events import Clients
from tests.federated_events import buffered as plain_buffered
from tests.federated_helpers import CLASSES, Clouds, Federation
from tracking.codecs import Dense
from tracking.codecs.lattice import Lattice
from tracking.codecs.uniform import Uniform
from tracking.errors import UserError
from tracking.links import Link
from workbench.federation.clock import TIE, Speeds, stream
from workbench.federation.reweighting import client_moments, measured_moments
from workbench.federation.trace import arrivals, buffered, contacts, rounds, windows
from workbench.methods.federated._aggregator import Work
from workbench.methods.federated.asyncsgd import AsyncSGD, AsyncSGDTraining
from workbench.methods.federated.favas import FAVASTraining
from workbench.methods.federated.fedavg import FedAvgTraining
from workbench.methods.federated.fedbuff import FedBuffTraining
from workbench.spec import resolve

AWAY = {"present_time": 30.0, "absent_time": 20.0}
LINK = {"upload_bandwidth": 400.0, "download_bandwidth": 1000.0, "latency_s": 0.5}


# --- presence ---------------------------------------------------------------------------------------------


@CLASSES
def test_absence_is_that_of_the_law_and_is_learnt_through(cls):
    f = Federation(cls, clients=6, horizon=400.0, **AWAY)
    trace = f.method.schedule
    assert trace.facts["availability"] == {"up_mean": 30.0, "down_mean": 20.0}
    spans = f.method.clock(int(trace.facts["seed"]))["availability"].spans(6, trace.facts["seed"], 400.0 * (1 + TIE))
    there = Clients(f.method.client_speeds, 0, spans).there
    if trace.kind == "contacts":  # the others may deliver in the very moment in which they leave
        assert all(there(int(i), t) for i, t in zip(trace.client, trace.time[trace.step - 1], strict=True))
    always = Federation(cls, clients=6, horizon=400.0).method.schedule
    assert trace.steps.sum() < 0.9 * always.steps.sum()
    assert torch.isfinite(f.run()).all()


def test_who_is_gone_for_good_delivers_no_more():
    f = Federation(FedBuffTraining, clients=8, horizon=200.0, lifetime=150.0, buffer=1)
    trace = f.method.schedule
    leaves = [s[-1, 1] if len(s) else 0.0 for s in f.method.clock(trace.facts["seed"])["availability"].spans(8, trace.facts["seed"], 200.0)]
    assert min(leaves) < 100
    for i, end in enumerate(leaves):
        assert (trace.time[trace.step - 1][trace.client == i] <= end + 3.0 * 8 + 1e-6).all()  # exchanges queue for 3 units each


def test_the_server_may_draw_from_those_present_alone():
    skipping = Federation(FAVASTraining, clients=9, selected=1, horizon=700.0, **AWAY).method.schedule
    choosing = Federation(FAVASTraining, clients=9, selected=1, horizon=700.0, select="present", **AWAY).method.schedule
    assert (np.diff(choosing.offsets) == 1).all()
    assert 0.35 < np.diff(skipping.offsets).mean() < 0.85  # a share 0.6 is there: 100 draws, standard error 0.05
    with pytest.raises(UserError, match=r"selects 6 of the clients that are present, and only \d of 9"):
        Federation(FAVASTraining, clients=9, selected=6, horizon=300.0, select="present", **AWAY)


# --- whom the server draws --------------------------------------------------------------------------------


def test_a_bias_draws_clients_in_proportion_to_a_power_of_their_speed():
    n, T = 6, 4000
    speeds = Speeds.two_classes(n, slow_fraction=0.5, fast=2.0, slow=8.0)
    p = np.where(speeds.mean == 2.0, 4.0, 1.0)
    p /= p.sum()
    trace = contacts(speeds, selected=1, K=1, server_steps=T, p=p)
    share = trace.deliveries() / T
    assert (abs(share - p) < 5 * np.sqrt(p / T)).all()
    f = Federation(FedAvgTraining, clients=6, selected=2, slow_time=8.0, slow_fraction=0.5, speed_bias=1.0, horizon=3000.0)
    heard, slow = f.method.schedule.deliveries(), f.method.client_speeds.mean == 8.0
    # two of six in proportion to 4 and 1: fast ones are (12/15)(1 + 8/11) + (3/15)(12/14) = 1.553 of the two
    assert heard[~slow].sum() / heard.sum() == pytest.approx(1.553 / 2, abs=5 * (0.25 / heard.sum()) ** 0.5)


def test_biased_jobs_are_weighted_by_their_probability():
    f = Federation(AsyncSGDTraining, jobs=3, speed_bias=1.0, slow_fraction=0.5, horizon=300.0)
    p = 1 / f.method.client_speeds.mean
    assert f.state.aggregator.weight.numpy() == pytest.approx(1 / (4 * p / p.sum()))
    assert f.method.schedule.facts["p"] == pytest.approx(p / p.sum())
    rule, start = AsyncSGD(weight=torch.tensor([2.0, 0.5])), torch.zeros(1, 1)
    work = Work(torch.tensor([1]), torch.tensor([1]), torch.tensor([4]))
    assert rule.aggregate(torch.zeros(1), start, torch.ones(1, 1), work).item() == 0.5
    assert AsyncSGD(2.0, rule.weight).aggregate(torch.zeros(1), start, torch.ones(1, 1), work).item() == 0.25
    assert torch.isfinite(f.run()).all()


@pytest.mark.parametrize("change", [{"speed_bias": 1.0}, AWAY, LINK, {"lifetime": 1e4}], ids=lambda c: "-".join(c))
def test_favas_takes_the_moments_of_the_trace_where_its_closed_form_does_not_hold(change):
    f = Federation(FAVASTraining, horizon=3000.0, **change)
    assert np.array_equal(f.state.aggregator.mean_steps, measured_moments(f.method.schedule).mean, equal_nan=True)
    plain = Federation(FAVASTraining, horizon=3000.0)
    law = client_moments(plain.method.client_speeds, selected=2, K=3, D=7.0)
    assert np.array_equal(plain.state.aggregator.mean_steps, law.mean)


# --- messages take time -----------------------------------------------------------------------------------


def test_times_are_those_of_the_encoded_messages_on_each_clients_link():
    P = 59  # parameters of the network of the clouds
    like = torch.zeros(P)
    lengths = {"dense_fp32": len(Dense().encode(like)), "dense_bf16": len(Dense("bf16").encode(like)),
               "int4": len(Uniform(4, rounding="stochastic").encode(like)), "lattice": len(Lattice(14, 1e-4).encode(like))}
    for upload, size in lengths.items():
        f = Federation(FAVASTraining, upload=upload, unit_s=2.0, **LINK)
        want = (0.5 + size / 400.0 + 0.5 + lengths["dense_fp32"] / 1000.0) / 2.0
        assert f.method.transfer == pytest.approx(np.full(4, want))
    uneven = Federation(FAVASTraining, clients=40, link_spread=1.0, **LINK).method.transfer
    factor = (lengths["dense_fp32"] / 400.0 + lengths["dense_fp32"] / 1000.0) / (uneven - 1.0)
    assert np.log(factor).std() == pytest.approx(1.0, abs=0.4)  # the standard error of 40 is 0.11
    assert np.array_equal(uneven[:20], Federation(FAVASTraining, clients=20, link_spread=1.0, **LINK).method.transfer)
    assert Link(0.5, 400.0, 1000.0).seconds(100, "up") == pytest.approx(0.75)


def test_a_server_step_lasts_as_long_as_its_slowest_exchange_and_clients_work_in_between():
    """Brute force over contacts: nothing of the generator but its draws."""
    n, K, seed = 7, 4, 3
    speeds, transfer = Speeds.two_classes(n, slow=6.0), np.linspace(0.0, 3.0, n)
    trace = contacts(speeds, selected=3, K=K, horizon=300.0, seed=seed, transfer=transfer)
    now, rng, last = 0.0, {i: stream(seed, "steps", i) for i in range(n)}, dict.fromkeys(range(n), 0.0)
    for t in range(len(trace.time)):
        rows = slice(trace.offsets[t], trace.offsets[t + 1])
        now += 7.0 + max(transfer[i] for i in trace.client[rows])
        assert trace.time[t] == pytest.approx(now)
        for i, steps in zip(trace.client[rows].tolist(), trace.steps[rows], strict=True):
            ends = np.cumsum([speeds.draw(i, rng[i], (1,))[0] for _ in range(K)])
            assert steps == (ends <= now - last[i] - transfer[i]).sum()
            last[i] = now
    assert now <= 300.0 < now + 7.0 + 3.0
    even = contacts(speeds, selected=3, K=K, horizon=300.0, seed=seed)
    free = contacts(speeds, selected=3, K=K, horizon=300.0, seed=seed, transfer=np.zeros(n))
    assert np.allclose(even.time, free.time)
    assert np.array_equal(even.client, free.client)
    assert np.array_equal(even.steps, free.steps)


@pytest.mark.parametrize("make", [
    lambda s, **k: buffered(s, Z=2, K=3, horizon=400.0, **k), lambda s, **k: arrivals(s, C=4, K=2, horizon=400.0, **k),
    lambda s, **k: arrivals(s, C=5, K=2, route="same", horizon=400.0, **k), lambda s, **k: windows(s, dt=9.0, K=3, horizon=400.0, **k),
    lambda s, **k: rounds(s, selected=3, K=3, horizon=400.0, **k)], ids=["buffered", "arrivals", "same", "windows", "rounds"])
def test_a_job_with_messages_is_a_longer_job(make):
    """Fixed steps of one unit and 2 units of messages a job of K steps: the trace of steps of ``1 + 2/K`` units."""
    n = 5
    one = make(Speeds(np.ones(n), "fixed"), transfer=np.full(n, 2.0))
    K = int(one.facts["K"])
    other = make(Speeds(np.full(n, 1 + 2 / K), "fixed"))
    assert np.allclose(one.time, other.time)
    for name in ("client", "steps", "start", "contact"):
        assert np.array_equal(getattr(one, name), getattr(other, name))


def test_messages_and_absence_together_are_those_of_the_plain_simulation():
    n, horizon = 6, 300.0
    f = Federation(FedBuffTraining, clients=n, buffer=2, horizon=horizon, local_steps=2, link_spread=0.5, **LINK, **AWAY)
    trace = f.method.schedule
    seed = trace.facts["seed"]
    clients = Clients(f.method.client_speeds, seed, f.method.clock(seed)["availability"].spans(n, seed, horizon * (1 + TIE)))
    clients.job = lambda i, t, K: clients.end(i, t, sum(clients.step(i) for _ in range(K)) + f.method.transfer[i])
    times, rows = plain_buffered(clients, 2, 2, 3.0, horizon)
    assert trace.time == pytest.approx(times)
    assert list(zip(trace.step, trace.client, trace.steps, trace.start, strict=True)) == [row[:4] for row in rows]


def test_slow_links_cost_fedavg_more_than_favas():
    """FedAvg's round is as long as its slowest chain of messages and work; FAVAS waits for the messages alone."""
    slow = {"upload_bandwidth": 20.0, "download_bandwidth": 20.0}
    ratio = {}
    for cls in (FedAvgTraining, FAVASTraining):
        with_links, without = (Federation(cls, Clouds(), horizon=2000.0, **kind).method.schedule for kind in (slow, {}))
        ratio[cls.id] = with_links.step_time - without.step_time
    P_bytes = len(Dense().encode(torch.zeros(59)))
    for id, extra in ratio.items():
        assert extra == pytest.approx(2 * P_bytes / 20.0, rel=0.25), id


# --- what is refused --------------------------------------------------------------------------------------

REFUSED = [
    ("favas", {"absent_time": 3.0}, "absent_time = 3.0 is refused. Allowed: 0 with present_time = 0"),
    ("favas", {"present_time": 3.0}, "present_time = 3.0 .* nobody is ever absent"),
    ("favas", {"present_time": -1.0}, "present_time = -1.0"),
    ("fedavg", {"upload_bandwidth": 10.0}, "download_bandwidth = 0.0 .* 0 < x"),
    ("fedbuff", {"download_bandwidth": 10.0}, "download_bandwidth = 10.0 .* upload_bandwidth is 0"),
    ("favas", {"latency_s": 0.1}, "latency_s = 0.1 .* 0 without"),
    ("favas", {"link_spread": 0.1}, "link_spread = 0.1 .* 0 without"),
    ("favas", {"unit_s": 60.0}, "unit_s = 60.0 .* no message takes time"),
    ("favas", LINK | {"upload": "qsgd"}, "upload = 'qsgd' .* lengths must not depend on weights"),
    ("favas", LINK | {"upload": "levels", "local": "askewsgd"}, "upload = 'levels' .* lengths must not"),
    ("asyncsgd", {"speed_bias": 1.0, "route": "same"}, "speed_bias = 1.0 .* 0 with route = 'same'"),
    ("favas", {"select": "presnt"}, "Did you mean 'present'"),
    ("fedbuff", {"select": "present"}, "no parameter 'select'"),
]


@pytest.mark.parametrize(("method", "params", "said"), REFUSED)
def test_contradictions_are_refused_with_the_rule(method, params, said):
    with pytest.raises(UserError, match=said):
        resolve(method, "digits/perceptron", params)


@pytest.mark.parametrize(("call", "said"), [
    (lambda s: contacts(s, selected=2, K=1, horizon=99, p=np.full(8, 1.0)), "8 positive numbers, one a client, of sum 1"),
    (lambda s: rounds(s, selected=2, K=1, horizon=99, p=np.full(7, 1 / 7)), "8 positive numbers"),
    (lambda s: contacts(s, selected=2, K=1, horizon=99, transfer=np.full(8, -1.0)), "8 finite times of messages"),
    (lambda s: buffered(s, Z=2, K=1, horizon=99, transfer=np.full(8, math.inf)), "8 finite times of messages"),
    (lambda s: windows(s, dt=2, K=1, horizon=99, transfer=np.ones(3)), "8 finite times of messages"),
    (lambda s: contacts(s, selected=2, K=1, horizon=8.0, transfer=np.full(8, 9.0)), "No server step"),
])
def test_wrong_conditions_are_refused(call, said):
    with pytest.raises(UserError, match=said):
        call(Speeds(np.ones(8)))
