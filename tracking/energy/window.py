"""A named window over counters, and the readings it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from tracking.energy.clock import Clock
from tracking.energy.counter import Counter, Lost, Track
from tracking.energy.reading import COMPARE_ERR, Reading, shortest_window, too_short
from tracking.errors import UserError

SLOWER = 1.25  # a counter seen to be renewed this much more slowly than stated is judged by what was seen
POLL_SHARE = 0.01  # of the time, at most, goes into looks at a counter in between
ATTRIBUTED = "attributed: a share by time of a longer window's joules, not a measurement of its own"


@dataclass
class _Edge:
    """What a track showed at the end of a window."""

    track: Track
    joules: float | None
    why: str
    counted: bool  # the looks were close enough together for every update to be seen


class Window(Mapping[str, Reading]):
    """Energy between its two edges, one :class:`Reading` a metric. Made by ``EnergyMeter.window``; readings exist once it is closed.

    A metric without a counter gives a reading without joules that says why. Idle power that is measured after the window joins its
    readings then.
    """

    def __init__(self, name: str, counters: list[Counter], clock: Clock, synchronize: Callable[[], object],
                 missing: Mapping[str, str]) -> None:
        self.name = name
        self.t_s: float | None = None
        self.idle_before: dict[str, float] = {}
        self.idle_after: dict[str, float] = {}
        self._counters, self._clock, self._synchronize, self._missing = counters, clock, synchronize, missing
        self._edges: list[_Edge] = []
        self._cancel: list[Callable[[], None]] = []

    # --- edges ------------------------------------------------------------------------------------------

    def open(self) -> None:
        """The first edge: everything queued on the device before it lies outside."""
        self._synchronize()
        self._others = {id(c): [_others(c)] for c in self._counters}
        self._tracks: list[tuple[Track, str, bool]] = []
        for counter in self._counters:
            track = Track(counter, self._clock)
            begin = self._clock.now()
            try:
                track.anchor()
            except Lost as lost:
                self._tracks.append((track, str(lost), False))
                continue
            self._tracks.append((track, "", self._poll(track, self._clock.now() - begin)))
        self._begin = self._clock.now()

    def _poll(self, track: Track, cost_s: float) -> bool:
        """Have the counter looked at in between; returns whether all its updates will be seen."""
        interval = max(track.counter.poll_s, cost_s / POLL_SHARE)
        self._cancel.append(self._clock.every(interval, track.poll))
        return interval < track.counter.period_s

    def close(self) -> None:
        """The second edge: everything queued inside the window has been done."""
        self._synchronize()
        self.t_s = self._clock.now() - self._begin
        for track, why, counted in self._tracks:
            joules = None
            if not why:
                try:
                    joules = track.read()
                except Lost as lost:
                    why = str(lost)
            self._edges.append(_Edge(track, joules, why, counted))
        for cancel in self._cancel:
            cancel()
        for counter in self._counters:
            self._others[id(counter)].append(_others(counter))

    # --- readings ---------------------------------------------------------------------------------------

    def __getitem__(self, metric: str) -> Reading:
        if self.t_s is None:
            raise UserError(f"Window {self.name!r} is still open: its readings exist after the with block.")
        edges = [e for e in self._edges if e.track.counter.metric == metric]
        if not edges:
            why = self._missing.get(metric, "this meter has no counter for it")
            return Reading(None, None, "none", "none", self.t_s, note=f"{metric} was not measured: {why}")
        counters = [e.track.counter for e in edges]
        period, updates = self._resolution(edges)
        seen = [other for c in counters for other in self._others[id(c)]]
        shared = True if True in seen else None if None in seen else False
        idle = self.idle_before.get(metric), self.idle_after.get(metric)
        reading = Reading(None, counters[0].kind, " + ".join(c.source for c in counters),
                          " + ".join(dict.fromkeys(c.scope for c in counters)), self.t_s, idle, n_updates=updates, shared=shared)
        refusal = self._refusal(edges, period)
        if refusal:
            return replace(reading, note=refusal)
        joules = sum(e.joules for e in edges)
        above = joules - sum(idle) / 2 * self.t_s if None not in idle and shared is not True else None
        return replace(reading, joules=joules, rel_err=2 * period / self.t_s, above_idle_j=above,
                       note=_note(shared, idle, period, self.t_s))

    def _resolution(self, edges: list[_Edge]) -> tuple[float, int | None]:
        """Longest time between two updates: as stated, or as seen where that is longer; and the updates of the slowest counter."""
        period = max(e.track.counter.period_s for e in edges)
        counted = [e.track.updates for e in edges if e.counted]
        if len(counted) < len(edges):
            return period, None
        seen = self.t_s / (min(counted) + 1)  # one update more may lie just outside
        return seen if seen > SLOWER * period else period, min(counted)

    def _refusal(self, edges: list[_Edge], period_s: float) -> str:
        """Why there is no figure; empty when there is one."""
        broken = [e.why for e in edges if e.why]
        if broken or self.t_s <= 0:
            return " ".join(broken) or "A window of no length."
        stated = max(e.track.counter.period_s for e in edges)
        refusal = too_short(self.t_s, stated)
        still = [e.track.counter.source for e in edges if not e.joules]
        if not refusal and still:
            return f"{' and '.join(still)} did not move in {self.t_s:.3g} s: a counter that stands still measures nothing."
        return refusal or too_short(self.t_s, period_s)

    def attribute(self, times_s: Mapping[str, float]) -> dict[str, dict[str, Reading]]:
        """Divide the window's joules among parts by the seconds each took: ``{part: {metric: reading}}``.

        Steps are shorter than a counter can resolve; this says what share of the joules is theirs if power was the same throughout,
        and marks it. Raises :class:`UserError` when the parts took longer than the window.
        """
        total = sum(times_s.values())
        if any(t < 0 for t in times_s.values()) or self.t_s is None or total > self.t_s * (1 + 1e-9):
            raise UserError(f"Parts of {total:.6g} s in all do not fit into window {self.name!r} of {self.t_s or 0:.6g} s.")
        return {part: {m: _share(r, t) for m, r in self.items()} for part, t in times_s.items()}

    def __contains__(self, metric: object) -> bool:
        return any(c.metric == metric for c in self._counters)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(c.metric for c in self._counters))

    def __len__(self) -> int:
        return len({c.metric for c in self._counters})


def _share(reading: Reading, t_s: float) -> Reading:
    joules = None if reading.joules is None else reading.joules * t_s / reading.t_s
    return replace(reading, joules=joules, t_s=t_s, above_idle_j=None, n_updates=None, rel_err=None, attributed=True,
                   note=ATTRIBUTED if joules is not None else reading.note)


def _note(shared: bool | None, idle: tuple[float | None, float | None], period_s: float, t_s: float) -> str:
    notes = []
    if shared:
        notes.append("Other processes were on the device: their energy is in the figure, and there is none above idle.")
    elif shared is None:
        notes.append("Whether other processes were on the device cannot be told; theirs would be in the figure.")
    if (idle[0] is None) != (idle[1] is None):
        notes.append(f"Idle power was not measured {'before' if idle[0] is None else 'after'} the window: no figure above idle.")
    if 2 * period_s > COMPARE_ERR * t_s:
        notes.append(f"To compare two methods, a window of {shortest_window(period_s, COMPARE_ERR):.3g} s is needed.")
    return " ".join(notes)


def _others(counter: Counter) -> bool | None:
    try:
        return counter.others() if counter.others else None
    except Exception:  # a driver that will not say leaves it unknown
        return None
