"""Time and bytes of packed Boolean products against the float ones that PyTorch runs on the same +-1.

Both have the threads PyTorch has, and take turns; figures are medians of wall time over the turns. Packing the inputs
is part of a figure unless its name says that they come packed, as they do between Boolean layers. Rows for CUDA come
from a machine with CUDA and Triton: elsewhere a line says why they are left out.
"""

from __future__ import annotations

import importlib.util
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import nn

from tests.bench.page import on_curve
from workbench.boolean.layers import BooleanConv2d, BooleanLinear
from workbench.boolean.networks import BooleanOptions, booleanise
from workbench.boolean.packed import PackedConv2d, PackedLinear, export, pack, weight_bytes
from workbench.boolean.packed.backends import pack_maps, pack_rows
from workbench.datasets.models import vgg_small

TURNS, SPIN = 15, 0.25
SIDE = 4096
DEPTH = 8
"""Layers gone through in turn: 16 MiB of packed weights, more than a core keeps."""
VGG = ((128, 128, 32), (128, 256, 16), (256, 256, 16), (256, 512, 8), (512, 512, 8))
"""Channels in and out and side of the map, of the Boolean convolutions of VGG-Small."""


def main() -> list[dict]:
    """Rows of the table."""
    with torch.no_grad():
        return [*linear(), *real(), *convolutions(), *networks(), *cuda()]


def turns(ours: Callable, peer: Callable, n: int = TURNS, calls: int = 1) -> tuple[float, float]:
    """Median seconds of a call of each, ``calls`` calls of one after as many of the other, ``n`` times.

    The first call of a turn is not timed, and each side begins when the other's idle threads have ceased to spin: OpenMP's go on for
    up to 200 ms after a product of PyTorch's, on a core that may share its units with ours.
    """
    times: list[tuple[float, float]] = []
    for _ in range(n):
        turn = []
        for side in (ours, peer):
            time.sleep(SPIN)
            side()
            begin = time.perf_counter()
            for _ in range(calls):
                side()
            turn.append((time.perf_counter() - begin) / calls)
        times.append((turn[0], turn[1]))
    mine, theirs = zip(*times, strict=True)
    return statistics.median(mine), statistics.median(theirs)


def row(name: str, ours: float, peer: float, n: int, target: float | None = None, unit: str = "ms") -> dict:
    """``ratio`` is how many times less ours is."""
    made = {"name": name, "ours": ours, "peer": peer, "unit": unit, "ratio": peer / ours, "n": n}
    return made | ({"target": f">= {target:g}", "met": peer / ours >= target} if target else {})


def timed(name: str, ours: Callable, peer: Callable, n: int = TURNS, target: float | None = None, calls: int = 1) -> dict:
    mine, theirs = turns(ours, peer, n, calls)
    return row(name, 1e3 * mine, 1e3 * theirs, n, target)


def signs(*shape: int) -> torch.Tensor:
    return 2.0 * torch.randint(2, shape, generator=torch.Generator().manual_seed(0)) - 1


def linear() -> Iterable[dict]:
    """Xnor and count of 4096 x 4096 weights, from one input to a batch of 64, and the bytes of the weight.

    As in a deep network: layer after layer, so that no weight is in a core's cache when its turn comes, for either side.
    """
    layers = [BooleanLinear(SIDE, SIDE) for _ in range(DEPTH)]
    packed = [PackedLinear.of(layer) for layer in layers]
    what = f"xnor linear {SIDE} x {SIDE}"
    for batch in (1, 2, 4, 8, 16, 32, 64):
        x = signs(batch, SIDE)
        words = pack(x)
        assert torch.equal(packed[0](words).float(), F.linear(x, layers[0].weight))
        mine, theirs = itertools.cycle(packed), itertools.cycle(layers)
        made = timed(
            f"{what}, batch {batch}",
            lambda x=x, mine=mine: next(mine)(pack_rows(x)),
            lambda x=x, theirs=theirs: F.linear(x, next(theirs).weight),
            target=8 if batch == 1 else 1,
            calls=DEPTH,
        )
        yield on_curve(made, f"Boolean linear, {SIDE} x {SIDE}", batch, "inputs in a batch", "packed, inputs included", "torch float32")
        if batch in (1, 64):
            yield timed(
                f"{what}, batch {batch}, one layer over and over, inputs packed",
                lambda words=words: packed[0](words),
                lambda x=x: F.linear(x, layers[0].weight),
                calls=DEPTH,
            )
    yield row(f"{what}, bytes of the weight", packed[0].weight.nbytes, layers[0].weight.nbytes, 1, 32, "B")


