"""The explorer in a real JupyterLab, driven by a real browser: what a person does in the first five minutes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser import Lab, browser_page, jupyter_lab, open_notebook, run_cell, why_not
from tests.conftest import TOY

if TYPE_CHECKING:
    from playwright.sync_api import Page

WHY_NOT = why_not("jupyterlab", "ipywidgets", "anywidget", "plotly")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]
LINES = ".wb .js-plotly-plot .scatterlayer .trace path.js-line"
STATUS = ".wb-status [role=status]"


def test_first_five_minutes(tmp_path: Path, record_property):
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "toy.py").write_text(TOY)
    env = {"WORKBENCH_HOME": str(tmp_path / "home"), "WORKBENCH_PLUGINS": str(tmp_path / "plugins")}
    with jupyter_lab(tmp_path / "lab", env) as lab, browser_page() as page:
        troubles: list[str] = []
        page.on("pageerror", lambda error: troubles.append(str(error)))
        explore = "import workbench\nworkbench.explore(tracking='off')"
        lab.write("explorer.ipynb", explore, "print(6 * 7)", explore)
        open_notebook(page, lab, "explorer.ipynb")
        run_cell(page, 0)
        page.wait_for_selector(".wb", timeout=60_000)
        choose_and_run(page)
        use_the_kernel_meanwhile(page)
        interrupt_the_kernel(page, lab)
        record_property("stop_s", stop_and_time(page))
        run_a_second_one(page)
        look_at_the_texts(page)
        reload_and_find_everything(page, lab)
        if where := os.environ.get("WORKBENCH_SCREENSHOT"):
            page.locator(".wb").first.screenshot(path=where)
        assert not troubles


def field(page: Page, name: str):
    return page.locator(".wb-field").get_by_label(name, exact=True)


def choose_and_run(page: Page) -> None:
    page.locator(".wb").get_by_label("Family", exact=True).select_option("testing")
    field(page, "steps").wait_for()
    assert page.locator(".wb").get_by_label("Method", exact=True).input_value() != ""
    assert page.locator(".wb").get_by_label("Task", exact=True).locator("option").all_inner_texts() == ["toy"]
    # what the form shows is what the kernel holds: no slider rounded anything on being displayed
    assert field(page, "steps").input_value() == "5"
    assert field(page, "lr").input_value() == "0.1"
    field(page, "lr").fill("-3")
    field(page, "lr").press("Tab")
    page.get_by_text("lr = -3 is refused").first.wait_for()
    assert page.locator(".wb button", has_text="Run").first.is_disabled()
    field(page, "lr").fill("1e-2")
    field(page, "steps").fill("5000")
    field(page, "sleep_s").fill("0.05")
    field(page, "sleep_s").press("Tab")
    page.locator(".wb button:not([disabled])", has_text="Run").first.click()
    page.wait_for_selector(f"{STATUS}:has-text('running')", timeout=60_000)
    page.wait_for_selector(LINES, state="attached", timeout=60_000)
    first = page.locator(LINES).first.get_attribute("d")
    page.wait_for_function("([css, old]) => document.querySelector(css).getAttribute('d') !== old", arg=[LINES, first])


def use_the_kernel_meanwhile(page: Page) -> None:
    run_cell(page, 1)
    page.locator(".jp-OutputArea-output", has_text="42").first.wait_for(timeout=10_000)
    assert "running" in page.locator(STATUS).first.inner_text()


def interrupt_the_kernel(page: Page, lab: Lab) -> None:
    """An interrupt is for the cell that runs; a run has a thread of its own and goes on."""
    lab.interrupt_kernels()
    first = page.locator(LINES).first.get_attribute("d")
    page.wait_for_function("([css, old]) => document.querySelector(css).getAttribute('d') !== old", arg=[LINES, first])
    assert "running" in page.locator(STATUS).first.inner_text()


def stop_and_time(page: Page) -> float:
    begin = time.perf_counter()
    page.locator(".wb button", has_text="Stop").first.click()
    page.wait_for_selector(f"{STATUS}:has-text('stopped')", timeout=5_000)
    took = time.perf_counter() - begin
    print(f"Stop was seen on screen after {took:.2f} s")
    return took


def run_with_the_keyboard_alone(page: Page) -> None:
    """From the search box to a finished run without a mouse; then the way back to the form as it was."""
    page.locator(".wb").get_by_label("Search").focus()
    page.keyboard.type("point plane")
    page.locator(".wb").get_by_label("Found").wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText.trim()") == "Run":
            break
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{STATUS}:has-text('from the cache')", timeout=60_000)
    page.locator(".wb").get_by_label("Search").fill("")


def run_a_second_one(page: Page) -> None:
    field(page, "steps").fill("8")
    field(page, "seed").fill("1")
    field(page, "seed").press("Tab")
    page.locator(".wb button", has_text="Run").first.click()
    page.wait_for_selector(f"{STATUS}:has-text('finished')", timeout=60_000)
    page.wait_for_function("([css, n]) => document.querySelectorAll(css).length === n", arg=[LINES, 2], timeout=60_000)
    table = page.locator(".wb-table").first.inner_text()
    assert all(word in table for word in ("stopped", "finished", "8/8"))
    dashes = page.locator(LINES).evaluate_all("lines => lines.map(l => l.style.stroke + l.style.strokeDasharray)")
    assert len(set(dashes)) == 2


def look_at_the_texts(page: Page) -> None:
    texts = {"Python": "workbench.run(", "Command line": "workbench run toy toy --seed 1", "Papermill": "papermill notebooks/run.ipynb"}
    page.locator(".wb").get_by_role("button", name="Copy as").first.click()
    for name, text in texts.items():
        shown = page.locator(f".wb textarea[title^='this run as {name}']:visible").first
        shown.wait_for()
        assert text in shown.input_value()
    page.locator(".wb").get_by_role("button", name="Runs", exact=True).first.click()


def reload_and_find_everything(page: Page, lab: Lab) -> None:
    """A saved notebook shows the same widgets again; an unsaved one finds them by calling ``explore`` once more."""
    page.keyboard.press("Control+s")
    end = time.monotonic() + 20
    while "widget-view" not in (lab.root / "explorer.ipynb").read_text():
        assert time.monotonic() < end, "the notebook was not saved"
        page.wait_for_timeout(100)
    page.goto(lab.address("explorer.ipynb").replace("reset&", ""))
    page.wait_for_selector(".wb", timeout=90_000)
    page.wait_for_function("([css, n]) => document.querySelectorAll(css).length === n", arg=[LINES, 2], timeout=60_000)
    table = page.locator(".wb-table").first.inner_text()
    assert all(word in table for word in ("stopped", "finished", "8/8"))
    assert field(page, "steps").first.input_value() == "8"
    page.get_by_text("| Idle").wait_for()
    run_cell(page, 2)
    page.wait_for_function("([css, n]) => document.querySelectorAll(css).length === n", arg=[LINES, 4], timeout=60_000)
    field(page, "seed").first.fill("2")
    field(page, "seed").first.press("Tab")
    page.locator(".wb button", has_text="Run").first.click()
    page.wait_for_function("([css, n]) => document.querySelectorAll(css).length === n", arg=[LINES, 6], timeout=60_000)
