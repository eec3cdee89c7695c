"""Statistics of repeated runs: intervals over seeds, curves on a common axis, cost to a target, Pareto fronts, significance.

An absent figure is NaN here, never zero: one seed has a mean and no interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from tracking.errors import UserError
from tracking.metrics import metric as declared

if TYPE_CHECKING:
    import numpy as np
    import pandas
    from numpy.typing import ArrayLike

Curve = tuple["np.ndarray", "np.ndarray"]
"""Positions on the axis (rising) and values of the metric there."""


class Interval(NamedTuple):
    """Mean of ``n`` values and half the width of its confidence interval; NaN where ``n`` is too small for one."""

    mean: float
    half_width: float
    n: int


class Difference(NamedTuple):
    """``mean(a) - mean(b)`` with its confidence interval and two-sided p value; NaN where there is no test."""

    difference: float
    low: float
    high: float
    p: float
    dof: float


def interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Mean and half-width of the Student t interval, ``t((1 + level)/2, n - 1) · s / √n``, of independent values.

    Raises :class:`UserError` when there is no value, or one that is not finite, or ``level`` is not between 0 and 1.
    """
    import numpy as np

    x = _sample(values)
    if not x.size:
        raise UserError("interval: there is no value to average.")
    if x.size > 1 and np.ptp(x) <= 4 * np.finfo(float).eps * np.abs(x).max():  # rounding is no spread
        return Interval(float(x[0]), 0.0, x.size)
    half = t_factor(x.size, level) * np.std(x, ddof=1) / math.sqrt(x.size) if x.size > 1 else math.nan
    return Interval(float(x.mean()), float(half), x.size)


def t_factor(n: ArrayLike, level: float) -> np.ndarray:
    """Quantile of Student's t that a two-sided interval of ``n`` values needs; NaN for ``n < 2``."""
    import numpy as np
    from scipy import stats

    if not 0 < level < 1:
        raise UserError(f"level = {level!r} is refused. Allowed: number, 0 < x < 1 (0.95 for a 95 % interval).")
    n = np.asarray(n)
    return np.where(n > 1, stats.t.ppf((1 + level) / 2, np.maximum(n - 1, 1)), math.nan)


def curve(frame: pandas.DataFrame, metric: str, axis: str = "step") -> Curve:
    """One run's curve of ``metric`` against ``axis`` (``"step"`` or a cumulative metric); empty when either was never reported.

    ``frame`` has one row a report, absent values NaN (:func:`tracking.journal.frame`). A running total that a report leaves out
    is still what it was, so it is held. Of several values at one position the last counts.
    """
    import numpy as np

    x, y = _reports(frame, metric, axis)
    last = np.append(np.diff(x) > 0, True)[:x.size]
    return x[last], y[last]


def _reports(frame: pandas.DataFrame, metric: str, axis: str) -> Curve:
    """Every report of the metric, with the axis held; several at one position where the axis stands still."""
    import numpy as np

    declared(metric)
    check_axis(axis)
    if metric not in frame or axis not in frame:
        return np.empty(0), np.empty(0)
    x = frame[axis].ffill().to_numpy(float)
    y = frame[metric].to_numpy(float)
    there = np.isfinite(x) & np.isfinite(y)
    x, y = x[there], y[there]
    if (np.diff(x) < 0).any():
        raise UserError(f"{axis} falls from one report to the next, so {metric} cannot be drawn against it. "
                        "The journal was edited or mixed.")
    return x, y


def check_axis(axis: str) -> None:
    """Raise :class:`UserError` unless ``axis`` is ``"step"`` or a metric that accumulates."""
    if axis != "step" and not declared(axis).cumulative:
        raise UserError(f"{axis} does not accumulate, so it cannot be an x-axis. Allowed: 'step' and cumulative metrics such as "
                        "train/epoch, clock/wall_s, comm/up_bytes.")


def hold(curve: Curve, grid: np.ndarray) -> np.ndarray:
    """Values of a curve at ``grid``: the last one reported at or before it. NaN before the first report and beyond the last.

    Nothing is interpolated: between two evaluations the quality is not known, only what was last measured.
    """
    import numpy as np

    x, y = curve
    if not len(x):
        return np.full(len(grid), math.nan)
    at = np.searchsorted(x, grid, side="right") - 1
    return np.where((at >= 0) & (grid <= x[-1]), np.asarray(y, float)[np.maximum(at, 0)], math.nan)


