"""Saved views of MLflow's pages: their format and their publishing; a browser sees them in test_server.py."""

from __future__ import annotations

import html
import json
from contextlib import closing
from dataclasses import replace
from urllib.parse import unquote

import pytest

from tests.tracking_helpers import make_run, recorded, wait_for
from tracking import notes
from tracking.errors import UserError
from tracking.folder import RunFolder
from tracking.journal import Journal
from tracking.metrics import METRICS
from tracking.recorder import Recorder
from tracking.shipping import Shipper
from tracking.store import ABOUT, COLOUR, GROUP, Store
from tracking.styles import style_of
from tracking.views import VIEWS, links_of, load, publish
from tracking.views.saved import KNOWN, MAX_TAG, TAG, known_metrics, parse, read_back
from workbench.claims import checked
from workbench.grouping import Group, _label
from workbench.study import Study, StudyParameters


@pytest.mark.parametrize("id", VIEWS)
def test_every_view_is_whole_and_small(id):
    view = load(id)
    state = read_back(view.value(1, set(METRICS)))
    assert len(view.value(1, set(METRICS))) < MAX_TAG
    assert state["searchFilter"] == "params.`method` LIKE '%'"  # the parents of studies have no figures
    if view.columns:
        named = [c.partition(".`") for c in state["selectedColumns"]]
        assert [name[:-1] for _, _, name in named] == [*view.columns]
        assert [kind for kind, _, _ in named] == ["metrics" if c in METRICS else {GROUP: "tags"}.get(c, "params") for c in view.columns]
        assert state["columnOrder"] == ["attributes.`Run Name`", *state["selectedColumns"]]
        assert state["columnWidths"][f"tags.`{GROUP}`"] > 200  # else what tells runs apart is cut off
        assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`eval/accuracy`", False)
        return
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
    assert state["runsHiddenMode"] == "SHOW_ALL"
    silenced = {c["metricKey"] for c in state["compareRunCharts"] if c["deleted"]}
    assert silenced == set(METRICS) - {c.y for c in view.charts if not c.points}
    assert known_metrics(view.value(1, set(METRICS))) == set(METRICS)


def test_empty_charts_go_and_the_link_stays():
    view = load("costs")
    part = view.only({"eval/accuracy", "comm/up_bytes"})
    assert [(c.x, c.y) for c in part.charts] == [("comm/up_bytes", "eval/accuracy"), ("step", "eval/accuracy")]
    assert part.key == view.key == load("costs").key
    assert view.only({"comm/up_bytes"}) is None
    assert replace(view, group_by=("task",), key="").key != view.key
    table = load("runs").only({"eval/loss", "clock/wall_s"})
    assert table.columns == (GROUP, "seed", "eval/loss", "clock/wall_s")
    state = read_back(table.value(1, {"eval/loss", "clock/wall_s"}))
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`eval/loss`", True)  # less is better
    assert load("runs").only({"train/epoch"}) is None
    for id in VIEWS:
        assert load(id).metrics() <= set(METRICS)


