"""The engine: determinism, resuming after a kill, caching, control, and the ways a run can end."""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch

from tracking import journal
from tracking.errors import UserError
from tracking.folder import RunFolder
from tracking.metrics import METRICS
from workbench import checkpoint, engine
from workbench.runs import Run, RunFailed, run
from workbench.spec import cores, resolve

ROOT = Path(__file__).parent.parent


def lasting(r: Run) -> list[tuple[int, dict[str, float]]]:
    """The journal without what depends on the moment (time, energy, memory)."""
    return [(e.step, {k: v for k, v in e.values.items() if not METRICS[k].volatile}) for e in journal.read(r.folder.journal_path)]


def go(**kwargs) -> Run:
    params = kwargs.pop("params", {})
    return run("toy", "toy", params, **{"tracking": "off", "progress": False, "threads": 1, **kwargs})


def test_same_spec_gives_identical_metrics(toy):
    first = lasting(go(params={"talk": True}))
    assert len(first) == 20
    assert first[-1][1]["comm/messages"] == 20
    assert lasting(go(params={"talk": True}, fresh=True)) == first
    assert lasting(go(params={"talk": True}, seed=1)) != first


def test_tracking_changes_no_metric(toy, tmp_path):
    off = lasting(go())
    on = go(fresh=True, tracking=f"sqlite:///{tmp_path}/m.db")
    assert lasting(on) == off
    assert on.url


def test_wall_time_leaves_evaluation_out(toy):
    toy.write_text(toy.read_text().replace("        ctx.poll()\n", "        ctx.poll()\n        time.sleep(0.05)\n"))
    begin = time.perf_counter()
    r = go(params={"steps": 10})
    took = time.perf_counter() - begin
    # ten evaluations slept 0.5 s; a step of the toy takes far less than a millisecond
    assert took > 0.5
    assert r.metrics["clock/wall_s"] < 0.25


KILLS = ["step:1", "step:7", "step:8", "step:19", "step:20", "save:before", "save:torn", "save:after", "journal:torn"]


@pytest.mark.parametrize("kill", KILLS)
def test_kill_9_then_resume_is_bit_identical(toy, kill):
    """The child process is killed at the named moment, again and again at later ones; then the run is asked for once more."""
    whole = lasting(go(params={"eval_every": 3}))
    resumed_from_checkpoint = False
    for attempt in range(3):
        pid = os.fork()  # the toy uses no thread pool, so a fork is safe and takes milliseconds
        if pid == 0:
            _die(kill, attempt)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), "the child outlived its kill"
        assert os.WTERMSIG(status) == signal.SIGKILL
        resumed_from_checkpoint |= (victim_folder().checkpoint_path).exists()
    ended = go(seed=5, params={"eval_every": 3}, checkpoint_s=0)
    assert ended.status == "finished"
    assert lasting(ended) == lasting(go(seed=5, params={"eval_every": 3}, fresh=True)) != whole
    assert resumed_from_checkpoint or kill in ("step:1", "save:before", "save:torn")


def victim_folder() -> RunFolder:
    from workbench.runs import runs_root
    from workbench.spec import resolve

    job = resolve("toy", "toy", {"eval_every": 3}, seed=5, threads=1, device="cpu")
    return RunFolder(runs_root() / job.spec.key)


