"""The generated toy tasks: their data against other implementations, and the papers' known figures."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.test_tasks import context, make
from workbench.datasets.logistic2d import Logistic2d, paper_scale
from workbench.datasets.two_moons import TwoMoons, moons

# --- two moons ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [4, 7, 200])
def test_noise_free_moons_are_those_of_sklearn(n):
    datasets = pytest.importorskip("sklearn.datasets")
    ours, theirs = moons(n), datasets.make_moons(n, shuffle=False, noise=None)
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-12)
    assert np.array_equal(ours[1], theirs[1])


def test_two_moons_are_noisy_standardised_and_independent():
    task = make(TwoMoons)
    assert task.train_x.shape == (2000, 2)
    assert torch.bincount(task.train_y).tolist() == [1000, 1000]
    assert task.test_y.shape == (200,)
    # standardised in float64, then rounded to float32
    torch.testing.assert_close(task.train_x.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(task.train_x.std(0, unbiased=False), torch.ones(2), atol=1e-6, rtol=0)
    assert torch.equal(task.train_x, make(TwoMoons, ctx=context(seed=5)).train_x)  # the run's seed has no say
    assert not torch.equal(task.train_x, make(TwoMoons, data_seed=1).train_x)
    # noise of train and test of one size differs, and has the scale asked for
    equal = TwoMoons("", TwoMoons.Params(train_size=4000, test_size=4000))
    points = {}
    for split in ("train", "test"):
        x, y = equal._draw(4000, split)
        clean, labels = moons(4000)
        nearest = np.array([np.linalg.norm(clean[labels == k] - p, axis=1).min() for p, k in zip(x, y, strict=True)])
        # distance from a smooth curve is the normal component alone: half-normal with mean 0.1 * sqrt(2 / pi); the curve's bend
        # and ends change it by a few hundredths of itself, 4,000 samples by 0.012
        assert nearest.mean() == pytest.approx(0.1 * math.sqrt(2 / math.pi), rel=0.06)
        points[split] = x
    assert not np.isin(points["train"], points["test"]).any()


def test_two_moons_network_has_nine_weights():
    task = make(TwoMoons)
    model = task.build_model(context())
    assert [tuple(p.shape) for p in model.parameters()] == [(3, 2), (1, 3)]
    assert [(m.momentum, m.eps, m.affine) for m in model if hasattr(m, "eps")] == [(0.15, 1e-4, False)] * 2


def test_best_of_all_512_binary_networks():
    """The optimum that an exhaustive search finds: mean test loss 0.425 (the paper's 2.1e-3 after division by 200).

    Batch norm uses the statistics of the whole training set at those very weights, as re-estimation would leave them.
    """
    task = make(TwoMoons)
    (x, _), (test_x, test_y) = task.batch(torch.arange(2000)), task.test_batch(0, 200)
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=9)))
    hidden, last = corners[:, :6].view(512, 3, 2), corners[:, 6:, None]

    def standardise(train: torch.Tensor, test: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, var = train.mean(1, keepdim=True), train.var(1, keepdim=True, unbiased=False)
        return (train - mean) / (var + 1e-4).sqrt(), (test - mean) / (var + 1e-4).sqrt()

    first, first_test = standardise(x @ hidden.mT, test_x @ hidden.mT)
    _, logits = standardise(first.relu() @ last, first_test.relu() @ last)
    losses = F.binary_cross_entropy_with_logits(logits[..., 0], test_y.float().expand(512, -1), reduction="none").mean(1)
    # ten draws of the data give 0.423 with a standard deviation of 0.003
    assert losses.min().item() == pytest.approx(0.425, abs=0.01)
    assert losses.min() * 1000 / 200 == pytest.approx(2.1, abs=0.05)

    model = task.build_model(context())
    for i in losses.argsort()[[0, 1, 100, 511]].tolist():
        with torch.no_grad():
            for parameter, values in zip(model.parameters(), (hidden[i], last[i].T), strict=True):
                parameter.copy_(values)
            for norm in (model[1], model[4]):
                norm.reset_running_stats()
                norm.momentum = None
            model.train()(x)
            # running variances have divisor n - 1: relative difference 1 / 2000 in each of two layers
            assert task.loss(model.eval()(test_x), test_y).item() == pytest.approx(losses[i].item(), rel=1e-3)


# --- logistic regression ------------------------------------------------------------------------------------


def test_logistic_data_follow_the_model():
    task = make(Logistic2d, dim=10, train_size=20_000)
    x, y, w = task.train_x.double().numpy(), task.train_y.numpy(), task.w_star
    assert set(np.abs(w)) == {1.0}
    assert (np.abs(x) <= 1).all()
    assert x.var() == pytest.approx(1 / 3, abs=5e-3)  # uniform; 200,000 draws, standard error 7e-4
    # maximum likelihood by Newton's method finds w* to within its standard errors
    fit = np.zeros(10)
    for _ in range(20):
        p = 1 / (1 + np.exp(-x @ fit))
        information = (x * (p * (1 - p))[:, None]).T @ x
        fit += np.linalg.solve(information, x.T @ (y - p))
    z = (fit - w) / np.sqrt(np.diag(np.linalg.inv(information)))
    assert np.abs(z).max() < 4.5  # ten normal deviates: 7e-5 by chance, and the seed is fixed
    assert (z ** 2).sum() < 40  # chi-square, 10 degrees of freedom: 2e-5


def test_logistic_options():
    assert make(Logistic2d, w_scale=0.8).w_star.tolist() in [[a * 0.8, b * 0.8] for a in (1, -1) for b in (1, -1)]
    base, other = make(Logistic2d), make(Logistic2d, data_seed=1)
    assert base.train_x.shape == (6000, 2)
    assert base.test_x.shape == (1000, 2)
    assert not torch.equal(base.train_x, other.train_x)
    longer = make(Logistic2d, train_size=7000)
    assert torch.equal(longer.test_x, base.test_x)  # the splits have seeds of their own
    assert torch.equal(longer.test_y, base.test_y)
    model = base.build_model(context())
    assert [tuple(p.shape) for p in model.parameters()] == [(1, 2)]


def test_paper_scale_is_the_sum_over_six_thousand():
    task = make(Logistic2d, dim=10)
    x, y = task.batch(torch.arange(1000))
    out = x @ torch.from_numpy(task.w_star).float()[:, None]
    total = F.binary_cross_entropy_with_logits(out[:, 0], y.float(), reduction="sum").item() / 6000
    assert paper_scale(task.loss(out, y).item(), 1000) == pytest.approx(total, rel=1e-5)
    # the paper's curves for batches of 1,000 begin near 0.2 and end near 0.08
    assert 0.07 < total < 0.09
