"""MD-tanh: its two forms are one map, each equals its float64 twin, and the slope rises on time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import lowbit_helpers as h
from tracking.errors import UserError
from workbench.methods.lowbit.md_tanh import BETA_MAX, MDTanh, MDTanhTraining, mirror_step, projection
from workbench.params import parse


def make(**options):
    return lambda quantised, plain: MDTanh(
        h.groups(quantised, plain), lr=0.02, beta_scale=1.3, beta_every=2, **options)


# --- the mathematics ---------------------------------------------------------------------------------------


@given(st.floats(-0.99, 0.99), st.floats(-3, 3))
def test_both_identities_of_the_mirror_step(w, z):
    ours = mirror_step(torch.tensor(w, dtype=torch.float64), torch.tensor(z, dtype=torch.float64)).item()
    a = (1 + w) / (1 - w + 1e-20) * math.exp(2 * z)
    # float64, with |atanh w| < 2.7 and so a condition below 50: 1e-13 is a hundred roundings
    assert ours == pytest.approx((a - 1) / (a + 1), abs=1e-13)
    assert ours == pytest.approx(math.tanh(math.atanh(w) + z), abs=1e-13)


def test_the_mirror_step_minimises_the_proximal_problem():
    """W+ = argmin lr g W + D(W, w) with the Bregman divergence of the tanh's potential, by brute force on a grid."""
    grid = np.linspace(-0.9999, 0.9999, 400_001)

    def potential(u):
        return ((1 + u) * np.log(1 + u) + (1 - u) * np.log(1 - u)) / 2  # its derivative is atanh

    for w, g in [(0.3, 0.7), (-0.8, -1.5), (0.0, 2.0), (0.9, 0.4)]:
        divergence = potential(grid) - potential(w) - np.arctanh(w) * (grid - w)
        best = grid[np.argmin(g * grid + divergence)]
        ours = mirror_step(torch.tensor(w, dtype=torch.float64), torch.tensor(-g, dtype=torch.float64)).item()
        assert ours == pytest.approx(best, abs=1e-5)  # two grid steps


def test_the_mirror_step_is_finite_where_the_recursion_overflows():
    w = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
    for z in (-1e6, -100.0, 100.0, 1e6):
        assert mirror_step(w, torch.full((5,), z)).abs().max() <= 1
    assert torch.equal(mirror_step(w, torch.zeros(5))[[0, 4]], torch.tensor([-1.0, 1.0]))
    # weights that reached an end are left alike from both sides: atanh there is 23.4
    out = mirror_step(torch.tensor([-1.0, 1.0]), torch.tensor([24.0, -24.0]))
    assert out[0] > 0 > out[1]
    assert out[0] == -out[1]


@given(st.floats(-2, 2), st.floats(0.1, 50))
def test_projections(x, beta):
    t = torch.tensor(x, dtype=torch.float64)
    assert projection(t, beta, "binary").item() == pytest.approx(math.tanh(beta * x), abs=1e-14)
    ternary = (math.tanh(beta * (x + 0.5)) + math.tanh(beta * (x - 0.5))) / 2
    assert projection(t, beta, "ternary").item() == pytest.approx(ternary, abs=1e-14)


# --- the optimiser -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", h.TOLERANCE)
@pytest.mark.parametrize("weights", ["binary", "ternary"])
@pytest.mark.parametrize("base", ["sgd", "adam"])
def test_stable_form_equals_its_twin(base, weights, dtype):
    problem, lr, beta = h.Quadratic(), 0.04, 1.0
    p = problem.parameter(dtype)
    optimizer = MDTanh([p], lr=lr, base=base, weights=weights, beta=beta, beta_scale=1.1, beta_every=5,
                       weight_decay=0.01)

    def soft(x, beta):
        return np.tanh(beta * x) if weights == "binary" else (np.tanh(beta * (x + 0.5)) + np.tanh(beta * (x - 0.5))) / 2

    x, twin = problem.start.copy(), h.Descent(base, lr, weight_decay=0.01)
    for k in range(50):
        np.testing.assert_allclose(h.flat(p), soft(x, beta), rtol=0, atol=h.TOLERANCE[dtype])
        g = problem.gradient(soft(x, beta), k)  # at W, handed to x unchanged
        problem.step(p, optimizer, k)
        x = x + twin.move(x, g)
        beta *= 1.1 if (k + 1) % 5 == 0 else 1.0
    np.testing.assert_allclose(h.flat(optimizer.state[p]["x"]), x, rtol=0, atol=h.TOLERANCE[dtype])
    nearest = np.where(x < 0, -1, 1) if weights == "binary" else np.clip(np.floor(soft(x, beta) + 0.5), -1, 1)
    assert np.array_equal(h.flat(optimizer.deployed()[p]), nearest)
    assert optimizer.param_groups[0]["beta"] == pytest.approx(1.1**10)


