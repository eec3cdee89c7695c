"""The shared server: closed forms, small time steps, and what must not change the trace."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tracking.errors import UserError
from tracking.links import TLS, Link, Links, SharedServer, max_min_rates, preset

# Finishing times come from a sum over events of rate times duration, all in float64: some hundred roundings of 1e-16 at most here.
EXACT = 1e-9


def deliver(flows, up=1000.0, down=None, **kwargs):
    """Finishing time by party, of (time, bytes, direction, link) tuples."""
    server = SharedServer(up, down, **kwargs)
    for party, (time, n, direction, link) in enumerate(flows):
        server.submit(time, n, direction, link, party)
    return {d.party: d.time_s for d in server.advance()}


@given(st.integers(1, 40), st.integers(1, 10**6))
@settings(deadline=None)
def test_p_equal_uploads_take_p_times_as_long(parties, n):
    found = deliver([(2.0, n, "up", None)] * parties)
    assert list(found.values()) == pytest.approx([2 + parties * n / 1000] * parties, rel=EXACT)


def test_two_staggered_uploads_by_hand():
    """B = 1000 B/s. A (3000 B) starts at 0, B (1000 B) at 1: A alone sends 1000 B until 1; both send 500 B/s until B is done at 3,
    when A has 1000 B left, alone again until 4."""
    assert deliver([(0, 3000, "up", None), (1, 1000, "up", None)]) == {0: 4.0, 1: 3.0}


def test_a_byte_more_takes_a_byte_longer():
    """Nearly a tie is none: both send 500 B/s until A's 1000 B are done, B's last byte has the card to itself."""
    assert deliver([(0, 1000, "up", None), (0, 1001, "up", None)]) == pytest.approx({0: 2, 1: 2.001}, rel=EXACT)


def test_a_slow_link_leaves_its_share_to_others_by_hand():
    """A's own link takes 100 B/s; the other two share 900 B/s, 450 each: done at 2, while A takes 10 s."""
    found = deliver([(0, 1000, "up", Link(0, 100)), (0, 900, "up", None), (0, 900, "up", None)])
    assert found == pytest.approx({0: 10, 1: 2, 2: 2}, rel=EXACT)


def test_latency_before_the_card_on_the_way_up_and_after_it_on_the_way_down():
    late = Link(5, 1e9)
    assert deliver([(0, 1000, "up", late), (0, 4000, "up", None)]) == pytest.approx({0: 6, 1: 4}, rel=1e-6)
    found = deliver([(0, 1000, "down", late), (0, 4000, "down", None)])
    assert found == pytest.approx({0: 2 + 5, 1: 5}, rel=EXACT)


def test_duplex():
    both = [(0, 1000, "up", None), (0, 1000, "down", None)]
    assert deliver(both) == {0: 1.0, 1: 1.0}
    assert deliver(both, 1000.0, 500.0) == {0: 1.0, 1: 2.0}
    assert deliver(both, full_duplex=False) == {0: 2.0, 1: 2.0}
    with pytest.raises(UserError, match="full_duplex"):
        SharedServer(10, 20, full_duplex=False)


def test_a_lone_transfer_takes_what_its_link_says():
    for name in ("lte", "home_broadband", "lora_sf7"):
        link = preset(name, loss=0.05, framing=TLS)
        for direction in ("up", "down"):
            found = deliver([(0, 50_000, direction, link)], 1e12)[0]
            assert found == pytest.approx(link.seconds(50_000, direction), rel=EXACT)


caps = st.one_of(st.just(math.inf), st.floats(50, 2000))
arrivals = st.tuples(st.floats(0, 10), st.integers(0, 5000), st.sampled_from(["up", "down"]),
                     st.builds(Link, st.sampled_from([0.0, 0.5, 1.75]), caps))


def small_steps(flows, bandwidth, full_duplex, dt):
    """Brute force: at each step every active flow gets its fair rate, found by raising one level until the bandwidth is used up."""
    left = [float(n) for _, n, _, _ in flows]
    done, step = {}, 0
    start = [t + (link.latency_s if d == "up" else 0) for t, _, d, link in flows]
    while len(done) < len(flows):
        now = step * dt
        for pool in ("up", "down") if full_duplex else (("up", "down"),):
            here = [i for i in range(len(flows)) if flows[i][2] in pool and start[i] <= now and i not in done]
            spare, waiting, rate = bandwidth, sorted(here, key=lambda i: flows[i][3].bandwidth(flows[i][2])), {}
            while waiting:
                i = waiting.pop(0)
                rate[i] = min(flows[i][3].bandwidth(flows[i][2]), spare / (len(waiting) + 1))
                spare -= rate[i]
            for i in here:
                left[i] -= rate[i] * dt
                if left[i] <= 0:
                    done[i] = now + (flows[i][3].latency_s if flows[i][2] == "down" else 0)
        step += 1
    return done


