"""The explorer's panes without a browser: search, presets, seeds as bands, past runs, side by side, and the look inside."""

from __future__ import annotations

import json
import shutil
import threading

import numpy as np
import pytest
from scipy import stats

from tests.conftest import WAIT_S
from tests.test_explorer_energy import drawn as points
from tests.test_explorer_runs import until
from tests.test_modelled import with_network
from tracking.errors import UserError
from tracking.folder import RunFolder
from workbench.explorer import curves, search
from workbench.explorer.form import basic_fields
from workbench.explorer.listed import ListedRun
from workbench.explorer.plots import Worker, drawn
from workbench.explorer.rows import Rows
from workbench.method import View
from workbench.params import Field, Params
from workbench.runs import runs_root

SEES = '''
    def views(self, state, task):
        from workbench.method import View
        return [View("Where it is", "bars", {"w0": float(state.w.detach()[0]), "done": float(state.done)}, x="thing", note="Look.")]
'''


def several(ex, seeds: int = 3, **values) -> list[ListedRun]:
    """That many seeds, run to their end and read."""
    ex.set(seeds=seeds, **values)
    first = ex.run()
    runs = ex.runs[ex.runs.index(first):]
    for r in runs:
        assert r.wait(WAIT_S) == "finished"
    until(lambda: all(len(r.rows) == r.spec.params["steps"] for r in runs), "whole journals")
    return runs


# --- search, presets, form ------------------------------------------------------------------------------------


def test_search_finds_by_every_word_and_ranks_the_name_first(toy):
    assert [h.id for h in search.find("toy")][:2] == ["toy", "toy"]
    assert {h.what for h in search.find("toy")} == {"method", "task"}
    (hit,) = [h for h in search.find("testing quadratic") if h.what == "method"]
    assert (hit.id, hit.line) == ("toy", "Noisy descent on a quadratic.")
    assert "Noisy descent" in hit.label
    assert search.find("2211.03741")[0].id == "askewsgd"
    assert search.find("2211.03741")[0].paper == "https://arxiv.org/abs/2211.03741"
    assert search.find("toy nosuchword") == []
    assert "'askewsgd'" in search.nearest("askwsgd")


def test_a_hit_is_taken_by_hand_and_the_task_finds_a_method(ex):
    ex.choose("askewsgd")
    ex.pickers.query.value = "point plane"
    assert len(ex.pickers.hits.options) == 1
    assert "1 task found" in ex.pickers.found.value
    ex.pickers.hits.index = 0
    assert (ex.pickers.method.value, ex.pickers.task.value) == ("toy", "toy")  # the only method for such a task
    assert "'toy', 'toy'" in ex.python()
    ex.pickers.query.value = "zzzz"
    assert "Nothing found" in ex.pickers.found.value
    assert ex.pickers.hits.layout.display == "none"


def test_presets_start_the_form_and_reset_returns_to_the_preset(ex):
    assert ex.request().params == {"steps": 5}
    ex.toolbar.preset.value = "paper"
    assert ex.request().params == {}
    ex.set(lr=0.5)
    ex.toolbar.reset.click()
    assert ex.request().params == {}
    ex.preset("quick")
    assert ex.request().params == {"steps": 5}
    with pytest.raises(UserError, match="Did you mean 'quick'"):
        ex.preset("quik")


