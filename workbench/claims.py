"""Claims: sentences of a paper turned into checks on measured figures, each with its verdict and how it was reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


def figure(values: Sequence[float], digits: int = 2, scale: float = 1.0) -> str:
    """``mean ± half-width of the 95 % interval (n = …)``; one value alone has no interval."""
    i = interval([v * scale for v in values])
    spread = f" ± {i.half_width:.{digits}f}" if i.n > 1 else ""
    return f"{i.mean:.{digits}f}{spread} (n = {i.n})"


def exceeds(text: str, paper: str, a: Sequence[float], b: Sequence[float], *, margin: float = 0.0,
            names: tuple[str, str] = ("a", "b"), scale: float = 1.0, digits: int = 2) -> Claim:
    """The claim that the mean of ``a`` is above that of ``b`` minus ``margin``.

    It holds when the whole 95 % Welch interval of the difference lies above ``-margin``, does not hold when the whole interval lies
    below, and is undecided in between.
    """
    if not len(a) or not len(b):
        return Claim(text, paper, "", ABSENT, "no finished run of one of the two")
    ours = f"{names[0]} {figure(a, digits, scale)}; {names[1]} {figure(b, digits, scale)}"
    d = welch(a, b)
    rule = f"95 % interval of the difference against {-margin * scale:g}"
    if not d.low == d.low:  # no test: too few values, or no spread at all
        if min(len(a), len(b)) < 2:
            return Claim(text, paper, ours, OPEN, f"{rule}: needs two seeds or more")
        d = d._replace(low=d.difference, high=d.difference)
    verdict = HOLDS if d.low > -margin else FAILS if d.high < -margin else OPEN
    return Claim(text, paper, ours, verdict, f"{rule}: [{d.low * scale:.{digits}f}, {d.high * scale:.{digits}f}]")


def within(text: str, paper: str, values: Sequence[float], low: float, high: float, *, scale: float = 1.0, digits: int = 2) -> Claim:
    """The claim that a mean lies in ``[low, high]``: its 95 % interval inside, outside, or across a bound (undecided)."""
    if not len(values):
        return Claim(text, paper, "", ABSENT, "no finished run")
    i = interval(values)
    half = i.half_width if i.n > 1 else 0.0
    inside = low <= i.mean - half and i.mean + half <= high
    outside = i.mean + half < low or i.mean - half > high
    verdict = HOLDS if inside else FAILS if outside else OPEN
    return Claim(text, paper, figure(values, digits, scale), verdict, f"interval of the mean against [{low * scale:g}, {high * scale:g}]")


def checked(text: str, paper: str, ours: str, holds: bool, how: str) -> Claim:
    """A claim decided by an exact check."""
    return Claim(text, paper, ours, HOLDS if holds else FAILS, how)