def in_fractions(flows, bandwidth, full_duplex):
    """The fluid model in exact arithmetic: each time from one change to the next, with all rates found anew by raising one level."""
    exact = lambda x: x if x == math.inf else Fraction(x)  # noqa: E731
    own = [exact(link.bandwidth(d)) for _, _, d, link in flows]
    late = [Fraction(link.latency_s) for *_, link in flows]
    start = [Fraction(t) + (late[i] if d == "up" else 0) for i, (t, _, d, _) in enumerate(flows)]
    left, done, now = [Fraction(n) for _, n, _, _ in flows], {}, min(start)
    while len(done) < len(flows):
        rates = {}
        for pool in ("up", "down") if full_duplex else (("up", "down"),):
            waiting = sorted((i for i, f in enumerate(flows) if f[2] in pool and start[i] <= now and i not in done), key=lambda i: own[i])
            spare = Fraction(bandwidth)
            while waiting:
                rate = min(own[waiting[0]], spare / len(waiting))
                rates[waiting.pop(0)], spare = rate, spare - rate
        changes = [now + left[i] / rate for i, rate in rates.items()] + [s for s in start if s > now]
        following = min(changes)
        for i, rate in rates.items():
            left[i] -= rate * (following - now)
            if left[i] == 0:
                done[i] = following + (late[i] if flows[i][2] == "down" else 0)
        now = following
    return {i: float(t) for i, t in done.items()}


@given(st.lists(arrivals, min_size=1, max_size=6), st.booleans())
@settings(deadline=None)
def test_events_agree_with_exact_fractions(flows, full_duplex):
    found = deliver(flows, 1000.0, full_duplex=full_duplex)
    assert found == pytest.approx(in_fractions(flows, 1000, full_duplex), rel=EXACT, abs=EXACT)


@given(st.lists(arrivals, min_size=1, max_size=5), st.booleans())
@settings(max_examples=60, deadline=None)
def test_events_agree_with_small_time_steps(flows, full_duplex):
    dt, bandwidth = 0.01, 1000.0
    # At most 5 + 5 events move by a step each. A step's error shifts at most bandwidth * dt bytes, which the slowest flow (50 B/s by its
    # own link, 200 B/s by its share) makes up for in bandwidth / 50 steps.
    tolerance = 10 * dt * bandwidth / 50
    exact = deliver(flows, bandwidth, full_duplex=full_duplex)
    rough = small_steps(flows, bandwidth, full_duplex, dt)
    assert exact.keys() == rough.keys()
    for party, time in exact.items():
        assert abs(time - rough[party]) <= tolerance


def test_small_time_steps_converge_to_the_events():
    """The bound above is wide; on one case with every feature the oracle's error shrinks with its step, towards ours."""
    flows = [(0.0, 4000, "up", Link(0.5, 300)), (1.3, 2500, "up", Link(0, math.inf)), (2.1, 3000, "down", Link(1.75, 900)),
             (2.2, 1700, "up", Link(0, 700))]
    exact = deliver(flows, 1000.0, full_duplex=False)
    for dt in (1e-2, 1e-3):
        rough = small_steps(flows, 1000.0, False, dt)
        # each of the 8 events is late by a step at most, and the slowest share here is a quarter of the card
        assert max(abs(exact[p] - rough[p]) for p in exact) <= 8 * 4 * dt


@given(st.lists(arrivals, min_size=1, max_size=8), st.randoms(use_true_random=False), st.booleans())
@settings(deadline=None)
def test_the_order_of_submissions_and_the_stops_between_do_not_matter(flows, random, full_duplex):
    def trace(order, stops):
        server, out = SharedServer(1000.0, full_duplex=full_duplex), []
        for party in order:
            server.submit(*flows[party], party)
        for until in stops:
            out += server.advance(until)
        return out + server.advance()

    order = list(range(len(flows)))
    random.shuffle(order)
    assert trace(order, [1.0, 2.5, 2.5, 7.0]) == trace(range(len(flows)), [])  # bit for bit


