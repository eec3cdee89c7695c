"""One page: navigation, style, content. No script and no address outside, so that it opens from a disk."""

from __future__ import annotations

import html

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --stripe: #f6f8fa; --link: #0550ae; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171a; --ink: #e6e8ea; --soft: #a3abb3; --line: #3a4148; --stripe: #1c2126; --link: #79b8ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, sans-serif; }
h1 { font-size: 1.8rem; line-height: 1.25; } h2 { font-size: 1.25rem; margin: 2rem 0 .5rem; } h3 { font-size: 1.05rem; margin: 0 0 .3rem; }
p, li { max-width: 48rem; } a { color: var(--link); } .soft, caption { color: var(--soft); font-size: .9rem; }
nav ul { list-style: none; padding: 0 0 .8rem; margin: 0; display: flex; flex-wrap: wrap; gap: .3rem 1.4rem;
  border-bottom: 1px solid var(--line); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.cards { list-style: none; padding: 0; display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1rem; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 1rem; min-width: 0; overflow-wrap: anywhere; }
.card p { margin: .2rem 0; } .card ul { padding-left: 1.1rem; font-size: .9rem; } summary { cursor: pointer; color: var(--link); }
code { font-family: ui-monospace, monospace; font-size: .9em; background: var(--stripe); padding: .1em .3em; border-radius: 3px; }
pre { background: var(--stripe); padding: .8rem 1rem; overflow-x: auto; border-radius: 6px; } pre code { padding: 0; background: none; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; } caption { text-align: left; padding-bottom: .4rem; }
th, td { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
tbody th { font-weight: 600; white-space: nowrap; } .number { text-align: right; }
"""

PLACES = {"index.html": "Gallery", "methods/index.html": "Methods", "tasks.html": "Tasks", "adding_a_method.html": "Add a method",
          "reading_the_meters.html": "Read the meters"}


def page(title: str, body: str, depth: int = 0) -> str:
    """A whole page; ``depth`` is how many folders it lies below the first one."""
    up = "../" * depth
    places = "".join(f'<li><a href="{up}{where}">{name}</a></li>' for where, name in PLACES.items())
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:\">"
            f'<style>{STYLE}</style></head><body><nav aria-label="Pages"><ul>{places}</ul></nav>'
            f"<main><h1>{html.escape(title)}</h1>{body}</main></body></html>\n")


def rendered(markdown: str) -> str:
    """Markdown as HTML; HTML inside it is shown, not obeyed."""
    from mistune import create_markdown

    return create_markdown(escape=True, plugins=["table"])(markdown)
