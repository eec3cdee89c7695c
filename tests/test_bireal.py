"""Bi-Real Net: ApproxSign and its derivative, magnitude-aware weights, real values beside the binary layers of a residual network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests import lowbit_helpers as h
from tests.binary_helpers import begin
from workbench.datasets import models
from workbench.method import Context
from workbench.methods.lowbit import _binary as b
from workbench.methods.lowbit.bireal import BiRealBlock, BiRealTraining, magnitude_aware_sign, real_shortcuts
from workbench.params import parse


def approx_sign(x: np.ndarray) -> np.ndarray:
    """The paper's F (eq. 5): piecewise quadratic, -1 below -1 and 1 above 1."""
    return np.where(x < -1, -1, np.where(x < 0, 2 * x + x**2, np.where(x < 1, 2 * x - x**2, 1)))


def test_the_window_is_the_derivative_of_approx_sign():
    x = np.array([-1.7, -1.0, -0.9, -0.3, 0.0, 0.2, 0.99, 1.0, 1.4])
    finite = (approx_sign(x + 1e-7) - approx_sign(x - 1e-7)) / 2e-7
    ours = b.WINDOWS["approx_sign"](torch.tensor(x)).numpy()
    assert ours == pytest.approx(finite, abs=1e-6)  # the second derivative, 2, times the step
    p = torch.tensor(x, requires_grad=True)
    b.sign_ste(p, "approx_sign").backward(torch.full((9,), 3.0, dtype=torch.float64))
    assert p.grad.numpy() == pytest.approx(3 * ours)


def test_magnitude_aware_weights_and_their_gradient_by_hand():
    rng = np.random.default_rng(0)
    w, g = rng.normal(size=(3, 2, 3, 3)), rng.normal(size=(3, 2, 3, 3))
    p = torch.tensor(w, requires_grad=True)
    out = magnitude_aware_sign(p)
    out.backward(torch.tensor(g))
    alpha = np.abs(w).mean(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(out.detach().numpy(), alpha * np.where(w < 0, -1, 1), rtol=1e-13)
    np.testing.assert_allclose(p.grad.numpy(), g * alpha * (np.abs(w) <= 1), rtol=1e-13)


@pytest.mark.parametrize("magnitude_aware", [True, False])
def test_in_a_plain_network_it_learns_with_signs(magnitude_aware):
    method, state, task, ctx = begin(BiRealTraining, magnitude_aware=magnitude_aware)
    h.finish(method, state, task, ctx)
    twin = method.deploy(state)
    layer = next(m for m in twin.modules() if isinstance(m, b.BinaryLinear))
    assert bool((layer.weight.abs() == 1).all())
    assert magnitude_aware or bool((layer.scale == 1).all())
    x = task.test_batch(0, 50)[0]
    assert torch.equal(twin.eval()(x), state.model.eval()(x))
    assert method.evaluate(state, task, ctx)["eval/accuracy"] > 0.6


def residual(name: str) -> tuple[BiRealTraining, nn.Module]:
    source = models.build(name, (3, 16, 16), 10, 0.125, torch.Generator().manual_seed(0))
    method = BiRealTraining(parse(BiRealTraining.Params, {}, "bireal"))
    return method, method.prepare(source, Context(torch.device("cpu"), 0))


@pytest.mark.parametrize(("name", "blocks", "shortcuts"), [("resnet18", 8, 3), ("resnet20", 9, 0)])
def test_in_a_residual_network_each_binary_layer_has_a_real_shortcut(name, blocks, shortcuts):
    method, model = residual(name)
    found = [m for m in model if isinstance(m, BiRealBlock)]
    assert len(found) == blocks
    assert sum(isinstance(m, b.BinaryConv2d) for m in model.modules()) == 2 * blocks
    assert len(real_shortcuts(model)) == shortcuts
    assert all(type(m) is nn.Conv2d for m in real_shortcuts(model).values())
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())
    plan = method.precision(model)
    assert [plan.of(n).weights for n in real_shortcuts(model)] == ["fp32"] * shortcuts
    assert plan.of("3.conv1").weights == "bool"
    # with the binary layers silenced a block of equal sizes hands its input on, real-valued
    block = found[0].eval()
    for bn in (block.bn1, block.bn2):
        nn.init.zeros_(bn.weight)
    x = torch.randn(2, block.conv1.in_channels, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(block(x), x)


def test_a_block_is_two_stages_of_sign_convolution_norm_and_shortcut():
    _, model = residual("resnet20")
    block = next(m for m in model if isinstance(m, BiRealBlock)).eval()
    x = torch.randn(2, block.conv1.in_channels, 8, 8, generator=torch.Generator().manual_seed(1))
    y = x
    for conv, bn in ((block.conv1, block.bn1), (block.conv2, block.bn2)):
        w = conv.weight.abs().mean((1, 2, 3), keepdim=True) * torch.where(conv.weight < 0, -1.0, 1.0)
        y = bn(nn.functional.conv2d(torch.where(y < 0, -1.0, 1.0), w, padding=1)) + y
    torch.testing.assert_close(block(x), y, rtol=1e-5, atol=1e-5)
