"""What the pages say of methods, tasks and metrics, read from the code itself."""

from __future__ import annotations

import ast
import html
import inspect
import json
import re
import shlex
import textwrap
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from tracking.errors import UserError
from tracking.metrics import METRICS, Metric
from tracking.report import Table, table_html
from workbench import registry
from workbench.docs.page import filter_box, labelled, page, rendered
from workbench.params import table as parameter_table

ROOT = Path(registry.__file__).parent.parent


# --- methods ------------------------------------------------------------------------------------------------


def methods_page() -> str:
    """Every method by family, with a filter over names, families and summaries."""
    families: dict[str, list[registry.Entry]] = {}
    for e in registry.methods().values():
        families.setdefault(e.family, []).append(e)
    places = "".join(f'<li><a href="#{f}">{f}</a> <span class="soft">{len(of)}</span></li>' for f, of in families.items())
    parts = []
    for family, entries in families.items():
        lines = "".join(f'<li data-words="{html.escape(f"{family} {e.paper}".lower())}"><a href="{e.id}.html">{html.escape(e.title)}</a> '
                        f"<code>{e.id}</code> {rendered_line(e.summary)}</li>" for e in entries)
        parts.append(f'<section aria-labelledby="{family}"><h2 id="{family}">{family}</h2><ul class="rows">{lines}</ul></section>')
    body = f'{filter_box("Filter, by words:", ".rows li")}<nav aria-label="Families"><ul>{places}</ul></nav>{"".join(parts)}'
    return page("Methods", body, "methods/index.html")


def method_page(e: registry.Entry) -> str:
    """What a method is, how to run it, and its parameters."""
    where = f"methods/{e.id}.html"
    paper = f'<a href="{html.escape(e.paper_url)}">{html.escape(e.paper)}</a>' if e.paper_url else html.escape(e.paper) or "none"
    family = html.escape(e.family)
    head = f'<p>Family <a href="index.html#{family}">{family}</a>, id <code>{e.id}</code>, paper: {paper}.</p>'
    head += rendered_text(_docstring(e))
    try:
        cls = registry.load_method(e.id)
    except UserError as why:  # its library is not installed here
        return page(e.title, f"{head}<p>{html.escape(str(why))}</p>", where)
    kinds = ", ".join(f'<a href="../tasks.html#{kind}">{html.escape(kind)}</a>' for kind in cls.kinds)
    code = e.file.relative_to(ROOT).as_posix() if e.file.is_relative_to(ROOT) else e.file.name
    others = ", ".join(f'<a href="{o.id}.html">{html.escape(o.title)}</a>'
                       for o in registry.methods().values() if o.family == e.family and o.id != e.id)
    return page(e.title, f"{head}<h2>Run it</h2><p>In Python:</p>{_block(python_call(e.id, cls.example))}"
                f"<p>In a shell; with <code>preview</code> in place of <code>run</code> it says what that would cost:</p>"
                f"{_block(shell_call(e.id, cls.example))}"
                f"<p>It runs on tasks of the kind {kinds}. Its code, to read or to take away: <code>{html.escape(code)}</code>.</p>"
                f"<h2>Parameters</h2>{_parameters(cls)}" + (f"<h2>Others of its family</h2><p>{others}</p>" if others else ""), where)


def _parameters(cls: Any) -> str:
    import pandas

    rows = [{**row, "default": repr(row["default"])} for row in parameter_table(cls.Params)]
    caption = f"Defaults, and what else is allowed; workbench describe {cls.id} says the same"
    return labelled(table_html(Table(pandas.DataFrame(rows), caption))) if rows else "<p>It has no parameters.</p>"


def python_call(id: str, example: Mapping[str, Any]) -> str:
    """A method's example as Python, an argument a line where it has some."""
    given = [f"    {name}={{\n" + "".join(f"        {key!r}: {value!r},\n" for key, value in example[name].items()) + "    },\n"
             for name in ("params", "task_params") if example.get(name)]
    inside = f"\n    {id!r}, {example['task']!r},\n{''.join(given)}" if given else f"{id!r}, {example['task']!r}"
    return f"import workbench\n\nrun = workbench.run({inside})\nprint(run)\n".replace("'", '"')


def shell_call(id: str, example: Mapping[str, Any]) -> str:
    """A method's example as a command."""
    options = [f"{option} {shlex.quote(f'{name}={value if isinstance(value, str) else json.dumps(value)}')}"
               for key, option in (("params", "--set"), ("task_params", "--task-set")) for name, value in example.get(key, {}).items()]
    return " \\\n    ".join([f"workbench run {id} {example['task']}", *options]) + "\n"


def _block(code: str) -> str:
    return f'<pre tabindex="0"><code>{html.escape(code)}</code></pre>'


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


# --- tasks and metrics --------------------------------------------------------------------------------------


def tasks_page() -> str:
    """Every task by kind and data set, with a filter."""
    import pandas

    def kind(e: registry.Entry) -> str:
        return e.literals.get("kind", "classification")

    parts = []
    for name, of_kind in groupby(sorted(registry.tasks().values(), key=kind), kind):
        rows = [_data_set([*entries]) for _, entries in groupby(of_kind, lambda e: e.cls)]
        table = labelled(table_html(Table(pandas.DataFrame(rows), f"Tasks of the kind {name}")))
        parts.append(f'<section aria-labelledby="{name}"><h2 id="{name}">{name}</h2>{table}</section>')
    lead = ("<p>A task is a data set with a model, a loss and an evaluation. Those that need nothing come with the project; for the others "
            "<code>workbench data list</code> says what is at hand, and <code>workbench data fetch</code> fetches it.</p>")
    return page("Tasks", lead + filter_box("Filter, by words:", "tbody tr") + "".join(parts), "tasks.html")


def _data_set(entries: list[registry.Entry]) -> dict[str, str]:
    """A data set's row: one file gives one task for each of its models."""
    e = entries[0]
    return {"data": e.title, "tasks": ", ".join(entry.id for entry in entries),
            "needs": "nothing" if e.literals.get("embedded") else "its data set", "what it is": e.summary}


def metrics_table() -> str:
    """The vocabulary of what is recorded."""
    import pandas

    rows = [{"metric": m.name, "unit": m.unit or "–", "better": m.better or "–", "is": _nature(m), "meaning": m.description}
            for m in METRICS.values()]
    table = labelled(table_html(Table(pandas.DataFrame(rows), "The vocabulary of everything that is recorded")))
    return f'<h2>Every metric</h2>{filter_box("Filter, by words:", "#metrics tbody tr")}<div id="metrics">{table}</div>'


def _nature(m: Metric) -> str:
    words = ["running total"] * m.cumulative + ["differs from run to run"] * m.volatile
    return ", ".join(words) or "value"
