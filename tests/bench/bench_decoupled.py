"""Decoupled learning: modules in processes against backpropagation, the vector quantiser's speed and memory, buffers as counted.

Speed is measured side by side, in turns, medians. The quantiser works on 128 x 128 x 32 x 32 activations after a ReLU, 8 groups of 16
channels, 256 codewords: links 1 of the buffer experiments of arXiv:1901.08164, with the sizes of arXiv:1911.08019.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from tracking.codecs.vq import VectorQuantiser
from workbench.datasets.models import build
from workbench.decoupled import Channel, DecoupledTraining, LocalNetwork, OnlineVQ, ReplayBuffer, auxiliary_heads, units
from workbench.decoupled.processes import start
from workbench.method import Context
from workbench.spec import resolve

GROUPS, CODEWORDS, CHANNELS = 8, 256, 128
TASK, WIDTH, BATCH, EPOCHS = "digits/dgl_cnn4", 1.0, 128, 6
TURNS = 5

Row = dict[str, object]


def row(name: str, ours: float, peer: float | None, unit: str, n: int, at_least: float | None = None, at_most: float | None = None) -> Row:
    """A line of the table; the target is on the ratio ours / peer, or on the figure where there is no peer."""
    ratio = None if peer is None else ours / peer
    value = ours if ratio is None else ratio
    target, met = None, None
    if at_least is not None:
        target, met = f">= {at_least:g}", value >= at_least
    if at_most is not None:
        target, met = f"<= {at_most:g}", value <= at_most
    return {"name": name, "ours": ours, "peer": peer, "unit": unit, "ratio": ratio, "n": n, "target": target, "met": met}


def in_turns(*works: Callable[[], object], turns: int = TURNS) -> list[float]:
    """Median seconds of each, after one turn that does not count."""
    times: list[list[float]] = [[] for _ in works]
    for turn in range(turns + 1):
        for work, own in zip(works, times, strict=True):
            begin = time.perf_counter()
            work()
            if turn:
                own.append(time.perf_counter() - begin)
    return [statistics.median(own) for own in times]


def plain_codes(x: Tensor, book: Tensor) -> Tensor:
    """The loop that one writes first: all distances of a group, then the place of the least."""
    vectors = x.movedim(1, -1).reshape(-1, len(book), book.shape[-1])
    return torch.stack([torch.cdist(vectors[:, g], own).argmin(1) for g, own in enumerate(book)], 1)


def activations(samples: int = 128) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(samples, CHANNELS, 32, 32, generator=g).relu_()
    return x, torch.randn(GROUPS, CODEWORDS, CHANNELS // GROUPS, generator=g).relu_()


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that ``work`` holds at once, by the events of torch's allocator."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    now = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def quantiser() -> Iterator[Row]:
    x, book = activations()
    vq, size = VectorQuantiser(book), 4 * x.numel() / 1e9
    payload = vq.encode(x)
    codes = vq.codes(x)
    same = (codes == plain_codes(x, book)).double().mean().item()
    encode, decode, plain = in_turns(lambda: vq.encode(x), lambda: vq.decode(payload), lambda: plain_codes(x, book))
    threads = f"{torch.get_num_threads()} threads"
    yield row(f"VQ encode and decode, {threads}", size / (encode + decode), None, "GB/s", TURNS, at_least=1.0)
    yield row(f"codes by VectorQuantiser / by torch.cdist and argmin, {threads}", size / encode, size / plain, "GB/s", TURNS, at_least=10.0)
    yield row("share of equal codes", same, None, "", 1, at_least=0.9999)
    theirs, ours = peak_bytes(lambda: plain_codes(x, book)), peak_bytes(lambda: vq.codes(x))
    result = 8 * codes.numel()  # both give the codes back
    yield row("memory while codes are sought, torch.cdist and argmin / ours", theirs - result, ours - result, "B", 1, at_least=10.0)


def updates() -> Iterator[Row]:
    """Learning of the codebook, beside the step of the module that it belongs to: the second of the four-layer network."""
    modules = units(build("dgl_cnn4", (3, 32, 32), 10, 1.0, torch.Generator().manual_seed(0)))
    image = torch.zeros(2, 3, 32, 32)
    training = DecoupledTraining(LocalNetwork(modules, auxiliary_heads(modules, "mlp_sr", image)), lambda p: torch.optim.SGD(p, lr=0.1))
    x, y = torch.randn(64, 64, 32, 32).relu_(), torch.randint(10, (64,))
    _, out = training.update(1, x, y)
    vq = OnlineVQ(out.shape[1], out.shape[1] // 16)
    vq.begin(out)
    codes = VectorQuantiser(vq.codebook).codes(out)
    learn, step = in_turns(lambda: vq.update(out, codes), lambda: training.update(1, x, y))
    yield row("update of the codebook / step of its module, batch 64", 1e3 * learn, 1e3 * step, "ms", TURNS, at_most=0.2)


def buffers() -> Iterator[Row]:
    """Bytes that the buffer says it holds, and that Python's allocator has handed out for it."""
    channel, buffer = Channel("m", 10), ReplayBuffer(20)
    x, y = torch.randn(32, 64, 8, 8), torch.randint(10, (32,))
    tracemalloc.start()
    try:
        for _ in range(50):
            buffer.write(channel.send(x, y))
        measured, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    yield row("bytes of a buffer, counted / allocated", buffer.nbytes, measured, "B", 1, at_least=0.99)


