"""Writing the pages: a gallery of executed studies, two guides, and what :mod:`workbench.docs.reference` makes of the code."""

from __future__ import annotations

import html
import json
import os
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tracking.address import home
from tracking.errors import UserError, unknown
from tracking.folder import write_atomic
from workbench import registry
from workbench.claims import FAILS, HOLDS, OPEN
from workbench.docs.page import PROJECT, offline, page, rendered
from workbench.docs.reference import method_page, methods_page, metrics_table, tasks_page
from workbench.study import PROFILES, execute, studies

TEXTS = Path(__file__).parent
GUIDES = {"adding_a_method": "How to add a method", "reading_the_meters": "How to read the meters"}
LOOKS = {HOLDS: ("holds", "✓"), FAILS: ("fails", "✗"), OPEN: ("", "?")}
"""Class and sign of a verdict: never by colour alone."""


def build(folder: str | os.PathLike[str], *, execute: str | None = None) -> Path:
    """Write all pages under ``folder`` and return the first of them.

    The gallery shows each study at the largest profile that was executed in the workbench's home; with ``execute`` (a profile) those that
    never were are executed first. Raises :class:`UserError` where a study's notebook stops.
    """
    if execute is not None and execute not in PROFILES:
        raise unknown("profile", execute, PROFILES)
    root = Path(folder)
    shown = [_executed(row, execute) for row in studies()]
    for row in shown:
        _copy(row, shown, root / "studies")
    pages = {f"methods/{entry.id}.html": method_page(entry) for entry in registry.methods().values()}
    pages |= {"methods/index.html": methods_page(), "tasks.html": tasks_page(), "index.html": _gallery(shown)}
    for name, title in GUIDES.items():
        body = rendered((TEXTS / f"{name}.md").read_text())
        pages[f"{name}.html"] = page(title, body + (metrics_table() if name == "reading_the_meters" else ""), f"{name}.html")
    for where, text in pages.items():
        write_atomic(root / where, text)
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


def _copy(row: dict[str, Any], rows: list[dict[str, Any]], root: Path) -> None:
    """Bring the report and the executed notebook's page along: the gallery is moved as a whole."""
    for name in ("report.html", f"{row['id']}.html") if row["folder"] else ():
        if (row["folder"] / name).is_file():
            text = (row["folder"] / name).read_text()
            write_atomic(root / row["id"] / name, text if name == "report.html" else _relinked(offline(text), rows))
            row.setdefault("pages", {})[name] = f"studies/{row['id']}/{name}"


def _relinked(text: str, rows: list[dict[str, Any]]) -> str:
    """Links to the report and to other notebooks lead to their pages here, or to the gallery where there is none."""
    text = re.sub(r'href="file:[^"]*/report\.html"', 'href="report.html"', text)
    pages = {Path(row["notebook"]).name: f"../{row['id']}/{row['id']}.html" for row in rows if row["folder"]}
    return re.sub(r'href="([\w-]+\.ipynb)"', lambda m: f'href="{pages.get(m[1], "../../index.html")}"', text)


def _gallery(rows: list[dict[str, Any]]) -> str:
    cards = "".join(_waiting(row) if row["summary"] is None else _card(row) for row in rows)
    lead = (f"<p>{len(registry.methods())} <a href=\"methods/index.html\">methods</a> of efficient training and inference and "
            f"{len(registry.tasks())} <a href=\"tasks.html\">tasks</a> behind one interface, under "
            '<a href="reading_the_meters.html">the same meters</a>: quality, bytes, joules, seconds, memory.</p>'
            "<h2>Studies</h2><p>Each is a notebook that takes a paper's claims one by one, executed on the machine where these pages were "
            "made. A claim that did not hold is shown as not holding.</p>")
    if not any(row["summary"] for row in rows):
        lead += (f"<p><strong>None has been executed in <code>{html.escape(str(home()))}</code> yet.</strong> The first below needs no "
                 "data and takes minutes: run its command (<code>make demo</code> does the same), then <code>workbench docs</code> once "
                 "more, and its verdicts, report and notebook are here. <code>workbench docs --execute quick</code> executes all.</p>")
    return page(PROJECT, f'{lead}<ul class="cards">{cards}</ul>', "index.html")


def _waiting(row: dict[str, Any]) -> str:
    return (f'<li class="card wait"><h3>{html.escape(row["title"])}</h3><p class="soft">Not executed yet. To execute it:</p>'
            f'<p><code>workbench study {row["id"]}</code></p></li>')


def _card(row: dict[str, Any]) -> str:
    claims = row["summary"]["claims"]
    counts = Counter(claim["verdict"] for claim in claims)
    verdicts = ""
    for word, n in sorted(counts.items(), key=lambda pair: [*LOOKS, pair[0]].index(pair[0])):
        look, sign = LOOKS.get(word, ("", ""))
        verdicts += f'<span class="verdict {look}">{sign} {html.escape(word)}: {n}</span>'
    made = time.strftime("%Y-%m-%d", time.gmtime((row["folder"] / "summary.json").stat().st_mtime))
    items = "".join(f"<li><strong>{html.escape(c['verdict'])}</strong>: {html.escape(c['claim'])} "
                    f'<span class="soft">(paper: {html.escape(str(c["paper"]))}; ours: {html.escape(str(c["ours"]))})</span></li>'
                    for c in claims)
    links = " · ".join(f'<a href="{html.escape(where)}">{"report" if name == "report.html" else "executed notebook"}</a>'
                       for name, where in row.get("pages", {}).items())
    return (f'<li class="card"><h3>{html.escape(row["title"])}</h3><p class="soft">{row["profile"]} profile, executed {made}</p>'
            f"<p>{verdicts or 'no claims'}</p><p>{links}</p>"
            f"<details><summary>The {len(claims)} claims</summary><ul>{items}</ul></details></li>")