@pytest.mark.parametrize(("data", "said"), [
    ({"name": "x"}, "missing \\['charts'\\]"), ({"name": "x", "charts": [], "extra": 1}, "unknown fields \\['extra'\\]"),
    ({"name": "x", "charts": [{"section": "s", "y": "eval/acuracy"}]}, "Did you mean 'eval/accuracy'"),
    ({"name": "x", "charts": [], "columns": []}, "charts or columns, not both"), ({"name": "x"}, "missing"),
    ({"name": "x", "columns": ["seed", "eval/los"]}, "Did you mean 'eval/loss'"),
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
    assert set(published.links) == {load(v).name for v in ("costs", "runs", "tradeoffs")}  # no losses were reported
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


def test_a_run_that_ends_brings_the_views_up_to_date_and_keeps_their_links(uri, tmp_path):
    """Recorded by the recorder itself; what is published tells which metrics others reported, without asking for all runs."""
    links = {}
    for key, more in (("k1", {}), ("k2", {"comm/up_bytes": 3.0})):
        folder = make_run(tmp_path / key, key, note="**A method** on a task.")
        with Journal(folder.journal_path) as journal:
            journal.append(1, {"eval/accuracy": 0.5, "train/loss": 2.0}, 1_700_000_000_000)
            journal.append(2, {"eval/accuracy": 0.25, "clock/wall_s": 1.5, **more}, 1_700_000_001_000)
        folder.write_status("finished")
        recorder = Recorder(folder, uri).start()
        assert recorder.close(60) == 0
        links[key] = links_of([folder], uri)
        run = Store(uri).client.get_run(recorder.run_id)
    assert links["k1"] == links["k2"]
    assert set(links["k1"]) == {load(v).name for v in ("costs", "losses", "runs", "tradeoffs")}
    experiment = Store(uri).client.get_experiment(run.info.experiment_id)
    for id in ("costs", "runs"):
        known = known_metrics(experiment.tags[load(id).tag])
        assert known >= {"eval/accuracy", "clock/wall_s", "comm/up_bytes"}
    assert known_metrics(experiment.tags[load("costs").tag]) == {"eval/accuracy", "train/loss", "clock/wall_s", "comm/up_bytes"}
    assert links_of([folder], "off") == links_of([RunFolder(tmp_path / "none")], uri) == {}
    both = links_of([RunFolder(tmp_path / "k1"), folder], uri)
    *parts, mode = both["these runs side by side"].partition("?")[2].split("&")
    assert mode == "workflowType=machine_learning"  # without it the page opens in MLflow's other mode
    runs = [json.loads(unquote(part.partition("=")[2])) for part in parts]
    assert len(runs[0]) == 2
    assert runs[0][1] == run.info.run_id
    assert runs[1] == [run.info.experiment_id]
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("**A method** on a task.")
    assert "| `eval/accuracy` | 0.25 | 0.5 | fraction |" in note  # last, best
    assert f"viewStateShareKey={load('costs').key}" in note
    assert "](#/experiments/" in note  # whichever address the server is reached at
    assert "workbench.control" not in note
    assert run.data.tags["mlflow.runColor"] == style_of(["toy"])["toy"].colour
    assert "workbench.reason" not in run.data.tags


def test_a_note_that_a_person_edited_stays(uri, tmp_path):
    folder = make_run(tmp_path / "run")
    recorder = Recorder(folder, uri, interval_s=0.02).start()
    run_id, client = wait_for(lambda: recorder.run_id), Store(uri).client
    assert "`workbench.control` takes `stop`" in wait_for(lambda: client.get_run(run_id).data.tags.get("mlflow.note.content"))
    client.set_tag(run_id, "mlflow.note.content", "mine")
    folder.write_status("finished")
    assert recorder.close(60) == 0
    assert client.get_run(run_id).data.tags["mlflow.note.content"] == "mine"


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


def test_a_run_on_another_version_says_why_there_are_no_views(uri, tmp_path, monkeypatch):
    folders = [make_run(tmp_path / key, key) for key in ("k1", "k2")]
    with monkeypatch.context() as patch:
        patch.setattr("tracking.views.publishing.server_version", lambda _: "2.22.0")
        for folder in folders:
            with Journal(folder.journal_path) as journal:
                journal.append(1, {"eval/accuracy": 0.5}, 1_700_000_000_000)
            folder.write_status("finished")
            recorder = Recorder(folder, uri).start()
            assert recorder.close(60) == 0
    links = links_of(folders, uri)
    assert [*links] == ["all runs", "these runs side by side", "views"]
    assert links["views"].count("here is 2.22.0, so none was published. A report shows the same: `workbench compare --report") == 1
    note = Store(uri).client.get_run(recorder.run_id).data.tags["mlflow.note.content"]
    assert "**finished** · [all runs](#/experiments/" in note
    assert "\n\n| metric |" in note
    assert notes.linked(links).count("](") == 2  # the reason is no link
    folders[0].write_status("finished", when=1_800_000_000)  # resumed under a version that is known: the reason has gone
    with closing(Shipper(folders[0], uri)) as shipper:
        shipper.finish()
    assert set(links_of(folders[:1], uri)) == {load(v).name for v in ("costs", "runs")}


def test_a_study_publishes_the_views_and_links_to_them(uri, toy, own_home):
    """What ``close()`` returns opens MLflow at the study, its saved views and, for a person on its page, the report."""
    study = Study("trial", "Trial of a | toy", StudyParameters(profile="smoke", tracking_uri=uri), paper="A. Author, 2020")
    study.run([{"method": "toy", "task": "toy", "params": {"steps": 3}}], seeds=2, metric="eval/loss", progress=False)
    study.claim(checked("one | two", "1", "2", True, "rule"))
    study.claim(checked("three", "1", "2", False, "rule"))
    links = study.close()
    names = {load(v).name for v in ("losses", "runs")}
    assert names <= set(links)
    store = Store(uri)
    experiment = store.client.get_experiment_by_name("trial")
    for name in names:
        assert f"{TAG}{links[name].partition('viewStateShareKey=')[2].partition('&')[0]}" in experiment.tags
    assert experiment.tags["mlflow.note.content"] == "Trial of a | toy (A. Author, 2020)"  # MLflow's list has no Markdown
    runs = store.client.search_runs([experiment.experiment_id])
    (parent,) = [r for r in runs if r.data.tags.get("workbench.kind") == "study"]
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 2
    assert parent.info.run_id in links["mlflow"]
    assert parent.data.tags["workbench.claims"] == "1 holds, 1 does not hold"
    note = parent.data.tags["mlflow.note.content"]
    assert "| **holds** | one \\| two | 2 | 1 |" in note
    assert "| `profile` | `smoke` |" in note
    assert f"[report](#/experiments/{experiment.experiment_id}/runs/{parent.info.run_id}/artifacts/report.html" in note
    assert parent.info.run_id in unquote(note.partition("[runs of this study](")[2])
    assert {f.path for f in store.client.list_artifacts(parent.info.run_id)} == {"report.html", "summary.json"}
    child = children[0].data.tags["mlflow.note.content"]
    assert "`steps` | `3`" in child
    assert "`eval/loss`" in child
    assert json.loads((study.folder / "summary.json").read_text())["links"] == links
    shown = study.close()._repr_html_()  # again: the same
    assert all(f">{html.escape(links[name])}</a>" in shown for name in names)


def test_charts_average_nothing_but_seeds(uri, toy, own_home):
    """The views group by one tag: all that is not at its default from the start, and at a study's end what sets its groups apart."""
    state = read_back(load("costs").value(1))
    assert state["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": GROUP}]
    for view in VIEWS:  # along a metric MLflow would pair values of different steps, and colour two methods alike
        assert read_back(load(view).value(1))["useGroupedValuesInCharts"] is False
    study = Study("trial", "Trial", StudyParameters(profile="smoke", tracking_uri=uri))
    jobs = [{"method": "toy", "task": "toy", "params": {"steps": steps, "lr": 0.2}} for steps in (3, 4)]
    study.run(jobs, seeds=2, metric="eval/loss", progress=False)
    store = Store(uri)
    assert store.client.get_experiment_by_name("trial").tags["mlflow.note.content"] == ABOUT

    def groups() -> list[str]:
        runs = store.client.search_runs([store.experiment("trial")], "params.method = 'toy'")
        return sorted(f"{r.data.tags[GROUP]}, seed {r.data.params['seed']}" for r in runs)

    assert groups() == [f"toy toy steps={steps} lr=0.2, seed {seed}" for steps in (3, 4) for seed in (0, 1)]
    for run in store.client.search_runs([store.experiment("trial")], "params.method = 'toy'"):
        store.put_tags(run.info.run_id, {COLOUR: "#000000"})  # as another method's may be, of whose name it comes
    study.close()
    assert {run.data.tags.get(COLOUR) for run in store.client.search_runs([store.experiment("trial")], "params.method = 'toy'")} == {
        style_of(["toy"])["toy"].colour}
    assert groups() == [f"toy toy steps={steps}, seed {seed}" for steps in (3, 4) for seed in (0, 1)]


def test_a_group_is_told_in_as_few_digits_as_tell_it_apart():
    def labels(*rates: float) -> list[str]:
        groups = [Group("", {"method": "m", "task": "t", "lr": rate, "steps": 1}, []) for rate in rates]
        return [_label(g, groups) for g in groups]

    assert labels(0.1 + 0.2, 1 / 3, 2.0) == ["m lr=0.3", "m lr=0.333333", "m lr=2"]
    assert labels(0.3, 0.1 + 0.2, 1 / 3) == ["m lr=0.3", "m lr=0.30000000000000004", "m lr=0.333333"]


def test_a_note_keeps_within_what_a_tag_may_hold():
    rows = [(f"`parameter {i}`", "x" * 50) for i in range(200)]
    note = notes.whole(["**head**", notes.table(("a", "b"), rows), "the end"])
    assert len(note) < 8000
    assert note.startswith("**head**\n\n| a | b |\n|---|---|\n| `parameter 0` |")
    assert note.endswith(" |\n\n… and more among the artifacts.")
    assert notes.whole(["a", "", "b"]) == "a\n\nb"
    assert notes.plain("a|b\n<c> [d]") == "a\\|b &lt;c> \\[d]"
    assert notes.code("[1|2]\n`x`") == "`[1\\|2] 'x'`"


def test_a_study_on_another_version_of_mlflow_names_its_report(uri, own_home, monkeypatch):
    recorded(uri, parent="trial-smoke", experiment="trial")
    monkeypatch.setattr("tracking.views.publishing.server_version", lambda _: "2.22.0")
    study = Study("trial", "Trial", StudyParameters(profile="smoke", tracking_uri=uri))
    links = study.close()
    assert links["mlflow"].startswith("http")
    assert "here is 2.22.0, so none was published" in links["views"]
    assert links["report"] in links["views"]
    assert "all runs" in links
