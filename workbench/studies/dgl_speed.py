"""Speed of modules in processes of their own: measured beside backpropagation on as many threads, and beside the pipeline model.

The model (Belilovsky et al., ICML 2020): a batch every max(F + B + H) instead of every sum of F + B. It is taken three times: with
multiply-accumulates, which know nothing of a machine nor of optimisers; with the seconds that a processor works on each module's step
by itself, head, optimiser and encoding included; and with those that it worked for each process in the race, messages included.

Seconds of a processor (``cpu_s``) are what a step costs, whoever else uses the machine; seconds of the wall are what it took. Where
processes are given out less processors than there are modules, because others want them too, no pipeline is faster than one thread,
and the budget says so: work "without a processor".
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from workbench.method import Context
from workbench.spec import Job, resolve

if TYPE_CHECKING:
    import pandas


@contextmanager
def threads(number: int) -> Iterator[None]:
    """``number`` threads for the block; then as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Race:
    """One network and batch size, trained as DGL with a process and a thread a module, and end to end in this process.

    The first epoch of each is a warm-up; every later one is a window, whose rate counts. The optimiser is the paper's, SGD with
    momentum: Adam takes several passes over weights and their moments, which are no part of F + B, and nearly all weights of the
    default network are in its last module.
    """

    task: str = "digits/dgl_cnn4"
    width: float = 1.0
    modules: int = 2
    batch_size: int = 128
    epochs: int = 6
    head: str = "average"
    train_size: int = 0
    repeats: int = 15
    """Of every module's step by itself."""

    @property
    def sizes(self) -> dict[str, Any]:
        """Parameters of the task."""
        return {"width": self.width, "train_size": self.train_size}

    def job(self, method: str) -> Job:
        """``dgl``, or ``decoupled_backprop``: the same network in one piece."""
        return resolve(method, self.task, self.params(method), task_params=self.sizes, device="cpu")

    def params(self, method: str) -> dict[str, Any]:
        own = {"modules": self.modules, "head": self.head} if method == "dgl" else {"modules": 1}
        return own | {"epochs": self.epochs, "batch_size": self.batch_size, "report_every": 100_000, "base": "sgd", "lr": 0.05,
                      "momentum": 0.9, "weight_decay": 5e-4}

    def begun(self, method: str) -> tuple[Job, Any]:
        """Method and State, ready for a step."""
        job, ctx = self.job(method), Context(device=torch.device("cpu"), seed=0)
        job.task.setup(ctx)
        return job, job.method.init(job.task, ctx)

    def backprop(self, number: int) -> tuple[list[float], float]:
        """Of backpropagation on ``number`` threads: samples a second by window, and a processor's seconds a batch."""
        job, state = self.begun("decoupled_backprop")
        ctx, rates, costs = Context(device=torch.device("cpu"), seed=0), [], []
        with threads(number):
            for _ in range(self.epochs):
                begin, cpu, before = time.perf_counter(), time.process_time(), state.feed.samples
                job.method.step(state, job.task, ctx)
                costs.append((time.process_time() - cpu) / state.feed.batches)
                rates.append((state.feed.samples - before) / (time.perf_counter() - begin))
        return rates[1:], statistics.median(costs[1:])

    def dgl(self) -> tuple[list[float], list[list[dict[str, Any]]]]:
        """Samples a second of DGL in processes by window, at the last module; and each module's record."""
        from workbench.decoupled.processes import start

        with tempfile.TemporaryDirectory() as place:
            with start("dgl", self.task, self.params("dgl"), folder=Path(place) / "run", task_params=self.sizes) as running:
                outcome = running.wait(900)
            records = [outcome.record(j) for j in range(self.modules)]
        each = records[0][-1]["samples"] / records[-1][-1]["updates"]
        windows = [(b["updates"] - a["updates"], b["seconds"] - a["seconds"]) for a, b in pairwise(records[-1])]
        return [each * updates / seconds for updates, seconds in windows if updates], records  # the last line may repeat

    def shares(self) -> list[float]:
        """A step of each module with its head as a share of end-to-end training's multiply-accumulates."""
        job, _ = self.begun("dgl")
        return job.method.durations

    def step_seconds(self) -> list[float]:
        """Median seconds of a processor for each module's step by itself: forward, backward, head, optimiser, decoding and encoding."""
        job, state = self.begun("dgl")
        x, y = state.feed.next(job.task, self.batch_size)
        found, message = [], None
        with threads(1):
            state.training.network.train()
            for j in range(self.modules):
                times = []
                for _ in range(self.repeats + 2):
                    begin = time.process_time()
                    if j:
                        x, y = state.channels[j - 1].receive(message)
                    _, out = state.training.update(j, x, y)
                    sent = state.channels[j].send(out, y) if j + 1 < self.modules else None
                    times.append(time.process_time() - begin)
                found.append(statistics.median(times[2:]))
                message = sent
        return found

    def tables(self) -> Tables:
        """The whole race."""
        import pandas

        name = {number: f"backpropagation, {number} thread{'s' * (number > 1)}" for number in (1, self.modules)}
        ended = {number: self.backprop(number) for number in name}
        rates = {name[number]: windows for number, (windows, _) in ended.items()}
        processes = f"DGL, {self.modules} processes of 1 thread"
        rates[processes], records = self.dgl()
        spent, steps, shares = [_mean(lines) for lines in records], self.step_seconds(), self.shares()
        one, cost = statistics.median(rates[name[1]]), ended[1][1]
        middle = {what: (statistics.median(r), "measured", len(r)) for what, r in rates.items()}
        models = {"multiply-accumulates": 1 / max(shares), "a processor's seconds for each module's step": cost / max(steps),
                  "those of each process in the race": cost / max(s["cpu_s"] for s in spent)}
        for what, speedup in models.items():
            middle[f"the same, by {what}"] = (one * speedup, "model", None)
        speed = [{"what": what, "": kind, "samples/s": rate, "speed-up": rate / one, "windows": n}
                 for what, (rate, kind, n) in middle.items()]
        did = _did([lines[-1] for lines in records], [s["cpu_s"] for s in spent])
        budget = [_budget(j, s) for j, s in enumerate(spent, 1)]
        return Tables(pandas.DataFrame(speed), pandas.DataFrame(did), pandas.DataFrame(budget), rates)


