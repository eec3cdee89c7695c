"""Numba kernels of the vector quantiser: nearest codewords, their bits, what they stand for, and what they are to learn.

Scores ``v e - |e|^2 / 2`` of a tile of vectors and codewords stay in registers until the greatest is known, so no matrix of
distances is ever written, and a codeword that is loaded serves all vectors of the tile. Sums are float32. Every vector is searched
by itself, and every group's sums are made in one order, so that no figure depends on the number of threads.

Arrays are flat; ``shape`` is (positions, groups, d): the vector at (sample, position, group) has its d coordinates ``positions``
apart. Import this module inside the function that runs a kernel: Numba may be absent.
"""

from __future__ import annotations

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from workbench.boolean.packed.host import share
from workbench.boolean.packed.simd import FVEC, I32, IVEC, LANES, PERMUTES, kernel

CHUNK = 64
"""Vectors searched at a time: with any width of code they fill whole bytes."""
WORDS = 6
# with 32 registers of sixteen floats (AVX-512), 4 times 6 sums, 4 inputs and a codeword fit; with fewer or narrower ones, 1 times 6
ROWS = 4 if PERMUTES else 1
EXPONENT, CARRY = np.uint32(0x7F800000), np.uint32(1 << 23)  # an exponent of ones, and of no finite float32, carries into the sign


@intrinsic
def _scan(typing, vectors, books, start, tiles, d, found):
    """``found[i]``: number of the codeword, among ``tiles`` tiles at ``books[start]``, of greatest score for the ``i``-th of 16 ROWS
    vectors, a row of :data:`CHUNK` for each coordinate; the lowest of equal ones.

    A tile has a row of WORDS constants ``-|e|^2 / 2``, then a row of WORDS values for each coordinate.
    """
    signature = types.none(vectors, books, types.intp, types.intp, types.intp, found)
    return signature, _lower_scan


def _lower_scan(context, b, sig, args):
    _, _, start, tiles, d, _ = args
    vectors, books, found = (context.make_array(sig.args[i])(context, b, args[i]).data for i in (0, 1, 5))
    size, none = start.type, ir.Undefined

    def splat(value, vector):
        empty = ir.Constant(vector, none)
        return b.shuffle_vector(b.insert_element(empty, value, I32(0)), empty, ir.Constant(ir.VectorType(I32, LANES), [0] * LANES))

    def place(data, index, vector):
        return b.bitcast(b.gep(data, [index]), vector.as_pointer())

    grid = [(p, c) for c in range(WORDS) for p in range(ROWS)]
    sums = {at: cgutils.alloca_once(b, FVEC) for at in grid}
    best = [cgutils.alloca_once_value(b, ir.Constant(FVEC, [float("-inf")] * LANES)) for _ in range(ROWS)]
    which = [cgutils.alloca_once_value(b, ir.Constant(IVEC, [0] * LANES)) for _ in range(ROWS)]
    with cgutils.for_range(b, tiles) as tile:
        first = b.add(start, b.mul(tile.index, b.mul(size(WORDS), b.add(d, size(1)))))
        for c in range(WORDS):
            constant = splat(b.load(b.gep(books, [b.add(first, size(c))])), FVEC)
            for p in range(ROWS):
                b.store(constant, sums[p, c])
        with cgutils.for_range(b, d) as coordinate:
            row = b.mul(coordinate.index, size(CHUNK))
            values = []
            for p in range(ROWS):
                values.append(b.load(place(vectors, b.add(row, size(p * LANES)), FVEC)))
                values[-1].align = 4
            word = b.add(first, b.mul(size(WORDS), b.add(coordinate.index, size(1))))
            for c in range(WORDS):
                e = splat(b.load(b.gep(books, [b.add(word, size(c))])), FVEC)
                for p in range(ROWS):
                    # one rounding where the processor has a fused multiply-add, two where not
                    product = b.fmul(values[p], e, flags=("contract",))
                    b.store(b.fadd(b.load(sums[p, c]), product, flags=("contract",)), sums[p, c])
        number = b.trunc(b.mul(tile.index, size(WORDS)), I32)
        for p, c in grid:
            score, leader = b.load(sums[p, c]), b.load(best[p])
            better = b.fcmp_ordered(">", score, leader)
            b.store(b.select(better, score, leader), best[p])
            b.store(b.select(better, splat(b.add(number, I32(c)), IVEC), b.load(which[p])), which[p])
    for p in range(ROWS):
        b.store(b.load(which[p]), place(found, size(p * LANES), IVEC)).align = 4
    return context.get_dummy_value()


