"""Sweeps: every combination once, mistakes before any work, and one run that fails takes no other down."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_engine import lasting
from tracking.errors import UserError
from tracking.folder import RunFolder
from workbench.runs import run, runs_root
from workbench.spec import resolve
from workbench.sweeps import grid, sweep

ROOT = Path(__file__).parent.parent
QUIET = {"tracking": "off", "progress": False, "threads": 1}


def folder_of(**job) -> RunFolder:
    return RunFolder(
        runs_root() / resolve(**{"method": "toy", "task": "toy", "threads": 1, "device": "cpu", **job}).spec.key
    )


def wait_until(true, timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


# --- grids --------------------------------------------------------------------------------------------------

NAMES = st.lists(st.sampled_from("abcdef"), max_size=3, unique=True)


@given(
    st.lists(st.sampled_from(["m1", "m2", "m3"]), min_size=1, max_size=2, unique=True),
    st.lists(st.integers(0, 2), max_size=3, unique=True),
    NAMES,
    st.data(),
)
def test_a_grid_is_the_product(methods, values, names, data):
    varied = {n: data.draw(st.lists(st.integers(0, 9), max_size=3, unique=True)) for n in names}
    jobs = grid(methods, ["t1", "t2"], {"common": 1}, **varied)
    expected = [
        (m, t, *combination)
        for m in methods
        for t in ("t1", "t2")
        for combination in itertools.product(*varied.values())
    ]
    assert [(j["method"], j["task"], *(j["params"][n] for n in varied)) for j in jobs] == expected
    assert all(j["params"]["common"] == 1 for j in jobs)
    assert len({id(j["params"]) for j in jobs}) == len(jobs), "each run has parameters of its own"


def test_a_varied_parameter_wins_over_the_common_one():
    assert grid("m", "t", {"lr": 1}, lr=[2]) == [{"method": "m", "task": "t", "params": {"lr": 2}}]
    for wrong in ("0.1", 0.1):
        with pytest.raises(UserError, match="Give a list of values"):
            grid("m", "t", lr=wrong)


# --- here ---------------------------------------------------------------------------------------------------


def test_seeds_and_parameters_are_run_and_tabled(toy):
    result = sweep(grid("toy", "toy", {"steps": 3}, lr=[0.1, 0.2]), seeds=2, **QUIET)
    table = result.table()
    assert table[["lr", "seed", "status"]].values.tolist() == [[lr, s, "finished"] for lr in (0.1, 0.2) for s in (0, 1)]
    assert table["eval/loss"].nunique() == 4
    assert result.failures == []
    # a run of a sweep is a run like any other
    assert lasting(run("toy", "toy", {"steps": 3, "lr": 0.2}, seed=1, **QUIET)) == lasting(result.runs[3])
    assert [
        r.cached for r in sweep(grid("toy", "toy", {"steps": 3}, lr=[0.1, 0.2, 0.3]), seeds=[1, 0], **QUIET).runs
    ] == [True] * 4 + [False] * 2


def test_seeds_may_come_from_numpy(toy):
    import numpy as np

    result = sweep([{"method": "toy", "task": "toy", "params": {"steps": 1}}], seeds=np.arange(2), **QUIET)
    assert [r.spec["seed"] for r in result.runs] == [0, 1]


def test_each_dictionary_keeps_its_own_seed_where_none_is_given(toy):
    result = sweep([{"method": "toy", "task": "toy", "seed": s, "params": {"steps": 1}} for s in (4, 7)], **QUIET)
    assert [r.spec["seed"] for r in result.runs] == [4, 7]


def test_a_failing_run_is_named_and_the_others_finish(toy):
    result = sweep(grid("toy", "toy", {"steps": 5}, fail_at=[-1, 2, 9]), **QUIET)
    assert [r.status for r in result.runs] == ["finished"] * 2
    [(job, reason)] = result.failures
    assert job["params"]["fail_at"] == 2
    assert "ValueError: the toy broke" in reason
    assert len(result.table()) == 2


GOOD = {"method": "toy", "task": "toy", "params": {"steps": 2}}


@pytest.mark.parametrize("executor", ["local", "processes"])
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"params": {"stps": 2}}, "Did you mean 'steps'"),
        ({"params": {"lr": -1}}, "lr = -1 is refused"),
        ({"method": "tyo"}, "Unknown method 'tyo'"),
        ({"task": "digts/mlp"}, "Did you mean 'digits/mlp'"),
        ({"seed": -1}, "seed = -1"),
        ({"budget": {"train/loss": 1}}, "does not accumulate"),
        ({"device": "gpu"}, "device = 'gpu'"),
        ({"sed": 1}, "Unknown argument of a run in a sweep 'sed'. Did you mean 'seed'"),
        ({"wait": False}, "Unknown argument"),
        ({"tracking": "/a/folder"}, "Tracking address '/a/folder' is refused"),
        ({"method": None}, "Unknown method"),
    ],
)
def test_all_mistakes_are_found_before_any_work(toy, wrong, words, executor):
    with pytest.raises(UserError, match=words):
        sweep([GOOD, {**GOOD, **wrong}], executor=executor, **{k: v for k, v in QUIET.items() if k not in wrong})
    assert not runs_root().exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"executor": "ray"}, "Unknown executor 'ray'"),
        ({"seeds": 0}, "has no runs"),
        ({"seeds": -3}, "has no runs"),
        ({"seeds": True}, "seeds = True"),
        ({"seeds": "3"}, "seeds = '3'"),
        ({"seeds": 2.0}, "seeds = 2.0"),
        ({"workers": 0}, "workers = 0"),
        ({"workers": -1}, "workers = -1"),
        ({"sed": 3}, "Did you mean 'seed'"),
        ({"seeds": ["a"]}, "seed = 'a'"),
        ({"tags": {"a": {1}}, "executor": "processes"}, "another process"),
    ],
)
def test_mistakes_in_the_sweep_itself(toy, arguments, words):
    with pytest.raises(UserError, match=words):
        sweep([GOOD], **QUIET, **arguments)
    assert not runs_root().exists()


def test_a_run_must_name_method_and_task_and_a_sweep_must_have_runs(toy):
    for job in ({"task": "toy"}, {"method": "toy"}):
        with pytest.raises(UserError, match="names no"):
            sweep([job], **QUIET)
    with pytest.raises(UserError, match="has no runs"):
        sweep([], **QUIET)
    with pytest.raises(UserError, match="observer cannot follow"):
        sweep([{**GOOD, "observer": print}], executor="processes", **QUIET)
    assert sweep([{**GOOD, "observer": lambda report: None}], **QUIET).runs[0].status == "finished"


# --- in processes of their own ------------------------------------------------------------------------------


def test_processes_survive_a_kill_and_an_error(toy):
    """One is killed from outside in the middle, one raises, one is asked for twice; the rest finish with the figures they have alone."""
    victim = {"steps": 3000, "sleep_s": 0.01}
    jobs = [{"method": "toy", "task": "toy", "params": p} for p in (victim, {"fail_at": 1}, {"steps": 4}, {"steps": 4})]
    folder = folder_of(params=victim)

    def kill() -> None:
        wait_until(lambda: folder.journal_path.is_file() and folder.journal_path.read_text().count("\n") > 3)
        os.kill(folder.read_status()["pid"], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    result = sweep(jobs, executor="processes", workers=2, device="cpu", **QUIET)
    killer.join()
    assert [r.status for r in result.runs] == ["finished"] * 2
    assert result.runs[0].key == result.runs[1].key
    assert lasting(result.runs[0]) == lasting(run("toy", "toy", {"steps": 4}, fresh=True, device="cpu", **QUIET))
    assert [job["params"] for job, _ in result.failures] == [victim, {"fail_at": 1}]
    assert "killed by SIGKILL; run the sweep again to resume it" in result.failures[0][1]
    assert "ValueError: the toy broke" in result.failures[1][1]
    with folder.lock():  # nobody holds the victim's run any more
        assert folder.read_status()["status"] == "running"


SWEEP = """
import json, sys
from workbench.sweeps import grid, sweep
result = sweep(grid("toy", "toy", {"steps": 200, "sleep_s": 0.01}), seeds=3, executor=sys.argv[1], workers=1, threads=1, device="cpu",
               tracking="off", progress=False)
