"""Named links: plausible figures with the source and the kind of each number, none of them measured here."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from tracking.errors import unknown
from tracking.links.link import Framing, Link

TAGS = ("source", "derived", "recollection", "our choice")
"""Where a number comes from: a named source; computed from one; from memory, unchecked; chosen by us."""

_FIELDS = {"latency_s": "s", "bandwidth_up": "B/s", "bandwidth_down": "B/s", "loss": "", "rto_s": "s"}
_FRAMING = {"segment_bytes": "B", "header_bytes": "B"}


@functools.cache
def _file() -> dict[str, dict[str, Any]]:
    return json.loads(Path(__file__).with_name("presets.json").read_text(encoding="utf-8"))


def preset(name: str, **changes: Any) -> Link:
    """The link of that name, with ``changes`` to its fields (``preset("lte", loss=0.01)``).

    Raises UserError for an unknown name or field.
    """
    try:
        entry = _file()[name]
    except (KeyError, TypeError):
        raise unknown("link preset", name, _file()) from None
    fields = {f.name for f in dataclasses.fields(Link)}
    for field in changes:
        if field not in fields:
            raise unknown("field of a link", field, fields)
    values = {field: entry[field]["value"] for field in _FIELDS if field in entry}
    values["framing"] = Framing(**{field: entry[field]["value"] for field in _FRAMING if field in entry})
    return Link(**(values | changes))


def presets() -> list[dict[str, Any]]:
    """One row each number of each preset: preset, description, number, value, unit, tag, source."""
    units = _FIELDS | _FRAMING
    return [{"preset": name, "description": entry["description"], "number": field, "value": entry[field]["value"],
             "unit": units[field], "tag": entry[field]["tag"], "source": entry[field]["source"]}
            for name, entry in _file().items() for field in units if field in entry]
