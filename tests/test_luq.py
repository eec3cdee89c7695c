"""LUQ: unbiasedness, levels, NumPy twins, the layer wrapper in a plain loop and the method."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests import lowbit_helpers as h
from workbench.methods.lowbit._activations import FourBitActivation
from workbench.methods.lowbit._levels import LEVELS, nearest_level, sawb_scale
from workbench.methods.lowbit.luq import LUQGradient, LUQTraining, QuantisedLayer, luq, quantise_layers, quantised_modules
from workbench.state import restore, snapshot


def twin(G: np.ndarray, draws: list[np.ndarray]) -> np.ndarray:
    """The rule in words, one entry at a time, float64; ``draws`` are uniform numbers, an array a sample."""
    al, out = np.abs(G).max() / 2**7, np.zeros(G.size)
    for i, g in enumerate(G.flat):
        for u in draws:
            if abs(g) < al:
                q = 1.0 if u.flat[i] < abs(g) / al else 0.0
            else:
                k = 0
                while 2 ** (k + 1) * al <= abs(g):
                    k += 1
                q = 2.0 ** (k + 1) if u.flat[i] < abs(g) / (al * 2**k) - 1 else 2.0**k
            out[i] += np.sign(g) * al * q / len(draws)
    return out.reshape(G.shape)


def gradient(size: int = 2000, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Magnitudes over six decades, as neural gradients have."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, generator=generator, dtype=dtype) * 10 ** (3 * torch.randn(size, generator=generator, dtype=dtype)) / 1e3


@pytest.mark.parametrize("samples", [1, 3])
def test_luq_equals_the_numpy_twin_for_the_same_draws(samples):
    G = gradient(300).reshape(20, 15) * -1
    got = luq(G, samples, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    draws = [torch.rand(G.shape, generator=generator, dtype=G.dtype).numpy() for _ in range(samples)]
    np.testing.assert_allclose(got, twin(G.numpy(), draws), rtol=1e-12)


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30), seed=st.integers(0, 100))
def test_values_are_signed_powers_of_two_and_the_largest_is_kept(values, seed):
    G = torch.tensor(values, dtype=torch.float64)
    q = luq(G, generator=torch.Generator().manual_seed(seed))
    top = G.abs().max()
    if top == 0:
        assert not q.any()
        return
    grid = torch.cat([torch.zeros(1), top / 2 ** torch.arange(8.0)]).double()
    assert ((q.abs()[:, None] - grid).abs() <= 1e-12 * top).any(1).all()
    assert torch.equal(q[G.abs() == top], G[G.abs() == top])
    assert (q * G >= 0).all()


def test_luq_is_unbiased():
    """Mean of n draws: each entry within 5.5 standard errors, known in closed form; 2000 entries, so P(false alarm) < 1e-4."""
    G, n, generator = gradient(), 4000, torch.Generator().manual_seed(1)
    mean = sum(luq(G, generator=generator) for _ in range(n)) / n
    al = G.abs().max() / 128
    low = torch.where(G.abs() < al, 0.0, al * 2 ** torch.floor(torch.log2(G.abs() / al)))
    step = torch.where(G.abs() < al, al, low)
    p = (G.abs() - low) / step
    error = 5.5 * step * (p * (1 - p) / n).sqrt()
    # entries of tiny p are Poisson, not normal, in n draws: nearly all give 0 up; allow a few ups of size step/n
    assert ((mean - G).abs() <= error + 8 * step / n).all()
    # the test could fail: rounding up half of the time regardless is found out
    biased = torch.sign(G) * (low + step / 2)
    assert ((biased - G).abs() > error + 8 * step / n).float().mean() > 0.5


def test_averaging_r_samples_divides_the_variance_by_r():
    G, generator = torch.linspace(0.01, 1, 500, dtype=torch.float64), torch.Generator().manual_seed(0)
    variance = {r: torch.stack([luq(G, r, generator) for _ in range(800)]).var(0).sum() for r in (1, 4)}
    # a variance estimated from 800 draws has relative error about sqrt(2/800) = 5 % an entry, and 500 entries average it
    assert variance[1] / variance[4] == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("G", [torch.zeros(5), torch.zeros(0), torch.full((3,), -2.0), torch.tensor([1e-44, 0.0])])
def test_degenerate_gradients(G):
    q = luq(G, generator=torch.Generator().manual_seed(0))
    assert q.shape == G.shape
    assert torch.isfinite(q).all()
    if G.numel() and G.abs().max() > 1e-40:
        assert torch.equal(q, G)


def test_zero_samples_are_refused():
    with pytest.raises(ValueError, match="samples"):
        luq(torch.ones(2), samples=0)


def test_gradient_function_is_the_identity_forward_and_luq_backward():
    x = gradient(50).requires_grad_()
    y = LUQGradient.apply(x, 2, torch.Generator().manual_seed(3))
    assert torch.equal(y, x)
    upstream = gradient(50).flip(0)
    y.backward(upstream)
    assert torch.equal(x.grad, luq(upstream, 2, torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("layer", [nn.Linear(6, 5), nn.Conv2d(6, 5, 3, padding=1)])
@pytest.mark.parametrize("weights", ["2bit", "4bit", "4bit16"])
def test_wrapped_layer_equals_the_same_by_hand(layer, weights):
    layer, generator = copy.deepcopy(layer).double(), torch.Generator().manual_seed(0)
    shape = (7, 6) if isinstance(layer, nn.Linear) else (7, 6, 4, 4)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    wrapped = QuantisedLayer(copy.deepcopy(layer), weights, True, 1, torch.Generator().manual_seed(9)).double()
    y = wrapped(x)
    upstream = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    y.backward(upstream)

    w, q = layer.weight.detach().clone(), FourBitActivation().double()(x.detach()).requires_grad_()
    s = sawb_scale(w, weights)
    with torch.no_grad():
        layer.weight.copy_(nearest_level(w / s, torch.tensor(LEVELS[weights], dtype=w.dtype)) * s)
    layer(q).backward(luq(upstream, 1, torch.Generator().manual_seed(9)))
    torch.testing.assert_close(y, layer(q))
    torch.testing.assert_close(wrapped.layer.weight.grad, layer.weight.grad)
    torch.testing.assert_close(wrapped.layer.bias.grad, layer.bias.grad)
    torch.testing.assert_close(x.grad, q.grad)
    assert torch.equal(wrapped.layer.weight, w)


def test_converter_wraps_the_chosen_layers_and_keeps_the_parameters():
    for layers, count in (("all", 2), ("inner", 0)):
        model = h.network(0)
        parameters = list(model.parameters())
        assert quantise_layers(model, layers=layers) is model
        assert len(quantised_modules(model)) == count
        assert {id(p) for p in parameters} == {id(p) for p in model.parameters()}
    single = quantise_layers(nn.Linear(2, 3))
    assert isinstance(single, QuantisedLayer)
    with pytest.raises(ValueError, match="allowed"):
        quantise_layers(h.network(0), "8bit")


def test_any_loop_trains_a_converted_model():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator)
    y = (x @ torch.randn(6, 3, generator=generator)).argmax(1)
    model = quantise_layers(h.network(0), "4bit", generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(120):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# --- the method -------------------------------------------------------------------------------------------


def begin():
    return h.begin(LUQTraining, layers="all", report_every=2)


def test_interrupted_and_restored_it_goes_on_bit_for_bit():
    method, state, task, ctx = begin()
    for _ in range(3):
        method.step(state, task, ctx)
    tree = copy.deepcopy(snapshot(state))
    ahead = [method.step(state, task, ctx) for _ in range(4)]
    method, fresh, task, ctx = begin()
    fresh.rounding.manual_seed(77)
    restore(fresh, tree)
    assert [method.step(fresh, task, ctx) for _ in range(4)] == ahead
    assert all(torch.equal(a, b) for a, b in zip(state.model.state_dict().values(), fresh.model.state_dict().values(), strict=True))


def test_deployed_model_holds_levels_and_computes_what_was_trained():
    method, state, task, ctx = begin()
    for _ in range(6):
        method.step(state, task, ctx)
    deployed = method.deploy(state).eval()
    for m in quantised_modules(deployed):
        assert len(m.layer.weight.unique()) <= 17
    assert torch.equal(deployed(task.test_x), state.model.eval()(task.test_x))
    metrics = method.evaluate(state, task, ctx)
    assert not any("latent" in name for name in metrics)


@pytest.mark.parametrize("params", [{}, {"weights": "2bit"}, {"samples": 4}, {"samples": 0}, {"inputs": False}])
def test_method_learns(params):
    _, _, final, _ = h.live(LUQTraining, **{"epochs": 12, "lr": 0.02, "layers": "all"} | params)
    assert final["eval/accuracy"] > 0.8  # chance is 0.25
    assert final["memory/bits_per_weight"] < 32
