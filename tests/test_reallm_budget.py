"""Sharing out a budget of bits: against exhaustive search, at sizes where nobody can search, and where nothing fits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracking.errors import UserError
from workbench.llm.budget import Option, allocate

option = st.builds(Option, st.integers(0, 40), st.one_of(st.floats(0, 10), st.integers(0, 5).map(float), st.floats(0, 1e-9)))
problems = st.lists(st.lists(option, min_size=1, max_size=5), min_size=1, max_size=5)


def totals(options: list[list[Option]], chosen: list[int]) -> tuple[int, float]:
    picked = [row[i] for row, i in zip(options, chosen, strict=True)]
    return sum(o.bits for o in picked), sum(o.error for o in picked)


@settings(max_examples=400)
@given(problems, st.integers(0, 200))
def test_equals_exhaustive_search(options: list[list[Option]], budget: int) -> None:
    every = [totals(options, list(c)) for c in itertools.product(*(range(len(row)) for row in options))]
    fitting = [t for t in every if t[0] <= budget]
    if not fitting:
        least = min(bits for bits, _ in every)
        with pytest.raises(UserError, match=f"smallest reachable is {least} bits"):
            allocate(options, budget)
        return
    bits, error = totals(options, allocate(options, budget))
    assert bits <= budget
    # sums of at most five errors, added in another order
    assert error <= min(e for _, e in fitting) * (1 + 1e-12) + 1e-300


def curve(rng: np.random.Generator, weights: int) -> list[Option]:
    """Errors that fall by some factor a bit, as those of quantisers, with bits that have no common divisor."""
    energy, fall = rng.lognormal(0, 2), rng.uniform(2.5, 4)
    return [Option(int(weights * rate) + int(rng.integers(999)), float(energy * fall**-rate * rng.uniform(0.8, 1.2)))
            for rate in rng.uniform(1, 5, 20)]


def test_a_whole_model_comes_next_to_the_bound() -> None:
    """210 matrices of 20 options: within the Lagrangian bound's gap, which a single matrix's step limits."""
    rng = np.random.default_rng(0)
    options = [curve(rng, rng.choice([576 * 576, 192 * 576, 1536 * 576])) for _ in range(210)]
    budget = int(2.5 * sum(576 * 576 for _ in options))
    bits, error = totals(options, allocate(options, budget))
    bound = max(
        sum(min(o.error + m * o.bits for o in row) for row in options) - m * budget
        for m in np.geomspace(1e-9, 1e-3, 2000))
    assert bits <= budget
    assert bound <= error * (1 + 1e-9)
    assert error <= bound * 1.01


def test_of_equal_errors_the_fewest_bits() -> None:
    assert allocate([[Option(8, 1.0), Option(4, 1.0), Option(6, 1.0)]], 10) == [1]


def test_a_budget_beyond_need_takes_the_least_errors() -> None:
    rng = np.random.default_rng(1)
    options = [curve(rng, 100) for _ in range(6)]
    assert allocate(options, 10**9) == [min(range(20), key=lambda i, row=row: row[i].error) for row in options]


@pytest.mark.parametrize(("options", "message"), [
    ([[Option(1, 1.0)], []], "number 1 has no option"), ([[Option(1, float("nan"))]], "at least 0"), ([[Option(-1, 1.0)]], "at least 0"),
])
def test_what_is_refused(options: list[list[Option]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        allocate(options, 100)
