"""Data movement of a product: the cheapest nest of tiles and loop orders over a memory hierarchy, all levels jointly.

Costs are worked out per multiply-accumulate of a tile. At a boundary the tile ``T`` of the outer memory is cut into tiles
``t``. An operand is fetched again in every turn of the loop that it does not depend on, unless that loop is innermost. So the
six loop orders differ only in which loop is innermost, and for each of the three the cost is a sum

    A(t_m; T_n, t_n) + B(t_k; T_m, t_m) + O(T_k, t_k) + C(t_m, t_n, t_k)

with C the cost further in. Its minimum over all tiles at once is three minima one after the other, over t_n, t_m and t_k:
exact, in a fraction of the time of going through all pairs of tiles.

Tile sizes are {R, 2R, 3R, 4R, 6R, 8R, ..., the whole dimension}, R the array's reuse in that dimension. Where tiles do not divide the
dimension, fetches are counted in whole turns and what happens inside of a tile in proportion.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from tracking.energy_model.hardware import Hardware, Level
from tracking.energy_model.prices import mac_pj
from tracking.energy_model.product import Cost, Product, Window, bits
from tracking.errors import UserError

Traffic = dict[tuple[str, str], tuple[float, float]]
INNERMOST = ("n", "m", "k")  # the loop whose turns re-use A, B, O


def halo(window: Window | None, positions: np.ndarray | float) -> np.ndarray:
    """Distinct over all elements of an unrolled operand, for a near-square tile of ``positions`` output positions.

    Neighbouring k x k windows at stride s overlap: ``(s sqrt(t) + k - s)^2`` inputs serve ``t k^2`` entries. At most 1.
    """
    t = np.asarray(positions, float)
    if window is None:
        return np.ones_like(t)
    k, s = window.kernel, window.stride
    return np.minimum(1.0, (s * np.sqrt(t) + k - s) ** 2 / (t * k * k))


def compulsory_bits(product: Product) -> dict[str, float]:
    """Bits of operands ``a``, ``b``, ``o`` when each element moves once: what no schedule can avoid."""
    p, (share_a, share_b) = product, _shares(product, product.m, product.k)
    return {"a": p.m * p.k * bits(p.a) * float(share_a) * p.count,
            "b": p.k * p.n * bits(p.b) * float(share_b) * p.count,
            "o": float(p.m * p.n * bits(p.out) * p.count)}


def _shares(product: Product, m: np.ndarray | float, k: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Halo factors of A and B: output positions run along m in A and along k in B."""
    window = {product.window.operand: product.window} if product.window else {}
    return halo(window.get("a"), m), halo(window.get("b"), k)


@lru_cache(maxsize=8192)
def product_cost(product: Product, hardware: Hardware, *, double_buffering: bool = False) -> Cost:
    """Energy of one product with its cheapest schedule on this hardware. The result is kept: do not change it.

    ``double_buffering`` leaves half of every capacity to a tile, the other half being filled meanwhile. Raises
    :class:`UserError` when a memory cannot hold even the tile of the array.
    """
    search = _Search(product, hardware, 0.5 if double_buffering else 1.0)
    traffic, tiles = search.schedule()
    return reprice(Cost(0.0, {}, tiles, traffic, product), hardware)


def reprice(cost: Cost, hardware: Hardware) -> Cost:
    """The same schedule under other constants (:meth:`Hardware.at`, :meth:`Hardware.sample`); no new search.

    The schedule stays what it was, so this is an upper bound of the cheapest one under these constants.
    """
    if cost.product is None:
        raise UserError("This cost has no product and traffic with it. Reprice a cost from product_cost.")
    p, unit = cost.product, hardware.joules
    memory = {}
    for outer, inner in zip(hardware.stages, (*hardware.stages[1:], None), strict=True):
        for operand, level in outer.items():
            inward, outward = cost.traffic_bits[level.name, operand]
            in_price, out_price = _prices(level, inner[operand] if inner else None)
            memory[level.name, operand] = (inward * in_price + outward * out_price) * unit
    return replace(cost, compute_j=p.macs * mac_pj(*p.multiplied, p.acc, hardware) * unit, memory_j=memory)


def _prices(outer: Level, inner: Level | None) -> tuple[float, float]:
    """Energy of a bit that goes inwards, and of one that goes outwards; inside of the innermost memory is the array."""
    if inner is None:
        return outer.read.value, outer.write.value
    return outer.read.value + inner.write.value, outer.write.value + inner.read.value


