"""Oracles for tracking.statistics: SciPy's own tests, closed forms, and brute force over definitions."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tracking.errors import UserError
from tracking.statistics import curve, hold, holm, interval, on_grid, pareto, to_target, welch

# two decimals and moderate size: a spread is either zero or far above rounding
values = st.lists(st.integers(-10_000, 10_000).map(lambda i: i / 100), min_size=2, max_size=8)


@given(values, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_interval_is_scipys(sample, level):
    mean, half, n = interval(sample, level)
    assert n == len(sample)
    assert mean == pytest.approx(np.mean(sample), abs=1e-9)
    if np.ptp(sample) == 0:
        assert half == pytest.approx(0, abs=1e-9)  # rounding of the mean only
        return
    low, high = stats.t.interval(level, n - 1, loc=np.mean(sample), scale=stats.sem(sample))
    assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-9, abs=1e-9)


def test_interval_of_two_in_closed_form():
    # one degree of freedom is Cauchy: the quantile is tan(pi/2 · level); s/√2 of {0, 2} is 1
    assert interval([0, 2]).half_width == pytest.approx(math.tan(math.pi / 2 * 0.95), rel=1e-9)


@given(value=st.floats(-1e300, 1e300), n=st.integers(2, 9))
def test_equal_values_are_their_mean_and_have_no_spread(value, n):
    """Also where the rounding of their sum would move the mean: three times 0.1 does."""
    assert interval([value] * n) == (value, 0.0, n)


def test_one_value_has_no_interval():
    result = interval([0.7])
    assert result.mean == 0.7
    assert result.n == 1
    assert math.isnan(result.half_width)


@pytest.mark.parametrize("wrong", [[], [1.0, math.nan], [math.inf]])
def test_interval_refuses(wrong):
    with pytest.raises(UserError):
        interval(wrong)


def test_level_is_checked():
    with pytest.raises(UserError, match="0 < x < 1"):
        interval([1, 2], 95)


def test_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = [abs(r.mean) <= r.half_width for r in (interval(rng.normal(size=4)) for _ in range(2000))]
    # 2000 Bernoulli(0.95) trials: four standard errors are 0.0195; the normal quantile instead of t would give about 0.86
    assert abs(np.mean(hits) - 0.95) < 0.0195


def test_curve_takes_reports_that_have_the_metric_and_holds_the_axis():
    frame = pandas.DataFrame({
        "step": [1, 2, 3, 4, 5],
        "comm/up_bytes": [math.nan, 10, math.nan, 10, 30],
        "eval/accuracy": [0.1, 0.2, math.nan, 0.4, 0.5],
    })
    x, y = curve(frame, "eval/accuracy")
    assert (x.tolist(), y.tolist()) == ([1, 2, 4, 5], [0.1, 0.2, 0.4, 0.5])
    x, y = curve(frame, "eval/accuracy", "comm/up_bytes")  # of two values at 10 bytes the later one counts
    assert (x.tolist(), y.tolist()) == ([10, 30], [0.4, 0.5])
    x, _ = curve(frame, "eval/loss")
    assert x.size == 0


def test_curve_refuses_axes_that_do_not_accumulate_and_damage():
    frame = pandas.DataFrame({"step": [1, 2], "train/epoch": [2.0, 1.0], "eval/loss": [1.0, 2.0]})
    with pytest.raises(UserError, match="does not accumulate"):
        curve(frame, "eval/loss", "eval/accuracy")
    with pytest.raises(UserError, match="falls"):
        curve(frame, "eval/loss", "train/epoch")
    with pytest.raises(UserError, match="eval/accuracy"):
        curve(frame, "eval/acuracy")


points = st.lists(st.tuples(st.integers(0, 20), st.integers(-9, 9)), max_size=8, unique_by=lambda p: p[0]).map(sorted)


def _as_curve(pairs):
    return np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs], float)


@given(st.lists(points, min_size=1, max_size=5), st.lists(st.integers(-2, 25), min_size=1, max_size=12))
def test_on_grid_by_brute_force(seeds, grid):
    table = on_grid([_as_curve(s) for s in seeds], grid)
    for row, at in zip(table.itertuples(), grid, strict=True):
        there = [[y for x, y in s if x <= at][-1] for s in seeds if s and s[0][0] <= at <= s[-1][0]]
        assert row.n == len(there)
        if not there:
            assert math.isnan(row.mean)
            assert math.isnan(row.half_width)
            continue
        expected = interval(there)
        assert row.mean == pytest.approx(expected.mean, abs=1e-12)
        assert row.half_width == pytest.approx(expected.half_width, abs=1e-9, nan_ok=True)


def test_on_grid_defaults_to_every_position_and_never_extrapolates():
    short, long = ([0, 1], [1, 2]), ([0, 2, 4], [3, 4, 5])
    table = on_grid([tuple(map(np.array, short)), tuple(map(np.array, long))])
    assert table.x.tolist() == [0, 1, 2, 4]
    assert table["mean"].tolist() == [2, 2.5, 4, 5]
    assert table.n.tolist() == [2, 2, 1, 1]
    assert np.isnan(table.half_width[2:]).all()


def test_hold_does_not_interpolate():
    assert hold((np.array([0.0, 10.0]), np.array([0.0, 1.0])), np.array([9.999, 10.0, 10.001])).tolist()[:2] == [0.0, 1.0]


def test_to_target_in_both_directions():
    frame = pandas.DataFrame({"step": [1, 2, 3], "clock/wall_s": [0.5, 1.0, 1.5],
                              "eval/accuracy": [0.2, 0.9, 0.8], "eval/loss": [2.0, 1.0, 0.5]})
    assert to_target(frame, "eval/accuracy", 0.8, "clock/wall_s") == 1.0
    assert to_target(frame, "eval/loss", 1.0, "step") == 2
    assert to_target(frame, "eval/accuracy", 0.95, "clock/wall_s") is None
    assert to_target(frame, "eval/accuracy", 0.8, "comm/up_bytes") is None  # axis never reported
    still = pandas.DataFrame({"step": [1, 2, 3, 4], "comm/up_bytes": [10, 10, 10, 30], "eval/accuracy": [0.5, 0.95, 0.8, 0.96]})
    assert to_target(still, "eval/accuracy", 0.9, "comm/up_bytes") == 10  # there, and gone again before another byte is sent
    with pytest.raises(UserError, match="no better direction"):
        to_target(frame, "train/lr", 0.1, "step")


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, 2.0, math.nan])] * 3), min_size=1, max_size=12),
       st.tuples(*[st.sampled_from(["higher", "lower", "eval/accuracy", "comm/up_bytes"])] * 3))
def test_pareto_by_the_definition(rows, directions):
    higher = [d in ("higher", "eval/accuracy") for d in directions]

    def dominates(p, q):
        no_worse = all((a >= b) if up else (a <= b) for a, b, up in zip(p, q, higher, strict=True))
        better = any((a > b) if up else (a < b) for a, b, up in zip(p, q, higher, strict=True))
        return no_worse and better

    expected = [not any(map(math.isnan, q)) and not any(dominates(p, q) for p in rows if not any(map(math.isnan, p))) for q in rows]
    assert pareto(rows, directions).tolist() == expected


def test_pareto_refuses_a_wrong_shape():
    with pytest.raises(UserError, match="2 directions"):
        pareto([[1, 2, 3]], ["lower", "higher"])


@given(values, values)
@settings(max_examples=150)
def test_welch_is_scipys(a, b):
    ours = welch(a, b)
    assert ours.difference == pytest.approx(np.mean(a) - np.mean(b), abs=1e-9)
    if np.ptp(a) == 0 and np.ptp(b) == 0:
        assert math.isnan(ours.p)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # SciPy warns where one sample has no spread
        theirs = stats.ttest_ind(a, b, equal_var=False)
    ci = theirs.confidence_interval(0.95)
    # rounding of the means (values up to 100, 1e-14) against spreads of 1e-2/√8 or more leaves about 1e-11
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-6, abs=1e-10)
    assert ours.dof == pytest.approx(theirs.df, rel=1e-6)
    assert (ours.low, ours.high) == pytest.approx((ci.low, ci.high), rel=1e-6, abs=1e-8)


def test_welch_without_a_test():
    for a, b in (([1.0], [1.0, 2.0]), ([1.0, 2.0], [3.0]), ([0.1] * 3, [0.3] * 4)):
        result = welch(a, b)
        assert result.difference == pytest.approx(np.mean(a) - np.mean(b))
        assert np.isnan([result.low, result.high, result.p, result.dof]).all()
    with pytest.raises(UserError):
        welch([], [1.0])


def test_welch_survives_tiny_spreads():
    # the variances are 1e-200, so the textbook formula for the degrees of freedom, with their squares, is 0/0
    a, b = np.array([1.0, 2.0, 3.0]), np.array([5.0, 6.0, 8.0])
    small, plain = welch(a * 1e-100, b * 1e-100), welch(a, b)
    assert (small.dof, small.p) == pytest.approx((plain.dof, plain.p), rel=1e-9)


@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=8))
def test_holm_by_the_step_down_rule(p):
    """Holm rejects at level a exactly those whose adjusted p is at most a: the rule is run at every level that can matter."""
    adjusted = holm(p)
    known = [i for i, v in enumerate(p) if not math.isnan(v)]
    assert all(math.isnan(adjusted[i]) for i in range(len(p)) if i not in known)
    order = sorted(known, key=lambda i: p[i])
    for level in (0.01, 0.05, 0.1, 0.37, 0.8):
        rejected = set()
        for rank, i in enumerate(order):
            if p[i] * (len(order) - rank) > level:
                break
            rejected.add(i)
        assert rejected == {i for i in known if adjusted[i] <= level}
