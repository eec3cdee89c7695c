"""The explorer in a real JupyterLab beside a real MLflow server: a run is tracked, followed, published and taken back into the form."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser import artifacts, browser_page, jupyter_lab, kept_on_failure, open_notebook, run_cell, why_not
from tests.conftest import TOY
from tests.test_explorer_browser import STATUS, field, run_button
from tracking import server
from tracking.store import Store
from tracking.views import load

WHY_NOT = why_not("jupyterlab", "ipywidgets", "anywidget", "plotly", "mlflow")
pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]


def test_from_the_form_to_mlflow_and_back(tmp_path: Path):
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "toy.py").write_text(TOY)
    home, shots = tmp_path / "home", artifacts(tmp_path)
    process, url = server.start(home, port=0)
    env = {"WORKBENCH_HOME": str(home), "WORKBENCH_PLUGINS": str(tmp_path / "plugins")}
    try:
        with jupyter_lab(tmp_path / "lab", env) as lab, browser_page() as page, kept_on_failure(page, shots / "explorer_mlflow.png"):
            lab.write("explorer.ipynb", f"import workbench\nworkbench.explore(tracking={url!r})")
            open_notebook(page, lab, "explorer.ipynb")
            run_cell(page, 0)
            panel = page.locator(".wb").first
            panel.wait_for(timeout=60_000)
            panel.get_by_label("Family", exact=True).select_option("testing")
            for seed in (3, 4):
                field(page, "steps").fill("12")
                field(page, "lr").fill("0.05")
                field(page, "seed").fill(str(seed))
                field(page, "seed").press("Tab")
                run_button(page).click()
                page.wait_for_selector(f"{STATUS}:has-text('s{seed} finished')", timeout=120_000)
            run_id = the_link_shows_the_curves(page, shots, url)
            the_views_show_the_runs(page, shots)
            the_run_comes_back_into_the_form(page, shots, run_id)
    finally:
        server.stop(process, timeout_s=1)


def the_link_shows_the_curves(page, shots: Path, url: str) -> str:
    """Each finished run has a link, and the page behind it the run's own figures and curves. Returns the run id of the first."""
    links = page.locator(".wb-table a", has_text="MLflow")
    links.nth(1).wait_for(timeout=60_000)  # it comes when the run is shipped
    with page.context.expect_page() as opened:
        links.first.click()
    shown = opened.value
    shown.set_viewport_size({"width": 1400, "height": 1300})
    shown.get_by_text("toy toy s3").first.wait_for(timeout=60_000)
    run_id = shown.url.partition("/runs/")[2][:32]
    run = Store(url).client.get_run(run_id)
    assert run.info.run_name == "toy toy s3"
    assert run.data.params["seed"] == "3"
    loss = run.data.metrics["eval/loss"]
    shown.get_by_text(f"{loss:.4g}"[:5]).first.wait_for(timeout=60_000)  # in the table of metrics, with MLflow's number of digits
    shown.screenshot(path=shots / "explorer_mlflow_run.png")
    shown.get_by_role("tab", name="Model metrics").click()
    shown.locator(".js-plotly-plot .scatterlayer .trace").first.wait_for(state="attached", timeout=60_000)
    shown.screenshot(path=shots / "explorer_mlflow_curves.png")
    shown.close()
    return run_id


def the_views_show_the_runs(page, shots: Path) -> None:
    """Published from the pane, opened by its link: both runs are there under the sections of the view."""
    panel = page.locator(".wb").first
    panel.get_by_role("button", name="Side by side", exact=True).first.click()
    panel.get_by_text("2 runs in 1 group").first.wait_for(timeout=60_000)
    panel.get_by_role("button", name="MLflow views").click()
    link = panel.get_by_role("link", name=load("losses").name)
    link.wait_for(timeout=60_000)
    panel.screenshot(path=shots / "explorer_mlflow_published.png")
    with page.context.expect_page() as opened:
        link.click()
    shown = opened.value
    shown.set_viewport_size({"width": 1400, "height": 1300})
    shown.get_by_text("You're viewing a shared view").wait_for(timeout=60_000)
    for seed in (3, 4):
        shown.get_by_text(f"toy toy s{seed}").first.wait_for(timeout=60_000)
    shown.locator(".js-plotly-plot .scatterlayer .trace").first.wait_for(state="attached", timeout=60_000)
    shown.screenshot(path=shots / "explorer_mlflow_view.png")
    shown.close()


def the_run_comes_back_into_the_form(page, shots: Path, run_id: str) -> None:
    panel = page.locator(".wb").first
    panel.get_by_role("button", name="Reset").first.click()
    page.wait_for_function("() => document.querySelector('.wb .wb-text textarea').value.includes('seed=0')")
    panel.get_by_role("button", name="Past runs", exact=True).first.click()
    panel.get_by_label("From", exact=True).select_option("MLflow")
    panel.get_by_text("2 runs in http").first.wait_for(timeout=60_000)
    assert panel.get_by_label("Runs", exact=True).locator("option").count() == 2
    panel.get_by_label("or id or link").fill(run_id)
    panel.get_by_label("or id or link").press("Tab")
    panel.get_by_role("button", name="Into the form").locator("visible=true").click()
    page.wait_for_function("() => document.querySelector('.wb .wb-text textarea').value.includes('seed=3')", timeout=60_000)
    assert [field(page, name).input_value() for name in ("steps", "lr", "seed")] == ["12", "0.05", "3"]
    panel.screenshot(path=shots / "explorer_mlflow_past.png")
