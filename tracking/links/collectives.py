"""Collective operations: seconds, and the bytes each party sends.

Costs of the textbook algorithms in the alpha-beta model (Thakur, Rabenseifner & Gropp, IJHPCA 19, 2005; Patarasuk & Yuan, JPDC 69, 2009).
``n_bytes`` is always the whole vector: what every party holds before an all-reduce or after an all-gather. Steps are synchronous,
each as slow as the slowest party's link. The functions named after a library cost an operation as that library really does it.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tracking.errors import UserError
from tracking.links.link import Link, whole
from tracking.links.server import SharedServer


@dataclass(frozen=True)
class Collective:
    """Cost of one collective operation.

    ``sent_bytes`` is payload, one entry a party (a parameter server comes last); ``wire_bytes`` adds the links' headers and expected
    retransmissions. ``as_implemented`` names the library whose real traffic is counted; ``None``: the textbook algorithm.
    """

    operation: str
    seconds: float
    sent_bytes: tuple[int, ...]
    wire_bytes: tuple[float, ...]
    as_implemented: str | None = None

    @property
    def total_bytes(self) -> int:
        return sum(self.sent_bytes)

    @property
    def total_wire_bytes(self) -> float:
        return sum(self.wire_bytes)


def ring_all_reduce(n_bytes: int, parties: int, link: Link | Sequence[Link]) -> Collective:
    """``2 (P-1) alpha + 2 (P-1)/P n/beta`` seconds, ``2 (P-1) n`` bytes in all: reduce-scatter, then all-gather."""
    n_bytes, links = _check(n_bytes, parties, link)
    chunks, messages = _chunks(n_bytes, parties), []
    for r in range(parties):
        messages.append(_all_but(chunks, r) + _all_but(chunks, (r + 1) % parties))
    return _collective("all-reduce (ring)", 2 * (parties - 1) * _step(links, chunks[0]), links, messages)


def ring_reduce_scatter(n_bytes: int, parties: int, link: Link | Sequence[Link]) -> Collective:
    """``(P-1) alpha + (P-1)/P n/beta`` seconds, ``(P-1) n`` bytes in all; party r ends with chunk r, so it sends all others."""
    n_bytes, links = _check(n_bytes, parties, link)
    chunks = _chunks(n_bytes, parties)
    messages = [_all_but(chunks, r) for r in range(parties)]
    return _collective("reduce-scatter (ring)", (parties - 1) * _step(links, chunks[0]), links, messages)


def ring_all_gather(n_bytes: int, parties: int, link: Link | Sequence[Link]) -> Collective:
    """``(P-1) alpha + (P-1)/P n/beta`` seconds, ``(P-1) n`` bytes in all; party r sends all but its right neighbour's own chunk."""
    n_bytes, links = _check(n_bytes, parties, link)
    chunks = _chunks(n_bytes, parties)
    messages = [_all_but(chunks, (r + 1) % parties) for r in range(parties)]
    return _collective("all-gather (ring)", (parties - 1) * _step(links, chunks[0]), links, messages)


def tree_broadcast(n_bytes: int, parties: int, link: Link | Sequence[Link], root: int = 0) -> Collective:
    """``ceil(log2 P) (alpha + n/beta)`` seconds, ``(P-1) n`` bytes in all: a binomial tree, in which informed parties double each round."""
    n_bytes, links = _check(n_bytes, parties, link)
    root = _check_root(root, parties)
    rounds = (parties - 1).bit_length()
    # counted from the root, party v knows from round ceil(log2(v+1)) on and then informs v + 2^k
    children = [sum(v < 2**k and v + 2**k < parties for k in range(rounds)) for v in range(parties)]
    messages = [Counter({n_bytes: children[(r - root) % parties]}) for r in range(parties)]
    return _collective("broadcast (tree)", rounds * _step(links, n_bytes), links, messages)


def tree_reduce(n_bytes: int, parties: int, link: Link | Sequence[Link], root: int = 0) -> Collective:
    """The broadcast's tree run backwards, in the same seconds; every party but the root sends ``n`` bytes. gloo: :func:`gloo_reduce`."""
    n_bytes, links = _check(n_bytes, parties, link)
    root = _check_root(root, parties)
    messages = [Counter({n_bytes: int(r != root)}) for r in range(parties)]
    return _collective("reduce (tree)", (parties - 1).bit_length() * _step(links, n_bytes), links, messages)


