"""The explorer's modelled joules: hardware and scenario changed while a run goes and after it, without training anew."""

from __future__ import annotations

import shutil
import threading

import numpy as np
import pytest

from tests.conftest import WAIT_S
from tests.test_explorer_runs import until
from tests.test_modelled import with_network
from tracking.energy_model import SCENARIOS, estimate
from tracking.folder import RunFolder
from workbench.explorer import energy
from workbench.explorer.listed import ListedRun
from workbench.modelled import METRIC, Choice, joule_hardware
from workbench.runs import runs_root


def joules(*choice: str) -> float:
    """Of one sample of the plugin's network."""
    import torch

    return estimate(torch.nn.Linear(3, 2), (5, 3), "fp32", *choice).per_sample_j


@pytest.fixture
def modelling(ex, toy):
    """The explorer; its toy declares a network."""
    with_network(toy, "torch.nn.Linear(3, 2)")
    ex.choose("toy", "toy")
    ex.set(steps=6)
    return ex


def finished(ex) -> ListedRun:
    r = ex.run()
    assert r.wait(WAIT_S) == "finished"
    until(lambda: len(r.rows) == 6 and METRIC in ex.board.axis.options, "the whole journal")
    return r


def drawn(ex, n: int = 0) -> tuple[list[float], list[float]]:
    """Points of a curve; none where it is not drawn yet."""
    traces = ex.board.figure.data
    held = (traces[n].x, traces[n].y) if len(traces) > n else (None, None)
    return tuple([] if points is None else list(points) for points in held)


def test_the_lists_say_what_they_are_and_come_with_the_joules(modelling):
    picker = modelling.board.energy
    assert picker.box.layout.display == "none"
    finished(modelling)
    assert picker.box.layout.display == "none"  # nothing on screen depends on them
    modelling.board.axis.value = METRIC
    assert picker.box.layout.display is None
    assert list(picker.hardware.options) == joule_hardware()
    assert list(picker.scenario.options) == list(SCENARIOS)
    for control, name in ((picker.hardware, "hardware"), (picker.scenario, "scenario")):
        assert control.description == name
        assert METRIC in control.tooltip
        assert control.tabbable is not False
        assert not control.disabled
    assert SCENARIOS["as_trained"].description in picker.note.value
    modelling.board.axis.value = "step"
    assert picker.box.layout.display == "none"


def test_a_method_without_joules_shows_no_lists(ex):
    ex.set(steps=3)
    ex.run().wait(WAIT_S)
    until(lambda: len(drawn(ex)[0]) == 3, "the curve")
    assert ex.board.energy.box.layout.display == "none"


@pytest.mark.parametrize("choice", [Choice("v100_like"), Choice(scenario="without_update"), Choice("cpu_like", "unfused")], ids=str)
def test_another_choice_moves_the_curve_of_an_ended_run(modelling, choice):
    r = finished(modelling)
    board, rows = modelling.board, [dict(row) for row in r.rows]
    board.axis.value = METRIC
    samples = np.arange(1, 7)
    np.testing.assert_allclose(drawn(modelling)[0], samples * joules("ascend_like"), rtol=1e-12)
    assert board.figure.layout.xaxis.title.text == f"{METRIC} [J], ascend_like, as_trained"
    losses = drawn(modelling)[1]
    board.energy.hardware.value, board.energy.scenario.value = choice
    until(lambda: board.figure.layout.xaxis.title.text == f"{METRIC} [J], {choice}", "the other axis")
    np.testing.assert_allclose(drawn(modelling)[0], samples * joules(*choice), rtol=1e-12)
    assert drawn(modelling)[1] == losses
    board.metric.value, board.axis.value = METRIC, "step"
    np.testing.assert_allclose(drawn(modelling)[1], samples * joules(*choice), rtol=1e-12)
    assert f"{METRIC} [J], {choice}" in board.table.value
    for figure in (f"{6 * joules(*choice):.4g}", f"{joules(*choice):.4g}"):  # the last, and the best: of the first step
        assert f">{figure}<" in board.table.value
    assert SCENARIOS[choice.scenario].description in board.energy.note.value
    assert r.rows == rows
    assert len(modelling.runs) == 1
    board.energy.hardware.value, board.energy.scenario.value = Choice()
    until(lambda: board.energy.model == Choice(), "the way back")
    assert drawn(modelling)[1] == [row[METRIC] for row in rows]


