"""Speed of federated replay: client gradient steps a second against plain torch loops, and cost by number of clients.

Everything runs on one thread and its own processor time is what counts, so that other work on the machine weighs less
(shared caches and hyper-threads remain). Ours and the peer take turns; figures are medians over the turns. Both get
their batches from the same table of normalised samples, so that training alone is compared.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.datasets.models import perceptron, resnet20
from workbench.method import Context
from workbench.methods.federated._local import LocalSGD, Samples, draws
from workbench.methods.federated.favas import FAVASTraining
from workbench.params import parse
from workbench.registry import load_task

TURNS = 5


def main() -> list[dict]:
    """Rows of the table."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [*loops(), *scaling()]
    finally:
        torch.set_num_threads(threads)


def loops() -> list[dict]:
    """A module and an optimiser for each of 20 clients, one client after the other."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small, digits = perceptron((1, 28, 28), 10), perceptron((1, 8, 8), 10)
        large = resnet20((3, 32, 32), 10)
    return [
        against_a_loop("perceptron 64-32-10, batch 32", digits, (1, 8, 8), clients=20, steps=9, batch=32, target=5),
        against_a_loop("perceptron 784-32-10, batch 128", small, (1, 28, 28), clients=20, steps=9, batch=128, target=5),
        against_a_loop("ResNet-20, 3x32x32, batch 16", large, (3, 32, 32), clients=3, steps=2, batch=16, target=1.5),
    ]


def against_a_loop(
    name: str, model: nn.Module, shape: tuple[int, ...], *, clients: int, steps: int, batch: int, target: float
) -> dict:
    """Client gradient steps a second, after both gave the same models."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2000, *shape, generator=g), torch.randint(10, (2000,), generator=g)
    data = SimpleNamespace(train_y=y, batch=lambda index: (x[index], y[index]))
    take, samples = Samples(data), [draws(0, i, 0, steps, batch, len(x)) for i in range(clients)]
    local = LocalSGD(model)
    start = local.flat.vector(model).repeat(clients, 1)
    modules = [copy.deepcopy(local.flat.model) for _ in range(clients)]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in modules]

    def ours() -> Tensor:
        stack = start.clone()
        local.train(stack, samples, take, 0.05)
        return stack

    def loop() -> Tensor:
        for module, optimizer, own in zip(modules, optimizers, samples, strict=True):
            local.flat.load(start[0], module)
            for index in torch.from_numpy(own):
                inputs, labels = take(index)
                optimizer.zero_grad()
                F.cross_entropy(module(inputs), labels).backward()
                optimizer.step()
        return torch.stack([local.flat.vector(m) for m in modules])

    torch.testing.assert_close(ours(), loop(), rtol=1e-3, atol=1e-3)
    times = [(clock(ours), clock(loop)) for _ in range(TURNS)]
    mine, theirs = (clients * steps / statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(b / a for a, b in times)
    return {
        "name": f"gradient steps, {name} ({local.backend}) against a loop over {clients} modules",
        "ours": mine,
        "peer": theirs,
        "unit": "steps/s",
        "ratio": ratio,
        "n": TURNS,
        "target": f">= {target:g}",
        "met": ratio >= target,
    }


def clock(work: Callable[[], object]) -> float:
    begin = time.thread_time()
    work()
    return time.thread_time() - begin


def scaling() -> list[dict]:
    """Time of a gradient step in a whole replay of FAVAS (codec, ledger and aggregation included), a fifth selected."""
    cls = load_task("digits/perceptron")
    task, hundred = cls("perceptron", cls.Params()), 0.0
    task.setup(Context(torch.device("cpu"), 0))
    task.train_x, task.train_y = task.train_x.repeat(14, 1, 1, 1), task.train_y.repeat(14)
    rows = []
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
        row = {
            "name": f"replay of FAVAS, digits/perceptron, {n} clients",
            "ours": each,
            "unit": "us a gradient step",
            "n": state.gradients,
        }
        linear = (
            {"ratio": each / hundred, "target": "<= 1.5 times that of 100 clients", "met": each <= 1.5 * hundred}
            if n > 100
            else {}
        )
        rows.append(row | linear)
    return rows


if __name__ == "__main__":
    from tests.bench.__main__ import describe

    for row in main():
        print(describe(row))
