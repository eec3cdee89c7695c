"""Writing the pages: a gallery of executed studies, a page for each method, tables of tasks and metrics, and two guides."""

from __future__ import annotations

import ast
import html
import inspect
import json
import os
import re
import shutil
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

from tracking.address import home
from tracking.errors import UserError
from tracking.folder import write_atomic
from tracking.metrics import METRICS
from tracking.report import Table, table_html
from workbench import registry
from workbench.docs.page import page, rendered
from workbench.params import table as parameter_table
from workbench.study import PROFILES, execute, studies

TEXTS = Path(__file__).parent
GUIDES = {"adding_a_method": "How to add a method", "reading_the_meters": "How to read the meters"}


def build(folder: str | os.PathLike[str], *, execute: str | None = None) -> Path:
    """Write all pages under ``folder`` and return the first of them.

    The gallery shows each study at the largest profile that was executed in the workbench's home; with ``execute`` (a profile) those that
    never were are executed first. Raises :class:`UserError` where a study's notebook stops.
    """
    root = Path(folder)
    shown = [_executed(row, execute) for row in studies()]
    for row in shown:
        _copy(row, root / "studies")
    for entry in registry.methods().values():
        write_atomic(root / "methods" / f"{entry.id}.html", _method_page(entry))
    write_atomic(root / "methods" / "index.html", _methods_page())
    write_atomic(root / "tasks.html", _tasks_page())
    for name, title in GUIDES.items():
        body = rendered((TEXTS / f"{name}.md").read_text())
        write_atomic(root / f"{name}.html", page(title, body + (_metrics_table() if name == "reading_the_meters" else "")))
    write_atomic(root / "index.html", _gallery(shown))
    return root / "index.html"


# --- studies ------------------------------------------------------------------------------------------------


def _executed(row: dict[str, str], wish: str | None) -> dict[str, Any]:
    """A study with what its largest executed profile left: ``summary`` and ``folder``, both ``None`` where it never was executed."""
    for attempt in (False, True):
        for profile in reversed(PROFILES):
            folder = home() / "studies" / f"{row['id']}-{profile}"
            if (folder / "summary.json").is_file():
                return {**row, "profile": profile, "folder": folder, "summary": json.loads((folder / "summary.json").read_text())}
        if wish is None or attempt:
            break
        if execute(row["id"], profile=wish):
            raise UserError(f"Study {row['id']!r} stopped at profile {wish}: see its notebook in {home() / 'studies'}.")
    return {**row, "profile": None, "folder": None, "summary": None}


def _copy(row: dict[str, Any], root: Path) -> None:
    """Bring the report and the executed notebook's page along: the gallery is moved as a whole."""
    for name in ("report.html", f"{row['id']}.html") if row["folder"] else ():
        if (row["folder"] / name).is_file():
            target = root / row["id"] / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(row["folder"] / name, target)
            row.setdefault("pages", {})[name] = f"studies/{row['id']}/{name}"


def _gallery(rows: list[dict[str, Any]]) -> str:
    cards = []
    for row in rows:
        title, summary = html.escape(row["title"]), row["summary"]
        if summary is None:
            how = f'Not executed yet: <code>workbench study {row["id"]}</code>'
            cards.append(f'<li class="card"><h3>{title}</h3><p class="soft">{how}</p></li>')
            continue
        counts = Counter(claim["verdict"] for claim in summary["claims"])
        verdicts = ", ".join(f"{n} {html.escape(word)}" for word, n in counts.items()) or "no claims"
        claims = "".join(f"<li><strong>{html.escape(c['verdict'])}</strong>: {html.escape(c['claim'])} "
                         f'<span class="soft">(paper: {html.escape(str(c["paper"]))}; ours: {html.escape(str(c["ours"]))})</span></li>'
                         for c in summary["claims"])
        links = [f'<a href="{html.escape(where)}">{"report" if name == "report.html" else "executed notebook"}</a>'
                 for name, where in row.get("pages", {}).items()]
        cards.append(f'<li class="card"><h3>{title}</h3><p class="soft">{row["profile"]} profile; claims: {verdicts}</p>'
                     f"<p>{' · '.join(links)}</p><details><summary>Claims</summary><ul>{claims}</ul></details></li>")
    count = len(registry.methods())
    lead = (f"<p>{count} methods and {len(registry.tasks())} tasks behind one interface, under the same meters. Each study below is a "
            "notebook that was executed on the machine where these pages were made; a claim that did not hold is shown as not holding.</p>")
    return page("Gallery of studies", f'{lead}<ul class="cards">{"".join(cards)}</ul>')