def test_fields_are_basic_where_they_matter_and_errors_open_the_others():
    class Family(Params):
        epochs: int = Field(1, ge=1)
        lr: float = Field(0.1, gt=0)
        momentum: float = Field(0.9, ge=0, lt=1, description="inertia")
        decay_s: float = Field(0.0, ge=0)
        rule: str = "a"
        other: str = "b"
        told: str = Field("c", json_schema_extra={"advanced": False})
        more: str = "d"

    class Own(Family):
        lr: float = Field(0.2, gt=0)
        alpha: float = Field(0.5, gt=0, description="pull")
        hidden: float = Field(0.5, gt=0, json_schema_extra={"advanced": True, "unit": "ms"})

    assert basic_fields(Family) == [*Family.model_fields]  # few enough to be shown at once
    assert basic_fields(Own, {"rule"}) == ["epochs", "lr", "rule", "told", "alpha"]
    from workbench.explorer.form import Form

    form = Form(Own, "own", {}, lambda: None)
    assert form.advanced.description == "Advanced (6)"
    assert form.more.layout.display == "none"
    assert "(s, 0 ≤ x)" in form.fields["decay_s"].note.value
    assert "ms, " in form.fields["hidden"].note.value
    form.set(momentum=0.5)
    assert form.advanced.description == "Advanced (6, 1 not at the default)"
    form.fields["momentum"].control.value = "3"
    assert form.advanced.value
    assert form.more.layout.display is None


# --- seeds, bands ---------------------------------------------------------------------------------------------


def test_seeds_queue_up_and_become_one_band(ex):
    runs = several(ex, 3, seed=4)
    assert [r.spec.seed for r in runs] == [4, 5, 6]
    ex.board.metric.value = "train/loss"
    assert len(ex.board.figure.data) == 3
    ex.board.bands.value = True
    low, high, mean = ex.board.figure.data
    losses = np.array([[row["train/loss"] for row in r.rows] for r in runs])
    ends = stats.t.interval(0.95, 2, losses.mean(0), stats.sem(losses))
    np.testing.assert_allclose(mean.y, losses.mean(0), rtol=1e-12)
    np.testing.assert_allclose([low.y, high.y], ends, rtol=1e-12)
    assert list(mean.x) == [1, 2, 3, 4, 5]
    assert mean.name == "1 toy (n=3)"
    assert (high.fill, low.showlegend) == ("tonexty", False)
    ex.set(steps=6, seeds=1)
    other = ex.run()
    assert other.wait(WAIT_S) == "finished"
    until(lambda: len(ex.board.figure.data) == 4, "a line beside the band")
    assert ex.board.figure.data[3].name.startswith("4 toy, steps 6")
    ex.board.bands.value = False
    assert [t.meta for t in ex.board.figure.data] == [r.key for r in ex.runs]


def test_several_seeds_are_refused_only_where_all_are_on_their_way(ex):
    ex.set(steps=100_000, sleep_s=0.01, seeds=2)
    ex.run()
    ex.set(seeds=3)
    assert ex.run().spec.seed == 2
    with pytest.raises(UserError, match="already"):
        ex.run()
    assert [r.spec.seed for r in ex.runs] == [0, 1, 2]


def test_many_curves_share_the_points_and_few_keep_theirs():
    assert curves.share(2000, 1) == 2000
    assert curves.share(2000, 50) * 50 <= curves.ALL_POINTS
    assert curves.share(2000, 10_000) == curves.FEWEST_POINTS
    assert curves.share(50, 10_000) == 50


def test_rows_are_a_list_of_reports_and_a_table_of_columns():
    reports = [{"step": float(n), "eval/loss": 100.0 - n} if n % 3 else {"step": float(n)} for n in range(200)]
    rows = Rows(reports)
    assert rows == reports
    assert rows != reports[:-1]
    assert (rows[-1], rows[3:5], len(rows)) == (reports[-1], reports[3:5], 200)
    assert rows.last == {"step": 199.0, "eval/loss": -99.0}
    assert rows.last_with("eval/loss") == reports[199]
    assert rows.best("eval/loss") == -99.0
    assert rows.best("step") is None
    assert np.isnan(rows.column("eval/loss")[0])
    assert rows.column("train/loss").size == 0
    assert rows.names == {"step", "eval/loss"}


# --- acting on a run ------------------------------------------------------------------------------------------


def test_rerun_repeats_a_finished_run_from_its_first_step(ex):
    r = several(ex, 1)[0]
    before = RunFolder(runs_root() / r.key).read_run()["created"]
    ex.menu.buttons["Re-run"].click()
    assert r.wait(WAIT_S) == "finished"
    assert not r.cached
    assert RunFolder(runs_root() / r.key).read_run()["created"] > before
    again = ex.run()  # asked for plainly, it comes from its folder
    assert again.wait(WAIT_S) == "finished"
    assert again.cached
    with pytest.raises(UserError, match="Unknown run number '7'"):
        ex.rerun(7)


