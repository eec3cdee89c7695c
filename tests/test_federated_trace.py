"""Traces in virtual time: each generator against a simulator that goes event by event, and against laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import federated_events as events
from tracking.errors import UserError
from workbench.federation.availability import Availability, Presence
from workbench.federation.clock import Speeds, stream
from workbench.federation.trace import Trace, arrivals, buffered, contacts, rounds, windows

FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
# durations that add without rounding, so that events at one time (fixed and geometric steps make many) are ties in
# both simulators
MEANS = st.sampled_from([1.0, 1.5, 2.0, 4.0, 16.0])
LAWS = st.sampled_from(["exponential", "geometric", "fixed"])
SPEEDS = st.builds(Speeds, st.lists(MEANS, min_size=1, max_size=6), LAWS)
PRESENT = st.builds(Availability, up_mean=st.sampled_from([5.0, 40.0]), down_mean=st.sampled_from([0.0, 3.0, 20.0]))
ON_OFF = st.none() | PRESENT


def check_same(trace: Trace, times: list, rows: list) -> None:
    """Equal in all whole numbers; times up to the order in which K durations and spans of presence are summed."""
    step, client, steps, start, began = np.array(rows, float).reshape(-1, 5).T
    np.testing.assert_allclose(trace.time, times, rtol=1e-12, atol=1e-9)
    for got, wanted in ((trace.step, step), (trace.client, client), (trace.steps, steps), (trace.start, start)):
        np.testing.assert_array_equal(got, wanted)
    np.testing.assert_allclose(trace.began, began, rtol=1e-12, atol=1e-9)


def twin_of(speeds: Speeds, seed: int, availability: Availability | None, horizon: float) -> events.Clients:
    return events.Clients(speeds, seed, availability and availability.spans(speeds.n, seed, horizon * (1 + 1e-9)))


def same_or_both_empty(make, times: list, rows: list) -> None:
    if times:
        check_same(make(), times, rows)
    else:
        with pytest.raises(UserError, match="No server step"):
            make()


# --- event by event -----------------------------------------------------------------------------------------


@FEW
@given(SPEEDS, st.integers(1, 6), st.integers(1, 5), st.sampled_from([1.0, 4.0, 7.0]), st.integers(0, 99),
       st.booleans(), st.booleans(), ON_OFF)
def test_contacts_event_by_event(speeds, s, K, D, seed, keep, at_zero, availability):
    s, T = min(s, speeds.n), 15
    horizon = D * (T - at_zero)
    trace = contacts(speeds, selected=s, K=K, waiting=D - 1, interaction=1, horizon=horizon, seed=seed,
                     retain_partial_step=keep, first_contact_at_zero=at_zero, availability=availability)
    check_same(trace, *events.contacts(twin_of(speeds, seed, availability, horizon), seed, s, K, D, T, keep, at_zero))


@FEW
@given(SPEEDS, st.integers(1, 6), st.integers(1, 5), st.sampled_from([0.0, 3.0]), st.integers(0, 99))
def test_rounds_event_by_event(speeds, s, K, interaction, seed):
    s = min(s, speeds.n)
    times, rows = events.rounds(events.Clients(speeds, seed), seed, s, K, interaction, 120.0)
    end = dict(interaction=interaction, horizon=120, seed=seed)
    same_or_both_empty(lambda: rounds(speeds, selected=s, K=K, **end), times, rows)


@FEW
@given(SPEEDS, st.integers(1, 6), st.integers(1, 4), st.sampled_from([0.0, 3.0, 0.5]), st.integers(0, 99),
       st.booleans(), ON_OFF)
def test_buffered_event_by_event(speeds, Z, K, interaction, seed, old, availability):
    Z = min(Z, speeds.n)
    times, rows = events.buffered(twin_of(speeds, seed, availability, 100.0), Z, K, interaction, 100.0, old)
    end = dict(interaction=interaction, horizon=100, seed=seed, availability=availability)
    same_or_both_empty(lambda: buffered(speeds, Z=Z, K=K, restart_from_old=old, **end), times, rows)


@FEW
@given(SPEEDS, st.integers(1, 9), st.integers(1, 4), st.sampled_from([0.0, 0.5, 3.0]), st.integers(0, 99),
       st.sampled_from(["uniform", "same", "p"]), ON_OFF)
def test_arrivals_event_by_event(speeds, C, K, interaction, seed, route, availability):
    """``route="same"`` without exchange and absence is generated client by client; all else from an event queue."""
    p = np.arange(1, speeds.n + 1) / np.arange(1, speeds.n + 1).sum()
    weights = p if route == "p" else np.full(speeds.n, 1 / speeds.n)
    cdf = None if route == "same" else (weights.cumsum() / weights.sum()).tolist()
    times, rows = events.arrivals(twin_of(speeds, seed, availability, 60.0), seed, C, K, cdf, interaction, 60.0)
    end = dict(interaction=interaction, horizon=60, seed=seed, availability=availability)
    ways = {"uniform": {}, "same": {"route": "same"}, "p": {"p": p}}[route]
    same_or_both_empty(lambda: arrivals(speeds, C=C, K=K, **ways, **end), times, rows)


@FEW
@given(SPEEDS, st.integers(1, 4), st.sampled_from([0.5, 2.0, 5.0]), st.integers(0, 99), ON_OFF)
def test_windows_event_by_event(speeds, K, dt, seed, availability):
    times, rows = events.windows(twin_of(speeds, seed, availability, 20 * dt), dt, K, 20)
    check_same(windows(speeds, dt=dt, K=K, horizon=20 * dt, seed=seed, availability=availability), times, rows)


# --- laws -----------------------------------------------------------------------------------------------------


def test_selection_is_uniform_without_replacement_and_gaps_are_geometric():
    n, s, T = 12, 3, 20_000
    trace = contacts(Speeds(np.ones(n)), selected=s, K=1, server_steps=T, seed=1)
    assert (np.diff(trace.offsets) == s).all()
    p = s / n
    # 4.5 standard deviations of a binomial count; pairs tell selection without replacement from independent draws
    assert np.abs(trace.deliveries() - T * p).max() < 4.5 * math.sqrt(T * p * (1 - p))
    pairs = np.bincount((trace.client.reshape(T, s)[:, :2] * [n, 1]).sum(1), minlength=n * n)
    assert pairs.reshape(n, n)[np.tril_indices(n)].sum() == 0  # sorted, all different
    gaps = (trace.step - trace.start)[trace.contact >= 0]
    for g in range(1, 8):
        share = p * (1 - p) ** (g - 1)
        assert abs((gaps == g).sum() - len(gaps) * share) < 4.5 * math.sqrt(len(gaps) * share)


@pytest.mark.parametrize(("mean", "expected", "positive"), [(16.0, 1.09, 0.365), (2.0, 11.9, None)])
def test_keeping_the_partial_step_slows_clients_down(mean, expected, positive):
    """An interrupted step is longer than most. Figures: an independent calculation, given to the digits shown."""
    trace = contacts(Speeds(np.full(100, mean)), selected=20, K=20, server_steps=4000, seed=0, retain_partial_step=True)
    late = trace.start > 200  # past the start, where no step has been interrupted yet
    error = 4 * trace.steps[late].std() / math.sqrt(late.sum() / 4)  # contacts of one client are dependent: fewer count
    assert trace.steps[late].mean() == pytest.approx(expected, abs=error + (0.005 if mean == 16 else 0.05))
    if positive:
        assert (trace.steps[late] > 0).mean() == pytest.approx(positive, abs=0.008)


def test_round_time_is_the_maximum_of_gamma_sums():
    stats = pytest.importorskip("scipy.stats")
    trace = rounds(Speeds(np.full(5, 2.0)), selected=3, K=4, interaction=1.5, server_steps=3000, seed=3)
    lasts = np.diff(trace.time, prepend=0.0) - 1.5
    assert stats.kstest(lasts, lambda x: stats.gamma.cdf(x, 4, scale=2.0) ** 3).pvalue > 0.01
    assert stats.kstest(lasts, lambda x: stats.gamma.cdf(x, 4, scale=2.0) ** 2).pvalue < 1e-6  # the test can fail
    speeds = Speeds.two_classes(100, seed=0)
    # a slow client (20 steps of mean 16) is nearly always among 20
    assert 380 < rounds(speeds, selected=20, K=20, server_steps=300).step_time < 430


def test_asyncsgd_throughput_is_that_of_a_closed_jackson_network():
    """Product form: with C jobs the throughput is G(C-1)/G(C), G by Buzen's convolution over the queues' loads p_i
    mean_i."""
    mean, p, C = np.array([1.0, 2.0, 5.0]), np.array([0.5, 0.3, 0.2]), 4
    G = np.array([1.0] + [0.0] * C)
    for load in mean * p:
        for k in range(1, C + 1):
            G[k] += load * G[k - 1]
    trace = arrivals(Speeds(mean), C=C, p=p, horizon=60_000, seed=2)
    # arrivals of such a network are about as variable as a Poisson process: 4 standard deviations of ~40 000
    assert len(trace.time) / 60_000 == pytest.approx(G[C - 1] / G[C], rel=4 / math.sqrt(len(trace.time)))
    np.testing.assert_allclose(trace.deliveries() / len(trace.time), p, atol=0.01)
    # every job in flight is one that others overtake: mean staleness is C - 1 exactly, up to the ends
    assert trace.staleness.mean() == pytest.approx(C - 1, abs=0.01)


def test_fedasync_favours_fast_clients_and_uniform_routing_does_not():
    speeds = Speeds(np.array([1.0] * 5 + [4.0] * 5))
    same = arrivals(speeds, C=10, route="same", horizon=4000, seed=0).deliveries()
    uniform = arrivals(speeds, C=10, horizon=4000, seed=0).deliveries()
    assert same[:5].sum() / same[5:].sum() == pytest.approx(4, rel=0.06)
    assert uniform[:5].sum() / uniform[5:].sum() == pytest.approx(1, rel=0.1)


def test_about_17_versions_are_alive_for_20_of_100_clients():
    trace = contacts(Speeds.two_classes(100), selected=20, K=20, server_steps=1000)
    alive, step = trace.alive_versions(), trace.step
    for t in (1, 2, 500, 990, 1000):
        assert alive[t - 1] == len(set(trace.start[(step >= t) & (trace.start < t)].tolist()))
    # version of age a is alive unless each of its 20 clients was contacted since
    expected = sum(1 - (1 - 0.8**a) ** 20 for a in range(200))
    assert alive[100:900].mean() == pytest.approx(expected, abs=0.2)
    assert round(expected) == 17


def test_work_that_ends_with_the_deadline_is_in_time():
    """Tenths add up in decimals, not in binary: seven steps of 0.1 fit in each 0.7; work of 1.1 is eleven windows."""
    trace = contacts(Speeds([0.1], "fixed"), selected=1, K=20, waiting=0.4, interaction=0.3, server_steps=200)
    assert set(trace.steps) == {7}
    assert len(contacts(Speeds([0.1]), selected=1, K=1, waiting=0.1, interaction=0.2, horizon=0.9).time) == 3
    tenths = np.arange(1, 41)
    trace = windows(Speeds.for_work(tenths / 10, K=3), dt=0.1, K=3, server_steps=400)
    assert trace.deliveries().tolist() == (400 // tenths).tolist()
    always = Availability(leaves=np.full(40, 1e9))  # the same by way of spans of presence
    same = windows(Speeds.for_work(tenths / 10, K=3), dt=0.1, K=3, horizon=40, availability=always)
    assert same.table().equals(trace.table())


# --- clients --------------------------------------------------------------------------------------------------


def test_more_clients_change_nobody_elses_work():
    means = np.array([1.0, 2.0, 3.0, 16.0, 2.5, 1.0])
    few, many = (windows(Speeds(means[:m]), dt=3.0, K=2, horizon=300, seed=7).table() for m in (4, 6))
    assert few.equals(many[many.client < 4].reset_index(drop=True))
    few, many = (contacts(Speeds(means[:m]), selected=m, K=9, server_steps=40, seed=7).table() for m in (4, 6))
    assert few.equals(many[many.client < 4].reset_index(drop=True))
    changed = contacts(Speeds(means[:4]), selected=4, K=9, server_steps=40, seed=8).table()
    assert not changed.steps.equals(few.steps)


def test_speeds():
    default = Speeds.two_classes(90)
    assert sorted(default.mean) == [2.0] * 60 + [16.0] * 30
    assert set(np.flatnonzero(default.mean == 16)) != set(range(30))
    assert Speeds.two_classes(9, slow_fraction=8 / 9, slow_first=True).mean.tolist() == [16.0] * 8 + [2.0]
    assert Speeds.two_classes(100).mean.tolist().count(16.0) == 34  # rounded up, as in QuAFL's simulator
    np.testing.assert_allclose(Speeds.linear(5, 80, K=10).mean * 10, [1, 0.8, 0.6, 0.4, 0.2])
    rng = stream(0, "law")
    for law, deviation in (("exponential", 5.0), ("geometric", math.sqrt(20)), ("fixed", 0.0)):
        draws = Speeds([5.0], law).draw(0, rng, (40_000,))
        assert draws.mean() == pytest.approx(5.0, abs=0.1)  # 4 standard errors
        assert draws.std() == pytest.approx(deviation, abs=0.15)
    assert Speeds([5.0], "geometric").draw(0, rng, (9999,)).min() == 1


@pytest.mark.parametrize("suffix", ["csv", "npz"])
def test_measured_step_times(tmp_path, suffix):
    path = tmp_path / f"times.{suffix}"
    client, duration = [1, 0, 1, 1], [2.0, 5.0, 3.0, 2.5]
    if suffix == "csv":
        path.write_text("client,duration\n" + "\n".join(f"{c},{d}" for c, d in zip(client, duration, strict=True)))
    else:
        np.savez(path, client=client, duration=duration)
    speeds = Speeds.from_file(path)
    assert speeds.mean.tolist() == [5.0, 2.5]
    draws = speeds.draw(1, stream(0, "law"), (3000,))
    assert set(draws) == {2.0, 3.0, 2.5}
    assert draws.mean() == pytest.approx(2.5, abs=0.03)
    trace = rounds(speeds, selected=2, K=2, interaction=0, horizon=40)
    assert np.diff(trace.time, prepend=0).tolist() == [10.0] * 4  # two steps of client 0


# --- availability -----------------------------------------------------------------------------------------------


def test_share_of_presence_and_drop_out():
    spans = Availability(up_mean=30, down_mean=10, life_mean=2000).spans(400, 0, 1000.0)
    presence = Presence(400, spans)
    early = np.mean([presence.there(i, np.linspace(0, 20, 50)) for i in range(400)])
    alive = np.mean([presence.last(i) == np.inf for i in range(400)])
    assert early == pytest.approx(0.75, abs=0.07)  # ~4 standard errors of 400 clients that hardly change in 20 units
    assert alive == pytest.approx(math.exp(-0.5), abs=0.1)
    late = [presence.there(i, presence.last(i) + 1.0) for i in range(400) if presence.last(i) < np.inf]
    assert late
    assert not any(late)


def test_a_client_that_is_gone_is_contacted_no_more_and_others_do_not_wait_for_it():
    speeds, leaves = Speeds(np.ones(6), "fixed"), np.array([50.0, np.inf, np.inf, np.inf, 0.0, np.inf])
    gone = Availability(leaves=leaves)
    for trace in (contacts(speeds, selected=3, K=5, horizon=400, availability=gone),
                  rounds(speeds, selected=3, K=5, horizon=400, availability=gone),
                  buffered(speeds, Z=3, K=5, horizon=400, availability=gone),
                  arrivals(speeds, C=6, K=5, horizon=400, availability=gone),
                  windows(speeds, dt=7, K=5, horizon=400, availability=gone)):
        table = trace.table()
        assert table.time.max() > 380, trace.kind
        assert (table.client != 4).all(), trace.kind
        # what it had finished before it left may be taken in at the end of the step or window under way
        assert table.time[table.client == 0].max() <= 60, trace.kind
        assert table.time[table.client == 0].max() > 10, trace.kind
