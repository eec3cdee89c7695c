"""The energy meter: totals added up step by step, named windows with all that judges them, idle power, repetition."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tracking.energy.clock import Clock, SystemClock
from tracking.energy.counter import Counter, Lost, Track
from tracking.energy.reading import Reading, Resolution, shortest_window
from tracking.energy.sources import probe
from tracking.energy.window import Window
from tracking.errors import UserError

# of the time, at most, goes into looks at the counters while steps follow each other: half of the one percent that metering may take
# round steps of 10 ms, the other half being for looks that take longer than the last ones did
OVERHEAD = 0.005


class EnergyMeter:
    """Meters counters in two ways: totals between :meth:`start` and :meth:`stop` that accumulate, and a :meth:`window` by itself.

    Totals. ``stop()`` closes a stretch, and what lies before the next ``start()`` does not count. A loop over short steps says
    ``stop(soon=True)``: the next start follows at once. A look at a counter may be dear (some 10 microseconds for RAPL, up to
    milliseconds for NVML), so such a stop looks only if the last look is 200 times as long ago as a look takes, and the stretch stays
    open across the gap otherwise: no joule is lost, a report without a look has no figure, and the time of such gaps is known
    (:meth:`resolution`). Before something long, :meth:`settle` closes the stretch. That and the start after it always look.

    A figure with a stretch that is not known (a counter failed, or was reset by its driver) is dropped for good, and :attr:`lost`
    says why: what is left would be too small. A total whose counter has not moved yet is not given: it would be zero.

    ``missing`` says why a metric has no counter; ``synchronize`` waits for the device at every edge.
    """

    def __init__(self, counters: list[Counter], *, missing: Mapping[str, str] | None = None, clock: Clock | None = None,
                 synchronize: Callable[[], object] | None = None) -> None:
        self.counters = list(counters)
        self._for_windows = tuple(counters)  # a counter that was reset has lost the totals, not the windows to come
        for metric in self.sources:
            kinds = {c.kind for c in counters if c.metric == metric}
            if len(kinds) > 1:
                raise UserError(f"{metric} cannot add up figures of the kinds {' and '.join(sorted(kinds))}.")
        self.lost: dict[str, str] = {}
        self._missing = dict(missing or {})
        self._clock = clock or SystemClock()
        self._synchronize = synchronize or (lambda: None)
        self._tracks = [Track(c, self._clock) for c in self.counters]
        self._joules = {c.metric: 0.0 for c in self.counters}
        self._state = "closed"  # or "open", or "soon": between two steps that follow each other
        self._stretches, self._t_s, self._bridged_s = 0, 0.0, 0.0
        self._mark = self._stopped = self._looked = 0.0
        self._costs = (0.0, 0.0)
        self._poller: Callable[[], None] | None = None
        self._idle: dict[str, float] = {}
        self._awaiting_idle: list[weakref.ref[Window]] = []

    @classmethod
    def on(cls, device: str | None = None) -> EnergyMeter:
        """A meter for work on ``device`` (``"cpu"``, ``"cuda"``, ``"cuda:1"``; ``None``: all that this machine lets us read)."""
        found = probe(device)
        synchronize = None
        if device and device.startswith("cuda"):
            import torch

            synchronize = functools.partial(torch.cuda.synchronize, torch.device(device))
        return cls(found.counters, missing=found.missing, synchronize=synchronize)

    # --- totals -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open a stretch, or go on with the one that ``stop(soon=True)`` left. A stretch that nobody stopped is given up."""
        self._synchronize()
        now = self._clock.now()
        if self._state == "soon":
            gap = now - self._stopped
            if self._looked < self._stopped or gap < self._due_s:  # not looked at the stop, or too short to be worth two looks
                self._bridged_s += gap
                self._state = "open"
                return
        self._watch_wraps()
        self._look(Track.anchor)
        self._stretches += 1
        self._state, self._mark = "open", self._clock.now()

    def stop(self, *, soon: bool = False) -> dict[str, float]:
        """Close the stretch and return the totals; with ``soon``, none where the counters were not looked at."""
        if self._state != "open":
            raise RuntimeError("stop() without start()")
        self._synchronize()
        if soon:
            self._state, self._stopped = "soon", self._clock.now()
            if self._stopped - self._looked < self._due_s:
                return {}
            self._collect()
            self._stopped = self._looked
            return self.totals
        self._collect()
        self._state = "closed"
        return self.totals

    def settle(self) -> dict[str, float]:
        """Close what ``stop(soon=True)`` left open, and return the totals. What follows does not count."""
        if self._state == "soon":
            if self._looked < self._stopped:
                self._bridged_s += self._clock.now() - self._stopped
                self._collect()
            self._state = "closed"
        return self.totals

    @property
    def totals(self) -> dict[str, float]:
        """Joules by metric, as of the last look. A counter that has not moved gives no figure."""
        return {metric: joules for metric, joules in self._joules.items() if joules > 0}

    def resolution(self) -> dict[str, Resolution]:
        """How exact each total is."""
        return {m: Resolution(max(c.period_s for c in self.counters if c.metric == m), self._t_s, self._stretches, self._bridged_s)
                for m in self.totals}

    def state_dict(self) -> dict[str, Any]:
        """What an interrupted run goes on from; settles."""
        self.settle()
        return {"joules": dict(self._joules), "stretches": self._stretches, "t_s": self._t_s, "bridged_s": self._bridged_s}

    def resume(self, state: Mapping[str, Any], begun: bool) -> None:
        """Go on from the :meth:`state_dict` of an interrupted run; ``begun`` says that it had made a step.

        A figure that one of the two parts cannot have is dropped.
        """
        if begun:
            there, here = set(state["joules"]), set(self._joules)
            self._joules = {m: float(state["joules"][m]) for m in there & here}
            self._stretches, self._t_s, self._bridged_s = state["stretches"], state["t_s"], state["bridged_s"]
            self._drop({m: "The part of the run before it was interrupted could not be measured." for m in here - there})
            self.lost |= {m: "The part of the run after it was interrupted could not be measured." for m in there - here}

    @property
    def sources(self) -> dict[str, str]:
        """Where each figure comes from, by metric name."""
        return {m: " + ".join(c.source for c in self.counters if c.metric == m) for m in dict.fromkeys(c.metric for c in self.counters)}

    def tags(self) -> dict[str, str]:
        """``energy.source``, and ``energy.kind`` and ``energy.scope`` where there is one."""
        tags = {"energy.source": ", ".join(self.sources.values()) or "none on this machine"}
        if self.counters:
            tags["energy.kind"] = ", ".join(sorted({c.kind for c in self.counters}))
            tags["energy.scope"] = ", ".join(dict.fromkeys(c.scope for c in self.counters))
        return tags

    def closing_tags(self) -> dict[str, str]:
        """What is known at the end only: ``energy.resolution.<figure>`` for each total, ``energy.lost.<figure>`` for each that was lost."""
        return {f"energy.{what}.{metric.removeprefix('energy/')}": str(told)
                for what, facts in (("resolution", self.resolution()), ("lost", self.lost)) for metric, told in facts.items()}

    @property
    def _due_s(self) -> float:
        # the shorter of the last two: one look that the system interrupted is not what a look takes
        return min(self._costs) / OVERHEAD

    def _look(self, look: Callable[[Track], object]) -> None:
        begin = self._clock.now()
        lost: dict[str, str] = {}
        for track in self._tracks:
            try:
                look(track)
            except Lost as reason:
                lost[track.counter.metric] = str(reason)
        self._looked = self._clock.now()
        self._costs = self._costs[1], self._looked - begin
        self._drop(lost)

    def _collect(self) -> None:
        """Add what the counters have moved since the last look."""
        def add(track: Track) -> None:
            self._joules[track.counter.metric] += track.take()

        now = self._clock.now()
        self._t_s, self._mark = self._t_s + now - self._mark, now
        self._look(add)

    def _drop(self, lost: Mapping[str, str]) -> None:
        if lost:
            self.lost |= lost
            self.counters = [c for c in self.counters if c.metric not in lost]
            self._tracks = [t for t in self._tracks if t.counter.metric not in lost]
            self._joules = {m: j for m, j in self._joules.items() if m not in lost}

    def _watch_wraps(self) -> None:
        """From the first start on, counters that come round are looked at twice in the shortest time that takes (minutes)."""
        if self._poller is not None:
            return
        ends = [self._clock.every(t.counter.wrap_s / 2, t.poll) for t in self._tracks if t.counter.wrap_s is not None]
        self._poller = functools.partial(_call_all, ends)
        weakref.finalize(self, self._poller)

    # --- windows ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def window(self, name: str = "window") -> Iterator[Window]:
        """Measure a ``with`` block; its readings are there after it, one a metric: ``w["energy/gpu_j"].joules``.

        A window too short for a counter gives no joules but a note that says how long it must be. Windows are independent of each
        other and of the totals, and may be nested.
        """
        window = Window(name, list(self._for_windows), self._clock, self._synchronize, self._missing)
        window.idle_before = dict(self._idle)
        window.open()
        try:
            yield window
        finally:
            window.close()
            self._awaiting_idle = [*(w for w in self._awaiting_idle if w() is not None), weakref.ref(window)]

    def measure_idle(self, seconds: float = 30.0) -> Window:
        """Measure power at rest, for the windows since the last time and for those to come; sleeps ``seconds``.

        Do it before and after, with the context made and the tensors allocated as in the work itself: clocks decay after load, so the
        two differ, and both are reported. A time too short for a counter gives no idle power for it, and the readings say why.
        """
        with self.window("idle") as window:
            self._clock.sleep(seconds)
        self._idle = {m: r.mean_w for m, r in window.items() if r.mean_w is not None}
        for earlier in filter(None, (ref() for ref in self._awaiting_idle)):
            earlier.idle_after = dict(self._idle)
        self._awaiting_idle = []
        window.idle_before, window.idle_after = {}, {}  # rest is not measured against itself
        return window

    def repeat_for(self, step: Callable[[], object], seconds: float | None = None, *, warmup: int = 1, name: str = "repeated") -> Repeated:
        """Repeat ``step`` in one window until it has lasted ``seconds`` (default: the shortest that gives figures); joules a step.

        The device is waited for at times that double, so work queued on it does not run ahead of the clock.
        """
        if seconds is None:
            seconds = max((shortest_window(c.period_s) for c in self._for_windows), default=0.0) or 1.0
        for _ in range(warmup):
            step()
        steps, chunk = 0, 1
        with self.window(name) as window:
            begin = self._clock.now()
            while (passed := self._clock.now() - begin) < seconds or not steps:
                for _ in range(chunk):
                    step()
                self._synchronize()
                steps += chunk
                took = self._clock.now() - begin - passed
                if took < seconds / 20:
                    chunk *= 2
        return Repeated(steps, window)


def _call_all(calls: list[Callable[[], None]]) -> None:
    for call in calls:
        call()


@dataclass(frozen=True)
class Repeated:
    """A step repeated in one window."""

    steps: int
    window: Window

    def joules(self, metric: str) -> float | None:
        """Joules a step, or ``None`` where the window has none (its reading says why)."""
        reading = self.window[metric]
        return None if reading.joules is None else reading.joules / self.steps

    def interval(self, metric: str) -> tuple[float, float] | None:
        """Joules a step, lowest and highest, that the counter's resolution allows. Spread between repetitions is not in it."""
        interval = self.window[metric].interval
        return None if interval is None else (interval[0] / self.steps, interval[1] / self.steps)

    def reading(self, metric: str) -> Reading:
        """The whole window's reading."""
        return self.window[metric]