# --- methods and tasks --------------------------------------------------------------------------------------


def _methods_page() -> str:
    families: dict[str, list[str]] = {}
    for e in registry.methods().values():
        line = f'<li><a href="{e.id}.html">{html.escape(e.title)}</a> <code>{e.id}</code>. {rendered_line(e.summary)}</li>'
        families.setdefault(e.family, []).append(line)
    body = "".join(f"<h2>{html.escape(family)}</h2><ul>{''.join(lines)}</ul>" for family, lines in families.items())
    return page("Methods", body, depth=1)


def _method_page(e: registry.Entry) -> str:
    import pandas

    paper = f'<a href="{html.escape(e.paper_url)}">{html.escape(e.paper)}</a>' if e.paper_url else html.escape(e.paper) or "none (folklore)"
    head = f"<p>Family <strong>{html.escape(e.family)}</strong>, id <code>{e.id}</code>, paper: {paper}.</p>"
    try:
        cls = registry.load_method(e.id)
    except UserError as why:  # its library is not installed here
        return page(e.title, f"{head}{rendered_text(_docstring(e))}<p>{html.escape(str(why))}</p>", depth=1)
    rows = [{**row, "default": repr(row["default"])} for row in parameter_table(cls.Params)]
    table = table_html(Table(pandas.DataFrame(rows), f"Parameters of {e.id}")) if rows else "<p>It has no parameters.</p>"
    example = cls.example
    given = "".join(f", {name}={example[name]!r}" for name in ("params", "task_params") if example.get(name))
    snippet = f"import workbench\n\nrun = workbench.run({e.id!r}, {example['task']!r}{given})\nprint(run)\n"
    kinds = ", ".join(cls.kinds)
    return page(e.title, f"{head}{rendered_text(_docstring(e))}<h2>Run it</h2><pre><code>{html.escape(snippet)}</code></pre>"
                f"<p>It runs on tasks of kind {html.escape(kinds)}: see <a href=\"../tasks.html\">the tasks</a>.</p>"
                f"<h2>Parameters</h2>{table}", depth=1)


def _docstring(e: registry.Entry) -> str:
    """What the file says of the algorithm, and what the method's class adds: read, not imported."""
    tree = ast.parse(e.file.read_text())
    own = next((ast.get_docstring(n) for n in tree.body if isinstance(n, ast.ClassDef) and n.name == e.cls), None)
    return "\n\n".join(filter(None, (own, ast.get_docstring(tree))))


def rendered_text(docstring: str) -> str:
    """A docstring in the project's style as HTML."""
    plain = re.sub(r":[a-z]+:`~?([^`]+)`", r"`\1`", inspect.cleandoc(docstring)).replace("``", "`")
    return rendered(textwrap.dedent(plain))


def rendered_line(text: str) -> str:
    """A docstring's line without the paragraph round it."""
    return rendered_text(text).strip().removeprefix("<p>").removesuffix("</p>")


def _tasks_page() -> str:
    import pandas

    rows = [{"task": id, "kind": e.literals.get("kind", "classification"),
             "needs": "nothing" if e.literals.get("embedded") else "its data set", "what it is": e.summary or e.title}
            for id, e in registry.tasks().items()]
    return page("Tasks", table_html(Table(pandas.DataFrame(rows), "Every task; `workbench data list` says what is at hand")))


def _metrics_table() -> str:
    import pandas

    rows = [{"metric": m.name, "unit": m.unit or "–", "better": m.better or "–", "is": _nature(m), "meaning": m.description}
            for m in METRICS.values()]
    return "<h2>Every metric</h2>" + table_html(Table(pandas.DataFrame(rows), "The vocabulary of everything that is recorded"))


def _nature(m: Any) -> str:
    words = ["running total"] * m.cumulative + ["differs from run to run"] * m.volatile
    return ", ".join(words) or "value"
