"""Thresholds of packed networks: right for every integer, and through pools."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from workbench.boolean.activation import Threshold
from workbench.boolean.layers import BooleanLinear
from workbench.boolean.packed import export, unpack
from workbench.boolean.packed.backends import pack_maps
from workbench.boolean.packed.fold import fold
from workbench.boolean.packed.passing import BitMaxPool2d


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 6),
    st.booleans(),
    st.sampled_from([0.0, 0.5, -3.25, 1e-7]),
    st.integers(0, 2**31),
)
def test_every_integer_is_decided_as_the_float_network_decides(
    largest: int, channels: int, maps: bool, tau: float, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    norm = (nn.BatchNorm2d if maps else nn.BatchNorm1d)(channels).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.randn(channels, generator=g) * 10.0 ** torch.randint(-4, 4, (channels,), generator=g))
        norm.weight[torch.rand(channels, generator=g) < 0.1] = 0
        norm.running_mean.copy_(torch.randint(-2 * largest, 2 * largest + 1, (channels,), generator=g) / 2)
        norm.running_var.copy_(torch.rand(channels, generator=g) * largest + 1e-3)
        # a bound on an integer, up to rounding, is where a formula would go wrong
        norm.bias.copy_(tau if seed % 2 else torch.randn(channels, generator=g))
    chain = [norm, nn.Identity(), Threshold(tau)]
    found = fold(chain, largest, channels, maps, torch.float32, torch.device("cpu"))
    s = torch.arange(-largest, largest + 1)
    for layout in ("batch", "pixels") if maps else ("rows",):
        float_path = s.float()[:, None].expand(-1, channels).contiguous()
        if maps:
            float_path = (
                float_path[:, :, None, None] if layout == "batch" else float_path.T[None, :, None, :].contiguous()
            )
        for m in chain:
            float_path = m(float_path)
        want = (
            float_path.squeeze()
            if layout == "rows"
            else float_path[:, :, 0, 0]
            if layout == "batch"
            else float_path[0, :, 0].T
        )
        got = (s[:, None] >= found.bound) ^ found.flip
        assert torch.equal(got, want.reshape(got.shape) > 0)


def test_a_decision_that_turns_twice_is_left_to_the_float_network() -> None:
    class Band(Threshold):
        def forward(self, s: Tensor) -> Tensor:
            return torch.where(s.abs() <= 3, 1.0, -1.0)

    assert fold([Band()], 9, 4, False, torch.float32, torch.device("cpu")) is None
    net = nn.Sequential(Threshold(), BooleanLinear(30, 20), Band(), BooleanLinear(20, 5))
    x = torch.randn(40, 30, generator=torch.Generator().manual_seed(7))
    packed = export(net)
    assert isinstance(packed.get_submodule("2"), Band)
    # its signs are packed from what it puts out, not from a comparison it does not make
    assert torch.equal(packed(x), net(x))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(2, 9),
    st.integers(2, 9),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 1),
    st.integers(1, 2),
    st.booleans(),
)
def test_pool_of_bits(
    height: int, width: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> None:
    padding = min(padding, kernel // 2)
    if dilation * (kernel - 1) + 1 > min(height, width):
        return
    pool = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil_mode)
    x = 2.0 * torch.randint(2, (2, 5, height, width), generator=torch.Generator().manual_seed(height)) - 1
    got = BitMaxPool2d(pool)(pack_maps(x))
    assert torch.equal(unpack(got, 5).permute(0, 3, 1, 2), pool(x))
    # where all that follows falls, the smallest survives
    got = BitMaxPool2d(pool, torch.ones(5, dtype=torch.bool))(pack_maps(x))
    assert torch.equal(unpack(got, 5).permute(0, 3, 1, 2), -pool(-x))
