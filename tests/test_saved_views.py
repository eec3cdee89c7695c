"""Saved views of MLflow's pages: the format without a server, and a browser on a real one."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.browser import browser_page, why_not
from tracking.errors import UserError
from tracking.metrics import METRICS
from tracking.store import Point, Store
from tracking.views import VIEWS, load, publish
from tracking.views.saved import KNOWN, MAX_TAG, TAG, parse, read_back

WHY_NOT = why_not("mlflow")
COSTS = {"clock/wall_s": 1.0, "comm/up_bytes": 1e6, "energy/model_j": 0.5}


def recorded(uri: str) -> Store:
    """A store with two methods, two seeds each: accuracy, and three of the costs."""
    store = Store(uri)
    for method in ("dense", "binary"):
        for seed in (0, 1):
            run_id = store.open_run({"key": f"{method}{seed}", "name": f"{method} s{seed}", "experiment": "bench", "created": time.time(),
                                     "params": {"method": method, "seed": seed}, "tags": {"workbench.method": method}})
            store.log_points(run_id, [Point(name, value, 1000 + step, step) for step in range(1, 5) for name, value in (
                ("eval/accuracy", 0.1 * step + 0.01 * seed), *((cost, unit * step) for cost, unit in COSTS.items()))])
            store.finish(run_id, "finished")
    return store


@pytest.mark.parametrize("id", VIEWS)
def test_every_view_is_whole_and_small(id):
    view = load(id)
    state = read_back(view.value(1, set(METRICS)))
    assert len(view.value(1, set(METRICS))) < MAX_TAG
    shown = [c for c in state["compareRunCharts"] if not c["deleted"]]
    assert len(shown) == len(view.charts)
    sections = {s["uuid"]: s["name"] for s in state["compareRunSections"]}
    assert [sections[c["metricSectionId"]] for c in shown] == [c.section for c in view.charts]
    assert len({c["uuid"] for c in state["compareRunCharts"]}) == len(state["compareRunCharts"])
    for card, chart in zip(shown, view.charts, strict=True):
        if chart.points:
            assert (card["type"], card["xaxis"]["key"], card["yaxis"]["key"]) == ("SCATTER", chart.x, chart.y)
        else:
            assert (card["type"], card["metricKey"]) == ("LINE", chart.y)
            assert card.get("selectedXAxisMetricKey", "step") == chart.x
    # the traps: sections sorted anew, runs hidden, cards that nobody asked for
    assert state["isAccordionReordered"] is True
    assert state["runsHiddenMode"] == "SHOWALL"
    silenced = {c["metricKey"] for c in state["compareRunCharts"] if c["deleted"]}
    assert silenced == set(METRICS) - {c.y for c in view.charts if not c.points}


def test_a_views_name_changes_with_its_content_and_empty_charts_go():
    view = load("costs")
    part = view.only({"eval/accuracy", "comm/up_bytes"})
    assert [(c.x, c.y) for c in part.charts] == [("comm/up_bytes", "eval/accuracy"), ("step", "eval/accuracy")]
    assert part.key != view.key
    assert load("costs").key == view.key
    assert view.metrics() <= set(METRICS)


@pytest.mark.parametrize(("data", "said"), [
    ({"name": "x"}, "missing \\['charts'\\]"), ({"name": "x", "charts": [], "extra": 1}, "unknown fields \\['extra'\\]"),
    ({"name": "x", "charts": [{"section": "s", "y": "eval/acuracy"}]}, "Did you mean 'eval/accuracy'"),
    ({"name": "x", "charts": [{"section": "s", "y": "eval/loss", "x": "step", "scatter": "eval/loss"}]}, "chart 1 is refused"),
])
def test_a_wrong_file_is_refused(data, said):
    with pytest.raises(UserError, match=said):
        parse("x", data)


def test_a_view_that_is_too_long_for_a_tag_is_refused(monkeypatch):
    monkeypatch.setattr("tracking.views.saved.MAX_TAG", 500)
    with pytest.raises(UserError, match="MLflow allows 500"):
        load("costs").value(1)


def test_publishing_again_replaces_ours_and_keeps_a_persons(uri):
    store = recorded(uri)
    experiment = store.experiment("bench")
    store.client.set_experiment_tag(experiment, f"{TAG}somebody", "{}")
    store.client.set_experiment_tag(experiment, f"{TAG}workbench-costs-0ld", "{}")
    published = publish("bench", tracking=uri)
    assert published.note == ""
    assert set(published.links) == {load(v).name for v in ("costs", "tradeoffs")}  # no losses were reported
    tags = {k: v for k, v in store.client.get_experiment(experiment).tags.items() if k.startswith(TAG)}
    assert f"{TAG}somebody" in tags
    assert f"{TAG}workbench-costs-0ld" not in tags
    for name, link in published.links.items():
        (tag,) = [t for t, v in tags.items() if json.loads(v).get("name") == name]
        assert f"viewStateShareKey={tag.removeprefix(TAG)}" in link
    assert publish("bench", tracking=uri).links == published.links
    with pytest.raises(UserError, match="no experiment 'bensh'"):
        publish("bensh", tracking=uri)
    with pytest.raises(UserError, match="Tracking is off"):
        publish("bench", tracking="off")


def test_the_command_prints_the_links(uri, monkeypatch, capsys):
    from tracking.views.__main__ import main

    recorded(uri)
    monkeypatch.setattr("sys.argv", ["views", "bench", "--tracking", uri, "--view", "costs"])
    assert main() == 0
    said = capsys.readouterr().out
    assert said.startswith("bench\n  Accuracy and what it cost: http")
    monkeypatch.setattr("sys.argv", ["views", "nowhere", "--tracking", uri])
    assert main() == 2
    assert "no experiment 'nowhere'" in capsys.readouterr().err


@pytest.mark.parametrize("version", ["2.22.0", "4.0.0", "unknown"])
def test_another_version_is_told_and_the_report_named(uri, monkeypatch, version):
    store = recorded(uri)
    monkeypatch.setattr("tracking.views.publishing.server_version", lambda _: version)
    published = publish("bench", tracking=uri, report="/somewhere/report.html")
    assert version in published.note
    assert "/somewhere/report.html" in published.note
    assert KNOWN[-1] in published.note
    assert [*published.links] == ["all runs"]
    assert not [t for t in store.client.get_experiment(store.experiment("bench")).tags if t.startswith(TAG)]


@pytest.mark.browser
@pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
def test_the_real_server_shows_the_published_view(uri, tmp_path: Path, monkeypatch):
    from tracking import server

    recorded(uri)
    process, url = server.start(tmp_path / "home", port=0, uri=uri)
    try:
        published = publish("bench", tracking=url)
        with browser_page(1400, 1300) as page:
            page.goto(published.links[load("costs").name])
            for section in ("Accuracy by time", "Accuracy by bytes sent", "Accuracy by joules", "Accuracy by steps"):
                page.get_by_text(section, exact=True).first.wait_for(timeout=60_000)
            page.get_by_text("Group: binary").first.wait_for()  # grouped by method
            names = page.locator("body").inner_text()
            assert names.index("Accuracy by time") < names.index("Accuracy by bytes sent") < names.index("Accuracy by joules")
            assert "Other metrics" not in names
            page.locator(".js-plotly-plot .scatterlayer .trace").first.wait_for(state="attached")
            page.screenshot(path=tmp_path / "view.png")
            page.goto(published.links[load("tradeoffs").name])
            page.get_by_text("Accuracy against joules", exact=True).first.wait_for(timeout=60_000)
    finally:
        server.stop(process)
