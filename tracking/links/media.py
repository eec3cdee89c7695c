"""Joules of moving bytes through a named medium: average allocations from the literature, computed only where a medium is named."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracking.errors import UserError, unknown
from tracking.links.link import whole

NOTE = "Average allocation: networks draw mostly constant power, so halving the bytes does not halve the joules."
"""What must stand beside every such number."""


@functools.cache
def _file() -> dict[str, dict[str, Any]]:
    return json.loads(Path(__file__).with_name("media.json").read_text(encoding="utf-8"))


def media() -> list[dict[str, Any]]:
    """One row a medium: name, joules a bit (low, value, high), year, system boundary, source and tags."""
    return [{"medium": name, **entry} for name, entry in _file().items()]


@dataclass(frozen=True)
class NetworkJoules:
    """Modelled joules of ``n_bytes`` through a medium, with the interval of its source."""

    joules: float
    low: float
    high: float
    n_bytes: int
    medium: str
    year: int | None
    boundary: str
    tag: str
    source: str
    note: str = NOTE

    def metrics(self) -> dict[str, float]:
        """Under a name that no measurement has."""
        return {"energy/network_model_j": self.joules}

    def __str__(self) -> str:
        when = f", {self.year}" if self.year else ""
        return (f"{self.joules:.3g} J [{self.low:.3g} to {self.high:.3g}], modelled, for {self.n_bytes:,} B through {self.medium} "
                f"({self.boundary}{when}; {self.tag}: {self.source}). {self.note}")

    __repr__ = __str__


def network_joules(n_bytes: int, medium: str, hops: int | None = None) -> NetworkJoules:
    """Joules of ``n_bytes`` through ``medium``, modelled. There is no default medium, because its choice decides every conclusion.

    ``hops``: switches on the way, for media whose figure is for one hop (needed there, refused elsewhere).
    Raises UserError for an unknown medium.
    """
    n_bytes = whole("network_joules", "n_bytes", n_bytes)
    if not isinstance(medium, str) or medium not in _file():
        raise unknown("medium", medium, _file())
    entry = _file()[medium]
    if entry["per_hop"] != (hops is not None):
        raise UserError(f"network_joules: the figure of {medium!r} is " + ("for one hop: say how many hops, hops=3."
                        if entry["per_hop"] else "for the whole way: leave hops out."))
    bits = 8 * n_bytes * (1 if hops is None else whole("network_joules", "hops", hops, 1))
    low, value, high = (bits * entry["joules_per_bit"][k] for k in ("low", "value", "high"))
    return NetworkJoules(value, low, high, n_bytes, medium, entry["year"], entry["boundary"], entry["tag"], entry["source"])