def backprop_rate(threads: int) -> float:
    """Samples a second of end-to-end training in this process, the first epoch left out."""
    torch.set_num_threads(threads)
    job = resolve("decoupled_backprop", TASK, {"modules": 1, "epochs": EPOCHS, "batch_size": BATCH, "report_every": 1000},
                  task_params={"width": WIDTH}, device="cpu")
    ctx = Context(device=torch.device("cpu"), seed=0)
    job.task.setup(ctx)
    state = job.method.init(job.task, ctx)
    job.method.step(state, job.task, ctx)
    begin, before = time.perf_counter(), state.feed.samples
    while state.feed.epoch < EPOCHS:
        job.method.step(state, job.task, ctx)
    return (state.feed.samples - before) / (time.perf_counter() - begin)


def processes() -> Iterator[Row]:
    """Two modules, a process and a thread each, in lock step, from the first epoch's end to the last one's."""
    params = {"modules": 2, "cuts": [2], "epochs": EPOCHS, "batch_size": BATCH, "head": "average", "report_every": 1000}
    with tempfile.TemporaryDirectory() as place:
        with start("dgl", TASK, params, folder=Path(place) / "run", task_params={"width": WIDTH}) as running:
            outcome = running.wait(900)
        lines = [outcome.record(j) for j in range(2)]
    first, last = lines[1][0], lines[1][-1]
    samples = lines[0][-1]["samples"] * (1 - first["updates"] / last["updates"])
    rate = samples / (last["seconds"] - first["seconds"])
    two, one = backprop_rate(2), backprop_rate(1)
    job = resolve("dgl", TASK, params, task_params={"width": WIDTH}, device="cpu")
    ctx = Context(device=torch.device("cpu"), seed=0)
    job.task.setup(ctx)
    job.method.init(job.task, ctx)
    predicted = 1 / max(job.method.durations)
    n = EPOCHS - 1
    yield row("DGL on two processes of one thread / backpropagation on one of two threads", rate, two, "samples/s", n)
    yield row("speed-up over backpropagation on one thread, measured / predicted by the pipeline model", rate / one, predicted, "", n)
    for j, own in enumerate(lines, 1):
        yield row(f"utilisation of module {j}", own[-1]["utilisation"], None, "", 1)


def main() -> list[Row]:
    threads = torch.get_num_threads()
    try:
        return [*quantiser(), *updates(), *buffers(), *processes()]
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    for result in main():
        print(json.dumps(result))
