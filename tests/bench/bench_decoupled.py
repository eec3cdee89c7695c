"""Decoupled learning: modules in processes against backpropagation, the vector quantiser's speed and memory, buffers as counted.

Speed is measured side by side, in turns, medians. The quantiser works on 128 x 128 x 32 x 32 activations after a ReLU, 8 groups of 16
channels, 256 codewords: links 1 of the buffer experiments of arXiv:1901.08164, with the sizes of arXiv:1911.08019.

What a search costs at least: a value meets all K = 256 codewords, so 256 multiply-adds a float (K d for each vector of d values), or 64
for each byte. At 1 GB/s that is 64 thousand million multiply-adds a second. How many the machine does at all is measured in the same
turns, by a product of two matrices that fit its caches, and printed as the speed that no search can pass.
"""

from __future__ import annotations

import json
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tracking.codecs.vq import VectorQuantiser
from workbench.datasets.models import build
from workbench.decoupled import Channel, DecoupledTraining, LocalNetwork, OnlineVQ, ReplayBuffer, auxiliary_heads, units
from workbench.decoupled.vq_codec import LinkQuantiser, tally
from workbench.studies.dgl_speed import Race, threads

GROUPS, CODEWORDS, CHANNELS = 8, 256, 128
SQUARE = 1536  # side of the matrices whose product says what the machine can do
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
    """The most that ``work`` holds at once: of torch's allocator, by its events, and of Python's and NumPy's."""
    tracemalloc.start()
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            work()
            _, python = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    now = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak + python - before


def quantiser() -> Iterator[Row]:
    x, book = activations()
    vq, size, on = LinkQuantiser(book), 4 * x.numel() / 1e9, f"{torch.get_num_threads()} threads"
    square, part = torch.randn(SQUARE, SQUARE), x[:16]  # an eighth for what is slow: rates count
    payload, codes = vq.coded(x)
    same = (codes == plain_codes(x, book)).double().mean().item()
    encode, decode, search, plain, product, fallback = in_turns(
        lambda: vq.encode(x), lambda: vq.decode(payload), lambda: vq.codes(x), lambda: plain_codes(part, book), lambda: square @ square,
        lambda: VectorQuantiser(book).codes(part))
    bound = 4 * SQUARE**3 / product / CODEWORDS / 1e9
    yield row(f"VQ encode and decode, {on}", size / (encode + decode), None, "GB/s", TURNS, at_least=1.0)
    yield row(f"VQ encode / the bound of {CODEWORDS} multiply-adds a float at a matrix product's speed, {on}",
              size / encode, bound, "GB/s", TURNS)
    yield row(f"VQ decode, {on}", size / decode, None, "GB/s", TURNS)
    yield row(f"codes by the kernel / by torch.cdist and argmin, {on}", size / search, size / 8 / plain, "GB/s", TURNS, at_least=10.0)
    yield row("share of equal codes", same, None, "", 1, at_least=0.9999)
    theirs, ours = peak_bytes(lambda: plain_codes(x, book)), peak_bytes(lambda: vq.codes(x))
    result = 8 * codes.numel()  # both give the codes back
    yield row("memory while codes are sought, torch.cdist and argmin / ours", theirs - result, ours - result, "B", 1, at_least=10.0)
    yield row(f"codes by matrix products, where there is no Numba, {on}", size / 8 / fallback, None, "GB/s", TURNS)


def scaling() -> Iterator[Row]:
    """What a second thread brings. Seconds of a processor tell how the work is shared on a busy machine, too: with none that is serial,
    the calling thread does half of it.
    """
    x, book = activations()
    vq, size = LinkQuantiser(book), 4 * x.numel() / 1e9
    payload = vq.encode(x)

    def both(number: int) -> tuple[float, float, float]:
        with threads(number):
            wall, own, all_threads = time.perf_counter(), time.thread_time(), time.process_time()
            vq.decode(payload)
            vq.encode(x)
            return time.perf_counter() - wall, time.thread_time() - own, time.process_time() - all_threads

    turns = [(both(1), both(2)) for _ in range(TURNS + 1)][1:]
    one, two = ([statistics.median(t[i][k] for t in turns) for k in range(3)] for i in (0, 1))
    yield row("VQ encode and decode, 2 threads / 1 thread", size / two[0], size / one[0], "GB/s", TURNS)
    yield row("VQ encode and decode, share of the processors' work that the calling thread does, 2 threads", two[1], two[2], "s", TURNS)
    yield row("VQ encode and decode, processors' work on 2 threads / on 1", two[2], one[2], "s", TURNS)


def updates() -> Iterator[Row]:
    """Learning of the codebook, beside the step of the module that it belongs to: the second of the four-layer network."""
    modules = units(build("dgl_cnn4", (3, 32, 32), 10, 1.0, torch.Generator().manual_seed(0)))
    image = torch.zeros(2, 3, 32, 32)
    training = DecoupledTraining(LocalNetwork(modules, auxiliary_heads(modules, "mlp_sr", image)), lambda p: torch.optim.SGD(p, lr=0.1))
    x, y = torch.randn(64, 64, 32, 32).relu_(), torch.randint(10, (64,))
    _, out = training.update(1, x, y)
    vq = OnlineVQ(out.shape[1], out.shape[1] // 16)
    vq.begin(out)
    codes = LinkQuantiser(vq.codebook).codes(out)
    channel = Channel("m", 10, quantiser=OnlineVQ(out.shape[1], out.shape[1] // 16), sync_every=10)
    learn, count, send, step = in_turns(lambda: vq.update(out, codes), lambda: tally(out, codes, vq.codebook), lambda: channel.send(out, y),
                                        lambda: training.update(1, x, y))
    yield row("update of the codebook / step of its module, batch 64", 1e3 * learn, 1e3 * step, "ms", TURNS, at_most=0.2)
    yield row("of that, counting and adding up / step", 1e3 * count, 1e3 * step, "ms", TURNS)
    yield row("all of a quantised message: search, bits, learning / step", 1e3 * send, 1e3 * step, "ms", TURNS)


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


def processes() -> Iterator[Row]:
    """Two modules, a process and a thread each, in lock step; windows are epochs."""
    race = Race()
    speed, modules, budget, rates = race.tables()
    one, two, ours = (statistics.median(r) for r in rates.values())
    n = min(len(r) for r in rates.values())
    yield row("DGL on two processes of one thread / backpropagation on one of two threads", ours, two, "samples/s", n)
    yield row("DGL on two processes of one thread / backpropagation on one thread", ours, one, "samples/s", n)
    for line in speed[speed[""] == "model"].to_dict("records"):
        yield row(f"that ratio, measured / predicted: {line['what'].removeprefix('the same, ')}", ours / one, line["speed-up"], "", n)
    for line in modules.to_dict("records"):
        yield row(f"utilisation of module {line['module']}, measured / predicted", line["utilisation"], line["predicted"], "", 1)
    for line in budget.to_dict("records"):
        for name, figure in line.items():
            if name != "module":
                what, unit = name.rstrip("]").split(" [")
                yield row(f"update of module {line['module']}: {what}", figure, None, unit, 1)


def main() -> list[Row]:
    before = torch.get_num_threads()
    try:
        return [*quantiser(), *scaling(), *updates(), *buffers(), *processes()]
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    for result in main():
        print(json.dumps(result))
