"""Constants that keep the spread of Boolean signals: the window's slope, and the factor on the upstream signal of a layer.

BOLD (Nguyen et al., NeurIPS 2024, arXiv:2405.16339), appendices C.2 and C.3. All in +-1 units: pre-activations lie in
``[-fan_in, fan_in]``. (Centred counts lie in half that range; the same slope would then leave 3/4 of the power, not 1/2.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

from tracking.errors import unknown

SPREAD = math.pi / math.sqrt(12)
"""Standard deviation of ``slope * s``: that of the distribution whose density is tanh'/2."""

WINDOWS: dict[str, Callable[[float], float]] = {
    "tanh": lambda d: 1 - math.tanh(d) ** 2,
    "rational": lambda d: (1 + abs(d)) ** -2,
    "exponential": lambda d: math.exp(-abs(d)),
    "approx_sign": lambda d: max(0.0, 2 - 2 * abs(d)),
    "none": lambda d: 1.0,
}
"""Weight of a signal by ``d``: the distance to the threshold times the slope."""


def window_slope(fan_in: int) -> float:
    """``alpha = pi / (2 sqrt(3 n))`` for a sum of ``n`` independent +-1 (C.3)."""
    return SPREAD / math.sqrt(fan_in)


@cache
def window_power(window: str) -> float:
    """Share of a signal's power that passes the window, ``E[window(d)^2]``, 1/2 within a percent for ``tanh'``.

    ``d`` is Gaussian with standard deviation :data:`SPREAD`, for ``approx_sign`` with 1 (the output of a batch norm).
    """
    if window not in WINDOWS:
        raise unknown("window", window, WINDOWS)
    spread = 1.0 if window == "approx_sign" else SPREAD
    # midpoint rule over 10 standard deviations: cells of 0.002 leave an error below 1e-6, the windows' kinks included
    count = 10_000
    cells = [(i + 0.5) * 20 / count - 10 for i in range(count)]
    density = [math.exp(-u * u / 2) for u in cells]
    return sum(p * WINDOWS[window](spread * u) ** 2 for p, u in zip(density, cells, strict=True)) / sum(density)


def linear_scale(fan_out: int, power: float = 0.5) -> float:
    """Factor ``sqrt(2 / fan_out)`` on the upstream signal of a linear layer (C.2); ``power`` is the window's."""
    return 1 / math.sqrt(power * fan_out)


def conv_scale(
    out_channels: int, kernel_size: tuple[int, int], stride: tuple[int, int] = (1, 1), *, groups: int = 1, pooled: bool = False,
    power: float = 0.5,
) -> float:
    """Factor ``sqrt(2 v / (c_out k_x k_y))`` on the upstream signal of a convolution (C.2).

    ``v`` is the product of both strides, since one output in ``v`` positions remains to vote (the paper's ``v``, at stride 1 the
    same). ``pooled``: a 2x2 max-pool follows, which hands each signal to one position of four: twice the factor.
    """
    votes = out_channels / groups * math.prod(kernel_size) / math.prod(stride)
    return (2 if pooled else 1) / math.sqrt(power * votes)