def test_load_and_duplicate_bring_a_run_back_into_the_form(ex):
    first, second = several(ex, 2, lr=0.05, talk=True, task_params={"dim": 3})
    ex.choose("askewsgd", "digits/mlp")
    ex.load(first)
    assert ex.request().params == {"steps": 5, "lr": 0.05, "talk": True}
    assert (ex.request().task_params, ex.request().seed) == ({"dim": 3}, 0)
    ex.menu.pick.value = first.number
    ex.menu.buttons["Duplicate"].click()
    assert ex.request().seed == 2  # 1 is on the list already
    ex.menu.pick.value = second.number
    ex.menu.buttons["Into the form"].click()
    assert ex.request().seed == 1


def test_one_run_of_the_queue_is_stopped(ex):
    ex.set(steps=100_000, sleep_s=0.01, seeds=2)
    ex.run()
    second = ex.runs[1]
    until(lambda: second.number in dict((n, t) for t, n in ex.menu.pick.options), "the run in the menu")
    ex.menu.pick.value = second.number
    ex.menu.buttons["Stop it"].click()
    assert second.reason == "taken off the queue"
    ex.menu.buttons["Stop it"].click()
    assert "toy s1 is stopped already" in ex.toolbar.status.value


# --- past runs ------------------------------------------------------------------------------------------------


def test_past_runs_are_listed_filtered_loaded_and_drawn(ex):
    several(ex, 2, lr=0.05)
    ex.session.clear()
    ex.refresh()
    ex.reset()
    ex.past.open()
    ex.past.worker.wait(WAIT_S)
    assert "2 runs in" in ex.past.worker.note.value
    ex.past.words.value = "toy s1 finished"
    ((_, key),) = ex.past.list.options
    ex.past.list.value = key
    ex.past.load.click()
    ex.past.worker.wait(WAIT_S)
    assert (ex.request().params["lr"], ex.request().seed) == (0.05, 1)
    ex.past.show.click()
    ex.past.worker.wait(WAIT_S)
    (shown,) = ex.runs
    until(lambda: len(shown.rows) == 5 and len(ex.board.figure.data) == 1, "its curve")
    assert (shown.status, shown.key) == ("finished", key)
    assert ex.show(key[:8]) is shown
    with pytest.raises(UserError, match="Unknown run"):
        ex.show("nosuchrun")


def test_a_run_comes_out_of_mlflow_even_where_its_folder_is_gone(ex, uri):
    ex.configure(uri, 2000)
    r = several(ex, 1, lr=0.05)[0]
    values = [dict(row) for row in r.rows]
    ex.past.source.value = "MLflow"
    ex.past.worker.wait(WAIT_S)
    ((label, run_id),) = ex.past.list.options
    assert "toy toy s0  finished" in label
    assert run_id in r.url
    ex.side_by_side.publish.click()  # the toy reports losses: one of the saved views has something to show
    ex.side_by_side.worker.wait(WAIT_S)
    assert "viewStateShareKey=workbench-losses-" in ex.side_by_side.links.value
    shutil.rmtree(runs_root() / r.key)
    ex.session.clear()
    ex.reset()
    ex.load(r.url)  # the link on the page is enough
    assert ex.request().params == {"steps": 5, "lr": 0.05}
    shown = ex.show(run_id)
    until(lambda: len(shown.rows) == 5, "its rows")
    assert shown.rows == values
    with pytest.raises(UserError, match="did not give it"):
        ex.show("0" * 32)


# --- side by side ---------------------------------------------------------------------------------------------