@given(st.lists(arrivals, min_size=1, max_size=8))
@settings(deadline=None)
def test_bytes_are_conserved_and_nobody_beats_the_card_or_the_own_link(flows):
    server = SharedServer(1000.0)
    for party, flow in enumerate(flows):
        server.submit(*flow, party)
    arrived = server.advance()
    assert sorted((d.party, d.n_bytes) for d in arrived) == [(i, f[1]) for i, f in enumerate(flows)]
    assert server.next_time() == math.inf
    assert [d.time_s for d in arrived] == sorted(d.time_s for d in arrived)
    for d in arrived:
        link = flows[d.party][3]
        assert d.seconds >= (link.latency_s + d.n_bytes / min(1000.0, link.bandwidth(d.direction))) * (1 - EXACT) - 1e-12


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 5000)), min_size=1, max_size=8))
@settings(deadline=None)
def test_without_narrow_links_the_card_never_idles(flows):
    """Work conservation: whatever the order of service, the last byte leaves when a first-come-first-served card would send it."""
    free = 0.0
    for time, n in sorted(flows):
        free = max(free, time) + n / 1000
    assert max(deliver([(t, n, "up", None) for t, n in flows]).values()) == pytest.approx(free, rel=EXACT)


@given(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=20), st.floats(0.1, 1e5))
@settings(deadline=None)
def test_max_min_rates(caps, bandwidth):
    rates = max_min_rates(caps, bandwidth)
    assert (rates <= np.array(caps)).all()
    assert rates.sum() == pytest.approx(min(bandwidth, sum(caps)), rel=EXACT)
    # max-min fair: who gets less than another is held back by its own link
    for rate, cap in zip(rates, caps, strict=True):
        assert rate == cap or rate == pytest.approx(rates.max(), rel=EXACT)


def test_a_simulation_can_react_between_events():
    """Each client uploads again as soon as its upload has arrived: with two clients the card serves both at half rate for ever."""
    server, times = SharedServer(1000.0), []
    for party in (0, 1):
        server.submit(0, 500, "up", None, party)
    while len(times) < 10:
        for d in server.advance(server.next_time()):
            times.append(d.time_s)
            server.submit(d.time_s, 500, "up", None, d.party)
    assert times == pytest.approx([float(k) for k in range(1, 6) for _ in range(2)], rel=EXACT)


def test_same_seed_same_trace_and_losses_are_billed():
    def trace(seed):
        links = Links.draw(30, "mixture", seed=seed, weights={"lora_sf7": 1, "lte": 2})
        server, rng = SharedServer(1e4), np.random.default_rng(seed)
        for party, link in enumerate(links):
            server.submit(party / 7, 3000, "up", link, party, rng)
        return links, server.advance()

    links, found = trace(1)
    assert found == trace(1)[1] != trace(2)[1]
    assert all(d.wire_bytes >= links[d.party].wire_bytes(3000) for d in found)
    assert any(d.wire_bytes > links[d.party].wire_bytes(3000) for d in found)


def test_the_past_cannot_be_changed():
    server = SharedServer(1000.0)
    server.submit(0, 1000, "up")
    server.advance(5)
    assert server.now == 5
    with pytest.raises(UserError, match="time_s"):
        server.submit(4, 1, "up")
    with pytest.raises(UserError, match="go back"):
        server.advance(4)
    with pytest.raises(UserError, match="direction"):
        server.submit(6, 1, "sideways")
    with pytest.raises(UserError, match="bandwidth_up"):
        SharedServer(0)
    server.submit(6, 1000, "up")
    server.advance()
    assert server.now == 7
    with pytest.raises(UserError, match="time_s"):
        server.submit(6.5, 1, "up")


def test_an_infinite_card_on_infinite_links_takes_no_time():
    assert deliver([(1, 10**9, "up", None), (1, 0, "up", None)], math.inf) == {0: 1.0, 1: 1.0}


@given(st.integers(1, 10**6), st.integers(2, 12))
@settings(deadline=None)
def test_nothing_comes_before_next_time(n, parties):
    assume(n > parties)
    server = SharedServer(1000.0)
    for party in range(parties):
        server.submit(party / 3, n, "up", preset("wifi"), party)
    while (time := server.next_time()) < math.inf:
        before = math.nextafter(time, -math.inf)
        if before > server.now:
            assert server.advance(before) == []
        server.advance(time)
