"""From a float network to a Boolean one: which layers, which fan-ins, which scales; what is refused; and that signals keep their spread."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from tracking.errors import UserError
from workbench.boolean import BooleanConv2d, BooleanLayer, BooleanLinear, Threshold
from workbench.boolean.networks import BooleanBlock, BooleanOptions, booleanise
from workbench.datasets import models

CIFAR = (3, 32, 32)


def net(name: str, width: float = 0.125, seed: int = 0, **options: object) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    return booleanise(models.build(name, CIFAR, 10, width, generator), BooleanOptions(**options), generator=generator)


def leaves(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if next(m.children(), None) is None]


def short(m: nn.Module) -> str:
    names = {BooleanConv2d: "b", BooleanLinear: "B", nn.Conv2d: "c", nn.Linear: "L", nn.MaxPool2d: "p", Threshold: "t", nn.Flatten: "f"}
    return "n" if isinstance(m, nn.modules.batchnorm._BatchNorm) else names[type(m)]


@pytest.mark.parametrize(("name", "batch_norm", "expected"), [
    ("mlp", False, "f Lt Bt L"), ("mlp", True, "f Lnt Bnt Ln"),
    ("cnn", False, "cpt bpt f Bt L"), ("cnn", True, "cpnt bpnt f Bnt Ln"),
    ("vgg_small", False, "ct bpt bt bpt bt bpt f Bt Bt L"), ("vgg_small", True, "cnt bpnt bnt bpnt bnt bpnt f Bnt Bnt Ln"),
    ("vgg_small_1fc", False, "ct bpt bt bpt bt bpt f L"),
])
def test_layers_stand_in_the_papers_order(name, batch_norm, expected):
    assert "".join(short(m) for m in leaves(net(name, batch_norm=batch_norm))) == expected.replace(" ", "")


def test_vgg_small_has_the_papers_counts_fan_ins_slopes_and_scales():
    """Fan-in, alpha = pi / (2 sqrt(3 n)) and c of every Boolean layer at full width, worked out by hand to four digits."""
    with torch.device("meta"):
        float_net = models.vgg_small(CIFAR, 10)
    float_net.to_empty(device="cpu")
    model = booleanise(float_net, generator=torch.Generator().manual_seed(0))
    layers = [m for m in leaves(model) if isinstance(m, BooleanLayer)]
    thresholds = [m for m in leaves(model) if isinstance(m, Threshold)]
    assert sum(m.weight.numel() for m in layers) == 14_008_320
    assert [m.fan_in for m in layers] == [1152, 1152, 2304, 2304, 4608, 8192, 1024]
    assert [t.fan_in for t in thresholds] == [None, *(m.fan_in for m in layers)]
    alphas = [0.02672, 0.02672, 0.01889, 0.01889, 0.01336, 0.01002, 0.02834]
    x = torch.zeros(1)
    assert [round(t.slope(x), 5) for t in thresholds[1:]] == alphas
    assert [round(m.scale, 5) for m in layers] == [0.08333, 0.02946, 0.05893, 0.02083, 0.04167, 0.04419, 0.04419]
    assert all(t.window == "tanh" for t in thresholds)


def test_the_variant_with_one_linear_layer_has_the_published_count():
    with torch.device("meta"):
        float_net = models.vgg_small_1fc(CIFAR, 10)
    ends = 128 * 27 + 8192 * 10
    assert sum(p.numel() for p in float_net.parameters()) - ends == 4_571_136


def test_with_batch_norm_windows_are_narrow_and_signals_are_not_scaled():
    model = net("vgg_small", batch_norm=True)
    assert {m.scale for m in leaves(model) if isinstance(m, BooleanLayer)} == {1.0}
    assert {(t.window, t.slope(torch.zeros(1))) for t in leaves(model) if isinstance(t, Threshold)} == {("approx_sign", 1.0)}
    scaled = net("vgg_small", batch_norm=True, scaling=True)
    assert all(m.scale < 1 for m in leaves(scaled) if isinstance(m, BooleanLayer))


def test_the_first_and_the_last_layer_are_the_float_networks_own_and_boolean_weights_have_its_signs():
    source = models.build("cnn", CIFAR, 10, 0.125, torch.Generator().manual_seed(3))
    theirs = [m for m in leaves(source) if isinstance(m, (nn.Conv2d, nn.Linear))]
    weights = [m.weight.detach().clone() for m in theirs]
    ours = [m for m in leaves(booleanise(source)) if hasattr(m, "weight") and m.weight is not None]
    assert ours[0] is theirs[0]
    assert ours[-1] is theirs[-1]
    for layer, w in zip(ours[1:-1], weights[1:-1], strict=True):
        assert torch.equal(layer.weight, torch.where(w >= 0, 1.0, -1.0))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_boolean_network_computes_what_its_float_twin_with_signs_computes(batch_norm):
    """The same modules by hand: sign weights, sign activations, no ReLU."""
    source = models.build("cnn", CIFAR, 10, 0.25, torch.Generator().manual_seed(1))
    twin = [m for m in source if batch_norm or not isinstance(m, nn.modules.batchnorm._BatchNorm)]
    model = booleanise(source, BooleanOptions(batch_norm=batch_norm))
    x = torch.randn(6, *CIFAR, generator=torch.Generator().manual_seed(2))
    y, first, last = x, twin[0], [m for m in twin if isinstance(m, nn.Linear)][-1]
    for m in twin:
        if isinstance(m, nn.ReLU):
            y = torch.where(y >= 0, 1.0, -1.0)
        elif isinstance(m, (nn.Conv2d, nn.Linear)) and m not in (first, last):
            w = torch.where(m.weight >= 0, 1.0, -1.0)
            y = nn.functional.conv2d(y, w, padding=1) if isinstance(m, nn.Conv2d) else nn.functional.linear(y, w)
        else:
            y = m(y)
    torch.testing.assert_close(model(x), y, rtol=0, atol=0)  # sums of signs are exact


# --- residual networks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "resnet20"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_residual_network_becomes_boolean_blocks(name, batch_norm):
    model = net(name, width=0.0625 if name == "resnet18" else 0.25, batch_norm=batch_norm)
    blocks = [m for m in model if isinstance(m, BooleanBlock)]
    assert len(blocks) == {"resnet18": 8, "resnet20": 9}[name]
    for block in blocks:
        kernels = [m.weight.shape[-1] for m in (block.conv1, block.conv2, block.shortcut)]
        assert kernels == [3, 3, 3]
        assert block.conv1.stride == block.shortcut.stride
        assert block.threshold2.fan_in == (None if batch_norm else block.conv2.fan_in + block.shortcut.fan_in)
        norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
        assert len(norms) == (3 if batch_norm else 0)
    seen: list[torch.Tensor] = []
    for block in blocks:
        block.register_forward_hook(lambda m, x, y: seen.extend((x[0], y)))
    assert model(torch.randn(2, *CIFAR, generator=torch.Generator().manual_seed(0))).shape == (2, 10)
    assert all(torch.equal(v.abs(), torch.ones_like(v)) for v in seen)


def test_the_options_of_a_block_reach_its_layers():
    model = net("resnet20", width=0.25, shortcut_kernel=1, signal="bool", pad_value=-1, window="exponential")
    block = next(m for m in model if isinstance(m, BooleanBlock))
    assert block.shortcut.weight.shape[-1] == 1
    convs = [m for m in model.modules() if isinstance(m, BooleanConv2d)]
    assert {(m.signal, m.pad_value) for m in convs} == {("bool", -1)}
    assert {m.window for m in model.modules() if isinstance(m, Threshold)} == {"exponential"}


# --- signals ------------------------------------------------------------------------------------------------


def test_the_scale_keeps_the_spread_of_signals_from_layer_to_layer():
    """Variance ratio of neighbouring thresholds within a factor 2 (the argument assumes independence); without it, off by fan-out / 2.

    A threshold stands behind the pool, so what it receives and hands on is one signal a unit.
    """
    width = 96
    source = nn.Sequential(nn.Linear(40, width, bias=False), nn.ReLU(),
                           *[m for _ in range(5) for m in (nn.Linear(width, width, bias=False), nn.ReLU())], nn.Linear(width, 10))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for m in source:
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight)
    ratios = {}
    for scaling in (True, False):
        model = booleanise(source, BooleanOptions(scaling=scaling))
        variances: list[float] = []
        for m in model:
            if isinstance(m, BooleanLinear):
                m.register_full_backward_hook(lambda m, _, z, v=variances: v.append(z[0].var().item()))
        top = nn.Sequential(*list(model)[:-1])
        out = top(torch.randn(512, 40, generator=torch.Generator().manual_seed(1)))
        out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(2)))
        ratios[scaling] = [math.log2(below / above) for above, below in itertools.pairwise(variances)]
    assert all(abs(r) < 1 for r in ratios[True]), ratios
    assert all(abs(r - math.log2(width / 2)) < 1 for r in ratios[False]), ratios


def test_signals_keep_their_spread_through_residual_blocks():
    """Over nine blocks, each of which hands down the sum of two branches divided by sqrt(2): no step up or down by more than half."""
    generator = torch.Generator().manual_seed(0)
    model = booleanise(models.build("resnet20", CIFAR, 10, 0.5, generator), generator=generator)
    spreads: list[float] = []
    for m in model:
        if isinstance(m, BooleanBlock):
            m.register_full_backward_hook(lambda m, _, z: spreads.append(z[0].std().item()))
    out = nn.Sequential(*list(model)[:-3])(torch.randn(8, *CIFAR, generator=generator))
    out.backward(torch.randn(out.shape, generator=generator))
    assert len(spreads) == 9
    assert all(2 / 3 < below / above < 3 / 2 for above, below in itertools.pairwise(spreads)), spreads


# --- refusals -----------------------------------------------------------------------------------------------


def lin(a: int = 4, b: int = 4, bias: bool = False) -> nn.Linear:
    return nn.Linear(a, b, bias=bias)


def conv(**options: object) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, **{"padding": 1, "bias": False, **options})


@pytest.mark.parametrize(("layers", "words"), [
    ([lin(), nn.ReLU(), lin()], "has 2 layers"),
    ([lin(), nn.ReLU(), lin(bias=True), nn.ReLU(), lin()], r"'2' \(Linear\).*bias=False"),
    ([lin(), lin(), nn.ReLU(), lin()], r"'1' \(Linear\).*real values"),
    ([lin(), nn.GELU(), lin(), nn.ReLU(), lin()], r"'1' \(GELU\)"),
    ([conv(), nn.ReLU(), nn.MaxPool2d(2), conv(), nn.ReLU(), nn.Flatten(), lin()], r"'2' \(MaxPool2d\).*pool before"),
    ([conv(), nn.ReLU(), conv(), nn.MaxPool2d(3), nn.ReLU(), conv()], r"'2' \(MaxPool2d\).*2x2"),
    ([conv(), nn.ReLU(), conv(padding_mode="circular"), nn.ReLU(), conv()], r"'2' \(Conv2d\).*zero padding"),
    ([conv(), nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(4, 4, 3, bias=False)), nn.ReLU(), conv()], r"'1\.1' \(ConvTranspose2d\)"),
    ([conv(), models.BasicBlock(4, 4, 1, False), conv()], r"'1' \(BasicBlock\).*real values"),
])
def test_what_cannot_be_converted_is_refused_by_name(layers, words):
    with pytest.raises(UserError, match=words):
        booleanise(nn.Sequential(*layers))


def test_batch_norm_where_there_is_none_is_refused():
    with pytest.raises(UserError, match=r"'1' \(ReLU\).*no batch norm"):
        booleanise(nn.Sequential(lin(), nn.ReLU(), lin(), nn.ReLU(), lin()), BooleanOptions(batch_norm=True))


def test_a_module_that_is_no_sequence_is_refused():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = lin(), lin(), lin()

    with pytest.raises(UserError, match="A Net cannot be made Boolean"):
        booleanise(Net())
