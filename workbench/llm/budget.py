"""One option for each matrix under a budget of bits: exact, by a dynamic programme that is pruned with a Lagrangian bound.

The problem is the multiple-choice knapsack that LQ-LoRA states as an integer programme (Guo et al., ICLR 2024, section 3.2):
least sum of errors, one option a matrix, sum of bits within the budget. Bits are whole numbers, so that a state of the
programme is (bits so far, error so far); of equal or dominated states only the best lives, and none whose error
together with a lower bound of what the other matrices must add is above that of a solution already known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tracking.errors import UserError

SWEEPS = 80
"""Bisections of the multiplier: it is then exact to a float's last bits."""


@dataclass(frozen=True)
class Option:
    """What one choice for one matrix costs: ``bits`` stored and an ``error`` (any unit that adds up over matrices)."""

    bits: int
    error: float


def allocate(options: Sequence[Sequence[Option]], budget: int) -> list[int]:
    """Number of the option chosen for each matrix: the least sum of errors with at most ``budget`` bits.

    Of solutions with equal error, the one of fewest bits.

    Raises:
        UserError: the budget is below the cheapest options' sum, which is named; a matrix without an option; an
            error that is negative or not a number.
    """
    if not all(options):
        raise UserError(f"Matrix number {[bool(o) for o in options].index(False)} has no option to choose from.")
    if any(not o.error >= 0 or o.bits < 0 for row in options for o in row):
        raise UserError("Options have bits and an error of at least 0.")
    least = sum(min(o.bits for o in row) for row in options)
    if budget < least:
        raise UserError(f"A budget of {budget} bits cannot be met: the smallest reachable is {least} bits.")
    rows = [_undominated(row) for row in options]
    bits = [np.array([row[i].bits for i in keep], np.int64) for row, keep in zip(options, rows, strict=True)]
    errors = [np.array([row[i].error for i in keep]) for row, keep in zip(options, rows, strict=True)]
    multiplier, known = _lagrange(bits, errors, budget)
    chosen = _programme(bits, errors, budget, multiplier, known)
    return [keep[i] for keep, i in zip(rows, chosen, strict=True)]


def _undominated(row: Sequence[Option]) -> list[int]:
    """Options by rising bits, each with a smaller error than all cheaper ones."""
    kept: list[int] = []
    for i in sorted(range(len(row)), key=lambda i: (row[i].bits, row[i].error, i)):
        if not kept or row[i].error < row[kept[-1]].error:
            kept.append(i)
    return kept


def _lagrange(bits: list[np.ndarray], errors: list[np.ndarray], budget: int) -> tuple[float, float]:
    """The multiplier (error a bit) of the best Lagrangian bound, and the error of the best feasible choice met on the way."""

    def at(multiplier: float) -> tuple[int, float]:
        picks = [int(np.argmin(e + multiplier * b)) for b, e in zip(bits, errors, strict=True)]
        return sum(int(b[i]) for b, i in zip(bits, picks, strict=True)), sum(float(e[i]) for e, i in zip(errors, picks, strict=True))

    cheapest = sum(float(e[0]) for e in errors)  # the first options fit: the budget was checked
    spent, error = at(0.0)
    if spent <= budget:
        return 0.0, error
    low, high, known = 0.0, 1e-30 + max(float(e[0]) for e in errors), cheapest
    for _ in range(SWEEPS):
        middle = (low + high) / 2
        spent, error = at(middle)
        if spent <= budget:
            high, known = middle, min(known, error)
        else:
            low = middle
    return high, known


def _programme(bits: list[np.ndarray], errors: list[np.ndarray], budget: int, multiplier: float, known: float) -> list[int]:
    """States after each matrix as arrays by rising bits; then back along the links to the choices."""
    count = len(bits)
    # what matrices i.. must add at least: in bits, in error, and in error + multiplier bits
    rest_bits = np.concatenate([np.cumsum([b[0] for b in bits[::-1]])[::-1], [0]])
    rest_error = np.concatenate([np.cumsum([e[-1] for e in errors[::-1]])[::-1], [0]])
    rest_both = np.concatenate([np.cumsum([(e + multiplier * b).min() for b, e in zip(bits[::-1], errors[::-1], strict=True)])[::-1], [0]])
    limit = known * (1 + 1e-12) + 1e-300
    at_bits, at_error = np.zeros(1, np.int64), np.zeros(1)
    links: list[tuple[np.ndarray, np.ndarray]] = []
    for i in range(count):
        spent = (at_bits[:, None] + bits[i]).reshape(-1)
        error = (at_error[:, None] + errors[i]).reshape(-1)
        bound = np.maximum(error + rest_error[i + 1], error + rest_both[i + 1] - multiplier * (budget - spent))
        slack = 1e-9 * (abs(limit) + multiplier * budget)  # the bound subtracts large numbers: never lose the best by rounding
        alive = np.flatnonzero((spent + rest_bits[i + 1] <= budget) & (bound <= limit + slack))
        alive = alive[np.lexsort((error[alive], spent[alive]))]
        least = np.minimum.accumulate(error[alive])
        first = np.ones(len(alive), bool)
        first[1:] = error[alive][1:] < least[:-1]
        alive = alive[first]
        links.append((alive // len(bits[i]), alive % len(bits[i])))
        at_bits, at_error = spent[alive], error[alive]
    state, chosen = len(at_error) - 1, []  # errors fall as bits rise: the last one is best
    for before, pick in reversed(links):
        chosen.append(int(pick[state]))
        state = int(before[state])
    return chosen[::-1]
