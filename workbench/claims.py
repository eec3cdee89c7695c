"""Claims: sentences of a paper turned into checks on measured figures, each with its verdict and how it was reached."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tracking.statistics import interval, welch

HOLDS, FAILS, OPEN, ABSENT = "holds", "does not hold", "undecided", "not measured"


@dataclass(frozen=True)
class Claim:
    """One claim and its verdict.

    ``paper`` is the paper's own figure as text, ``ours`` the measured one with its interval and sample size, ``how`` the rule by which
    the verdict was reached.
    """

    text: str
    paper: str
    ours: str
    verdict: str
    how: str

    def row(self) -> dict[str, Any]:
        return {"claim": self.text, "verdict": self.verdict, "ours": self.ours, "paper": self.paper, "how": self.how}


Sample = Sequence[float] | Mapping[int, float]
"""Independent figures, or such figures by seed."""


def figure(values: Sample, digits: int = 2, scale: float = 1.0) -> str:
    """``mean ± half-width of the 95 % interval (n = …)``; one value alone has no interval."""
    i = interval([v * scale for v in _list(values)])
    spread = f" ± {i.half_width:.{digits}f}" if i.n > 1 else ""
    return f"{i.mean:z.{digits}f}{spread} (n = {i.n})"


def _list(values: Sample) -> list[float]:
    return list(values.values() if isinstance(values, Mapping) else values)


def exceeds(text: str, paper: str, a: Sample, b: Sample, *, margin: float = 0.0,
            names: tuple[str, str] = ("a", "b"), scale: float = 1.0, digits: int = 2) -> Claim:
    """The claim that the mean of ``a`` is above that of ``b`` minus ``margin``.

    It holds when the whole 95 % Welch interval of the difference lies above ``-margin``, does not hold when the whole interval lies
    below, and is undecided in between.
    """
    a, b = _list(a), _list(b)
    if not a or not b:
        return Claim(text, paper, "", ABSENT, "no finished run of one of the two")
    ours = f"{names[0]} {figure(a, digits, scale)}; {names[1]} {figure(b, digits, scale)}"
    d = welch(a, b)
    rule = f"95 % interval of {names[0]} minus {names[1]} against {0.0 - margin * scale:g}"
    if math.isnan(d.low):  # no test: too few values, or no spread at all
        if min(len(a), len(b)) < 2:
            return Claim(text, paper, ours, OPEN, f"{rule}: needs two seeds or more")
        d = d._replace(low=d.difference, high=d.difference)
    verdict = HOLDS if d.low > -margin else FAILS if d.high < -margin else OPEN
    return Claim(text, paper, ours, verdict, f"{rule}: [{d.low * scale:z.{digits}f}, {d.high * scale:z.{digits}f}]")


def below(text: str, paper: str, a: Sample, b: Sample, *, margin: float = 0.0,
          names: tuple[str, str] = ("a", "b"), digits: int = 2) -> Claim:
    """The claim that the mean of ``a`` is below that of ``b`` plus ``margin``, for figures of which less is better; as :func:`exceeds`."""
    claim = exceeds(text, paper, _list(b), _list(a), margin=margin, names=names[::-1], digits=digits)
    if claim.verdict == ABSENT:
        return claim
    return replace(claim, ours=f"{names[0]} {figure(a, digits)}; {names[1]} {figure(b, digits)}")


def within(text: str, paper: str, values: Sample, low: float, high: float, *, scale: float = 1.0, digits: int = 2) -> Claim:
    """The claim that a mean lies in ``[low, high]``: its 95 % interval inside, outside, or across a bound (undecided)."""
    values = _list(values)
    if not values:
        return Claim(text, paper, "", ABSENT, "no finished run")
    rule = f"95 % interval of the mean against [{low * scale:g}, {high * scale:g}]"
    i = interval(values)
    if i.n < 2:
        return Claim(text, paper, figure(values, digits, scale), OPEN, f"{rule}: needs two seeds or more")
    inside = low <= i.mean - i.half_width and i.mean + i.half_width <= high
    outside = i.mean + i.half_width < low or i.mean - i.half_width > high
    return Claim(text, paper, figure(values, digits, scale), HOLDS if inside else FAILS if outside else OPEN, rule)


def differences(a: Mapping[int, float], b: Mapping[int, float]) -> dict[int, float]:
    """``a - b`` for the seeds that both have: both saw the same data in the same order from the same start."""
    return {seed: a[seed] - b[seed] for seed in a if seed in b}


def checked(text: str, paper: str, ours: str, holds: bool, how: str) -> Claim:
    """A claim decided by an exact check."""
    return Claim(text, paper, ours, HOLDS if holds else FAILS, how)
