"""What there is to choose from, as tables: methods, tasks, and the parameters of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tracking.errors import UserError, did_you_mean
from workbench import registry
from workbench.params import table

if TYPE_CHECKING:
    import pandas


def catalog(family: str | None = None) -> pandas.DataFrame:
    """One row a method: id, title, family, what it does in a line, paper. ``family`` keeps one family."""
    import pandas

    rows = method_rows(family)
    return pandas.DataFrame(rows).set_index("id")


def method_rows(family: str | None = None) -> list[dict[str, str]]:
    """The rows of :func:`catalog` as plain dictionaries (no pandas)."""
    entries = registry.methods().values()
    families = {e.family for e in entries}
    if family is not None and family not in families:
        raise UserError(f"Unknown family {family!r}.{did_you_mean(family, families)} Known: {', '.join(sorted(families))}.")
    return [{"id": e.id, "title": e.title, "family": e.family, "summary": e.summary, "paper": e.paper_url}
            for e in entries if family in (None, e.family)]


def tasks() -> pandas.DataFrame:
    """One row a task: id, kind, whether it is embedded (needs neither file nor network), title."""
    import pandas

    return pandas.DataFrame(task_rows()).set_index("id")


def task_rows() -> list[dict[str, Any]]:
    """The rows of :func:`tasks` as plain dictionaries (no pandas)."""
    return [{"id": id, "kind": e.literals.get("kind", "classification"), "embedded": e.literals.get("embedded", False),
             "title": e.title} for id, e in registry.tasks().items()]


def describe(id: str) -> pandas.DataFrame:
    """The parameters of a method or a task: default, what is allowed, description. A notebook shows the texts uncut."""
    from tracking.frame import ReadableFrame

    return ReadableFrame(parameter_rows(id)).set_index("name")


def parameter_rows(id: str) -> list[dict[str, Any]]:
    """The rows of :func:`describe` as plain dictionaries."""
    if id in registry.methods():
        return table(registry.load_method(id).Params)
    if id in registry.tasks():
        return table(registry.load_task(id).Params)
    known = [*registry.methods(), *registry.tasks()]
    raise UserError(f"Unknown method or task {id!r}.{did_you_mean(id, known)} Known: {', '.join(known)}.")
