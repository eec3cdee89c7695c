"""Modules each at its own pace, on workers of their own, with messages that take time: an event simulation."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any

from tracking.errors import UserError
from tracking.links import Link
from workbench.decoupled.buffer import ReplayBuffer
from workbench.decoupled.line import Line, Work

_ARRIVES, _FREE = 0, 1  # at one moment, messages arrive before a module looks into its buffer


class EventLine(Line):
    """Every module on a worker of its own, which takes ``durations[j]`` a step and never waits for a slower one behind it.

    A worker waits where its buffer has nothing to read, and where its link has not yet taken the message before: one message
    is sent at a time, for ``bytes / bandwidth``, and arrives a latency later. What a step reads is what is there when it
    begins; what it makes can be seen when it has ended.

    Args:
        durations: virtual time of a step of each module.
        buffers: one a border.
        links: one a border, or ``None``: messages take no time.
        size: bytes of a message, for links.
        spans: a list to which (module, begin, end) of every step is added, for a time line; not part of the state.
    """

    def __init__(self, durations: Sequence[float], buffers: Sequence[ReplayBuffer], links: Sequence[Link] | None = None,
                 size: Callable[[Any], int] = lambda message: 0, spans: list[tuple[int, float, float]] | None = None) -> None:
        super().__init__(len(durations), buffers)
        if min(durations) <= 0 or (links is not None and len(links) != len(buffers)):
            raise UserError(f"durations = {tuple(durations)} with {None if links is None else len(links)} links are refused. "
                            f"Allowed: positive numbers, and a link for each of the {len(buffers)} borders.")
        self.durations, self.links, self.size, self.spans = list(durations), links, size, spans
        self.queue: list[tuple[float, int, int, int]] = [(0.0, _FREE, j, j) for j in range(self.modules)]
        self.number = self.modules
        self.waiting = [False] * self.modules
        self.link_free = [0.0] * len(self.buffers)
        self.flying: dict[int, Any] = {}
        self.busy, self.ends = [0.0] * self.modules, [0.0] * self.modules

    @property
    def idle(self) -> list[float]:
        """Share of its time, so far, that each worker has waited. A step under way counts up to now."""
        if not self.now:
            return [0.0] * self.modules
        worked = [busy - max(0.0, end - self.now) for busy, end in zip(self.busy, self.ends, strict=True)]
        return [min(1.0, max(0.0, 1 - w / self.now)) for w in worked]

    def turn(self, work: Work, arrived: Callable[[int, Any], None] | None = None) -> int:
        while True:
            self.now, what, j, number = heapq.heappop(self.queue)
            if what == _ARRIVES:
                self._store(j, self.flying.pop(number), arrived)
                if self.waiting[j + 1]:
                    self.waiting[j + 1] = False
                    self._at(self.now, _FREE, j + 1)
                continue
            item = self.buffers[j - 1].read() if j else None
            if j and item is None:
                self.waiting[j] = True
                continue
            self._begin(j, work(j, item))
            return j

    def _begin(self, j: int, message: Any) -> None:
        """The step that begins now, and what follows from it."""
        end = free = self.now + self.durations[j]
        self.busy[j] += self.durations[j]
        self.ends[j] = end
        self.turns[j] += 1
        if self.spans is not None:
            self.spans.append((j, self.now, end))
        if j + 1 < self.modules:
            arrival = end
            if self.links is not None:
                free = max(end, self.link_free[j])
                moved = self.links[j].transfer(self.size(message), "up")
                self.link_free[j] = free + moved.sending_s
                arrival = free + moved.seconds
            self.flying[self._at(arrival, _ARRIVES, j)] = message
        self._at(free, _FREE, j)

    def _at(self, time: float, what: int, j: int) -> int:
        self.number += 1
        # of the same kind and moment: earlier modules first, as data flow
        heapq.heappush(self.queue, (time, what, j, self.number))
        return self.number

    def state_dict(self) -> dict[str, Any]:
        own = ("queue", "number", "waiting", "link_free", "flying", "busy", "ends")
        return super().state_dict() | {name: getattr(self, name) for name in own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.queue = [tuple(event) for event in state["queue"]]  # a heap's order is kept as it was
        self.number, self.flying = state["number"], dict(state["flying"])
        for name in ("waiting", "link_free", "busy", "ends"):
            setattr(self, name, list(state[name]))
