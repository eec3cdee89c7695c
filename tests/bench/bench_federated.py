"""Speed and memory of federated replay: client gradient steps a second against plain torch loops, and cost by number of clients.

Rows of one core count its own processor time, so that other work on the machine weighs less (shared caches and
hyper-threads remain); figures are medians over turns. Rows of all cores count wall-clock time, and give the loop whatever
number of threads suits it better; figures are those of the least disturbed turn. Ours and the loop take turns, and both
get their batches from the same table of normalised samples, so that training alone is compared.
"""

from __future__ import annotations

import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.bench.page import on_curve
from tracking.errors import UserError
from workbench.datasets.models import perceptron, resnet20
from workbench.method import Context
from workbench.methods.federated._local import LocalSGD, Samples, draws
from workbench.methods.federated.favas import FAVASTraining
from workbench.methods.federated.quafl import QuAFLTraining
from workbench.params import parse
from workbench.registry import load_task

TURNS = 9
Row = dict[str, object]


def main() -> list[Row]:
    """Rows of the table."""
    return [*loops(), *scaling(), *memory()]


@contextmanager
def threads(count: int):
    """Kernels of ``count`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Race:
    """Local training of some clients, by ours and by a module and an optimiser for each client, one after the other."""

    def __init__(self, name: str, model: nn.Module, shape: tuple[int, ...], clients: int, steps: int, batch: int) -> None:
        g = torch.Generator().manual_seed(0)
        x, y = torch.randn(2000, *shape, generator=g), torch.randint(10, (2000,), generator=g)
        self.take = Samples(SimpleNamespace(train_y=y, batch=lambda index: (x[index], y[index])))
        self.samples = [draws(0, i, 0, steps, batch, len(x)) for i in range(clients)]
        self.local = LocalSGD(model)
        self.start = self.local.flat.vector(model).repeat(clients, 1)
        self.modules = [copy.deepcopy(self.local.flat.model).to(memory_format=torch.contiguous_format) for _ in range(clients)]
        self.optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in self.modules]
        self.name, self.clients, self.total = name, clients, clients * steps
        torch.testing.assert_close(self.ours(), self.loop(), rtol=1e-3, atol=2e-3)  # few steps of float32, norms amplify

    def ours(self) -> Tensor:
        stack = self.start.clone()
        self.local.train(stack, self.samples, self.take, 0.05)
        return stack

    def loop(self) -> Tensor:
        for module, optimizer, own in zip(self.modules, self.optimizers, self.samples, strict=True):
            self.local.flat.load(self.start[0], module)
            for index in torch.from_numpy(own):
                inputs, labels = self.take(index)
                optimizer.zero_grad()
                F.cross_entropy(module(inputs), labels).backward()
                optimizer.step()
        return torch.stack([self.local.flat.vector(m) for m in self.modules])

    def on_one_core(self, target: float | None) -> Row:
        with threads(1):
            times = [(clock(self.ours), clock(self.loop)) for _ in range(TURNS)]
        mine, theirs = (self.total / statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median(b / a for a, b in times)
        return self._row("one core", mine, theirs, ratio, target)

    def on_all_cores(self, target: float | None) -> Row:
        cores, mine, theirs = torch.get_num_threads(), [], []
        for _ in range(TURNS):
            mine.append(clock(self.ours, time.perf_counter))
            for count in {1, cores}:
                with threads(count):
                    theirs.append(clock(self.loop, time.perf_counter))
        return self._row(f"{cores} cores", self.total / min(mine), self.total / min(theirs), min(theirs) / min(mine), target)

    def _row(self, where: str, mine: float, theirs: float, ratio: float, target: float | None) -> Row:
        name = f"gradient steps, {self.name} ({self.local.backend}) against a loop over {self.clients} modules, {where}"
        row = {"name": name, "ours": mine, "peer": theirs, "unit": "steps/s", "ratio": ratio, "n": TURNS}
        return row if target is None else row | {"target": f">= {target:g}", "met": ratio >= target}


def clock(work: Callable[[], object], now: Callable[[], float] = time.thread_time) -> float:
    begin = now()
    work()
    return now() - begin


def loops() -> list[Row]:
    """A module and an optimiser for each client, one client after the other."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        digits, mnist, large = perceptron((1, 8, 8), 10), perceptron((1, 28, 28), 10), resnet20((3, 32, 32), 10)
    small = Race("perceptron 64-32-10, batch 32", digits, (1, 8, 8), clients=20, steps=9, batch=32)
    wide = Race("perceptron 784-32-10, batch 128", mnist, (1, 28, 28), clients=20, steps=9, batch=128)
    deep = Race("ResNet-20, 3x32x32, batch 16", large, (3, 32, 32), clients=4, steps=2, batch=16)
    return [
        small.on_one_core(5), wide.on_one_core(None), products(wide, 128), wide.on_all_cores(5), deep.on_one_core(None), passes(deep),
        deep.on_all_cores(1.5),
    ]


