"""Boolean training against the straight-through estimator: time and memory of a training step, of the update, and of what is kept.

VGG-Small with three linear layers, of both kinds in the same shape: first and last layer real, the others with +-1 weights and +-1
activations. The peer is BinaryConnect over Adam with sign activations (tanh' surrogate), which remembers a latent weight and two moments.
At a quarter of the width (32-32-64-64-128-128 channels, 256 units) and 50 images, so that a step takes a fraction of a second on a
CPU. Products, which both have alike, grow with the square of the number of channels and the rest in proportion: with width the ratio
comes nearer to 1.
The two take turns; times are medians over the turns.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.boolean import BooleanConv2d, BooleanLayer, BooleanLinear, BooleanOptimizer, Threshold, joint_optimizer, split_parameters
from workbench.boolean._compact import pack_signs
from workbench.boolean.layers import random_signs
from workbench.datasets.models import scaled
from workbench.methods.lowbit._activations import BinaryActivation
from workbench.methods.lowbit.binaryconnect import BinaryConnect
from workbench.state import snapshot, state_bytes

WIDTH, BATCH, TURNS = 0.25, 50, 15
THREADS = 1  # threads that wait for one another on a busy machine would be what is measured
WEIGHTS = 10_000_000

Row = dict[str, object]


def network(boolean: bool, norm: bool, width: float = WIDTH) -> nn.Sequential:
    """VGG-Small for CIFAR-10, Boolean or with layers for the peer."""
    layers: list[nn.Module] = []

    def activate(out: int, fan_in: int | None, image: bool) -> None:
        if norm:
            layers.append((nn.BatchNorm2d if image else nn.BatchNorm1d)(out))
        window = "approx_sign" if norm else "tanh"
        layers.append(Threshold(window=window, fan_in=None if norm else fan_in) if boolean else BinaryActivation())

    channels = 3
    for count in (128, 256, 512):
        for pool in (False, True):
            out, first = scaled(count, width), channels == 3
            if boolean and not first:
                layers.append(BooleanConv2d(channels, out, 3, padding=1, pooled=pool, scale=None if norm else "auto"))
            else:
                layers.append(nn.Conv2d(channels, out, 3, padding=1, bias=False))
            layers.extend([nn.MaxPool2d(2)] * pool)
            activate(out, None if first else 9 * channels, True)
            channels = out
    layers.append(nn.Flatten())
    features = 16 * channels
    for _ in range(2):
        units = scaled(1024, width)
        layers.append(BooleanLinear(features, units, scale=None if norm else "auto") if boolean else nn.Linear(features, units, bias=False))
        activate(units, features, False)
        features = units
    return nn.Sequential(*layers, nn.Linear(features, 10))


def optimizer(model: nn.Sequential, boolean: bool) -> torch.optim.Optimizer:
    if boolean:
        return joint_optimizer(model, lr=12.0)
    inner = [m.weight for m in model if isinstance(m, (nn.Conv2d, nn.Linear))][1:-1]
    ids = {id(p) for p in inner}
    plain = [p for p in model.parameters() if id(p) not in ids]
    return BinaryConnect([{"params": inner}, {"params": plain, "weights": None}], lr=1e-3)


class Training:
    """A network, its optimiser, and a step on one batch."""

    def __init__(self, boolean: bool, norm: bool, compact: bool = False) -> None:
        torch.manual_seed(0)
        self.model = network(boolean, norm)
        if compact:
            behind = False  # whether a threshold's sums come from a Boolean layer
            for m in self.model:
                if isinstance(m, Threshold):
                    m.compact = behind and not norm
                elif isinstance(m, BooleanLayer):
                    m.compact = behind = True
        self.optimizer = optimizer(self.model, boolean)
        self.x, self.y = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))

    def step(self) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.x), self.y).backward()
        self.optimizer.step()

    def peak_bytes(self) -> int:
        """The most that a step allocates on top of what stays between steps, by the allocator's own events."""
        self.step()
        self.optimizer.zero_grad()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            self.step()
        now = peak = 0
        for event in profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                now += event.nbytes()
                peak = max(peak, now)
        return peak


