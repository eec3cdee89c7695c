"""Networks of the supervised tasks: sizes, structure, initialisation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tracking.errors import UserError
from workbench.datasets import models

CIFAR, GREY, DIGIT = (3, 32, 32), (1, 28, 28), (1, 8, 8)




def make(name: str, shape=CIFAR, width: float = 1.0, seed: int = 0, classes: int = 10) -> nn.Module:
    return models.build(name, shape, classes, width, torch.Generator().manual_seed(seed))


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("name", "shape", "expected"), [
    # published: 14.02 M (BinaryConnect's network), 11.17 M, 0.27 M (He et al., Table 6)
    ("vgg_small", CIFAR, 9 * (3 * 128 + 128**2 + 128 * 256 + 256**2 + 256 * 512 + 512**2) + 512 * 16 * 1024 + 1024**2 + 10240),
    ("resnet18", CIFAR, 11_173_962),
    ("resnet20", CIFAR, 9 * (3 * 16 + 6 * 16**2 + 16 * 32 + 5 * 32**2 + 32 * 64 + 5 * 64**2)  # convolutions
     + 2 * (7 * 16 + 6 * 32 + 6 * 64) + 64 * 10 + 10),  # batch norms, linear layer
    ("mlp", DIGIT, 64 * 256 + 256**2 + 2560),
    ("cnn", GREY, 9 * (32 + 32 * 64) + 64 * 49 * 128 + 1280),
])
def test_parameter_counts(name, shape, expected):
    assert size(make(name, shape)) == expected


def test_published_sizes():
    assert [round(size(make(n)) / 1e6, 2) for n in ("vgg_small", "resnet18", "resnet20")] == [14.02, 11.17, 0.27]


def test_vgg_small_is_the_papers():
    layers = [m for m in make("vgg_small").modules() if not isinstance(m, nn.Sequential)]
    text = "-".join({nn.Conv2d: "C", nn.MaxPool2d: "MP", nn.BatchNorm2d: "BN", nn.BatchNorm1d: "BN", nn.ReLU: "R",
                     nn.Flatten: "flat", nn.Linear: "FC"}[type(m)] for m in layers)
    assert text == "C-BN-R-C-MP-BN-R-" * 3 + "flat-FC-BN-R-FC-BN-R-FC-BN"
    weights = [m for m in layers if hasattr(m, "weight") and not isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert [m.weight.shape[0] for m in weights] == [128, 128, 256, 256, 512, 512, 1024, 1024, 10]
    assert all(m.bias is None for m in weights)
    assert all(m.kernel_size == (3, 3) and m.padding == (1, 1) for m in weights if isinstance(m, nn.Conv2d))
    assert not any(m.affine for m in layers if isinstance(m, nn.modules.batchnorm._BatchNorm))


def test_pooling_before_or_after_batch_norm_and_relu_is_one_function():
    """Max pooling commutes with increasing maps, so at given statistics the order of MP, BN (non-affine) and ReLU is free."""
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    norm = nn.BatchNorm2d(3, affine=False).eval()
    norm.running_mean.uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
    norm.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(2))
    pool = nn.MaxPool2d(2)
    assert torch.equal(norm(pool(x)).relu(), pool(norm(x).relu()))


def test_resnet20_has_twenty_layers():
    model = make("resnet20")
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules()) == 20
    assert not any(isinstance(m, nn.Conv2d) and m.kernel_size != (3, 3) for m in model.modules())


def test_resnet_strides():
    sizes = []
    model = make("resnet18", width=0.1)
    for m in model:
        if isinstance(m, models.BasicBlock):
            m.register_forward_hook(lambda _, __, out: sizes.append(out.shape[-1]))
    model(torch.zeros(2, *CIFAR))
    assert sizes == [32, 32, 16, 16, 8, 8, 4, 4]


def test_pad_shortcut():
    x = torch.randn(2, 3, 5, 5)
    out = models.PadShortcut(4, 2)(x)
    assert out.shape == (2, 7, 3, 3)
    assert torch.equal(out[:, 2:5], x[:, :, ::2, ::2])
    assert out[:, :2].abs().max() == 0
    assert out[:, 5:].abs().max() == 0


SMALL = [("mlp", DIGIT), ("cnn", DIGIT), ("cnn", (2, 4, 5)), ("vgg_small", DIGIT), ("vgg_small", GREY), ("resnet18", GREY),
         ("resnet20", CIFAR), ("resnet20", DIGIT), ("mlp", (3, 1, 2))]


@pytest.mark.parametrize(("name", "shape"), SMALL)
@pytest.mark.parametrize("width", [0.05, 0.3])
def test_shapes_and_gradients(name, shape, width):
    model = make(name, shape, width, classes=7)
    out = model(torch.randn(5, *shape, generator=torch.Generator().manual_seed(3)))
    assert out.shape == (5, 7)
    # weighted, as the plain sum of a last batch norm's outputs is constant
    (out * torch.arange(35.0).view(5, 7)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("name", "shape"), SMALL)
def test_every_nonlinearity_is_a_relu_module(name, shape):
    """With the ReLU modules and the pooling removed, each network is affine in evaluation mode."""
    model = make(name, shape, 0.3).eval()
    for module in list(model.modules()):
        for child, layer in module.named_children():
            if isinstance(layer, (nn.ReLU, nn.MaxPool2d)):
                setattr(module, child, nn.Identity() if isinstance(layer, nn.ReLU) else nn.AvgPool2d(2))
    model.double()
    a, b = torch.randn(2, 3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        middle, mean = model((a + b) / 2), (model(a) + model(b)) / 2
    torch.testing.assert_close(middle, mean)


@pytest.mark.parametrize(("name", "shape"), SMALL)
def test_initialisation_is_pytorchs_default_from_one_generator(name, shape):
    ours = make(name, shape, 0.3, seed=11)
    maker, _ = models.MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        theirs = maker(shape, 10, 0.3)
    for (key, a), (_, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert torch.equal(a, b), key


def test_global_generators_play_no_part():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = make("cnn", DIGIT)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second, other = make("cnn", DIGIT), make("cnn", DIGIT, seed=1)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_initialise_refuses_weights_it_does_not_know():
    with pytest.raises(TypeError, match="Embedding"):
        models.initialise(nn.Sequential(nn.Linear(2, 2), nn.Embedding(3, 4)), torch.Generator())


def test_initialise_resets_batch_norm():
    norm = nn.BatchNorm1d(3)
    nn.init.constant_(norm.weight, 5)
    norm.running_var.fill_(7)
    models.initialise(nn.Sequential(norm), torch.Generator())
    assert norm.weight.tolist() == [1, 1, 1]
    assert norm.running_var.tolist() == [1, 1, 1]


@pytest.mark.parametrize(("name", "shape", "words"), [
    ("vgg_small", (1, 7, 9), "at least 8x8.*'mlp'"), ("cnn", (1, 3, 3), "at least 4x4"), ("resnet18", (10,), "shape"),
    ("resnet19", CIFAR, "Did you mean 'resnet(18|20)'"),
])
def test_wrong_requests(name, shape, words):
    with pytest.raises(UserError, match=words):
        make(name, shape)


def test_width_scales_channels():
    assert models.scaled(128, 0.001) == 1
    assert make("vgg_small", width=0.5)[0].out_channels == 64
    assert make("mlp", DIGIT, width=2.0)[1].out_features == 512