def on_grid(curves: Sequence[Curve], x: ArrayLike | None = None, level: float = 0.95) -> pandas.DataFrame:
    """Mean and t interval over seeds at common positions: columns ``x, mean, half_width, n``.

    Each curve is held (:func:`hold`) on the grid ``x``, by default all positions of all curves. ``n`` counts the curves that reach to
    a position and have begun there: beyond a seed's end the seed is not in the mean, so watch ``n`` where runs end at different places.
    """
    import numpy as np
    import pandas

    if x is None:
        x = np.unique(np.concatenate([np.asarray(c[0], float) for c in curves])) if len(curves) else np.empty(0)
    grid = np.asarray(x, float)
    held = np.stack([hold(c, grid) for c in curves]) if len(curves) else np.empty((0, grid.size))
    there = np.isfinite(held)
    n = there.sum(0)
    some, several = np.maximum(n, 1), np.maximum(n - 1, 1)
    mean = np.where(n > 0, np.where(there, held, 0).sum(0) / some, math.nan)
    squares = (np.where(there, held - mean, 0) ** 2).sum(0)
    half = t_factor(n, level) * np.sqrt(squares / several / some)
    return pandas.DataFrame({"x": grid, "mean": mean, "half_width": half, "n": n})


def to_target(frame: pandas.DataFrame, metric: str, target: float, axis: str) -> float | None:
    """First value of ``axis`` at which ``metric`` is reported at ``target`` or better; ``None`` when it never is."""
    import numpy as np

    x, y = _reports(frame, metric, axis)  # not the curve: while the axis stands still, the target may be there and gone again
    reached = np.flatnonzero(y >= target if direction(metric) == "higher" else y <= target)
    return float(x[reached[0]]) if reached.size else None


def direction(metric: str) -> str:
    """``"higher"`` or ``"lower"``, whichever is better; :class:`UserError` for a metric that has no better direction."""
    better = declared(metric).better
    if better is None:
        raise UserError(f"{metric} has no better direction, so it cannot be ranked.")
    return better


def pareto(points: ArrayLike, directions: Sequence[str]) -> np.ndarray:
    """Which of the points are not dominated: boolean ``(n,)``.

    ``points`` is ``(n, d)``; ``directions`` gives for each column ``"higher"``, ``"lower"``, or the name of a metric that knows its own.
    A point is dominated when another is at least as good in all columns and better in one. Equal points stand or
    fall together. A point with an absent (NaN) coordinate is neither on the front nor dominates.
    """
    import numpy as np

    signs = [{"lower": 1.0, "higher": -1.0}[d if d in ("lower", "higher") else direction(d)] for d in directions]
    cost = np.asarray(points, float)
    if cost.ndim != 2 or cost.shape[1] != len(signs):
        raise UserError(f"pareto: points of shape {cost.shape} do not go with {len(signs)} directions.")
    cost = cost * signs
    known = ~np.isnan(cost).any(1)
    no_worse = (cost[:, None, :] <= cost[None, :, :]).all(2)  # [j, i]: j is no worse than i; False where NaN
    better = (cost[:, None, :] < cost[None, :, :]).any(2)
    return known & ~(no_worse & better & known[:, None]).any(0)


def welch(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Difference:
    """Welch's t-test of two independent samples: no assumption that the spreads are equal (B. L. Welch, Biometrika 34, 1947).

    The test, and with it the interval and p, is absent where a sample has fewer than two values or neither has any spread.
    """
    import numpy as np
    from scipy import stats

    a, b = _sample(a), _sample(b)
    if not (a.size and b.size):
        raise UserError("welch: each sample needs at least one value.")
    t_factor(2, level)  # refuses a wrong level
    difference = float(a.mean() - b.mean())
    if a.size < 2 or b.size < 2:
        return Difference(difference, math.nan, math.nan, math.nan, math.nan)
    va, vb = np.var(a, ddof=1) / a.size, np.var(b, ddof=1) / b.size
    error = math.sqrt(va + vb)
    if error <= 1e-12 * (np.abs(a).max() + np.abs(b).max()):  # rounding of equal values is no spread
        return Difference(difference, math.nan, math.nan, math.nan, math.nan)
    sa, sb = va / (va + vb), vb / (va + vb)  # shares first: squares of small variances underflow
    dof = float(1 / (sa**2 / (a.size - 1) + sb**2 / (b.size - 1)))
    half = float(stats.t.ppf((1 + level) / 2, dof)) * error
    p = float(2 * stats.t.sf(abs(difference) / error, dof))
    return Difference(difference, difference - half, difference + half, p, dof)


def holm(p: ArrayLike) -> np.ndarray:
    """Adjust p values for being several at once (S. Holm, Scand. J. Statist. 6, 1979); absent (NaN) ones stay so and do not count."""
    import numpy as np

    p = np.asarray(p, float)
    adjusted = np.full(p.shape, math.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(order.size, 0, -1)), 1.0)
    return adjusted


def _sample(values: ArrayLike) -> np.ndarray:
    import numpy as np

    x = np.asarray(values, float).ravel()
    if not np.isfinite(x).all():
        raise UserError("A sample holds nan or infinite values. Leave absent values out before averaging.")
    return x