@kernel
def _collect(x, shape, group, first, count, block):
    """Vectors ``first`` and the ``count - 1`` behind it, of one group, as a row of CHUNK for each coordinate."""
    positions, groups, d = shape
    done = 0
    while done < count:
        sample, at = (first + done) // positions, (first + done) % positions
        run = min(count - done, positions - at)
        base = (sample * groups + group) * d * positions + at
        for j in range(d):
            for i in range(run):
                block[j * CHUNK + done + i] = x[base + j * positions + i]
        done += run


@kernel
def _search(x, shape, books, stride, count, width, codes, packed, c0, c1):
    """Codes and their bits of the chunks ``c0:c1`` of ``count`` vectors; whether all their values are finite."""
    _, groups, d = shape
    block, found = np.zeros(d * CHUNK, np.float32), np.empty(CHUNK, np.int32)
    patterns, own = block.view(np.uint32), np.empty(CHUNK * groups, np.int32)
    tiles, signs, total = stride // (WORDS * (d + 1)), np.uint32(0), count * groups
    for chunk in range(c0, c1):
        first = chunk * CHUNK
        many = min(CHUNK, count - first)
        for g in range(groups):
            _collect(x, shape, g, first, many, block)
            for i in range(d * CHUNK):
                signs = np.uint32(signs | np.uint32(np.uint32(patterns[i] & EXPONENT) + CARRY))
            for part in range(0, many, ROWS * LANES):
                _scan(block[part:], books, g * stride, tiles, d, found[part:])
            for i in range(many):
                own[i * groups + g] = found[i]
        begin, size = first * groups, many * groups
        for i in range(size):
            codes[begin + i] = own[i]
        if width >= 8:  # low bytes first, then what is left of all
            for i in range(size):
                packed[begin + i] = own[i] & 255
                own[i] >>= 8
            _bits(own, size, width - 8, packed, total + begin * (width - 8) // 8)
        else:
            _bits(own, size, width, packed, begin * width // 8)
    return signs < np.uint32(1 << 31)


@kernel
def _bits(codes, size, width, packed, at):
    """``size`` codes of up to 8 bits, least significant bit first, from byte ``at`` on."""
    word, filled = 0, 0
    for i in range(size if width else 0):
        word |= codes[i] << filled
        filled += width
        while filled >= 8:
            packed[at] = word & 255
            word, filled, at = word >> 8, filled - 8, at + 1
    if filled:
        packed[at] = word


@kernel
def _fill(own, many, tables, words, shape, out, unit, first):
    """``many`` positions from ``first`` on of the plane ``unit``, one a sample and group; ``tables``: (groups, d, words)."""
    positions, groups, d = shape
    for j in range(d):
        table, to = (unit % groups * d + j) * words, (unit * d + j) * positions + first
        for i in range(many):
            out[to + i] = tables[table + own[i]]


@kernel
def _look_up(codes, tables, words, shape, out, u0, u1):
    """Planes ``u0:u1`` of what ``codes`` stand for."""
    positions, groups, _ = shape
    own = np.empty(CHUNK, np.int64)
    for unit in range(u0, u1):
        sample, g = unit // groups, unit % groups
        for first in range(0, positions, CHUNK):
            many = min(CHUNK, positions - first)
            for i in range(many):
                own[i] = codes[(sample * positions + first + i) * groups + g]
            _fill(own, many, tables, words, shape, out, unit, first)


@kernel
def _decode(packed, width, total, tables, words, shape, out, u0, u1):
    """The same of ``total`` codes of ``width`` bits; the greatest code. One beyond the codebook is read as 0."""
    positions, groups, _ = shape
    own, worst = np.empty(CHUNK, np.int64), 0
    rest, base = (width - 8, total) if width >= 8 else (width, 0)
    for unit in range(u0, u1):
        sample, g = unit // groups, unit % groups
        for first in range(0, positions, CHUNK):
            many = min(CHUNK, positions - first)
            at = (sample * positions + first) * groups + g
            for i in range(many):
                number = at + i * groups
                code = np.int64(packed[number]) if width >= 8 else 0
                if rest:
                    bit = number * rest
                    place, shift = base + (bit >> 3), bit & 7
                    high = np.int64(packed[place]) >> shift
                    if shift + rest > 8:
                        high |= np.int64(packed[place + 1]) << (8 - shift)
                    code |= (high & ((1 << rest) - 1)) << (8 if width >= 8 else 0)
                worst = max(worst, code)
                own[i] = code if code < words else 0
            _fill(own, many, tables, words, shape, out, unit, first)
    return worst


@kernel
def _tally(x, shape, count, codes, book, words, numbers, sums, errors, g0, g1):
    """Of groups ``g0:g1``: how many vectors have each code, their sums; and the sums of squared errors and of squares."""
    _, groups, d = shape
    block, row = np.empty(d * CHUNK, np.float32), np.empty(d, np.float32)
    total, power = 0.0, 0.0
    off, squares = np.empty(d, np.float32), np.empty(d, np.float32)
    for g in range(g0, g1):
        total = power = 0.0  # not in errors, whose entries for neighbouring groups share a cache line that threads would fight over
        for first in range(0, count, CHUNK):
            many = min(CHUNK, count - first)
            _collect(x, shape, g, first, many, block)
            off[:] = 0
            squares[:] = 0
            for i in range(many):
                code = g * words + codes[(first + i) * groups + g]
                numbers[code] += 1
                for j in range(d):
                    row[j] = block[j * CHUNK + i]
                for j in range(d):  # every coordinate has sums of its own, so that the compiler may take sixteen at once
                    gap = row[j] - book[code * d + j]
                    sums[code * d + j] += row[j]
                    off[j] += gap * gap
                    squares[j] += row[j] * row[j]
            for j in range(d):
                total += off[j]
                power += squares[j]
        errors[2 * g], errors[2 * g + 1] = total, power


# --- the same for tensors -----------------------------------------------------------------------------------


def _flat(t: Tensor) -> np.ndarray:
    return t.detach().contiguous().numpy().reshape(-1)


def empty(*shape: int, dtype: type = np.float32) -> Tensor:
    """An empty tensor in NumPy's memory: where the kernel gives large pages to those who ask, NumPy asks, and PyTorch does not."""
    return torch.from_numpy(np.empty(shape, dtype))


def tiled(books: Tensor) -> np.ndarray:
    """Codebooks (g, K, d) as :func:`_scan` reads them: (g, tiles, 1 + d, WORDS). No vector is nearest to what fills the last tile."""
    groups, size, d = books.shape
    tiles = -(-size // WORDS)
    rows = books.new_zeros(groups, tiles * WORDS, d + 1)
    rows[:, :, 0] = -torch.inf
    rows[:, :size, 0] = -books.square().sum(-1) / 2
    rows[:, :size, 1:] = books
    return _flat(rows.view(groups, tiles, WORDS, d + 1).transpose(2, 3))


def search(planes: Tensor, tiles: np.ndarray, width: int) -> tuple[Tensor, np.ndarray, bool]:
    """Codes (vectors, groups) of ``planes`` (samples, groups, d, positions), the same in ``width`` bits each, and whether all values
    are finite.

    Bits are those of :func:`tracking.codecs.bits.pack`.
    """
    samples, groups, d, positions = planes.shape
    count = samples * positions
    codes, packed = empty(count, groups, dtype=np.int64), np.empty(-(-count * groups * width // 8), np.uint8)
    x, numbers, stride, finite = _flat(planes), _flat(codes), tiles.size // groups, []
    share(lambda a, b: finite.append(_search(x, (positions, groups, d), tiles, stride, count, width, numbers, packed, a, b)),
          -(-count // CHUNK), 1, count * tiles.size // LANES)
    return codes, packed, all(finite)


def look_up(codes: Tensor, books: Tensor, out: Tensor) -> None:
    """Fill ``out`` (samples, groups, d, positions), contiguous, with the codewords of ``books`` (g, K, d) that ``codes`` stand for."""
    samples, groups, d, positions = out.shape
    numbers, tables, target = _flat(codes), _flat(books.transpose(1, 2)), _flat(out)
    share(lambda a, b: _look_up(numbers, tables, books.shape[1], (positions, groups, d), target, a, b),
          samples * groups, 1, out.numel() // 4)


def decode(packed: np.ndarray, width: int, count: int, books: Tensor, out: Tensor) -> int:
    """:func:`look_up` of the ``count`` codes in ``packed``, all of whose bytes there must be; the greatest code."""
    samples, groups, d, positions = out.shape
    tables, target, worst = _flat(books.transpose(1, 2)), _flat(out), []
    share(lambda a, b: worst.append(
        _decode(packed, width, count, tables, books.shape[1], (positions, groups, d), target, a, b)), samples * groups, 1, out.numel() // 4)
    return int(max(worst))


def tally(planes: Tensor, codes: Tensor, books: Tensor) -> tuple[Tensor, Tensor, float, float]:
    """Of ``planes`` (samples, groups, d, positions) with their ``codes``: counts (g, K), sums (g, K, d), squared error, power."""
    samples, groups, d, positions = planes.shape
    numbers, sums, errors = torch.zeros(books.shape[:2], dtype=torch.int64), torch.zeros(books.shape), np.zeros(2 * groups)
    x, own, book, n, s = _flat(planes), _flat(codes), _flat(books), _flat(numbers), _flat(sums)
    share(lambda a, b: _tally(x, (positions, groups, d), samples * positions, own, book, books.shape[1], n, s, errors, a, b),
          groups, 1, planes.numel() // 2)
    return numbers, sums, float(errors[::2].sum()), float(errors[1::2].sum())
