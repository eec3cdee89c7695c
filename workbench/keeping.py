"""Figures of a study's runs at full size, kept with the code: a file for each hardware, every number with what it was made of."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

from tracking.metrics import METRICS
from tracking.results import keep
from workbench.grouping import group, short
from workbench.provenance import record
from workbench.runs import Run

NAMED = ("epochs", "bits", "task.protocol")
"""Facts that tell what a figure is of, besides those in which runs differ."""


def keep_runs(study: str, runs: Iterable[Run], *, times: bool = True, root: str | os.PathLike[str] | None = None) -> list[Path]:
    """Write last figures of finished ``runs``, by group of seeds, to ``tracking/results/<study>/<hardware>.json``; returns the files.

    Runs of other places count, too: their folders say what they were made with. Without ``times``, what depends on the machine and the
    moment is left out, as it must be where runs shared it. What is not finite is left out.
    """
    by_hardware: dict[str, list[Run]] = {}
    for r in runs:
        if r.status == "finished":
            by_hardware.setdefault(r.folder.read_run()["tags"]["workbench.hardware"], []).append(r)
    return [keep(study, hardware, _rows(own, times), _provenance(own), root=root) for hardware, own in by_hardware.items()]


def _rows(runs: list[Run], times: bool) -> list[dict[str, object]]:
    rows = []
    for g in group(runs)[0]:
        where = ", ".join([g.task, *(f"{name} {short(g.facts[name])}" for name in NAMED if name in g.facts)])
        for name in sorted(g.metrics - {"step"}):
            values = g.values(name)
            if values and (times or not METRICS[name].volatile) and all(map(math.isfinite, values)):
                rows.append({"quantity": f"{g.label} ({where})", "method": g.method, "metric": name, "mean": statistics.fmean(values),
                             "values": values, "n": len(values), "profile": "full"})
    return rows


def _provenance(runs: list[Run]) -> dict[str, object]:
    """Of the newest run; commits of all."""
    about = sorted((r.folder.read_run() for r in runs), key=lambda run: run["created"])
    newest, commits = about[-1], dict.fromkeys(run["provenance"].get("commit", "not in a checkout") for run in about)
    facts = record(newest["provenance"])
    return facts | {"commit": ", ".join(commits), "date": time.strftime("%Y-%m-%d", time.gmtime(newest["created"]))}
