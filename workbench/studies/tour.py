"""The tour: methods of four families side by side, and what each of them spends in bytes, modelled joules and time.

Sizes, rates and the common clock are ours; no figure of a paper is to be met on tasks as small as these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from tracking.report import Table
from workbench.claims import Claim, differences, figure, within
from workbench.comparison import Comparison, compare
from workbench.study import studies

if TYPE_CHECKING:
    from workbench.grouping import Group

# heading: metrics whose sum makes the figure, its scale and its digits; what a run does not report stays empty
COSTS: dict[str, tuple[tuple[str, ...], float, int]] = {
    "sent [MB]": (("comm/up_bytes", "comm/down_bytes", "comm/peer_bytes"), 1e-6, 2),
    "energy, modelled [J]": (("energy/model_j",), 1.0, 3),
    "simulated [units]": (("clock/virtual_s",), 1.0, 0),
    "here [s]": (("clock/wall_s",), 1.0, 2),
    "deployed [kB]": (("memory/model_bytes",), 1e-3, 1),
}


def one_page(comparison: Comparison) -> Table:
    """A row a group: accuracy with its interval, and mean costs at the end; empty where the run has no such figure."""
    import pandas

    rows = []
    for g in comparison.groups:
        accuracy = g.values("eval/accuracy")
        rows.append({"method": g.label, "accuracy [%]": figure(accuracy, 1, 100) if accuracy else None,
                     **{heading: _sum(g, *cost) for heading, cost in COSTS.items()}})
    return Table(pandas.DataFrame(rows).dropna(axis=1, how="all"),
                 "Means over n seeds at the end of training, ± half a 95 % interval; – where there is nothing to count.")


def _sum(g: Group, names: tuple[str, ...], scale: float, digits: int) -> float | None:
    means = [g.mean(name).mean for name in names if g.values(name)]
    return round(scale * sum(means), digits) if means else None


def joined(*comparisons: Comparison) -> Comparison:
    """All groups of several comparisons side by side."""
    return compare([run for c in comparisons for g in c.groups for run in g.runs])


def reporting(comparison: Comparison, metric: str) -> Comparison:
    """The groups that report ``metric``, in the same colours."""
    return replace(comparison, groups=[g for g in comparison.groups if metric in g.metrics])


def at_bytes(comparison: Comparison, method: str, budget: Mapping[int, float]) -> dict[int, float]:
    """Accuracy by seed of the last evaluation at which ``method`` had sent, both ways together, at most ``budget[seed]`` bytes.

    A seed without an evaluation so early is left out.
    """
    found = {}
    for g in comparison.groups:
        for run, frame in zip(g.runs, g.frames, strict=True):
            if g.method != method or run.spec["seed"] not in budget:
                continue
            sent = frame["comm/up_bytes"].ffill() + frame["comm/down_bytes"].ffill()
            early = frame["eval/accuracy"][sent <= budget[run.spec["seed"]]].dropna()
            if len(early):
                found[run.spec["seed"]] = float(early.iloc[-1])
    return found


def sent_bytes(comparison: Comparison, method: str, **where: object) -> dict[int, float]:
    """All bytes that ``method`` sent, by seed."""
    up, down = (comparison.values(method, f"comm/{way}_bytes", **where) for way in ("up", "down"))
    return {seed: up[seed] + down[seed] for seed in up}


def ahead(text: str, paper: str, a: Mapping[int, float], b: Mapping[int, float], names: tuple[str, str]) -> Claim:
    """The claim that ``a`` is the more accurate, judged by the interval of the differences seed by seed, in points.

    Runs of one seed share data, partition and start, which is most of what makes seeds differ.
    """
    claim = within(text, paper, differences(a, b), 0.0, 1.0, scale=100, digits=1)
    if not claim.ours:
        return claim
    ours = f"{names[0]} {figure(a, 1, 100)}; {names[1]} {figure(b, 1, 100)}; difference {claim.ours}"
    rule = "95 % interval of the mean difference by seed against 0"
    return replace(claim, ours=ours, how=rule + ("" if len(a) > 1 else ": needs two seeds or more"))


def further() -> Table:
    """The other studies: what each is about and how to execute it."""
    import pandas

    rows = [{"study": row["id"], "about": row["title"], "command": f"workbench study {row['id']}"}
            for row in studies() if row["id"] != "tour"]
    return Table(pandas.DataFrame(rows), "One paper a study; each is a notebook beside this one.")