class Tables(NamedTuple):
    """What a race leaves."""

    speed: pandas.DataFrame
    """Rates and speed-ups over one thread, measured and predicted."""
    modules: pandas.DataFrame
    """What every module did."""
    budget: pandas.DataFrame
    """Where the milliseconds of an update go, by module."""
    rates: dict[str, list[float]]
    """Samples a second by window."""


def _mean(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Seconds an update of what the last line of a record has and the first, the warm-up, has not: all, ``cpu_s``, and by phase."""
    first, last = lines[0], lines[-1]
    updates = last["updates"] - first["updates"]

    def each(name: str) -> dict[str, float]:
        return {phase: (seconds - first[name].get(phase, 0.0)) / updates for phase, seconds in last[name].items()}

    return {"seconds": (last["seconds"] - first["seconds"]) / updates, "cpu_s": (last["cpu_s"] - first["cpu_s"]) / updates,
            "wall": each("phases_s"), "cpu": each("phases_cpu_s")}


def _budget(module: int, spent: dict[str, Any]) -> dict[str, float]:
    """Milliseconds an update. Links run beside the module, in threads of their own: they are no part of the sum, only of the cost."""
    wall, cpu = spent["wall"], spent["cpu"]
    work = [phase for phase in ("feed", "decode", "train", "encode") if phase in wall]
    shown = {f"{phase} [CPU ms]": cpu.get(phase, 0.0) for phase in ("feed", "decode", "train", "encode")}
    shown["links [CPU ms]"] = max(spent["cpu_s"] - sum(cpu.values()), 0.0)
    shown["work without a processor [ms]"] = sum(wall[phase] - cpu[phase] for phase in work)
    shown["waited [ms]"], shown["record [ms]"], shown["update [ms]"] = wall.get("wait", 0.0), wall.get("record", 0.0), spent["seconds"]
    return {"module": module} | {name: 1e3 * seconds for name, seconds in shown.items()}


def _did(modules: Sequence[dict[str, Any]], costs: Sequence[float]) -> list[dict[str, Any]]:
    return [{"module": j, "updates": line["updates"], "updates/s": line["updates_per_s"], "worked [s]": line["busy_s"],
             "waited [s]": line["waited_s"], "utilisation": line["utilisation"], "predicted": cost / max(costs), "idle": line["idle"],
             "sent on the wire [B]": line["wire_sent_bytes"], "module, head and optimiser [B]": line["state_bytes"]}
            for j, (line, cost) in enumerate(zip(modules, costs, strict=True), 1)]
