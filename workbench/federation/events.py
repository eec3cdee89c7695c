"""Traces of schemes whose server steps come from deliveries: FedBuff, AsyncSGD and FedAsync."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Literal, get_args

import numpy as np

from tracking.errors import UserError, unknown
from workbench.federation.availability import Availability
from workbench.federation.clock import Speeds, stream
from workbench.federation.generation import Run
from workbench.federation.timeline import Trace

Route = Literal["uniform", "same"]


def buffered(
    speeds: Speeds, *, Z: int = 10, K: int, interaction: float = 3.0, horizon: float | None = None,
    server_steps: int | None = None, seed: int = 0, restart_from_old: bool = False,
    availability: Availability | None = None, transfer: np.ndarray | None = None,
) -> Trace:
    """FedBuff (Nguyen et al., AISTATS 2022): all clients work; every ``Z``-th delivery makes a server step.

    It is done ``interaction`` later; then the clients that delivered begin anew, from the model just made
    (``restart_from_old``: from the one before, as in the simulator of QuAFL). Deliveries during a server step wait for
    the next. A client that is absent begins when it is back.
    """
    run = Run(speeds, K, horizon, server_steps, seed, availability, transfer, Z=Z, interaction=interaction,
              restart_from_old=restart_from_old)
    if not 1 <= Z <= run.n:
        raise UserError(f"Z clients wait for a full buffer, so 1 <= Z <= n; given Z = {Z} with n = {run.n} clients.")
    time: list[float] = []
    rows: list[tuple[int, int, float]] = []  # client, version (-1: the newest of its time), time at which it began
    heap: list[tuple[float, int, int, float]] = []

    def begin(i: int, at: float, version: int) -> None:
        there = run.presence.returns(i, at)
        if there == math.inf:
            return
        end = run.presence.finish(i, there, run.work(i, 1)[0])
        if end < math.inf:
            heappush(heap, (end, i, version if there == at else -1, there))

    for i in range(run.n):
        begin(i, 0.0, 0)
    while len(time) < run.limit:
        if len(heap) < Z:
            raise UserError(f"After virtual time {time[-1] if time else 0:g} all but {len(heap)} clients are gone for "
                            f"good: a buffer of Z = {Z} never fills again. Lower Z, or choose an earlier horizon.")
        batch = [heappop(heap) for _ in range(Z)]
        done = max(batch[-1][0], time[-1] if time else 0.0) + interaction
        if done > run.horizon:
            break
        for _, i, version, at in batch:
            rows.append((i, version if version >= 0 else bisect_right(time, at), at))
        time.append(done)
        for _, i, _, _ in batch:
            begin(i, done, len(time) - restart_from_old)
    client, start, began = zip(*rows, strict=True) if rows else ((), (), ())
    return run.trace("buffered", time, np.repeat(np.arange(1, len(time) + 1), Z), client, K, start, began)


def arrivals(
    speeds: Speeds, *, C: int, K: int = 1, route: Route = "uniform", p: np.ndarray | None = None,
    interaction: float = 0.0, horizon: float | None = None, server_steps: int | None = None, seed: int = 0,
    availability: Availability | None = None, transfer: np.ndarray | None = None,
) -> Trace:
    """AsyncSGD: ``C`` jobs of ``K`` steps in flight; each arrival is a server step and sends out a new job.

    A client does its jobs one after another, first in, first out. The server sends the new job to a client drawn
    uniformly (Koloskova, Stich & Jaggi, NeurIPS 2022) or with probabilities ``p`` (Generalized AsyncSGD: Leconte et
    al., AISTATS 2024), or, with ``route="same"``, back to the client that delivered. FedAsync with all clients active
    is ``C = n``, ``route="same"``.

    The first C jobs go to different clients at random (more than n: round after round). ``interaction`` is charged for
    each arrival, one at a time (0: none). A job at a client that goes for good is lost; none is sent to one that is
    gone.
    """
    run = Run(speeds, K, horizon, server_steps, seed, availability, transfer, C=C, route=route, interaction=interaction,
              **({} if p is None else {"p": np.asarray(p, float).tolist()}))
    if C < 1:
        raise UserError(f"C, the jobs in flight, is at least 1; given {C}.")
    cdf = _routing(run.n, route, p)
    first = np.resize(stream(seed, "initial").permutation(run.n), C)
    if route == "same" and interaction == 0 and run.presence.always and run.horizon < math.inf:
        return _separate_clients(run, first)
    queues: list[deque[tuple[int, float]]] = [deque() for _ in range(run.n)]  # version, time of dispatch
    heap: list[tuple[float, int]] = []
    draws = _uniforms(stream(seed, "route"))

    def serve(i: int, free: float) -> None:
        end = run.presence.finish(i, max(free, queues[i][0][1]), run.work(i, 1)[0])
        if end < math.inf:
            heappush(heap, (end, i))

    def send(i: int, version: int, at: float) -> None:
        queues[i].append((version, at))
        if len(queues[i]) == 1:
            serve(i, at)

    for i in first.tolist():
        send(i, 0, 0.0)
    time, rows = [], []
    while len(time) < run.limit:
        if not heap:
            raise UserError(f"All {C} jobs are lost after virtual time {time[-1] if time else 0:g}: the clients that "
                            "had them are gone for good. Choose an earlier horizon, or more jobs.")
        arrived, i = heappop(heap)
        done = max(arrived, time[-1] if time else 0.0) + interaction
        if done > run.horizon:
            break
        rows.append((i, *queues[i].popleft()))
        time.append(done)
        if queues[i]:
            serve(i, arrived)
        send(i if cdf is None else _destination(run, cdf, draws, done), len(time), done)
    client, start, began = zip(*rows, strict=True) if rows else ((), (), ())
    return run.trace("arrivals", time, np.arange(1, len(time) + 1), client, K, start, began)


def _routing(n: int, route: str, p: np.ndarray | None) -> np.ndarray | None:
    """Distribution function of the next client; ``None`` for the same one."""
    if route not in get_args(Route):
        raise unknown("route", route, get_args(Route))
    if route == "same":
        if p is not None:
            raise UserError("Routing probabilities p have no effect with route='same'. Give one of them.")
        return None
    p = np.full(n, 1 / n) if p is None else np.asarray(p, float)
    if p.shape != (n,) or not (p > 0).all() or abs(p.sum() - 1) > 1e-9:
        raise UserError(f"Routing probabilities p are {n} positive numbers, one a client, of sum 1; "
                        f"given {p.size} of sum {p.sum():g}.")
    return p.cumsum() / p.sum()


def _uniforms(rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield from rng.random(4096).tolist()


def _destination(run: Run, cdf: np.ndarray, draws: Iterator[float], now: float) -> int:
    while True:
        i = min(int(np.searchsorted(cdf, next(draws), "right")), run.n - 1)
        if not run.presence.gone(i, now):
            return i
        if all(run.presence.gone(j, now) for j in range(run.n)):
            raise UserError(f"All clients are gone for good at virtual time {now:g}: no job can be sent. "
                            "Choose an earlier horizon.")


def _separate_clients(run: Run, first: np.ndarray) -> Trace:
    """Arrivals when clients get their jobs back at once: none depends on another, and no event queue is needed."""
    depth = np.bincount(first, minlength=run.n)
    ends = [_ends(run, int(i)) for i in np.flatnonzero(depth)]
    client = np.repeat(np.flatnonzero(depth), [len(e) for e in ends])
    time = np.concatenate(ends)
    order = np.lexsort((client, time))[:None if run.limit == math.inf else run.limit]
    client, time = client[order], time[order]
    step = np.arange(1, len(time) + 1)
    start, began = np.zeros(len(time), np.int64), np.zeros(len(time))
    by_client = np.argsort(client, kind="stable")
    for rows in np.split(by_client, np.flatnonzero(np.diff(client[by_client])) + 1) if len(time) else ():
        q = depth[client[rows[0]]]  # with q jobs at a client, each was sent when the q-th delivery before it came in
        start[rows[q:]], began[rows[q:]] = step[rows[:-q]], time[rows[:-q]]
    return run.trace("arrivals", time, step, client, run.K, start, began)


def _ends(run: Run, client: int) -> np.ndarray:
    """Times up to the horizon at which a client that never waits is done with its jobs."""
    expected = run.horizon / (run.speeds.mean[client] * run.K)
    ends, last = [], 0.0
    while last <= run.horizon:
        work = run.work(client, int(expected / 4) + 8)
        work[0] += last
        ends.append(work.cumsum())
        last = ends[-1][-1]
    times = np.concatenate(ends)
    return times[times <= run.horizon]
