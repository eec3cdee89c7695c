"""What in the README is generated: ``python -m tests.readme`` writes the table of methods from the code, ``… --picture`` takes the
explorer's picture in a real JupyterLab (minutes)."""

from __future__ import annotations

import io
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from workbench import registry

if TYPE_CHECKING:
    from playwright.sync_api import Page

README = Path(__file__).parent.parent / "README.md"
PICTURE = README.parent / "notebooks" / "explorer.png"
BLOCK = re.compile(r"(<!-- methods: .*? -->\n).*?(<!-- /methods -->)", re.S)
SHOWN = (("full_precision", "12"), ("binaryconnect", "12"), ("askewsgd", "12"), ("askewsgd", "2000"))
"""Methods and epochs of the picture's runs; the last is still going when it is taken."""


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


def take_picture(path: Path) -> None:
    """Run :data:`SHOWN` from the explorer's form, and save what it looks like while the last one goes, in 256 colours."""
    from PIL import Image

    from tests.browser import browser_page, jupyter_lab, open_notebook, run_cell

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        with jupyter_lab(Path(folder) / "lab", {"WORKBENCH_HOME": str(home)}) as lab, browser_page(1500, 1900) as page:
            lab.write("explorer.ipynb", "import workbench\nworkbench.explore(tracking='off')")
            open_notebook(page, lab, "explorer.ipynb")
            run_cell(page, 0)
            page.wait_for_selector(".wb", timeout=120_000)
            for method, epochs in SHOWN:
                _run(page, method, epochs)
            page.wait_for_timeout(20_000)  # some of the last run's curve
            shot = page.locator(".wb").first.screenshot()
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(256).save(path, optimize=True)


def _run(page: Page, method: str, epochs: str) -> None:
    explorer = page.locator(".wb")
    explorer.get_by_label("Method", exact=True).select_option(label=f"{registry.methods()[method].title} ({method})")
    explorer.get_by_label("Task", exact=True).select_option("digits/mlp")
    field = page.locator(".wb-field").get_by_label("epochs", exact=True)
    page.wait_for_timeout(5_000)  # the method's form takes the place of the one before
    field.fill(epochs)
    field.press("Tab")
    page.wait_for_timeout(2_000)
    assert field.input_value() == epochs
    page.locator(".wb button:not([disabled])", has_text="Run").first.click()
    state = "running" if (method, epochs) == SHOWN[-1] else "finished"
    page.wait_for_selector(f".wb-status [role=status]:has-text('{state}')", timeout=240_000)


if __name__ == "__main__":
    if "--picture" in sys.argv[1:]:
        take_picture(PICTURE)
    else:
        README.write_text(with_table(README.read_text()))
