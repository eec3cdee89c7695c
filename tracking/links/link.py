"""One link: how long a message takes and how many bytes it really puts on the wire.

``t = alpha + bytes / beta`` (Hockney, Parallel Computing 20, 1994), with the bytes of packet and record headers where asked for,
and with packets that are lost independently and sent again after a timeout. Bandwidths are in bytes (not bits) a second.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tracking.errors import UserError, unknown

Direction = Literal["up", "down"]

MAX_LOSS = 0.99
"""Beyond, a packet takes more than a hundred tries: a link that is down, not one that loses packets."""


def number(owner: str, field: str, value: Any, low: float, high: float = math.inf, *, open_low: bool = False) -> float:
    """``value`` as a float within [low, high]; a UserError that names ``owner`` and ``field`` otherwise."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not low <= found <= high or (open_low and found == low):
        raise UserError(f"{owner}: {field} = {value!r} is refused. Allowed: a number x, {low:g} {'<' if open_low else '<='} x <= {high:g}.")
    return found


def whole(owner: str, field: str, value: Any, low: int = 0) -> int:
    """``value`` as an int of at least ``low``; a UserError otherwise."""
    found = number(owner, field, value, low, 2.0**62)
    if found != int(found):
        raise UserError(f"{owner}: {field} = {value!r} is refused. Allowed: a whole number from {low} on.")
    return int(value)


def check_direction(direction: str) -> None:
    if direction not in ("up", "down"):
        raise unknown("direction", direction, ("up", "down"))


