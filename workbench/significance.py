"""Which groups of runs differ: each against the best of its setting, tested and adjusted for the number of tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tracking.metrics import metric as declared
from tracking.statistics import direction, holm, welch
from workbench.grouping import Group

SIGNIFICANCE = 0.05
TEST = ("Student t intervals at 95 % over the seeds. Difference to the best mean (of two runs or more): Welch's t-test, "
        f"Holm-adjusted within a setting, level {SIGNIFICANCE:g}.")


def marks(groups: Sequence[Group], metric: str) -> list[dict[str, Any]]:
    """For each group: difference to the best of its setting, adjusted p, and a word. Empty for a metric without a better side."""
    found: list[dict[str, Any]] = [{} for _ in groups]
    if declared(metric).better is None:
        return found
    volatile = declared(metric).volatile
    settings: dict[Any, list[int]] = {}
    for i, g in enumerate(groups):
        found[i] = {"difference": math.nan, "difference ±": math.nan, "p": math.nan, "mark": "not measured"}
        if g.values(metric):
            settings.setdefault((g.setting, *(g.machines if volatile else ())), []).append(i)
    for members in settings.values():
        values = {i: groups[i].values(metric) for i in members}
        sign = 1 if direction(metric) == "higher" else -1
        # a single run may be lucky, and nothing can be tested against it
        repeated = [i for i in members if len(values[i]) > 1]
        best = max(repeated or members, key=lambda i: sign * sum(values[i]) / len(values[i]))
        others = [i for i in members if i != best]
        tests = {i: welch(values[i], values[best]) for i in others}
        found[best] |= {"difference": 0.0, "mark": "best"} if others else {"mark": "alone in its setting"}
        for i, p in zip(others, holm([tests[i].p for i in others]), strict=True):
            word = "no test possible" if math.isnan(p) else "worse" if p < SIGNIFICANCE else "not distinguishable from the best"
            d = tests[i]
            found[i] = {"difference": d.difference, "difference ±": (d.high - d.low) / 2, "p": float(p), "mark": word}
    return found
