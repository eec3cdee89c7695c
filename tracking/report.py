"""Reports: one self-contained HTML file with text, tables and live figures, that opens without a network.

plotly.js is inlined once and a content policy in the page forbids every fetch. Everything given is escaped. The page follows the reader's
light or dark setting, works by keyboard, and has the data of every figure in a table under it.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracking.errors import UserError
from tracking.figures import data_of
from tracking.folder import write_atomic
from tracking.metrics import METRICS

if TYPE_CHECKING:
    import pandas
    from plotly.graph_objects import Figure

ABSENT = "–"
CONFIG = {"displaylogo": False, "showSendToCloud": False}
"""Buttons of a figure that lead out of the page, left out: one of them would offer to upload the figure's data."""
MAX_ROWS = 400
"""Rows of a figure's data table, at most; the table says when it shows a part."""


@dataclass
class Table:
    """A table with its caption. The first column heads the rows; absent values read –."""

    data: pandas.DataFrame
    caption: str

    def _repr_html_(self) -> str:
        return table_html(self)

    def __str__(self) -> str:
        return f"{self.data.to_string(index=False)}\n{self.caption}"


@dataclass
class Picture:
    """A plotly figure, the data behind it (read from its traces when not given) and a caption (the figure's own when not given)."""

    figure: Figure
    data: pandas.DataFrame | None = None
    caption: str = ""


Section = tuple
"""``(heading, *items)``: texts, tables and pictures in reading order; a bare DataFrame or Figure will do, ``None`` is passed over.

A text has paragraphs parted by blank lines; lines that begin with ``- `` make a list, ``**bold**`` and backticked code are marked up.
"""


def report(path: str | os.PathLike[str], title: str, sections: Sequence[Section], provenance: Mapping[str, Any] | None = None) -> Path:
    """Write the report to ``path`` (``.html`` or ``.htm``) in one piece and return it.

    ``provenance`` (commit, versions, hardware …) is shown in the footer with the date of writing.
    """
    path = Path(path)
    if path.suffix not in (".html", ".htm"):
        raise UserError(f"The report's path {str(path)!r} is refused. Give a name that ends in .html.")
    figures: list[str] = []
    body = "\n".join(_section(s, number, figures) for number, s in enumerate(sections, 1))
    contents = "".join(f'<li><a href="#s{number}">{_plain(s[0])}</a></li>' for number, s in enumerate(sections, 1))
    facts = {"written": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()), **(provenance or {})}
    footer = "".join(f"<dt>{_plain(k)}</dt><dd>{_plain(v)}</dd>" for k, v in facts.items())
    page = _PAGE.format(title=_plain(title), style=_STYLE, contents=contents, body=body, footer=footer, scripts=_scripts(figures))
    write_atomic(path, page)
    return path


