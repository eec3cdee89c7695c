"""BinaryConnect against a float64 twin, closed forms of its probabilities, and what any optimiser must keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import lowbit_helpers as h
from workbench.methods.lowbit.binaryconnect import BinaryConnect, BinaryConnectTraining, stochastic_level


def make(**options):
    return lambda quantised, plain: BinaryConnect(h.groups(quantised, plain), lr=0.02, **options)


@pytest.mark.parametrize("dtype", h.TOLERANCE)
@pytest.mark.parametrize(("weights", "ste"), [("binary", "identity"), ("binary", "hard_tanh"), ("2bit", "identity")])
@pytest.mark.parametrize("base", ["sgd", "adam"])
def test_equals_its_twin(base, weights, ste, dtype):
    problem = h.Quadratic()
    problem.c *= 3  # the minimum is beyond the outer levels, so the path reaches the clamp
    lr = 0.06 if base == "sgd" else 0.15
    p = problem.parameter(dtype)
    optimizer = BinaryConnect([p], lr=lr, base=base, weights=weights, ste=ste, weight_decay=0.01)
    top = 1.0 if weights == "binary" else 2.0

    def quantise(w):
        return np.where(w < 0, -1.0, 1.0) if weights == "binary" else np.clip(np.floor(w + 0.5), -2, 2)

    w, twin, clamped = problem.start.copy(), h.Descent(base, lr, weight_decay=0.01), 0
    w = np.clip(w, -top, top) if ste == "identity" else w
    for k in range(50):
        # the parameter holds W_b before the first forward pass and ever after
        assert np.array_equal(h.flat(p), quantise(w))
        g = problem.gradient(quantise(w), k)
        problem.step(p, optimizer, k)
        w = w + twin.move(w, g if ste == "identity" else g * (np.abs(w) <= top))
        clamped += np.sum(np.abs(w) > top)
        w = np.clip(w, -top, top) if ste == "identity" else w
        np.testing.assert_allclose(h.flat(optimizer.latent(p)), w, rtol=0, atol=h.TOLERANCE[dtype])
    assert clamped > 0
    assert np.array_equal(h.flat(optimizer.deployed()[p]), quantise(w))


def test_sawb_is_not_clamped_and_scales_by_layer():
    problem = h.Quadratic()
    p = problem.parameter(torch.float64)
    optimizer = BinaryConnect([p], lr=0.06, base="sgd", scale="sawb")
    w, twin = problem.start.copy(), h.Descent("sgd", 0.06)
    for k in range(40):
        wb = np.where(w < 0, -1, 1) * np.abs(w).mean()  # SAWB of one bit is mean |w|
        np.testing.assert_allclose(h.flat(p), wb, rtol=0, atol=1e-11)
        problem.step(p, optimizer, k)
        w = w + twin.move(w, problem.gradient(wb, k))
    np.testing.assert_allclose(h.flat(optimizer.latent(p)), w, rtol=0, atol=1e-11)


# --- stochastic mode --------------------------------------------------------------------------------------


def test_frequency_is_the_hard_sigmoid():
    n = 40_000
    w = torch.tensor([-0.9, -0.5, 0.0, 0.3, 0.8]).repeat(n, 1)
    drawn = stochastic_level(w, torch.tensor([-1.0, 1.0]), torch.Generator().manual_seed(1))
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    expected = (w[0] + 1) / 2
    # binomial standard deviation at most 0.5 / sqrt(n) = 0.0025; five of them fail once in 2e6 seeds
    assert ((drawn > 0).double().mean(0) - expected).abs().max() < 5 * 0.5 / n**0.5


def test_outer_levels_are_certain():
    w = torch.tensor([-7.0, -1.0, 1.0, 7.0]).repeat(100_000, 1)
    drawn = stochastic_level(w, torch.tensor([-1.0, 1.0]), torch.Generator().manual_seed(2))
    assert torch.equal(drawn, torch.sign(w))


@settings(max_examples=30, deadline=None)
@given(st.floats(-2, 2), st.integers(0, 1000))
def test_rounding_is_unbiased_between_neighbours(w, seed):
    n = 20_000
    levels = torch.arange(-2.0, 3.0)
    drawn = stochastic_level(torch.full((n,), w), levels, torch.Generator().manual_seed(seed))
    assert (drawn - w).abs().max() <= 1  # only the two neighbours
    # each draw has a standard deviation of at most 0.5; six of the mean's: one failure in 5e8 draws of (w, seed)
    assert abs(drawn.double().mean().item() - w) < 6 * 0.5 / n**0.5


def test_stochastic_twin_with_the_same_draws():
    problem = h.Quadratic()
    p = problem.parameter(torch.float64)
    optimizer = BinaryConnect([p], lr=0.06, base="sgd", mode="stochastic", generator=torch.Generator().manual_seed(3))
    draws = torch.Generator().manual_seed(3)
    w, twin = np.clip(problem.start, -1, 1), h.Descent("sgd", 0.06)
    for k in range(40):
        u = torch.rand(3, 4, generator=draws, dtype=torch.float64).numpy().reshape(-1)
        wb = np.where(u < np.clip((w + 1) / 2, 0, 1), 1.0, -1.0)
        assert np.array_equal(h.flat(p), wb)
        problem.step(p, optimizer, k)
        w = np.clip(w + twin.move(w, problem.gradient(wb, k)), -1, 1)
    np.testing.assert_allclose(h.flat(optimizer.latent(p)), w, rtol=0, atol=1e-11)
    assert np.array_equal(h.flat(optimizer.deployed()[p]), np.where(w < 0, -1, 1))


def test_stochastic_sawb_draws_scaled_levels():
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(50, 40, generator=generator))
    optimizer = BinaryConnect([p], lr=0.1, weights="ternary", scale="sawb", mode="stochastic", generator=generator)
    w = optimizer.latent(p)
    s = 2.587 * w.square().mean().sqrt() - 1.693 * w.abs().mean()
    torch.testing.assert_close(p.detach().unique(), torch.stack([-s, 0 * s, s]))


# --- what any optimiser must keep -------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"base": "sgd", "ste": "hard_tanh"}, {"weights": "4bit", "scale": "sawb"}])
def test_training_goes_on_after_a_save(options):
    h.check_round_trip(make(**options))


def test_stochastic_training_goes_on_after_a_save():
    a, b = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    generators = iter([a, b])
    h.check_round_trip(lambda *groups: make(mode="stochastic", generator=next(generators))(*groups), a, b)


def test_plain_groups_scheduler_and_state():
    h.check_plain_groups(BinaryConnect)
    h.check_scheduler(make())
    h.check_state(make(), {"latent", "step", "exp_avg", "exp_avg_sq"}, {"step", "exp_avg", "exp_avg_sq"})
    h.check_state(make(base="sgd"), {"latent", "momentum_buffer"}, {"momentum_buffer"})
    h.check_state(make(base="sgd", momentum=0.0), {"latent"}, set())


def test_a_closure_is_called_and_its_loss_returned():
    problem = h.Quadratic()
    p = problem.parameter(torch.float64)
    optimizer = BinaryConnect([p], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = problem.loss(p, 0)
        loss.backward()
        return loss

    expected = problem.loss(p, 0).item()
    assert optimizer.step(closure).item() == expected


@pytest.mark.parametrize(("options", "words"), [
    ({"mode": "random"}, "mode = 'random'; allowed"), ({"ste": "tanh"}, "ste = 'tanh'; allowed"),
    ({"mode": "stochastic"}, "needs generator="), ({"weights": "3bit"}, "weights = '3bit'; allowed")])
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        BinaryConnect([torch.nn.Parameter(torch.ones(2))], lr=0.1, **options)


# --- the method -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["deterministic", "stochastic"])
def test_method_learns_with_weights_of_one_bit(mode):
    method, state, metrics, _ = h.live(BinaryConnectTraining, mode=mode, epochs=25, lr=0.02)
    assert metrics["eval/accuracy"] > 0.7  # chance is 0.25
    assert all(set(p.unique().tolist()) == {-1.0, 1.0} for p in method.deploy(state).parameters())
    assert (state.rounding is None) == (mode == "deterministic")
    assert metrics["memory/bits_per_weight"] < 32


def test_no_metrics_at_weights_that_never_run():
    _, _, metrics, _ = h.live(BinaryConnectTraining, epochs=1, bn_batches=2)
    assert not [name for name in metrics if name.endswith("_latent")]
    assert {"eval/accuracy", "eval/loss", "eval/accuracy_bn"} <= metrics.keys()


def test_network_runs_at_quantised_weights_from_the_first_pass():
    model = h.network(0)
    optimizer = make()([model[0].weight, model[3].weight], [])
    assert set(model[0].weight.unique().tolist()) == {-1.0, 1.0}
    seen = []
    model[0].register_forward_pre_hook(lambda m, _: seen.append(bool((m.weight.abs() == 1).all())))
    h.train(model, optimizer, range(5))
    assert seen == [True] * 5
