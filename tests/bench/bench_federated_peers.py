"""Federated simulators of other projects on the case of ``federated_case``: MNIST, 784-32-10, 100 clients, FedAvg, all cores.

Each peer runs in processes of its own with the settings that suit it best: Flower with a Ray actor a core, pfl in the
fastest of one process with one thread, one process with a thread a core, and a process a core under ``torchrun``. Data
are tensors in memory for all. What is counted are gradient steps a second of wall-clock time, whole rounds, start-up
left out; ours draws batches at random and counts every byte of a message, the peers go through a client's images in order.
The environment variable ``BENCH_PEERS_PYTHON`` names a Python that has the extra ``peers``, where this one has not.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from tests.bench.federated_case import BATCH, CLIENTS, FOLDER, RATE, SELECTED, SHARE, Stopwatch
from tracking.errors import UserError
from workbench.method import Context
from workbench.methods.federated.fedavg import FedAvgTraining
from workbench.params import parse
from workbench.registry import load_task
from workbench.task import SupervisedTask

SECONDS, TURNS, PATIENCE = 5.0, 3, 300.0
ROOT = Path(__file__).parents[2]
PEERS = {"flower": ("Flower's simulation runtime (Ray)", 50), "pfl": ("pfl's simulated backend", 5)}
Row = dict[str, object]


def main() -> list[Row]:
    """Rows of the table."""
    cls = load_task("mnist/perceptron")
    task, rows = cls("perceptron", cls.Params()), []
    try:
        task.setup(Context(torch.device("cpu"), 0))
    except UserError:
        task = None
    for steps in (20, 1):
        with tempfile.TemporaryDirectory() as folder:
            ours = task and Ours(task, steps, Path(folder))
            for peer, (what, target) in PEERS.items():
                name = f"client steps of FedAvg, MNIST, 784-32-10, {CLIENTS} clients, {steps} local steps, against {what}"
                found = against(ours, peer, target, Path(folder)) if ours else {"skipped": "MNIST is not on this machine"}
                rows.append({"name": name} | found)
    return rows


class Ours:
    """A replay of FedAvg that goes on from turn to turn; its training samples are written to ``folder`` for the peers."""

    def __init__(self, task: SupervisedTask, steps: int, folder: Path) -> None:
        sizes = {"clients": CLIENTS, "selected": SELECTED, "local_steps": steps, "batch_size": BATCH, "lr": RATE, "partition": "iid",
                 "step_law": "fixed", "slow_fraction": 0.0, "report_every": 1.0, "horizon": 2e4 * (2 * steps + 3)}
        self.task, self.steps, self.ctx = task, steps, Context(torch.device("cpu"), 0)
        self.method = FedAvgTraining(parse(FedAvgTraining.Params, sizes, "fedavg"))
        self.state = self.method.init(task, self.ctx)
        table = self.method.batches.table
        np.save(folder / "x.npy", table[: CLIENTS * SHARE].numpy())
        np.save(folder / "y.npy", task.train_y[: CLIENTS * SHARE].numpy())

    def rate(self) -> float:
        """Gradient steps a second, over rounds of ``SECONDS``."""
        watch, before = Stopwatch(warm_up=1, seconds=SECONDS, steps=self.steps), self.state.gradients
        while True:
            self.method.step(self.state, self.task, self.ctx)
            if watch.lap():
                break
        done = self.state.gradients - before
        if done != watch.rounds * SELECTED * self.steps:
            raise RuntimeError(f"{watch.rounds} rounds did {done} gradient steps, not {SELECTED * self.steps} each")
        return watch.rate()


def against(ours: Ours, peer: str, target: float, folder: Path) -> Row:
    """The figures of a row: the median ratio of ours to the peer's best settings, in turns."""
    rates: dict[str, list[float]] = {}
    mine, version = [], ""
    for _ in range(TURNS):
        mine.append(ours.rate())
        for settings, command, threads in ways(peer):
            found = run(command, ours.steps, threads, folder)
            if "rate" not in found:
                return found
            rates.setdefault(settings, []).append(found["rate"])
            version = found["version"]
    best = max(rates, key=lambda settings: statistics.median(rates[settings]))
    ratio = statistics.median(a / b for a, b in zip(mine, rates[best], strict=True))
    return {
        "ours": statistics.median(mine),
        "peer": statistics.median(rates[best]),
        "unit": "steps/s",
        "ratio": ratio,
        "n": TURNS,
        "target": f">= {target:g}",
        "met": ratio >= target,
        "peer_version": version,
        "peer_settings": best,
    }


def ways(peer: str) -> Iterator[tuple[str, list[str], int]]:
    """Settings of a peer: a name, the arguments of Python, threads a process."""
    cores, module = len(os.sched_getaffinity(0)), f"tests.bench.federated_on_{peer}"
    if peer == "flower":
        yield f"{cores} actors", ["-m", module], 1
        return
    yield "one process, one thread", ["-m", module], 1
    if cores > 1:
        yield f"one process, {cores} threads", ["-m", module], cores
        yield f"{cores} processes", ["-m", "torch.distributed.run", "--nproc_per_node", str(cores), "-m", module], 1


def run(arguments: list[str], steps: int, threads: int, folder: Path) -> dict:
    """What a peer reports, or why it does not."""
    python = os.environ.get("BENCH_PEERS_PYTHON", sys.executable)
    own = {"OMP_NUM_THREADS": str(threads), FOLDER: str(folder), "PYTHONPATH": str(ROOT)}
    command = [python, *arguments, str(SECONDS), str(steps)]
    try:
        ran = subprocess.run(command, cwd=ROOT, env=os.environ | own, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return {"skipped": f"it took more than {PATIENCE:g} s"}
    lines = [line for line in ran.stdout.splitlines() if line.startswith('{"rate"')]
    if lines:
        return json.loads(lines[-1])
    if "ModuleNotFoundError" in ran.stderr:
        return {"skipped": "it is not installed (extra 'peers', or BENCH_PEERS_PYTHON)"}
    return {"skipped": f"it failed: {(ran.stderr.strip().splitlines() or ['no output'])[-1][:200]}"}


if __name__ == "__main__":
    from tests.bench.__main__ import describe

    for row in main():
        print(describe(row), row.get("peer_version", ""), row.get("peer_settings", ""))
