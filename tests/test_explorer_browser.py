"""The explorer in a real JupyterLab, driven by a real browser: what a person does in the first five minutes."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser import (
    Lab,
    artifacts,
    browser_page,
    change_theme,
    jupyter_lab,
    kept_on_failure,
    open_notebook,
    run_cell,
    why_not,
)
from tests.conftest import TOY

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

if why_not() is None:
    from playwright.sync_api import TimeoutError

WHY_NOT = why_not("jupyterlab", "ipywidgets", "anywidget", "plotly")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]
LINES = ".wb .js-plotly-plot .scatterlayer .trace path.js-line"
STATUS = ".wb-status [role=status]"
GRAVE = ("serious", "critical")
AXE = importlib.util.find_spec("axe_playwright_python")
script = (Path(AXE.origin).parent / "axe.min.js").read_text() if AXE else None


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_first_five_minutes(tmp_path: Path, record_property, whole):
    """One notebook and one kernel: each step begins where the one before left the page. As a whole it takes a minute of an idle machine."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "toy.py").write_text(TOY)
    env = {"WORKBENCH_HOME": str(tmp_path / "home"), "WORKBENCH_PLUGINS": str(tmp_path / "plugins")}
    shots = artifacts(tmp_path)
    with jupyter_lab(tmp_path / "lab", env) as lab, browser_page() as page, kept_on_failure(page, shots / "explorer_failure.png"):
        troubles: list[str] = []
        page.on("pageerror", lambda error: troubles.append(str(error)))
        explore = "import workbench\nworkbench.explore(tracking='off')"
        lab.write("explorer.ipynb", explore, "print(6 * 7)", explore)
        open_notebook(page, lab, "explorer.ipynb")
        run_cell(page, 0)
        page.wait_for_selector(".wb", timeout=60_000)
        fills(page)
        choose_and_run(page)
        fill_every_width(page)
        use_the_kernel_meanwhile(page)
        interrupt_the_kernel(page, lab)
        record_property("stop_s", stop_and_time(page))
        run_a_second_one(page)
        switch_the_axis(page)
        if whole:
            run_with_the_keyboard_alone(page)
            see_a_run_fail(page)
            look_at_every_pane(page, shots)
            look_at_the_texts(page)
        reload_and_find_everything(page, lab, runs=4 if whole else 2)
        assert not troubles


@pytest.mark.slow
def test_a_slow_page_gets_its_figure_whole(tmp_path: Path):
    """On a page of an eighth of the speed plotly's megabytes take longer than the two seconds that a module of anywidget's has."""
    env = {"WORKBENCH_HOME": str(tmp_path / "home")}
    with jupyter_lab(tmp_path / "lab", env) as lab, browser_page() as page, kept_on_failure(page, artifacts(tmp_path) / "slow.png"):
        page.set_default_timeout(120_000)
        lab.write("explorer.ipynb", "import workbench\nworkbench.explore(tracking='off')")
        open_notebook(page, lab, "explorer.ipynb")
        page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": 8})
        run_cell(page, 0)
        page.wait_for_selector(".wb", timeout=120_000)
        fills(page)
        # set after the figure was made and before the page could draw it: it is told of that, too
        page.wait_for_function("() => document.querySelector('.wb .js-plotly-plot').layout.xaxis.title?.text === 'step'")
        page.get_by_text("Press Run: the curves appear here").first.wait_for(state="attached")