def _die(kill: str, attempt: int) -> None:
    """In the child: run until the moment named by ``kill``, then SIGKILL oneself."""
    where, when = kill.split(":")

    def now() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    observer = None
    if where == "step":
        # a kill at step 20 comes after the last report and before the end; later attempts die where they can
        def observer(report):
            if report.step >= min(int(when) + attempt, 20):
                now()
    elif where == "save":
        real, count = checkpoint.write_atomic, [0]

        def write(path, data):
            count[0] += 1
            if count[0] < 3 + attempt and when == "after":
                return real(path, data)
            if when == "torn":  # half of the new file is on disk under its temporary name
                (path.parent / ".checkpoint.pt.half").write_bytes(bytes(data)[: len(data) // 2])
            elif when == "after":
                real(path, data)
            now()
        checkpoint.write_atomic = write
    else:
        real_append, lines = journal.Journal.append, [0]

        def append(self, *args, **kwargs):
            real_append(self, *args, **kwargs)
            lines[0] += 1
            if lines[0] == 4:
                os.write(self._fd, b'{"step":5,"time_ms":17')
                now()
        journal.Journal.append = append
    try:
        go(seed=5, params={"eval_every": 3}, observer=observer, checkpoint_s=0)
    finally:
        os._exit(0)


def files_of(r: Run) -> set[str]:
    return {path.name for path in r.folder.path.iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize("count", range(1, 7))
def test_kill_9_while_a_run_is_cleared_for_a_fresh_one(toy, count):
    """After the removal of each file of a finished run: what is left is never taken for a result."""
    first = go()
    first.folder.artifacts_path.mkdir()
    (first.folder.artifacts_path / "figure.html").write_text("kept")
    first.folder.error_path.write_text("an old traceback")
    whole, files = lasting(first), files_of(first)
    assert {"status.json", "checkpoint.pt", "journal.jsonl", "run.json"} < files
    pid = os.fork()
    if pid == 0:
        _die_clearing(count)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "the child outlived its kill"
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert len(files_of(first)) == len(files) - count
    ended = go()
    assert (ended.status, ended.cached) == ("finished", False)
    assert lasting(ended) == whole
    assert lasting(go()) == whole
    assert go().cached


def _die_clearing(count: int) -> None:
    """In the child: ask for the run afresh, and SIGKILL oneself after ``count`` files (or folders) of it are gone."""
    from workbench import engine

    gone, prepare = [0], engine.prepare

    def then_die(real):
        def remove(path, *args, **kwargs):
            there = os.path.lexists(path)
            real(path, *args, **kwargs)
            gone[0] += there
            if gone[0] == count:
                os.kill(os.getpid(), signal.SIGKILL)
        return remove

    def counting(*args, **kwargs):  # from here on only: other removals are none of a run's files
        Path.unlink, engine.shutil.rmtree = then_die(Path.unlink), then_die(engine.shutil.rmtree)
        prepare(*args, **kwargs)

    engine.prepare = counting
    try:
        go(fresh=True)
    finally:
        os._exit(0)


def test_finished_run_is_returned_and_others_never_are(toy):
    assert not go().cached
    assert go().cached
    assert not go(fresh=True).cached
    for _ in range(2):
        with pytest.raises(RunFailed, match="ValueError: the toy broke"):
            go(params={"fail_at": 3})


def test_changed_code_changes_the_key(toy):
    before = go()
    toy.write_text(toy.read_text() + "\n# another version\n")
    after = go()
    assert before.key != after.key
    assert not after.cached


def test_failed_run_says_why_in_one_line(toy):
    with pytest.raises(RunFailed, match=r"toy failed|failed: ValueError") as caught:
        go(params={"fail_at": 3})
    assert "\n" not in str(caught.value)
    folders = list(RunFolder(p) for p in (Path(os.environ["WORKBENCH_HOME"]) / "journals").iterdir())
    assert [f.read_status()["status"] for f in folders] == ["failed"]
    assert "Traceback" in folders[0].error_path.read_text()
    assert len(list(journal.read(folders[0].journal_path))) == 3  # what was computed before is kept


def test_out_of_memory_is_named(toy):
    with pytest.raises(RunFailed, match=r"out of memory\. Take a smaller"):
        go(params={"oom_at": 2})


def test_divergence_is_named_and_everything_before_is_kept(toy):
    r = go(params={"lr": 3.0, "steps": 100, "eval_every": 1000})
    assert r.status == "diverged"
    assert "train/loss" in r.reason
    assert "step" in r.reason
    rows = list(journal.read(r.folder.journal_path))
    assert 10 <= len(rows) < 100
    assert "train/loss" not in rows[-1].values  # the point that is no number is absent


def test_budget_ends_a_run_at_the_first_report_beyond_it(toy):
    r = go(budget={"train/samples": 7})
    assert r.status == "finished"
    assert r.metrics["train/samples"] == 7
    assert "eval/loss" in lasting(r)[-1][1]  # the last step is always evaluated


def test_stop_and_resume_from_python(toy):
    handle = go(params={"steps": 200, "sleep_s": 0.01}, wait=False)
    while len(handle.frame()) < 5:
        time.sleep(0.01)
    handle.pause()
    time.sleep(0.3)
    held = len(handle.frame())
    time.sleep(0.3)
    assert len(handle.frame()) == held
    assert handle.status == "paused"
    handle.resume()
    while len(handle.frame()) <= held:
        time.sleep(0.01)
    handle.stop()
    stopped = handle.wait(10)
    assert (stopped.status, stopped.reason) == ("stopped", "stopped by request")
    resumed = go(params={"steps": 200, "sleep_s": 0.01})
    assert resumed.status == "finished"
    assert lasting(resumed) == lasting(go(params={"steps": 200, "sleep_s": 0.01}, fresh=True))


def test_stop_during_evaluation_repeats_it_on_resuming(toy):
    from workbench.control import Stopped

    slow = "        for _ in range(200):\n            ctx.poll()\n            time.sleep(self.params.sleep_s)\n"
    toy.write_text(toy.read_text().replace("        ctx.poll()\n", slow))
    handle = go(params={"steps": 4, "sleep_s": 0.01}, wait=False)
    while handle.status != "running":
        time.sleep(0.01)
    time.sleep(0.5)  # inside the first evaluation, which takes two seconds
    begin = time.perf_counter()
    handle.stop()
    assert handle.wait(10).status == "stopped"
    assert time.perf_counter() - begin < 1.5  # an evaluation left alone would take the rest of its two seconds
    assert Stopped  # the engine's own exception does not leak
    resumed = go(params={"steps": 4, "sleep_s": 0.01})
    assert [s for s, _ in lasting(resumed)] == [1, 2, 3, 4]
    assert all("eval/loss" in values for _, values in lasting(resumed))


def test_orders_through_the_run_folder(toy):
    handle = go(params={"steps": 500, "sleep_s": 0.01}, wait=False)
    while len(handle.frame()) < 3:
        time.sleep(0.01)
    handle.folder.write_control("pause")
    while handle.folder.read_status()["status"] != "paused":
        time.sleep(0.02)
    handle.folder.write_control("run")
    while handle.folder.read_status()["status"] != "running":
        time.sleep(0.02)
    handle.folder.write_control("stop")
    assert handle.wait(10).reason == "stopped through its run folder"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_run_as_stopped(toy, number):
    code = ("from workbench.runs import run\n"
            "r = run('toy', 'toy', {'steps': 3000, 'sleep_s': 0.01}, tracking='off', progress=False,"
            " observer=lambda report: print(report.step, flush=True))\nprint(r.status, r.reason)")
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    for line in child.stdout:
        if line.strip() == "5":
            child.send_signal(number)
            break
    rest = child.stdout.read()
    assert child.wait(20) == 0
    assert rest.strip().splitlines()[-1] == f"stopped stopped by {number.name}"


def test_two_processes_never_share_a_run(toy):
    handle = go(params={"steps": 300, "sleep_s": 0.01}, wait=False)
    while handle.status != "running":
        time.sleep(0.01)
    with pytest.raises(UserError, match="held by process"):
        go(params={"steps": 300, "sleep_s": 0.01})
    handle.stop()
    handle.wait(10)


def test_full_disk_fails_the_run_and_keeps_the_journal(toy):
    """A file-size limit stands for the full disk: writes beyond it raise an OSError."""
    code = ("import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "from workbench.runs import run, RunFailed\nimport torch\n"
            "def cap(report):\n    if report.step == 5: resource.setrlimit(resource.RLIMIT_FSIZE, (900, resource.RLIM_INFINITY))\n"
            "try:\n    run('toy', 'toy', {'steps': 300}, tracking='off', progress=False, observer=cap)\n"
            "except RunFailed as error: print('FAILED', error)\n")
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert "FAILED" in child.stdout, child.stderr
    assert "File too large" in child.stdout
    folder = next((Path(os.environ["WORKBENCH_HOME"]) / "journals").iterdir())
    kept = list(journal.read(folder / "journal.jsonl"))
    assert len(kept) >= 3
    assert RunFolder(folder).read_status()["status"] == "failed"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY  # the limit was the child's alone
    assert go(params={"steps": 300}, threads=cores()).status == "finished"  # with room again, it goes on


def test_a_damaged_checkpoint_is_named(toy):
    handle = go(params={"steps": 400, "sleep_s": 0.01}, wait=False)
    while len(handle.frame()) < 3:
        time.sleep(0.01)
    handle.stop()
    folder = handle.wait(10).folder
    folder.checkpoint_path.write_bytes(folder.checkpoint_path.read_bytes()[:100])
    with pytest.raises(RunFailed, match="is damaged"):
        go(params={"steps": 400, "sleep_s": 0.01})


def test_observer_sees_each_step_and_the_trained_state_can_be_loaded(toy):
    seen = []
    r = go(observer=lambda report: seen.append((report.step, report.metrics["train/loss"])))
    assert [s for s, _ in seen] == list(range(1, 21))
    state, job = r.state()
    assert state.done == 20
    assert float(state.w.detach().square().sum()) == r.metrics["eval/loss"]
    assert job.spec.key == r.key


def test_state_bytes_counts_what_the_method_remembers(toy):
    r = go(params={"steps": 3}, task_params={"dim": 1000})
    # w and its momentum are 4000 bytes each, float32; the torch generator's state is 5056 bytes
    generator = torch.Generator().get_state().numel()
    assert r.metrics["memory/state_bytes"] == 2 * 4000 + generator


def test_threads_of_the_caller_are_left_alone(toy):
    before = torch.get_num_threads()
    go(threads=3)
    assert torch.get_num_threads() == before


def test_runs_in_threads_side_by_side_equal_runs_alone(toy):
    alone = [lasting(go(seed=s)) for s in range(3)]
    results: dict[int, Run] = {}
    threads = [threading.Thread(target=lambda s=s: results.__setitem__(s, go(seed=s, fresh=True))) for s in range(3)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert [lasting(results[s]) for s in range(3)] == alone


def test_global_random_state_is_left_alone(toy):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    go(fresh=True)
    assert torch.equal(torch.rand(3), expected)


def test_run_json_tells_all(toy):
    r = go(params={"steps": 2})
    info = json.loads(r.folder.run_path.read_text())
    assert info["params"] | {"steps": 2, "method": "toy", "task": "toy", "seed": 0} == info["params"]
    assert {"torch", "python", "cpu"} <= set(info["provenance"])
    assert info["key"] == r.key == r.folder.path.name


def test_an_ended_run_frees_its_data_at_once(monkeypatch):
    """A sweep of many runs holds the data of one: nothing waits for a garbage collection."""
    kept = []
    run_loop = engine.Loop.run

    def remember(loop):
        kept.extend(weakref.ref(o) for o in (loop, loop.job.task))
        return run_loop(loop)

    monkeypatch.setattr(engine.Loop, "run", remember)
    gc.disable()
    try:
        run("full_precision", "digits/mlp", {"epochs": 1}, tracking="off", progress=False, threads=1)
    finally:
        gc.enable()
    assert len(kept) == 2
    assert [ref() for ref in kept] == [None, None]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity to set on this system")
def test_threads_are_those_that_the_process_may_use(toy, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert cores() == resolve("toy", "toy").spec.threads == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert cores() == len(allowed)
    monkeypatch.setenv("OMP_NUM_THREADS", "1,2")  # as for nested loops
    assert cores() == resolve("toy", "toy").spec.threads == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "999")
    assert cores() == len(allowed)
