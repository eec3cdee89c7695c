"""The threshold, its windows and constants, and how signals spread in deep networks at initialisation."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracking.errors import UserError
from workbench.boolean import BooleanConv2d, BooleanLinear, Fork, Threshold
from workbench.boolean.layers import random_signs
from workbench.boolean.scaling import SPREAD, WINDOWS, conv_scale, linear_scale, window_power, window_slope


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def signal(module: nn.Module, s: Tensor) -> Tensor:
    """What the module hands upstream for a received signal of ones."""
    s = s.clone().requires_grad_()
    module(s).sum().backward()
    return s.grad


# --- forward and windows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_threshold_is_true_from_tau_on(dtype):
    s = torch.tensor([-3.0, -0.5, -0.0, 0.0, 0.5, 1.0, 3.0], dtype=dtype)
    assert Threshold(fan_in=9)(s).tolist() == [-1, -1, 1, 1, 1, 1, 1]
    assert Threshold(tau=1.0, fan_in=9)(s).tolist() == [-1, -1, -1, -1, -1, 1, 1]
    assert Threshold(fan_in=9)(s).dtype == dtype


@pytest.mark.parametrize("tau", [0.0, 2.0, -3.0])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("compact", [False, True])
def test_windows_are_their_formulas(window, tau, compact):
    s = torch.arange(-40.0, 41, dtype=torch.float64)
    slope = 1 if window == "approx_sign" else math.pi / (2 * math.sqrt(3 * 64))
    d = [slope * abs(x - tau) for x in s.tolist()]
    expected = {"tanh": [1 - math.tanh(x) ** 2 for x in d], "rational": [1 / (1 + x) ** 2 for x in d],
                "exponential": [math.exp(-x) for x in d], "approx_sign": [2 - 2 * x if x < 1 else 0 for x in d], "none": [1.0] * len(d)}
    got = signal(Threshold(tau, window, 64, compact=compact), s)
    # a few roundings of 1e-16 each; 1 - tanh^2 cancels, which costs an absolute 1e-16 as well
    torch.testing.assert_close(got, torch.tensor(expected[window], dtype=torch.float64), rtol=1e-14, atol=1e-15)
    assert got[s == tau] == got.max()


def test_the_window_weighs_the_signal_and_is_no_derivative():
    s, z = torch.zeros(3, requires_grad=True), torch.tensor([1.0, -2.0, 0.5])
    Threshold(fan_in=1000)(s).backward(z)
    assert torch.equal(s.grad, z)  # no factor alpha


def test_a_compact_threshold_keeps_two_bytes_and_refuses_fractions():
    kept = []
    s = torch.arange(-5.0, 6).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        Threshold(fan_in=9, compact=True)(s)
        Threshold(fan_in=9, window="none")(s)
    assert [t.dtype for t in kept] == [torch.int16]
    with pytest.raises(UserError, match="not all integers"):
        Threshold(fan_in=9, compact=True)(s / 2)


def test_the_backward_pass_leaves_its_inputs_as_they_were():
    for window in WINDOWS:
        s = torch.linspace(-9, 9, 7).requires_grad_()
        z = torch.ones(7)
        Threshold(window=window, fan_in=9)(s).backward(z)
        assert torch.equal(s, torch.linspace(-9, 9, 7))
        assert torch.equal(z, torch.ones(7))


# --- real-valued pre-activations ----------------------------------------------------------------------------


def test_running_spread_of_real_pre_activations():
    layer, twin = Threshold(), 0.0
    for seed in range(5):
        s = 3 * torch.randn(40, 5, generator=source(seed)) + 1
        got = signal(layer, s)
        seen = s.double().std(correction=0).item()
        twin = seen if seed == 0 else 0.9 * twin + 0.1 * seen
        # norm and mean lose at most a few units of float32 against this spread
        assert layer.sigma.item() == pytest.approx(twin, rel=1e-5)
        torch.testing.assert_close(got, 1 - torch.tanh(math.pi / (2 * math.sqrt(3) * twin) * s) ** 2, rtol=1e-4, atol=1e-6)
    layer.eval()
    signal(layer, 100 * s)
    assert layer.sigma.item() == pytest.approx(twin, rel=1e-5)
    resumed = Threshold()
    resumed.load_state_dict(layer.state_dict())
    assert torch.equal(resumed.sigma, layer.sigma)


def test_a_constant_or_unseen_pre_activation_gives_finite_signals():
    assert torch.isfinite(signal(Threshold(), torch.full((4,), 5.0))).all()
    assert torch.isfinite(signal(Threshold().eval(), torch.full((4,), 5.0))).all()


def test_only_a_window_in_need_of_a_spread_has_the_buffer():
    assert "sigma" in Threshold().state_dict()
    assert not Threshold(fan_in=4).state_dict()
    assert not Threshold(window="approx_sign").state_dict()


# --- constants ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fan_in", [64, 576, 1152, 4608])
def test_half_of_the_power_passes_the_tanh_window(fan_in):
    """The exact distribution of a sum of +-1, by its binomial coefficients."""
    k = torch.arange(fan_in + 1, dtype=torch.float64)
    log_p = torch.lgamma(torch.tensor(fan_in + 1.0)) - torch.lgamma(k + 1) - torch.lgamma(fan_in - k + 1) - fan_in * math.log(2)
    weight = 1 - torch.tanh(window_slope(fan_in) * (2 * k - fan_in)) ** 2
    power = (log_p.double().exp() * weight**2).sum().item()
    assert 0.49 <= power <= 0.51
    assert power == pytest.approx(window_power("tanh"), abs=4e-3)  # the Gaussian limit, from 64 terms on
    # centred counts lie in half the range: the unit trap
    halved = 1 - torch.tanh(window_slope(fan_in) * (k - fan_in / 2)) ** 2
    assert (log_p.double().exp() * halved**2).sum().item() == pytest.approx(0.749, abs=5e-3)


def test_window_power_by_sampling():
    u = torch.randn(200_000, generator=source(), dtype=torch.float64)
    for window, weight in WINDOWS.items():
        spread = 1.0 if window == "approx_sign" else SPREAD
        sample = torch.tensor([weight(x) ** 2 for x in (spread * u[:50_000]).tolist()])
        assert window_power(window) == pytest.approx(sample.mean().item(), abs=5 * sample.std().item() / 50_000**0.5 + 1e-6)
    with pytest.raises(UserError, match="Unknown window"):
        window_power("tan")


# VGG-Small: fan-in and fan-out as channels x kernel, pooled, then alpha and c as printed to four digits by hand from C.2 and C.3
VGG_SMALL = [(128, 128, 9, True, 0.02672, 0.08333), (128, 256, 9, False, 0.02672, 0.02946), (256, 256, 9, True, 0.01889, 0.05893),
             (256, 512, 9, False, 0.01889, 0.02083), (512, 512, 9, True, 0.01336, 0.04167), (8192, 1024, 1, False, 0.01002, 0.04419),
             (1024, 1024, 1, False, 0.02834, 0.04419)]


@pytest.mark.parametrize(("inputs", "outputs", "kernel", "pooled", "alpha", "c"), VGG_SMALL)
def test_constants_of_vgg_small(inputs, outputs, kernel, pooled, alpha, c):
    assert window_slope(inputs * kernel) == pytest.approx(alpha, abs=6e-6)
    side = math.isqrt(kernel)
    assert conv_scale(outputs, (side, side), pooled=pooled) == pytest.approx(c, abs=6e-6)
    if kernel == 1:
        assert linear_scale(outputs) == conv_scale(outputs, (1, 1))


# --- signals through deep networks --------------------------------------------------------------------------


class Watch(nn.Module):
    """Passes its input on and keeps the signal that comes back."""

    def forward(self, s: Tensor) -> Tensor:
        s.register_hook(lambda z: setattr(self, "z", z.detach().clone()))
        return s


def spreads(layers: list[nn.Module], x: Tensor) -> list[float]:
    """Standard deviation of the signal at each pre-activation, from the first layer to the last."""
    network = nn.Sequential(*layers)
    s = network(x)
    s.backward(torch.randn(s.shape, generator=source(9)))
    return [m.z.std().item() for m in network if isinstance(m, Watch)]


@pytest.mark.parametrize("window", ["tanh", "none"])
def test_variance_of_signals_is_kept_in_an_mlp(window):
    layers: list[nn.Module] = []
    sizes = [300, 400, 200, 500, 300, 400]
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        scale = "auto" if window == "tanh" else linear_scale(b, window_power(window))
        layers += [BooleanLinear(a, b, scale=scale, generator=source(i)), Watch(), Threshold(window=window, fan_in=a)]
    found = spreads(layers[:-1], random_signs((256, 300), generator=source(20)).requires_grad_())
    for below, above in itertools.pairwise(found):
        assert 0.5 < (below / above) ** 2 < 2


@pytest.mark.parametrize("stride", [1, 2])
def test_variance_of_signals_is_kept_in_a_convolutional_network(stride):
    """VGG-like without batch norm: pooled and plain, or strided, layers; neutral padding thins the border's votes a little."""
    layers: list[nn.Module] = []
    for i, (a, b, pooled) in enumerate([(32, 32, True), (32, 64, False), (64, 64, True), (64, 128, False), (128, 128, False)]):
        strided = stride == 2 and pooled
        conv = BooleanConv2d(a, b, 3, stride=2 if strided else 1, padding=1, pooled=pooled and not strided, generator=source(i))
        pool = [nn.MaxPool2d(2)] if pooled and not strided else []
        # what a threshold sees is the pooled sum: C.2 counts the pool with the convolution below it
        layers += [conv, *pool, Watch(), Threshold.after(conv)]
    found = spreads(layers[:-1], random_signs((8, 32, 32, 32), generator=source(20)).requires_grad_())
    for below, above in itertools.pairwise(found):
        assert 0.5 < (below / above) ** 2 < 2


