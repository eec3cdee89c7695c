"""One module in a process of its own: what it receives, trains, sends and records."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import threading
import time
import traceback
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tracking.folder import write_atomic
from workbench.decoupled.buffer import ReplayBuffer
from workbench.decoupled.messages import Message
from workbench.decoupled.process_links import Gone, Inbox, Outbox, Stopwatch, kernel_bytes
from workbench.decoupled.vq_codec import warm_up
from workbench.method import Context
from workbench.methods.decoupled._asynchronous import begin_epoch
from workbench.spec import Job, resolve
from workbench.state import snapshot, state_bytes

FOREVER = timedelta(days=30)
WORK = ("feed", "decode", "train", "encode")
"""Phases in which a module works; beside them it waits, sleeps, or writes its record."""
SAVING_SHARE = 0.02
"""Of the time, at most, goes into saving the module before its end."""


@dataclass(frozen=True)
class Setup:
    """What every process is told; each makes the same network and data of it."""

    method: str
    task: str
    params: dict[str, Any]
    task_params: dict[str, Any]
    seed: int
    threads: int
    device: str
    modules: int
    lock_step: bool

    def job(self) -> Job:
        """Method and task."""
        return resolve(
            self.method, self.task, self.params, task_params=self.task_params, seed=self.seed, device="cpu", threads=self.threads)


@dataclass
class Shared:
    """Shared memory of a run."""

    stop: Any
    """Not 0: every process ends at its next step."""
    updates: Any
    """Of every module."""


class Worker:
    """The process of module ``j``."""

    def __init__(self, j: int, setup: Setup, folder: Path, shared: Shared) -> None:
        self.j, self.setup, self.folder, self.shared = j, setup, folder, shared
        job, gpus = setup.job(), torch.cuda.device_count() if setup.device == "cuda" else 0
        self.method, self.task = job.method, job.task
        self.ctx = Context(device=torch.device("cuda", j % gpus) if gpus else torch.device("cpu"), seed=setup.seed)
        if gpus:
            torch.cuda.set_device(self.ctx.device)  # nothing of this process goes to another one's GPU
        self.task.setup(self.ctx)
        state = self.method.init(self.task, self.ctx)
        self.training, self.feed, self.channels = state.training, state.feed, state.channels
        self._forget_the_others()
        p = self.method.params
        self.target = p.epochs * self.feed.batches
        buffer = None if setup.lock_step else ReplayBuffer(p.buffer, p.recency, p.max_reads)
        self.inbox = Inbox(self.channels[j - 1], buffer, self.ctx.device) if j else None
        self.outbox = Outbox(j + 1, shared.stop) if j + 1 < setup.modules else None
        if self.outbox:
            self.channels[j].in_place = True
        self.updates = self.handed_on = self.reported = 0
        self.slept_s = self.saved_s = self.saving_s = 0.0
        self.losses: list[torch.Tensor] = []

    def _forget_the_others(self) -> None:
        """Modules of other processes take no memory here."""
        network = self.training.network
        for i in range(len(network)):
            if i != self.j:
                network.bodies[i], network.heads[i], self.training.optimizers[i] = nn.Identity(), nn.Identity(), None

    def run(self) -> None:
        """Work until all modules have done their updates, or the run is ended."""
        if self.inbox:
            threading.Thread(target=self.inbox.listen, args=(self.j - 1,), daemon=True).start()
        if self.outbox:
            threading.Thread(target=self.outbox.speak, daemon=True).start()
        if any(channel.quantiser for channel in self.channels) and self.ctx.device.type == "cpu":
            warm_up()
        dist.barrier()  # the clock begins when all are there
        self.cpu_before = time.process_time()
        self.clock = Stopwatch("record")
        with contextlib.suppress(Gone):
            while not self._over() and self._turn():
                self.clock.turn_to("record")
                if self.updates % self.feed.batches == 0 and self.updates > self.reported:
                    self._report()
                    self._save()
        self._report()
        self._save(at_once=True)
        if self.outbox:
            self.outbox.end()

    def _over(self) -> bool:
        if self.shared.stop.value or not multiprocessing.parent_process().is_alive():
            return True  # nobody waits for a run whose caller is gone
        return (self.updates if self.setup.lock_step else min(self.shared.updates)) >= self.target

    def _turn(self) -> bool:
        """One step; ``False`` when there is nothing left to work on."""
        before = self._worked()
        if self.inbox:
            self.clock.turn_to("wait")
            got = self.inbox.take(self.shared.stop, self.clock)
            if got is None:
                return False
        else:
            self.clock.turn_to("feed")
            got = self.feed.next(self.task, self.method.params.batch_size)
        out = self._work(*got)
        self.clock.turn_to("wait")
        if extra := (self.method.params.pace(self.j) - 1) * (self._worked() - before):
            self.clock.turn_to("sleep")
            time.sleep(extra)
            self.slept_s += extra
            self.clock.turn_to("wait")
        if out is not None:
            self.outbox.send(out)
        return True

    def _worked(self) -> float:
        """Seconds worked, in phases that have ended."""
        return sum(self.clock.wall_s[phase] for phase in WORK)

    def _work(self, x: torch.Tensor, y: torch.Tensor) -> Message | None:
        j, method = self.j, self.method
        self.clock.turn_to("train")
        learns = self.updates < self.target
        if learns:
            epoch, into = divmod(self.updates, self.feed.batches)
            if into == 0:
                begin_epoch(self.training.optimizers[j], method.lr_at(epoch), getattr(method.params, "reset_momentum", False))
            self.training.network.train()
            loss, out = self.training.update(j, x, y)
            self.losses.append(loss)
            self.updates += 1
            self.shared.updates[j] = self.updates
        else:
            out = self.training.forward(j, x)
            self.handed_on += 1
        if self.ctx.device.type == "cuda":
            torch.cuda.synchronize(self.ctx.device)
        if not self.outbox:
            return None
        self.clock.turn_to("encode")
        return self.channels[j].send(out, y, learns)

    def _report(self) -> None:
        """Append a line to the record."""
        self.clock.turn_to("record")
        self.reported, network, clock = self.updates, self.training.network, self.clock
        seconds, worked, waited = sum(clock.wall_s.values()), self._worked(), clock.wall_s["wait"]
        line: dict[str, Any] = {
            "seconds": seconds, "updates": self.updates, "handed_on": self.handed_on, "busy_s": worked, "slept_s": self.slept_s,
            "waited_s": waited, "samples": self.feed.samples, "updates_per_s": self.updates / seconds if seconds else 0.0,
            "utilisation": worked / seconds if seconds else 0.0, "idle": waited / seconds if seconds else 0.0,
            "cpu_s": time.process_time() - self.cpu_before, "phases_s": dict(clock.wall_s), "phases_cpu_s": dict(clock.cpu_s),
            "state_bytes": state_bytes(snapshot([network.bodies[self.j], network.heads[self.j], self.training.optimizers[self.j]])),
            "wire_sent_bytes": self.outbox.bytes if self.outbox else 0, "wire_received_bytes": self.inbox.bytes if self.inbox else 0,
            "ledger": self.ctx.ledger.table(),
        }
        counted = kernel_bytes()
        # a neighbour that has ended closes its connection, and its count is gone with it: then there is no measurement
        if counted and counted[0] >= line["wire_sent_bytes"] and counted[1] >= line["wire_received_bytes"]:
            line["kernel_sent_bytes"], line["kernel_received_bytes"] = counted
        if self.losses:
            line["loss"] = torch.stack(self.losses).mean().item()
            self.losses = []
        if self.inbox and (buffer := self.inbox.buffer):
            with self.inbox.changed:
                line |= {"reuse": buffer.reuse, "age": buffer.age, "unread": buffer.unread, "buffer_bytes": buffer.nbytes}
        with open(self.folder / f"module-{self.j}.jsonl", "a") as log:
            log.write(json.dumps(line) + "\n")

    def _save(self, at_once: bool = False) -> None:
        """Save the module; but for the first time and the end, not while that would take more than its share of the time."""
        begin = time.perf_counter()
        if not at_once and begin < self.saved_s + self.saving_s / SAVING_SHARE:
            return
        network, path = self.training.network, self.folder / f"module-{self.j}.pt"
        saved = {"body": network.bodies[self.j].state_dict(), "head": network.heads[self.j].state_dict(), "updates": self.updates}
        torch.save(saved, part := path.with_suffix(".part"))
        os.replace(part, path)
        self.saved_s = time.perf_counter()
        self.saving_s = self.saved_s - begin


def main(j: int, setup: Setup, folder: str, shared: Shared, environment: dict[str, str]) -> None:
    """What the process of module ``j`` runs. ``environment``: the caller's, as this process may be a fork of an older one."""
    os.environ.update(environment)
    torch.set_num_threads(setup.threads)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all processes are on this machine
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=j, world_size=setup.modules, timeout=FOREVER)
        Worker(j, setup, Path(folder), shared).run()
    except BaseException:
        write_atomic(Path(folder) / f"module-{j}.error", traceback.format_exc())
        raise
    # no farewell: threads may still wait for a process that is gone
    os._exit(0)
