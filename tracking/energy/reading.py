"""A measured figure with all that is needed to judge it, and the rules by which one is given or refused.

A counter that is renewed every ``period`` shows at each edge of a window a value up to ``period`` old. At steady power the error of a
window of length T is therefore at most ``2 period / T`` (we add the two edges, though they lean opposite ways), and has a standard
deviation of ``period / T / sqrt(6)`` for two edges that fall anywhere.
With the 0.1 s of NVML's counter: 0.2/T and 0.04/T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

PRINT_ERR = 0.04  # worst-case error up to which a figure is given at all
COMPARE_ERR = 0.01  # and up to which it is fit to tell two methods apart


@dataclass(frozen=True)
class Reading:
    """Energy of one window. ``None`` is unknown, never zero; ``note`` says in words why, or how far the figure carries.

    ``idle_w`` is the power at rest (before, after) the window; ``above_idle_j`` needs both, and a device nobody else was seen on.
    It stands beside ``joules``, never for it: who runs longer at low load pays for the idle power, too. ``n_updates`` is the number of
    counter updates seen in the window (``None`` where they come too fast, or the counter answers too slowly, to be counted);
    ``rel_err`` the worst-case relative error of resolution at steady power; ``shared`` whether other processes were on the device
    (``None``: cannot be told).
    ``attributed`` marks a share by time of a longer window's joules, which has no error of its own.
    """

    joules: float | None
    kind: str | None
    source: str
    scope: str
    t_s: float
    idle_w: tuple[float | None, float | None] = (None, None)
    above_idle_j: float | None = None
    n_updates: int | None = None
    rel_err: float | None = None
    shared: bool | None = None
    note: str = ""
    attributed: bool = False

    @property
    def interval(self) -> tuple[float, float] | None:
        """Joules, lowest and highest, that the counter's resolution allows at steady power."""
        if self.joules is None or self.rel_err is None:
            return None
        return self.joules * (1 - self.rel_err), self.joules * (1 + self.rel_err)

    @property
    def mean_w(self) -> float | None:
        """Mean power over the window."""
        return None if self.joules is None else self.joules / self.t_s


def shortest_window(period_s: float, rel_err: float = PRINT_ERR) -> float:
    """Seconds a window must last for a worst-case error of ``rel_err`` with a counter renewed every ``period_s`` seconds."""
    return 2 * period_s / rel_err


def too_short(t_s: float, period_s: float) -> str:
    """Why a window of ``t_s`` seconds gives no figure; empty when it does."""
    need = shortest_window(period_s)
    if t_s >= need:
        return ""
    return (f"A window of {t_s:.3g} s is too short for a counter that is renewed every {period_s:.3g} s: at least {need:.3g} s "
            f"({PRINT_ERR:.0%} at worst), {shortest_window(period_s, COMPARE_ERR):.3g} s to compare two methods. Repeat the work inside "
            "the window (repeat_for).")


@dataclass(frozen=True)
class Resolution:
    """How exact an accumulated total is. ``stretches`` are the pieces between two looks at the counter that add up to it."""

    period_s: float
    t_s: float
    stretches: int
    bridged_s: float

    @property
    def worst(self) -> float:
        """Relative error when every edge is as bad as can be, at steady power; the time between steps counts whole."""
        return (2 * self.stretches * self.period_s + self.bridged_s) / self.t_s if self.t_s > 0 else math.inf

    @property
    def typical(self) -> float:
        """Standard deviation of the relative error for edges that fall anywhere between two updates."""
        return math.sqrt(self.stretches / 6) * self.period_s / self.t_s if self.t_s > 0 else math.inf

    def __str__(self) -> str:
        verdict = ("dominated by the counter's resolution, not for use" if self.worst >= 1 and self.typical > PRINT_ERR
                   else "too coarse to print" if self.typical > PRINT_ERR
                   else "too coarse to compare methods" if self.typical > COMPARE_ERR else "fit for comparison")
        between = f"; {self.bridged_s / self.t_s:.1%} of the time lay between steps" if self.bridged_s else ""
        return (f"within {self.worst:.1%} at worst, {self.typical:.1%} typically: {verdict} "
                f"({self.stretches} stretch{'es' * (self.stretches != 1)}, {self.t_s:.3g} s{between})")
