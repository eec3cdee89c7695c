"""Numba kernels of vector quantisation: nearest codewords, the sums of Lloyd's step, k-means++ and the column walk.

Sixteen vectors at a time lie in registers while all codewords pass by once: main memory is crossed once a step, and no
matrix of distances exists.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from workbench.boolean.packed.lowering import FVEC, I32, IVEC, LANES, address, call, splat
from workbench.boolean.packed.simd import FLOATS, kernel, load, reaches, spread, store
from workbench.llm.vq._plain import WINDOW

BLOCK = 4 * LANES
"""Vectors that :func:`nearest` handles at once; the arrays are padded to a multiple of it."""
TIE = 1e-12
"""Relative difference of squared distances below which the column with the lower number is taken."""
MINUS_INFINITY = ir.Constant(FVEC, [ir.Constant(ir.FloatType(), float("-inf"))] * LANES)


def _fma(b, x, y, z):
    return call(b, "llvm.fma.v16f32", FVEC, x, y, z)


@intrinsic
def fma(typing, x, y, z):
    """``x y + z``, lane by lane, rounded once."""
    return FLOATS(FLOATS, FLOATS, FLOATS), lambda context, b, sig, args: _fma(b, *args)


@intrinsic
def larger(typing, x, y):
    """The larger one, lane by lane."""

    def lower(context, b, sig, args):
        return b.select(b.fcmp_ordered(">", *args), *args)

    return FLOATS(FLOATS, FLOATS), lower


@intrinsic
def nearest(typing, rows, start, table, index):
    """For ``BLOCK`` vectors from ``start``: ``index = argmax_k (x . t_k + t_k0)``, the first one of equals.

    ``rows`` is a tuple of the D coordinates' flat arrays: D is known when the kernel is compiled. ``table`` is (K, D + 1),
    the constant last. NaN is never chosen.
    """
    count = rows.count
    together = 4 if count <= 4 else 2 if count <= 8 else 1  # registers: together (D + 2) + D + 2 of 32

    def lower(context, b, sig, args):
        rows, start, table, index = args
        parts = cgutils.unpack_tuple(b, rows, count)
        shape = cgutils.unpack_tuple(b, context.make_array(sig.args[2])(context, b, table).shape, 2)
        data = context.make_array(sig.args[2])(context, b, table).data
        for first in range(0, BLOCK // LANES, together):
            places = [b.add(start, ir.Constant(start.type, (first + u) * LANES)) for u in range(together)]
            points = [[_aligned(b, address(context, b, sig.args[0].dtype, part, place, FVEC)) for part in parts] for place in places]
            best = [cgutils.alloca_once_value(b, MINUS_INFINITY) for _ in places]
            found = [cgutils.alloca_once_value(b, ir.Constant(IVEC, [0] * LANES)) for _ in places]
            for u in range(together):  # an alloca is initialised where the function begins, and this runs in a loop
                b.store(MINUS_INFINITY, best[u])
                b.store(ir.Constant(IVEC, [0] * LANES), found[u])
            with cgutils.for_range(b, shape[0]) as loop:
                base = b.mul(loop.index, ir.Constant(loop.index.type, count + 1))
                words = [splat(b, b.load(b.gep(data, [b.add(base, ir.Constant(base.type, j))])), FVEC) for j in range(count + 1)]
                number = splat(b, b.trunc(loop.index, I32), IVEC)
                for u in range(together):
                    score = words[count]
                    for j in range(count):
                        score = _fma(b, points[u][j], words[j], score)
                    old = b.load(best[u])
                    better = b.fcmp_ordered(">", score, old)
                    b.store(b.select(better, score, old), best[u])
                    b.store(b.select(better, number, b.load(found[u])), found[u])
            for place, result in zip(places, found, strict=True):
                b.store(b.load(result), address(context, b, sig.args[3], index, place, IVEC)).align = 4
        return context.get_dummy_value()

    return types.none(rows, types.intp, table, index), lower


def _aligned(b, place):
    value = b.load(place)
    value.align = 4
    return value


@kernel
def search(rows, table, index, begin, end):
    """Fill ``index[begin:end]`` with the numbers of the nearest codewords; both ends are multiples of ``BLOCK``."""
    for i in range(begin, end, BLOCK):
        nearest(rows, i, table, index)


@kernel
def lloyd(rows, points, weights, book, table, index, begin, end, count, sums, mass):
    """Nearest codewords of vectors ``begin:end``, and what their means need.

    Args:
        rows: the coordinates that the scores are made of, as a tuple of flat arrays.
        points: (d, n): x, or w x where there are weights.
        weights: (d, n), or empty: every weight is 1.
        book: (K, d) codewords.
        table: see :func:`nearest`.
        index: int32 (n,), written.
        count: vectors that are real; those behind are padding.
        sums, mass: float64 (K, d), added to: sum of w x and of w.

    Returns the sum of ``w (x - c)^2``, less the sum of ``w x^2`` where there are weights.
    """
    error, d, weighted = 0.0, points.shape[0], weights.shape[0] > 0
    for i in range(begin, end, BLOCK):
        nearest(rows, i, table, index)
        for n in range(i, min(i + BLOCK, count)):
            k, own = index[n], 0.0
            if not weighted:
                mass[k, 0] += 1.0
            for j in range(d):
                x, c = np.float64(points[j, n]), np.float64(book[k, j])
                sums[k, j] += x
                if weighted:
                    w = np.float64(weights[j, n])
                    mass[k, j] += w
                    own += (w * c - 2 * x) * c
                else:
                    own += (x - c) * (x - c)
            error += own
    return error


@kernel
def plus_plus(points, weights, draws, distance, chosen):
    """Seeds of k-means++: each next one is a vector drawn in proportion to its distance from the nearest so far.

    ``points`` (d, n) unweighted; ``weights`` (n,), or empty; ``draws`` (K,) uniform in [0, 1); ``distance`` (n,) is room.
    """
    d, n = points.shape
    weighted = weights.shape[0] > 0
    for i in range(n):
        distance[i] = np.inf
    at = min(int(draws[0] * n), n - 1)
    chosen[0] = at
    for k in range(1, draws.shape[0]):
        for i in range(n):
            far = np.float32(0)
            for j in range(d):
                far += (points[j, i] - points[j, at]) * (points[j, i] - points[j, at])
            if weighted:
                far *= weights[i]
            distance[i] = min(distance[i], far)
        total = 0.0
        for i in range(n):
            total += distance[i]
        goal, run, at = draws[k] * total, 0.0, n - 1
        for i in range(n):
            run += distance[i]
            if run > goal:
                at = i
                break
        chosen[k] = at


@kernel
def walk(tiles, halves, names, order, scores, tolerance):
    """Order the columns of one row block greedily; see :func:`workbench.llm.vq.ordering.order_columns`.

    Args:
        tiles: float32 (T, R, BLOCK): the columns, BLOCK at a time; changed.
        halves: float32 (T BLOCK,): half the squared norm of a column, infinite for padding; changed.
        names: int64 (T BLOCK,): the columns' numbers; changed.
        order: int64 (q,), written.
        scores: float32 (T BLOCK,): room.
        tolerance: bound of the rounding error of a score over ``max |x| |m| + max |x|^2 / 2``.
    """
    q, rows = order.shape[0], tiles.shape[1]
    ring = np.zeros((WINDOW, rows))
    mean, mean32, line = np.zeros(rows), np.zeros(rows, np.float32), np.empty(LANES, np.float32)
    flat, top = tiles.reshape(-1), np.float32(0)
    for j in range(q):
        top = max(top, halves[j])
    left, slot = q, 0
    for placed in range(q):
        order[placed] = names[slot]
        for r in range(rows):
            ring[placed % WINDOW, r] = tiles[slot // BLOCK, r, slot % BLOCK]
        left -= 1
        _move(tiles, halves, names, left, slot)
        if left == 0:
            break
        norm = _mean(ring, min(placed + 1, WINDOW), mean, mean32)
        count = (left + BLOCK - 1) // BLOCK
        best = _score(flat, halves, mean32, scores, count, line)
        slack = 2 * tolerance * (np.sqrt(2 * np.float64(top)) * norm + top)
        slot = _settle(tiles, names, scores, mean, left, np.float64(best) - slack)


@kernel
def _move(tiles, halves, names, source, target):
    """The last column takes the place of the one just placed."""
    for r in range(tiles.shape[1]):
        tiles[target // BLOCK, r, target % BLOCK] = tiles[source // BLOCK, r, source % BLOCK]
    halves[target], names[target] = halves[source], names[source]
    halves[source] = np.inf


@kernel
def _mean(ring, count, mean, mean32):
    square = 0.0
    for r in range(mean.shape[0]):
        total = 0.0
        for i in range(count):
            total += ring[i, r]
        mean[r] = total / count
        mean32[r] = mean[r]
        square += mean[r] * mean[r]
    return np.sqrt(square)


@kernel
def _score(flat, halves, mean, scores, count, line):
    """``x . m - |x|^2 / 2`` of the first ``count`` tiles, and its maximum."""
    rows = mean.shape[0]
    best = spread(np.float32(-np.inf))
    for t in range(count):
        place = t * rows * BLOCK
        a = b = c = d = spread(np.float32(0))
        for r in range(rows):
            m, at = spread(mean[r]), place + r * BLOCK
            a, b = fma(load(flat, at), m, a), fma(load(flat, at + LANES), m, b)
            c, d = fma(load(flat, at + 2 * LANES), m, c), fma(load(flat, at + 3 * LANES), m, d)
        at, minus = t * BLOCK, spread(np.float32(-1))
        a, b = fma(load(halves, at), minus, a), fma(load(halves, at + LANES), minus, b)
        c, d = fma(load(halves, at + 2 * LANES), minus, c), fma(load(halves, at + 3 * LANES), minus, d)
        store(scores, at, a)
        store(scores, at + LANES, b)
        store(scores, at + 2 * LANES, c)
        store(scores, at + 3 * LANES, d)
        best = larger(best, larger(larger(a, b), larger(c, d)))
    store(line, 0, best)
    top = line[0]
    for i in range(1, LANES):
        top = max(top, line[i])
    return top


@kernel
def _settle(tiles, names, scores, mean, left, bound):
    """Among the columns whose score may be the best: the nearest one in double precision, the lowest number of equals."""
    chosen, closest = -1, np.inf
    least = spread(np.float32(bound - 1e-6 * abs(bound)))
    for start in range(0, left, LANES):
        if reaches(load(scores, start), least) == 0:
            continue
        for j in range(start, min(start + LANES, left)):
            if scores[j] < bound:
                continue
            far = 0.0
            for r in range(mean.shape[0]):
                x = tiles[j // BLOCK, r, j % BLOCK] - mean[r]
                far += x * x
            equal = far <= closest * (1 + TIE)
            if far < closest * (1 - TIE) or chosen < 0 or (equal and names[j] < names[chosen]):
                chosen, closest = j, far
    return chosen