@pytest.mark.parametrize("dtype", h.TOLERANCE)
@pytest.mark.parametrize("base", ["sgd", "adam"])
def test_mda_form_equals_the_recursion(base, dtype):
    problem, lr, beta = h.Quadratic(), 0.02, 1.0
    p = problem.parameter(dtype)
    optimizer = MDTanh([p], lr=lr, base=base, form="mda", beta_scale=1.1, beta_every=10, weight_decay=0.01)
    w, twin = np.tanh(problem.start), h.Descent(base, lr, weight_decay=0.01)
    for k in range(40):
        np.testing.assert_allclose(h.flat(p), w, rtol=0, atol=h.TOLERANCE[dtype])
        problem.step(p, optimizer, k)
        a = (1 + w) / (1 - w + 1e-20) * np.exp(2 * beta * twin.move(w, problem.gradient(w, k)))
        w = (a - 1) / (a + 1)
        beta *= 1.1 if (k + 1) % 10 == 0 else 1.0
    assert "x" not in optimizer.state[p]


@pytest.mark.parametrize("base", ["sgd", "adam"])
def test_both_forms_are_one_map_at_fixed_slope(base):
    paths = []
    for form in ("stable", "mda"):
        problem = h.Quadratic()
        p = problem.parameter(torch.float64)
        optimizer = MDTanh([p], lr=0.02, base=base, form=form, beta=1.5)
        path = []
        for k in range(40):
            problem.step(p, optimizer, k)
            path.append(h.flat(p))
        paths.append(np.array(path))
    # float64; the primal form loses up to 1 / (1 - W^2) < 1e3 roundings a step
    np.testing.assert_allclose(paths[0], paths[1], rtol=0, atol=1e-10)
    assert np.abs(paths[0][-1] - paths[0][0]).max() > 0.1


def test_the_slope_is_capped():
    p = torch.nn.Parameter(torch.tensor([-0.3, 0.2]))
    optimizer = MDTanh([p], lr=0.0, beta=1e30, beta_scale=1e4)
    for _ in range(4):
        p.grad = torch.zeros_like(p)
        optimizer.step()
    assert optimizer.param_groups[0]["beta"] == BETA_MAX
    assert p.tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("options", [{}, {"base": "sgd", "weights": "ternary"}, {"form": "mda"}])
def test_training_goes_on_after_a_save(options):
    h.check_round_trip(make(**options))


def test_plain_groups_scheduler_and_state():
    h.check_plain_groups(MDTanh)
    h.check_scheduler(make())
    h.check_state(make(), {"x", "step", "exp_avg", "exp_avg_sq"}, {"step", "exp_avg", "exp_avg_sq"})
    h.check_state(make(form="mda"), {"step", "exp_avg", "exp_avg_sq"}, {"step", "exp_avg", "exp_avg_sq"})
    h.check_state(make(form="mda", base="sgd"), {"momentum_buffer"}, {"momentum_buffer"})


@pytest.mark.parametrize(("options", "words"), [
    ({"form": "dual"}, "form = 'dual'; allowed"), ({"weights": "4bit"}, "for weights binary or ternary"),
    ({"form": "mda", "weights": "ternary"}, "form 'mda' is for weights binary"),
    ({"scale": "sawb"}, "with scale = 'unit'")])
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        MDTanh([torch.nn.Parameter(torch.ones(2))], lr=0.1, **options)


# --- the method ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("params", [
    {}, {"form": "mda"}, {"beta": 100.0, "beta_scale": 1.0}, {"weights": "ternary", "beta": 4.0}])
def test_method_learns(params):
    params = {"epochs": 20, "lr": 0.02, "beta_every": 1, "beta_scale": 1.05} | params
    method, state, metrics, steps = h.live(MDTanhTraining, **params)
    assert metrics["eval/accuracy"] > 0.7  # chance is 0.25
    levels = {-1.0, 1.0} if "weights" not in params else {-1.0, 0.0, 1.0}
    assert all(set(p.unique().tolist()) <= levels for p in method.deploy(state).parameters())
    p = method.params
    assert steps[-1]["train/regularisation"] == pytest.approx(p.beta * p.beta_scale**80)  # 20 epochs of 4 batches


def test_method_refuses_ternary_mda():
    with pytest.raises(UserError, match="form = 'mda' is for weights = 'binary'"):
        parse(MDTanhTraining.Params, {"form": "mda", "weights": "ternary"}, "md_tanh")