@pytest.mark.slow
def test_widgets_that_hear_nothing_of_the_kernel_show_and_copy_what_there_is(tmp_path: Path):
    """What anywidget does where a module takes more than two seconds to come: its model is given no message of the kernel's any more."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "toy.py").write_text(TOY)
    env = {"WORKBENCH_HOME": str(tmp_path / "home"), "WORKBENCH_PLUGINS": str(tmp_path / "plugins")}
    with jupyter_lab(tmp_path / "lab", env) as lab, browser_page() as page, kept_on_failure(page, artifacts(tmp_path) / "deaf.png"):
        page.set_default_timeout(120_000)
        page.add_init_script(
            "AbortSignal.timeout = () => { const c = new AbortController(); setTimeout(() => c.abort()); return c.signal; }")
        deaf: list[str] = []
        page.on("pageerror", lambda error: deaf.append(str(error)))
        lab.write("explorer.ipynb", "import workbench\nworkbench.explore(tracking='off')")
        open_notebook(page, lab, "explorer.ipynb")
        run_cell(page, 0)
        page.locator(".wb").get_by_label("Family", exact=True).select_option("testing")
        field(page, "sleep_s").wait_for()  # the method before has a learning rate, too
        field(page, "lr").fill("0.25")
        field(page, "lr").press("Tab")
        run_button(page).click()
        page.wait_for_function("() => document.querySelector('.wb-curves .js-plotly-plot')?.data?.[0]?.x?.length === 5")
        page.locator(".wb").get_by_role("button", name="Copy as").first.click()
        page.evaluate(
            "() => Object.defineProperty(navigator, 'clipboard', { value: { writeText: async text => { window.copied = text } } })")
        for name, text in (("Python", "'lr': 0.25"), ("Command line", "--set lr=0.25"), ("Papermill", '"lr": 0.25')):
            page.get_by_role("button", name=f"copy as {name}").click()
            page.wait_for_function("text => globalThis.copied?.includes(text)", arg=text)
        assert "Failed to initialize model" in " ".join(deaf)  # or nothing was tested


def field(page: Page, name: str):
    return page.locator(".wb-field").get_by_label(name, exact=True)


def run_button(page: Page):
    """Playwright waits with a click until it is enabled, which is when the form is valid."""
    return page.locator(".wb button").filter(has_text=re.compile(r"^\s*Run\s*$")).first


def curves_are(page: Page, count: int) -> None:
    page.wait_for_function("([css, n]) => document.querySelectorAll(css).length === n", arg=[LINES, count], timeout=60_000)


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
    assert run_button(page).is_disabled()
    field(page, "lr").fill("1e-2")
    field(page, "steps").fill("5000")
    field(page, "sleep_s").fill("0.05")
    field(page, "sleep_s").press("Tab")
    run_button(page).click()
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


def run_a_second_one(page: Page) -> None:
    field(page, "steps").fill("8")
    field(page, "seed").fill("1")
    field(page, "seed").press("Tab")
    run_button(page).click()
    page.wait_for_selector(f"{STATUS}:has-text('finished')", timeout=60_000)
    curves_are(page, 2)
    table = page.locator(".wb-table").first.inner_text()
    assert all(word in table for word in ("stopped", "finished", "8/8"))
    dashes = page.locator(LINES).evaluate_all("lines => lines.map(l => l.style.stroke + l.style.strokeDasharray)")
    assert len(set(dashes)) == 2


def fill_every_width(page: Page) -> None:
    """The figure is as wide as its place, when it opens, in a narrow and a wide window, and when a side bar comes or goes."""
    before = page.viewport_size
    fills(page)
    for width in (900, 1900):
        page.set_viewport_size({"width": width, "height": 1200})
        fills(page)
    place = page.locator(".wb-curves").first.bounding_box()["width"]
    page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")  # the window keeps its size
    page.wait_for_function("was => document.querySelector('.wb-curves').clientWidth > was + 50", arg=place)
    fills(page)
    page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
    page.set_viewport_size(before)
    fills(page)


def fills(page: Page) -> None:
    page.wait_for_function("""() => {
        const place = document.querySelector('.wb-curves'), drawn = place?.querySelector('.js-plotly-plot .main-svg');
        return drawn && place.clientWidth > 250 && Math.abs(drawn.clientWidth - place.clientWidth) <= 2;
    }""")


def switch_the_axis(page: Page) -> None:
    page.locator(".wb").get_by_label("against", exact=True).select_option("clock/wall_s")
    page.locator(".wb .xtitle", has_text="clock/wall_s [s]").first.wait_for(timeout=60_000)
    page.locator(".wb").get_by_label("log x").first.check()
    page.wait_for_function("() => document.querySelector('.wb .js-plotly-plot').layout.xaxis.type === 'log'")


def run_with_the_keyboard_alone(page: Page) -> None:
    """From the search box to a finished run, and to its curves in another pane and back, without a mouse."""
    page.locator(".wb").get_by_label("Search").focus()
    page.keyboard.type("point plane")
    found = page.locator(".wb").get_by_label("Found")
    found.wait_for()
    tab_to(page, found)
    page.keyboard.press("ArrowDown")  # the first hit is chosen
    tab_to(page, field(page, "seed"))
    page.keyboard.press("Control+a")
    page.keyboard.type("7")
    tab_to(page, run_button(page), "Shift+Tab")
    page.wait_for_function("() => document.querySelector('.wb .wb-text textarea').value.includes('seed=7')")
    page.keyboard.press("Enter")
    curves_are(page, 3)
    page.wait_for_function("css => document.querySelector(css).innerText.includes('s7') && document.querySelector(css).innerText"
                           ".includes('finished')", arg=STATUS, timeout=60_000)
    beside = page.locator(".wb").get_by_role("button", name="Side by side").first
    tab_to(page, beside)
    page.keyboard.press("Enter")
    page.locator(".wb").get_by_label("Compare by").first.wait_for()
    tab_to(page, page.locator(".wb").get_by_role("button", name="Runs", exact=True).first, "Shift+Tab")
    page.keyboard.press("Enter")
    page.locator(".wb").get_by_label("against", exact=True).first.wait_for()


def tab_to(page: Page, target: Locator, key: str = "Tab") -> None:
    """Press a key until ``target`` has the focus; every stop on the way is on the panel and can be seen."""
    wanted = target.element_handle()
    for _ in range(60):
        if wanted.evaluate("node => document.activeElement === node"):
            return
        page.keyboard.press(key)
        seen = page.evaluate("() => { const n = document.activeElement; return !!n.closest('.wb') && n.getClientRects().length > 0; }")
        assert seen, "the focus has left the panel"
    raise AssertionError("not reached with the keyboard")


def see_a_run_fail(page: Page) -> None:
    """It says why, the queue goes on, and the form still works."""
    field(page, "fail_at").fill("2")
    field(page, "fail_at").press("Tab")
    run_button(page).click()
    page.wait_for_selector(f"{STATUS}:has-text('failed')", timeout=60_000)
    assert "the toy broke" in page.locator(STATUS).first.inner_text()
    field(page, "fail_at").fill("-1")
    field(page, "seed").fill("1")
    field(page, "seed").press("Tab")
    run_button(page).click()
    page.wait_for_selector(f"{STATUS}:has-text('from the cache')", timeout=60_000)


def look_at_every_pane(page: Page, shots: Path) -> None:
    """Every pane in both themes: text that can be read, names for all controls, and a picture of each to be looked at."""
    faults: dict[str, list[str]] = {}
    panel, height = page.locator(".wb").first, page.viewport_size["height"]
    page.set_viewport_size({"width": page.viewport_size["width"], "height": 2600})
    for name in ("Side by side", "Inside", "Past runs", "Copy as", "Runs"):
        panel.get_by_role("button", name=name, exact=True).first.click()
        panel.locator(f".wb-panes .mod-active:has-text('{name}')").wait_for()
        if name == "Side by side":
            panel.get_by_text("runs in").first.wait_for(timeout=60_000)
        for theme in ("Light", "Dark"):
            change_theme(page, f"JupyterLab {theme}")
            page.wait_for_timeout(300)
            panel.screenshot(path=shots / f"explorer_{name.lower().replace(' ', '_')}_{theme.lower()}.png")
            if script is not None:
                page.evaluate(script)
                found = page.evaluate("axe.run('.wb')")["violations"]
                faults[f"{name}, {theme}"] = [f"{v['id']}: {v['nodes'][0]['html'][:160]}" for v in found if v["impact"] in GRAVE]
    change_theme(page, "JupyterLab Light")
    page.set_viewport_size({"width": page.viewport_size["width"], "height": height})
    assert not any(faults.values()), faults


def look_at_the_texts(page: Page) -> None:
    texts = {"Python": "workbench.run(", "Command line": "workbench run toy toy --seed 1", "Papermill": "papermill notebooks/run.ipynb"}
    page.locator(".wb").get_by_role("button", name="Copy as").first.click()
    for name, text in texts.items():
        shown = page.locator(".wb .wb-text").get_by_label(name, exact=True).locator("visible=true").first
        shown.wait_for()
        assert text in shown.input_value()
    page.locator(".wb").get_by_role("button", name="Runs", exact=True).first.click()


def held_are(page: Page, *counts: int) -> None:
    """Each view's figure of curves holds so many; those of other panes are figures of their own."""
    page.wait_for_function("""counts => {
        const held = [...document.querySelectorAll('.wb-curves .js-plotly-plot')].map(plot => (plot.data ?? []).length);
        return held.length === counts.length && held.every((n, i) => n === counts[i]);
    }""", arg=[*counts], timeout=60_000)