def test_another_choice_moves_the_curve_of_a_run_that_goes_on(modelling):
    modelling.set(steps=100_000, sleep_s=0.01)
    r, board = modelling.run(), modelling.board
    until(lambda: METRIC in board.axis.options, "joules")
    board.axis.value = METRIC
    board.energy.hardware.value = "v100_like"
    until(lambda: "v100_like" in board.figure.layout.xaxis.title.text, "the other axis")
    before = len(drawn(modelling)[0])
    until(lambda: len(drawn(modelling)[0]) > before + 5, "the curve going on")
    xs = np.array(drawn(modelling)[0])
    np.testing.assert_allclose(xs, np.arange(1, len(xs) + 1) * joules("v100_like"), rtol=1e-12)
    assert r.status == "running"


def test_a_run_that_joins_is_drawn_for_the_same_choice(modelling):
    finished(modelling)
    modelling.board.axis.value = METRIC
    modelling.board.energy.hardware.value = "cpu_like"
    modelling.set(seed=1)
    assert modelling.run().wait(WAIT_S) == "finished"
    until(lambda: len(drawn(modelling, 1)[0]) == 6, "the second curve")
    for n in (0, 1):
        np.testing.assert_allclose(drawn(modelling, n)[0], np.arange(1, 7) * joules("cpu_like"), rtol=1e-12)


def test_a_long_estimate_blocks_nobody_and_shows_no_figure_under_a_wrong_name(modelling, monkeypatch):
    finished(modelling)
    board, gate, real = modelling.board, threading.Event(), energy.estimate_folder
    board.axis.value = METRIC

    def slow(*arguments):
        assert threading.current_thread() is not threading.main_thread()
        assert gate.wait(WAIT_S)
        return real(*arguments)

    monkeypatch.setattr(energy, "estimate_folder", slow)
    before = drawn(modelling)[0]
    board.energy.hardware.value = "v100_like"
    board.energy.hardware.value = "cpu_like"  # while the first is being worked out
    assert "Being worked out" in board.energy.note.value
    board.log_y.value = True  # the board can be used meanwhile
    assert board.figure.layout.yaxis.type == "log"
    assert drawn(modelling)[0] == before
    assert board.figure.layout.xaxis.title.text.endswith("ascend_like, as_trained")
    gate.set()
    until(lambda: "cpu_like" in board.figure.layout.xaxis.title.text, "the last choice")
    np.testing.assert_allclose(drawn(modelling)[0], np.arange(1, 7) * joules("cpu_like"), rtol=1e-12)
    assert "Being worked out" not in board.energy.note.value


def test_a_lost_trace_costs_its_own_curve_alone(modelling):
    lost = finished(modelling)
    modelling.set(seed=1)
    modelling.run().wait(WAIT_S)
    until(lambda: len(drawn(modelling, 1)[0]) == 6, "two curves")
    shutil.rmtree(RunFolder(runs_root() / lost.key).artifacts_path)
    modelling.board.axis.value = METRIC
    modelling.board.energy.hardware.value = "v100_like"
    until(lambda: "Run 1 has no estimate" in modelling.board.energy.note.value, "the note")
    until(lambda: drawn(modelling, 0) == ([], []) and len(drawn(modelling, 1)[0]) == 6, "the second curve alone")
    np.testing.assert_allclose(drawn(modelling, 1)[0], np.arange(1, 7) * joules("v100_like"), rtol=1e-12)
    modelling.board.metric.value = METRIC
    assert "nan" not in modelling.board.table.value
