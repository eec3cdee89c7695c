"""E-IGT: expected moduli against special functions, closed forms against samples, and the transform of block models
against both.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from workbench.graphs.block_model import block_model
from workbench.graphs.expectation import (
    CommunityMean,
    expected_modulus,
    expected_transform,
    gaussian_orders,
    mixing,
)
from workbench.graphs.filters import moduli, random_filters
from workbench.graphs.igt import InterferometricGraphTransform

special = pytest.importorskip("scipy.special")
F64 = torch.float64
P = 8


def law(k: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and covariances of Gaussian features of ``k`` communities, none of them diagonal."""
    rng = np.random.default_rng(0)
    roots = rng.standard_normal((k, P, P)) / np.sqrt(P) + np.eye(P) * np.linspace(0.5, 1.5, k)[:, None, None]
    return torch.from_numpy(rng.standard_normal((k, P))), torch.from_numpy(roots @ roots.transpose(0, 2, 1))


def drawn(means: torch.Tensor, covariances: torch.Tensor, y: np.ndarray, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    noise = torch.from_numpy(rng.standard_normal((len(y), P)))
    return means[y] + torch.einsum("npq,nq->np", torch.linalg.cholesky(covariances)[y], noise)


# --- expected moduli ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [1.0, 0.5, 1e-3, 0.0])
def test_a_centred_complex_gaussian_has_the_elliptic_integral(ratio):
    s1, s2, turn = 1.7, 1.7 * ratio, 0.6
    q = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]], dtype=F64)
    covariance = q @ torch.diag(torch.tensor([s1**2, s2**2], dtype=F64)) @ q.T
    expected = s1 * math.sqrt(2 / math.pi) * special.ellipe(1 - ratio**2)
    assert expected_modulus(torch.zeros(2, dtype=F64), covariance).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("mean", [0.0, 0.3, 2.0, 20.0])
def test_a_circular_one_off_zero_has_rice_s_mean_and_a_real_one_the_folded_normal_s(mean):
    s = 0.7
    x = mean**2 / (2 * s**2)
    rice = s * math.sqrt(math.pi / 2) * ((1 + x) * special.ive(0, x / 2) + x * special.ive(1, x / 2))
    found = expected_modulus(torch.tensor([mean * 0.6, -mean * 0.8], dtype=F64), s**2 * torch.eye(2, dtype=F64))
    assert found.item() == pytest.approx(rice, rel=1e-8)
    folded = s * math.sqrt(2 / math.pi) * math.exp(-x) + mean * math.erf(mean / (s * math.sqrt(2)))
    assert expected_modulus(torch.tensor([mean], dtype=F64), s**2 * torch.eye(1, dtype=F64)).item() == pytest.approx(
        folded, rel=1e-8
    )


def test_what_is_certain_is_its_own_modulus():
    means = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e3, 0.0]], dtype=F64)
    found = expected_modulus(means, torch.zeros(3, 2, 2, dtype=F64))
    assert np.allclose(found, [5, 0, 1e3], rtol=1e-8)


def test_order_1_in_closed_form_is_the_mean_over_samples():
    means, covariances = law()
    mixture = torch.tensor([[0.8, 0.2], [0.3, 0.7]], dtype=F64)
    w = random_filters(P, P // 2, torch.Generator().manual_seed(0))
    y = np.repeat([0, 1], 100_000)
    x = drawn(means, covariances, y, seed=1)
    for centred in (True, False):
        zero, one = gaussian_orders(means, covariances, mixture, w, centred)
        sampled = expected_transform(x, torch.from_numpy(y), mixture, [w], centred)
        # means of 10^5 samples of standard deviation 2 or so: 5 of their standard errors
        assert np.allclose(zero, mixture @ means, atol=1e-12)
        assert np.allclose(sampled[0], zero, atol=0.03)
        assert np.allclose(sampled[1], one, atol=0.03)


# --- the expectation as an operator -------------------------------------------------------------------------


def test_energy_is_that_of_all_orders_and_what_is_left():
    """With expectations within one community and isometries: E|X|^2 = sum of |S_n|^2 + E|U_N|^2."""
    x = torch.randn(500, P, dtype=F64, generator=torch.Generator().manual_seed(0)) + 0.5
    y = torch.zeros(500, dtype=torch.int64)
    draw = torch.Generator().manual_seed(1)
    filters = [random_filters(P, P // 2, draw), random_filters(P // 2, P // 4, draw)]
    one = torch.ones(1, 1, dtype=F64)
    orders = expected_transform(x, y, one, filters)
    u = x
    for w in filters:
        u = moduli(u - u.mean(0), w)
    kept = sum(s.square().sum() for s in orders[:2]) + u.square().sum(1).mean()
    assert kept.item() == pytest.approx(x.square().sum(1).mean().item(), rel=1e-12)


def test_mixing_is_the_limit_of_a_walk_on_the_graph():
    sizes, table = torch.tensor([1500, 500]), torch.tensor([[0.2, 0.05], [0.05, 0.4]], dtype=F64)
    edges = block_model(sizes.numpy(), table.numpy(), np.random.default_rng(0))
    y = np.repeat([0, 1], sizes)
    for power in (1, 2):
        pi = mixing(sizes, table, power)
        assert np.allclose(pi.sum(1), 1)
        counts = np.zeros((2, 2))
        np.add.at(counts, (y[edges[0]], y[edges[1]]), 1)
        seen = np.linalg.matrix_power(counts / counts.sum(1, keepdims=True), power)
        assert np.allclose(pi, seen, atol=0.01)  # shares among 10^5 edges
    operator = CommunityMean(torch.from_numpy(y), pi)
    u = torch.randn(2000, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    expected = pi.numpy() @ np.stack([u.numpy()[y == c].mean(0) for c in (0, 1)])
    assert np.allclose(operator(u), expected[y], atol=1e-12)


# --- concentration ------------------------------------------------------------------------------------------


def test_the_transform_of_a_block_model_tends_to_the_closed_form_as_the_root_of_the_degree():
    """Root mean square error of orders 0 and 1 over nodes, N growing at fixed probabilities: slope -1/2 against the
    mean degree.
    """
    means, covariances = law()
    means = means * 0
    table, errors, degrees = np.array([[0.1, 0.02], [0.02, 0.1]]), [], []
    w = random_filters(P, P // 2, torch.Generator().manual_seed(0))
    for n in (500, 2000, 8000):
        sizes = np.array([n // 2, n // 2])
        y = np.repeat([0, 1], sizes)
        edges = block_model(sizes, table, np.random.default_rng(n))
        x = drawn(means, covariances, y, seed=n)
        zero, one = gaussian_orders(means, covariances, mixing(torch.from_numpy(sizes), torch.from_numpy(table)), w)
        ours = InterferometricGraphTransform(
            orders=1, dim=None, averaging="row", power=1, normalise="none", dtype="float64"
        )
        ours.basis_, ours.filters_, ours.n_features_in_ = torch.eye(P, dtype=F64), [w], P
        found = ours.orders_of((x, torch.from_numpy(edges)))
        errors.append(
            [(s - limit[y]).square().sum(1).mean().sqrt().item() for s, limit in zip(found, (zero, one), strict=True)]
        )
        degrees.append(edges.shape[1] / n)
    slopes = np.polyfit(np.log(degrees), np.log(errors), 1)[0]
    # a mean over d neighbours is off by d^-1/2; self-loops add a term of order 1/d, and three sizes are few
    assert np.all(np.abs(slopes + 0.5) < 0.08), slopes
    errors = np.array(errors)
    assert (errors[-1] < 0.3 * errors[0]).all()
