"""What can be read on this machine, and why the rest cannot: one line a source, for a person."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from tracking.energy.counter import Counter


@dataclass(frozen=True)
class Source:
    """One possible source of joules: metered (``ok``), left ``aside`` though it could be read, or ``unusable``; ``detail`` says why.

    A counter that stands aside is there for a meter of one's own (``EnergyMeter([source.counter])``).
    """

    name: str
    metric: str
    kind: str
    status: Literal["ok", "aside", "unusable"]
    detail: str
    counter: Counter | None = None


class Probe(NamedTuple):
    """The counters to meter with, and every source with its status."""

    counters: list[Counter]
    sources: list[Source]

    @property
    def missing(self) -> dict[str, str]:
        """Why a metric has no counter, by metric."""
        have = {c.metric for c in self.counters}
        why: dict[str, list[str]] = {}
        for s in self.sources:
            if s.metric not in have and s.status == "unusable":
                why.setdefault(s.metric, []).append(f"{s.name}: {s.detail}")
        return {metric: " ".join(lines) for metric, lines in why.items()}


def probe(device: str | None = None) -> Probe:
    """Look for counters for work on ``device`` (``"cpu"``, ``"cuda"``, ``"cuda:1"``); ``None`` takes every board and package here.

    For work on the CPU no GPU is metered; for work on a GPU its board is, and the CPU packages of the host. Never raises for what a
    machine lacks or a driver does.
    """
    from tracking.energy import nvml, rapl

    sources: list[Source] = []
    finders = (
        ("NVML", "energy/gpu_j", lambda: nvml.sources(device)),
        ("RAPL", "energy/cpu_j", rapl.sources),
    )
    for name, metric, find in finders:
        try:
            sources += find()
        except Exception as error:  # a driver's failure costs the figure, never the run
            sources.append(Source(name, metric, "counter", "unusable", f"{type(error).__name__}: {error}"))
    return Probe([s.counter for s in sources if s.status == "ok" and s.counter], sources)
