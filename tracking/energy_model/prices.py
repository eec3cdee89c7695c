"""Arithmetic prices by number format, from the points of a hardware's table.

Widths between the points are read off the straight line between their neighbours in log-log scale, those outside off the
nearest such line: multipliers grow about with the square of the width, adders about linearly. Points grow with the width, so
prices do.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

from tracking.energy_model.hardware import Hardware
from tracking.energy_model.product import bits
from tracking.errors import UserError, unknown

OPERATIONS = ("add", "mul", "logic")


@lru_cache(maxsize=4096)
def mac_pj(a_format: str, b_format: str, acc_format: str, hardware: Hardware) -> float:
    """Energy of one multiply-accumulate, in the hardware's unit.

    =================  ======================================================================================
    factors            price
    =================  ======================================================================================
    float x float      multiply in the dearer format, add in the accumulator's
    float x int        the integer is converted to a float of its width, then as above
    int x int          multiply at the geometric mean of the widths (b1 b2 partial products), add at the accumulator's
    Boolean x float    conditional add in the dearer of the factor's and the accumulator's format
    Boolean x int      conditional add at the factor's width: most adders of an adder tree are about that wide
    Boolean x Boolean  XNOR and a share of a popcount tree (``bool_pair``)
    =================  ======================================================================================

    One-bit integers are Booleans. A float factor makes the accumulator a float of its width. Raises :class:`UserError` for
    unknown formats, and for an accumulator of one bit.
    """
    widths = {format: bits(format) for format in (a_format, b_format, acc_format)}
    if widths[acc_format] == 1:
        raise UserError(f"Accumulator format {acc_format!r} is refused: sums need more than one bit. "
                        "Allowed: int2 to int64, or a float.")
    factors = sorted((f for f in (a_format, b_format) if widths[f] > 1), key=lambda f: (is_float(f), widths[f]))
    if not factors:
        energy = hardware.macs["bool_pair"].value
    elif len(factors) == 1 and not is_float(factors[0]):
        # never below the Boolean pair, whose share of a popcount tree is priced apart
        energy = max(_point("int", widths[factors[0]], "add", hardware), hardware.macs["bool_pair"].value)
    elif len(factors) == 1:
        energy = max(_arithmetic("add", f, hardware) for f in (factors[0], _as_float(acc_format)))
    elif is_float(factors[1]):
        energy = max(_arithmetic("mul", _as_float(f), hardware) for f in factors)
        energy += _arithmetic("add", _as_float(acc_format), hardware)
    else:
        energy = _point("int", math.sqrt(widths[a_format] * widths[b_format]), "mul", hardware)
        energy += _arithmetic("add", acc_format, hardware)
    return _scaled(energy, max(widths[a_format], widths[b_format]), hardware)


@lru_cache(maxsize=4096)
def op_pj(operation: Literal["add", "mul", "logic"], format: str, hardware: Hardware) -> float:
    """Energy of one elementwise operation, in the hardware's unit; ``logic`` is one gate a bit.

    Raises :class:`UserError` for other operations and formats.
    """
    width = bits(format)
    if operation not in OPERATIONS:
        raise unknown("operation", operation, OPERATIONS)
    if operation == "logic" or width == 1:
        return _scaled(width * hardware.macs["logic"].value, width, hardware)
    return _scaled(_arithmetic(operation, format, hardware), width, hardware)


def is_float(format: str) -> bool:
    """Whether a number format is a floating-point one."""
    return format.startswith(("fp", "bf"))


def _as_float(format: str) -> str:
    return format if is_float(format) else f"fp{bits(format)}"


def _scaled(energy: float, width: int, hardware: Hardware) -> float:
    """With the hardware's scale on all prices, and its cost of an instruction shared among the lanes of a vector."""
    extras = hardware.extras
    if "scale" in extras:
        energy *= extras["scale"].value
    if "instruction" in extras:
        energy += extras["instruction"].value * width / extras["vector_bits"].value
    return energy


def _arithmetic(operation: str, format: str, hardware: Hardware) -> float:
    if format == "bf16" and f"bf16_{operation}" in hardware.macs:
        return hardware.macs[f"bf16_{operation}"].value
    return _point("fp" if is_float(format) else "int", bits(format), operation, hardware)


def _point(family: str, width: float, operation: str, hardware: Hardware) -> float:
    """Price at a width, from the family's points in the table, piecewise linear in log-log scale."""
    points = sorted((bits(name.rpartition("_")[0]), constant.value) for name, constant in hardware.macs.items()
                    if name.startswith(family) and name.endswith(f"_{operation}"))
    right = next((i for i, (w, _) in enumerate(points[:-1]) if i > 0 and width <= w), len(points) - 1)
    (w0, e0), (w1, e1) = points[right - 1], points[right]
    return e0 * (e1 / e0) ** (math.log(width / w0) / math.log(w1 / w0))
