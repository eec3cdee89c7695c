"""Averages, constraints and learning of the Interferometric Graph Transform: dense formulas, monotone objectives,
autograd.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graph_helpers import F64, KINDS, N, P, dense, operator_of, small_graph, transform
from tracking.errors import UserError
from workbench.graphs.averaging import averaging
from workbench.graphs.filters import (
    energy_gradient,
    farthest,
    modulus,
    pgd_step,
    polar,
    project,
    random_filters,
    violation,
)
from workbench.graphs.igt import FilterSearch
from workbench.graphs.inputs import as_graph
from workbench.graphs.spectrum import principal_directions, smoothest


@pytest.fixture(scope="module")
def graph() -> tuple[torch.Tensor, torch.Tensor]:
    return small_graph()


# --- averaging ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("self_loops", [1.0, 2.5, 0.0])
@pytest.mark.parametrize("kind", KINDS)
def test_sparse_averages_are_the_dense_formulas(graph, kind, self_loops):
    a = dense(graph, self_loops)
    d = a.sum(1)
    s = a / np.sqrt(np.outer(d, d))
    vectors = np.linalg.eigh(s)[1]
    expected = {
        "symmetric": s @ s @ s,
        "row": np.linalg.matrix_power(a / d[:, None], 3),
        "lazy": np.linalg.matrix_power((np.eye(N) + s) / 2, 3),
        "lowrank": vectors[:, -7:] @ vectors[:, -7:].T,
    }[kind]
    ours = operator_of(graph, kind, 3, self_loops)
    assert np.allclose(ours.dense(), expected, atol=1e-12)  # float64, sums of at most 60 terms
    u = torch.randn(N, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    assert np.allclose(ours.adjoint(u), expected.T @ u.numpy(), atol=1e-12)
    assert np.allclose(ours.gram(u), expected.T @ expected @ u.numpy(), atol=1e-12)
    assert ours.nonnegative == (kind != "lowrank")
    if kind == "row":
        assert torch.allclose(ours(torch.ones(N, 1, dtype=F64)), torch.ones(N, 1, dtype=F64), atol=1e-13)


def test_smoothest_vectors_by_iteration_are_those_of_the_dense_solver(graph, monkeypatch):
    matrix = operator_of(graph, "symmetric").matrix
    values, vectors = smoothest(matrix, 5)
    monkeypatch.setattr("workbench.graphs.spectrum.DENSE_UP_TO", 1)
    again, found = smoothest(matrix, 5, tol=1e-10)
    torch.testing.assert_close(again, values, rtol=0, atol=1e-9)
    torch.testing.assert_close(found, vectors, rtol=0, atol=1e-7)  # residual over the gap, some hundredths


@pytest.mark.parametrize("filled", [0.05, 1.0])
def test_principal_directions_span_the_best_subspace(filled):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((200, 50)) * np.geomspace(5, 0.05, 50) * (rng.random((200, 50)) < filled)
    q = principal_directions(torch.from_numpy(x), 8, power=12, oversampling=10)
    assert violation(q.T.contiguous(), "isometry") < 1e-12
    _, s, vh = np.linalg.svd(x)
    # the share of energy converges as the square of the gaps' 25th powers
    assert (x @ q.numpy()).__pow__(2).sum() == pytest.approx((s[:8] ** 2).sum(), rel=1e-6)
    if filled == 1:
        assert np.allclose(np.abs(vh[:8] @ q.numpy()), np.eye(8), atol=1e-3)
    assert torch.equal(principal_directions(torch.from_numpy(x), 50), torch.eye(50, dtype=F64))
    low = torch.from_numpy(x[:, :3] @ x[:3, :])  # of rank 3: fewer directions than asked for hold anything
    assert violation(principal_directions(low, 8).T.contiguous(), "isometry") < 1e-10


# --- constraints --------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 99), st.booleans())
def test_polar_is_that_of_the_svd(p, k, seed, degenerate):
    g = torch.randn(p, 2 * k, dtype=F64, generator=torch.Generator().manual_seed(seed))
    if degenerate:
        g[0] = g[-1] * (1 + 1e-9)
    u, s, vh = np.linalg.svd(g.numpy(), full_matrices=False)
    assert violation(polar(g), "isometry") < 1e-12
    # the largest inner product with g that an isometry can have is the sum of the singular values
    assert (polar(g) * g).sum().item() == pytest.approx(s.sum(), rel=1e-9)
    if s[-1] > 1e-3 * s[0]:
        assert np.allclose(polar(g), u @ vh, atol=1e-9)


@pytest.mark.parametrize("constraint", ["isometry", "contraction", "rows"])
@pytest.mark.parametrize("count", [2, 6, 10])
def test_projections_are_nearest_and_maximisers_farthest(constraint, count):
    draw = torch.Generator().manual_seed(0)
    g = 2 * torch.randn(P, 2 * count, dtype=F64, generator=draw)
    near, far = project(g, constraint), farthest(g, constraint)
    assert violation(near, constraint) < 1e-12
    assert violation(far, constraint) < 1e-12
    assert torch.allclose(project(near, constraint), near, atol=1e-12)
    for _ in range(50):
        other = project(torch.randn(P, 2 * count, dtype=F64, generator=draw), constraint)
        assert (other - g).norm() >= (near - g).norm() - 1e-12
        assert (other * g).sum() <= (far * g).sum() + 1e-12


@pytest.mark.parametrize("solver", ["mm", "pgd"])
@pytest.mark.parametrize("constraint", ["isometry", "contraction", "rows"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_every_update_satisfies_the_constraint(graph, solver, constraint, dtype):
    operator = averaging(as_graph(graph).adjacency, "symmetric", 2, dtype=dtype)
    search = FilterSearch.begin(
        graph[0].to(dtype), project(random_filters(P, P // 2, torch.Generator().manual_seed(0)), constraint), operator
    )
    for _ in range(10):
        search.step(operator, solver, constraint)
        # an entry of W in float32 is off by 2^-24 at most, a sum of 12 products of them by less than 1e-6
        assert violation(search.w, constraint) < (1e-6 if dtype == torch.float32 else 1e-12)


# --- learning -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_autograd_slice_by_slice(graph, kind, monkeypatch):
    operator = operator_of(graph, kind)
    w = random_filters(P, 10, torch.Generator().manual_seed(0)).requires_grad_()
    objective = operator(modulus(graph[0] @ w)).square().sum()
    objective.backward()
    for chunk in (2**28, 1):  # all filters at once, and 8 at a time
        monkeypatch.setattr("workbench.graphs.filters.CHUNK_BYTES", chunk)
        energy, gradient = energy_gradient(graph[0], w.detach(), operator.gram)
        assert energy == pytest.approx(objective.item(), rel=1e-12)
        torch.testing.assert_close(gradient, w.grad, rtol=1e-10, atol=1e-12)


def test_a_filter_that_hears_nothing_has_no_slope_of_infinity(graph):
    y = graph[0].clone()
    y[:, :2] = 0
    w = torch.zeros(P, 4, dtype=F64)
    w[0, 0] = w[1, 2] = w[2, 1] = w[3, 3] = 1  # the first filter sees zeros alone
    energy, gradient = energy_gradient(y, w, operator_of(graph, "symmetric").gram)
    assert gradient.isfinite().all()
    assert not gradient[:, [0, 2]].any()
    assert energy > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("solver", ["mm", "pgd"])
@pytest.mark.parametrize("objective", ["energy", "variation"])
def test_the_objective_never_falls_and_learning_beats_chance(graph, kind, centred, solver, objective):
    settings = {"averaging": kind, "solver": solver, "objective": objective}
    if solver == "mm" and (kind == "lowrank" or objective == "variation"):
        with pytest.raises(UserError, match="without negative entries"):
            transform(**settings).fit(graph)
        return
    ours = transform(**settings, rank=7, centred=centred, tol=-1.0, orders=2).fit(graph)
    for ratios in ours.ratios_:
        assert len(ratios) >= 2
        # float64 sums of some thousand terms
        assert all(b >= a - 1e-13 for a, b in itertools.pairwise(ratios))
        assert ratios[-1] > ratios[0]
        if kind in ("symmetric", "lazy", "lowrank"):  # of norm 1, so nothing is gained by averaging
            assert ratios[-1] <= 1 + 1e-12


def test_tolerance_ends_an_order_early(graph):
    quick = transform(tol=1e-2, orders=1, iterations=200).fit(graph)
    assert len(quick.ratios_[0]) < 100
    assert quick.ratios_[0][-1] - quick.ratios_[0][-2] < 1e-2 * quick.ratios_[0][-2]


def test_a_gradient_step_that_is_far_too_long_is_shortened(graph):
    operator = operator_of(graph, "lowrank")
    w = random_filters(P, 6, torch.Generator().manual_seed(0))
    energy, gradient = energy_gradient(graph[0], w, operator.gram)
    new, found, _, step = pgd_step(graph[0], w, energy, gradient, operator.gram, "isometry", 1e6)
    assert found >= energy
    assert step <= 1e6
    # where every step loses: the gradient turned round
    stays = pgd_step(graph[0], new, found, -1e-9 * gradient, operator.gram, "isometry", 1.0)
    assert stays[3] == 0 or stays[1] >= found
    assert violation(new, "isometry") < 1e-12
