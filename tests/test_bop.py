"""Bop: equal to its NumPy twin, no latent weights, and what its two parameters do."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tests import lowbit_helpers as h
from tests.binary_helpers import begin
from workbench.methods.lowbit.bop import Bop, BopTraining


def make(**options):
    return lambda quantised, plain: Bop(h.groups(quantised, plain), **{"lr": 0.02, "gamma": 0.1, "threshold": 1e-3, **options})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("gamma", "threshold"), [(0.1, 0.05), (1.0, 0.0), (0.01, 0.002)])
def test_it_equals_its_numpy_twin(dtype, gamma, threshold):
    """Weights bit for bit; the average within rounding. Helwegen et al. 2019, Alg. 1."""
    problem = h.Quadratic()
    p = problem.parameter(dtype)
    optimizer = Bop([p], lr=0.1, gamma=gamma, threshold=threshold)
    w, m, flips = np.where(problem.start >= 0, 1.0, -1.0), np.zeros(12), 0
    for k in range(50):
        g = problem.gradient(w, k)
        m = (1 - gamma) * m + gamma * g
        flip = (np.abs(m) > threshold) & (np.sign(m) == np.sign(w))
        flips += int(flip.sum())
        w = np.where(flip, -w, w)
        problem.step(p, optimizer, k)
        assert np.array_equal(h.flat(p), w)
        np.testing.assert_allclose(h.flat(optimizer.state[p]["m"]), m, atol=h.TOLERANCE[dtype])
    assert flips > 10
    assert optimizer.flips() == flips


def test_a_flip_does_not_reset_the_average():
    p = torch.nn.Parameter(torch.ones(1))
    optimizer = Bop([p], lr=0.1, gamma=0.5, threshold=0.1)
    p.grad = torch.ones(1)
    optimizer.step()
    assert (p.item(), optimizer.state[p]["m"].item()) == (-1.0, 0.5)
    p.grad = torch.zeros(1)
    optimizer.step()  # the average, 0.25, is still above the threshold, but it now agrees with the new weight's sense
    assert (p.item(), optimizer.state[p]["m"].item()) == (-1.0, 0.25)


def test_at_the_threshold_nothing_flips():
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = Bop([p], lr=0.1, gamma=1.0, threshold=0.25)
    p.grad = torch.tensor([0.25, 0.2500001])
    optimizer.step()
    assert p.tolist() == [1.0, -1.0]


def test_it_behaves_like_any_optimiser_of_quantised_weights():
    h.check_round_trip(make())
    h.check_plain_groups(Bop, gamma=0.1, threshold=1e-3)
    h.check_state(make(), {"m"}, {"step", "exp_avg", "exp_avg_sq"})


@pytest.mark.parametrize("options", [{"gamma": 0.0}, {"gamma": 1.1}, {"threshold": -1.0}, {"weights": "ternary"}, {"scale": "sawb"}])
def test_what_it_cannot_use_is_refused(options):
    with pytest.raises(ValueError, match=r"allowed|Bop is for weights"):
        make(**options)([torch.nn.Parameter(torch.ones(2))], [])


def test_its_weights_are_signs_throughout_and_its_rate_follows_the_schedule():
    method, state, task, ctx = begin(BopTraining, gamma=0.05, threshold=1e-4)
    p = state.optimizer.param_groups[0]["params"][0]
    rates, flips = [], []
    while method.progress(state).done < method.progress(state).total:
        flips.append(method.step(state, task, ctx)["train/flips"])
        rates.append(state.optimizer.param_groups[0]["gamma"])
        assert bool((p.abs() == 1).all())
    assert rates[0] == pytest.approx(0.05)
    assert all(a > b for a, b in itertools.pairwise(rates))
    assert flips[-1] > 0
    assert flips == sorted(flips)
    assert method.evaluate(state, task, ctx)["eval/accuracy"] > 0.6
    plan = method.precision(state.model)
    assert plan.body.latent is None  # no latent weight, one average
    assert plan.body.update_bits() == (1 + 32 + 32, 1 + 32)
