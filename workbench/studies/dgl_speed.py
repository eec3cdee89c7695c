"""Speed of modules in processes of their own: measured beside backpropagation on as many threads, and beside the pipeline model.

The model (Belilovsky et al., ICML 2020): a batch every max(F + B + H) instead of every sum of F + B. It is taken twice: with
multiply-accumulates, which know nothing of a machine, and with the seconds that each module's step takes here on one thread, when
nothing else runs.
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
from typing import TYPE_CHECKING, Any

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

    The first epoch of each is a warm-up; every later one is a window, whose rate counts.
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
        return own | {"epochs": self.epochs, "batch_size": self.batch_size, "report_every": 100_000}

    def begun(self, method: str) -> tuple[Job, Any]:
        """Method and State, ready for a step."""
        job, ctx = self.job(method), Context(device=torch.device("cpu"), seed=0)
        job.task.setup(ctx)
        return job, job.method.init(job.task, ctx)

    def backprop(self, number: int) -> list[float]:
        """Samples a second of backpropagation on ``number`` threads, by window."""
        job, state = self.begun("decoupled_backprop")
        ctx, rates = Context(device=torch.device("cpu"), seed=0), []
        with threads(number):
            for _ in range(self.epochs):
                begin, before = time.perf_counter(), state.feed.samples
                job.method.step(state, job.task, ctx)
                rates.append((state.feed.samples - before) / (time.perf_counter() - begin))
        return rates[1:]

    def dgl(self) -> tuple[list[float], list[dict[str, Any]]]:
        """Samples a second of DGL in processes by window, at the last module; and the last line of each module's record."""
        from workbench.decoupled.processes import start

        with tempfile.TemporaryDirectory() as place:
            with start("dgl", self.task, self.params("dgl"), folder=Path(place) / "run", task_params=self.sizes) as running:
                outcome = running.wait(900)
            lines = outcome.record(self.modules - 1)
            each = outcome.record(0)[-1]["samples"] / lines[-1]["updates"]
        windows = [(b["updates"] - a["updates"], b["seconds"] - a["seconds"]) for a, b in pairwise(lines)]
        return [each * updates / seconds for updates, seconds in windows if updates], outcome.modules  # the last line may repeat

    def shares(self) -> list[float]:
        """A step of each module with its head as a share of end-to-end training's multiply-accumulates."""
        job, _ = self.begun("dgl")
        return job.method.durations

    def step_seconds(self) -> list[float]:
        """Median seconds of each module's step on one thread by itself, with what it decodes and encodes."""
        job, state = self.begun("dgl")
        x, y = state.feed.next(job.task, self.batch_size)
        found, message = [], None
        with threads(1):
            state.training.network.train()
            for j in range(self.modules):
                times = []
                for _ in range(self.repeats + 2):
                    begin = time.perf_counter()
                    if j:
                        x, y = state.channels[j - 1].receive(message)
                    _, out = state.training.update(j, x, y)
                    sent = state.channels[j].send(out, y) if j + 1 < self.modules else None
                    times.append(time.perf_counter() - begin)
                found.append(statistics.median(times[2:]))
                message = sent
        return found

    def tables(self) -> tuple[pandas.DataFrame, pandas.DataFrame, dict[str, list[float]]]:
        """Rates and speed-ups, measured and predicted; what every module did; and the rates by window."""
        import pandas

        rates = {"backpropagation, 1 thread": self.backprop(1), f"backpropagation, {self.modules} threads": self.backprop(self.modules)}
        processes = f"DGL, {self.modules} processes of 1 thread"
        rates[processes], modules = self.dgl()
        shares, steps = self.shares(), self.step_seconds()
        one = statistics.median(rates["backpropagation, 1 thread"])
        middle = {name: (statistics.median(r), "measured", len(r)) for name, r in rates.items()}
        middle["the same, by multiply-accumulates"] = (one / max(shares), "model", None)
        middle["the same, by each module's own seconds"] = (self.batch_size / max(steps), "model", None)
        speed = [{"what": name, "": kind, "samples/s": rate, "speed-up": rate / one, "windows": n}
                 for name, (rate, kind, n) in middle.items()]
        return pandas.DataFrame(speed), pandas.DataFrame(_did(modules, steps)), rates


def _did(modules: Sequence[dict[str, Any]], steps: Sequence[float]) -> list[dict[str, Any]]:
    return [{"module": j, "updates": line["updates"], "updates/s": line["updates_per_s"], "worked [s]": line["busy_s"],
             "waited [s]": line["waited_s"], "utilisation": line["utilisation"], "predicted": step / max(steps), "idle": line["idle"],
             "sent on the wire [B]": line["wire_sent_bytes"], "module, head and optimiser [B]": line["state_bytes"]}
            for j, (line, step) in enumerate(zip(modules, steps, strict=True), 1)]
