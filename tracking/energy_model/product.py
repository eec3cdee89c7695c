"""The unit of work of the energy model: one matrix product, with the number format of every operand.

Every heavy operation of a network is such a product: a linear layer, a convolution seen as a product over windows, either
of their backward products, attention, a nearest-code search.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from tracking.errors import UserError

_FORMAT = re.compile(r"(fp|bf|int)(\d+)|bool")


def bits(format: str) -> int:
    """Bits of a number format: ``fp32 fp16 bf16 fp8 int<b> bool``. Raises :class:`UserError` for any other word."""
    found = _FORMAT.fullmatch(format)
    if not found or (found[2] is not None and not 1 <= int(found[2]) <= 64):
        raise UserError(f"Number format {format!r} is refused. Allowed: fp64, fp32, fp16, bf16, fp8, int1 to int64, bool.")
    return int(found[2] or 1)


@dataclass(frozen=True)
class Window:
    """A convolution's sliding window: what a neighbouring output position shares with this one is read once.

    ``operand`` is the one that holds overlapping windows (im2col): ``a`` in the forward product and the one to the input,
    ``b`` in the one to the weights. ``stride`` is the step between neighbouring windows of *this* product: the product to the
    input has one input position after the other, so 1 whatever the layer's stride.
    """

    kernel: int
    stride: int = 1
    operand: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Product:
    """``O[m, n] = A[m, k] B[k, n]``, ``count`` times over (groups of a convolution, heads and samples of attention).

    ``a, b, out`` are the formats in which the operands are stored, ``acc`` the one of the partial sums. ``multiplied_as`` says in which
    formats the multiplier works, where that differs: hardware that cannot use a 1-bit operand multiplies it as ``fp32``.
    """

    m: int
    n: int
    k: int
    a: str
    b: str
    acc: str
    out: str
    window: Window | None = None
    count: int = 1
    multiplied_as: tuple[str, str] | None = None

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.m * self.n * self.k * self.count

    @property
    def multiplied(self) -> tuple[str, str]:
        """Formats of the two factors at the multiplier."""
        return self.multiplied_as or (self.a, self.b)


@dataclass(frozen=True)
class Cost:
    """Modelled joules of one product on one hardware; multiples of its reference MAC where its unit is relative.

    ``compute_j`` goes into multiply-accumulates; ``memory_j`` into data movement, by (level, operand ``a``, ``b`` or ``o``):
    what moves between a level and the next one inwards, both ends, is booked on the outer level; the innermost level books
    its own accesses. ``tiles`` are the chosen tile sizes (m, n, k) by stage, outermost first. ``traffic_bits`` are the bits
    behind ``memory_j``, by the same keys: (inwards, outwards), inwards being towards the multipliers.
    """

    compute_j: float
    memory_j: dict[tuple[str, str], float]
    tiles: tuple[tuple[str, tuple[int, int, int]], ...] = ()
    traffic_bits: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    product: Product | None = None

    @property
    def total_j(self) -> float:
        return self.compute_j + sum(self.memory_j.values())
