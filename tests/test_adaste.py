"""AdaSTE: every case of its scale by hand, steps against a float64 twin, schedules."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests import lowbit_helpers as h
from tracking.errors import UserError
from workbench.method import Context
from workbench.methods.lowbit.adaste import AdaSTE, AdaSTETraining, adaptive_scale, relaxed_weight
from workbench.params import parse


def make(**options):
    def build(quantised, plain):
        start = torch.Generator().manual_seed(0)
        return AdaSTE(h.groups(quantised, plain), **{"lr": 0.02, "gain": 100.0, "theta0": 2.0, "generator": start} | options)
    return build


# --- the mathematics ---------------------------------------------------------------------------------------

# a = 0.5, b = 1: threshold 1 - a b = 0.5, 1 / (1 + b) = 0.5; numerators: row 3: 1 + 2 + 0.5 = 3.5, row 4: 3 - theta
BELOW = [
    (2.0, -1.0, 0.0),             # far, opposite
    (-2.0, 1.0, 0.0),
    (4.0, 1.0, 3.5 / 8),          # far, same: (3.5) / (2 * 4)
    (-4.0, -1.0, 3.5 / 8),
    (2.0, 1.0, 0.5),              # far, same: 3.5 / 4 = 0.875, capped
    (0.4, 1.0, 0.5),              # near, same: 2.6 / 0.8 = 3.25, capped
    (0.4, -1.0, 0.5),             # near, opposite: unchanged 1 / (1 + b)
    (-0.4, 1.0, 0.5),
    (4.0, 1e-3, 0.5),             # |g| at the threshold: unchanged
    (4.0, -1e-4, 0.5),
    (0.5, 1.0, 0.5),              # |theta| exactly at 1 - ab: no case applies
    (0.0, 1.0, 0.5),              # theta = 0 has no sign
]
# a = 0.1, b = 0.05: threshold 0.995; row 3: 1.105 / (1.05 |theta|), row 4: (0.11 - theta) / (1.05 |theta|)
SMALL_B = [
    (5.0, 1.0, 1.105 / 5.25),
    (5.0, -1.0, 0.0),
    (0.5, 1.0, 0.0),              # 0.11 - 0.5 < 0, floored
    (0.1, 1.0, 0.01 / 0.105),
    (0.08, 2.0, 0.03 / 0.084),
    (-0.5, -1.0, 0.5),            # theta, not |theta|: (0.11 + 0.5) / 0.525 = 1.16, capped
    (-0.1, -1.0, 0.5),
    (-0.1, 1.0, 1 / 1.05),
]
# a = 0.5, b = 2: a b = 1
ABOVE = [(4.0, 1.0, 0.25), (-4.0, -1.0, 0.25), (1.0, 1.0, 0.5), (4.0, -1.0, 0.0),
         (-0.1, 1.0, 0.0), (4.0, 1e-4, 1.0), (0.0, 1.0, 1.0)]


@pytest.mark.parametrize(("a", "b", "cases"), [
    (0.5, 1.0, BELOW), (0.1, 0.05, SMALL_B), (0.5, 2.0, ABOVE), (0.5, 4.0, ABOVE)])
def test_every_case_of_the_scale_by_hand(a, b, cases):
    theta, g, expected = torch.tensor(cases, dtype=torch.float64).T
    torch.testing.assert_close(adaptive_scale(theta, g, a, b), expected, rtol=1e-12, atol=0)


def test_relaxed_weight_by_hand_and_at_its_limits():
    theta = torch.tensor([-3.0, -0.5, 0.0, 0.2, 3.0], dtype=torch.float64)
    # a = 0.01, b = 0.25: (theta + 0.2525 sign) / 1.25
    expected = torch.tensor([-1.0, -0.602, 0.202, 0.362, 1.0], dtype=torch.float64)
    torch.testing.assert_close(relaxed_weight(theta, 0.01, 0.25), expected, rtol=0, atol=1e-15)
    assert torch.equal(relaxed_weight(theta, 0.01, 0.0), theta.clamp(-1, 1))
    # from a b = 1 on it is the sign: (|theta| + b + ab) / (1 + b) >= 1
    assert torch.equal(relaxed_weight(theta, 0.01, 100.0), torch.tensor([-1.0, -1, 1, 1, 1], dtype=torch.float64))


# --- the optimiser -------------------------------------------------------------------------------------------


def scale_of_one(theta, g, a, b, small):
    """The cases once more, as branches on one number."""
    if abs(g) <= small or theta == 0:
        return 1.0 if a * b >= 1 else 1 / (1 + b)
    same = (theta > 0) == (g > 0)
    if a * b >= 1:
        return min(1 / abs(theta), 0.5) if same else 0.0
    if abs(theta) > 1 - a * b:
        return min((1 + 2 * b + a * b) / ((1 + b) * abs(theta)), 0.5) if same else 0.0
    return max(0.0, min((2 * b * (1 + a) - theta) / ((1 + b) * abs(theta)), 0.5)) if same else 1 / (1 + b)


@pytest.mark.parametrize("dtype", h.TOLERANCE)
@pytest.mark.parametrize(("a", "b0", "growth"), [(0.01, 0.01, 1.02), (0.2, 0.3, 1.05), (0.5, 2.0, 1.0)])
def test_equals_its_twin(a, b0, growth, dtype):
    problem, lr, gain, small, decay = h.Quadratic(), 0.02, 3.0, 0.05, 0.01
    p = problem.parameter(dtype)
    optimizer = AdaSTE([p], lr=lr, a=a, b=b0, gain=gain, theta0=None, small=small, weight_decay=decay)
    theta, m, b, used = problem.start.copy(), np.zeros(12), b0, set()
    for k in range(40):
        b = b0 * growth**k
        optimizer.relax(b)
        w = np.clip((theta + b * (1 + a) * np.where(theta < 0, -1, 1)) / (1 + b), -1, 1)
        np.testing.assert_allclose(h.flat(p), w, rtol=0, atol=h.TOLERANCE[dtype])
        g = problem.gradient(w, k) + decay * w
        sc = np.array([scale_of_one(t, x, a, b, small) for t, x in zip(theta, g, strict=True)])
        used |= {(s == 0, s == 0.5, abs(s - 1 / (1 + b)) < 1e-12) for s in sc}
        m = 0.9 * m + 0.1 * (gain * sc * g + theta)
        theta = theta - lr * m / (1 - 0.9 ** (k + 1))
        problem.step(p, optimizer, k)
        np.testing.assert_allclose(h.flat(optimizer.latent(p)), theta, rtol=0, atol=h.TOLERANCE[dtype])
    assert len(used) >= 3  # the path goes through several cases
    assert np.array_equal(h.flat(optimizer.deployed()[p]), np.where(theta < 0, -1, 1))


def test_plain_parameters_follow_the_base_rule():
    problem = h.Quadratic()
    plain = problem.parameter(torch.float64)
    optimizer = AdaSTE([{"params": [plain], "weights": None}], lr=0.05, base="sgd", theta0=None)
    w, twin = problem.start.copy(), h.Descent("sgd", 0.05)
    for k in range(30):
        problem.step(plain, optimizer, k)
        w = w + twin.move(w, problem.gradient(w, k))
    np.testing.assert_allclose(h.flat(plain), w, rtol=0, atol=1e-11)


def test_random_start():
    p = torch.nn.Parameter(torch.zeros(100, 100))
    optimizer = AdaSTE([p], lr=0.1, generator=torch.Generator().manual_seed(0))
    theta = optimizer.latent(p)
    assert set(theta.unique().tolist()) == {-10.0, 10.0}
    assert set(p.unique().tolist()) == {-1.0, 1.0}
    # 10000 fair coins: standard deviation of the mean sign is 0.01
    assert abs(torch.sign(theta).mean().item()) < 0.05
    again = torch.nn.Parameter(torch.zeros(100, 100))
    assert torch.equal(theta, AdaSTE([again], lr=0.1, generator=torch.Generator().manual_seed(0)).latent(again))


def test_the_random_start_is_drawn_on_the_cpu():
    """A meta tensor stands for another device: a CPU generator serves it, and gives as many numbers as at home."""
    here, there = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    AdaSTE([torch.nn.Parameter(torch.zeros(7, 5))], lr=0.1, generator=here)
    p = torch.nn.Parameter(torch.zeros(7, 5, device="meta"))
    assert AdaSTE([p], lr=0.1, generator=there).latent(p).device.type == "meta"
    assert torch.equal(torch.rand(3, generator=here), torch.rand(3, generator=there))
    for device in ("cpu", "meta"):  # the method asks for such a generator, whatever the run's device
        ctx = Context(device=torch.device(device), seed=3)
        model = h.network(0).to(device)
        optimizer = method().optimizer(model, ctx)
        assert {s["theta"].device.type for s in optimizer.state.values() if "theta" in s} == {device}


@pytest.mark.gpu
def test_the_random_start_is_the_same_on_cuda():
    starts = []
    for device in ("cpu", "cuda"):
        p = torch.nn.Parameter(torch.zeros(50, 40, device=device))
        generator = Context(device=torch.device(device), seed=3).generator("theta", cpu=True)
        starts.append(AdaSTE([p], lr=0.1, generator=generator).latent(p).cpu())
    assert torch.equal(*starts)


@pytest.mark.parametrize("options", [{}, {"base": "sgd", "theta0": None, "b": 0.5}])
def test_training_goes_on_after_a_save(options):
    h.check_round_trip(make(**options))


def test_plain_groups_scheduler_and_state():
    h.check_plain_groups(AdaSTE, theta0=None)
    h.check_scheduler(make())
    h.check_state(make(), {"theta", "m", "step"}, {"step", "exp_avg", "exp_avg_sq"})


@pytest.mark.parametrize(("options", "words"), [
    ({}, "needs generator="), ({"theta0": None, "weights": "ternary"}, "not weights = 'ternary'"),
    ({"theta0": None, "scale": "sawb"}, "scale = 'sawb'")])
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        AdaSTE([torch.nn.Parameter(torch.ones(2))], lr=0.1, **options)


def test_relaxing_changes_quantised_weights_only():
    model = h.network(0)
    optimizer = make(theta0=None)([model[0].weight], [model[1].weight])
    h.train(model, optimizer, range(2))
    theta, plain = optimizer.latent(model[0].weight).clone(), model[1].weight.detach().clone()
    optimizer.relax(1000.0)
    assert set(model[0].weight.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(theta, optimizer.latent(model[0].weight))
    assert torch.equal(plain, model[1].weight)


# --- the method ----------------------------------------------------------------------------------------------


def method(**params):
    return AdaSTETraining(parse(AdaSTETraining.Params, params, "adaste"))


def test_schedules():
    m = method(epochs=100)
    assert m.b_at(0) == pytest.approx(0.0105)
    assert m.b_at(49) == pytest.approx(0.01 * 1.05**50)
    assert method(epochs=500).b_at(400) == 100  # 1 / a
    assert method(b=200.0, b_growth=1.0).b_at(3) == 200  # a fixed beta beyond the cap is kept
    assert [m.lr_at(e) for e in (0, 50, 100)] == pytest.approx([3e-4, 1.5e-4, 0])
    steps = method(lr_schedule="steps", lr=1.0, lr_decay_epochs=(2,))
    assert [steps.lr_at(e) for e in (1, 2)] == [1.0, 0.5]


@pytest.mark.parametrize(("n_scale", "gain"), [("squared", 4000.0**2), ("linear", 4000.0), ("none", 1.0)])
def test_gain_counts_the_training_samples(n_scale, gain):
    _, state, _, steps = h.live(AdaSTETraining, epochs=2, n_scale=n_scale)
    assert {g["gain"] for g in state.optimizer.param_groups} == {gain}
    assert [s["train/regularisation"] for s in steps] == pytest.approx([0.0105, 0.011025])
    assert steps[1]["train/lr"] == pytest.approx(3e-4 * (1 + math.cos(math.pi / 2)) / 2)


@pytest.mark.parametrize("params", [
    {}, {"n_scale": "linear", "n_factor": 1.0, "b": 100.0, "b_growth": 1.0, "lr": 0.02, "theta0": 0.0}])
def test_method_learns(params):
    m, state, metrics, _ = h.live(AdaSTETraining, **{"epochs": 15} | params)
    assert metrics["eval/accuracy"] > 0.7  # chance is 0.25
    assert all(set(p.unique().tolist()) == {-1.0, 1.0} for p in m.deploy(state).parameters())


def test_other_levels_are_refused():
    with pytest.raises(UserError, match="weights = 'ternary' is refused"):
        method(weights="ternary")
