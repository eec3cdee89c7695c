"""Exported networks: logits equal bit for bit, thresholds right for every integer, states that load, words and
bytes as said.
"""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from tracking.errors import UserError
from workbench.boolean.activation import Fork, Threshold
from workbench.boolean.layers import BooleanConv2d, BooleanLayer, BooleanLinear
from workbench.boolean.networks import BooleanOptions, booleanise
from workbench.boolean.packed import PackedConv2d, PackedLinear, export, weight_bytes
from workbench.boolean.packed.passing import BitMaxPool2d, PackedThreshold
from workbench.datasets.models import cnn, mlp, resnet18, vgg_small


def trained(net: nn.Module, x: Tensor, seed: int = 0) -> nn.Module:
    """Norms as training leaves them: statistics of their inputs, weights of both signs and now and then 0."""
    g = torch.Generator().manual_seed(seed)
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for m in norms:
        if m.affine:
            with torch.no_grad():
                m.weight.copy_(torch.randn(m.weight.shape, generator=g)).clamp_(min=-1)[::5].zero_()
                m.bias.copy_(torch.randn(m.bias.shape, generator=g))
    with torch.no_grad():
        net.train()
        for _ in range(2):
            net(x)
    return net.eval()


def equal(net: nn.Module, x: Tensor, backend: str = "auto") -> nn.Module:
    """The export, after its logits were found to be those of the float network."""
    packed = export(net, backend=backend)
    with torch.no_grad():
        assert torch.equal(packed(x), net(x))
        assert torch.equal(packed(x[:1]), net(x[:1]))
    return packed


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


NETWORKS = {
    "mlp": (mlp, (1, 8, 8), 0.25),
    "cnn": (cnn, (1, 12, 12), 0.5),
    "vgg_small": (vgg_small, (3, 16, 16), 0.2),
    "resnet18": (resnet18, (3, 9, 9), 0.15),
}


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("pad_value", [0, -1])
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_of_the_papers_networks(name: str, pad_value: int, batch_norm: bool, backend: str) -> None:
    build, shape, width = NETWORKS[name]
    options = BooleanOptions(batch_norm=batch_norm, pad_value=pad_value)
    x = noise(4, *shape)
    net = trained(booleanise(build(shape, 10, width), options, generator=torch.Generator().manual_seed(1)), x)
    packed = equal(net, x, backend)
    inside = [m for m in packed.modules() if isinstance(m, (BooleanLayer, Threshold))]
    # the threshold behind the full-precision stem is all that may stay; a block's sum of two normed branches is no
    # integer
    assert not [m for m in inside if isinstance(m, BooleanLayer)]
    fused = [m for m in packed.modules() if isinstance(m, (PackedConv2d, PackedLinear)) and m.bound is not None]
    assert fused or name == "mlp"


