"""The explorer without a browser: the form, the texts to copy, the queue, and the ways a run can end."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import ipywidgets as w
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tracking.codecs import Dense
from tracking.errors import UserError
from tracking.folder import RunFolder
from workbench.explorer import curves, entry, fields, snippets
from workbench.explorer.board import LiveFigure
from workbench.explorer.form import Form
from workbench.explorer.panel import Explorer
from workbench.explorer.session import Request
from workbench.params import Field, Params
from workbench.runs import runs_root

few = settings(deadline=None, max_examples=30)  # an example builds a form of two dozen widgets
ROOT = Path(__file__).parent.parent
WAIT_S = 60  # a hung run fails the test; no test depends on how long it takes


@pytest.fixture
def ex(toy) -> Iterator[Explorer]:
    explorer = Explorer(tracking="off")
    explorer.choose("toy", "toy")
    yield explorer
    explorer.stop_all()
    for r in explorer.runs:
        r.wait(WAIT_S)


def until(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.02)


def typed(ex: Explorer, name: str, text: Any, part: str = "method") -> fields.Field:
    """Type into a control, as a hand does."""
    field = ex._forms[part].fields[name]
    field.control.value = text
    return field


class Everything(Params):
    lr: float = Field(0.01, gt=0, le=100, description="rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="inertia")
    decay: float = Field(0.0, ge=0, le=1, description="shrinkage")
    shift: float = Field(-1.5, description="any number")
    steps: int = Field(10, ge=1, le=100_000, description="steps")
    layers: int = Field(2, ge=0, le=8, description="layers")
    base: Literal["adam", "sgd"] = Field("adam", description="rule")
    flag: bool = Field(False, description="flag")
    name: str = Field("x", description="name")
    epochs: tuple[int, ...] = Field((), description="epochs")
    words: tuple[str, ...] = Field(("a",), description="words")
    cap: float | None = Field(None, description="cap or nothing")


def everything(**start: Any) -> Form:
    return Form(Everything, "thing", start, lambda: None)


# --- the form -------------------------------------------------------------------------------------------------


def test_controls_follow_the_declaration():
    form = everything()
    kinds = {name: type(f.control) for name, f in form.fields.items()}
    assert kinds == {**dict.fromkeys(Everything.model_fields, w.Text), "base": w.Dropdown, "flag": w.Checkbox}
    sliders = {name: type(f.slider) for name, f in form.fields.items() if f.slider is not None}
    assert sliders == {"lr": w.FloatLogSlider, "momentum": w.FloatSlider, "steps": w.FloatLogSlider, "layers": w.FloatSlider}
    assert [o[1] for o in form.fields["base"].control.options] == ["adam", "sgd"]
    for name, f in form.fields.items():
        for control in filter(None, (f.control, f.slider)):
            assert name in control.description
            assert control.tooltip
        assert Everything.model_fields[name].description in f.note.value
    assert form.check() == Everything()


def test_form_starts_from_the_example_and_resets_to_it():
    form = everything(lr=0.5, epochs=[3, 4])
    assert form.changes() == {"lr": 0.5, "epochs": [3, 4]}
    form.set(lr=0.25, base="sgd", flag=True)
    assert form.changes() == {"lr": 0.25, "epochs": [3, 4], "base": "sgd", "flag": True}
    form.reset()
    assert form.changes() == {"lr": 0.5, "epochs": [3, 4]}


@pytest.mark.parametrize(("name", "text", "said"), [
    ("lr", "1e9", "Allowed: number, 0 < x <= 100"), ("lr", "nan", "finite"), ("lr", "fast", "valid number"), ("lr", "", "valid number"),
    ("steps", "1000000000", "Allowed: whole number, 1 <= x <= 100000"), ("steps", "2.5", "valid integer"),
    ("epochs", "1, two", "valid integer"),
])
def test_an_error_stands_beside_its_field_and_nothing_is_clamped(name, text, said):
    form = everything()
    form.fields[name].control.value = text
    assert form.fields[name].control.value == text
    assert form.check() is None
    assert set(form.errors) == {name}
    assert said in form.errors[name]
    note = form.fields[name].note.value
    assert "wb-bad" in note
    assert 'role="alert"' in note
    assert all("wb-bad" not in f.note.value for n, f in form.fields.items() if n != name)
    with pytest.raises(UserError, match=name):
        form.changes()


def test_the_value_in_use_is_shown_where_it_reads_differently():
    form = everything()
    form.fields["lr"].control.value = "3e-1"
    assert "uses 0.3" in form.fields["lr"].note.value
    form.fields["lr"].control.value = "0.3"
    assert "uses" not in form.fields["lr"].note.value


def test_a_rule_over_several_fields_is_shown_once():
    import pydantic

    class Pair(Params):
        low: int = Field(1, description="low")
        high: int = Field(2, description="high")

        @pydantic.model_validator(mode="after")
        def _ordered(self):
            if self.low > self.high:
                raise ValueError("low must not exceed high")
            return self

    form = Form(Pair, "pair", {}, lambda: None)
    form.fields["low"].control.value = "3"
    assert "low must not exceed high" in form.rule.value
    assert set(form.errors) == {""}
    form.fields["high"].control.value = "3"
    assert form.check() == Pair(low=3, high=3)


@few
@given(value=st.floats(1e-5, 100, exclude_min=True))
def test_numbers_survive_text_and_slider(value):
    """What is set is what is used, bit for bit, although the slider beside it has 101 positions."""
    form = everything()
    form.set(lr=value)
    assert form.check().lr == value
    slider = form.fields["lr"].slider
    # a browser snaps the position to the grid of steps and reports its own rounding: nobody's wish
    snapped = slider.min + round((math.log10(slider.value) - slider.min) / slider.step) * slider.step
    slider.value = min(max(10.0**snapped * (1 + 1e-12), 10**slider.min), 10**slider.max)
    assert form.check().lr == value


@few
@given(position=st.integers(0, fields.STEPS), start=st.sampled_from([1e-5, 0.01, 100.0]))
def test_a_moved_slider_writes_its_number_into_the_box(position, start):
    form = everything(lr=start)
    slider = form.fields["lr"].slider
    place = slider.min + position * slider.step
    moved = abs(place - math.log10(start)) > 0.75 * slider.step
    slider.value = min(max(10**place, 10**slider.min), 10**slider.max)
    # three digits are written
    assert form.check().lr == (pytest.approx(10**place, rel=5e-3) if moved else start)


@few
@given(values=st.fixed_dictionaries({
    "shift": st.floats(allow_nan=False, allow_infinity=False), "name": st.text(st.characters(codec="ascii", exclude_categories=["C", "Z"])),
    "epochs": st.lists(st.integers(0, 10**6)), "words": st.lists(st.from_regex("[a-z]{1,5}", fullmatch=True)),
    "cap": st.none() | st.floats(allow_nan=False, allow_infinity=False), "flag": st.booleans(), "base": st.sampled_from(["adam", "sgd"]),
}))
def test_text_of_a_control_reads_back_as_the_value(values):
    form = everything()
    form.set(**values)
    used = form.check().model_dump(mode="json")
    assert {name: used[name] for name in values} == values


def test_verbs_refuse_and_leave_the_form_alone(ex):
    before = ex.python()
    for wrong, said in (({"lr": -1.0}, "lr = -1.0"), ({"stepz": 3}, "Did you mean 'steps'"), ({"steps": 3, "seed": -1}, "seed = -1"),
                        ({"device": "tpu"}, "device"), ({"task_params": {"size": 3}}, "size")):
        with pytest.raises(UserError, match=said):
            ex.set(**wrong)
        assert ex.python() == before
    with pytest.raises(UserError, match="Unknown method"):
        ex.choose("toi")
    with pytest.raises(UserError, match="runs on tasks of kind toy"):
        ex.choose("toy", "digits/mlp")


def test_only_tasks_of_the_methods_kind_are_offered(ex, toy):
    twin = toy.read_text().replace('dataset, title, kind, embedded = "toy"', 'dataset, title, kind, embedded = "other"').replace(
        '"A point in the plane", "toy"', '"Another", "strange"').split("@dataclass")[0]
    (toy.parent / "other.py").write_text(twin)
    ex.choose("toy")
    assert list(ex.pickers.task.options) == ["toy"]
    assert "Noisy descent on a quadratic" in ex.pickers.about.value


def test_family_narrows_the_methods(ex):
    ex.pickers.family.value = "testing"
    assert [value for _, value in ex.pickers.method.options] == ["toy"]
    assert ex.pickers.method.value == "toy"
    ex.choose("toy")
    ex.pickers.family.value = "all families"
    assert len(ex.pickers.method.options) > 1


def test_a_method_that_cannot_be_imported_is_said_and_the_explorer_goes_on(ex, toy):
    (toy.parent / "broken.py").write_text(
        'import no_such_module\nclass Broken:\n    """Broken."""\n    id, title, family, kinds = "broken", "Broken", "testing", ("toy",)\n')
    ex.choose("broken")
    assert "no_such_module" in ex.status.value
    assert ex.run_button.disabled
    ex.choose("toy")
    assert "no_such_module" not in ex.status.value
    assert not ex.run_button.disabled


# --- texts to copy --------------------------------------------------------------------------------------------


def shell_env(tmp_path: Path) -> dict[str, str]:
    """An environment in which the commands of this interpreter are found, as after an installation."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, module in (("workbench", "workbench.cli"), ("papermill", "papermill")):
        (bin_folder / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {module} "$@"\n')
        (bin_folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def prepare(ex: Explorer) -> str:
    """An unusual form; returns the key of its run."""
    ex.set(steps=4, lr=1e-05, fail_at=-2, talk=True, seed=3, device="cpu", task_params={"dim": 3})
    from workbench.spec import resolve

    r = ex.request()
    return resolve(r.method, r.task, r.params, task_params=r.task_params, seed=r.seed, device=r.device).spec.key


@pytest.mark.parametrize("kind", ["python", "cli", "papermill"])
def test_copied_text_makes_the_very_run(ex, tmp_path, kind):
    key, env = prepare(ex), shell_env(tmp_path)
    text = getattr(ex, kind)()
    shown = {"python": "Python", "cli": "Command line", "papermill": "Papermill"}[kind]
    assert ex.texts[shown].value == text
    if kind == "python":
        command = [sys.executable, "-c", text]
    else:
        (tmp_path / "notebooks").mkdir()
        shutil.copy(ROOT / "notebooks" / "run.ipynb", tmp_path / "notebooks")
        command = ["/bin/sh", "-c", text]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [p.name for p in runs_root().iterdir()] == [key]
    assert RunFolder(runs_root() / key).read_status()["status"] == "finished"
    if kind == "papermill":
        outputs = json.dumps(json.loads((tmp_path / "out.ipynb").read_text())["cells"])
        assert "application/vnd.plotly.v1+json" in outputs
        assert "widget-view" not in outputs
        assert all(metric in outputs for metric in ("eval/loss", "train/loss", "comm/up_bytes"))


def test_form_with_an_error_offers_no_text_and_no_run(ex):
    typed(ex, "lr", "-1")
    assert all("error" in text.value and "lr = -1" in text.value for text in ex.texts.values())
    assert ex.run_button.disabled
    with pytest.raises(UserError, match="lr = -1"):
        ex.run()
    ex.reset_button.click()
    assert not ex.run_button.disabled
    assert "workbench.run(" in ex.texts["Python"].value


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2**63, 2**63) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.from_regex("[a-z_]{1,6}", fullmatch=True), inner, max_size=3),
    max_leaves=8)


