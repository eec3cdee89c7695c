"""Cutting networks and auxiliary heads: the same layers in order, the best cuts of all, sizes and costs of the papers' networks."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tracking.errors import UserError
from workbench.datasets import models
from workbench.decoupled import (
    Costs,
    DecoupledTraining,
    LocalNetwork,
    auxiliary_head,
    auxiliary_heads,
    balanced_cuts,
    divide,
    module_costs,
    multiply_accumulates,
    split,
    units,
)

CIFAR = (3, 32, 32)


def make(name: str, shape=CIFAR, width: float = 1.0, seed: int = 0) -> nn.Module:
    return models.build(name, shape, 10, width, torch.Generator().manual_seed(seed))


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(n: int = 12, shape=(1, 8, 8), seed: int = 0):
    g = seeded(seed)
    return torch.randn(n, *shape, generator=g), torch.randint(10, (n,), generator=g)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


# --- cuts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "shape", "count"), [
    ("mlp", (1, 8, 8), 3), ("perceptron", (1, 8, 8), 2), ("cnn", (1, 8, 8), 4), ("vgg_small", CIFAR, 9),
    ("resnet20", CIFAR, 1 + 9 + 1), ("resnet18", CIFAR, 1 + 8 + 1), ("dgl_cnn4", (1, 8, 8), 4), ("dni_cnn", CIFAR, 3),
])
def test_units_in_a_row_are_the_network(name, shape, count):
    model = make(name, shape, 0.1).eval()
    pieces = units(model)
    assert len(pieces) == count
    x, _ = batch(3, shape)
    for cuts in combinations(range(1, min(count, 5)), min(2, count - 1)):
        modules = split(pieces, cuts)
        assert torch.equal(nn.Sequential(*modules)(x), model(x))
        assert [p for m in modules for p in m.parameters()] == list(model.parameters()), "the same parameters, in order"
    if name not in ("dni_cnn", "dgl_cnn4"):  # what is handed on is what a nonlinearity puts out
        for piece in pieces[:-1]:
            x = piece(x)
            assert x.min() >= 0


@pytest.mark.parametrize("costs", [(5, 1, 1, 1, 5), (1, 2, 3, 4, 5, 6, 7), (3, 3, 3), (0, 0, 1, 0), (7, 1, 1, 7, 2, 2)])
def test_balanced_cuts_are_the_best_of_all(costs):
    def rating(cuts):
        sums = [sum(costs[a:b]) for a, b in pairwise((0, *cuts, len(costs)))]
        return max(sums), sum(s**2 for s in sums)

    for modules in range(1, len(costs) + 1):
        best = min(map(rating, combinations(range(1, len(costs)), modules - 1)))
        found = balanced_cuts(costs, modules)
        assert len(found) == modules - 1
        assert rating(found) == best


def test_wrong_cuts_are_refused():
    pieces = units(make("mlp", (1, 8, 8)))
    for cuts in ((0,), (3,), (2, 1), (1, 1)):
        with pytest.raises(UserError, match="growing whole numbers from 1 to 2"):
            split(pieces, cuts)
    with pytest.raises(UserError, match="1 <= x <= 3"):
        balanced_cuts((1, 2, 3), 4)
    with pytest.raises(UserError, match="given Linear"):
        units(nn.Linear(2, 2))
    with pytest.raises(UserError, match="1 <= x <= 3, the units"):
        divide(make("mlp", (1, 8, 8)), 4, torch.zeros(1, 1, 8, 8))


def test_a_network_of_ones_own_is_divided_evenly_or_where_it_is_told_to():
    """Convolutions of 9, 18 and 36 units of cost, twice the last, and a classifier of next to none."""
    channels = (1, 1, 2, 4, 4, 4)
    layers = [layer for a, b in pairwise(channels) for layer in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU())]
    model, x = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)), torch.zeros(2, 1, 4, 4)
    modules = divide(model, 3, x)
    assert [sum(isinstance(layer, nn.Conv2d) for layer in m) for m in modules] == [3, 1, 1]
    assert [layer for m in modules for layer in m] == list(model)
    assert [len(m) for m in divide(model, 2, x, [1])] == [2, 11]
    network = LocalNetwork(modules, auxiliary_heads(modules, "average", x))
    before = [p.clone() for p in model.parameters()]
    DecoupledTraining(network, sgd).step(torch.randn(8, 1, 4, 4, generator=seeded()), torch.arange(8) % 3)
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)), "what is trained is the given network"
    assert torch.equal(network(x), model(x))


# --- sizes of the papers' networks ------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "head", "primary", "heads"), [
    # parameters a module and a head, counted from the layers that the official code of arXiv:1901.08164 builds
    ("dgl_cnn4", "mlp_sr", (1_920, 74_112, 147_840, 295_680), (214_282, 846_346, 846_346, 2_114_058)),
    ("dgl_cnn6", "mlp_sr", (3_840, 295_680, 590_592, 1_181_184, 2_360_832, 2_360_832),
     (846_346, 3_363_850, 3_363_850, 13_412_362, 13_412_362, 8_422_410)),
    ("dgl_cnn6_buffer", "mlp", (3_712, 147_712, 295_424, 590_336, 1_180_672, 2_360_320),
     (796_426, 796_426, 3_165_706, 3_165_706, 12_622_858, 12_622_858)),
])
def test_parameter_counts_of_the_reference_networks(name, head, primary, heads):
    modules = units(make(name))
    x = torch.zeros(2, *CIFAR)
    found = auxiliary_heads(modules, head, x)
    convolutions = [m for m in modules[-1] if not isinstance(m, (nn.Linear, nn.BatchNorm1d))]
    channels = [[m for m in module if isinstance(m, nn.Conv2d)][-1].out_channels for module in modules]
    assert [size(m) for m in modules[:-1]] == list(primary[:-1])
    assert sum(size(m) for m in convolutions) == primary[-1]
    # the official heads also hold a batch norm that is never applied: 2c parameters
    assert [size(h) + 2 * c for h, c in zip(found[:-1], channels, strict=False)] == list(heads[:-1])
    assert size(modules[-1]) - primary[-1] + 2 * channels[-1] == heads[-1]


def test_resnet_110_cut_in_two_has_the_papers_sizes():
    """The comparison with DDG: the official list of 58 layers, batch norm and ReLU of the stem and the pooling among them, cut at 29.

    54,922 parameters in the head at the cut, 64 of them in the unused batch norm, and 650 in the classifier.
    """
    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    blocks = [models.BasicBlock(c if j or c == 16 else c // 2, c, stride=1 if j or c == 16 else 2, project=False)
              for c in (16, 32, 64) for j in range(18)]
    modules = split(units(nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))), (1 + 29 - len(stem),))
    heads = auxiliary_heads(modules, "mlp_sr", torch.zeros(2, *CIFAR))
    assert [size(m) for m in modules] == [228_432, 1_498_880 + 650]
    assert [size(h) for h in heads] == [54_922 - 64, 0]


def test_sides_and_costs_of_the_six_layer_network():
    """Sides 32, 16, 16, 8, 8, 8, and 3.5, 75.5, 151, 75.5, 151, 151 million MACs: pooling stands in modules 2 and 4."""
    modules, x = units(models.dgl_cnn6(CIFAR, 10)), torch.zeros(1, *CIFAR)
    costs = module_costs(modules, auxiliary_heads(modules, "mlp_sr", x), x)
    share = [h / max(costs.primary[:5]) for h in costs.heads[:5]]
    plain = [multiply_accumulates(auxiliary_head("mlp", s, 10), torch.zeros(1, *s))[0] for s in ((128, 32, 32), (512, 8, 8))]
    dear, _ = multiply_accumulates(auxiliary_head("cnn", (256, 16, 16), 10), torch.zeros(1, 256, 16, 16))
    sides = []
    for module in modules[:-1]:
        x = module.eval()(x)
        sides.append(x.shape[-1])
    assert sides == [32, 16, 16, 8, 8]
    assert [round(c / 1e6, 1) for c in costs.primary[:5]] == [3.5, 75.5, 151.0, 75.5, 151.0]
    # heads against the largest module: 2.6-10.4 % for MLP-SR, 0.5-8.3 % for MLP, 200 % for the CNN head of a module of its size
    assert [round(100 * s, 1) for s in (min(share), max(share))] == [2.6, 10.4]
    assert [round(100 * h / costs.primary[2], 1) for h in plain] == [0.5, 8.3]
    assert dear / costs.primary[2] == pytest.approx(2, abs=0.01)


def test_costs_by_hand_and_the_speed_up_they_bound():
    """Fields of K^2 c_in weights for each output value; F + B = 3 F."""
    modules = [nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU()), nn.Sequential(nn.Flatten(), nn.Linear(32, 10))]
    costs = module_costs(modules, [nn.Sequential(nn.Flatten(), nn.Linear(32, 5)), nn.Identity()], torch.zeros(4, 1, 4, 4))
    assert costs == Costs((9 * 32, 320), (160, 0))
    assert sum(costs.forward) + sum(costs.backward) == pytest.approx(1)
    assert costs.local == pytest.approx(((288 + 160) / 608, 320 / 608))
    assert costs.speedup == pytest.approx(608 / 448)
    even = Costs((7,) * 4, (0,) * 4)
    assert even.speedup == pytest.approx(4)
    assert Costs((0, 0), (0, 0)).speedup == 1


# --- heads ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mlp_sr", "mlp", "cnn", "average", "linear", "conv5"])
@pytest.mark.parametrize("shape", [(6, 8, 8), (6, 5, 7), (6, 1, 1), (6,)])
def test_heads_give_scores_for_every_shape(kind, shape):
    head = auxiliary_head(kind, shape, 4, seeded())
    out = head(torch.randn(5, *shape, generator=seeded(1)))
    assert out.shape == (5, 4)
    (out * torch.arange(20.0).view(5, 4)).sum().backward()
    assert all(p.grad is not None for p in head.parameters()), "no parameter is left unused"


def test_heads_come_from_their_generator_alone():
    before = torch.get_rng_state()
    a, b = auxiliary_head("mlp_sr", (4, 8, 8), 3, seeded(5)), auxiliary_head("mlp_sr", (4, 8, 8), 3, seeded(5))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    with pytest.raises(UserError, match="Did you mean 'mlp_sr'"):
        auxiliary_head("mlp_rs", (4, 8, 8), 3)
    with pytest.raises(UserError, match=r"shape \(4, 8\)"):
        auxiliary_head("mlp", (4, 8), 3)


def test_the_head_beside_dni_begins_with_the_same_score_for_all():
    """As a synthesiser, it ends with a convolution that is zero at first; it learns from the first step on."""
    head = auxiliary_head("conv5", (3, 6, 6), 4, seeded())
    scores = head(torch.randn(5, 3, 6, 6, generator=seeded(1)))
    assert torch.equal(scores, scores[:1].expand(5, 4))
    F.cross_entropy(scores, torch.arange(5) % 4).backward()
    assert [bool(m.weight.grad.any()) for m in head if isinstance(m, nn.Conv2d)] == [False, False, True]


def test_spatial_averaging_is_a_linear_map_of_means():
    head = auxiliary_head("average", (3, 4, 6), 2, seeded())
    x = torch.randn(7, 3, 4, 6, generator=seeded(1))
    linear = head[-1]
    torch.testing.assert_close(head(x), x.mean((2, 3)) @ linear.weight.T + linear.bias)
