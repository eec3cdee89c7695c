"""A server whose network card is shared: simultaneous transfers slow each other down, in exact, event-driven virtual time."""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tracking.errors import UserError
from tracking.links.link import Direction, Link, check_direction, number


def max_min_rates(caps: ArrayLike, bandwidth: float) -> np.ndarray:
    """Max-min fair split of ``bandwidth`` among flows of which none can take more than its cap, bytes a second, shape (flows,).

    Every flow gets ``min(cap, level)`` with the one level that uses up the bandwidth (Bertsekas & Gallager, Data Networks, 1992,
    section 6.5.2); without binding caps, equal shares.
    """
    caps = np.asarray(caps, float)
    rising = np.sort(caps)  # sums in one order, whatever the flows' order
    if rising.sum() <= bandwidth:
        return caps.copy()
    slower = np.concatenate([[0.0], np.cumsum(rising)[:-1]])
    level = (bandwidth - slower) / np.arange(len(caps), 0, -1)
    return np.minimum(caps, level[np.argmax(rising >= level)])


@dataclass(frozen=True)
class Delivery:
    """A transfer that has arrived. ``wire_bytes`` are all bytes it took, headers and retransmissions included."""

    time_s: float
    direction: Direction
    party: str | int
    n_bytes: int
    wire_bytes: float
    submitted_s: float

    @property
    def seconds(self) -> float:
        return self.time_s - self.submitted_s


@dataclass(frozen=True)
class _Flow:
    direction: Direction
    party: str | int
    n_bytes: int
    wire_bytes: float
    submitted_s: float
    rate: float  # of the party's own link
    after_s: float  # from the card's last byte to the arrival


class _Card:
    """One direction of the card: flows in service, their rates re-split whenever one comes or goes."""

    def __init__(self, bandwidth: float) -> None:
        self.bandwidth, self.time, self.flows = bandwidth, 0.0, []
        self.left, self.caps, self.rates, self.due = (np.empty(0) for _ in range(4))

    def _resplit(self) -> None:
        self.rates = max_min_rates(self.caps, self.bandwidth)
        self.due = self.time + self.left / self.rates

    def _serve(self, until: float) -> None:
        if until > self.time:
            # rounding may take a flow that is due this very moment a hair below nothing
            self.left = np.maximum(self.left - self.rates * (until - self.time), 0)
            self.time = until

    def next_departure(self) -> float:
        return float(self.due.min()) if self.flows else math.inf

    def enter(self, time: float, flow: _Flow) -> None:
        self._serve(time)
        self.flows.append(flow)
        self.left, self.caps = np.append(self.left, flow.wire_bytes), np.append(self.caps, flow.rate)
        self._resplit()

    def depart(self) -> list[_Flow]:
        """Serve until the next departure and take out all flows that are due then."""
        at = self.next_departure()
        gone = self.due == at
        self._serve(at)
        out = [f for f, g in zip(self.flows, gone, strict=True) if g]
        self.flows = [f for f, g in zip(self.flows, gone, strict=True) if not g]
        self.left, self.caps = self.left[~gone], self.caps[~gone]
        self._resplit()
        return out


class SharedServer:
    """Transfers between parties and one server, which share the server's card by processor sharing.

    Rates are re-split at each arrival and departure, max-min fairly under the rate of each party's own link; between events they are
    constant, so finishing times are exact up to rounding. An upload reaches the card after its link's latency; a download arrives its
    latency after the card has sent it. Timeouts of lost packets delay the arrival like latency, and the lost bytes occupy the card.

    Args:
        bandwidth_up: bytes a second that the server can take in.
        bandwidth_down: bytes a second that it can send; ``None``: the same.
        full_duplex: ``False`` makes both directions share ``bandwidth_up``.

    The trace depends on what is submitted and when, and not on the order of submissions for the same moment.
    """

    def __init__(self, bandwidth_up: float, bandwidth_down: float | None = None, *, full_duplex: bool = True) -> None:
        up = _Card(number("SharedServer", "bandwidth_up", bandwidth_up, 0, open_low=True))
        if bandwidth_down is not None:
            number("SharedServer", "bandwidth_down", bandwidth_down, 0, open_low=True)
            if not full_duplex and bandwidth_down != bandwidth_up:
                raise UserError("SharedServer: with full_duplex=False both directions share bandwidth_up. Leave bandwidth_down out.")
        self.now = 0.0
        self._cards = {"up": up, "down": _Card(bandwidth_down or bandwidth_up) if full_duplex else up}
        self._heap: list[tuple[float, int, _Flow, bool]] = []
        self._numbers = itertools.count()

    def submit(self, time_s: float, n_bytes: int, direction: Direction, link: Link | None = None, party: str | int = 0,
               rng: np.random.Generator | None = None) -> None:
        """Start sending a message at ``time_s``, which must not lie in the past; ``rng`` draws its losses, else they are expected ones."""
        check_direction(direction)
        number("SharedServer", "time_s", time_s, self.now, 1e300)
        link = link or Link(0.0, math.inf)
        transfer = link.transfer(n_bytes, direction, rng)
        before, after = (link.latency_s, transfer.timeout_s) if direction == "up" else (0.0, link.latency_s + transfer.timeout_s)
        flow = _Flow(direction, party, transfer.payload_bytes, transfer.total_bytes, float(time_s), link.bandwidth(direction), after)
        self._push(time_s + before, flow, False)

    def _push(self, time: float, flow: _Flow, served: bool) -> None:
        heapq.heappush(self._heap, (time, next(self._numbers), flow, served))

    def next_time(self) -> float:
        """Virtual time of the next event, ``inf`` where nothing is under way: no delivery can come before it."""
        return min(self._heap[0][0] if self._heap else math.inf, *(card.next_departure() for card in self._cards.values()))

    def advance(self, until: float = math.inf) -> list[Delivery]:
        """Run to ``until``, inclusive, and return what arrived, in order of time, direction and party."""
        if until < self.now:
            raise UserError(f"SharedServer: cannot go back from {self.now:g} s to {until:g} s.")
        arrived: list[Delivery] = []
        while (time := self.next_time()) <= until and time < math.inf:
            self.now = time
            for card in {id(c): c for c in self._cards.values()}.values():
                if card.next_departure() == time:
                    for flow in card.depart():
                        self._push(time + flow.after_s, flow, True)
            while self._heap and self._heap[0][0] == time:
                _, _, flow, served = heapq.heappop(self._heap)
                if served:
                    arrived.append(Delivery(time, flow.direction, flow.party, flow.n_bytes, flow.wire_bytes, flow.submitted_s))
                else:
                    self._cards[flow.direction].enter(time, flow)
        self.now = max(self.now, until) if until < math.inf else self.now
        return sorted(arrived, key=lambda d: (d.time_s, d.direction, str(d.party), d.submitted_s, d.n_bytes))
