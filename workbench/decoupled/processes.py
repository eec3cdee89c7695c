"""Modules in processes of their own: the methods' own updates, buffers and codecs, with real time between them.

Every module is one process with its own threads (and its own GPU, where there are several); messages cross over
``torch.distributed`` (gloo), encoded as in the simulation, and reach a replay buffer that the receiver owns. ``dgl`` runs in lock
step, every batch through every module once, and gives the weights of the simulation to the bit. ``async_dgl`` and ``async_dgl_vq``
run freely: a module trains on the best that its buffer holds, and those that are done hand on until all are.

A slow module is slowed by sleep, ``slowdown - 1`` times as long as its step took.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from tracking.errors import UserError, unknown
from workbench.decoupled.process_worker import Setup, Shared, main
from workbench.decoupled.training import LocalNetwork
from workbench.method import Context
from workbench.spec import Job, resolve

METHODS = {"dgl": True, "async_dgl": False, "async_dgl_vq": False}
"""Methods that run in processes, and whether they run in lock step."""
END_S = 30.0
"""How long processes have to end when the run is over; then they are killed."""


@dataclass
class Outcome:
    """What became of a run. ``modules[j]`` is the last line of module ``j``'s record, ``{}`` where there is none.

    A line has the ``seconds`` since the start, ``updates`` (and ``updates_per_s``), batches only ``handed_on``, seconds ``busy_s``,
    ``waited_s`` and ``slept_s``, ``utilisation`` and ``idle`` (shares of ``seconds`` that are work and waiting), ``cpu_s``, in which the
    process had a processor, its links' threads included, ``phases_s`` (feed, decode, train, encode, wait, sleep, record) with
    ``phases_cpu_s`` of them in which the module's own thread had one, bytes of messages with
    their headers both ways (``wire_sent_bytes``, ``wire_received_bytes``) and of all that the kernel moved (``kernel_…``, on Linux),
    ``state_bytes`` of module, head and optimiser, the ``ledger``, and, behind a replay buffer, its statistics and bytes.
    """

    status: str
    """``finished`` or ``stopped``."""
    reason: str
    modules: list[dict[str, Any]]
    folder: Path
    accuracy: dict[str, float] = field(default_factory=dict)
    """``eval/…`` figures as in the simulation, of a finished run."""

    def state_dict(self, module: int) -> dict[str, Any] | None:
        """Body, head and update count of a module (from 0) as it was last saved; ``None`` when it never was."""
        path = self.folder / f"module-{module}.pt"
        return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None

    def record(self, module: int) -> list[dict[str, Any]]:
        """Every whole line of a module's record."""
        return _lines(self.folder, module)


class Processes:
    """A run that goes on. Leaving its ``with`` block ends every process of it."""

    def __init__(self, setup: Setup, job: Job, folder: Path) -> None:
        self.setup, self.job, self.folder = setup, job, folder  # job: of the code as it was at the start, for the evaluation
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"The folder {folder} is not empty. Name a new one: a run in processes is not resumed.")
        context = _starter(setup.device)
        # plain shared memory without locks: a killed process cannot leave one locked
        self.shared = Shared(context.RawValue("b", 0), context.RawArray("q", setup.modules))
        self.workers = [context.Process(target=main, args=(j, setup, str(folder), self.shared, dict(os.environ)), daemon=True)
                        for j in range(setup.modules)]
        for worker in self.workers:
            worker.start()

    def stop(self) -> None:
        """End the run before its time."""
        self.shared.stop.value = 1

    def updates(self) -> list[int]:
        """Updates that every module has done so far."""
        return list(self.shared.updates)

    def wait(self, timeout_s: float | None = None) -> Outcome:
        """Wait for the end of all processes. TimeoutError when the run still goes on after ``timeout_s``."""
        until, alive, died = None if timeout_s is None else time.monotonic() + timeout_s, set(range(len(self.workers))), []
        deadline, forced = None, False
        while alive:
            wait([self.workers[j].sentinel for j in alive], timeout=0.1)
            for j in sorted(alive):
                if (code := self.workers[j].exitcode) is not None:
                    alive.discard(j)
                    if code:
                        died.append(f"module {j + 1} " + (
                            "did not end and was killed" if forced else
                            f"was killed by signal {-code}" if code < 0 else f"failed: {self._said(j)}"))
                        self.stop()
            if self.shared.stop.value and deadline is None:
                deadline = time.monotonic() + END_S
            if deadline and time.monotonic() > deadline:
                forced = True
                self.close()
            if until and time.monotonic() > until:
                raise TimeoutError(f"the run in {self.folder} still goes on after {timeout_s:g} s")
        return self._outcome("; ".join(died) or ("ended before its time" if self.shared.stop.value else ""))

    def _said(self, j: int) -> str:
        path = self.folder / f"module-{j}.error"
        return path.read_text().strip().splitlines()[-1] if path.exists() else "it left no word"

    def _outcome(self, reason: str) -> Outcome:
        modules = [lines[-1] if (lines := _lines(self.folder, j)) else {} for j in range(self.setup.modules)]
        outcome = Outcome("stopped" if reason else "finished", reason, modules, self.folder)
        if not reason:
            outcome.accuracy = _evaluate(self.job, self.setup, outcome)
        return outcome

    def close(self) -> None:
        """End all processes at once."""
        self.stop()
        for worker in self.workers:
            if worker.exitcode is None:
                worker.kill()
            worker.join()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _starter(device: str) -> Any:
    """Forks from a server that has imported what every process needs, which takes seconds, once; it has no threads.

    A fork of this process would have half of its threads' locks. With a GPU, which no fork may use once its parent has so much as
    asked for it, and where the system has no such server, each process starts anew.
    """
    if device == "cuda" or "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "workbench.decoupled.process_worker"])  # torch's optimisers import the first
    return context


