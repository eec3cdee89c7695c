"""When clients are there: on/off periods and drop-out.

An absent client neither works nor communicates; its work goes on where it stopped. (Our choice: the papers' simulators
have every client always there.)
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from tracking.errors import UserError
from workbench.federation.clock import stream


@dataclass(frozen=True, eq=False)
class Availability:
    """The law of the clients' presence.

    Attributes:
        up_mean, down_mean: means of the exponential times of presence and absence, in units of time, for all or (n,);
            the start is in the stationary state. No absence at ``down_mean = 0``.
        life_mean: mean of the exponential time after which a client is gone for good.
        leaves: (n,) times at which clients are gone for good, beside ``life_mean``; ``inf`` for never.
    """

    up_mean: float | np.ndarray = np.inf
    down_mean: float | np.ndarray = 0.0
    life_mean: float = np.inf
    leaves: np.ndarray | None = None

    def __post_init__(self) -> None:
        up, down = np.asarray(self.up_mean, float), np.asarray(self.down_mean, float)
        if not (up > 0).all() or not ((down >= 0) & np.isfinite(down)).all() or not self.life_mean > 0:
            raise UserError("Availability needs up_mean > 0, a finite down_mean >= 0 and life_mean > 0.")
        if ((down > 0) & np.isinf(up)).any():
            raise UserError("down_mean > 0 needs a finite up_mean: who is always up is never down. Give both.")
        if self.leaves is not None and not (np.asarray(self.leaves, float) >= 0).all():
            raise UserError("leaves holds the times (>= 0) at which clients are gone for good; inf for never.")

    def facts(self) -> dict[str, Any]:
        """What a trace remembers of it; absent keys for what does not limit anybody."""
        limits = {f.name: getattr(self, f.name) for f in fields(self) if np.any(getattr(self, f.name) != f.default)}
        given = {k: np.asarray(v, float) for k, v in limits.items()}
        return {k: np.where(np.isinf(v), None, v).tolist() for k, v in given.items()}  # JSON has no infinity

    def spans(self, n: int, seed: int, horizon: float) -> list[np.ndarray]:
        """Every client's times of presence up to ``horizon``, as (m, 2) starts and ends.

        The last span of a client that has not gone for good by then is open (``inf``).
        """
        up, down = np.broadcast_to(self.up_mean, n), np.broadcast_to(self.down_mean, n)
        gone = np.full(n, np.inf) if self.leaves is None else np.asarray(self.leaves, float)
        if gone.shape != (n,):
            raise UserError(f"leaves has {gone.size} times for {n} clients. Give one for each.")
        return [self._client(stream(seed, "presence", i), up[i], down[i], gone[i], horizon) for i in range(n)]

    def _client(self, rng: np.random.Generator, up: float, down: float, gone: float, horizon: float) -> np.ndarray:
        life, first = rng.exponential(), rng.random()
        if np.isfinite(self.life_mean):
            gone = min(gone, life * self.life_mean)
        spans = []
        if down == 0:
            spans.append([0.0, np.inf])
        else:
            now = 0.0 if first < up / (up + down) else rng.exponential(down)
            while now <= horizon:
                spans.append([now, now + rng.exponential(up)])
                now = spans[-1][1] + rng.exponential(down)
            spans.append([now, np.inf])
        if gone > horizon:
            return np.array(spans)
        return np.array([[a, min(b, gone)] for a, b in spans if a < gone]).reshape(-1, 2)


class Presence:
    """Presence of ``n`` clients: who is there, and when work ends that is interrupted by absence.

    Without spans everybody is always there. Times may be arrays where a docstring says so.
    """

    def __init__(self, n: int, spans: list[np.ndarray] | None = None) -> None:
        self.always = spans is None
        self.n = n
        if spans is not None:
            self._starts, self._ends = [s[:, 0] for s in spans], [s[:, 1] for s in spans]
            self._before = [np.concatenate([[0.0], np.cumsum(s[:, 1] - s[:, 0])]) for s in spans]

    def there(self, client: int, time: float | np.ndarray) -> bool | np.ndarray:
        """Whether the client is present at ``time`` (array or number); at the end of a span it is not."""
        if self.always:
            return np.ones(np.shape(time), bool) if np.ndim(time) else True
        at = np.searchsorted(self._starts[client], time, "right")
        return (at > 0) & (np.asarray(time) < np.append(-np.inf, self._ends[client])[at])

    def worked(self, client: int, time: np.ndarray) -> np.ndarray:
        """Time of presence from 0 up to ``time``."""
        if self.always:
            return time
        starts, ends = self._starts[client], self._ends[client]
        if not len(starts):
            return np.zeros_like(time)
        at = np.searchsorted(starts, time, "right") - 1
        within = np.minimum(time, ends[at]) - starts[at]
        return np.where(at < 0, 0.0, self._before[client][at] + within)

    def finish(self, client: int, start: float, work: float) -> float:
        """When ``work`` units begun at ``start`` are done; ``inf`` if the client is gone for good before."""
        if self.always:
            return start + work
        starts, ends = self._starts[client], self._ends[client]
        for at in range(int(np.searchsorted(ends, start, "right")), len(ends)):
            begin = max(float(starts[at]), start)
            if begin + work <= ends[at]:
                return begin + work
            work -= float(ends[at]) - begin
        return np.inf

    def returns(self, client: int, time: float) -> float:
        """The first time of presence from ``time`` on; ``inf`` if there is none."""
        if self.always or self.there(client, time):
            return time
        at = np.searchsorted(self._starts[client], time)
        return float(self._starts[client][at]) if at < len(self._starts[client]) else np.inf

    def last(self, client: int) -> float:
        """The end of the client's last span: when it goes for good, or ``inf``."""
        return np.inf if self.always else float(np.append(0.0, self._ends[client])[-1])

    def gone(self, client: int, time: float) -> bool:
        """Whether the client is gone for good at ``time``."""
        return not self.always and self.returns(client, time) == np.inf
