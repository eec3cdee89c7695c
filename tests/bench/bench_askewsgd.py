"""One step of AskewSGD against torch.optim.SGD, 10 million weights, constraint active, side by side on a CPU.

Weights start uniform over the levels' range with eps a tenth of its bound, so that most of them are infeasible: the
dearest case. The two take turns; figures are medians over the turns.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import torch

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


def main() -> list[dict[str, object]]:
    """Rows of ``name, ours, peer, unit, ratio, n``; a ratio below 1 means that ours is faster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        return [row(weights, base, compile) for base in ("sgd", "adam") for compile in (False, True)
                for weights in ("binary", "4bit")]
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    for result in main():
        print(json.dumps(result))
