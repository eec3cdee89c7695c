"""The cost before a run: against the run itself, in words, and as the explorer's line."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import WAIT_S
from tests.test_explorer_runs import until
from tests.test_modelled import with_network
from tracking.codecs import Dense
from tracking.errors import UserError
from workbench.cost import Cost, preview
from workbench.explorer import preview as line
from workbench.runs import run, runs_root


def test_costs_are_those_of_the_run_that_follows(toy):
    """Toy steps are alike, so the proportion is exact: bytes, samples, joules and operations of the run itself."""
    with_network(toy, "torch.nn.Linear(3, 2)")
    given = {"steps": 7, "talk": True, "sleep_s": 0.02}
    cost = preview("toy", "toy", given, device="cpu")
    assert not runs_root().exists()  # nothing is written
    ended = run("toy", "toy", given, tracking="off", progress=False, device="cpu")
    assert cost.steps == 7
    assert cost.samples == ended.metrics["train/samples"]
    assert cost.run_bytes == ended.metrics["comm/up_bytes"]
    assert cost.step_bytes * 7 == pytest.approx(cost.run_bytes)
    assert cost.model_j == pytest.approx(ended.metrics["energy/model_j"])
    assert cost.flops == 7 * 2 * 2 * 3 * 2  # a sample: 3 times 2 products in the forward pass and as many for the weights, two each
    assert cost.parameters == 3 * 2 + 2
    assert cost.state_bytes > 0
    assert cost.step_s >= 0.02
    assert cost.run_s == pytest.approx(7 * cost.step_s)


def test_what_is_not_known_is_absent_and_not_zero(toy):
    cost = preview("toy", "toy", {"steps": 3}, device="cpu")
    assert (cost.parameters, cost.flops, cost.step_bytes, cost.run_bytes, cost.model_j) == (None,) * 5
    text = line.in_words(cost)
    assert all(word not in text for word in ("parameters", "FLOP", "sent", "modelled"))
    assert "of state" in text
    with pytest.raises(UserError, match="lr = -1"):
        preview("toy", "toy", {"lr": -1.0})


def test_a_network_that_the_task_brings_is_counted_where_the_state_holds_none(toy):
    toy.write_text(toy.read_text().replace("self.start =", "self.model = torch.nn.Linear(3, 2)\n        self.start ="))
    assert preview("toy", "toy", {"steps": 3}, device="cpu").parameters == 3 * 2 + 2


def test_only_one_step_is_made(toy):
    with pytest.raises(ValueError, match="the toy broke"):
        preview("toy", "toy", {"fail_at": 0}, device="cpu")
    assert preview("toy", "toy", {"fail_at": 1}, device="cpu").steps == 20


def test_cost_in_words():
    cost = Cost(steps=10, parameters=12_345, state_bytes=2_000_000, step_s=0.5, run_s=5.0, samples=100, flops=3.2e12, step_bytes=1500,
                run_bytes=15_000, model_j=0.0042, model="ascend_like, as_trained")
    assert line.in_words(cost) == ("Cost of this run, from one step: 12,345 parameters; 2 MB of state; about 5 s; 3.2 TFLOP of products; "
                                   "1.5 kB sent a step, 15 kB in all; 4.2 mJ modelled (ascend_like, as_trained).")
    assert "these 3 runs" in line.in_words(cost, 3)
    assert "about 15 s" in line.in_words(cost, 3)
    assert line.in_words(Cost()) == "Nothing is known of the cost of this run."


@given(value=st.floats(1e-11, 1e17), seconds=st.floats(1e-3, 1e8))
def test_words_are_within_their_digits(value, seconds):
    number, word = line.amount(value, "J").split(" ")
    factor = {"J": 1.0, "P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "m": 1e-3, "µ": 1e-6, "n": 1e-9, "p": 1e-12}[word[0]]
    assert float(number) * factor == pytest.approx(value, rel=5.1e-3)  # three digits
    number, word = line.duration(seconds).split(" ")
    assert float(number) * {"ms": 1e-3, "s": 1, "min": 60, "h": 3600, "days": 86400}[word] == pytest.approx(seconds, rel=5.1e-2)


def test_the_line_appears_follows_the_form_and_waits_for_what_trains(ex, monkeypatch):
    """A real process of its own, hurried past by a change of the form; one that takes too long is ended, and the next form priced."""
    monkeypatch.setattr(line, "QUIET_S", 0.05)
    monkeypatch.setattr(line, "HURRY_S", 0.2)
    shown = ex.preview.html
    assert "Cost of" not in shown.value
    ex.set(steps=4, sleep_s=3.0)
    try:
        ex._repr_mimebundle_()
        until(lambda: "being worked out" in shown.value, "the work")
        ex.set(steps=6, sleep_s=0.0, talk=True)
        ex.preview.wait(WAIT_S)
        text = shown.value
        assert "Cost of this run" in text
        size = len(Dense().encode(torch.zeros(2)))
        assert f"{line.amount(size, 'B')} sent a step, {line.amount(6 * size, 'B')} in all" in text
        process = ex.preview._child.pid
        ex.set(seeds=2)
        ex.preview.wait(WAIT_S)
        assert "Cost of these 2 runs" in shown.value
        assert ex.preview._child.pid == process  # it is kept: starting one takes seconds
        ex.set(sleep_s=0.6)
        until(lambda: ex.preview._pricing, "the work on it")
        ex.set(seeds=3)  # for less than HURRY_S: what is at work is wanted again
        ex.set(seeds=2)
        ex.preview.wait(WAIT_S)
        assert "Cost of these 2 runs" in shown.value
        assert ex.preview._child.pid == process
        ex.set(sleep_s=0.0)
        ex.set(fail_at=0)
        ex.preview.wait(WAIT_S)
        assert "the toy broke" in shown.value
        monkeypatch.setattr(line, "LIMIT_S", 1.0)
        ex.set(fail_at=-1, sleep_s=9.0)
        ex.preview.wait(WAIT_S)
        assert "takes longer than 1 s" in shown.value
        monkeypatch.setattr(line, "LIMIT_S", 60.0)
        ex.set(fail_at=-1, steps=100_000, sleep_s=0.01, seeds=1)
        ex.run()
        ex.set(steps=9)
        until(lambda: "when nothing trains" in shown.value, "the wait")
        ex.stop()
        ex.preview.wait(WAIT_S)
        assert "Cost of this run" in shown.value
        ex.forms["method"].fields["lr"].control.value = "-1"
        assert "Cost of" not in shown.value
    finally:
        ex.preview.close()
    until(lambda: ex.preview._thread is None, "the thread to end")


@pytest.mark.parametrize(("code", "said"), [
    ("import os; os._exit(3)", "ended with code 3"), ("import os; os.kill(os.getpid(), 9)", "out of memory"), ("print('{}')", "KeyError"),
])
def test_a_process_that_ends_by_itself_or_talks_nonsense_is_told_and_the_next_form_is_priced(ex, monkeypatch, code, said):
    """A step that ends its process (a crash, too much memory) must leave neither a silent line nor a thread that is dead for good."""
    monkeypatch.setattr(line, "QUIET_S", 0.01)

    def broken(request):
        ex.preview._child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return ex.preview._child

    monkeypatch.setattr(ex.preview, "_ask_child", broken)
    ex.preview.begin()
    try:
        ex.preview.wait(WAIT_S)
        assert "The cost is not known" in ex.preview.html.value
        assert said in ex.preview.html.value
        monkeypatch.setattr(ex.preview, "_ask_child", lambda request: (_ for _ in ()).throw(OSError("no more processes")))
        ex.set(steps=7)
        ex.preview.wait(WAIT_S)
        assert "no more processes" in ex.preview.html.value
    finally:
        ex.preview.close()
