"""Projected gradient against a float64 twin, and the geometry of its two projections."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import lowbit_helpers as h
from workbench.methods.lowbit.projected import ProjectedGradient, ProjectedTraining, to_sphere


def make(**options):
    return lambda quantised, plain: ProjectedGradient(h.groups(quantised, plain), **{"lr": 0.8} | options)


@pytest.mark.parametrize("dtype", h.TOLERANCE)
@pytest.mark.parametrize("projection", ["levels", "l2"])
@pytest.mark.parametrize("base", ["sgd", "adam"])
def test_equals_its_twin(base, projection, dtype):
    problem = h.Quadratic()
    lr = 0.6 if projection == "levels" else 0.06
    p = problem.parameter(dtype)
    optimizer = ProjectedGradient([p], lr=lr, base=base, projection=projection, momentum=0.5, weight_decay=0.01)
    w, twin, flips = problem.start.copy(), h.Descent(base, lr, momentum=0.5, weight_decay=0.01), 0
    for k in range(40):
        problem.step(p, optimizer, k)
        v = w + twin.move(w, problem.gradient(w, k))
        before, w = w, np.where(v < 0, -1.0, 1.0) if projection == "levels" else v * np.sqrt(12) / np.sqrt(np.sum(v**2))
        flips += np.sum(before * w < 0)
        np.testing.assert_allclose(h.flat(p), w, rtol=0, atol=h.TOLERANCE[dtype])
    assert flips >= 5  # weights do change sign on this problem
    assert np.array_equal(h.flat(optimizer.deployed()[p]), np.where(w < 0, -1, 1))


def test_small_steps_are_forgotten():
    p = torch.nn.Parameter(torch.tensor([1.0, -1.0, 0.3, -0.2]))
    optimizer = ProjectedGradient([p], lr=0.5, base="sgd", momentum=0.0)
    for _ in range(100):
        p.grad = torch.tensor([1.9, -1.9, 0.0, 0.0])  # a step of 0.95 of the 1 that a flip needs
        optimizer.step()
    assert p.tolist() == [1.0, -1.0, 1.0, -1.0]
    p.grad = torch.tensor([2.1, -2.1, 0.0, 0.0])
    optimizer.step()
    assert p.tolist() == [-1.0, 1.0, 1.0, -1.0]


def test_levels_beyond_binary():
    p = torch.nn.Parameter(torch.tensor([-3.0, -1.4, 0.2, 0.6, 5.0]))
    optimizer = ProjectedGradient([p], lr=0.1, base="sgd", weights="2bit")
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert p.tolist() == [-2.0, -1.0, 0.0, 1.0, 2.0]


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20).filter(lambda v: max(map(abs, v)) > 1e-3))
def test_the_sphere_is_that_of_the_sign_vectors(values):
    w = torch.tensor(values, dtype=torch.float64)
    on = to_sphere(w)
    torch.testing.assert_close(torch.linalg.vector_norm(on), torch.linalg.vector_norm(torch.ones_like(w)))
    # the nearest point of a sphere is along w: the inner product is all of the norms' product
    torch.testing.assert_close(torch.dot(on, w), torch.linalg.vector_norm(on) * torch.linalg.vector_norm(w))
    torch.testing.assert_close(to_sphere(on), on)


def test_zero_stays_zero():
    assert torch.equal(to_sphere(torch.zeros(2, 2)), torch.zeros(2, 2))


@pytest.mark.parametrize("options", [{}, {"projection": "l2", "base": "sgd", "lr": 0.02}])
def test_training_goes_on_after_a_save(options):
    h.check_round_trip(make(**options))


def test_plain_groups_scheduler_and_state():
    h.check_plain_groups(ProjectedGradient)
    h.check_scheduler(make())
    h.check_state(make(), {"step", "exp_avg", "exp_avg_sq"}, {"step", "exp_avg", "exp_avg_sq"})
    h.check_state(make(base="sgd"), {"momentum_buffer"}, {"momentum_buffer"})


def test_an_unknown_projection_is_refused():
    with pytest.raises(ValueError, match="projection = 'ball'; allowed: 'levels', 'l2'"):
        ProjectedGradient([torch.nn.Parameter(torch.ones(2))], lr=0.1, projection="ball")


# --- the method -------------------------------------------------------------------------------------------


def test_method_on_the_sphere_learns():
    method, state, metrics, _ = h.live(ProjectedTraining, projection="l2", epochs=15, lr=0.02)
    assert metrics["eval/accuracy"] > 0.6  # chance is 0.25
    for p in state.model.parameters():
        assert p.norm().item() == pytest.approx(p.numel() ** 0.5, rel=1e-5)
    assert all(set(p.unique().tolist()) == {-1.0, 1.0} for p in method.deploy(state).parameters())


def test_method_on_the_levels_forgets_small_steps():
    # Adam's first step has length lr in every coordinate: weights beyond it keep their first sign, then all are stuck
    _, state, metrics, _ = h.live(ProjectedTraining, epochs=5, lr=1e-4)
    _, fresh, _, _ = h.live(ProjectedTraining, epochs=1, lr=1e-4)
    for p, q in zip(state.model.parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(p, q)
        assert set(p.unique().tolist()) == {-1.0, 1.0}
    assert metrics["eval/accuracy"] == metrics["eval/accuracy_latent"]
