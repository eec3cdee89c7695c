"""Traces of schemes with a server that keeps its own pace or waits for whom it chose: FAVAS, QuAFL, FedAvg, FedFix."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np

from tracking.errors import UserError, unknown
from workbench.federation.availability import Availability
from workbench.federation.clock import TIE, Speeds, stream
from workbench.federation.generation import Run
from workbench.federation.timeline import Trace

Select = Literal["all", "present"]


def _draw_selected(
    rng: np.random.Generator, n: int, s: int, there: np.ndarray | None, t: int, p: np.ndarray | None,
) -> np.ndarray:
    """``s`` clients, sorted: of all, or of those that are ``there``; one after the other, in proportion to ``p``."""
    if there is None:
        return np.sort(rng.choice(n, s, replace=False, shuffle=False, p=p))
    present = np.flatnonzero(there)
    if len(present) < s:
        raise UserError(f"Server step {t} selects {s} of the clients that are present, and only {len(present)} of {n} "
                        "are. Select fewer, or select='all', where absent ones are skipped.")
    among = None if p is None else p[present] / p[present].sum()
    return np.sort(rng.choice(present, s, replace=False, shuffle=False, p=among))


def _check_selection(n: int, selected: int, select: str, p: np.ndarray | None) -> None:
    if not 1 <= selected <= n:
        raise UserError(f"selected, the clients of a server step, is 1..n; given {selected} with n = {n} clients.")
    if select not in get_args(Select):
        raise unknown("selection", select, get_args(Select))
    if p is not None and (np.shape(p) != (n,) or not (np.asarray(p) > 0).all() or abs(np.sum(p) - 1) > 1e-9):
        raise UserError(f"Selection probabilities p are {n} positive numbers, one a client, of sum 1.")


def contacts(
    speeds: Speeds, *, selected: int, K: int, waiting: float = 4.0, interaction: float = 3.0,
    horizon: float | None = None, server_steps: int | None = None, seed: int = 0, retain_partial_step: bool = False,
    first_contact_at_zero: bool = False, availability: Availability | None = None, select: Select = "all",
    p: np.ndarray | None = None, transfer: np.ndarray | None = None,
) -> Trace:
    """FAVAS and QuAFL: each ``waiting + interaction`` the server contacts ``selected`` clients.

    They are drawn uniformly without replacement; the first contact comes after a first wait (our choice). Where messages
    take time, ``transfer`` (n,) up and down together, a server step lasts as much longer as the slowest exchange in it.

    A client works from its last contact on, up to ``K`` steps, then idles; a contact takes what is finished. The
    client works during the exchange too, so that a gap of g server steps has the length ``g (waiting + interaction)``.

    Args:
        speeds: the clients' step times.
        selected: s. Absent clients among them are skipped; with ``select="present"`` the server draws among those
            present.
        retain_partial_step: the duration of the step that a contact interrupts is kept and begins anew, as in the
            simulator of QuAFL; otherwise it is drawn anew. An interrupted step is longer than most, so keeping it
            makes slow clients slower.
        first_contact_at_zero: contact before the first wait, so that it finds no work (that simulator again).
        p: selection probabilities of single draws, (n,); uniform by default.
    """
    run = Run(speeds, K, horizon, server_steps, seed, availability, transfer, selected=selected, waiting=waiting,
              interaction=interaction, retain_partial_step=retain_partial_step,
              first_contact_at_zero=first_contact_at_zero, select=select, p=None if p is None else np.asarray(p).tolist())
    _check_selection(run.n, selected, select, p)
    calendar = _even_calendar if transfer is None else _stretched_calendar
    time, step, client = calendar(run, waiting + interaction, selected, select, p, first_contact_at_zero)
    steps, start, began = (np.zeros(len(client), t) for t in (np.int64, np.int64, float))
    order = np.argsort(client, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(client[order])) + 1) if len(order) else ():
        i, at = int(client[rows[0]]), time[step[rows] - 1]
        start[rows[1:]], began[rows[1:]] = step[rows[:-1]], at[:-1]
        gaps = np.diff(run.presence.worked(i, np.append(0.0, at))) * (1 + TIE)
        gaps = gaps if run.transfer is None else np.maximum(gaps - run.transfer[i], 0.0)
        steps[rows] = (_kept if retain_partial_step else _redrawn)(run, i, gaps)
    return run.trace("contacts", time, step, client, steps, start, began)


Calendar = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Times of the server steps (T,), and the step and the client of each contact, both (C,)."""


def _even_calendar(run: Run, length: float, selected: int, select: str, p: np.ndarray | None, at_zero: bool) -> Calendar:
    """All server steps take ``length``."""
    T = run.periods(length) + (at_zero and run.limit > run.periods(length))
    time = length * np.arange(1 - at_zero, T + 1 - at_zero)
    there = None if run.presence.always else np.array([run.presence.there(i, time) for i in range(run.n)])
    rng = stream(run.seed, "selection")
    among = [None if there is None or select == "all" else there[:, t] for t in range(T)]
    client = np.array([_draw_selected(rng, run.n, selected, among[t], t + 1, p) for t in range(T)], np.int64).ravel()
    step = np.repeat(np.arange(1, T + 1), selected)
    if there is not None:
        met = there[client, step - 1]
        client, step = client[met], step[met]
    return time, step, client


