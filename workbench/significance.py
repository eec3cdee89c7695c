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
        f"Holm-adjusted within a setting, level {SIGNIFICANCE:g}; the ± beside a difference is not adjusted.")


def marks(groups: Sequence[Group], metric: str) -> list[dict[str, Any]]:
    """For each group: difference to the best of its setting, adjusted p, and a word. Empty for a metric without a better side."""
    found: list[dict[str, Any]] = [{} for _ in groups]
    if declared(metric).better is None:
        return found
    settings: dict[Any, list[int]] = {}
    for i, g in enumerate(groups):
        word = "mixed, not averaged" if g.mixes(metric) else "not measured"
        found[i] = {"difference": math.nan, "difference ±": math.nan, "p": math.nan, "mark": word}
        if g.values(metric):
            settings.setdefault((g.setting, *g.conditions(metric)), []).append(i)
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
            d, word = tests[i], "worse" if p < SIGNIFICANCE else "not distinguishable from the best"
            word = _untested(values[i], values[best]) if math.isnan(p) else word
            found[i] = {"difference": d.difference, "difference ±": (d.high - d.low) / 2, "p": float(p), "mark": word}
    return found


def _untested(values: Sequence[float], best: Sequence[float]) -> str:
    """What can be said without a test: of one run alone nothing; figures such as encoded sizes are the same in every run."""
    if min(len(values), len(best)) < 2:
        return "no test possible"
    return "equal to the best" if math.isclose(values[0], best[0], rel_tol=1e-12) else "worse, the same in every run"