def start(method: str, task: str, params: Mapping[str, Any] | None = None, *, folder: str | Path, seed: int = 0, threads: int = 1,
          task_params: Mapping[str, Any] | None = None, device: str = "cpu") -> Processes:
    """Start ``method`` (``dgl``, ``async_dgl``, ``async_dgl_vq``) with a process a module; ``params`` are the method's own.

    **When a process dies, the run ends**; no module is restarted. The others end at their next step with a last line in their record
    and their module saved, :meth:`Processes.wait` returns with ``status="stopped"`` and says which module died of what, and no
    process is left. Of the dead module there is what it had saved: every line of its record, and itself as of an epoch, the last or one
    not long before, as saving takes a fiftieth of the time at most. A module put back by epochs would be trained on by neighbours that
    have moved on, which is no longer the algorithm under test.

    >>> with start("async_dgl", "digits/mlp", {"modules": 2, "epochs": 5}, folder="two-modules") as running:
    ...     outcome = running.wait()
    >>> outcome.status, outcome.accuracy, [module["utilisation"] for module in outcome.modules]

    Args:
        folder: for records and modules; new or empty.
        threads: of every process.
        device: ``cpu``, or ``cuda``: module j on GPU j modulo their number. Modules that share a GPU take turns on it, so only with a
            GPU each can they be faster than one after the other.

    Raises :class:`UserError` for what cannot be run.
    """
    if device not in ("cpu", "cuda"):
        raise unknown("device of a run in processes", device, ("cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device = 'cuda' is refused: torch finds no GPU here. Allowed: 'cpu'.")
    if method not in METHODS:
        raise unknown("method that runs in processes", method, METHODS)
    job = resolve(method, task, dict(params or {}), task_params=dict(task_params or {}), seed=seed, device="cpu", threads=threads)
    p = job.method.params
    if p.latency or p.bandwidth:
        raise UserError("latency and bandwidth are those of the real links in a run of processes: leave them at 0.")
    if getattr(p, "costs", "equal") != "equal":
        raise UserError("costs = 'macs' is refused. Allowed: 'equal': in real processes a step takes as long as it takes.")
    if getattr(p, "schedule", "events") != "events":
        raise UserError(f"schedule = {p.schedule!r} is refused. Allowed: 'events': real processes go at their own pace.")
    setup = Setup(method, task, dict(params or {}), dict(task_params or {}), seed, threads, device, p.modules, METHODS[method])
    return Processes(setup, job, Path(folder).resolve())


def run(method: str, task: str, params: Mapping[str, Any] | None = None, **options: Any) -> Outcome:
    """:func:`start` and wait for the end."""
    with start(method, task, params, **options) as running:
        return running.wait()


def _lines(folder: Path, module: int) -> list[dict[str, Any]]:
    path = folder / f"module-{module}.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _evaluate(job: Job, setup: Setup, outcome: Outcome) -> dict[str, float]:
    """Test figures of the modules put together, as the method's own evaluation has them, with exact links."""
    ctx = Context(device=torch.device(setup.device), seed=setup.seed)
    job.task.setup(ctx)
    network: LocalNetwork = job.method.init(job.task, ctx).training.network
    for j in range(setup.modules):
        saved = outcome.state_dict(j)
        network.bodies[j].load_state_dict(saved["body"])
        network.heads[j].load_state_dict(saved["head"])
    return job.method.heads_accuracy(network, job.task, ctx)