def gloo_reduce(n_bytes: int, parties: int, link: Link | Sequence[Link], root: int = 0, item_bytes: int = 4,
                max_segment_bytes: int = 2**20) -> Collective:
    """Reduce as torch's gloo backend implements it: more bytes than the ``(P-1) n`` of the textbook.

    Bytes follow ``gloo/reduce.cc`` (pytorch/gloo, commit 081799c): the vector is cut into S segments of at most 1 MiB, S a multiple of P;
    each party passes S - 2 of them round the ring (S - S/P would do), then all chunks go to the root. For 10 MB this
    is 2.10 times the textbook at P = 2 and 1.35 times at P = 4. Seconds are our model of it: the ring's hops and the gathering, each with
    one latency, and the bytes of the busiest party.
    """
    n_bytes, links = _check(n_bytes, parties, link)
    root, item = _check_root(root, parties), whole("gloo_reduce", "item_bytes", item_bytes, 1)
    if n_bytes == 0 or parties == 1:
        return _collective("reduce", 0.0, links, [Counter() for _ in links], "gloo")
    up = lambda x, multiple: -(-x // multiple) * multiple  # noqa: E731
    segment = up(min(-(-n_bytes // (2 * parties)), item * max(1, max_segment_bytes // item)), item)
    segments = up(max(-(-n_bytes // segment), 2 * parties), parties)
    each = segments // parties
    size = [max(0, min(segment, n_bytes - s * segment)) for s in range(segments)]
    messages, ring = [], []
    for r in range(parties):
        sent = [size[((r + 1) * each + i) % segments] for i in range(segments - 2)]
        ring.append(sum(sent))
        chunk = sum(size[r * each:(r + 1) * each])
        messages.append(Counter(x for x in [*sent, chunk * (r != root)] if x))
    gathered = n_bytes - sum(size[root * each:(root + 1) * each])
    seconds = (-(-(segments - 2) // each) - 1) * max(x.latency_s for x in links) + _step(links, max(ring)) + _step(links, gathered)
    return _collective("reduce", seconds, links, messages, "gloo")


def gloo_reduce_scatter(n_bytes: int, parties: int, link: Link | Sequence[Link]) -> Collective:
    """Reduce-scatter as torch's gloo backend implements it: an all-reduce of which each party keeps its chunk, so twice the bytes.

    Seen on the loop-back interface with torch 2.13: ``2 (P-1) n`` bytes for P = 2, 3 and 4.
    """
    whole_ring = ring_all_reduce(n_bytes, parties, link)
    return dataclasses.replace(whole_ring, operation="reduce-scatter", as_implemented="gloo")


def parameter_server(n_up: int, n_down: int, parties: int, link: Link | Sequence[Link], server_bandwidth: float,
                     server_bandwidth_down: float | None = None, *, multicast: bool = False) -> Collective:
    """All clients send ``n_up`` at once, and then get ``n_down``: ``P n_up/beta_server + P n_down/beta_server`` and two latencies.

    The server's card is shared (:class:`SharedServer`), so clients whose own links are narrower hold up nobody but themselves; the server
    answers when it has heard them all. With ``multicast`` it sends its answer once to all, at the pace of the slowest.
    """
    n_up, links = _check(n_up, parties, link)
    n_down = whole("collective", "n_down", n_down)
    server = SharedServer(server_bandwidth, server_bandwidth_down)
    out = server_bandwidth_down or server_bandwidth
    for party, own in enumerate(links):
        server.submit(0.0, n_up, "up", own, party)
    heard = server.advance()[-1].time_s
    if multicast:
        seconds = heard + max(t.latency_s + t.timeout_s + t.total_bytes / min(own.bandwidth_down, out)
                              for own in set(links) for t in [own.transfer(n_down, "down")])
        down = max(own.transfer(n_down, "down").total_bytes for own in set(links))
    else:
        for party, own in enumerate(links):
            server.submit(heard, n_down, "down", own, party)
        seconds = server.advance()[-1].time_s
        down = sum(own.transfer(n_down, "down").total_bytes for own in links)
    sent = (*(n_up,) * parties, n_down * (1 if multicast else parties))
    wire = (*(own.transfer(n_up, "up").total_bytes for own in links), down)
    return Collective("parameter server" + " (multicast)" * multicast, seconds, sent, wire)


def _check(n_bytes: int, parties: int, link: Link | Sequence[Link]) -> tuple[int, list[Link]]:
    parties = whole("collective", "parties", parties, 1)
    links = [link] * parties if isinstance(link, Link) else list(link)
    if len(links) != parties:
        raise UserError(f"collective: {len(links)} links for {parties} parties. Give one link for all, or one a party.")
    return whole("collective", "n_bytes", n_bytes), links


def _check_root(root: int, parties: int) -> int:
    root = whole("collective", "root", root)
    if root >= parties:
        raise UserError(f"collective: root = {root} is refused. Allowed: 0 to {parties - 1}.")
    return root


def _chunks(n_bytes: int, parties: int) -> list[int]:
    """Sizes of the P chunks, the largest first, different by a byte at most."""
    return [n_bytes // parties + (i < n_bytes % parties) for i in range(parties)]


def _all_but(chunks: list[int], left_out: int) -> Counter[int]:
    """How often each message size is sent."""
    return Counter(chunks) - Counter([chunks[left_out]])


def _step(links: list[Link], n_bytes: int) -> float:
    """Seconds until every party has sent and received a message."""
    return max(own.seconds(n_bytes, direction) for own in set(links) for direction in ("up", "down"))


def _collective(operation: str, seconds: float, links: list[Link], messages: list[Counter[int]], library: str | None = None) -> Collective:
    if not math.isfinite(seconds):
        raise UserError(f"{operation}: takes for ever on these links.")
    sent = tuple(sum(size * times for size, times in own.items()) for own in messages)
    wire = tuple(sum(link.transfer(size, "up").total_bytes * times for size, times in own.items())
                 for link, own in zip(links, messages, strict=True))
    return Collective(operation, seconds, sent, wire, library)