def passes(race: Race) -> Row:
    """What a step of a convolutional network cannot do without: the kernels of its forward and backward passes, for every client apart.

    Vmapped over clients they are slower on a CPU, so their share of the loop's step bounds what anything on one core can gain.
    """
    module, own = race.modules[0], torch.from_numpy(race.samples[0])
    weights = list(module.parameters())

    def both() -> None:
        for index in own:
            inputs, labels = race.take(index)
            torch.autograd.grad(F.cross_entropy(module(inputs), labels), weights)

    with threads(1):
        times = [(clock(both) / len(own), clock(race.loop) / race.total) for _ in range(TURNS)]
    bare, whole = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
    return {
        "name": f"forward and backward passes alone, {race.name}, against a step of the loop, one core: largest ratio there is",
        "ours": bare,
        "peer": whole,
        "unit": "ms",
        "ratio": whole / bare,
        "n": TURNS,
    }


def products(race: Race, batch: int) -> Row:
    """What a step cannot do without: the two matrix products of the first layer, against the whole step of the loop.

    Their ratio bounds that of any training on one core which computes these products in float32.
    """
    x, weight = torch.randn(race.clients, batch, 784), torch.randn(race.clients, 32, 784)
    delta, out = torch.randn(race.clients, batch, 32) * 1e-9, torch.empty(race.clients, batch, 32)

    def both() -> None:
        torch.bmm(x, weight.transpose(1, 2), out=out)
        weight.baddbmm_(delta.transpose(1, 2), x)

    with threads(1):
        clock(both)
        times = [(clock(both) / race.clients, clock(race.loop) / race.total) for _ in range(TURNS)]
    bare, whole = (statistics.median(column) * 1e6 for column in zip(*times, strict=True))
    return {
        "name": f"matrix products of the first layer alone, {race.name}, against a step of the loop, one core: largest ratio there is",
        "ours": bare,
        "peer": whole,
        "unit": "us",
        "ratio": whole / bare,
        "n": TURNS,
    }


def scaling() -> list[Row]:
    """Time of a gradient step in a whole replay of FAVAS (codec, ledger and aggregation included), a fifth selected."""
    cls = load_task("digits/perceptron")
    task, hundred, rows = cls("perceptron", cls.Params()), 0.0, []
    task.setup(Context(torch.device("cpu"), 0))
    task.train_x, task.train_y = task.train_x.repeat(14, 1, 1, 1), task.train_y.repeat(14)
    with threads(1):
        for n in (10, 100, 1000, 10_000):
            server_steps = max(4000 // n, 3)
            sizes = {"clients": n, "selected": n // 5, "batch_size": 32, "horizon": 7.0 * server_steps, "report_every": 7.0}
            method, ctx = FAVASTraining(parse(FAVASTraining.Params, sizes, "favas")), Context(torch.device("cpu"), 0)
            state = method.init(task, ctx)
            begin = time.thread_time()
            while method.progress(state).done < server_steps:
                method.step(state, task, ctx)
            each = (time.thread_time() - begin) / state.gradients * 1e6
            hundred = each if n == 100 else hundred
            name = f"replay of FAVAS, digits/perceptron, {n} clients"
            row = {"name": name, "ours": each, "unit": "us a gradient step", "n": state.gradients}
            if n > 100:
                row |= {"ratio": each / hundred, "target": "<= 1.5 times that of 100 clients", "met": each <= 1.5 * hundred}
            rows.append(on_curve(row, "Cost of a local step, by clients", n, "clients", "FAVAS replay"))
    return rows


def memory() -> list[Row]:
    """Peak memory of processes that do nothing but replay 10,000 clients with the network 784-32-10."""
    rows = []
    for method in ("favas", "quafl"):
        row: Row = {"name": f"peak memory, replay of {method}, mnist/perceptron, 10,000 clients, 2,000 a server step", "unit": "GiB"}
        ran = subprocess.run([sys.executable, "-m", "tests.bench.bench_federated", method], capture_output=True, text=True)
        found = json.loads(ran.stdout.splitlines()[-1]) if ran.returncode == 0 else {"skipped": ran.stderr.strip().splitlines()[-1]}
        if "peak" in found:
            row |= {"ours": found["peak"], "n": found["gradients"], "target": "< 4", "met": found["peak"] < 4}
        rows.append(row | {k: v for k, v in found.items() if k == "skipped"})
    return rows


def replay_ten_thousand(name: str) -> None:
    """Print the peak memory of this process after five server steps."""
    import resource

    cls = load_task("mnist/perceptron")
    task, ctx = cls("perceptron", cls.Params()), Context(torch.device("cpu"), 0)
    try:
        task.setup(ctx)
    except UserError:
        print(json.dumps({"skipped": "MNIST is not on this machine"}))
        return
    sizes = {"clients": 10_000, "selected": 2_000, "batch_size": 128, "partition": "iid", "horizon": 35.0, "report_every": 7.0}
    kind = {"favas": FAVASTraining, "quafl": QuAFLTraining}[name]
    method = kind(parse(kind.Params, sizes, name))
    state = method.init(task, ctx)
    while method.progress(state).done < method.progress(state).total:
        method.step(state, task, ctx)
    found = {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "gradients": state.gradients}
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1:]:
        replay_ten_thousand(sys.argv[1])
    else:
        from tests.bench.__main__ import describe

        for row in main():
            print(describe(row))