def test_side_by_side_has_curves_front_table_and_target(ex):
    several(ex, 2, talk=True)
    several(ex, 2, lr=0.05)
    pane = ex.side_by_side
    ex.panes.choice.value = "Side by side"
    pane.worker.wait(WAIT_S)
    assert ex.board.box.layout.display == "none"
    assert "4 runs in 2 groups" in pane.worker.note.value
    assert pane.metric.value == "eval/loss"
    assert "±" in pane.table.value
    drawings = [o["data"].get("application/vnd.plotly.v1+json") for o in pane.plots.box.outputs]
    assert [d is None for d in drawings] == [False, True] * 2  # each figure has its description below
    kinds = [d["layout"]["title"]["text"] for d in drawings if d]
    colours = {trace["name"].partition(" (")[0]: trace["line"]["color"] for trace in drawings[0]["data"] if trace.get("name")}
    assert [*colours.values()] == [curves.style(r.number).colour for r in (ex.runs[0], ex.runs[2])]  # those of the other pane
    assert any("against clock/wall_s" in k for k in kinds)
    last = min(r.metrics["eval/loss"] for r in ex.runs)
    pane.target.value = str(last)
    pane.worker.wait(WAIT_S)
    assert "1 of 2" in pane.table.value
    assert "0 of 2" in pane.table.value
    pane.target.value = "soon"
    pane.worker.wait(WAIT_S)
    assert "Allowed: number" in pane.worker.note.value
    pane.target.value = ""
    pane.report.click()
    pane.worker.wait(WAIT_S)
    assert (runs_root().parent / "reports" / "explorer.html").stat().st_size > 100_000


def test_side_by_side_with_nothing_finished_says_so(ex):
    ex.side_by_side.open()
    ex.side_by_side.worker.wait(WAIT_S)
    assert "Nothing has finished yet" in ex.side_by_side.worker.note.value


def test_work_that_takes_its_time_counts_it_and_the_last_word_stands():
    worker, go = Worker(), threading.Event()
    worker.ask(lambda: "There it is." * go.wait(WAIT_S), "On its way …")
    until(lambda: "On its way …" in worker.note.value and " s</span>" in worker.note.value, "seconds")
    go.set()
    worker.wait(WAIT_S)
    assert "There it is." in worker.note.value
    assert "On its way" not in worker.note.value


# --- inside ---------------------------------------------------------------------------------------------------


def test_views_of_a_run_that_goes_on_and_of_one_that_has_ended(ex, toy):
    toy.write_text(toy.read_text() + SEES)
    ex.choose("toy", "toy")
    ex.set(steps=100_000, sleep_s=0.01)
    r = ex.run()
    until(lambda: r.status == "running", "running")
    (view,) = r.views(WAIT_S)
    assert 0 < view.groups["done"] <= r.progress.done
    ex.pause()
    until(lambda: r.status == "paused", "paused")
    (view,) = r.views(WAIT_S)
    assert view.groups["done"] == r.progress.done
    ex.stop()
    r.wait(WAIT_S)
    until(lambda: r.rows.last, "its rows")
    ex.panes.choice.value = "Inside"
    ex.inside.worker.wait(WAIT_S)
    figure, caption = ex.inside.plots.box.outputs
    assert figure["data"]["text/plain"] == "Look."
    assert "Look." in caption["data"]["text/html"]
    assert f"at step {r.rows.last['step']:g}" in ex.inside.worker.note.value


def test_a_view_that_breaks_ends_no_run_and_a_method_without_views_says_so(ex, toy):
    several(ex, 1)
    ex.inside.look(ex.runs[0])
    ex.inside.worker.wait(WAIT_S)
    assert "shows nothing of itself" in ex.inside.worker.note.value
    toy.write_text(toy.read_text() + SEES.replace("return [", "raise ValueError('no eyes')\n        return ["))
    ex.choose("toy", "toy")
    ex.set(steps=100_000, sleep_s=0.01)
    r = ex.run()
    until(lambda: r.status == "running", "running")
    (view,) = r.views(WAIT_S)
    assert "no eyes" in view.note
    assert r.status == "running"