@dataclass(frozen=True)
class Framing:
    """What goes on the wire beside the payload; the default adds nothing and only cuts the payload into packets.

    An envelope once a message, a header each record of ``record_bytes`` (TLS), a header each packet of ``segment_bytes``.
    """

    segment_bytes: int = 1460
    header_bytes: int = 0
    record_bytes: int = 16_384
    record_header_bytes: int = 0
    envelope_bytes: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            whole("Framing", field.name, getattr(self, field.name), int(field.name in ("segment_bytes", "record_bytes")))

    def carried_bytes(self, n_bytes: int) -> int:
        """Payload with envelope and record headers: what is cut into packets."""
        n_bytes = whole("message", "n_bytes", n_bytes) + self.envelope_bytes
        return n_bytes + self.record_header_bytes * -(-n_bytes // self.record_bytes)

    def packets(self, n_bytes: int) -> int:
        """Packets of a message; an empty message without an envelope has none."""
        return -(-self.carried_bytes(n_bytes) // self.segment_bytes)

    def wire_bytes(self, n_bytes: int) -> int:
        """Bytes of a message whose packets are sent once each."""
        return self.carried_bytes(n_bytes) + self.header_bytes * self.packets(n_bytes)


PLAIN = Framing()
TCP = Framing(segment_bytes=1460, header_bytes=40)
"""IPv4 and TCP without options in Ethernet's 1,500 B (RFC 791, RFC 9293): 2.7 %."""
TCP_TIMESTAMPS = Framing(segment_bytes=1448, header_bytes=52)
"""The same with the timestamp option (RFC 7323, 12 B): 3.6 %."""
TLS = Framing(segment_bytes=1448, header_bytes=52, record_header_bytes=29)
"""TLS 1.2 with AES-GCM over it: 5 B header, 8 B nonce and 16 B tag a record of 16 KiB (RFC 5246, RFC 5288)."""


@dataclass(frozen=True)
class Transfer:
    """One message on one link. Counts are whole where sampled, expectations where not.

    ``wire_bytes`` is every packet once; ``retransmitted_bytes`` comes on top, and a ledger bills both (``total_bytes``).
    """

    payload_bytes: int
    wire_bytes: int
    retransmitted_bytes: float
    packets: int
    transmissions: float
    latency_s: float
    sending_s: float
    timeout_s: float

    @property
    def total_bytes(self) -> float:
        return self.wire_bytes + self.retransmitted_bytes

    @property
    def seconds(self) -> float:
        return self.latency_s + self.sending_s + self.timeout_s


@dataclass(frozen=True)
class Link:
    """A party's link.

    Args:
        latency_s: one way, alpha.
        bandwidth_up, bandwidth_down: bytes a second, beta; ``bandwidth_down=None`` is a symmetric link.
        loss: probability that a packet is lost, independent of all others, each time it is sent.
        rto_s: retransmission timeout; needed where ``loss > 0``.
        framing: headers and packet size.

    Lost packets are sent again together (selective repeat): round k sends what round k-1 lost, after one timeout. Timeouts come on
    top of the time to send all bytes, which is pessimistic by what the two overlap. Congestion control is not modelled.
    """

    latency_s: float
    bandwidth_up: float
    bandwidth_down: float | None = None
    loss: float = 0.0
    rto_s: float | None = None
    framing: Framing = PLAIN

    def __post_init__(self) -> None:
        if self.bandwidth_down is None:
            object.__setattr__(self, "bandwidth_down", self.bandwidth_up)
        if number("Link", "latency_s", self.latency_s, 0) == math.inf:
            raise UserError("Link: latency_s = inf is refused: nothing would ever arrive.")
        for field in ("bandwidth_up", "bandwidth_down"):
            number("Link", field, getattr(self, field), 0, open_low=True)
        number("Link", "loss", self.loss, 0, MAX_LOSS)
        if self.rto_s is not None:
            number("Link", "rto_s", self.rto_s, 0, 1e9)
        elif self.loss > 0:
            raise UserError(f"Link: loss = {self.loss:g} needs a retransmission timeout. Give rto_s (RFC 6298 asks for 1 s at least).")

    def bandwidth(self, direction: Direction) -> float:
        """Bytes a second in one direction."""
        check_direction(direction)
        return self.bandwidth_up if direction == "up" else self.bandwidth_down

    def wire_bytes(self, n_bytes: int) -> int:
        """Bytes of a message with headers, every packet sent once."""
        return self.framing.wire_bytes(n_bytes)

    def seconds(self, n_bytes: int, direction: Direction, rng: np.random.Generator | None = None) -> float:
        """Time from the start of sending to the arrival of the last byte: expected, or one draw where ``rng`` is given."""
        return self.transfer(n_bytes, direction, rng).seconds

    def transfer(self, n_bytes: int, direction: Direction, rng: np.random.Generator | None = None) -> Transfer:
        """Time and bytes of one message: their expectation, or one draw where ``rng`` is given (same generator state, same draw)."""
        beta, packets, wire = self.bandwidth(direction), self.framing.packets(n_bytes), self.wire_bytes(n_bytes)
        if not (self.loss and packets):
            again, extra, timeouts = 0, 0, 0.0
        elif rng is None:
            again, extra = packets * self.loss / (1 - self.loss), wire * self.loss / (1 - self.loss)
            timeouts = expected_rounds(packets, self.loss) - 1
        else:
            again, extra, timeouts = self._lost(n_bytes, packets, wire, rng)
        waiting = timeouts * (self.rto_s or 0)
        return Transfer(int(n_bytes), wire, extra, packets, packets + again, self.latency_s, (wire + extra) / beta, waiting)

    def _lost(self, n_bytes: int, packets: int, wire: int, rng: np.random.Generator) -> tuple[int, int, int]:
        """Retransmissions, their bytes and the rounds they took, drawn round by round: a binomial each, whatever the message's length."""
        full = self.framing.segment_bytes + self.framing.header_bytes
        sizes = np.array([full, wire - full * (packets - 1)])  # all packets but the last are full
        left = np.array([packets - 1, 1])
        again = extra = rounds = 0
        while (left := rng.binomial(left, self.loss)).any():
            again, extra, rounds = again + int(left.sum()), extra + int(left @ sizes), rounds + 1
        return again, extra, rounds

    def crossing_bytes(self, direction: Direction) -> float:
        """The payload from which a message is bound by bandwidth: below, latency takes the greater part of the time.

        On a plain link this is ``alpha beta``, Hockney's n_1/2, rounded up to a byte. ``inf`` where there is no such payload.
        """
        if self.latency_s == 0:
            return 0
        if self.bandwidth(direction) == math.inf and not self.loss * (self.rto_s or 0):
            return math.inf
        low, high = 0, 1
        while self.seconds(high, direction) < 2 * self.latency_s:
            low, high = high, 2 * high
            if high > 2**60:
                return math.inf
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.seconds(middle, direction) < 2 * self.latency_s else (low, middle)
        return high


def expected_rounds(packets: int, loss: float) -> float:
    """Mean of the greatest of ``packets`` geometric counts of tries, each try failing with probability ``loss``.

    ``sum_{k >= 0} 1 - (1 - loss^k)^packets``; for one packet ``1 / (1 - loss)``.
    """
    if loss == 0 or packets == 0:
        return float(packets > 0)
    # the terms fall like packets loss^k: those left out sum to less than 1e-17 / (1 - loss)
    terms = math.ceil((math.log(packets) + 40) / -math.log(loss))
    k = np.arange(1, terms + 1)
    return 1 - float(np.expm1(packets * np.log1p(-(loss**k))).sum())


def path(sender: Link, receiver: Link) -> Link:
    """The way from one party to another, over both parties' own links: up the sender's, down the receiver's.

    Latencies add up, the narrower link sets the rate, and a packet must survive both. Read its ``up`` direction.
    """
    timeouts = [x.rto_s for x in (sender, receiver) if x.rto_s is not None]
    return Link(sender.latency_s + receiver.latency_s, min(sender.bandwidth_up, receiver.bandwidth_down),
                loss=1 - (1 - sender.loss) * (1 - receiver.loss), rto_s=max(timeouts, default=None), framing=sender.framing)