def table_html(table: Table) -> str:
    """A DataFrame as an accessible HTML table: caption, row and column headers, units in the header."""
    numeric = [_is_numeric(table.data.iloc[:, i]) for i in range(table.data.shape[1])]
    head = "".join(f'<th scope="col"{_side(n)}>{_plain(_heading(c))}</th>' for c, n in zip(table.data.columns, numeric, strict=True))
    rows = []
    for values in table.data.itertuples(index=False, name=None):
        cells = [f'<th scope="row"{_side(False)}>{_plain(cell_text(values[0]))}</th>'] if values else []
        cells += [f"<td{_side(n or _is_figure(v))}>{_plain(cell_text(v))}</td>" for v, n in zip(values[1:], numeric[1:], strict=True)]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    caption, many = _plain(table.caption), ' class="many"' if table.data.shape[1] > 9 else ""
    return (f'<div class="wide" role="group" tabindex="0" aria-label="{caption}"><table{many}>'
            f'<caption style="text-align:left"><span>{caption}</span></caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>")


def cell_text(value: Any) -> str:
    """A value for people: four significant digits, whole numbers in full, – for what is absent."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 1e4 else str(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 or value.is_integer() else f"{value:.4g}"
    return str(value)


def paragraphs(text: str) -> str:
    """The little markup of a :class:`Section` as HTML; everything else in it is escaped."""
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = [line.strip() for line in block.splitlines()]
        if all(line.startswith("- ") for line in lines):
            blocks.append("<ul>" + "".join(f"<li>{_marked(line[2:])}</li>" for line in lines) + "</ul>")
        else:
            blocks.append(f"<p>{_marked(' '.join(lines))}</p>")
    return "".join(blocks)


def _marked(line: str) -> str:
    pieces = _plain(line).split("`")
    if len(pieces) % 2 == 0:  # an odd backtick is a backtick
        pieces[-2:] = ["`".join(pieces[-2:])]
    bold = [re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", p) for p in pieces[::2]]
    return "".join(a + (f"<code>{c}</code>" if c is not None else "") for a, c in zip(bold, [*pieces[1::2], None], strict=True))


def _section(section: Section, number: int, figures: list[str]) -> str:
    import pandas

    heading, *items = section
    parts = [f'<section aria-labelledby="s{number}"><h2 id="s{number}">{_plain(heading)}</h2>']
    for item in items:
        if item is None or (isinstance(item, str) and not item.strip()):
            continue
        if isinstance(item, str):
            parts.append(paragraphs(item))
        elif isinstance(item, (Table, pandas.DataFrame)):
            parts.append(table_html(item if isinstance(item, Table) else Table(item, str(heading))))
        elif isinstance(item, Picture) or hasattr(item, "to_json"):
            parts.append(_picture(item if isinstance(item, Picture) else Picture(item), figures))
        else:
            raise UserError(f"Section {heading!r}: {type(item).__name__} is refused. Give texts, tables and figures.")
    return "\n".join([*parts, "</section>"])


def _picture(picture: Picture, figures: list[str]) -> str:
    data = data_of(picture.figure) if picture.data is None else picture.data
    if data.empty:
        raise UserError("A figure has no readable data. Give the table behind it: Picture(figure, data=...).")
    meta = picture.figure.layout.meta
    caption = picture.caption or (meta.get("caption", "") if isinstance(meta, dict) else "") or picture.figure.layout.title.text or "Figure"
    shown, part = data, ""
    if len(data) > MAX_ROWS:
        shown = data.iloc[:: math.ceil(len(data) / MAX_ROWS)]
        part = f" ({len(shown)} of {len(data)} rows, evenly spaced)"
    figures.append(picture.figure.to_json())
    number = len(figures)
    return (f'<figure><div class="plot" id="plot{number}" role="group" aria-label="{_plain(caption)}"></div>'
            f"<figcaption>Figure {number}. {_plain(caption)}</figcaption>"
            f"<details><summary>Data of figure {number}</summary>"
            f"{table_html(Table(shown, f'Data of figure {number}{part}'))}</details></figure>")


def _scripts(figures: Sequence[str]) -> str:
    if not figures:
        return f"<script>{_JUMP}</script>"
    from plotly.offline import get_plotlyjs

    # inside JSON this sign can only stand in strings, where its escape says the same and ends no script
    data = json.dumps([json.loads(f) for f in figures], allow_nan=False).replace("<", "\\u003c")
    return (f'<script>{get_plotlyjs()}</script><script type="application/json" id="figures">{data}</script>'
            f"<script>const CONFIG = {json.dumps(CONFIG)};{_JUMP}{_DRAW}</script>")


def _heading(column: Any) -> str:
    """Column title; the name of a metric in it gets its unit."""
    words = str(column).split(" ")
    return " ".join(METRICS[w].label if w in METRICS else w for w in words)


def _is_numeric(column: pandas.Series) -> bool:
    """Whether a column holds numbers, be it as text for people: a half-width or a thousands separator may be with them."""
    import pandas

    if pandas.api.types.is_numeric_dtype(column.dtype):
        return not pandas.api.types.is_bool_dtype(column.dtype)
    there = [v for v in column if not (v is None or (isinstance(v, float) and math.isnan(v)) or v == ABSENT)]
    return bool(there) and all(re.fullmatch(r"[-−+]?[\d,.]+(e[-+]?\d+)?( ± \S+)?", cell_text(v)) for v in there)


def _is_figure(value: Any) -> bool:
    """A mean with its half-width in print: it stays on one line like a number."""
    return isinstance(value, str) and " ± " in value and len(value) < 30


def _side(numeric: bool) -> str:
    # text is told to stand left, because a notebook has a style of its own, in which every cell stands right
    return ' class="number"' if numeric else ' style="text-align:left"'


def _plain(value: Any) -> str:
    return html.escape(str(value))


_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --stripe: #f6f8fa; --link: #0550ae; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171a; --ink: #e6e8ea; --soft: #a3abb3; --line: #3a4148; --stripe: #1c2126; --link: #79b8ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1rem; } h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; }
p, li { max-width: 46rem; } a { color: var(--link); }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin: 0; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -99rem; } .skip:focus { left: 1rem; top: .5rem; background: var(--paper); padding: .4rem; }
code { font-family: ui-monospace, monospace; font-size: .9em; background: var(--stripe); padding: .1em .3em; border-radius: 3px; }
.wide { overflow-x: auto; margin: .8rem 0; } table { border-collapse: collapse; min-width: 24rem;
  font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; }
caption span { display: block; position: sticky; left: 0; width: fit-content; max-width: min(46rem, calc(100vw - 3rem)); }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; max-width: 22rem; }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; } tbody th { font-weight: 600; } td.number { white-space: nowrap; }
.many td:not(.number) { min-width: 9rem; } .many tbody th { min-width: 10rem; }
tbody tr:nth-child(even) { background: var(--stripe); } .number { text-align: right; }
figure { margin: 1.2rem 0 1.8rem; } figcaption { color: var(--soft); font-size: .9rem; max-width: 52rem; }
details { margin-top: .4rem; } summary { cursor: pointer; color: var(--link); width: fit-content; }
details .wide { max-height: 22rem; overflow: auto; }
footer { margin-top: 3rem; border-top: 1px solid var(--line); color: var(--soft); font-size: .85rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
@media print { .wide, details .wide { overflow: visible; max-height: none; } .skip, nav { display: none; } }
"""

# MLflow shows a report from a blob: address in a sandboxed frame, where browsers refuse to follow links within the page.
_JUMP = """
if (location.protocol === "blob:") for (const link of document.querySelectorAll('a[href^="#"]')) link.addEventListener("click", event => {
  const place = document.getElementById(link.hash.slice(1));
  event.preventDefault();
  place.tabIndex = -1;
  place.focus();
  place.scrollIntoView();
});
"""

# Plotly's own text colour serves both pages; here the page is known, so the figures take its full contrast.
_DRAW = """
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
function draw() {
  const css = getComputedStyle(document.documentElement);
  const [ink, line, paper] = ["--ink", "--line", "--paper"].map(name => css.getPropertyValue(name).trim());
  figures.forEach((figure, i) => {
    const layout = {...figure.layout, autosize: true, font: {...figure.layout.font, color: ink},
                    hoverlabel: {font: {color: ink}, bgcolor: paper}};
    for (const key of Object.keys(layout)) if (/^[xy]axis/.test(key)) layout[key] = {...layout[key], gridcolor: line, zerolinecolor: line};
    Plotly.react("plot" + (i + 1), figure.data, layout, {responsive: true, ...CONFIG});
  });
}
draw();
dark.addEventListener("change", draw);
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header><h1>{title}</h1><nav aria-label="Sections"><ul>{contents}</ul></nav></header>
<main id="main">
<noscript><p>The figures need JavaScript; the tables under them hold the same data.</p></noscript>
{body}
</main>
<footer><h2>Provenance</h2><dl>{footer}</dl></footer>
{scripts}
</body>
</html>
"""
