"""Notes: what MLflow shows as the description of a run, in Markdown: what it is, what came out, where to look next.

Links in a note begin with ``#``, so they work on whichever address the server is reached.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tracking.journal import Entry
from tracking.metrics import METRICS

CONTROL = ("While it runs, the tag `workbench.control` takes `stop`, `pause` or `resume`. What is below is of the start; results follow at "
           "the end.")
MAX_NOTE = 7500  # characters; MLflow allows a tag 8000


def begun(run: Mapping[str, Any]) -> str:
    """The note of a run (content of ``run.json``) that has begun."""
    return whole([_head(run), CONTROL, *_origin(run)])


def ended(run: Mapping[str, Any], status: str, reason: str, entries: Iterable[Entry], links: Mapping[str, str]) -> str:
    """The note of a run that has ended: results first, then parameters and where it came from."""
    verdict = f"**{status}**" + (f", {plain(reason)}" if reason else "")
    return whole([_head(run), " · ".join(filter(None, [verdict, linked(links)])), results(entries), *_origin(run)])


def results(entries: Iterable[Entry]) -> str:
    """A table with the last and, where there is a better direction, the best value of every metric."""
    last: dict[str, float] = {}
    best: dict[str, float] = {}
    for entry in entries:
        for name, value in entry.values.items():
            better = METRICS[name].better if name in METRICS and not METRICS[name].cumulative else None
            if better:
                best[name] = (max if better == "higher" else min)(best.get(name, value), value)
            last[name] = value
    rows = [(f"`{name}`", f"{value:.6g}", f"{best[name]:.6g}" if name in best else "", METRICS[name].unit if name in METRICS else "")
            for name, value in last.items()]
    return table(("metric", "last", "best", "unit"), rows)


def linked(links: Mapping[str, str]) -> str:
    """Links to MLflow's pages in one line. What is none of these, such as the reason why there are no views, is left out."""
    return " · ".join(f"[{plain(name)}]({link[link.find('/#/') + 1:]})" for name, link in links.items() if "/#/" in link)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; nothing without rows."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *lines]) if lines else ""


def plain(text: Any) -> str:
    """A text that stays in its cell and is shown as it is."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")


def code(value: Any) -> str:
    """A value as code."""
    return f"`{' '.join(str(value).replace('`', chr(39)).split())}`".replace("|", "\\|")


def _head(run: Mapping[str, Any]) -> str:
    return run.get("note") or f"**{plain(run['name'])}**"


def _origin(run: Mapping[str, Any]) -> list[str]:
    return [table(("parameter", "value"), [(code(k), code(v)) for k, v in run.get("params", {}).items()]),
            table(("provenance", ""), [(plain(k), code(v)) for k, v in run.get("provenance", {}).items()])]


def whole(parts: Iterable[str]) -> str:
    """The parts that fit into a note, of the first that does not the lines that do; the rest is among the run's files."""
    note = ""
    for part in filter(None, parts):
        room = MAX_NOTE - len(note)
        if len(part) > room:
            lines = part[:room].rpartition("\n")[0]
            return f"{note}\n\n{lines}\n\n… and more among the artifacts." if lines.count("\n") > 1 else note
        note += ("\n\n" if note else "") + part
    return note