def tile_sizes(size: int, unit: int) -> list[int]:
    """Tile sizes of a dimension: ``unit`` times 1, 2, 3, 4, 6, 8, 12, ... as long as they stay below ``size``, and ``size``.

    The same for every ``size``, so that a larger product never finds a schedule that a smaller one lacks. Powers of two alone
    missed the best divisors by up to 9 % on small products.
    """
    doubled = [unit * 2**i for i in range(size.bit_length())]
    return [*sorted(t for t in {*doubled, *(3 * t for t in doubled)} if t < size), size]


@dataclass(frozen=True)
class _Boundary:
    """Cost per multiply-accumulate between two stages, a sum of these; infinite where t > T. Axes as in the names."""

    a_tm_Tn_tn: np.ndarray
    b_Tm_tm_tk: np.ndarray
    o_Tk_tk: np.ndarray


class _Search:
    def __init__(self, product: Product, hardware: Hardware, share: float) -> None:
        self.product, self.hardware, self.stages, self.share = product, hardware, hardware.stages, share
        if min(product.m, product.n, product.k, product.count) < 1:
            raise UserError(f"{product} is refused. Allowed for m, n, k and count: whole number, 1 <= x.")
        self.sizes = [np.array(tile_sizes(size, unit), float)
                      for size, unit in zip((product.m, product.n, product.k), hardware.array, strict=True)]
        self.m, self.n, self.k = np.meshgrid(*self.sizes, indexing="ij", sparse=True)
        self.share_a, self.share_b = _shares(product, self.sizes[0], self.sizes[2])
        self.bits_a, self.bits_b = bits(product.a), bits(product.b)
        self.bits_acc, self.bits_out = bits(product.acc), bits(product.out)

    def schedule(self) -> tuple[Traffic, tuple[tuple[str, tuple[int, int, int]], ...]]:
        """Traffic and tiles of the cheapest nest."""
        costs = [self._array_cost() + self._barrier(self.stages[-1])]  # innermost first
        for i in range(len(self.stages) - 2, 0, -1):
            costs.append(self._step(i, costs[-1]) + self._barrier(self.stages[i]))
        at = tuple(len(s) - 1 for s in self.sizes)
        traffic, tiles = {}, [(self._name(self.stages[0]), self._tile(at))]
        for i, cost in enumerate(reversed(costs)):
            still, inner = self._best(i, at, cost)
            traffic |= self._traffic(i, at, inner, still)
            at = inner
            tiles.append((self._name(self.stages[i + 1]), self._tile(at)))
        return traffic | self._array_traffic(), tuple(tiles)

    def _name(self, stage: dict[str, Level]) -> str:
        return "/".join(dict.fromkeys(level.name for level in stage.values()))

    def _tile(self, at: tuple[int, ...]) -> tuple[int, int, int]:
        return tuple(int(sizes[i]) for sizes, i in zip(self.sizes, at, strict=True))

    def _array_reads(self) -> tuple[float, float, float]:
        """Bits per multiply-accumulate that the array reads of A and B, and reads as well as writes of O.

        Tiles are multiples of the array, so over the whole product it makes ceil(N / R) turns whatever the tiles; in the last
        one fewer multipliers share an element.
        """
        p, (r_m, r_n, r_k) = self.product, self.hardware.array
        return self.bits_a * -(-p.n // r_n) / p.n, self.bits_b * -(-p.m // r_m) / p.m, self.bits_acc * -(-p.k // r_k) / p.k

    def _array_cost(self) -> float:
        a, b, o = self._array_reads()
        prices = {operand: _prices(level, None) for operand, level in self.stages[-1].items()}
        return a * prices["a"][0] + b * prices["b"][0] + o * sum(prices["o"])

    def _barrier(self, stage: dict[str, Level]) -> np.ndarray:
        """Zero where a tile fits the memories of a stage, infinite where it does not."""
        used = {"a": self.m * self.k * (self.bits_a * self.share_a[:, None, None]),
                "b": self.k * self.n * (self.bits_b * self.share_b),
                "o": self.m * self.n * self.bits_acc}
        full = np.zeros([len(s) for s in self.sizes], bool)
        for level in {level.name: level for level in stage.values()}.values():
            if level.capacity_bits is not None:
                full |= sum(used[operand] for operand in level.operands) > level.capacity_bits * self.share
                if full[0, 0, 0]:
                    raise UserError(f"{self.hardware.id}: {level.name} of {level.capacity_bits} bits cannot hold the smallest "
                                    f"tile {self._tile((0, 0, 0))} of {self.product}. Give it more capacity, the array fewer "
                                    "multipliers, or the operands fewer bits.")
        return np.where(full, np.inf, 0.0)

    def _boundary(self, i: int, still: str) -> _Boundary:
        """Between stages i and i + 1, with the loop ``still`` innermost."""
        outer, inner = self.stages[i], self.stages[i + 1]
        a, b = (_prices(outer[x], inner[x])[0] for x in "ab")
        o_in, o_out = _prices(outer["o"], inner["o"])
        turns = {d: _turns(sizes, d == still) for d, sizes in zip("mnk", self.sizes, strict=True)}
        T_m, T_n, T_k = (sizes[:, None] for sizes in self.sizes)
        last = self.bits_out if i == 0 else self.bits_acc
        return _Boundary((a * self.bits_a * self.share_a)[:, None, None] * (turns["n"] / T_n) + _nested(T_n),
                         (b * self.bits_b * self.share_b) * (turns["m"] / T_m)[..., None] + _nested(T_m)[..., None],
                         ((turns["k"] - 1) * self.bits_acc * (o_in + o_out) + last * o_out) / T_k + _nested(T_k))

    def _step(self, i: int, inner_cost: np.ndarray) -> np.ndarray:
        """Least cost per multiply-accumulate of every tile of stage i."""
        best = np.full(inner_cost.shape, np.inf)
        for still in INNERMOST:
            x = self._boundary(i, still)
            cost = (inner_cost[:, None] + x.a_tm_Tn_tn[..., None]).min(axis=2)  # tm Tn tk
            cost = (cost + x.b_Tm_tm_tk[:, :, None]).min(axis=1)  # Tm Tn tk
            np.minimum(best, (cost[:, :, None] + x.o_Tk_tk).min(axis=3), out=best)
        return best

    def _best(self, i: int, at: tuple[int, ...], inner_cost: np.ndarray) -> tuple[str, tuple[int, ...]]:
        """Innermost loop and inner tile of least cost for the tile ``at`` of stage i."""
        T_m, T_n, T_k = at
        found = []
        for still in INNERMOST:
            x = self._boundary(i, still)
            cost = inner_cost + x.a_tm_Tn_tn[:, T_n, :, None] + x.b_Tm_tm_tk[T_m][:, None] + x.o_Tk_tk[T_k]
            inner = np.unravel_index(cost.argmin(), cost.shape)
            found.append((float(cost[inner]), still, tuple(int(j) for j in inner)))
        return min(found)[1:]

    def _traffic(self, i: int, at: tuple[int, ...], inner: tuple[int, ...], still: str) -> Traffic:
        macs, stage = self.product.macs, self.stages[i]
        tiles = zip("mnk", self.sizes, at, inner, strict=True)
        turns = {d: float(_turns(sizes, d == still)[T, t]) for d, sizes, T, t in tiles}
        T_m, T_n, T_k = self._tile(at)
        last = self.bits_out if i == 0 else self.bits_acc
        back = macs / T_k * (turns["k"] - 1) * self.bits_acc
        return {(stage["a"].name, "a"): (macs / T_n * self.bits_a * float(self.share_a[inner[0]]) * turns["n"], 0.0),
                (stage["b"].name, "b"): (macs / T_m * self.bits_b * float(self.share_b[inner[2]]) * turns["m"], 0.0),
                (stage["o"].name, "o"): (back, back + macs / T_k * last)}

    def _array_traffic(self) -> Traffic:
        stage = self.stages[-1]
        a, b, o = (self.product.macs * x for x in self._array_reads())
        return {(stage["a"].name, "a"): (a, 0.0), (stage["b"].name, "b"): (b, 0.0), (stage["o"].name, "o"): (o, o)}


def _turns(sizes: np.ndarray, still: bool) -> np.ndarray:
    """Fetches, by (T, t), of the operand that does not depend on this dimension: one a turn, or one if innermost."""
    turns = np.ceil(sizes[:, None] / sizes)
    return np.ones_like(turns) if still else turns


def _nested(T: np.ndarray) -> np.ndarray:
    """Zero where t <= T, infinite elsewhere; ``T`` a column of sizes."""
    return np.where(T.T <= T, 0.0, np.inf)
