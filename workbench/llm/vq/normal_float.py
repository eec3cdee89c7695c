"""Levels of the normal-float types: quantiles of a normal distribution, scaled to [-1, 1].

Dettmers et al., QLoRA, NeurIPS 2023, section 3; for other widths than 4 bits as in LQ-LoRA (Guo et al., ICLR 2024).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tracking.errors import UserError

EDGE = 0.9677083
"""Probability whose quantile is scaled to 1: the mean of 1 - 1/32 and 1 - 1/30, as bitsandbytes has it for 4 bits."""


def normal_float(bits: int) -> Tensor:
    """The ``2^bits`` levels of NF-``bits``, ascending, float32, with an exact 0 and the ends at -1 and 1; 1 to 8 bits.

    ``2^(bits-1)`` levels are negative or zero, equally spaced in probability on [1 - EDGE, 1/2]; the positive side has one
    more step. One bit gives {0, 1}, two {-1, 0, 0.34, 1}: the type is lopsided where levels are few.
    """
    if not 1 <= bits <= 8:
        raise UserError(f"Normal-float levels have 1 to 8 bits, not {bits}.")
    half = 2 ** (bits - 1)
    left = torch.linspace(1 - EDGE, 0.5, half, dtype=torch.float64)[:-1]
    right = torch.linspace(0.5, EDGE, half + 1, dtype=torch.float64)
    levels = torch.special.ndtri(torch.cat([left, right]))
    return (levels / levels[-1]).float().where(torch.cat([left, right]) != 0.5, torch.zeros(()))


def nearest_level(values: Tensor, levels: Tensor) -> Tensor:
    """Number of the nearest of ascending ``levels`` for each value, int64; the lower one where two are equally near."""
    return torch.bucketize(values.contiguous(), (levels[1:] + levels[:-1]) / 2)
