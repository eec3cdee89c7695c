"""Quantised activations against closed forms and NumPy twins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tracking.errors import UserError
from workbench.methods.lowbit._activations import (
    BinaryActivation,
    FourBitActivation,
    activation_clip,
    quantise_activations,
    straight_through,
)


def twin(x: np.ndarray, clip: float, signed: bool) -> np.ndarray:
    """Round to 16 values, in float64."""
    step = 2 * clip / 15 if signed else clip / 15
    return np.clip(np.round(x / step), -8 if signed else 0, 7 if signed else 15) * step


def clip_of(x: np.ndarray) -> float:
    clip = 12.1 * np.sqrt((x**2).mean()) - 12.2 * np.abs(x).mean()
    return min(clip, np.abs(x).max()) if clip > 0 else np.abs(x).max()


def test_binary_is_the_sign_with_the_derivative_of_tanh():
    x = torch.tensor([-2.0, -0.0, 0.0, 0.3, 5.0], dtype=torch.float64, requires_grad=True)
    y = BinaryActivation()(x)
    assert y.tolist() == [-1, 1, 1, 1, 1]
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    (y * weights).sum().backward()
    other = x.detach().clone().requires_grad_()
    (other.tanh() * weights).sum().backward()
    torch.testing.assert_close(x.grad, other.grad)


@pytest.mark.parametrize("signed", [False, True])
def test_four_bits_equal_the_numpy_twin_in_training(signed):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 9))
    x = x if signed else np.maximum(x, 0)
    t = torch.tensor(x, requires_grad=True)
    layer = FourBitActivation().double()
    y = layer(t)
    np.testing.assert_allclose(y.detach(), twin(x, clip_of(x), signed), rtol=1e-12, atol=1e-12)
    assert layer.signed.item() == signed
    assert 14 <= len(y.unique()) <= 16
    upstream = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(0))
    y.backward(upstream)
    assert torch.equal(t.grad, upstream)  # straight through, at the clipped ends too


def test_range_becomes_signed_once_and_for_all():
    layer, positive = FourBitActivation(), torch.linspace(0, 1, 100)
    layer(positive)
    assert not layer.signed
    layer(positive - 0.5)
    assert layer.signed
    layer(positive)
    assert layer.signed
    assert layer.state_dict().keys() == {"clip", "signed"}


def test_evaluation_uses_the_running_clip_and_no_other_sample():
    generator = torch.Generator().manual_seed(0)
    layer, running = FourBitActivation(), None
    for k in range(5):
        x = torch.rand(50, 4, generator=generator) * (k + 1)
        layer(x)
        clip = activation_clip(x).item()
        running = clip if running is None else 0.9 * running + 0.1 * clip
    assert layer.clip.item() == pytest.approx(running, rel=1e-6)
    layer.eval()
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    x = torch.randn(20, 4, generator=generator)
    together = layer(x)
    assert torch.equal(together, torch.cat([layer(row[None]) for row in x]))
    np.testing.assert_allclose(together, twin(x.double().numpy(), running, False), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


def test_evaluation_before_training_takes_the_batchs_clip():
    x = torch.randn(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layer = FourBitActivation().double().eval()
    np.testing.assert_allclose(layer(x), twin(x.numpy(), clip_of(x.numpy()), True), atol=1e-12)
    assert layer.clip == 0


@pytest.mark.parametrize("x", [torch.full((10,), 3.0), torch.zeros(10), -torch.ones(4), torch.tensor([1e-30, 0.0])])
def test_nearly_constant_inputs_stay_finite_and_close(x):
    y = FourBitActivation()(x)
    # half a step of the 16 values, and at the positive end of the signed range a whole one
    assert (y - x).abs().max() <= x.abs().max() / 7
    assert activation_clip(x) == x.abs().max()


def test_straight_through_keeps_values_exact():
    x, q = torch.tensor([1e8, 0.1], requires_grad=True), torch.tensor([1.0, 0.3])
    y = straight_through(x, q)
    assert torch.equal(y, q)
    (y * torch.tensor([2.0, 3.0])).sum().backward()
    assert x.grad.tolist() == [2.0, 3.0]


def nested() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)), nn.Linear(4, 2))


def test_every_relu_is_replaced_and_nothing_else():
    kinds = {"fp32": nn.ReLU, "binary": BinaryActivation, "4bit": FourBitActivation}
    for kind, found in kinds.items():
        model = nested()
        parameters = list(model.parameters())
        assert quantise_activations(model, kind) is model
        assert sum(isinstance(m, found) for m in model.modules()) == 2
        assert sum(isinstance(m, nn.ReLU) for m in model.modules()) == (0 if kind == "binary" else 2)
        assert all(p is q for p, q in zip(parameters, model.parameters(), strict=True))
        assert model(torch.randn(5, 3)).shape == (5, 2)


def test_four_bits_after_relu_are_unsigned():
    model = quantise_activations(nested(), "4bit")
    model(torch.randn(30, 3, generator=torch.Generator().manual_seed(0)))
    assert not any(m.signed for m in model.modules() if isinstance(m, FourBitActivation))


def test_mistakes_are_explained():
    with pytest.raises(UserError, match=r"nn\.ReLU"):
        quantise_activations(nn.Sequential(nn.Linear(2, 2)), "4bit")
    with pytest.raises(ValueError, match="allowed"):
        quantise_activations(nested(), "8bit")
