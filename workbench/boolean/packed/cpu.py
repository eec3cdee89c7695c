"""Numba kernels on packed words.

Sixteen outputs share a vector: lane ``o`` holds 32 weights of output ``o``, so a word of the input is broadcast, no
sum crosses lanes, and a row of any length has no remainder. One 64-byte load serves 512 weights. LLVM makes
``vpopcntd`` of the bit count where the processor has it and a look-up of nibbles where not; with that instruction a
carry-save adder would save nothing, as it costs as many operations a word as counting does.

All arrays are flat. Import this module inside the function that runs a kernel: Numba may be absent.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from workbench.boolean.packed.simd import (
    LANES,
    add,
    count,
    kernel,
    load,
    look_up,
    prefetch,
    reaches,
    set_where,
    shift_right,
    spread,
    store,
    sums_of,
    vote,
)

CHUNK = 12  # words of input whose tables (6 KB a row) stay in the first-level cache while all outputs pass over them
AHEAD = 8  # vectors of weights asked for in advance: the processor's own prefetching ends with a page of memory
GATHER = 16  # rows of a convolution gathered at a time


# --- packing ------------------------------------------------------------------------------------------------


@kernel
def pack_rows(x, n, tau, out, width, r0, r1):
    """Rows ``r0:r1`` of flat float32 ``x`` (rows of ``n``) to bits ``x >= tau``: ``out`` is flat uint16, zeroed,
    ``width`` a row.
    """
    bound = spread(tau)
    for r in range(r0, r1):
        for i in range(n // LANES):
            out[r * width + i] = reaches(load(x, r * n + i * LANES), bound)
        tail = 0
        for i in range(n // LANES * LANES, n):
            tail |= (x[r * n + i] >= tau) << (i % LANES)
        if n % LANES:
            out[r * width + n // LANES] = tail


@kernel
def pack_maps(x, channels, pixels, tau, out, width, m0, m1):
    """Maps ``m0:m1`` of ``x`` (channels, pixels) to bits of (pixels, channels): ``out`` is flat int32, zeroed,
    ``width`` a pixel.
    """
    bound, lanes = spread(tau), np.empty(LANES, np.int32)
    for m in range(m0, m1):
        base = m * channels * pixels
        for c in range(0, channels, 32):
            many = min(32, channels - c)
            for p in range(0, pixels // LANES * LANES, LANES):
                bits = spread(np.int32(0))
                for j in range(many):
                    bits = set_where(bits, load(x, base + (c + j) * pixels + p), bound, j)
                store(lanes, 0, bits)
                for lane in range(LANES):
                    out[(m * pixels + p + lane) * width + c // 32] = lanes[lane]
            for p in range(pixels // LANES * LANES, pixels):
                word = 0
                for j in range(many):
                    word |= (x[base + (c + j) * pixels + p] >= tau) << j
                out[(m * pixels + p) * width + c // 32] = word


# --- xnor and count -----------------------------------------------------------------------------------------


@partial(kernel, forceinline=True)  # a call would pass some forty words of arrays on the stack
def _emit(differ0, differ1, n, r, kind, block, blocks, shift, bound, flip, sums, bits):
    """The sums of 32 outputs of row ``r``; or, where ``bound`` is given, their threshold bits."""
    at, votes = (kind * blocks + block) * LANES, spread(np.int32(n))
    s0, s1 = sums_of(votes, differ0, load(shift, at)), sums_of(votes, differ1, load(shift, at + LANES))
    if bound.size:
        at, low = r * flip.size + block, block * LANES
        bits[at] = reaches(s0, load(bound, low)) ^ flip[block]
        bits[at + 1] = reaches(s1, load(bound, low + LANES)) ^ flip[block + 1]
    else:
        at = (r * blocks + block) * LANES
        store(sums, at, s0)
        store(sums, at + LANES, s1)


@kernel
def rows(x, w, k, n, kinds, first, r0, r1, b0, b1, shift, bound, flip, sums, bits):
    """Row ``r`` of the result, from row ``r - first`` of ``x``, for ``r0 <= r < r1`` and an even number of blocks.

    ``kinds``: for each row of ``x``, which row of ``shift`` is added.
    """
    blocks = w.size // (k * LANES)
    whole = r0 + (r1 - r0) // 4 * 4
    for block in range(b0, b1, 2):
        p, q = block * k * LANES, (block + 1) * k * LANES
        for r in range(r0, whole, 4):
            at = (r - first) * k
            none = spread(np.int32(0))
            c00, c01, c10, c11, c20, c21, c30, c31 = none, none, none, none, none, none, none, none
            for i in range(k):
                w0, w1 = load(w, p + i * LANES), load(w, q + i * LANES)
                x0, x1, x2, x3 = (
                    spread(x[at + i]),
                    spread(x[at + k + i]),
                    spread(x[at + 2 * k + i]),
                    spread(x[at + 3 * k + i]),
                )
                c00, c01, c10, c11 = count(c00, x0, w0), count(c01, x0, w1), count(c10, x1, w0), count(c11, x1, w1)
                c20, c21, c30, c31 = count(c20, x2, w0), count(c21, x2, w1), count(c30, x3, w0), count(c31, x3, w1)
            _emit(c00, c01, n, r, kinds[r - first], block, blocks, shift, bound, flip, sums, bits)
            _emit(c10, c11, n, r + 1, kinds[r + 1 - first], block, blocks, shift, bound, flip, sums, bits)
            _emit(c20, c21, n, r + 2, kinds[r + 2 - first], block, blocks, shift, bound, flip, sums, bits)
            _emit(c30, c31, n, r + 3, kinds[r + 3 - first], block, blocks, shift, bound, flip, sums, bits)
        for r in range(whole, r1):
            c0 = c1 = spread(np.int32(0))
            for i in range(k):
                prefetch(w, p + (i + AHEAD) * LANES)
                prefetch(w, q + (i + AHEAD) * LANES)
                x0 = spread(x[(r - first) * k + i])
                c0, c1 = count(c0, x0, load(w, p + i * LANES)), count(c1, x0, load(w, q + i * LANES))
            _emit(c0, c1, n, r, kinds[r - first], block, blocks, shift, bound, flip, sums, bits)


@kernel
def conv(x, shape, w, n, r0, r1, shift, pattern, bound, flip, sums, bits):
    """Pixels ``r0:r1`` of a convolution. ``shape``: height, width and words a pixel of ``x``; kernel, stride, padding,
    dilation (two each); output height and width. Words beyond the border are 0.
    """
    height, width, words, kh, kw, sh, sw, ph, pw, dh, dw, out_h, out_w = shape
    k = kh * kw * words
    columns, kinds = np.empty(GATHER * k, np.int32), np.empty(GATHER, np.int32)
    for first in range(r0, r1, GATHER):
        last = min(first + GATHER, r1)
        at = 0
        for r in range(first, last):
            image, top, left = r // (out_h * out_w), r // out_w % out_h * sh - ph, r % out_w * sw - pw
            kinds[r - first] = pattern[r % pattern.size]
            # taps side by side in memory are copied as one
            together = dw == 1 and left >= 0 and left + kw <= width
            step, run = (kw, kw * words) if together else (1, words)
            for i in range(kh):
                y = top + i * dh
                for j in range(0, kw, step):
                    z = left + j * dw
                    source = ((image * height + y) * width + z) * words
                    if 0 <= y < height and 0 <= z < width:
                        for c in range(run):
                            columns[at + c] = x[source + c]
                    else:
                        columns[at : at + run] = 0
                    at += run
        rows(columns, w, k, n, kinds, first, first, last, 0, w.size // (k * LANES), shift, bound, flip, sums, bits)


# --- real inputs --------------------------------------------------------------------------------------------


@kernel
def tables(x, n, k, out, r0, r1):
    """For every four inputs of rows ``r0:r1``, their sixteen signed sums; inputs past ``n`` count as 0. ``out``:
    (rows, 8 k, 16).
    """
    four = np.zeros(4, np.float32)
    for r in range(r0, r1):
        for g in range(8 * k):
            for j in range(4):
                four[j] = x[r * n + 4 * g + j] if 4 * g + j < n else np.float32(0)
            a, b, c, d = four
            low, high = (-a - b, a - b, b - a, a + b), (-c - d, c - d, d - c, c + d)
            for i in range(4):
                for j in range(4):
                    out[((r * 8 * k + g) * 4 + i) * 4 + j] = low[j] + high[i]


@kernel
def real_by_tables(t, w, k, out, r0, r1, b0, b1):
    """Products of real rows with an even number of blocks, four weights a look-up; adds to ``out``. AVX-512 alone."""
    blocks, step = w.size // (k * LANES), 8 * k * LANES
    whole = r0 + (r1 - r0) // 4 * 4
    for begin in range(0, k, CHUNK):
        end = min(begin + CHUNK, k)
        for block in range(b0, b1, 2):
            p, q = block * k * LANES, (block + 1) * k * LANES
            for r in range(r0, whole, 4):
                at, row = (r * blocks + block) * LANES, blocks * LANES
                a0, a1, a2, a3 = load(out, at), load(out, at + row), load(out, at + 2 * row), load(out, at + 3 * row)
                at += LANES
                b0_, b1_, b2_, b3_ = (
                    load(out, at),
                    load(out, at + row),
                    load(out, at + 2 * row),
                    load(out, at + 3 * row),
                )
                for i in range(begin, end):
                    w0, w1 = load(w, p + i * LANES), load(w, q + i * LANES)
                    for j in range(8):
                        i0, i1, z = shift_right(w0, 4 * j), shift_right(w1, 4 * j), r * step + (8 * i + j) * LANES
                        t0, t1, t2, t3 = load(t, z), load(t, z + step), load(t, z + 2 * step), load(t, z + 3 * step)
                        a0, a1, a2, a3 = (
                            look_up(a0, t0, i0),
                            look_up(a1, t1, i0),
                            look_up(a2, t2, i0),
                            look_up(a3, t3, i0),
                        )
                        b0_, b1_, b2_, b3_ = (
                            look_up(b0_, t0, i1),
                            look_up(b1_, t1, i1),
                            look_up(b2_, t2, i1),
                            look_up(b3_, t3, i1),
                        )
                for j, low, high in ((0, a0, b0_), (1, a1, b1_), (2, a2, b2_), (3, a3, b3_)):
                    store(out, at - LANES + j * row, low)
                    store(out, at + j * row, high)
            for r in range(whole, r1):
                at = (r * blocks + block) * LANES
                a0, c0 = load(out, at), load(out, at + LANES)
                a1 = c1 = spread(np.float32(0))  # two chains of additions each, so that none waits for its last one
                for i in range(begin, end):
                    w0, w1 = load(w, p + i * LANES), load(w, q + i * LANES)
                    for j in range(0, 8, 2):
                        z = r * step + (8 * i + j) * LANES
                        t0, t1 = load(t, z), load(t, z + LANES)
                        a0, a1 = look_up(a0, t0, shift_right(w0, 4 * j)), look_up(a1, t1, shift_right(w0, 4 * j + 4))
                        c0, c1 = look_up(c0, t0, shift_right(w1, 4 * j)), look_up(c1, t1, shift_right(w1, 4 * j + 4))
                store(out, at, add(a0, a1))
                store(out, at + LANES, add(c0, c1))


@kernel
def real_by_votes(x, w, n, k, out, r0, r1, b0, b1):
    """The same by adding or subtracting every input, on any processor; writes ``out``."""
    blocks = w.size // (k * LANES)
    for r in range(r0, r1):
        for block in range(b0, b1, 2):
            p, q = block * k * LANES, (block + 1) * k * LANES
            a = b = spread(np.float32(0))
            for i in range(k):
                w0, w1 = load(w, p + i * LANES), load(w, q + i * LANES)
                for j in range(min(32, n - 32 * i)):
                    value = spread(x[r * n + 32 * i + j])
                    a, b = vote(a, value, w0, j), vote(b, value, w1, j)
            store(out, (r * blocks + block) * LANES, a)
            store(out, (r * blocks + block + 1) * LANES, b)
