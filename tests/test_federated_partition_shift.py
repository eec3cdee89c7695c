"""Feature shift: rotations, brightness, contrast and noise of a client's images, against closed forms and brute force."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_federated_partition import MNIST_LIKE
from tracking.errors import UserError
from workbench.federation.partition_shift import feature_shift, rotate


def _images(b, c, h, w, seed=0):
    return torch.randn(b, c, h, w, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_neutral_levels_leave_images_bit_for_bit():
    shift = feature_shift(MNIST_LIKE, 8, angle_deg=(0, 30), contrast=(1, 2), seed=1)
    x = _images(8, 3, 7, 5).float()
    y = shift.apply(x, torch.arange(8))
    for i in range(8):
        assert torch.equal(x[i], y[i]) == (shift.angle_deg[i] == 0 and shift.contrast[i] == 1)
    assert torch.equal(feature_shift(MNIST_LIKE, 8).apply(x, torch.arange(8)), x)


@pytest.mark.parametrize("side", [8, 28, 33])
def test_quarter_turns_move_pixels_and_keep_the_energy(side):
    x = _images(4, 2, side, side)
    y = rotate(x, torch.tensor([0.0, 90, 180, -90], dtype=torch.float64))
    # positions are off by rounding, 1e-16 of the side, and so are bilinear weights
    for turned, image, turns in zip(y, x, (0, 1, 2, 3), strict=True):
        assert torch.allclose(turned, torch.rot90(image, turns, (1, 2)), atol=1e-11)
    assert torch.allclose(y.square().sum((1, 2, 3)), x.square().sum((1, 2, 3)), rtol=1e-11)


@pytest.mark.parametrize(("h", "w"), [(64, 64), (48, 80)])
def test_rotation_of_a_gaussian_in_closed_form(h, w):
    """A bell of axes (6, 4) pixels turned by an angle is a bell with turned axes.

    Bilinear interpolation errs by at most (max |f_xx| + max |f_yy|) / 8, and no second derivative exceeds 1 / 4^2: by
    1 / 64 in all. Beyond the frame, 3.9 axes away, the bell is below 1e-3.
    """
    angles = torch.tensor([15.0, 37, 120, -75], dtype=torch.float64)
    rows, columns = torch.meshgrid(torch.arange(h) - (h - 1) / 2, torch.arange(w) - (w - 1) / 2, indexing="ij")
    right, up = columns.double(), -rows.double()

    def bell(angle):
        along = right * torch.cos(angle) + up * torch.sin(angle)
        across = -right * torch.sin(angle) + up * torch.cos(angle)
        return torch.exp(-((along / 6) ** 2 + (across / 4) ** 2) / 2)

    turned = rotate(bell(torch.tensor(0.0, dtype=torch.float64)).expand(4, 1, h, w), angles)
    expected = torch.stack([bell(a) for a in torch.deg2rad(angles)])[:, None]
    assert (turned - expected).abs().max() < 1 / 64 + 1e-3
    # the energy of a bell, pi * 6 * 4, has no direction. The norm of f_xx is sqrt(3) / 2 / 4^2 of its own or less, so
    # the error's 1 / 64 or less, and the energy errs by twice that
    assert torch.allclose(turned.square().sum((1, 2, 3)), torch.tensor(math.pi * 24, dtype=torch.float64), rtol=1 / 32)


@given(st.floats(-360, 360), st.integers(2, 12), st.integers(2, 12))
@settings(max_examples=50, deadline=None)
def test_no_value_leaves_the_range_of_its_image(angle, h, w):
    x = _images(1, 1, h, w)
    y = rotate(x, torch.tensor([angle], dtype=torch.float64))
    assert y.shape == x.shape
    assert y.min() >= x.min() - 1e-12
    assert y.max() <= x.max() + 1e-12


def test_a_batch_of_clients_is_each_client_by_itself():
    shift = feature_shift(MNIST_LIKE, 12, seed=2, angle_deg=(0, 45, 90), contrast=(0.5, 1, 2), brightness=(-1, 0, 1))
    x, clients = _images(20, 3, 9, 9), torch.arange(20) * 5 % 12
    whole = shift.apply(x, clients)
    for i in range(20):
        assert torch.allclose(whole[i:i + 1], shift.apply(x[i:i + 1], clients[i:i + 1]), atol=1e-12)


def test_brightness_contrast_and_noise_move_mean_and_variance_as_stated():
    shift = feature_shift(MNIST_LIKE, 6, seed=3, contrast=(0.5, 2, 3), brightness=(-1, 0.25))
    x = _images(6, 3, 8, 8)
    y = shift.apply(x, torch.arange(6))
    mean, variance = x.mean((1, 2, 3)), x.var((1, 2, 3))
    assert torch.allclose(y.mean((1, 2, 3)), mean + torch.from_numpy(shift.brightness))
    assert torch.allclose(y.var((1, 2, 3)), variance * torch.from_numpy(shift.contrast) ** 2)

    noisy = feature_shift(MNIST_LIKE, 4, seed=3, noise=(0, 0.3))
    flat, generator = torch.zeros(4, 1, 100, 100), torch.Generator().manual_seed(0)
    state = torch.get_rng_state()
    added = noisy.apply(flat, torch.arange(4), generator)
    assert torch.equal(torch.get_rng_state(), state)
    for level, image in zip(noisy.noise, added, strict=True):
        # the standard error of a standard deviation of 10,000 normal values is sigma / sqrt(20,000)
        assert abs(image.std().item() - level) <= 5 * level / math.sqrt(20_000)
    with pytest.raises(UserError, match=r"torch\.Generator"):
        noisy.apply(flat, torch.arange(4))
    with pytest.raises(UserError, match="images"):
        noisy.apply(flat.byte(), torch.arange(4), generator)


def test_label_law_is_the_same_for_all_clients_and_levels_are_shared_out_equally():
    """Pearson's statistic of client x class has (n - 1)(C - 1) = 171 degrees of freedom and so a variance of 342."""
    shift = feature_shift(MNIST_LIKE, 20, seed=4, angle_deg=(0, 90, 180, 270), noise=(0, 0.1))
    held = shift.partition.check(60_000, covering=True).class_counts(MNIST_LIKE)
    expected = 60_000 / 200
    assert abs(((held - expected) ** 2 / expected).sum() - 171) < 5 * math.sqrt(2 * 171)
    assert Counter(shift.angle_deg) == {0: 5, 90: 5, 180: 5, 270: 5}
    assert Counter(shift.noise) == {0: 10, 0.1: 10}
