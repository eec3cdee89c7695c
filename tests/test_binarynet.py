"""BinaryNet: the derivative of its sign, its weights and activations in training, what it shares with BinaryConnect."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests import lowbit_helpers as h
from tests.binary_helpers import begin
from tracking.errors import UserError
from workbench.methods.lowbit import _binary as b
from workbench.methods.lowbit.binaryconnect import BinaryConnect
from workbench.methods.lowbit.binarynet import BinaryNetTraining

# --- the mathematics ---------------------------------------------------------------------------------------


def test_the_hard_tanh_window_is_the_derivative_of_the_clip():
    x = torch.tensor([-2.0, -1.0, -0.4, 0.0, 0.7, 1.0, 1.3], dtype=torch.float64, requires_grad=True)
    z = torch.tensor([0.5, -1.0, 2.0, 3.0, -0.7, 1.0, 9.0], dtype=torch.float64)
    y = b.sign_ste(x)
    assert y.tolist() == [-1, -1, -1, 1, 1, 1, 1]
    y.backward(z)
    # by hand: 1 up to and with |x| = 1 (paper, eq. 4), else 0
    assert x.grad.tolist() == [0, -1, 2, 3, -0.7, 1, 0]
    inside = np.array([-0.4, 0.0, 0.7])
    finite = (np.clip(inside + 1e-6, -1, 1) - np.clip(inside - 1e-6, -1, 1)) / 2e-6
    assert b.WINDOWS["hard_tanh"](torch.tensor(inside)).numpy() == pytest.approx(finite, abs=1e-9)


def test_a_step_by_hand():
    """Forward at signs, straight-through gradients, update and clip of the latent weights, in NumPy."""
    rng = np.random.default_rng(0)
    _method, state, _task, _ctx = begin(BinaryNetTraining, base="sgd", momentum=0.0, lr=0.3)
    inner, _last = (m for m in list(state.model)[3:] if isinstance(m, nn.Linear))
    latent = state.optimizer.state[inner.weight]["latent"].double().numpy().copy()
    x = np.where(rng.normal(size=(5, 16)) >= 0, 1.0, -1.0)
    seen = torch.tensor(x, dtype=torch.float32)
    inner(seen).square().sum().backward()
    state.optimizer.step()
    wb = np.where(latent >= 0, 1.0, -1.0)
    grad = 2 * (x @ wb.T).T @ x
    expected = np.clip(latent - 0.3 * grad, -1, 1)
    # float32 sums of integers below 2^24 are exact; one rounding of the product with 0.3 and one of the difference remain
    np.testing.assert_allclose(state.optimizer.state[inner.weight]["latent"].numpy(), expected, atol=1e-5)
    assert torch.equal(inner.weight, torch.where(torch.from_numpy(expected) >= 0, 1.0, -1.0).float())


# --- the method --------------------------------------------------------------------------------------------


def test_its_inner_weights_and_its_activations_are_signs_throughout():
    method, state, task, ctx = begin(BinaryNetTraining)
    inner = b.inner_layers(state.model)
    ends = [m for m in state.model if isinstance(m, nn.Linear) and m not in inner]
    assert [len(inner), len(ends)] == [1, 2]
    assert isinstance(state.optimizer, BinaryConnect)
    seen: list[torch.Tensor] = []
    for m in state.model.modules():
        if isinstance(m, b.BinaryActivation):
            m.register_forward_hook(lambda m, x, y: seen.append(y.detach()))
    before = inner[0].weight.detach().clone()
    h.finish(method, state, task, ctx)
    figures = method.evaluate(state, task, ctx)
    assert len(seen) > 100
    assert all(bool((y.abs() == 1).all()) for y in [*seen, inner[0].weight.detach()])
    assert not torch.equal(inner[0].weight, before)
    assert all(m.weight.detach().abs().unique().numel() > 10 for m in ends)
    assert figures["eval/accuracy"] > 0.6  # of four classes, far above chance


def test_a_network_without_inner_layers_is_refused():
    with pytest.raises(UserError, match="no layer between its first and its last"):
        h.begin(BinaryNetTraining)


def test_modelled_formats_follow_the_method():
    method, state, _task, _ctx = begin(BinaryNetTraining)
    plan = method.precision(state.model)
    assert (plan.body.weights, plan.body.activations, plan.body.latent, plan.ends.weights) == ("bool", "bool", "fp32", "fp32")
