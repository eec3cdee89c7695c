"""ProxQuant: proximal operators against brute force, steps against a float64 twin, freezing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import lowbit_helpers as h
from tracking.errors import UserError
from workbench.methods.lowbit.proxquant import ProxQuant, ProxQuantTraining, prox_l1, prox_l2, ternarise
from workbench.params import parse

GRID = np.linspace(-4, 4, 160_001)  # step 5e-5


def make(**options):
    return lambda quantised, plain: ProxQuant(h.groups(quantised, plain), lr=0.02, lam=1.5, **options)


# Points within 1e-3 of zero are left out where the penalty is symmetric: both wells are then minimal and the grid may
# pick the other.
@settings(max_examples=150, deadline=None)
@given(st.floats(-3, 3).filter(lambda v: abs(v) > 1e-3), st.floats(0, 3))
def test_binary_prox_minimises_the_w_shaped_penalty(v, t):
    objective = 0.5 * (GRID - v) ** 2 + t * np.abs(np.abs(GRID) - 1)
    x = torch.tensor([v], dtype=torch.float64)
    ours = prox_l1(x, torch.sign(x), t).item()
    assert 0.5 * (ours - v) ** 2 + t * abs(abs(ours) - 1) <= objective.min() + 1e-12
    assert abs(ours - GRID[objective.argmin()]) <= 1e-4  # two grid steps


@settings(max_examples=100, deadline=None)
@given(st.floats(-3, 3), st.integers(-2, 2), st.floats(0, 3))
def test_prox_towards_a_given_level_minimises(v, q, t):
    x, level = torch.tensor([v], dtype=torch.float64), torch.tensor([q], dtype=torch.float64)
    for prox, penalty in ((prox_l1, lambda w: t * np.abs(w - q)), (prox_l2, lambda w: 0.5 * t * (w - q) ** 2)):
        ours = prox(x, level, t).item()
        objective = 0.5 * (GRID - v) ** 2 + penalty(GRID)
        assert 0.5 * (ours - v) ** 2 + penalty(ours) <= objective.min() + 1e-12
        assert abs(ours - GRID[objective.argmin()]) <= 1e-4


def test_binary_prox_by_hand():
    v = torch.tensor([0.5, -0.5, 1.5, -1.5, 0.95, -1.05, 0.0], dtype=torch.float64)
    q = torch.tensor([1.0, -1, 1, -1, 1, -1, 1], dtype=torch.float64)
    expected = torch.tensor([0.7, -0.7, 1.3, -1.3, 1.0, -1.0, 0.2], dtype=torch.float64)
    torch.testing.assert_close(prox_l1(v, q, 0.2), expected, rtol=0, atol=1e-15)


def test_fitted_ternary_levels_by_hand():
    # mean |w| = 1, threshold 0.7: {0.8, 2.0} above, {-0.9, -1.1} below, the rest zero
    w = torch.tensor([0.8, 2.0, -0.9, -1.1, 0.6, -0.6], dtype=torch.float64)
    expected = torch.tensor([1.4, 1.4, -1.0, -1.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(ternarise(w), expected, rtol=0, atol=1e-15)
    assert torch.equal(ternarise(torch.zeros(3)), torch.zeros(3))
    assert ternarise(torch.tensor([1.0, 1.0])).tolist() == [1.0, 1.0]  # a side without weights


@pytest.mark.parametrize("dtype", h.TOLERANCE)
@pytest.mark.parametrize("case", ["binary", "ternary", "fitted"])
@pytest.mark.parametrize("base", ["sgd", "adam"])
def test_equals_its_twin(base, case, dtype):
    problem, lr, lam = h.Quadratic(), 0.06, 0.05
    p = problem.parameter(dtype)
    optimizer = ProxQuant([p], lr=lr, base=base, penalty="l1" if case == "binary" else "l2", weight_decay=0.01,
                          weights="binary" if case == "binary" else "ternary",
                          scale="fitted" if case == "fitted" else "unit")

    def levels(w):
        if case == "binary":
            return np.where(w < 0, -1.0, 1.0)
        if case == "ternary":
            return np.clip(np.floor(w + 0.5), -1, 1)
        up, down = w >= 0.7 * np.abs(w).mean(), w <= -0.7 * np.abs(w).mean()
        return np.where(up, w[up].mean(), np.where(down, w[down].mean(), 0.0))

    w, twin = problem.start.copy(), h.Descent(base, lr, weight_decay=0.01)
    for k in range(50):
        optimizer.param_groups[0]["lam"] = lam * k
        g = problem.gradient(w, k)  # at W: the forward pass is not quantised
        problem.step(p, optimizer, k)
        v, t = w + twin.move(w, g), lr * lam * k
        if case == "binary":
            r = np.abs(v) - 1
            w = np.sign(v) * (1 + np.sign(r) * np.maximum(np.abs(r) - t, 0))
        else:
            w = (v + t * levels(v)) / (1 + t)
        w = np.clip(w, -1, 1)
        np.testing.assert_allclose(h.flat(p), w, rtol=0, atol=h.TOLERANCE[dtype])
    np.testing.assert_allclose(h.flat(optimizer.deployed()[p]), levels(w), rtol=0, atol=h.TOLERANCE[dtype])


def test_without_pull_and_clip_it_is_the_plain_rule():
    ours, theirs = h.network(0), h.network(0)
    h.train(ours, ProxQuant(ours.parameters(), lr=0.03, lam=0.0, clip=False), range(10))
    h.train(theirs, torch.optim.Adam(theirs.parameters(), lr=0.03, foreach=True), range(10))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        # q + (v - q) is v up to two roundings of numbers of order 1
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_a_long_pull_lands_on_the_levels():
    p = torch.nn.Parameter(torch.linspace(-1, 1, 8))
    optimizer = ProxQuant([p], lr=0.1, lam=100.0, base="sgd")
    before = torch.sign(p.detach())
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(p.detach(), before)


def test_freezing_rounds_and_fixes_the_quantised_weights_only():
    model = h.network(0)
    optimizer = make()([model[0].weight, model[3].weight], [*model[1].parameters(), *model[4].parameters()])
    h.train(model, optimizer, range(5))
    expected = [torch.where(model[i].weight < 0, -1.0, 1.0) for i in (0, 3)]
    optimizer.freeze()
    plain, mean = model[1].weight.detach().clone(), model[1].running_mean.clone()
    h.train(model, optimizer, range(5, 10))
    assert all(torch.equal(model[i].weight.detach(), e) for i, e in zip((0, 3), expected, strict=True))
    assert not torch.equal(plain, model[1].weight)
    assert not torch.equal(mean, model[1].running_mean)
    assert len(optimizer.state) == 4  # the moments of the frozen weights are gone, the norms' stay


@pytest.mark.parametrize("options", [{}, {"base": "sgd", "weights": "ternary", "scale": "fitted", "penalty": "l2"}])
def test_training_goes_on_after_a_save(options):
    h.check_round_trip(make(**options))


def test_frozen_training_goes_on_after_a_save():
    def frozen(*groups):
        optimizer = make()(*groups)
        optimizer.freeze()
        return optimizer

    h.check_round_trip(frozen)


def test_plain_groups_scheduler_and_state():
    h.check_plain_groups(ProxQuant, lam=3.0)
    h.check_scheduler(make())
    h.check_state(make(), {"step", "exp_avg", "exp_avg_sq"}, {"step", "exp_avg", "exp_avg_sq"})
    h.check_state(make(base="sgd"), {"momentum_buffer"}, {"momentum_buffer"})


@pytest.mark.parametrize(("options", "words"), [
    ({"penalty": "l3"}, "penalty = 'l3'; allowed"), ({"scale": "fitted"}, "for weights = 'ternary', not 'binary'")])
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        ProxQuant([torch.nn.Parameter(torch.ones(2))], lr=0.1, **options)


# --- the method -------------------------------------------------------------------------------------------


def test_method_learns_and_freezes():
    params = {"epochs": 14, "lr": 0.02, "reg_rate": 0.2, "freeze_epoch": 12}
    _, state, metrics, steps = h.live(ProxQuantTraining, **params)
    assert metrics["eval/accuracy"] > 0.7  # chance is 0.25
    # frozen weights are the deployed ones
    assert metrics["eval/accuracy"] == metrics["eval/accuracy_latent"]
    assert all(set(p.unique().tolist()) == {-1.0, 1.0} for p in state.model.parameters())
    assert [round(s["train/regularisation"] / 0.2) for s in steps] == list(range(14))  # lam = reg_rate * epoch


def test_method_trains_real_weights_until_the_freeze():
    _, state, _, _ = h.live(ProxQuantTraining, epochs=3)
    assert all(p.unique().numel() > 3 for p in state.model.parameters())
    method, _, _, _ = h.live(ProxQuantTraining, epochs=1, weights="ternary", scale="fitted", lr=0.02)
    assert method.params.penalty == "auto"


def test_fitted_levels_are_refused_for_other_weights():
    with pytest.raises(UserError, match="scale = 'fitted' is for weights = 'ternary'"):
        parse(ProxQuantTraining.Params, {"scale": "fitted"}, "proxquant")
