"""Replay: recorded counters and power traces on a clock that passes only when told to; tests whatever uses a meter, anywhere.

A trace is a CSV file: lines ``# name: value`` (``source``, ``metric``, ``kind``, ``scope``, ``unit``, ``wrap_j``, ``period_s``), the line
``t_s,value``, then a line a sample. ``unit`` is ``J`` (what a counter showed) or ``W`` (power). An empty value is a sample that is missing.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tracking.energy.clock import Clock, SystemClock
from tracking.energy.counter import Counter
from tracking.energy.meter import EnergyMeter
from tracking.errors import UserError, unknown
from tracking.folder import write_atomic


class ReplayClock:
    """A clock that stands still until :meth:`sleep`, and then calls what is due at its very moment."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now
        self._calls: list[tuple[float, int, float, Callable[[], object]]] = []
        self._number = itertools.count()
        self._ended: set[int] = set()

    def now(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        end = self._now + seconds
        while self._calls and self._calls[0][0] <= end:
            due, number, interval_s, call = heapq.heappop(self._calls)
            if number not in self._ended:
                self._now = max(self._now, due)
                heapq.heappush(self._calls, (due + interval_s, number, interval_s, call))
                call()
        self._now = max(self._now, end)

    def every(self, interval_s: float, call: Callable[[], object]) -> Callable[[], None]:
        number = next(self._number)
        heapq.heappush(self._calls, (self._now + interval_s, number, interval_s, call))
        return lambda: self._ended.add(number)


@dataclass(frozen=True)
class Trace:
    """Samples ``(t_s, value)`` in order of time, and what they are of; ``None`` is a sample that is missing."""

    points: Sequence[tuple[float, float | None]]
    unit: Literal["J", "W"] = "W"
    source: str = "replayed"
    metric: str = "energy/gpu_j"
    kind: str = "counter"
    scope: str = "replayed"
    wrap_j: float | None = None
    period_s: float = 0.0

    def __post_init__(self) -> None:
        if self.unit not in ("J", "W"):
            raise unknown("unit of a trace", self.unit, ("J", "W"))
        times = [t for t, _ in self.points]
        if not times or any(b <= a for a, b in itertools.pairwise(times)):
            raise UserError(f"The trace of {self.source} needs one sample at least, and times that grow.")
        if not all(math.isfinite(x) for point in self.points for x in point if x is not None):
            raise UserError(f"The trace of {self.source} has a sample that is not a finite number. A missing one is left empty.")
        if self.unit == "W" and any(w is not None and w < 0 for _, w in self.points):
            raise UserError(f"The trace of {self.source} has a power below zero.")


@dataclass
class ReplayCounter:
    """A trace played as a :class:`Counter` (:attr:`counter`) from the moment of its making.

    Power is taken as straight lines between samples and integrated exactly; a counter's samples hold until the next. ``resets`` are moments
    at which a driver puts the counter back to zero. ``read_s`` is what a look costs: the clock is put to sleep for it. A look at a stretch
    with a missing sample at either end, or after the end of the trace, raises ``OSError``, as a driver's failure would.
    """

    trace: Trace
    clock: Clock
    resets: Iterable[float] = ()
    read_s: float = 0.0
    start_j: float = 0.0
    """What the counter shows at first (power traces only)."""
    looks: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        t = self.trace
        self._begin = self.clock.now() - t.points[0][0]
        self._times = [time for time, _ in t.points]
        self._resets = sorted(self.resets)
        self._integral = [0.0]
        for (a, p), (b, q) in itertools.pairwise(t.points):
            self._integral.append(self._integral[-1] + ((p + q) / 2 * (b - a) if p is not None and q is not None else 0.0))
        self.counter = Counter(t.metric, t.source, self.read, t.wrap_j, t.period_s, t.kind, t.scope)

    def read(self) -> float:
        """What the counter shows now: the value of its last update, modulo its range."""
        self.looks += 1
        if self.read_s:
            self.clock.sleep(self.read_s)
        t = self.clock.now() - self._begin
        if self.trace.period_s:
            first = self._times[0]
            t = first + math.floor((t - first) / self.trace.period_s + 1e-9) * self.trace.period_s
        joules = self.at(t)
        past = bisect.bisect_right(self._resets, t)
        if past:
            joules -= self.at(self._resets[past - 1])
        elif self.trace.unit == "W":
            joules += self.start_j
        return joules % self.trace.wrap_j if self.trace.wrap_j else joules

    def at(self, t: float) -> float:
        """The trace's joules at its moment ``t``, exact: no update period, no range, no reset."""
        i = bisect.bisect_right(self._times, t) - 1
        if i < 0 or t > self._times[-1]:
            raise OSError(f"the trace runs from {self._times[0]:g} s to {self._times[-1]:g} s, and {t:g} s is asked for")
        (a, p), (b, q) = self.trace.points[i], self.trace.points[min(i + 1, len(self._times) - 1)]
        if p is None or (self.trace.unit == "W" and q is None and t > a):
            raise OSError(f"the trace has no sample at {t:g} s")
        if self.trace.unit == "J" or t == a:
            return p if self.trace.unit == "J" else self._integral[i]
        end = p + (q - p) * (t - a) / (b - a)
        return self._integral[i] + (p + end) / 2 * (t - a)


class ReplayMeter(EnergyMeter):
    """An :class:`EnergyMeter` over traces, on a clock of its own: ``meter.clock.sleep(s)`` is the work that takes ``s`` seconds."""

    def __init__(self, traces: Iterable[Trace | str | Path], *, clock: ReplayClock | None = None, resets: Iterable[float] = (),
                 read_s: float = 0.0) -> None:
        self.clock = clock or ReplayClock()
        resets = tuple(resets)
        self.replayed = [ReplayCounter(t if isinstance(t, Trace) else read_trace(t), self.clock, resets, read_s) for t in traces]
        super().__init__([r.counter for r in self.replayed], clock=self.clock)


_TEXTS, _NUMBERS = ("source", "metric", "kind", "scope", "unit"), ("wrap_j", "period_s")


def record_trace(path: str | Path, counter: Counter, seconds: float, interval_s: float = 0.1, *, clock: Clock | None = None) -> Trace:
    """Look at a real counter every ``interval_s`` seconds for ``seconds``, write the trace to ``path`` and return it.

    Values are as shown, wraps and all; a look that fails is a missing sample.
    """
    if not 0 < interval_s <= seconds:
        raise UserError(f"interval_s = {interval_s:g} must be above 0 and not above seconds = {seconds:g}.")
    clock = clock or SystemClock()
    begin, points = clock.now(), []
    for i in range(math.floor(seconds / interval_s + 1e-9) + 1):
        clock.sleep(max(0.0, begin + i * interval_s - clock.now()))
        t = clock.now() - begin
        try:
            points.append((t, counter.read()))
        except Exception:  # whatever a driver does is a missing sample
            points.append((t, None))
    trace = Trace(points, "J", counter.source, counter.metric, counter.kind, counter.scope, counter.wrap_j, counter.period_s)
    facts = {name: getattr(trace, name) for name in (*_TEXTS, *_NUMBERS)}
    head = [f"# {name}: {value}" for name, value in facts.items() if value is not None]
    # repr of a float is the shortest text that reads back to the same number
    lines = [f"{t!r},{'' if value is None else repr(float(value))}" for t, value in points]
    write_atomic(Path(path), "\n".join([*head, "t_s,value", *lines]) + "\n")
    return trace


def read_trace(path: str | Path) -> Trace:
    """Read what :func:`record_trace` or a person wrote. Raises :class:`UserError` with the line that is wrong."""
    facts: dict[str, str | float] = {}
    points: list[tuple[float, float | None]] = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"The trace {path} cannot be read: {error.strerror}.") from None
    for number, line in enumerate(lines, 1):
        try:
            if line.startswith("#"):
                name, _, value = (part.strip() for part in line[1:].partition(":"))
                if name not in (*_TEXTS, *_NUMBERS):
                    raise unknown("name", name, (*_TEXTS, *_NUMBERS))
                facts[name] = float(value) if name in _NUMBERS else value
            elif line.strip() and line.strip() != "t_s,value":
                t, value = line.split(",")
                points.append((float(t), float(value) if value.strip() else None))
        except (ValueError, UserError) as error:
            raise UserError(f"{path}, line {number}: {line!r} is not a line of a trace ({error}).") from None
    if "unit" not in facts:
        raise UserError(f"{path} does not say its unit. Write '# unit: W' (power) or '# unit: J' (a counter) above the samples.")
    return Trace(points, **facts)
