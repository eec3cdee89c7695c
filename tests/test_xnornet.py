"""XNOR-Net: its scale is the best one, its gradient the paper's, and what is deployed computes the same."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from tests import lowbit_helpers as h
from tests.binary_helpers import begin
from tracking.errors import UserError
from workbench.methods.lowbit import _binary as b
from workbench.methods.lowbit.xnornet import XNORNetTraining, filter_scale, xnor_weight


def test_scale_and_signs_are_the_nearest_binary_filter_by_brute_force():
    """Over all 2^6 sign patterns and a fine grid of scales, none is nearer to W than alpha sign(W) with alpha = mean |W|."""
    rng = np.random.default_rng(0)
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=6)))
    grid = np.linspace(0, 3, 3001)
    for w in rng.normal(size=(5, 6)):
        errors = ((w - grid[:, None, None] * signs) ** 2).sum(-1)
        best = np.unravel_index(errors.argmin(), errors.shape)
        ours = xnor_weight(torch.tensor(w)[None])[0].numpy()
        assert np.array_equal(np.sign(ours), signs[best[1]])
        assert filter_scale(torch.tensor(w)[None]).item() == pytest.approx(grid[best[0]], abs=1e-3)  # a grid step
        assert ((w - ours) ** 2).sum() <= errors.min() + 1e-12


@pytest.mark.parametrize("shape", [(4, 7), (3, 2, 3, 3)])
def test_the_gradient_is_the_papers(shape):
    rng = np.random.default_rng(1)
    w, g = rng.normal(size=shape), rng.normal(size=shape)
    p = torch.tensor(w, requires_grad=True)
    out = xnor_weight(p)
    out.backward(torch.tensor(g))
    n = int(np.prod(shape[1:]))
    axes = tuple(range(1, len(shape)))
    alpha = np.abs(w).mean(axis=axes, keepdims=True)
    np.testing.assert_allclose(out.detach().numpy(), alpha * np.where(w < 0, -1, 1), rtol=1e-13)
    np.testing.assert_allclose(p.grad.numpy(), g * (1 / n + alpha * (np.abs(w) <= 1)), rtol=1e-13)


def test_deployed_are_signs_and_one_scale_a_filter_and_nothing_changes():
    method, state, task, ctx = begin(XNORNetTraining)
    h.finish(method, state, task, ctx)
    twin = method.deploy(state)
    layers = [m for m in twin.modules() if isinstance(m, b.BinaryLinear)]
    assert len(layers) == 1
    assert bool((layers[0].weight.abs() == 1).all())
    assert layers[0].scale.shape == (16, 1)
    x = task.test_batch(0, 50)[0]
    assert torch.equal(twin.eval()(x), state.model.eval()(x))
    figures = method.evaluate(state, task, ctx)
    assert figures["eval/accuracy"] > 0.6
    # 256 signs and 16 scales against the two real layers of 128 and 64 weights, and norms' buffers
    dense = 4 * sum(t.numel() for t in [*twin.parameters(), *twin.buffers()])
    assert figures["memory/model_bytes"] < dense - 256 * 3


def test_a_layer_over_a_convolution_computes_the_convolution():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        source = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False)
        x = torch.randn(2, 4, 9, 9)
    made = b.binary_layer(source, xnor_weight)
    assert made.weight is source.weight
    expected = nn.functional.conv2d(x, xnor_weight(source.weight), stride=2, padding=1, groups=2)
    assert torch.equal(made(x), expected)
    made.fold()
    torch.testing.assert_close(made(x), expected, rtol=1e-6, atol=1e-6)


def test_other_layers_are_refused():
    for layer in (nn.Conv1d(2, 2, 3), nn.Conv2d(2, 2, 3, padding_mode="reflect")):
        with pytest.raises(UserError, match="cannot be made binary"):
            b.binary_layer(layer, xnor_weight)


def test_making_layers_draws_nothing():
    before = torch.get_rng_state()
    b.binary_layer(nn.utils.skip_init(nn.Linear, 3, 3), xnor_weight)
    assert torch.equal(torch.get_rng_state(), before)