class Uneven(nn.Module):
    """Everything a sequential network does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm0, self.first = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), Threshold(0.3)
        self.pool0 = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        self.conv1 = BooleanConv2d(12, 20, 3, (2, 1), (1, 2), (1, 2), 2, True, gate="xor")
        self.norm1, self.pool1, self.norm2 = (
            nn.BatchNorm2d(20),
            nn.MaxPool2d(3, 2, 1, ceil_mode=True),
            nn.BatchNorm2d(20),
        )
        self.second, self.fork = Threshold(0.25), Fork()
        self.conv2, self.conv3, self.third = (
            BooleanConv2d(20, 20, 3, padding=1),
            BooleanConv2d(20, 20, 1, bias=True),
            Threshold(1.0),
        )
        self.pool2, self.drop = nn.MaxPool2d(2, 1), nn.Dropout()
        self.fc1, self.norm3, self.fourth = BooleanLinear(200, 33, bias=True), nn.BatchNorm1d(33), Threshold()
        self.fc2, self.head = BooleanLinear(33, 9), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool0(self.first(self.norm0(self.stem(x))))
        x = self.second(self.norm2(self.pool1(self.norm1(self.conv1(x)))))
        a, b = self.fork(x)
        x = self.drop(self.pool2(self.third(self.conv2(a) + self.conv3(b))))
        votes = self.fc1(x.flatten(1))  # used twice: by its threshold and as it is
        y = self.fc2(self.fourth(self.norm3(votes)))
        return self.head(y.relu()) + votes.sum(1, keepdim=True) + x.mean((2, 3)).sum(1, keepdim=True)


def test_a_network_of_everything() -> None:
    x = noise(5, 3, 17, 21)
    packed = equal(trained(Uneven(), x), x)
    kinds = {type(m) for m in packed.modules()}
    assert {PackedThreshold, BitMaxPool2d, PackedConv2d, PackedLinear} <= kinds
    assert not hasattr(packed, "norm1")  # taken in by a threshold
    assert packed.fc1.bound is None  # its sums are wanted too


def test_flattened_maps_of_uneven_channels_and_falling_pools() -> None:
    """Norms of either sign between three pools: each pool is an or or an and, channel by channel."""
    net = nn.Sequential(
        nn.Conv2d(1, 5, 3),
        Threshold(),
        BooleanConv2d(5, 70, 3, padding=1),
        nn.BatchNorm2d(70),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(70),
        nn.MaxPool2d(2, 1),
        nn.BatchNorm2d(70),
        nn.MaxPool2d(2, 1, 1),
        Threshold(0.5),
        nn.Flatten(),
        BooleanLinear(70 * 9, 6),
        nn.BatchNorm1d(6),
        Threshold(),
        nn.Linear(6, 3),
    )
    x = noise(64, 1, 8, 8)
    packed = equal(trained(net, x), x)
    falls = torch.stack([m.falls for m in packed.modules() if isinstance(m, BitMaxPool2d)])
    assert len(set(falls[:, 0].tolist())) == 3  # no two pools see the same signs behind them


def test_one_layer_with_two_thresholds() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = BooleanLinear(8, 8), nn.BatchNorm1d(8)
            self.one, self.two = Threshold(), Threshold(3.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.two(self.layer(self.one(self.norm(x)))))

    x = noise(50, 8)
    equal(trained(Twice(), x), x)


def test_a_batch_norm_of_sequences_runs_along_another_dimension() -> None:
    """Of (batch, length, outputs) it takes the length for channels; where both are equal only the shape can tell."""
    for length in (6, 9):
        net = nn.Sequential(Threshold(), BooleanLinear(20, 9), nn.BatchNorm1d(length), Threshold(), BooleanLinear(9, 4))
        x = noise(5, length, 20)
        trained(net, x)
        if length == 6:
            equal(net, x)
        else:
            with pytest.raises(UserError, match=r"takes a matrix, not shape \(5, 9, 1\)"):
                export(net)(x)


def test_names_arguments_and_sums_in_place() -> None:
    class Taken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bits_0, self.bits_1 = Threshold(0.3), BooleanLinear(12, 12)
            # both branches the same: sums reach twice as far as one of them, and the threshold lies there
            self.one, self.two, self.last = copy.deepcopy(self.bits_1), Threshold(13.0), BooleanLinear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.bits_0(s=x)
            a, b = self.bits_1(x=x), self.one(x)
            a += b
            y = self.last(self.two(a))
            b += a
            return torch.cat([y, b, a], 1)

    x = noise(100, 12)
    packed = equal(Taken(), x)
    assert len([m for m in packed.modules() if isinstance(m, PackedLinear)]) == 3


@pytest.mark.parametrize("net", [BooleanLinear(40, 7), nn.Sequential(Threshold(), BooleanLinear(40, 7), Threshold())])
def test_smallest_models(net: nn.Module) -> None:
    # one layer on real inputs adds 40 halves up in another order: exact in float32
    x = noise(6, 40).mul(8).round().div(2)
    assert torch.equal(export(net)(x), net(x))


# --- states, bytes, refusals --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> tuple[nn.Module, Tensor]:
    x = noise(4, 3, 16, 16)
    options = BooleanOptions(batch_norm=True)
    return trained(
        booleanise(vgg_small((3, 16, 16), 10, 0.5), options, generator=torch.Generator().manual_seed(1)), x
    ), x


def test_state_loads_into_the_export_of_an_untrained_network(small: tuple[nn.Module, Tensor]) -> None:
    net, x = small
    file = io.BytesIO()
    torch.save(export(net).state_dict(), file)
    fresh = copy.deepcopy(net)
    for m in fresh.modules():
        if hasattr(m, "reset_parameters"):
            m.reset_parameters()
    packed = export(fresh)
    assert not torch.equal(packed(x), net(x))
    packed.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert torch.equal(packed(x), net(x))


def test_whole_model_is_saved_and_copied(small: tuple[nn.Module, Tensor]) -> None:
    net, x = small
    file = io.BytesIO()
    torch.save(export(net), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(x), net(x))
    assert torch.equal(copy.deepcopy(loaded)(x), net(x))


def test_bytes(small: tuple[nn.Module, Tensor]) -> None:
    net, _ = small
    packed = export(net)
    sizes = weight_bytes(packed)
    assert len(sizes) == 7
    for name, (ours, floats) in sizes.items():
        assert ours == packed.get_submodule(name).weight.nbytes
        assert floats == net.get_submodule(name).weight.nbytes
        assert floats == 32 * ours  # channels and outputs of this network fill whole words
    # a file is little more than its words, thresholds and full-precision ends
    file = io.BytesIO()
    torch.save(packed.state_dict(), file)
    ends = sum(v.nbytes for v in packed.state_dict().values()) - sum(ours for ours, _ in sizes.values())
    assert file.tell() < sum(ours for ours, _ in sizes.values()) + ends + 40_000


def test_the_model_stays_as_it_was(small: tuple[nn.Module, Tensor]) -> None:
    net, x = small
    before, state = net(x), copy.deepcopy(net.state_dict())
    net.train()
    export(net)
    assert net.training
    net.eval()
    assert torch.equal(net(x), before)
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())


def test_refusals(small: tuple[nn.Module, Tensor]) -> None:
    with pytest.raises(UserError, match="no BooleanLinear or BooleanConv2d"):
        export(nn.Linear(3, 4))
    with pytest.raises(UserError, match=r"torch\.bfloat16, which does not count votes exactly"):
        export(copy.deepcopy(small[0]).bfloat16())
    with pytest.raises(UserError, match=r"this tensor has shape \(3, 16, 16\)"):
        export(nn.Sequential(Threshold(), BooleanConv2d(3, 4, 3)))(small[1][0])
    spoilt = copy.deepcopy(small[0])
    with torch.no_grad():
        spoilt.get_submodule("7").weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match=r"7\.weight is not Boolean: 1 of its"):
        export(spoilt)

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = BooleanLinear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if x.sum() > 0 else x

    with pytest.raises(UserError, match=r"forward of Branching cannot be read.*nn.Sequential always works"):
        export(Branching())
    with pytest.raises(UserError, match="Did you mean 'torch'"):
        export(small[0], backend="toch")
