"""The packed products on the processor: Numba kernels, shared among as many threads as PyTorch may use.

Threads are plain ones: kernels run without the interpreter's lock, any number of callers may share them, and no second
OpenMP spins beside PyTorch's own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from workbench.boolean.packed import cpu, simd
from workbench.boolean.packed.words import BITS, LANES, num_words, output_size

GRAIN = 1 << 16  # vector operations worth a thread: about 40 us, against 20 us to hand them over
NO_INTS, NO_BITS = np.empty(0, np.int32), np.empty(0, np.uint16)

_pool: ThreadPoolExecutor | None = None


def _forget() -> None:
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget)  # a fork has the pool without its threads


def share(work: Callable[[int, int], None], total: int, unit: int, cost: int) -> None:
    """Call ``work(begin, end)`` over ``0:total`` in parts that are multiples of ``unit``, on as many threads as
    ``cost`` deserves.
    """
    global _pool
    units = -(-total // unit)
    parts = max(1, min(torch.get_num_threads(), units, cost // GRAIN))
    if parts == 1:
        work(0, total)
        return
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count(), "packed")
    edges = [min(units * i // parts * unit, total) for i in range(parts + 1)]
    others = [_pool.submit(work, *edge) for edge in pairwise(edges[1:])]
    work(edges[0], edges[1])
    for other in others:
        other.result()


def _flat(t: Tensor, kind: type) -> np.ndarray:
    return t.detach().contiguous().numpy().reshape(-1).view(kind)


def _targets(rows: int, blocks: int, bound: Tensor | None, flip: Tensor | None) -> tuple[Tensor, tuple]:
    """Room for the result, and what the kernels take for it: bound, flip, sums, bits."""
    if bound is None:
        out = torch.empty(rows, blocks * LANES, dtype=torch.int32)
        return out, (NO_INTS, NO_BITS, _flat(out, np.int32), NO_BITS)
    out = torch.zeros(rows, flip.numel(), dtype=torch.int64)
    return out, (_flat(bound, np.int32), _flat(flip, np.uint16), NO_INTS, _flat(out, np.uint16))


def product(
    x: Tensor, lanes: Tensor, n: int, shift: Tensor, pattern: Tensor, bound: Tensor | None, flip: Tensor | None
) -> Tensor:
    """See :func:`workbench.boolean.packed.backends.product`."""
    (rows, _), (blocks, k, _) = x.shape, lanes.shape
    out, targets = _targets(rows, blocks, bound, flip)
    x, w, rest = _flat(x, np.int32), _flat(lanes, np.int32), (_flat(shift, np.int32), *targets)
    kinds = np.zeros(rows, np.int32) if pattern.numel() == 1 else np.resize(_flat(pattern, np.int32), rows)
    if blocks >= 8 * torch.get_num_threads():  # then each core reads its own part of the weights, and few inputs
        share(lambda b0, b1: cpu.rows(x, w, k, n, kinds, 0, 0, rows, b0, b1, *rest), blocks, 2, rows * blocks * k)
    else:
        share(lambda r0, r1: cpu.rows(x, w, k, n, kinds, 0, r0, r1, 0, blocks, *rest), rows, 4, rows * blocks * k)
    return out


def conv(
    x: Tensor,
    lanes: Tensor,
    n: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    shift: Tensor,
    pattern: Tensor,
    bound: Tensor | None,
    flip: Tensor | None,
) -> Tensor:
    """See :func:`workbench.boolean.packed.backends.conv`."""
    batch, height, width, words = x.shape
    oh, ow = output_size((height, width), kernel, stride, padding, dilation)
    rows, (blocks, k, _) = batch * oh * ow, lanes.shape
    out, targets = _targets(rows, blocks, bound, flip)
    shape = (height, width, 2 * words, *kernel, *stride, *padding, *dilation, oh, ow)
    x, w, rest = (
        _flat(x, np.int32),
        _flat(lanes, np.int32),
        (_flat(shift, np.int32), _flat(pattern, np.int32), *targets),
    )
    share(lambda r0, r1: cpu.conv(x, shape, w, n, r0, r1, *rest), rows, cpu.GATHER, rows * blocks * k)
    return out.view(batch, oh, ow, out.shape[1])


def real(x: Tensor, lanes: Tensor) -> Tensor:
    """See :func:`workbench.boolean.packed.backends.real`."""
    (rows, n), (blocks, k, _) = x.shape, lanes.shape
    out = torch.zeros(rows, blocks * LANES)
    x, w, target = _flat(x.float(), np.float32), _flat(lanes, np.int32), _flat(out, np.float32)
    if not simd.PERMUTES:
        share(lambda b0, b1: cpu.real_by_votes(x, w, n, k, target, 0, rows, b0, b1), blocks, 2, 16 * rows * blocks * k)
        return out
    sums = np.empty(rows * 8 * k * LANES, np.float32)
    share(lambda r0, r1: cpu.tables(x, n, k, sums, r0, r1), rows, 4, 8 * rows * k)
    share(lambda b0, b1: cpu.real_by_tables(sums, w, k, target, 0, rows, b0, b1), blocks, 2, 8 * rows * blocks * k)
    return out


def pack_rows(x: Tensor, tau: float) -> Tensor:
    """See :func:`workbench.boolean.packed.backends.pack_rows`."""
    *lead, n = x.shape
    rows, width = x.numel() // max(n, 1), num_words(n) * BITS // LANES
    out = torch.zeros(*lead, num_words(n), dtype=torch.int64)
    x, bits, tau = _flat(x, np.float32), _flat(out, np.uint16), np.float32(tau)
    share(lambda r0, r1: cpu.pack_rows(x, n, tau, bits, width, r0, r1), rows, 4, x.size // 8)
    return out


def pack_maps(x: Tensor, tau: float) -> Tensor:
    """See :func:`workbench.boolean.packed.backends.pack_maps`."""
    batch, channels, height, width = x.shape
    if x.is_contiguous(memory_format=torch.channels_last):
        return pack_rows(x.permute(0, 2, 3, 1), tau)
    out = torch.zeros(batch, height, width, num_words(channels), dtype=torch.int64)
    x, bits, tau = _flat(x, np.float32), _flat(out, np.int32), np.float32(tau)
    share(
        lambda m0, m1: cpu.pack_maps(x, channels, height * width, tau, bits, 2 * num_words(channels), m0, m1),
        batch,
        1,
        x.size // 4,
    )
    return out
