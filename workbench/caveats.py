"""What a reader of a comparison must know: who is missing and why, sample sizes, hardware, what energy is modelled for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from workbench.grouping import Group
from workbench.modelled import METRIC

if TYPE_CHECKING:
    from workbench.comparison import Comparison


def caveats(c: Comparison) -> list[str]:
    """One sentence or two each, for any comparison; none where nothing has to be said."""
    return [*_left_out(c), *_samples(c), *_hardware(c), *_energy(c.groups)]


def _left_out(c: Comparison) -> list[str]:
    lines = []
    for (method, why), count in Counter((x.method, x.why.partition(":")[0]) for x in c.left_out).items():
        names = [x.name for x in c.left_out if (x.method, x.why.partition(":")[0]) == (method, why)]
        lines.append(f"Left out: {count} of {method}, {why} ({', '.join(names[:5])}{', …' if count > 5 else ''}).")
    return lines


def _samples(c: Comparison) -> list[str]:
    """Where a mean is not over as many whole runs as the column ``n`` says."""
    lines = []
    if c.groups and not any(c.metric in g.metrics for g in c.groups):
        known = sorted({name for g in c.groups for name in g.metrics if name.startswith(c.metric.split("/")[0])})
        lines.append(f"No run reports {c.metric}" + (f"; reported are {', '.join(known)}." if known else "."))
    if single := [g.label for g in c.groups if len(g.runs) == 1]:
        lines.append(f"One run only, so no interval and no test: {', '.join(single)}.")
    for g in c.groups:
        counts = {name: len(g.values(name)) for name in dict.fromkeys([c.metric, *c.costs])}
        if partly := [f"{name} by {n}" for name, n in counts.items() if 0 < n < len(g.runs)]:
            lines.append(f"{g.label}: of its {len(g.runs)} runs not all report everything: {', '.join(partly)}. Means are over these.")
        if cut := Counter(r.status for r in g.runs if r.status != "finished"):
            told = " and ".join(f"{n} {status}" for status, n in cut.items())
            lines.append(f"{g.label}: {told} of {len(g.runs)} runs, each with its last figures before that.")
    return lines


def _hardware(c: Comparison) -> list[str]:
    lines = [f"{g.label} ran on {' and '.join(g.machines)}: its time, measured energy and peak memory are not averaged, so absent."
             for g in c.groups if len(g.machines) > 1]
    if len({m for g in c.groups for m in g.machines}) > 1:
        lines.append("The groups ran on different hardware: compare time, measured energy and peak memory within one hardware only.")
    return lines


def _energy(groups: Iterable[Group]) -> list[str]:
    """What modelled joules are for, and who has none; nothing where they are neither reported nor asked for."""
    groups = list(groups)
    choices = sorted({choice for g in groups for choice in g.modelled_for})
    if not choices and not any(g.model for g in groups):
        return []
    lines = []
    if len(choices) == 1:
        lines.append(f"{METRIC} is modelled for {choices[0]}: {choices[0].description}.")
    elif choices:
        told = "; ".join(f"{choice} ({', '.join(g.label for g in groups if choice in g.modelled_for)})" for choice in choices)
        lines.append(f"{METRIC} is modelled under different assumptions, so compare within one only: {told}. "
                     "Where the runs of a group differ in them, it is absent. With hardware and scenario it is worked out anew for all.")
    if lacking := [g.label for g in groups if not g.modelled_for]:
        lines.append(f"No modelled joules: {', '.join(lacking)}. They kept no trace of a network: their method declares no precisions, it "
                     "could not be traced, or they are of an older version.")
    return lines
