"""What there is to see of the clients inside a federated run."""

from __future__ import annotations

import numpy as np

from workbench.federation.trace import Trace
from workbench.method import View

MAX_SHOWN = 60
"""Clients of a time line, at most: beyond, the marks run into each other."""


def client_views(trace: Trace, step: int) -> list[View]:
    """Who delivered when, and how much each client has contributed in the first ``step`` server steps."""
    done = int(trace.offsets[step])
    client, shown = trace.client[:done], min(trace.n, MAX_SHOWN)
    when = np.repeat(trace.time[:step], np.diff(trace.offsets[:step + 1]))
    fresh, near = trace.staleness[:done] == 0, client < shown
    marks = {"work from the newest model": fresh & near, "work from an older model": ~fresh & near}
    groups = {kind: (when[part], client[part]) for kind, part in marks.items() if part.any()}
    work = np.bincount(client, weights=trace.steps[:done], minlength=trace.n)
    steps = "gradient steps delivered so far"
    each = (View("Gradient steps of each client", "bars", dict(enumerate(work.tolist())), x="client", y=steps) if trace.n <= MAX_SHOWN
            else View("Gradient steps of each client", "histogram", {"clients": work}, x=steps))
    first = f" The first {shown} of {trace.n} clients." if shown < trace.n else ""
    line = View("Time line of the clients", "points", groups, x="virtual time [units of the step times]", y="client",
                note=f"A mark is a delivery.{first}")
    return [line, each]
