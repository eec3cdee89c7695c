"""The bound's terms against the proof's own steps, its lemmas against worst cases, smoothness against exact Hessians."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.boolean import analysis
from workbench.boolean.analysis import Constants
from workbench.datasets._finite_sums import LinearSum, TanhSum

C = Constants(smoothness=2.0, sigma2=3.0, gamma=0.5, kappa=7.0, dim=5, eta=0.1, gap=11.0)
positive = st.floats(1e-3, 1e3)
constants = st.builds(
    Constants,
    smoothness=positive,
    sigma2=positive,
    gamma=st.floats(0, 0.999),
    kappa=positive,
    dim=st.integers(1, 1000),
    eta=positive,
    gap=positive,
)


def test_terms_by_hand():
    assert analysis.terms(C, 100) == pytest.approx(
        {
            "start": 2 * 11 / (100 * 0.1),
            "noise": 2 * 2 * 3 * 0.1,
            "error": 2 * 4 * 3 * 0.5 * 1.5 / 0.25 * 0.01,
            "floor": 2 * 2 * 5 * 7,
        }
    )
    printed = analysis.terms(C, 100, "printed")  # C = 4 L^2 sigma^2 gamma / (1 - gamma)^2 and L d kappa / 2
    assert printed["error"] == pytest.approx(4 * 4 * 3 * 0.5 / 0.25 * 0.01)
    assert printed["floor"] == pytest.approx(0.5 * 2 * 5 * 7)
    assert analysis.bound(C, 100) == pytest.approx(sum(analysis.terms(C, 100).values()))


@given(constants, st.integers(1, 10**6))
def test_the_derived_bound_is_the_proof_with_its_lemmas_put_in(c, T):
    """Per step: eta/2 G <= difference of f + eta L^2/2 E||e||^2 + L E||h||^2 + L eta^2 sigma^2; averaged, and divided by eta/2."""
    e2, h2 = analysis.error_bound(c), analysis.rounding_bound(c)
    averaged = c.gap / T + c.eta * c.smoothness**2 / 2 * e2 + c.smoothness * h2 + c.smoothness * c.eta**2 * c.sigma2
    assert analysis.before_lemmas(c, T, e2, h2) == pytest.approx(averaged / (c.eta / 2))
    assert analysis.bound(c, T) == pytest.approx(averaged / (c.eta / 2))
    assert analysis.terms(c, T, "printed")["error"] >= analysis.terms(c, T)["error"] * (1 - 1e-12)


@given(st.floats(0.01, 0.99), st.floats(0.01, 10))
def test_what_the_proof_of_lemma_a9_gives(gamma, eta):
    """Young's inequality rolled out, with the proof's beta: gamma (1 + 1/beta) / (1 - gamma (1 + beta))."""
    c = replace(C, gamma=gamma, eta=eta)
    beta = (1 - gamma) / (2 * gamma)
    assert analysis.error_bound(c) == pytest.approx(
        gamma * (1 + 1 / beta) / (1 - gamma * (1 + beta)) * eta**2 * c.sigma2
    )


@pytest.mark.parametrize("gamma", [0.1, 0.3, 0.9, 0.99])
def test_a_constant_signal_is_below_the_proved_bound_and_above_the_printed_one(gamma):
    """``e <- sqrt(gamma) (e + eta s)`` attains A.4 at every step; its limit is ``sqrt(gamma) eta s / (1 - sqrt(gamma))``."""
    c = replace(C, gamma=gamma)
    limit = gamma * c.eta**2 * c.sigma2 / (1 - gamma**0.5) ** 2
    assert limit <= analysis.error_bound(c)  # 2 (1 + gamma) - (1 + sqrt(gamma))^2 = (1 - sqrt(gamma))^2
    assert (limit > analysis.lemma_a9(c)) == (gamma > (2**0.5 - 1) ** 2)  # where (1 + sqrt(gamma))^2 passes 2


def test_no_contraction_no_bound():
    assert analysis.error_bound(replace(C, gamma=1.0)) == np.inf
    assert np.isnan(analysis.bound(replace(C, gamma=np.nan), 10))


@given(constants)
def test_the_least_floor_is_reached_where_a_weight_just_turns(c):
    assert analysis.terms(replace(c, kappa=1 / c.eta), 1)["floor"] == pytest.approx(analysis.least_floor(c))


def test_arrays_give_what_numbers_give():
    kappa, T = np.array([[1.0, 2.0]]), np.array([[10.0], [20.0], [30.0]])
    found = analysis.terms(replace(C, kappa=kappa), T)
    for i, j in np.ndindex(3, 2):
        alone = analysis.terms(replace(C, kappa=kappa[0, j]), T[i, 0])
        assert {k: np.broadcast_to(v, (3, 2))[i, j] for k, v in found.items()} == pytest.approx(alone)


# --- smoothness ---------------------------------------------------------------------------------------------


def tanh_problem(n: int = 12, inputs: int = 2, hidden: int = 2) -> TanhSum:
    g = torch.Generator().manual_seed(3)
    return TanhSum(
        torch.randn(n, inputs, generator=g, dtype=torch.float64),
        torch.randn(n, generator=g, dtype=torch.float64),
        hidden,
    )


def test_the_hessian_norm_is_that_of_the_exact_hessian():
    problem = tanh_problem()
    w = 2 * torch.rand(8, problem.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    exact = torch.stack([torch.linalg.matrix_norm(torch.autograd.functional.hessian(problem.value, p), 2) for p in w])
    found = analysis.hessian_norm(problem.gradient, w, iterations=300)
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=0)
    few = analysis.hessian_norm(problem.gradient, w, iterations=3)
    assert (few <= exact * (1 + 1e-12)).all()  # rounding alone may lift it
    assert (few < found).any()


def test_a_saddle_of_equal_curvatures_is_no_trap():
    """Eigenvalues +2 and -2: the direction never settles, the norm does."""
    flip = torch.tensor([2.0, -2.0, 0.5], dtype=torch.float64)
    found = analysis.hessian_norm(lambda w: flip * w, torch.zeros(3, dtype=torch.float64), iterations=60)
    assert found.item() == pytest.approx(2.0, rel=1e-9)


def test_a_flat_function_has_norm_zero():
    assert analysis.hessian_norm(lambda w: 0 * w, torch.ones(2, 3, dtype=torch.float64)).tolist() == [0.0, 0.0]


def test_smoothness_is_the_constant_where_one_is_known_and_an_estimate_from_below_elsewhere():
    x = torch.eye(2, dtype=torch.float64) * 3
    known = LinearSum(x, torch.zeros(2, dtype=torch.float64), "quadratic")
    assert analysis.smoothness_of(known, 2, 1.0) == pytest.approx(9 / 2)
    problem = tanh_problem()
    estimates = [analysis.smoothness_of(problem, problem.dim, radius=3.0, points=points) for points in (8, 64)]
    assert 0 < estimates[0] <= estimates[1] * (1 + 1e-9)
    g = torch.Generator().manual_seed(9)
    corners = torch.where(torch.rand(64, problem.dim, generator=g) < 0.5, -1.0, 1.0).double()
    steps = corners + 1e-3 * torch.randn(64, problem.dim, generator=g, dtype=torch.float64)
    ratio = (problem.gradient(corners) - problem.gradient(steps)).norm(dim=-1) / (corners - steps).norm(dim=-1)
    assert (
        ratio.max() <= estimates[1] * 1.01
    )  # a curvature seen at corners, where half of the points of the estimate lie


# --- rates --------------------------------------------------------------------------------------------------


@given(st.floats(-3, 3), st.floats(0.1, 10))
def test_the_exponent_of_a_power_law(p, c):
    x = np.array([1.0, 3.0, 10.0, 64.0])
    assert analysis.exponent(x, c * x**p) == pytest.approx(p, abs=1e-9)


@pytest.mark.parametrize(
    ("x", "y"), [([1.0], [1.0]), ([1.0, 2.0], [1.0, 0.0]), ([0.0, 2.0], [1.0, 1.0]), ([1.0, 2.0], [1.0])]
)
def test_no_exponent_without_two_positive_pairs(x, y):
    with pytest.raises(ValueError, match="two or more pairs of positive numbers"):
        analysis.exponent(x, y)