def real() -> Iterable[dict]:
    """Packed weights times real inputs, and the batch up to which that is the faster way."""
    layer = BooleanLinear(SIDE, SIDE)
    packed, faster = PackedLinear.of(layer, real=True), 0
    for batch in (1, 2, 4, 8, 16, 32, 64, 128):
        x = torch.randn(batch, SIDE, generator=torch.Generator().manual_seed(0))
        made = timed(
            f"packed weight x real {SIDE} x {SIDE}, batch {batch}",
            lambda x=x: packed(x),
            lambda x=x: F.linear(x, layer.weight),
            n=7 if batch > 16 else TURNS,
            target=1 if batch == 1 else None,
            calls=4,
        )
        faster = batch if made["ratio"] > 1 else faster
        yield on_curve(made, f"Packed weight times real inputs, {SIDE} x {SIDE}", batch, "inputs in a batch", "packed", "torch float32")
    name = "packed weight x real, largest batch of 1, 2, 4 ... 128 at which it is faster"
    yield {"name": name, "ours": faster, "unit": "inputs", "n": 8}


def convolutions() -> Iterable[dict]:
    """The Boolean layers of VGG-Small, votes from floats: packing is part of it."""
    for inputs, outputs, side in VGG:
        layer = BooleanConv2d(inputs, outputs, 3, padding=1)
        packed = PackedConv2d.of(layer)
        for batch in (1, 16):
            x = signs(batch, inputs, side, side)
            assert torch.equal(packed(pack_maps(x)).permute(0, 3, 1, 2).float(), layer(x))
            yield timed(
                f"xnor conv 3x3 {inputs} to {outputs} at {side} x {side}, batch {batch}",
                lambda x=x, packed=packed: packed(pack_maps(x)),
                lambda x=x, layer=layer: layer(x),
                n=9,
                target=1,
            )


def networks() -> Iterable[dict]:
    """The whole of VGG-Small, full-precision ends included, at equal logits."""
    for norm in (False, True):
        net = booleanise(vgg_small((3, 32, 32), 10), BooleanOptions(batch_norm=norm)).eval()
        packed, what = export(net), f"VGG-Small {'with' if norm else 'without'} batch norm"
        for batch in (1, 16, 64) if norm else (1, 16):
            x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
            assert torch.equal(packed(x), net(x))
            yield timed(f"{what}, batch {batch}", lambda x=x, p=packed: p(x), lambda x=x, f=net: f(x), n=5, target=1)
    sizes = weight_bytes(packed).values()
    yield row(
        "VGG-Small, bytes of the Boolean weights", *(sum(column) for column in zip(*sizes, strict=True)), 1, 32, "B"
    )
    yield row("VGG-Small, bytes of the whole state", *(state_bytes(m) for m in (packed, net)), 1, None, "B")


def state_bytes(model: nn.Module) -> int:
    return sum(v.nbytes for v in model.state_dict().values())


def cuda() -> Iterable[dict]:
    """Small batches on a GPU, where a layer's time is that of reading its weights, against bfloat16."""
    if not torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        why = "no CUDA device" if not torch.cuda.is_available() else "triton is not installed"
        print(f"  CUDA rows left out: {why}", file=sys.stderr)
        return
    layers = [
        BooleanLinear(SIDE, SIDE, device="cuda") for _ in range(8)
    ]  # 256 MB of bfloat16: beyond the second-level cache
    weights, packed = [m.weight.bfloat16() for m in layers], [PackedLinear.of(m) for m in layers]
    bits = [PackedLinear.of(m, real=True) for m in layers]
    for batch in (1, 4, 16):
        x = signs(batch, SIDE).cuda().bfloat16()
        words = pack(x)
        theirs = graph_ms(lambda x=x: [F.linear(x, w) for w in weights]) / len(layers)
        ours = graph_ms(lambda words=words: [m(words) for m in packed]) / len(layers)
        yield row(f"CUDA: xnor linear {SIDE} x {SIDE}, batch {batch}, against bf16", ours, theirs, 20, 4)
        ours = graph_ms(lambda x=x: [m(x) for m in bits]) / len(layers)
        yield row(f"CUDA: packed weight x bf16 {SIDE} x {SIDE}, batch {batch}", ours, theirs, 20)


def graph_ms(work: Callable, n: int = 20) -> float:
    """Milliseconds of ``work`` on the device, recorded once as a CUDA graph: what Python needs to launch is no part
    of it.
    """
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    begin.record()
    for _ in range(n):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / n


if __name__ == "__main__":
    from tests.bench.__main__ import describe

    for line in main():
        print(describe(line))
