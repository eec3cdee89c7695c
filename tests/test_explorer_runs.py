"""The explorer's runs without a browser: the queue, pause and stop, the ways a run can end, and its curves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import WAIT_S
from tracking.codecs import Dense
from tracking.errors import UserError
from tracking.folder import RunFolder
from workbench.explorer import curves
from workbench.explorer.board import LiveFigure
from workbench.explorer.rows import Rows
from workbench.runs import runs_root


def until(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.02)


def test_run_button_trains_and_draws(ex):
    ex.set(steps=6, talk=True)
    ex.toolbar.run.click()
    r = ex.runs[0]
    assert r.wait(WAIT_S) == "finished"
    until(lambda: len(ex.board.figure.data) == 1 and ex.board.figure.data[0].x is not None and len(ex.board.figure.data[0].x) == 6, "curve")
    trace = ex.board.figure.data[0]
    assert ex.board.metric.value == "eval/loss"  # the toy has no accuracy
    assert list(trace.x) == [1, 2, 3, 4, 5, 6]
    assert list(trace.y) == [row["eval/loss"] for row in r.rows]
    assert r.best("eval/loss") == min(trace.y)
    assert {"step", "train/samples", "clock/wall_s", "comm/up_bytes"} <= set(ex.board.axis.options)
    assert "eval/loss" not in ex.board.axis.options
    ex.board.axis.value = "comm/up_bytes"
    assert list(ex.board.figure.data[0].x) == [len(Dense().encode(torch.zeros(2))) * n for n in range(1, 7)]
    ex.board.metric.value = "train/loss"
    assert list(ex.board.figure.data[0].y) == [row["train/loss"] for row in r.rows]
    ex.board.log_y.value = True
    assert ex.board.figure.layout.yaxis.type == "log"
    assert ex.board.figure.layout.xaxis.title.text == "comm/up_bytes [B]"
    for text in ("finished", r.key, "6/6", f"{r.rows[-1]['train/loss']:.4g}"):
        assert text in ex.board.table.value


def test_a_button_whose_verb_breaks_says_so(ex, monkeypatch):
    """A full disk, say: nothing that a person did wrong, and yet they must see why no run came."""
    def full(requests):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ex.session, "submit_all", full)
        ex.toolbar.run.click()
    assert "OSError: [Errno 28] No space left on device" in ex.toolbar.status.value
    ex.set(steps=3)
    ex.toolbar.run.click()
    assert ex.runs[0].wait(WAIT_S) == "finished"
    assert "OSError" not in ex.toolbar.status.value


def test_runs_queue_up_and_train_one_at_a_time(ex):
    ex.set(steps=100_000, sleep_s=0.01)
    first = ex.run()
    ex.set(steps=3, seed=1)
    second = ex.run()
    ex.set(seed=2)
    third = ex.run()
    until(lambda: first.status == "running", "the first run")
    assert [r.status for r in ex.runs] == ["running", "queued", "queued"]
    until(lambda: ", 2 queued" in ex.toolbar.status.value and "<progress" in ex.toolbar.status.value, "status line")
    with pytest.raises(UserError, match="queued already"):
        ex.run()
    ex.toolbar.run.click()
    assert "queued already" in ex.toolbar.status.value
    third.stop()
    assert (third.status, third.reason) == ("stopped", "taken off the queue")
    ex.toolbar.stop.click()
    assert first.wait(WAIT_S) == "stopped"
    assert second.wait(WAIT_S) == "finished"
    assert third.status == "stopped"
    assert not (runs_root() / third.key).exists()
    assert second._started >= RunFolder(runs_root() / first.key).read_status()["time"]
    looks = [(t.line.color, t.line.dash) for t in ex.board.figure.data]
    assert len({c for c, _ in looks}) == len({d for _, d in looks}) == 3


def test_stop_ends_a_long_run_and_run_goes_on_with_it(ex):
    ex.set(steps=40, sleep_s=0.05)
    r = ex.run()
    until(lambda: r.progress and r.progress.done >= 3, "three steps")
    ex.stop()
    assert r.wait(WAIT_S) == "stopped"
    done = r.progress.done
    assert 3 <= done < 40
    until(lambda: "stopped" in ex.toolbar.status.value and "by request" in ex.toolbar.status.value, "status line")
    assert ex.toolbar.stop.disabled
    again = ex.run()
    assert again is r
    until(lambda: r.progress.done > done and r._reporting, "the run going on")
    until(lambda: [row["step"] for row in r.rows][:done + 1] == list(range(1, done + 2)), "one whole journal")
    assert r.wait(WAIT_S) == "finished"
    until(lambda: len(r.rows) == 40, "the whole journal")
    assert [row["step"] for row in r.rows] == list(range(1, 41))


def test_pause_holds_and_resume_lets_go(ex):
    ex.set(steps=100_000, sleep_s=0.01)
    r = ex.run()
    until(lambda: r.status == "running", "running")
    ex.toolbar.pause.click()
    until(lambda: r.status == "paused", "paused")
    until(lambda: ex.toolbar.pause.description == "Resume" and "paused" in ex.toolbar.status.value, "the button")
    held = r.progress.done
    time.sleep(0.3)
    assert r.progress.done == held
    ex.toolbar.pause.click()
    until(lambda: r.progress.done > held, "going on")
    ex.pause()
    until(lambda: r.status == "paused", "paused again")
    ex.stop()
    assert r.wait(WAIT_S) == "stopped"


def test_stop_before_the_first_step_is_not_lost(ex, toy):
    toy.write_text(toy.read_text().replace("        self.start =", "        time.sleep(0.5)\n        self.start ="))
    ex.choose("toy", "toy")
    ex.set(steps=100_000, sleep_s=0.01)
    r = ex.run()
    r.stop()
    assert r.wait(WAIT_S) == "stopped"


@pytest.mark.parametrize(("params", "status", "reason"), [
    ({"fail_at": 2}, "failed", "ValueError: the toy broke"), ({"oom_at": 1}, "failed", "Take a smaller batch_size"),
    ({"lr": 1e30, "steps": 100}, "diverged", "A smaller learning rate"),
])
def test_a_run_that_ends_badly_says_why_and_the_next_one_runs(ex, params, status, reason):
    ex.set(**params)
    r = ex.run()
    assert r.wait(WAIT_S) == status
    assert reason in r.reason
    until(lambda: f'<span class="wb-bad">{status}</span>' in ex.toolbar.status.value, "status line")
    assert f'<span class="wb-bad">{status}</span>' in ex.board.table.value
    assert reason in ex.board.table.value
    ex.reset()
    assert ex.run().wait(WAIT_S) == "finished"


def test_a_finished_run_comes_from_its_folder(ex):
    assert ex.run().wait(WAIT_S) == "finished"
    r = ex.run()
    assert r.wait(WAIT_S) == "finished"
    assert r.cached
    assert len(ex.runs) == 1
    until(lambda: "from the cache" in ex.board.table.value and len(r.rows) == 5, "table and rows")


def test_a_run_that_another_process_holds_is_a_failure_with_words(ex):
    r = ex.request()
    listed_key = ex.session.submit(r).key
    assert ex.runs[0].wait(WAIT_S) == "finished"
    with RunFolder(runs_root() / listed_key).lock():
        assert ex.run().wait(WAIT_S) == "failed"
    assert "is held by" in ex.runs[0].reason


def test_link_to_mlflow(ex, tmp_path):
    ex.configure(f"sqlite:///{tmp_path}/m.db", 2000)
    r = ex.run()
    assert r.wait(WAIT_S) == "finished"
    assert r.url
    until(lambda: r.url.replace("&", "&amp;") in ex.board.table.value, "link")
    assert "tracking='sqlite" in ex.python()


def test_clear_takes_ended_runs_off_the_list_only(ex):
    done = ex.run()
    assert done.wait(WAIT_S) == "finished"
    ex.set(steps=100_000, sleep_s=0.01)
    going = ex.run()
    until(lambda: going.status == "running", "running")
    ex.board.clear.click()
    assert ex.runs == [going]
    assert [t.meta for t in ex.board.figure.data] == [going.key]
    assert (runs_root() / done.key / "journal.jsonl").is_file()


def test_hidden_lines_stay_hidden_when_a_run_joins(ex):
    first = ex.run()
    first.wait(WAIT_S)
    until(lambda: len(ex.board.figure.data) == 1, "first line")
    ex.board.figure.data[0].visible = "legendonly"  # what a click on the legend sets
    ex.set(seed=1)
    ex.run().wait(WAIT_S)
    until(lambda: len(ex.board.figure.data) == 2, "second line")
    assert [t.visible for t in ex.board.figure.data] == ["legendonly", True]


def test_threads_end_with_the_work(ex):
    ex.run().wait(WAIT_S)
    until(lambda: not any(t.name.startswith("workbench explorer") for t in threading.enumerate()), "threads to end")
    assert not [t.name for t in threading.enumerate() if t.name.startswith("workbench explorer")]


# --- curves ---------------------------------------------------------------------------------------------------


def test_series_keeps_reports_with_both_quantities_and_thins_them():
    rows = [{"step": n, "eval/loss": float(n % 7)} if n % 2 else {"step": n} for n in range(1001)]
    rows[501]["eval/loss"] = 99.0
    xs, ys = curves.series(Rows(rows), "step", "eval/loss", 50)
    assert len(xs) <= 50
    assert (xs[0], xs[-1]) == (1, 999)
    assert 99.0 in ys
    assert np.all(np.diff(xs) > 0)
    assert [rows[int(x)]["eval/loss"] for x in xs] == list(ys)
    assert len(curves.series(Rows(rows), "comm/up_bytes", "eval/loss", 50)[0]) == 0


def test_labels_say_what_tells_runs_apart(ex):
    for change in ({}, {"lr": 0.2}, {"seed": 1}):
        ex.set(**change)
        ex.run()
    assert [*curves.labels(ex.runs).values()] == ["1 toy, lr 0.1, seed 0", "2 toy, lr 0.2, seed 0", "3 toy, lr 0.2, seed 1"]
    assert curves.labels(ex.runs[:1]) == {ex.runs[0].key: "1 toy"}


def test_a_page_loaded_again_gets_the_figure_as_it_is_now():
    figure = LiveFigure()
    figure.add_scatter(y=[1, 2, 3])
    figure.layout.title = "now"
    state = figure.get_state()
    assert state["_widget_layout"]["title"] == {"text": "now"}
    assert len(state["_widget_data"]) == 1
    assert set(figure.get_state("_view_count")) == {"_view_count"}


def test_a_page_that_begins_to_draw_is_told_all_and_then_that_it_may():
    """A page needs seconds to fetch plotly: what was changed meanwhile it has not heard of."""
    figure, sent = LiveFigure(), []
    figure.add_scatter(y=[1, 2, 3])
    figure.layout.xaxis.title = "step"
    figure._send = lambda message, buffers=None: sent.append(message)
    figure._handle_custom_msg({"begin": True}, [])
    whole, may = sent
    assert whole["state"]["_widget_layout"]["xaxis"] == {"title": {"text": "step"}}
    assert [trace["type"] for trace in whole["state"]["_widget_data"]] == ["scatter"]
    assert may == {"method": "custom", "content": {"begin": True}}
    assert len(figure._esm) < 10_000 < len(figure._bundle)  # a module of megabytes is given up by a busy page
