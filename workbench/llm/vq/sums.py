"""Sums by code that are the same in every run.

On a GPU additions to one place race. Of floating-point numbers the last bits would depend on who comes first, and a codebook, an
objective and at last the codes with them; whole numbers add up to the same in any order.
"""

from __future__ import annotations

import torch
from torch import Tensor

BITS = 62
"""Bits of a sum of whole numbers, one less than int64 has beside its sign."""


def sums_by_code(values: Tensor, codes: Tensor, size: int) -> Tensor:
    """Sums (size, d), float64, of the rows of ``values`` (n, d) that have each of the ``codes`` (n,)."""
    if values.device.type == "cpu":  # one after another
        return values.new_zeros(size, values.shape[1], dtype=torch.float64).index_add_(0, codes, values.double())
    return sums_in_any_order(values, codes, size)


def sums_in_any_order(values: Tensor, codes: Tensor, size: int) -> Tensor:
    """The same by whole numbers. With n values they have ``62 - log2 n`` bits, more than float32 has for the largest of them."""
    whole, unit = as_whole(values)
    return torch.zeros(size, values.shape[1], dtype=torch.int64, device=values.device).index_add_(0, codes, whole) * unit


def as_whole(values: Tensor) -> tuple[Tensor, Tensor]:
    """``values`` (n, …), finite, as int64 multiples of a unit (float64, a scalar); sums over n of them do not overflow."""
    largest = values.detach().abs().amax().double().clamp(min=torch.finfo(torch.float32).tiny)
    unit = largest / 2.0 ** (BITS - len(values).bit_length())
    return (values.double() / unit).round().long(), unit