@pytest.mark.parametrize("view", [
    View("h", "histogram", {"a": [1.0, 2.0, 2.0], "b": [0.0]}, x="weight"), View("p", "points", {"a": ([1, 2], [3, 4]), "b": ([], [])}),
    View("l", "lines", {"a": (range(10_000), range(10_000))}, x="t [s]", y="v"), View("b", "bars", {"a": 1.0, "b": 2.0}),
    View("m", "matrix", {"": [[1, 0], [0, 1]]}), View("s", "matrix", {"a": [[1, -3]], "b": [[2, 0]]}, z="w"),
    View("n", "bars", {0: 1.0, 1: 2.0}),  # clients go by number
], ids=lambda v: f"{v.kind} {v.title}")
def test_every_kind_of_view_is_drawn_small(view):
    figure = drawn(view)
    assert figure.data
    assert figure.layout.title.text == view.title
    assert len(figure.to_json()) < 250_000
    json.loads(figure.to_json())


def test_matrices_beside_each_other_share_a_scale_about_zero():
    figure = drawn(View("s", "matrix", {"a": [[1, -3]], "b": [[2, 0]]}, z="w"))
    assert len({trace.coloraxis for trace in figure.data}) == 1
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (-3, 3)
    assert figure.layout.coloraxis.colorbar.title.text == "w"
    assert [a.text for a in figure.layout.annotations] == ["a", "b"]


def test_a_histogram_shows_its_first_and_last_bin_and_dashes_that_leave_no_corner_out():
    figure = drawn(View("h", "histogram", {"deployed": [-1.0, 1.0], "latent": [-0.5, 0.5]}, x="weight"))
    low, high = figure.layout.xaxis.range
    assert low < -1 < 1 < high
    assert {trace.line.dash for trace in figure.data} == {"solid", "2px,2px"}
    for trace in figure.data:
        assert trace.y[0] == trace.y[-1] == 0  # closed on both sides
        assert sum(trace.y[1:-2]) == pytest.approx(1.0)  # the last bin's share stands twice


def test_the_methods_own_views_are_of_their_state(tmp_path):
    """Of a binary network: every deployed weight is at a level. Of a federation: as many marks as deliveries."""
    from workbench.runs import run

    low = run("askewsgd", "digits/mlp", {"epochs": 1, "batch_size": 500}, tracking="off", progress=False)
    state, job = low.state()
    weights, far = job.method.views(state, job.task)
    assert set(np.unique(weights.groups["deployed"])) <= {-1.0, 1.0}
    assert len(weights.groups["latent"]) == len(weights.groups["deployed"])
    means = [np.abs(state.optimizer.latent(p).numpy() - q.numpy()).mean() for p, q in state.optimizer.deployed().items()]
    assert [*far.groups.values()] == pytest.approx(means)
    fed = run("favas", "digits/mlp", {"clients": 8, "selected": 3, "local_steps": 4, "horizon": 60.0, "report_every": 30.0},
              tracking="off", progress=False)
    state, job = fed.state()
    line, work = job.method.views(state, job.task)
    assert sum(len(x) for x, _ in line.groups.values()) == job.method.schedule.offsets[state.step]
    assert len(work.groups) == 8
    assert sum(work.groups.values()) == state.gradients


def test_modelled_joules_move_a_band(ex, toy):
    """The scale of each seed's joules is its own, and the band is made of what is drawn."""
    with_network(toy, "torch.nn.Linear(3, 2)")
    ex.choose("toy", "toy")
    several(ex, 2, steps=4)
    ex.board.axis.value = "energy/model_j"
    ex.board.bands.value = True
    until(lambda: len(points(ex, 2)[0]) == 4, "the band")
    before = np.array(points(ex, 2)[0])
    ex.board.energy.hardware.value = "v100_like"
    until(lambda: "v100_like" in ex.board.figure.layout.xaxis.title.text, "the other hardware")
    until(lambda: not np.allclose(points(ex, 2)[0], before, rtol=1e-6, atol=0), "its joules: each trace is drawn on its own")
    ratio = np.array(points(ex, 2)[0]) / before
    assert ratio == pytest.approx(ratio[0])
