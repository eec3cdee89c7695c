"""Modules in processes of their own: equal to the simulation in lock step, free-running otherwise, ended cleanly when one is killed."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import tracking_helpers
from tests.test_dgl_methods import BATCHES, PARAMS, SIZES, TASK, Ran
from tracking.errors import UserError
from workbench.decoupled import processes
from workbench.decoupled.process_links import HEADER_BYTES
from workbench.decoupled.processes import start

# processes import torch, which takes many seconds on a machine that is busy
WAIT_S = 250.0
wait_for = functools.partial(tracking_helpers.wait_for, timeout=WAIT_S)
THREE = PARAMS | {"modules": 3, "head": "mlp"}


def begin(method: str, folder: Path, **params):
    return start(method, TASK, THREE | params, task_params=SIZES, folder=folder)


def all_gone(running) -> bool:
    return all(worker.exitcode is not None for worker in running.workers)


@pytest.mark.timeout(300)
def test_in_lock_step_processes_are_the_simulation_to_the_bit(tmp_path):
    """Weights, batch statistics and heads of every module, test figures and bytes."""
    with begin("dgl", tmp_path / "run") as running:
        outcome = running.wait(WAIT_S)
    assert (outcome.status, outcome.reason) == ("finished", "")
    assert all_gone(running)
    simulated = Ran("dgl", modules=3)
    network = simulated.state.training.network
    for j in range(3):
        saved = outcome.state_dict(j)
        assert saved["updates"] == outcome.modules[j]["updates"] == 2 * BATCHES
        for part, module in (("body", network.bodies[j]), ("head", network.heads[j])):
            ours = module.state_dict()
            assert saved[part].keys() == ours.keys()
            assert all(torch.equal(saved[part][key], value) for key, value in ours.items()), f"{part} of module {j + 1}"
    assert outcome.accuracy.items() <= simulated.evaluate().items()
    # on the wire: what the ledger bills, and a header a message; all that was sent was received
    billed = sum(row["bytes"] for line in outcome.modules for row in line["ledger"])
    assert billed == simulated.bytes("up")
    sent = [line["wire_sent_bytes"] for line in outcome.modules]
    assert sum(sent) == billed + 2 * 2 * BATCHES * HEADER_BYTES
    assert [line["wire_received_bytes"] for line in outcome.modules] == [0, *sent[:-1]]
    for line in (x for x in outcome.modules if "kernel_received_bytes" in x):
        # gloo puts some tens of bytes before each of the three parts of a message, and processes exchange some to meet
        over = line["kernel_received_bytes"] - line["wire_received_bytes"]
        assert 0 <= over <= 3 * 2 * BATCHES * 100 + 20_000
    assert len(outcome.record(0)) >= 2, "a line an epoch"
    for j, line in enumerate(outcome.modules):
        assert 0 < line["busy_s"] <= line["seconds"]
        assert line["busy_s"] + line["waited_s"] <= line["seconds"]
        # phases take up all of the time, and the module's thread had a processor for no more than that
        assert sum(line["phases_s"].values()) == pytest.approx(line["seconds"])
        work = sum(s for phase, s in line["phases_s"].items() if phase in ("feed", "decode", "train", "encode"))
        assert work == pytest.approx(line["busy_s"])
        assert 0 < sum(line["phases_cpu_s"].values()) <= line["cpu_s"] * 1.01 + 0.02
        assert set(line["phases_s"]) == {"record", "train", "wait", *(["decode"] if j else ["feed"]), *(["encode"] if j < 2 else [])}
        shares = line["updates"] / line["updates_per_s"], line["busy_s"] / line["utilisation"], line["waited_s"] / line["idle"]
        assert shares == pytest.approx([line["seconds"]] * 3)
        # the module's own, and Adam's two moments and a step count a parameter; nothing of the other modules
        own = [*network.bodies[j].parameters(), *network.heads[j].parameters()]
        buffers = [*network.bodies[j].buffers(), *network.heads[j].buffers()]
        adam = sum(2 * p.numel() * 4 + 4 for p in own)
        assert line["state_bytes"] == sum(t.numel() * t.element_size() for t in (*own, *buffers)) + adam


@pytest.mark.timeout(300)
def test_free_processes_do_their_updates_and_what_a_slow_one_sends_is_read_again(tmp_path):
    """Quantised links, the first module four times as slow, by sleep: the second repeats batches."""
    options = {"modules": 2, "slow_module": 1, "slowdown": 4.0, "codewords": 8, "group_size": 1, "sync_every": 3, "drift": "versioned",
               "buffer": 4}
    with begin("async_dgl_vq", tmp_path / "run", **options) as running:
        outcome = running.wait(WAIT_S)
    assert (outcome.status, outcome.reason) == ("finished", "")
    first, second = outcome.modules
    assert [line["updates"] for line in outcome.modules] == [2 * BATCHES] * 2
    assert first["slept_s"] == pytest.approx(3 * first["busy_s"], rel=1e-6)
    assert second["reuse"] > 0
    assert second["buffer_bytes"] > 0
    # messages under way when the run ended are sent, and need not have been taken in
    assert 0 < second["wire_received_bytes"] <= first["wire_sent_bytes"]
    messages = next(r["messages"] for r in first["ledger"] if r["codec"] == "vq")
    assert first["wire_sent_bytes"] == sum(r["bytes"] for r in first["ledger"]) + HEADER_BYTES * messages
    assert 0 <= outcome.accuracy["eval/accuracy"] <= 1


@pytest.mark.timeout(300)
def test_a_killed_process_ends_the_run_with_all_that_was_recorded(tmp_path):
    """SIGKILL of a module between two others: the run says so, and these end with a last line and their modules saved."""
    with begin("async_dgl", tmp_path / "run", epochs=10_000) as running:
        wait_for(lambda: min(running.updates()) > 2 * BATCHES)
        os.kill(running.workers[1].pid, signal.SIGKILL)
        outcome = running.wait(WAIT_S)
        assert all_gone(running), "before anyone closes it"
    assert (outcome.status, outcome.reason) == ("stopped", "module 2 was killed by signal 9")
    for j in (0, 2):
        last, saved = outcome.modules[j], outcome.state_dict(j)
        assert running.workers[j].exitcode == 0
        assert last["updates"] == saved["updates"] == running.updates()[j]
        assert all(value.isfinite().all() for value in saved["body"].values())
    assert outcome.state_dict(1)["updates"] >= BATCHES, "as of an epoch"
    assert outcome.record(1)[-1]["updates"] >= BATCHES
    assert outcome.accuracy == {}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_process_that_stands_still_is_killed_when_the_run_is_to_end(tmp_path, monkeypatch):
    """SIGSTOP: its links stall, the module behind goes on with what it has, and a run that is ended waits for it for so long only."""
    monkeypatch.setattr(processes, "END_S", 5.0)
    with begin("async_dgl", tmp_path / "run", epochs=10_000) as running:
        wait_for(lambda: min(running.updates()) > 2)
        os.kill(running.workers[1].pid, signal.SIGSTOP)
        before = running.updates()[2]
        wait_for(lambda: running.updates()[2] > before + 10)
        running.stop()
        outcome = running.wait(WAIT_S)
    assert (outcome.status, outcome.reason) == ("stopped", "module 2 did not end and was killed")
    assert [worker.exitcode for worker in running.workers] == [0, -signal.SIGKILL, 0]
    assert [outcome.modules[j]["updates"] for j in (0, 2)] == [running.updates()[j] for j in (0, 2)]


@pytest.mark.parametrize(("method", "params", "words"), [
    ("dni", {}, "Allowed|runs in processes|Known"), ("async_dgl", {"schedule": "random"}, "at their own pace"),
    ("dgl", {"latency": 0.1}, "real links"), ("async_dgl", {"costs": "macs"}, "as long as it takes"), ("dgl", {"modules": 11}, "modules"),
])
def test_what_cannot_run_is_refused_before_anything_starts(method, params, words, tmp_path):
    with pytest.raises(UserError, match=words):
        begin(method, tmp_path / "run", **params)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("device", "words"), [("cuda", "torch finds no GPU here"), ("gpu", "Known|Did you mean|cuda")])
def test_a_device_that_is_not_there_is_refused(device, words, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=words):
        start("dgl", TASK, THREE, folder=tmp_path / "run", device=device)
    assert not (tmp_path / "run").exists()


def test_a_used_folder_is_refused(tmp_path):
    (tmp_path / "something").touch()
    with pytest.raises(UserError, match="not empty"):
        begin("dgl", tmp_path)


@pytest.mark.slow
def test_a_run_ends_with_its_caller(tmp_path):
    """SIGKILL of the process that started it: nobody waits for the modules any more, and they end by themselves."""
    program = (f"import json, time\nfrom workbench.decoupled.processes import start\n"
               f"running = start('async_dgl', {TASK!r}, {THREE | {'modules': 2, 'epochs': 10_000}!r}, task_params={SIZES!r}, "
               f"folder={str(tmp_path / 'run')!r})\n"
               "while min(running.updates()) < 2:\n    time.sleep(0.05)\n"
               "print(json.dumps([w.pid for w in running.workers]), flush=True)\ntime.sleep(600)\n")
    caller = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    pids = json.loads(caller.stdout.readline())
    caller.kill()
    caller.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
