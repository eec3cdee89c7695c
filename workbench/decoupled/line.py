"""Who works when: modules in step, in turn or in random order; each at its own pace: :mod:`workbench.decoupled.events`.

Time never depends on weights, so a line may be run without any learning, for its statistics and its time line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tracking.errors import UserError
from tracking.links import Link
from workbench.decoupled.buffer import ReplayBuffer

Work = Callable[[int, Any], Any]
"""(module from 0, what it read, or ``None`` for the first module) to the message for the next one (of the last module: ignored)."""


def link(latency: float = 0.0, bandwidth: float = 0.0) -> Link:
    """A link of one latency (units of time) and one bandwidth (bytes a unit of time; 0: no limit)."""
    return Link(latency, bandwidth or math.inf)


@dataclass
class Tandem:
    """Clock of modules in step, each on a worker of its own: every batch goes through all, in order, and none is used twice.

    A worker begins a batch when it has handed on the one before and the batch is there. One batch waits at a border; a worker
    whose batch finds no place keeps it and stands still. With fixed durations d_j, n batches take ``sum(d) + (n - 1) max(d)``
    where messages take no time.
    """

    modules: int
    handed_on: list[float] = field(default_factory=list)
    """When each worker handed on its last batch."""
    begun: list[float] = field(default_factory=list)
    """When each worker began its last batch."""
    busy: float = 0.0
    """Time worked, over all workers."""

    def __post_init__(self) -> None:
        self.handed_on = self.handed_on or [0.0] * self.modules
        self.begun = self.begun or [0.0] * self.modules

    @property
    def now(self) -> float:
        """When the last batch left the last worker."""
        return self.handed_on[-1]

    @property
    def idle(self) -> float:
        """Share of the workers' time in which they wait."""
        return max(0.0, 1 - self.busy / (self.modules * self.now)) if self.now else 0.0

    def batch(self, durations: Sequence[float], delays: Sequence[float]) -> list[tuple[float, float]]:
        """Send a batch through: ``durations`` of its steps, ``delays`` of the messages between. When each step began and ended."""
        there, spans = 0.0, []
        for j, duration in enumerate(durations):
            begin = max(self.handed_on[j], there)
            spans.append((begin, begin + duration))
            there = begin + duration
            if j + 1 < self.modules:
                there = max(there, self.begun[j + 1])
            self.handed_on[j] = there
            there += delays[j] if j + 1 < self.modules else 0
        # after the loop: a border is free when the worker behind it has begun the batch *before*
        self.begun = [begin for begin, _ in spans]
        self.busy += sum(durations)
        return spans


class Line:
    """Modules with a replay buffer before each but the first. A turn is one step of one module.

    All that it remembers is in ``state_dict``, plain data; the messages in the buffers are part of it.
    """

    def __init__(self, modules: int, buffers: Sequence[ReplayBuffer]) -> None:
        if modules < 1 or len(buffers) != modules - 1:
            raise UserError(f"{modules} modules and {len(buffers)} buffers: give one buffer for each border between modules.")
        self.modules, self.buffers = modules, list(buffers)
        self.now = 0.0
        self.turns = [0] * modules

    def turn(self, work: Work, arrived: Callable[[int, Any], None] | None = None) -> int:
        """Let time pass until a module has done a step, ``work(j, item)``; returns that module, from 0.

        ``arrived(j, message)`` is called when a message for module ``j + 1`` reaches its buffer.
        """
        raise NotImplementedError

    def _store(self, j: int, message: Any, arrived: Callable[[int, Any], None] | None) -> None:
        self.buffers[j].write(message)
        if arrived:
            arrived(j, message)

    def state_dict(self) -> dict[str, Any]:
        return {"now": self.now, "turns": self.turns, "buffers": [dict(vars(b)) for b in self.buffers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.now, self.turns = state["now"], list(state["turns"])
        self.buffers = [ReplayBuffer(**b) for b in state["buffers"]]


class _Ordered(Line):
    """Turns in an order of its own; a message is there at once."""

    tick: float
    """Virtual time of a turn."""

    def _next(self) -> int:
        raise NotImplementedError

    def turn(self, work: Work, arrived: Callable[[int, Any], None] | None = None) -> int:
        while True:
            j = self._next()
            self.now += self.tick
            item = self.buffers[j - 1].read() if j else None
            if j and item is None:
                continue  # nothing that may be read: it lets the turn pass
            message = work(j, item)
            if j + 1 < self.modules:
                self._store(j, message, arrived)
            self.turns[j] += 1
            return j


class RoundRobin(_Ordered):
    """1, 2, …, J, 1, 2, …: with buffers of one batch, synchronous DGL. A round takes one unit of time."""

    def __init__(self, modules: int, buffers: Sequence[ReplayBuffer]) -> None:
        super().__init__(modules, buffers)
        self.position, self.tick = 0, 1 / modules

    def _next(self) -> int:
        j, self.position = self.position, (self.position + 1) % self.modules
        return j

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.position = state["position"]


class RandomLine(_Ordered):
    """The paper's simulation: each turn's module is drawn, with probability proportional to 1 / S_j.

    The first turns are 1, 1, 2, 2, …, J, J, so that no buffer is empty. In a unit of time a module with S = 1 has one turn on
    average.
    """

    def __init__(self, modules: int, buffers: Sequence[ReplayBuffer], slowdown: Sequence[float], seed: int = 0) -> None:
        super().__init__(modules, buffers)
        pace = np.asarray(slowdown, float)
        if len(pace) != modules or not (np.isfinite(pace) & (pace > 0)).all():
            raise UserError(f"slowdown = {tuple(slowdown)} is refused. Allowed: one positive number for each of the {modules} modules.")
        rates = 1 / pace
        self.shares, self.tick = rates.cumsum() / rates.sum(), float(1 / rates.sum())
        self.rng = np.random.default_rng(seed)

    def _next(self) -> int:
        done = sum(self.turns)
        if done < 2 * self.modules:
            return done // 2
        return int(np.searchsorted(self.shares, self.rng.random(), side="right"))

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.rng.bit_generator.state = state["rng"]
