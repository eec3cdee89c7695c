"""A comparison as one HTML file: its table, curves, trade-offs, parameters, runs and provenance."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tracking import notes, pages
from tracking.errors import UserError
from tracking.metrics import metric
from tracking.report import Table, cell_text, report
from workbench.comparison import AXES, Comparison
from workbench.grouping import machine, short, varied
from workbench.params import Field, Params
from workbench.significance import TEST

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


class ComparisonParameters(Params):
    """The parameters cell of the comparison notebook."""

    home: str = Field("", description="a home to compare, such as one brought from a cluster; empty = the usual one")
    task: str = Field("", description="only this task; empty = all")
    methods: tuple[str, ...] = Field((), description="only these methods; empty = all")
    metric: str = Field("eval/accuracy", description="what is compared")
    axis: str = Field("train/epoch", description="what the curves are drawn against")
    cost: str = Field("clock/wall_s", description="what the trade-off is with")
    target: float = Field(0.0, description="value of the metric to be reached; 0 = none")
    tracking_uri: str = Field("off", description="MLflow address that the report is logged to, off, or empty for the usual one")


def write(comparison: Comparison, path: str | os.PathLike[str], *, target: float | None = None, title: str | None = None) -> Path:
    """Write the report to ``path`` and return it. Raises :class:`UserError` when the comparison is empty."""
    c = comparison
    if not c.groups:
        raise UserError(" ".join(["There is no run to report on.", *c.notes()]))
    tasks, runs = ", ".join(c.tasks), sum(len(g.runs) for g in c.groups)
    summary = f"{runs} runs in {len(c.groups)} groups on {tasks}, compared by **{c.metric}** ({metric(c.metric).description})."
    sections = [("Result", summary, "\n".join(f"- {line}" for line in c.notes()), *tables(c, target))]
    for task in c.tasks:
        part, lead = c.only(task), f"{task}: " if len(c.tasks) > 1 else ""
        axes = dict.fromkeys([c.axis, *part.reported(AXES)])
        sections.append((f"{lead}Curves", *_drawn(part.curves, [(c.metric, axis) for axis in axes])))
        if metric(c.metric).better:
            # a cost that is the same for all is no trade-off
            means = {name: {m for g in part.groups if (m := g.mean(name).mean) == m} for name in part.costs}
            costs = [name for name, different in means.items() if name != c.metric and len(different) > 1]
            sections.append((f"{lead}Trade-offs", *_drawn(part.pareto, [(cost,) for cost in costs])))
    if len(c.tasks) > 1:
        sections.append(("Over all tasks", *_drawn(c.profiles, [(axis,) for axis in c.reported(AXES)])))
    sections += [("Parameters", *_parameters(c)), ("Runs", _runs(c))]
    return report(path, title or f"{c.metric} on {tasks}", [s for s in sections if len(s) > 1], _provenance(c))


def log(comparison: Comparison, study: str, *, tracking: str | None = None, target: float | None = None) -> str:
    """Write the report, log it with its table to a run of experiment ``study``, and return the link to that; without tracking, its path."""
    from tracking.address import home, tracking_uri
    from tracking.shipping import reached

    if not re.fullmatch(r"[A-Za-z0-9_.-]+", study):
        raise UserError(f"study = {study!r} is refused. Allowed: letters, digits, '_', '-' and '.'.")
    path = write(comparison, home() / "reports" / f"{study}.html", target=target)
    uri = tracking_uri(tracking)
    if uri is None:
        return str(path)
    try:
        with reached(uri) as store:
            runs = sum(len(g.runs) for g in comparison.groups)
            run_id = store.study_run(f"{study}-comparison", study, f"{study} (comparison)", tags={"workbench.study": study})
            store.log_artifacts(run_id, [path])
            head = f"# {comparison.metric} on {', '.join(comparison.tasks)}\n\n{runs} runs side by side, with every figure in the report."
            where = {"report": pages.artifact(store.experiment(study), run_id, path.name), **comparison.links(uri)}
            store.study_run(f"{study}-comparison", study, note=notes.whole([head, notes.linked(where), _as_note(comparison, target)]))
            store.finish(run_id, "finished")
            return store.run_url(run_id, study)
    except UserError as error:
        raise UserError(f"{error} The report itself lies at {path}.") from None


def _as_note(c: Comparison, target: float | None) -> str:
    """The table of quality as Markdown."""
    table = tables(c, target)[0].data
    return notes.table([notes.plain(n) for n in table], [[notes.plain(cell_text(v)) for v in row] for row in table.itertuples(index=False)])


def tables(c: Comparison, target: float | None = None) -> list[Table]:
    """The table in two: quality, and what it cost."""
    table = c.shown(target)
    first = [n for n in table if n in ("method", "task", "n", "difference", "p", "mark") or n.startswith(("final ", "best "))]
    rest = [n for n in table if n not in first]
    reached = f", and up to {c.metric} {target:g} (absent unless every seed reaches it)" if target is not None else ""
    costs = [n for n in table if n == "method" or n in rest]
    return [Table(table[first], TEST), Table(table[costs], f"Costs at the end of the run{reached}.")]


def _drawn(draw: Callable[..., Figure], calls: Iterable[tuple[str, ...]]) -> list[Figure]:
    """The figures there are data for; the notes of the comparison say what is absent and why."""
    figures = []
    for arguments in calls:
        try:
            figures.append(draw(*arguments))
        except UserError:
            continue
    return figures


def _parameters(c: Comparison) -> list[Table]:
    import pandas

    differ = [n for n in varied(c.groups) if n not in ("method", "task")]
    common = [n for n in c.groups[0].facts if n not in (*differ, "method", "task")]
    rows = [{"group": g.label, **{n: short(g.facts[n]) if n in g.facts else None for n in differ}} for g in c.groups]
    caption = "Parameters in which the groups differ (– where a method has no such parameter)"
    tables = [Table(pandas.DataFrame(rows), caption)] if differ else []
    same = pandas.DataFrame([{"parameter": n, "value": short(c.groups[0].facts[n])} for n in common])
    return [*tables, Table(same, "Parameters that all groups share")]


def _runs(c: Comparison) -> Table:
    import pandas

    rows = [[r.key, g.label, str(r.spec["seed"]), r.status, machine(r)] for g in c.groups for r in g.runs]
    rows += [[x.key, f"{x.method} {x.name}", None, f"left out: {x.why}", None] for x in c.left_out]
    return Table(pandas.DataFrame(rows, columns=["folder", "group", "seed", "state", "hardware"]), "Every run by the name of its folder")


def _provenance(c: Comparison) -> dict[str, str]:
    """Every fact of the runs' provenance; several values where the runs differ."""
    facts: dict[str, list[str]] = {}
    for g in c.groups:
        for r in g.runs:
            made = time.strftime("%Y-%m-%d", time.gmtime(r.folder.read_run().get("created", 0)))
            for name, value in {"runs made": made, "computed on": machine(r), **r.provenance}.items():
                facts.setdefault(name, []).append(str(value))
    return {name: "; ".join(dict.fromkeys(values)) for name, values in facts.items()}
