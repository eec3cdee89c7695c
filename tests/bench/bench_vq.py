"""k-means and column orders of a 4096 x 4096 matrix against SciPy and a Python loop, with the error beside the time.

The k-means problem is that of a 2-bit code in vectors of four: 4.19 million vectors of the block-scaled matrix, 256
codewords. SciPy starts from random vectors and makes 20 iterations, as ReALLM's released code has it, once, for it takes
minutes; ours has the threads PyTorch has. Rows for CUDA come from a machine with CUDA: elsewhere a line says why they are
left out.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterable

import numpy as np
import torch

from workbench.llm.formats_vq import product
from workbench.llm.reallm import ReALLM, VectorCode
from workbench.llm.vq import block_scales, kmeans, order_columns
from workbench.llm.vq.scales import divide

SIDE, DIM, SIZE = 4096, 4, 256
SCIPY_ITERATIONS = 20
BLOCKS = 2
"""Row blocks that the Python loop orders: it takes seconds for each, and all cost the same."""
TURNS = 3


def main() -> list[dict]:
    """Rows of the table."""
    weight = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return [*k_means(weight), *ordering(weight), *fused(weight), *whole(), *cuda(weight)]


def vectors(weight: torch.Tensor) -> torch.Tensor:
    """Four consecutive rows at one column of the scaled matrix."""
    latent = divide(weight, block_scales(weight).dense(*weight.shape))
    return latent.view(-1, DIM, weight.shape[1]).transpose(0, 1).reshape(DIM, -1).T


def k_means(weight: torch.Tensor) -> Iterable[dict]:
    """Wall time of both, and the mean squared error that each codebook leaves."""
    from scipy.cluster.vq import kmeans2

    x = vectors(weight)
    kmeans(x[:10_000], SIZE)  # the kernels are compiled once for a machine
    begin = time.perf_counter()
    book, codes = kmeans2(x.contiguous().numpy(), SIZE, iter=SCIPY_ITERATIONS, minit="points", seed=0)
    theirs = time.perf_counter() - begin
    their_error = float((x - torch.from_numpy(book)[torch.from_numpy(codes).long()]).square().sum(dtype=torch.float64))
    times, errors = [], []
    for seed in range(TURNS):
        begin = time.perf_counter()
        found = kmeans(x, SIZE, generator=torch.Generator().manual_seed(seed))
        times.append(time.perf_counter() - begin)
        errors.append(found.error)
    ours, error = statistics.median(times), max(errors)
    name = f"k-means {SIDE} x {SIDE}, vectors of {DIM}, {SIZE} codewords"
    yield {"name": f"{name}, against scipy's kmeans2", "ours": ours, "peer": theirs, "unit": "s", "ratio": theirs / ours, "n": TURNS,
           "target": ">= 30", "met": theirs / ours >= 30}
    yield {"name": f"{name}, error of the worst of our turns", "ours": error / x.numel(), "peer": their_error / x.numel(),
           "unit": "mean square", "ratio": their_error / error, "n": TURNS, "target": ">= 1", "met": error <= their_error}


def python_loop(block: torch.Tensor) -> list[int]:
    """The greedy chain as it is written down: NumPy computes each step's distances, Python makes the steps."""
    w = block.double().numpy()
    order, left = [0], np.arange(1, w.shape[1])
    while len(left):
        mean = w[:, order[-16:]].mean(1)
        chosen = int(np.square(w[:, left] - mean[:, None]).sum(0).argmin())
        order.append(int(left[chosen]))
        left = np.delete(left, chosen)
    return order


def ordering(weight: torch.Tensor) -> Iterable[dict]:
    """The same orders, in time a matrix: the loop's is that of some blocks times their number."""
    order_columns(weight[:64, :64])
    begin = time.perf_counter()
    loop = [python_loop(block) for block in weight[:64 * BLOCKS].split(64)]
    theirs = (time.perf_counter() - begin) * SIDE / 64 / BLOCKS
    times = []
    for _ in range(TURNS):
        begin = time.perf_counter()
        order = order_columns(weight)
        times.append(time.perf_counter() - begin)
    assert order[:BLOCKS].tolist() == loop
    ours = statistics.median(times)
    name = f"column orders of {SIDE} x {SIDE}, against a Python loop with the same result"
    yield {"name": name, "ours": ours, "peer": theirs, "unit": "s", "ratio": theirs / ours, "n": TURNS, "target": ">= 50",
           "met": theirs / ours >= 50}


def fused(weight: torch.Tensor) -> Iterable[dict]:
    """Products with the stored matrix, from one input to eight, against decoding it and multiplying."""
    packed = ReALLM(permute="never")(weight)
    for batch in (1, 8):
        x = torch.randn(batch, SIDE, generator=torch.Generator().manual_seed(batch))
        times: list[tuple[float, float]] = []
        for _ in range(TURNS + 1):
            begin = time.perf_counter()
            product(packed, x)
            between = time.perf_counter()
            x @ packed.code().T
            times.append((between - begin, time.perf_counter() - between))
        ours, theirs = (statistics.median(column) for column in zip(*times[1:], strict=True))
        yield {"name": f"2-bit vectors of 4 in {SIDE} x {SIDE} times x, batch {batch}, against decode and multiply", "ours": 1e3 * ours,
               "peer": 1e3 * theirs, "unit": "ms", "ratio": theirs / ours, "n": TURNS, "target": ">= 1", "met": ours <= theirs}


def whole() -> Iterable[dict]:
    """The matrices of one block of a 135-million-parameter model, from weights to bytes."""
    shapes = ((576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536))
    g = torch.Generator().manual_seed(0)
    matrices = [torch.randn(*shape, generator=g) for shape in shapes]
    for name, method in (("2 bits in fours", ReALLM(permute="never")), ("with an order where it pays", ReALLM()),
                         ("with rank 8", ReALLM(VectorCode(), rank=8, permute="never"))):
        begin = time.perf_counter()
        for matrix in matrices:
            method(matrix)
        seconds = time.perf_counter() - begin
        yield {"name": f"ReALLM on the 7 matrices of a block of SmolLM2-135M's shapes, {name}", "ours": seconds, "unit": "s", "n": 1}


def cuda(weight: torch.Tensor) -> Iterable[dict]:
    """The same on a GPU, where there is one."""
    if not torch.cuda.is_available():
        print("  CUDA rows left out: no CUDA device", file=sys.stderr)
        return
    x = vectors(weight)
    for name, work in (("k-means", lambda device: kmeans(x.to(device), SIZE)),
                       ("column orders", lambda device: order_columns(weight.to(device)))):
        seconds = {}
        for device in ("cuda", "cpu"):
            work(device)
            torch.cuda.synchronize()
            begin = time.perf_counter()
            work(device)
            torch.cuda.synchronize()
            seconds[device] = time.perf_counter() - begin
        yield {"name": f"CUDA: {name} of {SIDE} x {SIDE}, against this machine's processor", "ours": seconds["cuda"],
               "peer": seconds["cpu"], "unit": "s", "ratio": seconds["cpu"] / seconds["cuda"], "n": 1}


if __name__ == "__main__":
    from tests.bench.__main__ import describe

    for line in main():
        print(describe(line))
