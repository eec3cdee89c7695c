"""The constraint of AskewSGD as pure functions: phi, the closed-form direction, the eps schedule and a KKT test.

Leconte, Schechtman & Moulines, AISTATS 2023, arXiv:2211.03741.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor

from workbench.methods.lowbit._levels import nearest_level


def constraint(w: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """``phi(w)``, zero exactly at the levels, and its derivative; element-wise.

    Between neighbouring levels ``c_j <= w < c_{j+1}``: ``(w - c_j)^2 (w - c_{j+1})^2``. Beyond the outer ones:
    ``(w - c_1)^2``, ``(w - c_M)^2``. ``levels`` is 1-D, sorted, of at least two values.
    """
    j = (torch.bucketize(w.contiguous(), levels, right=True) - 1).clamp(0, levels.numel() - 2)
    a, b = levels[j], levels[j + 1]
    u = (w - a) * (w - b)
    below, above = w < levels[0], w >= levels[-1]
    d = torch.where(below, w - levels[0], w - levels[-1])
    outside = below | above
    return torch.where(outside, d * d, u * u), torch.where(outside, 2 * d, 2 * u * (2 * w - a - b))


def askew_direction(w: Tensor, g: Tensor, levels: Tensor, eps: float, alpha: float, M: float = torch.inf) -> Tensor:
    """Velocity ``v`` of every coordinate: Alg. 1 of the paper, in closed form; then ``w <- w + lr v``.

    With ``psi = eps - phi(w)``, ``v`` is the velocity closest to ``-g`` among those with ``psi' v >= -alpha psi``, a
    condition put to infeasible coordinates (``psi <= 0``) only; a velocity that the constraint imposes is clipped to
    ``[-M, M]``. At an infeasible midpoint, where ``psi' = 0`` gives no direction, ``v = M`` (upwards, the paper's
    convention); without a clip ``v = -g`` there (the authors' code).

    Args:
        w, g: weights and gradient, any one shape.
        levels: sorted 1-D tensor ``c_1 < ... < c_M`` of at least two levels.
        eps: width of the feasible intervals, > 0; theory asks for at most :func:`eps_bound`.
        alpha: rate at which ``psi`` must grow where it is negative, > 0.
        M: largest imposed speed.
    """
    phi, dphi = constraint(w, levels)
    psi = eps - phi
    free = (psi > 0) | (dphi * g >= -alpha * psi)
    imposed = (alpha * psi / torch.where(dphi == 0, 1.0, dphi)).clamp(-M, M)
    v = torch.where(free, -g, imposed)
    stuck = (psi < 0) & (dphi == 0)
    return torch.where(stuck, M, v) if math.isfinite(M) else torch.where(stuck, -g, v)


def eps_bound(levels: Iterable[float]) -> float:
    """``min gap^4 / 16``, phi at the narrowest midpoint: neighbouring intervals merge above it (condition of the theorem)."""
    return min(b - a for a, b in pairwise(levels)) ** 4 / 16


def epsilon_at(epoch: int, start: float, warmup: int, decay: float, floor: float = 1e-6) -> float:
    """``start`` for ``warmup`` epochs (from 0 on), then ``start * decay**max(1, epoch - warmup)``, at least ``floor``.

    The paper's figures (warmup 50, decay 0.88): 0.88 at epoch 50, 0.15 at 65, 0.006 at 90. The floor is in the
    authors' code.
    """
    return start if epoch < warmup else max(start * decay ** max(1, epoch - warmup), min(floor, start))


def feasible_interval(w: Tensor, levels: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Lower and upper end of the feasible interval round the level nearest to each weight, within ``[c_1, c_M]``."""
    c = nearest_level(w, levels)
    gap = levels.diff()
    # a (gap - a) = sqrt(eps) at distance a from a level
    reach = gap / 2 - (gap.square() / 4 - eps**0.5).clamp_min(0).sqrt()
    none = reach.new_zeros(1)
    j = torch.searchsorted(levels, c)
    return c - torch.cat([none, reach])[j], c + torch.cat([reach, none])[j]


def kkt_residual(w: Tensor, grad: Tensor, levels: Tensor, eps: float) -> Tensor:
    """How far each coordinate is from a KKT point of ``min l(w)`` over the feasible set: zero exactly there.

    ``|w - P(w - grad)|`` with P the projection on the interval of the nearest level: it vanishes iff ``w`` is feasible
    and the gradient is zero or, at an end of the interval, descent leads out of it (paper, theorem: the limits of the
    iterates at a fixed eps).
    """
    low, high = feasible_interval(w, levels, eps)
    return (w - torch.clamp(w - grad, low, high)).abs()