@given(value=JSON)
def test_yaml_reads_back_what_was_written(value):
    back = yaml.safe_load(snippets.yaml_flow(value))
    assert back == value
    assert repr(back) == repr(value)  # 1 and 1.0 and True are equal, and yet not the same


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lr=st.floats(1e-300, 1e30), sleep_s=st.floats(0, 10), seed=st.integers(0, 2**63 - 1))
def test_command_line_reads_back_what_was_written(toy, lr, sleep_s, seed):
    from workbench import cli, registry

    request = Request("toy", "toy", {"lr": lr, "sleep_s": sleep_s}, {"dim": 5}, seed, "cpu", "off")
    args = cli.build_parser().parse_args(shlex.split(snippets.cli(request).replace("\\\n", ""))[1:])
    given_ = cli._run_arguments(args, ["toy"], "toy")
    assert registry.load_method("toy").Params(**given_["params"]) == registry.load_method("toy").Params(**request.params)
    assert (given_["task_params"], args.seed, args.device, args.tracking) == ({"dim": 5}, seed, "cpu", "off")


# --- runs -----------------------------------------------------------------------------------------------------


def test_run_button_trains_and_draws(ex):
    ex.set(steps=6, talk=True)
    ex.run_button.click()
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


def test_runs_queue_up_and_train_one_at_a_time(ex):
    ex.set(steps=100_000, sleep_s=0.01)
    first = ex.run()
    ex.set(steps=3, seed=1)
    second = ex.run()
    ex.set(seed=2)
    third = ex.run()
    until(lambda: first.status == "running", "the first run")
    assert [r.status for r in ex.runs] == ["running", "queued", "queued"]
    until(lambda: ", 2 queued" in ex.status.value and "<progress" in ex.status.value, "status line")
    with pytest.raises(UserError, match="queued already"):
        ex.run()
    ex.run_button.click()
    assert "queued already" in ex.status.value
    third.stop()
    assert (third.status, third.reason) == ("stopped", "taken off the queue")
    ex.stop_button.click()
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
    until(lambda: "stopped" in ex.status.value and "by request" in ex.status.value, "status line")
    assert ex.stop_button.disabled
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
    ex.pause_button.click()
    until(lambda: r.status == "paused", "paused")
    until(lambda: ex.pause_button.description == "Resume" and "paused" in ex.status.value, "the button")
    held = r.progress.done
    time.sleep(0.3)
    assert r.progress.done == held
    ex.pause_button.click()
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
    until(lambda: f'<span class="wb-bad">{status}</span>' in ex.status.value, "status line")
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
    xs, ys = curves.series(rows, "step", "eval/loss", 50)
    assert len(xs) <= 50
    assert (xs[0], xs[-1]) == (1, 999)
    assert 99.0 in ys
    assert np.all(np.diff(xs) > 0)
    assert [rows[int(x)]["eval/loss"] for x in xs] == list(ys)
    assert len(curves.series(rows, "comm/up_bytes", "eval/loss", 50)[0]) == 0


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


