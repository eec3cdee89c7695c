"""An energy counter, and the following of one: wraps undone, resets noticed, updates counted."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass

from tracking.energy.clock import Clock
from tracking.errors import UserError, unknown

KINDS = {
    "counter": "difference of a hardware energy counter",
    "integrated": "power samples, integrated",
    "modelled": "arithmetic model on named hardware",
    "proxy": "a constant or a rated power, times time",
}
PROXY_METRIC = "energy/proxy_j"
PLAUSIBLE = 2.0  # times a counter's max_w: polled twice as often as max_w asks for, a wrap can be told up to this power
LOOK_S = 1.0  # a reset is seen unless the counter climbs past where it was within this time
COUNTABLE_S = 0.02  # updates that come faster are not counted one by one: a look at each would cost more than it tells


@dataclass
class Counter:
    """A source of joules: ``read`` returns joules since some fixed moment, modulo ``wrap_j`` where the counter wraps.

    ``period_s``: longest time between two updates (0: every look is exact). ``max_w``: the highest power that is to be expected, which
    says how long a wrap takes at least and what is a reset rather than a wrap; ``None`` skips both checks. ``others`` tells whether
    other processes are on the device: ``None`` when that cannot be told. Kinds of number (:data:`KINDS`) are not mixed under a name:
    a proxy is called ``energy/proxy_j`` and nothing else is, and a model is no counter.
    """

    metric: str
    source: str
    read: Callable[[], float]
    wrap_j: float | None = None
    period_s: float = 0.0
    kind: str = "counter"
    scope: str = "not stated"
    max_w: float | None = None
    others: Callable[[], bool | None] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of energy figure", self.kind, KINDS)
        if self.kind == "modelled":
            raise UserError(f"{self.source}: a modelled figure is computed, not metered. Record it as energy/model_j.")
        if (self.kind == "proxy") != (self.metric == PROXY_METRIC):
            raise UserError(f"{self.source}: a figure of kind {self.kind!r} cannot be called {self.metric}. Only a proxy, and every proxy, "
                            f"is called {PROXY_METRIC}.")

    @property
    def poll_s(self) -> float:
        """How often to look at the counter within a window, for its updates to be counted and its wraps and resets to be seen."""
        needs = [LOOK_S]
        if self.period_s >= COUNTABLE_S:
            needs.append(self.period_s / 2)
        if self.wrap_s is not None:
            needs.append(self.wrap_s / 2)
        return min(needs)

    @property
    def wrap_s(self) -> float | None:
        """Shortest time in which the counter comes round, at ``max_w``."""
        return self.wrap_j / self.max_w if self.wrap_j and self.max_w else None


class Lost(Exception):
    """What a counter shows cannot be believed; the text says why, for a person."""


class Track:
    """One counter followed from :meth:`anchor` on. :meth:`read` is the energy since then, wraps undone. Threads may share it."""

    def __init__(self, counter: Counter, clock: Clock) -> None:
        self.counter, self._clock = counter, clock
        self.updates = 0
        self._sum, self._taken, self._raw, self._at = 0.0, 0.0, 0.0, 0.0
        self._lost: Lost | None = None  # a reset stays one, also when the counter has since climbed past where it was
        self._lock = threading.Lock()

    def anchor(self) -> None:
        """Begin here: whatever the counter did before is of no interest."""
        with self._lock:
            self._raw, self._at = self._look()
            self._sum, self._taken, self.updates, self._lost = 0.0, 0.0, 0, None

    def read(self) -> float:
        """Joules since :meth:`anchor`. Raises :class:`Lost` when the counter fails, was reset, or may have come round unseen."""
        with self._lock:
            raw, now = self._look()
            try:
                spent = self._difference(raw, now - self._at)
            except Lost as lost:
                self._lost = self._lost or lost
            if self._lost:
                raise self._lost
            self.updates += raw != self._raw
            self._raw, self._at = raw, now
            self._sum += spent
            return self._sum

    def take(self) -> float:
        """Joules since the last :meth:`take`, or since :meth:`anchor`."""
        joules = self.read()
        taken, self._taken = self._taken, joules
        return joules - taken

    def poll(self) -> None:
        """A look in between. One that fails does no harm; what it finds amiss is told by the next :meth:`read`."""
        with contextlib.suppress(Lost):
            self.read()

    def _look(self) -> tuple[float, float]:
        try:
            return self.counter.read(), self._clock.now()
        except Exception as error:  # whatever a driver does costs the figure, never the run
            raise Lost(f"{self.counter.source} could not be read ({type(error).__name__}: {error}).") from None

    def _difference(self, raw: float, elapsed_s: float) -> float:
        c = self.counter
        if c.wrap_s is not None and elapsed_s >= c.wrap_s:
            raise Lost(f"{c.source} was not looked at for {elapsed_s:.0f} s, in which it may have come round more than once.")
        if raw >= self._raw:
            return raw - self._raw
        if not c.wrap_j:
            raise Lost(f"{c.source} went back from {self._raw:.6g} J to {raw:.6g} J: it was reset, or came round at a range "
                       "that is not known.")
        spent = raw - self._raw + c.wrap_j
        if c.max_w and spent > PLAUSIBLE * c.max_w * (elapsed_s + 2 * c.period_s):
            raise Lost(f"{c.source} went back from {self._raw:.6g} J to {raw:.6g} J; as a wrap that would be {spent:.6g} J in "
                       f"{elapsed_s:.3g} s, so it was reset.")
        return spent