def test_without_the_constants_signals_explode():
    layers: list[nn.Module] = []
    for i in range(4):
        layers += [BooleanLinear(300, 300, scale=None, generator=source(i)), Watch(), Threshold(fan_in=300)]
    found = spreads(layers[:-1], random_signs((64, 300), generator=source(20)).requires_grad_())
    assert found[0] > 100 * found[-1]


# --- residual blocks ----------------------------------------------------------------------------------------


def test_a_fork_adds_signals_and_divides_by_the_root_of_their_number():
    x = torch.randn(5, generator=source()).requires_grad_()
    a, b, c = torch.randn(3, 5, generator=source(1))
    y1, y2, y3 = Fork(3)(x)
    assert torch.equal(y1, x)
    (a * y1 + b * y2 + c * y3).sum().backward()
    torch.testing.assert_close(x.grad, (a + b + c) / math.sqrt(3))
    with pytest.raises(UserError, match="branches = 0"):
        Fork(0)


def test_a_residual_block_keeps_the_variance_and_adds_fan_ins():
    main = BooleanConv2d(32, 32, 3, padding=1, generator=source())
    shortcut = BooleanConv2d(32, 32, 3, padding=1, generator=source(1))
    x = random_signs((8, 32, 16, 16), generator=source(2)).requires_grad_()
    left, right = Fork()(x)
    s = main(left) + shortcut(right)
    s.retain_grad()
    join = Threshold.after(main, shortcut)
    assert join.fan_in == 2 * 32 * 9
    y = join(s)
    assert torch.equal(y.unique(), torch.tensor([-1.0, 1.0]))
    y.backward(torch.randn(y.shape, generator=source(3)))
    # C.2 measures from pre-activation to pre-activation: one window, of half the power, is above s, none below x
    assert 1 / 2 < (x.grad.std() / s.grad.std()) ** 2 / 2 < 2


@pytest.mark.parametrize(("make", "words"), [
    (lambda: Threshold(window="tan"), "Did you mean 'tanh'"),
    (lambda: Threshold(fan_in=0), "fan_in = 0 must be at least 1"),
    (lambda: Threshold(tau=float("nan")), "must be a finite number"),
])
def test_options_out_of_range_are_refused_in_words(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_a_copy_of_a_network_is_its_own():
    net = nn.Sequential(nn.Linear(4, 8), Threshold(), BooleanLinear(8, 3))
    twin = copy.deepcopy(net)
    F.mse_loss(twin(torch.randn(6, 4, generator=source())), torch.zeros(6, 3)).backward()
    assert net[1].sigma == 0
    assert twin[1].sigma > 0
    assert net[2].weight.grad is None
