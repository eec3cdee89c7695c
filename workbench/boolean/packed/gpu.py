"""Triton kernels on packed words, for CUDA; the same source runs in Triton's interpreter on the processor, for tests.

Import this module inside the function that runs a kernel: Triton may be absent.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from workbench.boolean.packed import plain
from workbench.boolean.packed.words import LANES, pack

INTERPRETED = triton.knobs.runtime.interpret
"""Whether ``TRITON_INTERPRET=1`` was set when Triton was imported."""


@triton.jit
def _popcount(v, NATIVE: tl.constexpr):
    """Bits of every 32-bit word: one instruction, or sums of neighbours where the interpreter has none."""
    if NATIVE:
        return libdevice.popc(v)
    v = v.to(tl.uint32, bitcast=True)
    v = v - ((v >> 1) & 0x55555555)
    v = (v & 0x33333333) + ((v >> 2) & 0x33333333)
    v = (v + (v >> 4)) & 0x0F0F0F0F
    v = v + (v >> 8)
    return ((v + (v >> 16)) & 0x3F).to(tl.int32)


@triton.jit
def _xnor(
    x,
    w,
    shift,
    pattern,
    bound,
    flip,
    out,
    rows,
    k,
    n,
    outputs,
    period,
    width,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    WORDS: tl.constexpr,
    BITS: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """Votes of a tile of rows and outputs, or (``BITS``) their thresholds, 32 to a word of ``out``."""
    r, o = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    inside, real = r < rows, o < outputs
    lane = (o // 16).to(tl.int64) * k * 16 + o % 16
    differ = tl.zeros((ROWS, OUTPUTS), tl.int32)
    for begin in range(0, k, WORDS):
        i = begin + tl.arange(0, WORDS)
        some = i < k
        a = tl.load(x + r[:, None].to(tl.int64) * k + i[None, :], mask=inside[:, None] & some[None, :], other=0)
        b = tl.load(w + lane[:, None] + i[None, :] * 16, mask=real[:, None] & some[None, :], other=0)
        differ += tl.sum(_popcount(a[:, None, :] ^ b[None, :, :], NATIVE), 2)
    row = tl.load(pattern + r % period, mask=inside, other=0)
    tile = inside[:, None] & real[None, :]
    s = n - 2 * differ + tl.load(shift + row[:, None].to(tl.int64) * outputs + o[None, :], mask=tile, other=0)
    if BITS:
        reached = (s >= tl.load(bound + o, mask=real, other=2147483647)[None, :]).to(tl.int32)
        words = tl.sum(tl.reshape(reached << (o % 32)[None, :], (ROWS, OUTPUTS // 32, 32)), 2)  # distinct powers of two
        at = tl.program_id(0) * (OUTPUTS // 32) + tl.arange(0, OUTPUTS // 32)
        turned = words ^ tl.load(flip + at, mask=at < width, other=0)[None, :]
        tl.store(
            out + r[:, None].to(tl.int64) * width + at[None, :], turned, mask=inside[:, None] & (at < width)[None, :]
        )
    else:
        tl.store(out + r[:, None].to(tl.int64) * outputs + o[None, :], s, mask=tile)


@triton.jit
def _real(x, w, out, rows, n, k, outputs, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, WORDS: tl.constexpr):
    """Products of a tile of real rows with weights that are unpacked to +-1 in registers."""
    r, o = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    inside, real = r < rows, o < outputs
    lane = (o // 16).to(tl.int64) * k * 16 + o % 16
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for begin in range(0, k, WORDS):
        i, j = begin + tl.arange(0, WORDS), begin * 32 + tl.arange(0, WORDS * 32)
        a = tl.load(x + r[:, None].to(tl.int64) * n + j[None, :], mask=inside[:, None] & (j < n)[None, :], other=0)
        b = tl.load(w + lane[None, :] + i[:, None] * 16, mask=real[None, :] & (i < k)[:, None], other=0)
        bits = (b[:, None, :] >> tl.arange(0, 32)[None, :, None]) & 1
        signs = (2 * tl.reshape(bits, (WORDS * 32, OUTPUTS)) - 1).to(a.dtype)
        total = tl.dot(a, signs, total, input_precision="ieee")
    tl.store(out + r[:, None].to(tl.int64) * outputs + o[None, :], total, mask=inside[:, None] & real[None, :])


def tiles(rows: int, k: int) -> tuple[int, int, int]:
    """Rows, outputs and words of a tile of :func:`_xnor`: at most 8192 words compared at a time."""
    height = min(16, triton.next_power_of_2(max(rows, 1)))
    return height, 32, min(256 // height, triton.next_power_of_2(k))


def product(
    x: Tensor, lanes: Tensor, n: int, shift: Tensor, pattern: Tensor, bound: Tensor | None, flip: Tensor | None
) -> Tensor:
    """See :func:`workbench.boolean.packed.backends.product`."""
    rows, (blocks, k, _) = x.shape[0], lanes.shape
    outputs, kind = blocks * LANES, {"dtype": torch.int32, "device": x.device}
    out = torch.empty(rows, outputs, **kind) if bound is None else torch.zeros(rows, 2 * flip.numel(), **kind)
    if rows:
        height, across, deep = tiles(rows, k)
        turn = out if flip is None else flip.view(torch.int32)
        _xnor[(triton.cdiv(outputs, across), triton.cdiv(rows, height))](
            x.contiguous().view(torch.int32),
            lanes,
            shift,
            pattern,
            out if bound is None else bound,
            turn,
            out,
            rows,
            k,
            n,
            outputs,
            pattern.numel(),
            out.shape[1],
            ROWS=height,
            OUTPUTS=across,
            WORDS=deep,
            BITS=bound is not None,
            NATIVE=not INTERPRETED,
        )
    return out if bound is None else out.view(torch.int64)


def real(x: Tensor, lanes: Tensor) -> Tensor:
    """See :func:`workbench.boolean.packed.backends.real`. Inputs of 16 bits are multiplied as they are, and summed
    in float32.
    """
    (rows, n), (blocks, k, _) = x.shape, lanes.shape
    x = x if x.dtype in (torch.float16, torch.bfloat16) else x.float()
    out = torch.empty(rows, blocks * LANES, dtype=torch.float32, device=x.device)
    if rows:
        _real[(triton.cdiv(out.shape[1], 32), triton.cdiv(rows, 16))](
            x.contiguous(), lanes, out, rows, n, k, out.shape[1], ROWS=16, OUTPUTS=32, WORDS=2
        )
    return out


pack_rows, pack_maps = pack, plain.pack_maps
