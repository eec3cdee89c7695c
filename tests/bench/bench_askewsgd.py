"""One step of AskewSGD against torch.optim.SGD, 10 million weights, constraint active, side by side on a CPU.

Weights start uniform over the levels' range with eps a tenth of its bound, so that most of them are infeasible: the
dearest case. The two take turns; figures are medians over the turns. One more row says what can be had without a compiler: how many
element-wise operations the eager step makes, and how many of the cheapest kind fit into one and a half steps of SGD.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from workbench.methods.lowbit._askew_kernel import in_chunks
from workbench.methods.lowbit._levels import LEVELS
from workbench.methods.lowbit.askewsgd import AskewSGD, eps_bound

WEIGHTS = 10_000_000
TURNS = 21
THREADS = 2


def time_ms(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - start)


def parameter(values: torch.Tensor, gradient: torch.Tensor) -> torch.nn.Parameter:
    p = torch.nn.Parameter(values.clone())
    p.grad = gradient.clone()
    return p


def row(weights: str, base: str, compile: bool) -> dict[str, object]:
    levels = LEVELS[weights]
    generator = torch.Generator().manual_seed(0)
    start = torch.empty(WEIGHTS).uniform_(levels[0], levels[-1], generator=generator)
    gradient = 1e-3 * torch.randn(WEIGHTS, generator=generator)
    # a learning rate so small that the weights stay where they are: every turn sees the same work
    p, q, lr = parameter(start, gradient), parameter(start, gradient), 1e-6
    ours = AskewSGD([p], lr=lr, base=base, weights=weights, eps=eps_bound(levels) / 10, clip=1e-6, compile=compile)
    peer = (torch.optim.SGD([q], lr=lr, momentum=0.9, foreach=True) if base == "sgd"
            else torch.optim.Adam([q], lr=lr, foreach=True))
    for _ in range(2):
        ours.step()
        peer.step()
    times = [(time_ms(ours.step), time_ms(peer.step)) for _ in range(TURNS)]
    mine, theirs = (statistics.median(t) for t in zip(*times, strict=True))
    return {"name": f"askewsgd step, {weights}, {base}{', compiled' if compile else ''} / torch.optim, {WEIGHTS:,} weights",
            "ours": mine, "peer": theirs, "unit": "ms", "ratio": mine / theirs, "n": TURNS,
            "target": "<= 1.5", "met": mine <= 1.5 * theirs}


class Operations(TorchDispatchMode):
    """Counts the operations that read or write many elements (not views, allocations, or counters of steps)."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        passive = operation.is_view or "empty" in operation.name() or "alias" in operation.name()
        self.count += not passive and any(isinstance(a, torch.Tensor) and a.numel() > 1 for a in args)
        return result


def limit() -> dict[str, object]:
    """Operations of an eager step, against those that fit into 1.5 steps of SGD when each is the cheapest there is: in place, in cache."""
    levels = LEVELS["binary"]
    few = parameter(torch.linspace(-0.9, 0.9, 1000), torch.ones(1000))
    step = AskewSGD([few], lr=1e-6, base="sgd", weights="binary", eps=eps_bound(levels) / 10, clip=1e-6).step
    step()  # the momentum is made now
    with Operations() as made:
        step()
    w, g, buffer = (torch.full((WEIGHTS,), 0.5) for _ in range(3))
    peer = torch.optim.SGD([parameter(w, g)], lr=1e-6, momentum=0.9, foreach=True)
    further = 8

    def plain(extra: int) -> None:
        """SGD itself in cache-sized parts: three operations, each tensor crossing main memory once; then ``extra`` more."""
        def work(scratch: torch.Tensor, w: torch.Tensor, g: torch.Tensor, buffer: torch.Tensor) -> None:
            for _ in range(extra):
                scratch[0].mul_(scratch[1])
            w.add_(buffer.mul_(0.9).add_(g), alpha=-1e-6)

        in_chunks(work, w, g, buffer)

    turns = [(time_ms(peer.step), time_ms(lambda: plain(0)), time_ms(lambda: plain(further))) for _ in range(TURNS)]
    sgd, least, more = (statistics.median(t) for t in zip(*turns, strict=True))
    fit = 3 + (1.5 * sgd - least) / ((more - least) / further)
    return {"name": "askewsgd, eager: element-wise operations a step / those that fit into 1.5 torch.optim.SGD steps",
            "ours": made.count, "peer": fit, "unit": "operations", "ratio": made.count / fit, "n": TURNS}


def main() -> list[dict[str, object]]:
    """Rows of ``name, ours, peer, unit, ratio, n``; a ratio below 1 means that ours is faster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        return [row(weights, base, compile) for base in ("sgd", "adam") for compile in (False, True)
                for weights in ("binary", "4bit")] + [limit()]
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    for result in main():
        print(json.dumps(result))
