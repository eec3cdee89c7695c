"""Which runs are repetitions of one another: groups that differ in the seed alone, and short names that tell them apart."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tracking.errors import unknown
from tracking.folder import RunFolder
from tracking.metrics import METRICS
from tracking.metrics import metric as declared
from tracking.statistics import Interval, interval, to_target
from workbench.modelled import METRIC, Choice, remodelled, reported_for
from workbench.runs import Run

if TYPE_CHECKING:
    import pandas


class LeftOut(NamedTuple):
    """A run that is not in the comparison, and why."""

    method: str
    name: str
    key: str
    why: str


@dataclass
class Group:
    """Runs that differ in the seed alone. ``facts`` holds all that they share."""

    label: str
    facts: dict[str, Any]
    runs: list[Run]
    model: Choice | None = None
    """Hardware and scenario that modelled joules are worked out anew for; ``None``: they are as reported."""

    @property
    def method(self) -> str:
        return self.facts["method"]

    @property
    def task(self) -> str:
        return self.facts["task"]

    @cached_property
    def frames(self) -> list[pandas.DataFrame]:
        """One journal a seed."""
        return [r.frame() if self.model is None else remodelled(r, r.frame(), *self.model) for r in self.runs]

    @cached_property
    def modelled_for(self) -> list[Choice]:
        """What its modelled joules are for; empty where it has none, several where seeds were reported under different assumptions."""
        having = [r for r, f in zip(self.runs, self.frames, strict=True) if METRIC in f]
        return sorted({self.model or reported_for(r) for r in having})

    @cached_property
    def machines(self) -> list[str]:
        """What the runs computed on: one name, or several where seeds ran on different hardware or numbers of threads."""
        return sorted({machine(r) for r in self.runs})

    @cached_property
    def metrics(self) -> set[str]:
        """What at least one seed reports."""
        return {c for f in self.frames for c in f if c in METRICS}

    @property
    def setting(self) -> str:
        """What must be the same for a fair comparison: task, its parameters and the budget."""
        return json.dumps({k: v for k, v in self.facts.items() if k == "task" or k.startswith(("task.", "budget."))}, sort_keys=True)

    def conditions(self, name: str) -> list[str]:
        """What ``name`` is tied to beside the setting, so that it compares only where this is the same.

        The machine of time, measured energy and peak memory, the assumptions of modelled joules; nothing for other metrics.
        """
        if name == METRIC:
            return [str(choice) for choice in self.modelled_for]
        return self.machines if name != "step" and declared(name).volatile else []

    def mixes(self, name: str) -> bool:
        """Whether the seeds differ in what ``name`` is tied to (:meth:`conditions`), so that they must not be averaged."""
        return len(self.conditions(name)) > 1

    def values(self, name: str, *, best: bool = False) -> list[float]:
        """One figure a seed that reports the metric: its last finite value, or its best. Empty where seeds are mixed."""
        return list(self.by_seed(name, best=best).values())

    def by_seed(self, name: str, *, best: bool = False) -> dict[int, float]:
        """:meth:`values` by seed."""
        if self.mixes(name):
            return {}
        columns = {r.spec["seed"]: f[name][abs(f[name]) < math.inf] for r, f in zip(self.runs, self.frames, strict=True) if name in f}
        if best:
            return {s: float(c.max() if declared(name).better == "higher" else c.min()) for s, c in columns.items() if len(c)}
        return {s: float(c.iloc[-1]) for s, c in columns.items() if len(c)}

    def mean(self, name: str, *, best: bool = False) -> Interval:
        """Mean and interval of :meth:`values`; all absent where there are none."""
        values = self.values(name, best=best)
        return interval(values) if values else Interval(math.nan, math.nan, 0)

    def reached(self, metric: str, target: float) -> int:
        """How many seeds reach the target."""
        return sum(to_target(f, metric, target, "step") is not None for f in self.frames)

    def to_target(self, metric: str, target: float, axis: str) -> Interval:
        """Cost at which the metric reaches the target. Absent unless every seed reaches it: a mean over the lucky ones would flatter."""
        found = [] if self.mixes(axis) else [to_target(f, metric, target, axis) for f in self.frames]
        return interval(found) if found and None not in found else Interval(math.nan, math.nan, 0)


def machine(run: Run) -> str:
    """What a run computed on, in words."""
    threads = run.spec.get("threads", 0)
    name = run.folder.read_run()["tags"].get("workbench.hardware", "unknown hardware")
    return f"{name}, {threads} thread{'s' * (threads > 1)}" if threads else name


def facts(run: Run) -> dict[str, Any]:
    """All of a run's specification but the seed, flat.

    Threads are left to :func:`machine`: they change costs, and of the figures the last bits.
    """
    spec = run.spec
    return {"method": spec["method"], "task": spec["task"], **spec["params"], **{f"task.{k}": v for k, v in spec["task_params"].items()},
            **{f"budget.{k}": v for k, v in spec["budget"].items()}, "device": spec["device"], "code": spec["code"]}


def scan(root: Path) -> list[Run]:
    """All runs under ``root``, in the order in which they were created. Folders that hold no started run are passed over."""
    found = []
    for path in sorted(root.glob("*/run.json")) if root.is_dir() else []:
        folder = RunFolder(path.parent)
        status = folder.read_status()
        if status is not None:
            found.append((folder.read_run().get("created", 0), Run(folder, status["status"], status["reason"])))
    return [run for _, run in sorted(found, key=lambda pair: (pair[0], pair[1].key))]


def matching(runs: Iterable[Run], tasks: Collection[str] | None, methods: Collection[str] | None, where: Mapping[str, Any]) -> list[Run]:
    """Runs of these tasks and methods whose facts have the values of ``where`` (one value, or a list of allowed ones)."""
    runs = list(runs)
    known = [(r, {**facts(r), "seed": r.spec["seed"], "threads": r.spec["threads"]}) for r in runs]
    names = {name for _, f in known for name in f}
    for what, asked in (("method", methods), ("task", tasks)):
        have = {f[what] for _, f in known}
        for given in asked or ():
            if known and given not in have:
                raise unknown(f"{what} among the runs", given, have)
    for name in where:
        if known and name not in names:
            raise unknown("parameter among the runs", name, names)
    wanted = {**({"task": list(tasks)} if tasks else {}), **({"method": list(methods)} if methods else {}), **where}

    def fits(have: Mapping[str, Any]) -> bool:
        return all(name in have and (have[name] == value or (isinstance(value, (list, tuple, set, range)) and have[name] in value))
                   for name, value in wanted.items())

    return [r for r, f in known if fits(f)]


def older_code(runs: Iterable[Run]) -> tuple[list[Run], list[Run]]:
    """Runs made with the same code as the newest run of their method on their task, and the others."""
    newest: dict[tuple[str, str], str] = {}
    runs = sorted(runs, key=_created)
    for r in runs:
        newest[r.spec["method"], r.spec["task"]] = r.spec["code"]
    old = [r.spec["code"] != newest[r.spec["method"], r.spec["task"]] for r in runs]
    return [r for r, o in zip(runs, old, strict=True) if not o], [r for r, o in zip(runs, old, strict=True) if o]


def group(runs: Iterable[Run], model: Choice | None = None) -> tuple[list[Group], list[Run]]:
    """Groups in the order of their first run, seeds in order; and the runs left over because their seed is there already.

    Two runs with one seed are not independent, so one is kept: from the machine that has most of the group's runs, and of those the newest.
    """
    gathered: dict[str, list[Run]] = {}
    for run in {r.folder.path: r for r in runs}.values():
        gathered.setdefault(json.dumps(facts(run), sort_keys=True), []).append(run)
    groups, spare = [], []
    for members in gathered.values():
        count = Counter(machine(r) for r in members)
        by_seed: dict[int, Run] = {}
        for r in sorted(members, key=lambda r: (count[machine(r)], _created(r))):
            if r.spec["seed"] in by_seed:
                spare.append(by_seed[r.spec["seed"]])
            by_seed[r.spec["seed"]] = r
        groups.append(Group("", facts(members[0]), [by_seed[s] for s in sorted(by_seed)], model))
    for g in groups:
        g.label = _label(g, groups)
    return groups, spare


def varied(groups: Iterable[Group]) -> list[str]:
    """Facts in which the groups differ, in the order of their first appearance."""
    groups = list(groups)
    names = list(dict.fromkeys(name for g in groups for name in g.facts))
    return [n for n in names if len({json.dumps(g.facts.get(n), sort_keys=True) if n in g.facts else "" for g in groups}) > 1]


def _label(g: Group, groups: list[Group]) -> str:
    """The method's id, the task where there are several, and the parameters in which groups of the method differ."""
    task = [g.task] if len({o.task for o in groups}) > 1 else []
    siblings = [o for o in groups if (o.method, o.task) == (g.method, g.task)]
    told = {name: [o.facts[name] for o in siblings if name in o.facts] for name in varied(siblings) if name in g.facts}
    return " ".join([g.method, *task, *(f"{name}={_told_apart(g.facts[name], values)}" for name, values in told.items())])


def _told_apart(value: Any, among: list[Any]) -> str:
    """A value in six digits where these tell it from all others ``among`` the siblings', else :func:`short`."""
    def few(v: Any) -> str:
        return f"{v:g}" if isinstance(v, float) else short(v)

    return few(value) if all(v == value or few(v) != few(value) for v in among) else short(value)


def short(value: Any) -> str:
    """A parameter's value in few characters, but in as many as it takes to tell it from any other."""
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _created(run: Run) -> float:
    return run.folder.read_run().get("created", 0.0)