def reload_and_find_everything(page: Page, lab: Lab, runs: int) -> None:
    """A saved notebook shows the same widgets again; an unsaved one finds them by calling ``explore`` once more."""
    page.keyboard.press("Control+s")
    end = time.monotonic() + 20
    while "widget-view" not in (lab.root / "explorer.ipynb").read_text():
        assert time.monotonic() < end, "the notebook was not saved"
        page.wait_for_timeout(100)
    for _ in range(3):  # JupyterLab gives a kernel four seconds to tell of its widgets: where that was too short a person reloads once more
        page.goto(lab.address("explorer.ipynb").replace("reset&", ""))
        with contextlib.suppress(TimeoutError):
            page.wait_for_selector(".wb", timeout=30_000)
            break
    held_are(page, runs)
    fills(page)
    table = page.locator(".wb-table").first.inner_text()
    assert all(word in table for word in ("stopped", "finished", "8/8", *["failed"] * (runs > 2)))
    assert field(page, "steps").first.input_value() == "8"
    page.get_by_text("| Idle").wait_for()
    run_cell(page, 2)
    held_are(page, runs, runs)
    field(page, "seed").first.fill("2")
    field(page, "seed").first.press("Tab")
    run_button(page).click()
    held_are(page, runs + 1, runs + 1)
