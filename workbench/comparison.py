"""Comparison: runs side by side, with sample sizes, intervals, significance and the hardware they ran on."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracking.errors import UserError, unknown
from tracking.figures import Style, curves, pareto_figure, style_of
from tracking.folder import STATUSES
from tracking.metrics import METRICS
from tracking.metrics import metric as declared
from tracking.report import Table, cell_text, paragraphs, table_html
from tracking.statistics import check_axis
from workbench.grouping import Group, LeftOut, group, matching, older_code, scan
from workbench.modelled import METRIC, chosen
from workbench.runs import Run, runs_root
from workbench.significance import marks

if TYPE_CHECKING:
    import pandas
    from plotly.graph_objects import Figure

COSTS = [m.name for m in METRICS.values() if m.name.split("/")[0] in ("clock", "comm", "energy", "memory", "compute")]
AXES = ["train/epoch", *(name for name in COSTS if METRICS[name].cumulative)]


def compare(
    runs: Iterable[Run] | None = None,
    *,
    task: str | Sequence[str] | None = None,
    methods: str | Sequence[str] | None = None,
    metric: str = "eval/accuracy",
    axis: str = "train/epoch",
    home: str | os.PathLike[str] | None = None,
    where: Mapping[str, Any] | None = None,
    include: Sequence[str] = ("finished",),
    hardware: str | os.PathLike[str] | None = None,
    scenario: str | None = None,
) -> Comparison:
    """Put runs side by side: those given, or else all in the workbench's home made with the newest code of their method and task.

    Runs that differ in the seed alone are one group. Failed, stopped and diverged runs are left out, counted and named.

    Args:
        runs: ended runs, or an object that has them as ``.runs``, such as a sweep.
        task, methods: only these.
        metric: what is compared; axis: what curves are drawn against.
        home: another home than ``$WORKBENCH_HOME``, such as one brought from a cluster.
        where: only runs with these values, by parameter name (``task.`` before a task's); a list allows several values.
        include: run states that count.
        hardware, scenario: what ``energy/model_j`` is worked out anew for, from the traces that the runs kept (ids of the energy model, or
            the path of a hardware file). One of the two alone leaves the other at its default; without both, joules are as reported.

    Raises :class:`UserError` for unknown names, and where no run is left (not for an empty list that was given).
    """
    declared(metric)
    check_axis(axis)
    for status in include:
        if status not in STATUSES:
            raise unknown("run status", status, STATUSES)
    model = chosen(hardware, scenario)
    given = runs is not None
    root = Path(home) / "journals" if home is not None else runs_root()
    found = list(getattr(runs, "runs", runs)) if given else scan(root)
    found = matching(found, _names(task), _names(methods), where or {})
    kept = [r for r in found if r.status in include]
    left = [_left(r, r.status + (f": {r.reason}" if r.reason else "")) for r in found if r.status not in include]
    if not given:
        kept, old = older_code(kept)
        left += [_left(r, "made with older code") for r in old]
    groups, spare = group(kept, model)
    left += [_left(r, "same seed as another run of its group") for r in spare]
    if not groups and not given:
        why = f" {len(left)} left out: {'; '.join(f'{x.name} ({x.why})' for x in left[:3])}." if left else ""
        raise UserError(f"No run to compare under {root}.{why} Run some, or widen task, methods, where or include.")
    return Comparison(groups, left, metric, axis)


@dataclass
class Comparison:
    """Groups of runs side by side. In a notebook it shows its table."""

    groups: list[Group]
    left_out: list[LeftOut]
    metric: str = "eval/accuracy"
    axis: str = "train/epoch"
    styles: dict[str, Style] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.styles:  # a method in the same setting looks the same on every task
            names = {g.label: " ".join(word for word in g.label.split(" ") if word != g.task) for g in self.groups}
            looks = style_of(dict.fromkeys(names.values()))
            self.styles = {label: looks[name] for label, name in names.items()}

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(g.task for g in self.groups))

    def only(self, task: str) -> Comparison:
        """The part on one task, in the same colours."""
        if task not in self.tasks:
            raise unknown("task", task, self.tasks)
        return Comparison([g for g in self.groups if g.task == task], self.left_out, self.metric, self.axis, self.styles)

    def values(self, method: str, metric: str | None = None, *, best: bool = False, **where: Any) -> dict[int, float]:
        """One figure a seed, by seed: the last value (or the best) of ``metric`` for ``method`` with these parameters.

        Empty when no such run finished; :class:`UserError` when several groups fit, because their seeds must not be pooled.
        """
        found = [g for g in self.groups if g.method == method and all(g.facts.get(k) == v for k, v in where.items())]
        if len(found) > 1:
            settings = ", ".join(g.label for g in found)
            raise UserError(f"{method} is there in several settings: {settings}. Name the parameters that tell them apart.")
        name = metric or self.metric
        return {seed: v for g in found for seed, v in g.by_seed(name, best=best).items()}

    # --- tables -----------------------------------------------------------------------------------------

    def table(self, target: float | None = None) -> pandas.DataFrame:
        """One row a group, best first; absent is NaN.

        Columns: ``method``, ``task``, ``n``; ``final`` and ``best`` value of the metric (the best of a run is chosen on the data it is
        measured on, so it flatters); ``difference`` to the best of two runs or more, with its adjusted ``p`` and a ``mark`` in words;
        with ``target``, what it cost to reach it on every axis reported and how many seeds did; costs at the end of the run;
        ``hardware``. A column that ends in ``±`` is the half-width of the one before.
        """
        import pandas

        rows = []
        for g, mark in zip(self.groups, marks(self.groups, self.metric), strict=True):
            row: dict[str, Any] = {"method": g.label, "task": g.task, "n": len(g.runs)}
            _put(row, f"final {self.metric}", g.mean(self.metric))
            if declared(self.metric).better:
                _put(row, f"best {self.metric}", g.mean(self.metric, best=True))
                row |= mark
            if target is not None:
                row["reached"] = f"{g.reached(self.metric, target)} of {len(g.runs)}" if self.metric in g.metrics else None
                for axis in self.reported(AXES):
                    _put(row, f"{axis} to {self.metric} {target:g}", g.to_target(self.metric, target, axis))
            for cost in self.costs:
                _put(row, cost, g.mean(cost))
            rows.append(row | {"hardware": "; ".join(g.machines)})
        table = pandas.DataFrame(rows, columns=None if rows else ["method", "task", "n", f"final {self.metric}"])
        if rows and (better := declared(self.metric).better):
            order = table.sort_values(f"final {self.metric}", ascending=better == "lower", kind="stable", na_position="last").index
            table = table.loc[sorted(order, key=lambda i: self.tasks.index(table.task[i]))].reset_index(drop=True)
        return table

    def shown(self, target: float | None = None) -> pandas.DataFrame:
        """:meth:`table` for reading: ``mean ± half-width`` in one column, empty ones left out, modelled joules with what they are for."""
        table = self.table(target)
        for name in [c for c in table if f"{c} ±" in table]:
            pairs = list(zip(table[name], table.pop(f"{name} ±"), strict=True))
            if not all(math.isnan(mean) for mean, _ in pairs):
                table[name] = [cell_text(mean) + (f" ± {_half(half, mean)}" if math.isfinite(half) else "") for mean, half in pairs]
        table = table.drop(columns=["task"] if len(self.tasks) == 1 else []).dropna(axis=1, how="all")
        return table.rename(columns={c: f"{c}, {_modelled_for(self.groups)}" for c in table if METRIC in c})

    def tables(self, target: float | None = None) -> list[Table]:
        """:meth:`shown` in two with captions: quality, and what it cost."""
        from workbench.evidence import tables

        return tables(self, target)

    def notes(self) -> list[str]:
        """What a reader of the figures must know: who is missing and why, sample sizes, hardware, what energy is modelled for."""
        from workbench.caveats import caveats

        return caveats(self)

    def reported(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` that some run reports."""
        return [name for name in names if any(name in g.metrics for g in self.groups)]

    @property
    def costs(self) -> list[str]:
        """The costs that some run reports."""
        return self.reported(COSTS)

    # --- figures ----------------------------------------------------------------------------------------

    def curves(self, metric: str | None = None, axis: str | None = None, *, log_x: bool = False, log_y: bool = False) -> Figure:
        """Mean curves with bands over the seeds, n in the legend, hardware in the subtitle. For one task: see :meth:`only`."""
        metric, axis = metric or self.metric, axis or self.axis
        usable, note = self._usable(metric, axis)
        figure = curves({g.label: g.frames for g in usable}, metric, axis, log_x=log_x, log_y=log_y, note=note, styles=self.styles,
                        title=f"{self.tasks[0]}: {metric} against {axis}")
        return _named(figure, axis, metric, usable)

    def pareto(self, x: str, y: str | None = None, *, log_x: bool = False, log_y: bool = False) -> Figure:
        """Final means of two metrics against each other, and the front where they compare. For one task: see :meth:`only`."""
        import pandas

        y = y or self.metric
        usable, note = self._usable(x, y)
        rows = []
        for g in usable:
            means = g.mean(x), g.mean(y)
            row = {"method": g.label, "n": min(mean.n for mean in means)}
            _put(row, x, means[0])
            _put(row, y, means[1])
            rows.append(row)
        having = [g for g, row in zip(usable, rows, strict=True) if row["n"]]
        apart = [name for name in (x, y) if len({tuple(g.conditions(name)) for g in having}) > 1]
        why = f"{' and '.join(apart)} of different hardware or assumptions do not compare" if apart else ""
        figure = pareto_figure(pandas.DataFrame(rows), x, y, log_x=log_x, log_y=log_y, note=note, styles=self.styles, no_front=why,
                               title=f"{self.tasks[0]}: {y} against {x}")
        return _named(figure, x, y, usable)

    def profiles(self, axis: str | None = None, targets: Mapping[str, float] | None = None) -> Figure:
        """Performance profiles over the tasks: how often a method is within a factor of the cheapest (:mod:`workbench.profiles`)."""
        from workbench.profiles import figure

        # the cost that most groups have, or few methods would be left
        having = {a: sum(a in g.metrics for g in self.groups) for a in self.reported(AXES)}
        axis = axis or max(having, key=lambda a: (having[a], a != "train/epoch"), default=self.axis)
        check_axis(axis)
        return figure(self, axis, targets)

    def log(self, study: str = "comparison", *, tracking: str | None = None, target: float | None = None) -> str:
        """Write the report under the workbench's home, log it to MLflow with the figures of the table, and return the link there.

        ``study`` names the MLflow experiment and the run that holds the report; with tracking off the path of the report is returned.
        """
        from workbench.evidence import log

        return log(self, study, tracking=tracking, target=target)

    def links(self, tracking: str | None = None) -> dict[str, str]:
        """Where MLflow shows these runs: its saved views by name, and their pages side by side. Empty where it does not have them."""
        from tracking.views import links_of

        return links_of([r.folder for g in self.groups for r in g.runs], tracking)

    def _usable(self, *names: str) -> tuple[list[Group], str]:
        """Groups whose seeds may be averaged in these metrics, and the subtitle that names the hardware and who is missing."""
        if len(self.tasks) != 1:
            raise UserError(f"One figure shows one task; these runs are of {', '.join(self.tasks) or 'none'}. Use .only(task) first.")
        usable = [g for g in self.groups if not any(g.mixes(n) for n in names)]
        if not usable:
            raise UserError(f"{' and '.join(names)}: the seeds of every group ran on different hardware, or are modelled for different "
                            "hardware, so they are not averaged.")
        missing = [g.label for g in self.groups if g not in usable]
        machines = list(dict.fromkeys(m for g in usable for m in g.machines))
        if len(machines) > 1 and any(n != "step" and declared(n).volatile for n in names):
            where = "hardware differs: " + "; ".join(f"{g.label} on {g.machines[0]}" for g in usable)
        else:
            where = "; ".join(machines)
        return usable, where + (f". Not shown, mixed hardware: {', '.join(missing)}" if missing else "")

    def report(self, path: str | os.PathLike[str], *, target: float | None = None, title: str | None = None) -> Path:
        """Write all of it as one self-contained HTML file: tables, curves, Pareto fronts, parameters, runs and provenance."""
        from workbench.evidence import write

        return write(self, path, target=target, title=title)

    def _repr_html_(self) -> str:
        notes = paragraphs("\n".join(f"- {n}" for n in self.notes())) if self.notes() else ""
        return "".join(map(table_html, self.tables())) + notes

    def __repr__(self) -> str:
        return "\n".join([*(t.data.to_string(index=False, line_width=160) + "\n" for t in self.tables()), *self.notes()])


def _put(row: dict[str, Any], name: str, value: Any) -> None:
    row[name], row[f"{name} ±"] = value.mean, value.half_width


def _named(figure: Figure, x: str, y: str, groups: Iterable[Group]) -> Figure:
    """Modelled joules on an axis with what they are modelled for: without it they mean nothing."""
    for name, axis in ((x, figure.layout.xaxis), (y, figure.layout.yaxis)):
        if name == METRIC:
            axis.title.text += f", {html.escape(_modelled_for(groups), quote=False)}"
    return figure


def _modelled_for(groups: Iterable[Group]) -> str:
    return "; ".join(dict.fromkeys(str(c) for g in groups for c in g.modelled_for))


def _half(width: float, mean: float) -> str:
    if width <= 1e-12 * abs(mean):  # rounding of equal values is no spread
        return "0"
    return f"{width:,.0f}" if width >= 100 else f"{width:.2g}"


def _left(run: Run, why: str) -> LeftOut:
    return LeftOut(run.spec["method"], f"{run.spec['task']} s{run.spec['seed']}", run.key, why)


def _names(given: str | Sequence[str] | None) -> list[str] | None:
    return [given] if isinstance(given, str) else list(given) if given is not None else None
