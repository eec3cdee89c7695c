"""The ledger: counts what was communicated, on encoded payloads, by direction, party and codec."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

from tracking.codecs import Codec
from tracking.errors import unknown

Direction = Literal["up", "down"]


class Ledger:
    """Bills every message at the length of its encoded payload.

    ``send`` encodes, counts and hands back what the receiver decodes, so an algorithm cannot use more
    than it paid for. Totals are resumable state (``state_dict``).
    """

    def __init__(self) -> None:
        self.bytes: Counter[tuple[str, str, str]] = Counter()
        self.messages: Counter[tuple[str, str, str]] = Counter()

    def send(self, value: Any, codec: Codec, direction: Direction, party: str = "server") -> Any:
        """Encode ``value``, bill it to (direction, party, codec) and return what the receiver gets.

        ``direction`` is ``"up"`` (towards the server or the next module) or ``"down"``; ``party`` names the other end.
        """
        if direction not in ("up", "down"):
            raise unknown("direction", direction, ("up", "down"))
        payload = codec.encode(value)
        key = (direction, party, codec.name)
        self.bytes[key] += len(payload)
        self.messages[key] += 1
        return codec.decode(payload)

    def metrics(self) -> dict[str, float]:
        """Cumulative totals; empty when nothing was ever sent, because absent is not zero."""
        if not self.messages:
            return {}
        up = sum(n for (direction, _, _), n in self.bytes.items() if direction == "up")
        return {"comm/up_bytes": up, "comm/down_bytes": sum(self.bytes.values()) - up,
                "comm/messages": sum(self.messages.values())}

    def table(self) -> list[dict[str, Any]]:
        """One row for each (direction, party, codec)."""
        return [{"direction": d, "party": p, "codec": c, "bytes": self.bytes[d, p, c], "messages": n}
                for (d, p, c), n in sorted(self.messages.items())]

    def state_dict(self) -> dict[str, list]:
        return {"rows": [[*key, self.bytes[key], n] for key, n in self.messages.items()]}

    def load_state_dict(self, state: dict[str, list]) -> None:
        self.bytes = Counter({(d, p, c): size for d, p, c, size, _ in state["rows"]})
        self.messages = Counter({(d, p, c): n for d, p, c, _, n in state["rows"]})