print(json.dumps([[(r.spec["seed"], r.status, r.reason) for r in result.runs], result.failures]))
"""


@pytest.mark.parametrize("executor", ["local", "processes"])
def test_an_interrupt_stops_the_run_under_way_and_it_resumes_later(toy, executor):
    params = {"steps": 200, "sleep_s": 0.01}
    first = folder_of(params=params)
    child = subprocess.Popen([sys.executable, "-c", SWEEP, executor], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    wait_until(lambda: first.journal_path.is_file() and first.journal_path.read_text().count("\n") > 3)
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    by = "SIGINT" if executor == "local" else "SIGTERM"  # the sweep hands it on to the process of the run
    assert json.loads(out) == [[[0, "stopped", f"stopped by {by}"]], []]
    reported = first.journal_path.read_text().count("\n")
    assert 3 < reported < 200
    seen = []
    ended = run("toy", "toy", params, device="cpu", observer=lambda report: seen.append(report.step), **QUIET)
    assert ended.status == "finished"
    assert seen[0] == reported + 1, "it goes on where it stopped"
    assert [step for step, _ in lasting(ended)] == list(range(1, 201))


def test_a_sweep_stops_when_its_seconds_are_over(toy):
    """A run that would take minutes is under way by then, and the other has not begun."""
    long = {"method": "toy", "task": "toy", "params": {"steps": 30_000, "sleep_s": 0.01}}
    result = sweep([long], seeds=2, device="cpu", seconds=1.0, **QUIET)
    assert [(r.spec["seed"], r.status, r.reason) for r in result.runs] == [(0, "stopped", "the sweep's 1 s were over")]
    assert not result.failures
    assert len(lasting(result.runs[0])) < 30_000


def test_the_seconds_of_a_sweep_are_checked(toy):
    with pytest.raises(UserError, match="seconds = -1 is refused"):
        sweep([GOOD], seconds=-1, **QUIET)
