"""One page: navigation, style, filter, content. No address outside is ever fetched, so that it opens from a disk."""

from __future__ import annotations

import base64
import hashlib
import html
import re

PROJECT = "Efficient Workbench"

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --stripe: #f6f8fa; --link: #0550ae;
  --good: #1a7f37; --bad: #b35900; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171a; --ink: #e6e8ea; --soft: #a3abb3; --line: #3a4148; --stripe: #1c2126; --link: #79b8ff;
    --good: #56d364; --bad: #f0a45d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.8rem; line-height: 1.25; } h2 { font-size: 1.25rem; margin: 2rem 0 .5rem; } h3 { font-size: 1.05rem; }
p, li { max-width: 48rem; } a { color: var(--link); } .soft, caption { color: var(--soft); font-size: .9rem; }
nav ul { list-style: none; padding: 0 0 .8rem; margin: 0; display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; }
header nav { border-bottom: 1px solid var(--line); } nav [aria-current] { color: var(--ink); font-weight: 600; text-decoration: none; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.cards { list-style: none; padding: 0; display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: 1rem; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 1rem; min-width: 0; overflow-wrap: anywhere; }
.card h3 { margin: 0 0 .3rem; } .card p { margin: .2rem 0; } .card ul { padding-left: 1.1rem; font-size: .9rem; }
summary { cursor: pointer; color: var(--link); }
.card.wait { border-style: dashed; }
.verdict { font-weight: 600; white-space: nowrap; margin-right: .8rem; } .holds { color: var(--good); } .fails { color: var(--bad); }
.filter input { font: inherit; padding: .35rem .6rem; width: min(24rem, 100%); border: 1px solid var(--soft); border-radius: 6px;
  background: var(--paper); color: var(--ink); } .filter label { margin-right: .5rem; }
.rows { list-style: none; padding: 0; } .rows li { padding: .3rem 0; border-bottom: 1px solid var(--line); max-width: none; }
code { font-family: ui-monospace, monospace; font-size: .9em; background: var(--stripe); padding: .1em .3em; border-radius: 3px; }
pre { background: var(--stripe); padding: .8rem 1rem; overflow-x: auto; border-radius: 6px; } pre code { padding: 0; background: none; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; } caption { text-align: left; padding-bottom: .4rem; }
th, td { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
tbody th { font-weight: 600; } @media (min-width: 45.01rem) { tbody th { white-space: nowrap; } } .number { text-align: right; }
@media (max-width: 45rem) {
  body { padding: 1rem; } table, caption, tbody, tr, tbody th, td { display: block; } thead { display: none; }
  tr { border-bottom: 1px solid var(--line); padding: .5rem 0; } th, td { border: 0; padding: 0; text-align: left; }
  td[data-label]::before { content: attr(data-label) ": "; color: var(--soft); } }
[hidden] { display: none !important; }
"""

SCRIPT = """
for (const box of document.querySelectorAll(".filter")) {
  const input = box.querySelector("input"), told = box.querySelector("[role=status]");
  const rows = [...document.querySelectorAll(input.dataset.rows)];
  const show = () => {
    const words = input.value.toLowerCase().split(/\\s+/).filter(Boolean);
    for (const row of rows) {
      const text = (row.dataset.words || "") + " " + row.textContent.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
    }
    for (const part of document.querySelectorAll("main section")) part.hidden = !part.querySelector(input.dataset.rows + ":not([hidden])");
    const left = rows.filter(row => !row.hidden).length;
    told.textContent = words.length ? `${left} of ${rows.length}` : "";
  };
  input.addEventListener("input", show);
  box.hidden = false;
  show();
}
"""
"""Hides the rows that lack one of the words typed; without it, all rows are there and no box."""

PLACES = {"index.html": "Gallery", "methods/index.html": "Methods", "tasks.html": "Tasks", "adding_a_method.html": "Add a method",
          "reading_the_meters.html": "Read the meters"}
DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; script-src 'sha256-{DIGEST}'"
NOTEBOOK_POLICY = ("default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; "
                   "font-src data:")
NOTEBOOK_STYLE = """<style>
:root { --jp-mirror-editor-number-color: #006b00; --jp-mirror-editor-comment-color: #2f6666; --jp-mirror-editor-operator-color: #8a12d4;
  --jp-cell-inprompt-font-color: #57606a; --jp-cell-outprompt-font-color: #57606a; --jp-cell-prompt-not-active-font-color: #57606a; }
.jp-InputPrompt, .jp-OutputPrompt { color: #57606a; opacity: 1 !important; } .highlight .ow { color: #8a12d4; }
.jp-RenderedHTMLCommon a { text-decoration: underline !important; }
</style>"""
"""The exporter's own colours have too little contrast, and its links are told by colour alone."""


def page(title: str, body: str, where: str) -> str:
    """A whole page; ``where`` is its path below the folder of all pages."""
    up = "../" * where.count("/")

    def current(place: str) -> str:
        section = where.rpartition("/")[0]
        return ' aria-current="page"' if place == where else ' aria-current="true"' if section and place.startswith(f"{section}/") else ""

    places = "".join(f'<li><a href="{up}{place}"{current(place)}>{name}</a></li>' for place, name in PLACES.items())
    script = f"<script>{SCRIPT}</script>" if 'class="filter"' in body else ""
    head = title if title == PROJECT else f"{title} · {PROJECT}"
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(head)}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            f'<style>{STYLE}</style></head><body><header><nav aria-label="Pages"><ul>{places}</ul></nav></header>'
            f"<main><h1>{html.escape(title)}</h1>{body}</main>{script}</body></html>\n")


def filter_box(label: str, rows: str) -> str:
    """A search field for the elements that the CSS selector ``rows`` names; it appears where scripts run."""
    return (f'<p class="filter" hidden><label for="filter">{html.escape(label)}</label>'
            f'<input id="filter" type="search" data-rows="{html.escape(rows)}"> <span class="soft" role="status"></span></p>')


def labelled(table: str) -> str:
    """A table whose cells say their column, for screens too narrow for columns."""
    headings = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', table)

    def row(match: re.Match[str]) -> str:
        names = iter(headings[1:])
        return re.sub(r"<td", lambda _: f'<td data-label="{next(names)}"', match[0])

    return re.sub(r"<tr><th scope=\"row\".*?</tr>", row, table, flags=re.S)


def offline(text: str) -> str:
    """The page of an executed notebook without the scripts that its exporter would fetch, and with a policy against any other.

    Widgets go too, which were progress bars; figures stay, whose script is in the page. A page that is so already comes back as it is.
    """
    if NOTEBOOK_STYLE not in text:
        text = text.replace("</head>", f"{NOTEBOOK_STYLE}</head>", 1)
    if NOTEBOOK_POLICY in text:
        return text

    def kept(script: re.Match[str]) -> str:
        fetches = re.search(r'\bsrc="https?:|application/vnd\.jupyter', script[1]) or "addWidgetsRenderer" in script[2]
        return "" if fetches else script[0]

    text = re.sub(r"<script\b([^>]*)>(.*?)</script>", kept, text, flags=re.S)
    return text.replace("<head>", f'<head><meta http-equiv="Content-Security-Policy" content="{NOTEBOOK_POLICY}">', 1)


def rendered(markdown: str) -> str:
    """Markdown as HTML; HTML inside it is shown, not obeyed."""
    from mistune import create_markdown

    # a block of code may be wider than the screen: by keyboard, too, it can be scrolled
    return create_markdown(escape=True, plugins=["table"])(markdown).replace("<pre>", '<pre tabindex="0">')
