"""Federations simulated event by event in plain Python, with the same draws as the generators of traces: their twins.

Nothing is vectorised, there is no heap and no shared code but the draws: the next event is found by looking at
everybody. A twin returns the times of the server steps and one tuple (server step, client, steps, start, began) a
contact.
"""

from __future__ import annotations

import math

import numpy as np

from workbench.federation.clock import Speeds, stream

INF = math.inf


class Clients:
    """Draws of every client, one step at a time, and its presence as a list of spans."""

    def __init__(self, speeds: Speeds, seed: int, spans: list | None = None) -> None:
        self.n = speeds.n
        self.speeds, self.rngs = speeds, [stream(seed, "steps", i) for i in range(speeds.n)]
        spans = [[(0.0, INF)]] * self.n if spans is None else spans
        self.spans = [[tuple(map(float, s)) for s in own] for own in spans]

    def step(self, i: int) -> float:
        return float(self.speeds.draw(i, self.rngs[i], (1,))[0])

    def there(self, i: int, t: float) -> bool:
        return any(a <= t < b for a, b in self.spans[i])

    def back(self, i: int, t: float) -> float:
        return t if self.there(i, t) else min((a for a, _ in self.spans[i] if a > t), default=INF)

    def end(self, i: int, t: float, work: float) -> float:
        """Work from t on, interrupted by absence."""
        for a, b in self.spans[i]:
            begin = max(a, t)
            if begin < b:
                if begin + work <= b:
                    return begin + work
                work -= b - begin
        return INF

    def job(self, i: int, t: float, K: int) -> float:
        return self.end(i, t, sum(self.step(i) for _ in range(K)))


def contacts(c: Clients, seed: int, s: int, K: int, D: float, T: int, keep: bool = False, at_zero: bool = False):
    """Every client lives through each of its steps; the server comes by."""
    chosen = stream(seed, "selection")
    held, began, done, ends = [0] * c.n, [0.0] * c.n, [0] * c.n, [INF] * c.n
    kept: list[float | None] = [None] * c.n
    drawn, current = [0] * c.n, [0.0] * c.n

    def start_step(i: int, t: float) -> None:
        ends[i] = INF
        if done[i] < K:
            if kept[i] is None:
                current[i], drawn[i] = c.step(i), drawn[i] + 1
            else:
                current[i], kept[i] = kept[i], None
            ends[i] = c.end(i, t, current[i])

    for i in range(c.n):
        start_step(i, 0.0)
    times, rows = [], []
    for t in range(1, T + 1):
        now = D * (t - at_zero)
        while min(ends) <= now:
            i = min(range(c.n), key=lambda j: (ends[j], j))
            done[i] += 1
            start_step(i, ends[i])
        times.append(now)
        for i in sorted(chosen.choice(c.n, s, replace=False, shuffle=False).tolist()):
            if not c.there(i, now):
                continue
            rows.append((t, i, done[i], held[i], began[i]))
            if keep and done[i] < K:
                kept[i] = current[i]
            if not keep:  # the generator draws K a contact, used or not
                for _ in range(K - drawn[i]):
                    c.step(i)
                drawn[i] = 0
            held[i], began[i], done[i] = t, now, 0
            start_step(i, now)
    return times, rows


def rounds(c: Clients, seed: int, s: int, K: int, wait: float, horizon: float):
    chosen, now = stream(seed, "selection"), 0.0
    times, rows = [], []
    while True:
        who = sorted(chosen.choice(c.n, s, replace=False, shuffle=False).tolist())
        late = max(c.job(i, now, K) for i in who) + wait
        if late > horizon:
            return times, rows
        times.append(late)
        rows += [(len(times), i, K, len(times) - 1, now) for i in who]
        now = late


def buffered(c: Clients, Z: int, K: int, wait: float, horizon: float, old: bool = False):
    """The server is idle, or busy until a time; deliveries lie in a box; who is back takes the model of the moment."""
    held, began, ends, asleep = [0] * c.n, [0.0] * c.n, [INF] * c.n, {}
    times, rows, box, batch, busy, now = [], [], [], [], INF, 0.0
    for i in range(c.n):
        asleep[i] = (c.back(i, 0.0), 0 if c.there(i, 0.0) else None)
    while True:
        if busy == INF and len(box) >= Z:
            batch, box, busy = box[:Z], box[Z:], now + wait
        events = [(t, 1, i) for i, (t, _) in asleep.items()] + [(ends[i], 2, i) for i in range(c.n)] + [(busy, 0, -1)]
        now, what, i = min(events)
        if now > horizon and what == 0:
            return times, rows
        if what == 0:
            times.append(now)
            rows += [(len(times), j, K, held[j], began[j]) for j in batch]
            for j in batch:
                asleep[j] = (c.back(j, now), len(times) - old if c.there(j, now) else None)
            busy = INF
        elif what == 1:
            _, version = asleep.pop(i)
            held[i], began[i] = len(times) if version is None else version, now
            ends[i] = c.job(i, now, K)
        else:
            ends[i] = INF
            box.append(i)


def arrivals(c: Clients, seed: int, C: int, K: int, cdf: list[float] | None, wait: float, horizon: float):
    """Clients have a queue each, the server has one."""
    queues: list[list] = [[] for _ in range(c.n)]
    ends = [INF] * c.n
    route = stream(seed, "route")
    times, rows, inbox, busy = [], [], [], INF
    for i in np.resize(stream(seed, "initial").permutation(c.n), C).tolist():
        queues[i].append((0, 0.0))
    now = 0.0
    while True:
        for i in range(c.n):
            if queues[i] and ends[i] == INF:
                ends[i] = c.job(i, now, K)
        if busy == INF and inbox:
            busy = now + wait
        first = min(range(c.n), key=lambda j: (ends[j], j))
        if min(busy, ends[first]) > horizon:
            return times, rows
        if busy <= ends[first]:
            now, busy = busy, INF
            i, version, at = inbox.pop(0)
            times.append(now)
            rows.append((len(times), i, K, version, at))
            u = None if cdf is None else route.random()
            j = i if cdf is None else next(k for k, edge in enumerate(cdf) if u < edge)
            queues[j].append((len(times), now))
        else:
            now, ends[first] = ends[first], INF
            inbox.append((first, *queues[first].pop(0)))


def windows(c: Clients, dt: float, K: int, T: int):
    """Each window, everybody is asked."""
    begins = [(c.back(i, 0.0), int(c.back(i, 0.0) // dt)) for i in range(c.n)]
    ends = [c.job(i, begins[i][0], K) for i in range(c.n)]
    times, rows = [], []
    for t in range(1, T + 1):
        now = dt * t
        times.append(now)
        for i in range(c.n):
            if ends[i] <= now + 1e-9:
                rows.append((t, i, K, begins[i][1], begins[i][0]))
                back = c.back(i, now)
                begins[i] = (back, t if back == now else int(back // dt) if back < INF else -1)
                ends[i] = c.job(i, back, K) if back < INF else INF
    return times, rows