def time_ms(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


def in_turns(*works: Callable[[], object], turns: int) -> list[float]:
    """Median milliseconds of each, taken in turns after a warm-up."""
    for work in works:
        work()
    times = [[time_ms(work) for work in works] for _ in range(turns)]
    return [statistics.median(t) for t in zip(*times, strict=True)]


def row(name: str, ours: float, peer: float, unit: str, n: int, target: float | None = None) -> Row:
    verdict = {"target": f"<= {target}", "met": ours <= target * peer} if target else {}
    return {"name": name, "ours": ours, "peer": peer, "unit": unit, "ratio": ours / peer, "n": n, **verdict}


def steps() -> Iterator[Row]:
    for norm in (False, True):
        ours, small, peer = Training(True, norm), Training(True, norm, compact=True), Training(False, norm)
        shape = f"VGG-Small/{round(1 / WIDTH)}, batch {BATCH}, {'batch norm' if norm else 'no norm'}"
        plain_ms, small_ms, peer_ms = in_turns(ours.step, small.step, peer.step, turns=TURNS)
        yield row(f"Boolean training step / STE, {shape}", plain_ms, peer_ms, "ms", TURNS, 1.15)
        yield row(f"the same, compact=True, {shape}", small_ms, peer_ms, "ms", TURNS)
        mib = [t.peak_bytes() / 2**20 for t in (ours, small, peer)]
        yield row(f"peak memory of a Boolean training step / STE, {shape}", mib[0], mib[2], "MiB", 1, 1.01)
        yield row(f"the same, compact=True, {shape}", mib[1], mib[2], "MiB", 1)


def updates() -> Iterator[Row]:
    """The optimisers alone; one weight in a few hundred turns at each step."""
    w, signal = random_signs((WEIGHTS,)), 0.1 * torch.randn(WEIGHTS)

    def prepared(values: Tensor) -> nn.Parameter:
        p = nn.Parameter(values.clone())
        p.grad = signal
        return p

    large, small = (BooleanOptimizer([prepared(w)], 1.0, accumulator=a) for a in ("float32", "int16"))
    adam, fused = (torch.optim.Adam([prepared(w)], 1e-6, fused=f) for f in (None, True))
    ours, fixed, peer, best = in_turns(large.step, small.step, adam.step, fused.step, turns=TURNS)
    yield row(f"BooleanOptimizer step / torch.optim.Adam, {WEIGHTS:,} weights", ours, peer, "ms", TURNS, 1.0)
    yield row(f"the same / fused Adam, {WEIGHTS:,} weights", ours, best, "ms", TURNS)
    yield row(f"the same, accumulator int16 / torch.optim.Adam, {WEIGHTS:,} weights", fixed, peer, "ms", TURNS)


def kept() -> Iterator[Row]:
    """What must stay between steps for a Boolean weight, counted on tensors, against a 32-bit weight and Adam's two moments."""
    ours, peer = Training(True, False), Training(False, False)
    ours.step()
    peer.step()
    boolean = split_parameters(ours.model)[0]
    count = sum(p.numel() for p in boolean)
    inner = [m.weight for m in peer.model if isinstance(m, (nn.Conv2d, nn.Linear))][1:-1]
    moments = sum(state_bytes(snapshot(dict(peer.optimizer.state[p]))) for p in inner)
    theirs = 8 * moments / count  # latent weight and moments; the sign that is run can be read off the latent weight
    for accumulator in ("float32", "int16"):
        update = BooleanOptimizer(boolean, 1.0, accumulator=accumulator)
        update.step()
        bits = 8 * sum(pack_signs(p.detach()).nbytes + update.state[p]["m"].nbytes for p in boolean) / count
        yield row(f"bits kept for a Boolean weight, packed, accumulator {accumulator} / latent weight and Adam", bits, theirs, "bit", 1)
    here = state_bytes(snapshot({"model": ours.model, "optimizer": ours.optimizer}))
    there = state_bytes(snapshot({"model": peer.model, "optimizer": peer.optimizer}))
    yield row("bytes kept as stored here, weights as float32, whole network / STE", here, there, "B", 1)


def main() -> list[Row]:
    """Rows of ``name, ours, peer, unit, ratio, n``; a ratio below 1 means that ours is faster or smaller."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        return [*steps(), *updates(), *kept()]
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    for result in main():
        print(json.dumps(result))
