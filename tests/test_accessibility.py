"""What assistive technology meets: axe-core's rules on every kind of page that we write, in a real browser, light and dark."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import numpy as np
import pandas
import pytest

from tests.bench import page as bench_page
from tests.browser import artifacts, browser_page, why_not
from tests.test_bench_page import rows
from tracking.figures import curves
from workbench.claims import checked
from workbench.study import Study, StudyParameters

WHY_NOT = why_not("axe_playwright_python", "plotly")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]
GRAVE = ("serious", "critical")


def faults(page, impacts=GRAVE) -> list[str]:
    """What axe-core finds of this weight, a line each. Its script comes with the package: nothing is fetched."""
    script = importlib.resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()
    page.evaluate(script)
    found = page.evaluate("axe.run()")
    assert len(found["passes"]) > 10  # it has looked
    return [f"{v['id']} ({v['impact']}): {v['nodes'][0]['html'][:160]}" for v in found["violations"] if v["impact"] in impacts]


@pytest.fixture(scope="module")
def tab():
    with browser_page(1280, 1000) as page:
        yield page


def see(tab, path: Path, folder: Path) -> dict[str, list[str]]:
    """The faults of a page in both colour schemes, with a screenshot of each."""
    found = {}
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        tab.goto(path.as_uri())
        for plot in tab.locator(".plot").all():
            plot.locator(".main-svg").first.wait_for(state="attached")
        found[scheme] = faults(tab)
        tab.screenshot(path=artifacts(folder) / f"{path.parent.name}_{path.stem}_{scheme}.png")
    return found


CLEAN = {"light": [], "dark": []}


def test_the_check_finds_what_is_wrong(tab, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text('<!DOCTYPE html><html><head></head><body><img src="data:,"><p style="color:#aaa;background:#bbb">grey</p></body></html>')
    tab.goto(bad.as_uri())
    tab.evaluate("0")
    found = tab.evaluate(importlib.resources.files("axe_playwright_python").joinpath("axe.min.js").read_text() + ";axe.run()")
    assert {"image-alt", "color-contrast", "html-has-lang", "document-title"} <= {v["id"] for v in found["violations"]}


def test_the_report_of_a_study(tab, tmp_path, own_home):
    study = Study("trial", "Trial", StudyParameters(profile="smoke", tracking_uri="off"), paper="a paper")
    study.claim(checked("a claim", "1", "2", True, "rule"))
    study.claim(checked("another claim", "1", "2", False, "rule"))
    noise = np.random.default_rng(0)
    seeds = [pandas.DataFrame({"step": range(5), "eval/accuracy": noise.random(5)}) for _ in range(3)]
    study.show(curves({"one": seeds, "two": seeds[:2]}, "eval/accuracy"), "Curves", "Some **text** with `code`.\n\n- and\n- a list")
    wide = pandas.DataFrame({"method": ["a", "b"], **{f"a long column, number {i}": [i, float("nan")] for i in range(30)}})
    study.show(wide, "A wide table")
    study.show(wide, "The same table again")
    study.close()
    assert see(tab, study.folder / "report.html", tmp_path) == CLEAN


def test_the_page_of_the_benchmarks(tab, tmp_path):
    assert see(tab, bench_page.write(tmp_path / "bench.html", list(rows()), {"hardware": "a machine"}), tmp_path) == CLEAN


@pytest.mark.slow
def test_the_pages_of_the_documentation(tab, tmp_path):
    """The first page, the lists, a guide with code and tables, and a method's page with a long example."""
    from workbench.docs import build

    build(tmp_path / "docs")
    for name in ("index", "methods/index", "methods/askewsgd", "tasks", "adding_a_method", "reading_the_meters"):
        path = tmp_path / "docs" / f"{name}.html"
        for scheme in ("light", "dark"):
            tab.emulate_media(color_scheme=scheme)
            tab.goto(path.as_uri())
            assert faults(tab) == [], f"{name}, {scheme}"
    tab.screenshot(path=artifacts(tmp_path) / "docs.png")