def _stretched_calendar(run: Run, length: float, selected: int, select: str, p: np.ndarray | None, at_zero: bool) -> Calendar:
    """A server step takes ``length``, and then as long as the slowest exchange with a client that is met."""
    run.periods(length)  # refuses steps without a length
    rng, now = stream(run.seed, "selection"), -length if at_zero else 0.0
    time, step, client = [], [], []
    while len(time) < run.limit:
        begin = now + length
        there = None if run.presence.always else np.array([run.presence.there(i, begin) for i in range(run.n)])
        drawn = _draw_selected(rng, run.n, selected, None if select == "all" else there, len(time) + 1, p)
        met = drawn if there is None else drawn[there[drawn]]
        now = begin + run.transfer[met].max(initial=0.0)
        if now > run.horizon:
            break
        time.append(now)
        step += [len(time)] * len(met)
        client += met.tolist()
    return np.array(time), np.array(step, np.int64), np.array(client, np.int64)


def _redrawn(run: Run, client: int, gaps: np.ndarray) -> np.ndarray:
    """Steps done in each gap when all begin anew."""
    ends = run.speeds.draw(client, run.rng(client), (len(gaps), run.K)).cumsum(1)
    return (ends <= gaps[:, None]).sum(1)


def _kept(run: Run, client: int, gaps: np.ndarray) -> np.ndarray:
    """Steps done in each gap when the duration of an unfinished step is kept."""
    ends = np.append(0.0, run.speeds.draw(client, run.rng(client), (len(gaps) * run.K,)).cumsum())
    steps, done = np.zeros(len(gaps), np.int64), 0
    for c, gap in enumerate(gaps):
        steps[c] = min(np.searchsorted(ends, ends[done] + gap, "right") - 1 - done, run.K)
        done += steps[c]
    return steps


def rounds(
    speeds: Speeds, *, selected: int, K: int, interaction: float = 3.0, horizon: float | None = None,
    server_steps: int | None = None, seed: int = 0, availability: Availability | None = None, select: Select = "all",
    p: np.ndarray | None = None, transfer: np.ndarray | None = None,
) -> Trace:
    """FedAvg: ``selected`` clients do ``K`` steps each from the newest model; the round waits for the slowest.

    ``interaction`` comes on top. A client that is absent when selected, or goes for good during the round, is skipped;
    with nobody to wait for, the server draws anew when a client is back. ``p`` and ``transfer`` as in :func:`contacts`.
    """
    run = Run(speeds, K, horizon, server_steps, seed, availability, transfer, selected=selected, interaction=interaction,
              select=select, p=None if p is None else np.asarray(p).tolist())
    _check_selection(run.n, selected, select, p)
    rng, clock = stream(seed, "selection"), 0.0
    time, client, step, began = [], [], [], []
    while len(time) < run.limit:
        there = None if run.presence.always else np.array([run.presence.there(i, clock) for i in range(run.n)])
        if there is not None and not there.any():
            clock = min(run.presence.returns(i, clock) for i in range(run.n))
            if clock == math.inf:
                raise UserError("All clients are gone for good before the horizon: no round can end. "
                                "Choose an earlier horizon.")
            continue
        drawn = _draw_selected(rng, run.n, selected, None if select == "all" else there, len(time) + 1, p)
        working = [int(i) for i in drawn if there is None or there[i]]
        ends = {i: run.presence.finish(i, clock, run.work(i, 1)[0]) for i in working}
        back = [i for i in working if ends[i] < math.inf]
        if not back:
            clock = max((run.presence.last(i) for i in working), default=clock)
            continue
        done = max(ends[i] for i in back) + interaction
        if done > run.horizon:
            break
        time.append(done)
        client += back
        step += [len(time)] * len(back)
        began += [clock] * len(back)
        clock = done
    return run.trace("rounds", time, step, client, K, np.array(step) - 1, began)


def windows(
    speeds: Speeds, *, dt: float, K: int, horizon: float | None = None, server_steps: int | None = None, seed: int = 0,
    availability: Availability | None = None, transfer: np.ndarray | None = None,
) -> Trace:
    """FedFix (Fraboni et al., JMLR 2023): each ``dt`` the server takes in all clients that finished their ``K`` steps.

    They begin anew from the model just made, or when they are back; the others go on undisturbed.
    """
    run = Run(speeds, K, horizon, server_steps, seed, availability, transfer, dt=dt)
    T = run.periods(dt)
    found = [_windows_of(run, i, dt, T) for i in range(run.n)]
    client = np.repeat(np.arange(run.n), [len(step) for step, _, _ in found])
    step, start, began = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((client, step))
    return run.trace("windows", dt * np.arange(1, T + 1), step[order], client[order], K, start[order], began[order])


def _windows_of(run: Run, client: int, dt: float, T: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A client's windows, with the version and time it began each from."""
    if run.presence.always:
        steps, last = [np.zeros(1, np.int64)], 0
        while last < T:
            work = run.work(client, int(T * dt / (run.speeds.mean[client] * run.K) / 4) + 8)
            steps.append(last + np.maximum(np.ceil(work / dt * (1 - TIE)), 1).astype(np.int64).cumsum())
            last = steps[-1][-1]
        step = np.concatenate(steps)
        step = step[step <= T]
        return step[1:], step[:-1], step[:-1] * dt
    time, rows, begin = dt * np.arange(1, T + 1), [], run.presence.returns(client, 0.0)
    while begin < time[-1]:
        end = run.presence.finish(client, begin, run.work(client, 1)[0])
        if end > time[-1] * (1 + TIE):
            break
        step = max(math.ceil(end / dt * (1 - TIE)), 1)
        rows.append((step, np.searchsorted(time, begin, "right"), begin))
        begin = run.presence.returns(client, step * dt)
    step, start, began = np.array(rows, float).reshape(-1, 3).T
    return step.astype(np.int64), start.astype(np.int64), began
