"""Re-weighting: the law of E ^ K against a series, a table, traces and limits; the weights that undo the clients'
speed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracking.errors import UserError
from workbench.federation import reweighting as rw
from workbench.federation.clock import Speeds
from workbench.federation.theory import units_of_time
from workbench.federation.trace import Trace, arrivals, buffered, contacts, rounds, windows

# n = 100, s = 20, K = 20, D = 7; an independent calculation: E[E^K], P(E>0), E[(E^K)^2], E[1{E>0}/(E^K)]
TABLE = [
    ("exponential", 2, 12.395, 0.9938, 199.29, 0.1442), ("exponential", 16, 2.187, 0.7329, 10.775, 0.4018),
    ("geometric", 2, 12.493, 0.9984, 200.13, 0.1348), ("geometric", 16, 2.187, 0.7406, 10.641, 0.4084),
]


def series(law: str, mean: float, p: float, D: int, K: int) -> np.ndarray:
    """Sum over the gap g of p (1-p)^(g-1) times the Poisson or binomial law of E given g, cut where the rest is below
    1e-15."""
    stats = pytest.importorskip("scipy.stats")
    g = np.arange(1, 2 + int(35 / -math.log1p(-p)) if p < 1 else 2)[:, None]
    given_g = stats.poisson(g * D / mean) if law == "exponential" else stats.binom(g * D, 1 / mean)
    f = np.hstack([given_g.pmf(np.arange(K)), given_g.sf(K - 1)])
    return (p * (1 - p) ** (g - 1) * f).sum(0)


@pytest.mark.parametrize(("law", "mean", "first", "positive", "second", "inverse"), TABLE)
def test_moments_of_the_default_setting(law, mean, first, positive, second, inverse):
    m = rw.moments(rw.work_law(law, mean, p=0.2, D=7, K=20))
    # half a unit of the last digit shown
    assert m.mean == pytest.approx(first, abs=5e-4)
    assert m.positive == pytest.approx(positive, abs=5e-5)
    assert m.second == pytest.approx(second, abs=5e-3 if second > 100 else 5e-4)
    assert m.inverse == pytest.approx(inverse, abs=5e-5)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["exponential", "geometric"]), st.floats(1, 60), st.sampled_from([0.02, 0.2, 0.5, 1.0]),
       st.integers(1, 40), st.integers(1, 30))
def test_closed_law_equals_the_series(law, mean, p, D, K):
    f = rw.work_law(law, mean, p=p, D=D, K=K)
    np.testing.assert_allclose(f, series(law, mean, p, D, K), atol=1e-12)  # sums of up to 1700 terms, each to rounding
    assert f.sum() == pytest.approx(1, abs=1e-12)
    if law == "exponential":
        rest = math.exp(-D / mean)
        assert 1 - f[0] == pytest.approx(1 - p * rest / (1 - (1 - p) * rest), abs=1e-12)


def test_fixed_steps_by_counting():
    for mean, D in ((2.0, 7.0), (16.0, 7.0), (0.1, 0.7), (3.5, 7.0)):
        f = np.zeros(6)
        for g in range(1, 400):
            f[min(int(g * D / mean + 1e-6), 5)] += 0.2 * 0.8 ** (g - 1)
        np.testing.assert_allclose(rw.work_law("fixed", mean, p=0.2, D=D, K=5), f, atol=1e-12)


def test_limits_of_the_law():
    """E ^ K = K when steps cost nothing; with K past reach, E[E] is that of no cap, D / (p mean); in continuous time
    it is geometric."""
    assert rw.moments(rw.work_law("exponential", 1e-3, p=0.2, D=7, K=5)).mean == pytest.approx(5, abs=1e-12)
    for law in ("exponential", "geometric"):
        assert rw.moments(rw.work_law(law, 16, p=0.2, D=7, K=400)).mean == pytest.approx(7 / 0.2 / 16, rel=1e-9)
    # geometric steps of mean 1 are one a unit
    np.testing.assert_allclose(rw.work_law("geometric", 1, p=0.5, D=2, K=4), [0, 0, 0.5, 0, 0.5], atol=1e-15)
    fine = rw.moments(rw.work_law("exponential", 16, p=2e-4, D=0.007, K=20)).mean
    assert rw.mean_steps_in_continuous_time(1 / 16, p=2e-4, D=0.007, K=20) == pytest.approx(fine, rel=1e-3)
    # the approximation itself, at the default setting
    assert rw.mean_steps_in_continuous_time(1 / 16, p=0.2, D=7, K=20) == pytest.approx(2.187, rel=1e-3)
    assert np.isfinite(rw.work_law("geometric", 500, p=0.001, D=20_000, K=300)).all()


@pytest.mark.parametrize("law", ["exponential", "geometric", "fixed"])
def test_a_trace_shows_the_law(law):
    speeds = Speeds.two_classes(20, law=law, fast=2, slow=11)
    trace = contacts(speeds, selected=4, K=20, waiting=4, interaction=3, server_steps=8000, seed=5)
    shown, theory = rw.measured_moments(trace), rw.client_moments(speeds, selected=4, K=20, D=7)
    count = trace.deliveries()
    for client in range(20):
        # means of about 1600 contacts; gaps are independent, so the standard error is the plain one: 4.5 of them over
        # 60 comparisons
        spread = math.sqrt(theory.second[client] - theory.mean[client] ** 2)
        assert abs(shown.mean[client] - theory.mean[client]) < 4.5 * spread / math.sqrt(count[client])
        q = theory.positive[client]
        assert abs(shown.positive[client] - q) < 4.5 * math.sqrt(q * (1 - q) / count[client]) + 1e-12
        assert abs(shown.inverse[client] - theory.inverse[client]) < 4.5 * 0.5 / math.sqrt(count[client])
    mean, positive = rw.client_constants(speeds, 20, 4, 20, 7)
    np.testing.assert_array_equal(mean, theory.mean)
    np.testing.assert_array_equal(positive, theory.positive)


@pytest.mark.parametrize("kind", ["stochastic", "deterministic", "estimated"])
def test_updates_are_unbiased_on_a_linear_loss(kind):
    """With unit gradients a delivery is ``steps / alpha``: of mean 1 for fast and slow clients alike."""
    speeds = Speeds.two_classes(20)
    trace = contacts(speeds, selected=4, K=20, server_steps=8000, seed=5)
    a = rw.alpha(kind, trace, rw.client_moments(speeds, selected=4, K=20, D=7))
    update = trace.steps / a
    assert np.isfinite(update).all()
    for mean in (2.0, 16.0):
        own = update[(speeds.mean == mean)[trace.client]]
        # the estimate divides by a mean it is part of, which biases the first contacts of each client: 1 / contacts,
        # or 1e-3 here
        error = 4 * own.std() / math.sqrt(len(own)) + (2e-3 if kind == "estimated" else 0)
        assert own.mean() == pytest.approx(1, abs=error)
    plain = [trace.steps[(speeds.mean == m)[trace.client]].mean() for m in (2.0, 16.0)]
    assert plain[0] > 4 * plain[1]  # what there was to undo


def tiny(steps: list[int]) -> Trace:
    T = len(steps)
    before = np.arange(T, dtype=np.int32)
    return Trace(1, before + 1.0, np.arange(T + 1), before * 0, np.array(steps, np.int32), before, before, before + 0.0,
                 "contacts", {}).check()


def test_alpha_by_hand():
    trace = tiny([0, 0, 3, 5])
    law = rw.Moments(np.array([4.0]), np.array([0.5]), np.array([30.0]), np.array([0.2]))
    assert rw.alpha("stochastic", trace, law).tolist() == [math.inf, math.inf, 1.5, 2.5]
    assert rw.alpha("deterministic", trace, law).tolist() == [4.0] * 4
    assert rw.alpha("estimated", trace).tolist() == [1e-3, 1e-3, 1.0, 2.0]
    shown = rw.measured_moments(trace)
    assert [float(column[0]) for column in shown] == pytest.approx([2.0, 0.5, 34 / 4, (1 / 3 + 1 / 5) / 4])
    two = contacts(Speeds(np.ones(3)), selected=1, K=5, server_steps=50, seed=3)
    online = rw.online_mean_steps(two)
    for c in range(50):
        own = two.steps[: c + 1][two.client[: c + 1] == two.client[c]]
        assert online[c] == pytest.approx(max(own.mean(), 1e-3))


def test_theory_constants_of_the_default_setting():
    law = rw.client_moments(Speeds([2.0] * 67 + [16.0] * 33), selected=20, K=20, D=7)
    a, b = rw.theory_constants("stochastic", law, 20)
    # the figures for the slow client were worked out from rounded moments: to 1e-3
    assert (a[0], a[-1], b) == pytest.approx((0.149, 0.752, 1.364), abs=1e-3)
    a, b = rw.theory_constants("deterministic", law, 20)
    assert (a[0], a[-1], b) == pytest.approx((0.084, 0.463, 2.253), abs=1e-3)
    # from the definitions: with exactly K steps each contact, the noise is that of an average of K, twice
    sure = rw.moments(np.eye(21)[20])
    for kind in ("stochastic", "deterministic"):
        assert rw.theory_constants(kind, sure, 20) == pytest.approx((1 / 20 + 1 / 400, 1.0))


def test_units_of_time():
    speeds = Speeds.two_classes(100)
    law = rw.client_moments(speeds, selected=20, K=20, D=7)
    a, b = rw.theory_constants("stochastic", law, 20)
    common = dict(n=100, s=20, K=20, a=a, b=b, mean_steps=9.0)
    clocks = {"FedAvg": rounds(speeds, selected=20, K=20, server_steps=20).step_time, "FAVAS": 7.0, "FedBuff": 6.5}
    table = units_of_time(1e-9, clocks, tau_max=100, tau_mean=20, **common)
    assert list(table.index) == ["FedAvg", "FedBuff", "FAVAS"]  # those with a clock, and no other
    # the smaller eps, the more the leading power is all
    np.testing.assert_allclose(table["units"], table["eps^-2"] * 1e18 * table["step_time"], rtol=0.1)
    assert table.loc["FAVAS", "eps^-2"] == pytest.approx(a.mean() + 8 * b)
    assert table.loc["FedAvg", "eps^-2"] == pytest.approx((1 + 0.8 * 20) / 400)
    later = units_of_time(1e-9, clocks, tau_max=1000, tau_mean=20, **common)
    assert later.loc["FedBuff", "units"] > table.loc["FedBuff", "units"]
    assert later.loc["FAVAS", "units"] == table.loc["FAVAS", "units"]  # no delay in it
    assert table.certain.str.contains("recollected").all()
    with pytest.raises(UserError, match="Did you mean 'FAVAS'"):
        units_of_time(0.1, {"FAVAZ": 7.0}, tau_max=1, tau_mean=1, **common)


# --- FedFix and the other schemes with weights ---------------------------------------------------------------


P = np.array([0.1, 0.2, 0.3, 0.4])
TAU = np.array([1.0, 0.8, 0.5, 0.2])


def served(trace: Trace, d: np.ndarray) -> np.ndarray:
    return rw.surrogate_importance(trace, d)


@pytest.mark.parametrize("dt", [0.2, 0.5, 0.8])
def test_fedfix_weights_serve_the_importances(dt):
    """Over 60 windows, a common multiple of ``ceil(tau / dt)``, the weight delivered is proportional to p exactly."""
    trace = windows(Speeds.for_work(TAU, 10), dt=dt, K=10, server_steps=60)
    wait = np.array([math.ceil(round(t / dt, 9)) for t in TAU])
    assert trace.deliveries().tolist() == (60 / wait).tolist()
    np.testing.assert_allclose(served(trace, rw.aggregation_weights("fedfix", TAU, P, dt=dt)), P, rtol=1e-12)
    alike = rw.aggregation_weights("fedfix", TAU, P, dt=dt, identical=True)
    np.testing.assert_allclose(served(trace, alike), (1 / wait) / (1 / wait).sum(), rtol=1e-12)
    assert (alike * trace.deliveries()).sum() / 60 == pytest.approx(1)


def test_fedfix_weights_count_windows_in_decimals():
    tenths = np.arange(1, 41)
    d = rw.aggregation_weights("fedfix", tenths * 0.1, dt=0.1)
    np.testing.assert_allclose(d * 40, tenths)


def test_async_weights_serve_the_importances():
    tau = np.array([1.0, 2.0, 4.0, 0.5])
    trace = arrivals(Speeds.for_work(tau, 5), C=4, K=5, route="same", horizon=40)
    d = rw.aggregation_weights("async", tau, P)
    np.testing.assert_allclose(served(trace, d), P, rtol=1e-12)  # 40 is a multiple of every tau
    assert (d * trace.deliveries()).sum() / len(trace.time) == pytest.approx(1)
    assert rw.aggregation_weights("async", tau, P, identical=True).tolist() == [1.0] * 4
    np.testing.assert_allclose(served(trace, np.ones(4)), (1 / tau) / (1 / tau).sum())


def test_fedbuff_and_fedavg_weights():
    trace = buffered(Speeds.for_work(TAU, 10), Z=2, K=10, interaction=0, server_steps=500)
    rates = rw.delivery_rates(trace)
    np.testing.assert_allclose(served(trace, rw.aggregation_weights("fedbuff", TAU, P, rates=rates)), P, rtol=1e-12)
    np.testing.assert_allclose(rw.aggregation_weights("fedbuff", TAU, P, rates=rates, identical=True), 0.5)
    everyone = rounds(Speeds.for_work(TAU, 10), selected=4, K=10, server_steps=9)
    np.testing.assert_allclose(served(everyone, rw.aggregation_weights("fedavg", TAU, P)), P)
    assert rw.aggregation_weights("fedavg", TAU).tolist() == [0.25] * 4


@pytest.mark.parametrize(("call", "message"), [
    (lambda: rw.aggregation_weights("fedfix", TAU, P), "dt goes with scheme 'fedfix'"),
    (lambda: rw.aggregation_weights("async", TAU, P, dt=1), "dt goes with scheme 'fedfix'"),
    (lambda: rw.aggregation_weights("fedfix", TAU, P, dt=-1), "positive"),
    (lambda: rw.aggregation_weights("fedbuff", TAU, P, rates=[1, 1, 1, 0]), "Every client must deliver"),
    (lambda: rw.aggregation_weights("fedfx", TAU, P, dt=1), "Did you mean 'fedfix'"),
    (lambda: rw.aggregation_weights("async", TAU, P * 2), "sum 1"),
    (lambda: rw.work_law("exponential", 2, p=0, D=7, K=20), "0 < p <= 1"),
    (lambda: rw.work_law("geometric", 2, p=0.2, D=7.5, K=20), "D must be whole"),
    (lambda: rw.work_law("recorded", 2, p=0.2, D=7, K=20), "Unknown law with a closed form"),
    (lambda: rw.client_moments(Speeds([1.0]), selected=2, K=1, D=1), "selected is 1..n"),
    (lambda: rw.client_moments(Speeds([1.0], "recorded", (np.ones(1),)), selected=1, K=1, D=1), "no closed form"),
    (lambda: rw.client_constants(Speeds([1.0]), 2, 1, 1, 1), "n = 2"),
    (lambda: rw.alpha("stochastic", tiny([1])), "needs the moments"),
    (lambda: rw.alpha("stochastik", tiny([1])), "Did you mean 'stochastic'"),
    (lambda: rw.alpha("stochastic", tiny([1]), rw.measured_moments(tiny([0]))), "belong to this trace"),
    (lambda: rw.theory_constants("stochastic", rw.measured_moments(tiny([0])), 20), r"P\(E_i > 0\) > 0"),
    (lambda: rw.theory_constants("estimated", rw.measured_moments(tiny([1])), 20), "Unknown re-weighting"),
])
def test_contradictions_are_refused_with_the_rule(call, message):
    with pytest.raises(UserError, match=message):
        call()
