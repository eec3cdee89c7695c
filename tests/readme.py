"""Generate the README's table of methods from the code: ``python -m tests.readme``."""

from __future__ import annotations

import re
from pathlib import Path

from workbench import registry

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"(<!-- methods: .*? -->\n).*?(<!-- /methods -->)", re.S)


def table() -> str:
    """The table of methods as Markdown."""
    rows = ["| id | method | family | what it does | paper |", "|---|---|---|---|---|"]
    for e in registry.methods().values():
        paper = f"[{e.paper}]({e.paper_url})" if e.paper_url else e.paper
        rows.append(f"| `{e.id}` | {e.title} | {e.family} | {e.summary} | {paper} |")
    return "\n".join(rows)


def with_table(text: str) -> str:
    """``text`` with the table between its markers brought up to date."""
    return BLOCK.sub(lambda m: f"{m[1]}{table()}\n{m[2]}", text)


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
