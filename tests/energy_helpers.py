"""Plain hardware for the energy model's tests, and its search written a second time: every tile, every loop order, no algebra. And
power traces for the meter's."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from functools import cache

from tracking.energy import Trace
from tracking.energy_model.hardware import Constant, Hardware, Level, hardware
from tracking.energy_model.product import Product, bits
from tracking.energy_model.search import tile_sizes

KB = 8192  # bits


def constant(value: float) -> Constant:
    """A constant of a test, known exactly."""
    return Constant(value, "pJ/bit", value, value, "", "test", "our choice")


def plain(*levels: tuple, array: tuple[int, int, int] = (1, 1, 1)) -> Hardware:
    """Hardware with these levels: (name, capacity in bits, access energy[, operand]); prices of 45 nm."""
    made = tuple(Level(name, capacity, constant(energy), constant(energy), *operand) for name, capacity, energy, *operand in levels)
    return Hardware("plain", "Plain", "", made, array, hardware("v100_like").macs)


def cube() -> Hardware:
    """The hardware on which the ZigZag figures were taken: a 16 x 16 x 16 array and BOLD's access energies, without L2."""
    return plain(("DRAM", None, 6.25), ("L1", 1024 * KB, 0.3125), ("L0A", 64 * KB, 0.0255, "a"), ("L0B", 64 * KB, 0.0357, "b"),
                 ("L0C", 256 * KB, 0.0231, "o"), array=(16, 16, 16))


def divisors(size: int, unit: int) -> list[int]:
    """All multiples of the array that divide a dimension, and the sizes of the model's own grid."""
    return sorted({t for t in range(unit, size + 1, unit) if size % t == 0} | set(tile_sizes(size, unit)))


def exhaustive_j(product: Product, hw: Hardware, sizes: Callable[[int, int], Iterable[int]] = tile_sizes) -> float:
    """Least memory energy in joules, by trying everything; slow."""
    return _least(_Nest(product, hw), sizes)


def greedy_j(product: Product, hw: Hardware) -> float:
    """Memory energy when every boundary, from the outermost inwards, takes its own cheapest tile without a look further in."""
    nest = _Nest(product, hw)
    tile, count, total = nest.full, 1.0, 0.0
    for i in range(len(nest.stages) - 1):
        energy, inner = min((nest.boundary(i, tile, inner), inner) for inner in nest.inner_tiles(i, tile, tile_sizes))
        total += count * energy
        count *= math.prod(T / t for T, t in zip(tile, inner, strict=True))
        tile = inner
    return (total + count * nest.array(tile)) * product.count * 1e-12


def _least(nest: _Nest, sizes: Callable[[int, int], Iterable[int]]) -> float:
    @cache
    def cost(i: int, tile: tuple[int, int, int]) -> float:
        if i == len(nest.stages) - 1:
            return nest.array(tile)
        found = math.inf
        for inner in nest.inner_tiles(i, tile, sizes):
            further = math.prod(T / t for T, t in zip(tile, inner, strict=True)) * cost(i + 1, inner)
            found = min(found, further + nest.boundary(i, tile, inner))
        return found

    return cost(0, nest.full) * nest.product.count * 1e-12


class _Nest:
    """Energies of one tile, in pJ, straight from the definitions."""

    def __init__(self, product: Product, hw: Hardware) -> None:
        self.product, self.hw, self.stages = product, hw, hw.stages
        self.full = (product.m, product.n, product.k)
        self.prices = [(out["a"].read.value + into["a"].write.value, out["b"].read.value + into["b"].write.value,
                        out["o"].read.value + into["o"].write.value, into["o"].read.value + out["o"].write.value)
                       for out, into in itertools.pairwise(self.stages)]
        self.p = {"a": bits(product.a), "b": bits(product.b), "acc": bits(product.acc), "out": bits(product.out)}

    def share(self, operand: str, positions: int) -> float:
        """Distinct over all entries of a patch of ``side`` x ``side`` windows."""
        w = self.product.window
        if w is None or w.operand != operand:
            return 1.0
        side = math.sqrt(positions)
        inputs = (w.kernel + w.stride * (side - 1)) ** 2
        return min(1.0, inputs / (positions * w.kernel**2))

    def inner_tiles(self, i: int, tile: tuple[int, int, int], sizes: Callable[[int, int], Iterable[int]]):
        grids = [[t for t in sizes(full, unit) if t <= T] for full, unit, T in zip(self.full, self.hw.array, tile, strict=True)]
        return [inner for inner in itertools.product(*grids) if self.fits(i + 1, inner)]

    def fits(self, i: int, tile: tuple[int, int, int]) -> bool:
        m, n, k = tile
        need = {"a": m * k * self.p["a"] * self.share("a", m), "b": k * n * self.p["b"] * self.share("b", k), "o": m * n * self.p["acc"]}
        return all(level.capacity_bits is None or sum(need[x] for x in level.operands) <= level.capacity_bits
                   for level in self.stages[i].values())

    def boundary(self, i: int, tile: tuple[int, int, int], inner: tuple[int, int, int]) -> float:
        """Least energy over the six loop orders."""
        (m, n, k), (turns_m, turns_n, turns_k) = tile, (math.ceil(T / t) for T, t in zip(tile, inner, strict=True))
        a_in, b_in, o_in, o_out = self.prices[i]
        a = m * k * self.p["a"] * self.share("a", inner[0]) * a_in
        b = k * n * self.p["b"] * self.share("b", inner[2]) * b_in
        final = m * n * self.p["out" if i == 0 else "acc"] * o_out
        again = m * n * self.p["acc"] * (o_in + o_out)
        return final + min(a * (turns_n if fresh_a else 1) + b * (turns_m if fresh_b else 1) + again * ((turns_k if fresh_o else 1) - 1)
                           for fresh_a, fresh_b, fresh_o in _fresh(turns_m > 1, turns_n > 1, turns_k > 1))

    def array(self, tile: tuple[int, int, int]) -> float:
        """This tile's part of what the array reads and writes in all: it takes the dimensions in steps of its own size."""
        turns_m, turns_n, turns_k = (len(range(0, size, r)) / size for size, r in zip(self.full, self.hw.array, strict=True))
        stage = self.stages[-1]
        return math.prod(tile) * (turns_n * self.p["a"] * stage["a"].read.value + turns_m * self.p["b"] * stage["b"].read.value
                                  + turns_k * self.p["acc"] * (stage["o"].read.value + stage["o"].write.value))


@cache
def _fresh(m: bool, n: bool, k: bool) -> list[tuple[bool, bool, bool]]:
    """For each loop order, whether A, B and O are fetched again in every turn of the loop that they do not depend on.

    Not if that loop lies inside all those of the operand's own loops that make more than one turn (given: which loops do).
    """
    several = {"m": m, "n": n, "k": k}
    orders = [{d: order.index(d) for d in "mnk"} for order in itertools.permutations("mnk")]  # the innermost loop has place 2
    return [tuple(any(place[d] > place[loop] for d in own if several[d]) for loop, own in (("n", "mk"), ("m", "kn"), ("k", "mn")))
            for place in orders]


def steady(watts: float = 100.0, seconds: float = 10_000.0, **facts) -> Trace:
    """A device that draws the same power all the time."""
    return Trace([(0.0, watts), (seconds, watts)], **facts)


def nvml_like(watts: float = 100.0, **facts) -> Trace:
    """The same behind a counter that moves ten times a second."""
    return steady(watts, period_s=0.1, **facts)