# --- the verb -------------------------------------------------------------------------------------------------


def test_explore_gives_the_kernels_one_explorer(toy, monkeypatch):
    monkeypatch.setattr(entry, "_panel", None)
    import workbench

    first = workbench.explore(tracking="off")
    assert workbench.explore(tracking="off", max_points=100) is first
    assert first.board.max_points == 100
    assert "application/vnd.jupyter.widget-view+json" in first._repr_mimebundle_()
    first.choose("toy", "toy")
    first.run().wait(WAIT_S)
    assert len(workbench.explore(tracking="off").runs) == 1
    with pytest.raises(UserError, match="max_points = 2 is refused"):
        workbench.explore(max_points=2)


def test_in_a_batch_notebook_it_is_a_line_of_text(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(textwrap.dedent(f"""
        import sys; sys.path.insert(0, {str(ROOT)!r})
        import workbench
        workbench.explore()
    """))])
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    (output,) = notebook.cells[0].outputs
    assert "executed in batch" in output["text"]
    assert "widgets" not in notebook.metadata


def test_run_notebook_is_clean():
    notebook = json.loads((ROOT / "notebooks" / "run.ipynb").read_text())
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert all(not c["outputs"] and c["execution_count"] is None for c in code)
    assert sum("parameters" in c["metadata"].get("tags", []) for c in code) == 1
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert "explore(" not in json.dumps(code)

