"""The ledger: counts what was communicated, on encoded payloads, by direction, party, codec, part and kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from tracking.codecs.base import Codec
from tracking.errors import UserError, unknown

Direction = Literal["up", "down", "peer"]
Part = Literal["payload", "codebook", "seed"]
Kind = Literal["sent", "lost", "discarded", "repeated"]


@dataclass(frozen=True, order=True)
class Key:
    """What a row of the ledger is about."""

    direction: str
    party: str
    codec: str
    part: str = "payload"
    kind: str = "sent"


@dataclass
class Row:
    """Cumulative totals of one :class:`Key`.

    ``multicast_bytes`` counts a broadcast once, with its first receiver, where ``bytes`` counts it for each.
    ``dense_bytes`` is float32's four bytes a value; ``entropy_bytes`` the codecs' entropy bounds. ``None``: unknown
    for one message at least, hence for the total.
    """

    bytes: int = 0
    messages: int = 0
    multicast_bytes: int = 0
    dense_bytes: int | None = 0
    entropy_bytes: float | None = 0.0

    def add(self, size: int, multicast: int, dense: int | None, entropy: float | None) -> None:
        self.bytes += size
        self.messages += 1
        self.multicast_bytes += multicast
        self.dense_bytes = _plus(self.dense_bytes, dense)
        self.entropy_bytes = _plus(self.entropy_bytes, entropy)


class Ledger:
    """Bills every message at the length of its encoded payload.

    ``send`` encodes, counts and hands back what the receiver decodes, so an algorithm cannot use more
    than it paid for. Totals are resumable state (``state_dict``).
    """

    def __init__(self) -> None:
        self.rows: dict[Key, Row] = {}

    def send(
        self,
        value: Any,
        codec: Codec,
        direction: Direction,
        party: str = "server",
        reference: Tensor | None = None,
        *,
        part: Part = "payload",
        kind: Kind = "sent",
        entropy: bool = False,
    ) -> Any:
        """Encode ``value``, bill it and return what the receiver gets.

        ``direction`` is ``"up"`` (towards the server or the next module), ``"down"``, or ``"peer"`` between equals;
        ``party`` names the other end. ``reference`` is the receiver's own tensor, for a codec that decodes with one.
        ``entropy`` also adds up the codec's entropy bound.
        """
        got = self._deliver(value, codec, direction, [party], {party: reference}, part, kind, entropy)
        return got[party]

    def broadcast(
        self,
        value: Any,
        codec: Codec,
        direction: Direction,
        parties: Sequence[str],
        references: Mapping[str, Tensor] | None = None,
        *,
        part: Part = "payload",
        entropy: bool = False,
    ) -> dict[str, Any]:
        """One payload to many receivers: billed to each (unicast), and once in the column ``multicast_bytes``.

        Returns what each party gets, in memory of its own. ``references`` holds each receiver's own tensor where the
        codec needs one.
        """
        if len(set(parties)) != len(parties):
            raise UserError("A broadcast names a party twice: each receives it once.")
        return self._deliver(value, codec, direction, parties, references or {}, part, "sent", entropy)

    def multicast(
        self,
        value: Any,
        codec: Codec,
        direction: Direction,
        parties: Sequence[str],
        *,
        part: Part = "payload",
        entropy: bool = False,
    ) -> Any:
        """:meth:`broadcast` to receivers that only read: the same bill, and one decoded value for all of them.

        For a codec without reference, and at least one party.
        """
        if not parties or len(set(parties)) != len(parties):
            raise UserError("A multicast needs a party at least, and names none twice: each receives it once.")
        rows = self._rows(codec, direction, parties, {}, part, "sent")
        payload = codec.encode(value)
        got = codec.decode(payload)
        self._bill(rows, payload, value, codec, entropy)
        return got

    def bill(
        self,
        size: int,
        codec: str,
        direction: Direction,
        party: str = "server",
        *,
        part: Part = "payload",
        kind: Kind = "sent",
        dense_bytes: int | None = None,
    ) -> None:
        """Bill ``size`` bytes that no receiver decodes here: an upload that is lost or discarded as stale, or a
        message sent again.

        Such bytes crossed the wire and are in every total; ``kind`` keeps them apart in the table.
        """
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise UserError(
                f"A message of {size!r} bytes cannot be billed; "
                "allowed: a whole number from 0 on, such as len(payload)."
            )
        self._key(direction, party, codec, part, kind)
        self._add(Key(direction, party, codec, part, kind), size, size, dense_bytes, None)

    def _deliver(
        self,
        value: Any,
        codec: Codec,
        direction: str,
        parties: Sequence[str],
        references: Mapping[str, Tensor | None],
        part: str,
        kind: str,
        entropy: bool,
    ) -> dict[str, Any]:
        rows = self._rows(codec, direction, parties, references, part, kind)
        if not rows:
            return {}
        payload = codec.encode(value)
        if getattr(codec, "needs_reference", False):
            got = {party: codec.decode(payload, reference=references[party]) for party in parties}
        else:
            first = codec.decode(payload)
            again = first.clone if isinstance(first, Tensor) else lambda: codec.decode(payload)
            got = {party: again() if i else first for i, party in enumerate(parties)}
        self._bill(rows, payload, value, codec, entropy)
        return got

    def _rows(
        self,
        codec: Codec,
        direction: str,
        parties: Sequence[str],
        references: Mapping[str, Tensor | None],
        part: str,
        kind: str,
    ) -> list[Key]:
        """The rows that a message to each of ``parties`` goes on, once everything about it is found to be right."""
        wanted = getattr(codec, "needs_reference", False)
        for party in parties:
            if wanted != (references.get(party) is not None):
                raise UserError(
                    f"The codec {codec.name!r} decodes with the receiver's own tensor: pass the reference of {party!r}."
                    if wanted
                    else f"The codec {codec.name!r} takes no reference, and one was given for {party!r}."
                )
        return [self._key(direction, party, codec.name, part, kind) for party in parties]

    def _bill(self, rows: Sequence[Key], payload: bytes, value: Any, codec: Codec, entropy: bool) -> None:
        """One payload on every row, and on the first in the column for multicasts."""
        dense = 4 * value.numel() if isinstance(value, Tensor) else None
        bound = getattr(codec, "entropy_bytes", None) if entropy else None
        bound = bound(payload) if bound else None
        for i, key in enumerate(rows):
            self._add(key, len(payload), 0 if i else len(payload), dense, bound)

    def _key(self, direction: str, party: str, codec: str, part: str, kind: str) -> Key:
        for what, given, allowed in (
            ("direction", direction, Direction),
            ("part", part, Part),
            ("kind of message", kind, Kind),
        ):
            if given not in get_args(allowed):
                raise unknown(what, given, get_args(allowed))
        return Key(direction, party, codec, part, kind)

    def _add(self, key: Key, size: int, multicast: int, dense: int | None, entropy: float | None) -> None:
        self.rows.setdefault(key, Row()).add(size, multicast, dense, entropy)

    def metrics(self) -> dict[str, float]:
        """Cumulative totals, unicast; empty when nothing was ever sent, because absent is not zero.

        ``comm/peer_bytes`` is there once a peer message was.
        """
        if not self.rows:
            return {}
        peer = {"comm/peer_bytes": self._bytes("peer")} if any(k.direction == "peer" for k in self.rows) else {}
        return {
            "comm/up_bytes": self._bytes("up"),
            "comm/down_bytes": self._bytes("down"),
            **peer,
            "comm/messages": sum(r.messages for r in self.rows.values()),
        }

    def _bytes(self, direction: str) -> int:
        return sum(r.bytes for k, r in self.rows.items() if k.direction == direction)

    def table(self) -> list[dict[str, Any]]:
        """One row for each (direction, party, codec, part, kind); a total that is unknown has no entry."""
        return [_known(asdict(key) | asdict(row)) for key, row in sorted(self.rows.items())]

    def summary(self) -> list[dict[str, Any]]:
        """Totals by direction and of all, with ``ratio`` = dense / sent bytes where the dense size of every message
        is known.
        """
        out = []
        for direction in (*get_args(Direction), "all"):
            rows = [r for k, r in self.rows.items() if direction in (k.direction, "all")]
            if rows:
                total = Row(0, 0, 0)
                for r in rows:
                    total = Row(
                        total.bytes + r.bytes,
                        total.messages + r.messages,
                        total.multicast_bytes + r.multicast_bytes,
                        _plus(total.dense_bytes, r.dense_bytes),
                        _plus(total.entropy_bytes, r.entropy_bytes),
                    )
                ratio = total.dense_bytes / total.bytes if total.bytes and total.dense_bytes is not None else None
                out.append(_known({"direction": direction, **asdict(total), "ratio": ratio}))
        return out

    def state_dict(self) -> dict[str, list]:
        return {"rows": self.table()}

    def load_state_dict(self, state: dict[str, list]) -> None:
        """Also takes the rows (direction, party, codec, bytes, messages) that were written before there were more
        columns.
        """
        self.rows = {}
        for saved in state["rows"]:
            if not isinstance(saved, Mapping):
                direction, party, codec, size, messages = saved
                self.rows[Key(direction, party, codec)] = Row(size, messages, size, None, None)
                continue
            key = Key(*(saved[name] for name in Key.__dataclass_fields__))
            self.rows[key] = Row(**{name: saved.get(name) for name in Row.__dataclass_fields__})


def _plus(total: float | None, more: float | None) -> float | None:
    return None if total is None or more is None else total + more


def _known(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}
