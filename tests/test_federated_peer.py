"""Traces against an independent engine of virtual time: federations as processes of SimPy, where it is installed.

The peer knows nothing of traces: clients and server are processes that wait, interrupt and pass messages. Both sides take
the same durations from the same streams, so everything must agree: times, who, how many steps, from which version.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.federation.clock import Speeds, stream
from workbench.federation.trace import Trace, arrivals, buffered, contacts, rounds

simpy = pytest.importorskip("simpy", reason="the discrete-event engine SimPy is not installed: pip install simpy")

Rows = list[tuple[int, int, int, int]]
"""(server step, client, local steps, version its work began from)."""


class World:
    """Environment, durations and what the server has written down."""

    def __init__(self, speeds: Speeds, seed: int, K: int, transfer: np.ndarray) -> None:
        self.env, self.speeds, self.seed, self.K, self.transfer = simpy.Environment(), speeds, seed, K, transfer
        self.rngs = [stream(seed, "steps", i) for i in range(speeds.n)]
        self.times: list[float] = []
        self.rows: Rows = []

    def durations(self, i: int) -> list[float]:
        """Of the next K steps of a client."""
        return [float(self.speeds.draw(i, self.rngs[i], (1,))[0]) for _ in range(self.K)]

    def run(self, server: Iterator, horizon: float) -> tuple[list[float], Rows]:
        self.env.process(server)
        self.env.run(until=horizon * (1 + 1e-9))
        return self.times, [row for row in self.rows if row[0] <= len(self.times)]


def worker(w: World, i: int, done: list[int]) -> Iterator:
    """Work until interrupted by a contact; messages come before the work."""
    try:
        yield w.env.timeout(w.transfer[i])
        for duration in w.durations(i):
            yield w.env.timeout(duration)
            done[i] += 1
        yield w.env.event()
    except simpy.Interrupt:
        return


def contacting(w: World, s: int, length: float) -> Iterator:
    """The server of FAVAS and QuAFL."""
    n = w.speeds.n
    chosen, done, version = stream(w.seed, "selection"), [0] * n, [0] * n
    working = [w.env.process(worker(w, i, done)) for i in range(n)]
    while True:
        who = sorted(chosen.choice(n, s, replace=False, shuffle=False).tolist())
        yield w.env.timeout(length)
        yield w.env.timeout(max(w.transfer[i] for i in who))
        w.times.append(w.env.now)
        for i in who:
            w.rows.append((len(w.times), i, done[i], version[i]))
            working[i].interrupt()
            done[i], version[i] = 0, len(w.times)
            working[i] = w.env.process(worker(w, i, done))


def job(w: World, i: int) -> Iterator:
    yield w.env.timeout(w.transfer[i] + sum(w.durations(i)))


def averaging(w: World, s: int, wait: float) -> Iterator:
    """The server of FedAvg: it waits for all."""
    chosen = stream(w.seed, "selection")
    while True:
        who = sorted(chosen.choice(w.speeds.n, s, replace=False, shuffle=False).tolist())
        yield w.env.all_of([w.env.process(job(w, i)) for i in who])
        yield w.env.timeout(wait)
        w.times.append(w.env.now)
        w.rows += [(len(w.times), i, w.K, len(w.times) - 1) for i in who]


def buffering(w: World, Z: int, wait: float) -> Iterator:
    """The server of FedBuff: a store of deliveries; clients wait for the step that takes theirs in."""
    box, ready = simpy.Store(w.env), [w.env.event() for _ in range(w.speeds.n)]

    def client(i: int) -> Iterator:
        version = 0
        while True:
            yield from job(w, i)
            ready[i] = w.env.event()
            yield box.put((i, version))
            version = yield ready[i]

    for i in range(w.speeds.n):
        w.env.process(client(i))
    while True:
        batch = []
        for _ in range(Z):
            batch.append((yield box.get()))
        yield w.env.timeout(wait)
        w.times.append(w.env.now)
        w.rows += [(len(w.times), i, w.K, version) for i, version in batch]
        for i, _ in batch:
            ready[i].succeed(len(w.times))


def serving(w: World, C: int, wait: float) -> Iterator:
    """The server of AsyncSGD: a queue of jobs a client, one inbox."""
    n = w.speeds.n
    queues, inbox, route = [simpy.Store(w.env) for _ in range(n)], simpy.Store(w.env), stream(w.seed, "route")
    edges = np.full(n, 1 / n).cumsum()

    def client(i: int) -> Iterator:
        while True:
            version = yield queues[i].get()
            yield from job(w, i)
            yield inbox.put((i, version))

    for i in range(n):
        w.env.process(client(i))
    for i in np.resize(stream(w.seed, "initial").permutation(n), C).tolist():
        yield queues[i].put(0)
    while True:
        i, version = yield inbox.get()
        if wait:
            yield w.env.timeout(wait)
        w.times.append(w.env.now)
        w.rows.append((len(w.times), i, w.K, version))
        yield queues[int(np.searchsorted(edges, route.random(), "right"))].put(len(w.times))


def agree(trace: Trace, times: list[float], rows: Rows) -> None:
    assert len(trace.time) == len(times) > 3
    np.testing.assert_allclose(trace.time, times, rtol=1e-9)  # sums of the same durations in another order
    ours = list(zip(trace.step.tolist(), trace.client.tolist(), trace.steps.tolist(), trace.start.tolist(), strict=True))
    assert sorted(ours) == sorted(rows)


FEDERATIONS = {"n": st.integers(2, 7), "K": st.integers(1, 4), "seed": st.integers(0, 10_000), "links": st.booleans(),
               "wait": st.sampled_from([0.5, 3.0])}


@pytest.mark.parametrize("scheme", ["contacts", "rounds", "buffered", "arrivals"])
@settings(max_examples=12, deadline=None)
@given(**FEDERATIONS)
def test_another_engine_of_virtual_time_agrees(scheme, n, K, seed, links, wait):
    """Exponential steps: no two events coincide, so there is no order of ties to agree on."""
    speeds, horizon = Speeds.two_classes(n, slow_fraction=0.5, slow=9.0, seed=seed), 200.0
    transfer = np.random.default_rng(seed).uniform(0.1, 2.0, n) if links else np.zeros(n)
    w, some = World(speeds, seed, K, transfer), max(1, n // 2)
    common = {"K": K, "horizon": horizon, "seed": seed, "transfer": transfer if links else None}
    if scheme == "contacts":
        agree(contacts(speeds, selected=some, waiting=4.0, interaction=wait, **common), *w.run(contacting(w, some, 4.0 + wait), horizon))
    elif scheme == "rounds":
        agree(rounds(speeds, selected=some, interaction=wait, **common), *w.run(averaging(w, some, wait), horizon))
    elif scheme == "buffered":
        agree(buffered(speeds, Z=some, interaction=wait, **common), *w.run(buffering(w, some, wait), horizon))
    else:
        agree(arrivals(speeds, C=n + 1, interaction=wait - 0.5, **common), *w.run(serving(w, n + 1, wait - 0.5), horizon))
