"""Networks of the supervised tasks. Every nonlinearity is an ``nn.ReLU`` module after a batch norm, so that a method can
swap it for a quantised one. ``width`` scales the number of channels or units.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracking.errors import UserError, unknown

Shape = tuple[int, int, int]


def build(name: str, sample_shape: Shape, num_classes: int, width: float, generator: torch.Generator) -> nn.Module:
    """A network on the CPU for inputs ``(n, *sample_shape)`` and outputs ``(n, num_classes)``, initialised from ``generator``.

    The global generators are left as they were. Raises :class:`tracking.errors.UserError` for an unknown name or a sample
    that the network cannot take.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    maker, smallest = MODELS[name]
    if len(sample_shape) != 3 or min(sample_shape[1:]) < smallest:
        raise UserError(f"Model {name!r} takes images (channels, height, width) of at least {smallest}x{smallest} pixels; "
                        f"these samples have shape {tuple(sample_shape)}. The model 'mlp' takes images of any size.")
    with torch.random.fork_rng(devices=[]):  # layers draw default weights when they are made
        return initialise(maker(tuple(sample_shape), num_classes, width), generator)


def initialise(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Draw every weight anew from one generator, in the order of ``model.modules()``; returns the model.

    Linear and convolution layers: PyTorch's default, U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weights (Kaiming uniform with
    a = sqrt(5)) and biases. Batch norm: scale 1, shift 0, fresh statistics. Raises ``TypeError`` for a parameter of any
    other kind of layer, because it would be left to the global generator.
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_parameters()
        elif any(True for _ in module.parameters(recurse=False)):
            raise TypeError(f"initialise() does not know the weights of {type(module).__name__}.")
    return model


def scaled(count: int, width: float) -> int:
    """Channels or units at a width factor, at least one."""
    return max(1, round(count * width))


def mlp(shape: Shape, num_classes: int, width: float = 1.0) -> nn.Module:
    """Two hidden layers of ``256 * width`` units; as in :func:`vgg_small`, non-affine batch norm after each layer and no bias.

    So every parameter is a weight that can be quantised, and the outputs of binary layers come back to unit scale.
    """
    units = scaled(256, width)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(shape), units, bias=False), nn.BatchNorm1d(units, affine=False), nn.ReLU(),
        nn.Linear(units, units, bias=False), nn.BatchNorm1d(units, affine=False), nn.ReLU(),
        nn.Linear(units, num_classes, bias=False), nn.BatchNorm1d(num_classes, affine=False),
    )


def perceptron(shape: Shape, num_classes: int, width: float = 1.0) -> nn.Module:
    """One hidden layer of ``32 * width`` ReLU units, with biases, without norms: 784-32-10 in federated papers (arXiv:2206.10032)."""
    units = scaled(32, width)
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), units), nn.ReLU(), nn.Linear(units, num_classes))


def cnn(shape: Shape, num_classes: int, width: float = 1.0) -> nn.Module:
    """32C3-MP-64C3-MP-FC128-FC, non-affine batch norm after each layer, no bias: a small relative of :func:`vgg_small`."""
    c, h, w = shape
    a, b, units = scaled(32, width), scaled(64, width), scaled(128, width)
    return nn.Sequential(
        nn.Conv2d(c, a, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(a, affine=False), nn.ReLU(),
        nn.Conv2d(a, b, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(b, affine=False), nn.ReLU(),
        nn.Flatten(),
        nn.Linear(b * (h // 4) * (w // 4), units, bias=False), nn.BatchNorm1d(units, affine=False), nn.ReLU(),
        nn.Linear(units, num_classes, bias=False), nn.BatchNorm1d(num_classes, affine=False),
    )


def vgg_small(shape: Shape, num_classes: int, width: float = 1.0) -> nn.Module:
    """(2x128C3)-MP-(2x256C3)-MP-(2x512C3)-MP-FC 1024-1024-10, non-affine batch norm after each layer, no bias.

    The network of binary-weight papers (Courbariaux et al., NeurIPS 2015; arXiv:2211.03741, Tables 2 and 3). Pooling stands
    before batch norm, as in the former: with ReLU the order matters to batch statistics alone, but
    a maximum over signs would nearly always be +1.
    """
    features, size = _vgg_features(shape, width)
    units = scaled(1024, width)
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(size, units, bias=False), nn.BatchNorm1d(units, affine=False), nn.ReLU(),
                         nn.Linear(units, units, bias=False), nn.BatchNorm1d(units, affine=False), nn.ReLU(),
                         nn.Linear(units, num_classes, bias=False), nn.BatchNorm1d(num_classes, affine=False))


def vgg_small_1fc(shape: Shape, num_classes: int, width: float = 1.0) -> nn.Module:
    """:func:`vgg_small` with one linear layer at its end, the other variant of binary-network papers (arXiv:2405.16339, Table 9)."""
    features, size = _vgg_features(shape, width)
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(size, num_classes, bias=False), nn.BatchNorm1d(num_classes, affine=False))


def _vgg_features(shape: Shape, width: float) -> tuple[list[nn.Module], int]:
    """The convolutions of VGG-Small, and how many values leave them."""
    layers: list[nn.Module] = []
    (c, h, w) = shape
    for channels in (128, 256, 512):
        for pool in (False, True):
            out = scaled(channels, width)
            layers.append(nn.Conv2d(c, out, 3, padding=1, bias=False))
            layers += [nn.MaxPool2d(2)] * pool + [nn.BatchNorm2d(out, affine=False), nn.ReLU()]
            c = out
    return layers, c * (h // 8) * (w // 8)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., CVPR 2016, Fig. 5 left), ReLU after the addition."""

    def __init__(self, inputs: int, outputs: int, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1, self.relu1 = nn.BatchNorm2d(outputs), nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(outputs), nn.ReLU()
        if inputs == outputs and stride == 1:
            self.shortcut: nn.Module = nn.Identity()
        elif project:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        else:
            self.shortcut = PadShortcut(outputs - inputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(out + self.shortcut(x))


class PadShortcut(nn.Module):
    """Option A of He et al.: every ``stride``-th pixel, zeros for the new channels; no weights."""

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = extra, stride

    def forward(self, x: Tensor) -> Tensor:
        before = self.extra // 2
        return F.pad(x[:, :, ::self.stride, ::self.stride], (0, 0, 0, 0, before, self.extra - before))


def _resnet(shape: Shape, num_classes: int, width: float, stages: tuple[int, ...], blocks: int, project: bool) -> nn.Module:
    channels = scaled(stages[0], width)
    layers: list[nn.Module] = [nn.Conv2d(shape[0], channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    for i, stage in enumerate(stages):
        for j in range(blocks):
            out = scaled(stage, width)
            layers.append(BasicBlock(channels, out, stride=2 if i and not j else 1, project=project))
            channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def resnet18(shape: Shape, num_classes: int, width: float = 1.0) -> nn.Module:
    """ResNet-18 with the stem used for small images (3x3 convolution, no pooling); 11.17 M parameters on CIFAR-10."""
    return _resnet(shape, num_classes, width, (64, 128, 256, 512), blocks=2, project=True)


def resnet20(shape: Shape, num_classes: int, width: float = 1.0) -> nn.Module:
    """ResNet-20 for CIFAR (He et al., CVPR 2016, section 4.2), shortcuts without weights; 0.27 M parameters."""
    return _resnet(shape, num_classes, width, (16, 32, 64), blocks=3, project=False)


def pooled_mlp(channels: int, outputs: int, depth: int, grid: int = 2) -> list[nn.Module]:
    """Average pooling to ``grid`` x ``grid``, ``depth`` hidden layers as wide as what is left, batch norm and ReLU after each."""
    units = channels * grid**2
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(grid), nn.Flatten()]
    for _ in range(depth):
        layers += [nn.Linear(units, units), nn.BatchNorm1d(units), nn.ReLU()]
    return [*layers, nn.Linear(units, outputs)]


def _modular(shape: Shape, num_classes: int, width: float, plan: tuple[tuple[int, bool], ...], bias: bool, depth: int) -> nn.Module:
    """3x3 convolutions, a module each, 2x2 max-pooling before some; the last module ends with :func:`pooled_mlp`."""
    channels, modules = shape[0], []
    for count, pool in plan:
        out = scaled(count, width)
        conv = nn.Conv2d(channels, out, 3, padding=1, bias=bias)
        modules.append([*[nn.MaxPool2d(2)] * pool, conv, nn.BatchNorm2d(out), nn.ReLU()])
        channels = out
    modules[-1] += pooled_mlp(channels, num_classes, depth)
    return nn.Sequential(*(nn.Sequential(*layers) for layers in modules))


def dgl_cnn4(shape: Shape, num_classes: int, width: float = 1.0) -> nn.Module:
    """64C3 | MP-128C3 | 128C3 | MP-256C3-MLP: the four modules of DGL's learning curves (arXiv:1901.08164, official code)."""
    return _modular(shape, num_classes, width, ((64, False), (128, True), (128, False), (256, True)), bias=True, depth=2)


def dgl_cnn6(shape: Shape, num_classes: int, width: float = 1.0) -> nn.Module:
    """128C3 | MP-256C3 | 256C3 | MP-512C3 | 512C3 | 512C3-MLP: the six modules of DGL's study of auxiliary heads."""
    plan = ((128, False), (256, True), (256, False), (512, True), (512, False), (512, False))
    return _modular(shape, num_classes, width, plan, bias=True, depth=2)


def dgl_cnn6_buffer(shape: Shape, num_classes: int, width: float = 1.0) -> nn.Module:
    """128C3 | 128C3 | MP-256C3 | 256C3 | MP-512C3 | 512C3-MLP: the six modules of DGL's buffer experiments, no convolution biases."""
    plan = ((128, False), (128, False), (256, True), (256, False), (512, True), (512, False))
    return _modular(shape, num_classes, width, plan, bias=False, depth=3)


def dni_cnn(shape: Shape, num_classes: int, width: float = 1.0) -> nn.Module:
    """Three modules of a 5x5 convolution and 3x3 pooling, first maximum, then average: the network of DNI (arXiv:1608.05343)."""
    (c, h, w), out = shape, scaled(128, width)
    pools = (nn.MaxPool2d(3), nn.AvgPool2d(3), nn.AvgPool2d(3))
    modules = [[nn.Conv2d(out if i else c, out, 5, padding=2), nn.BatchNorm2d(out), nn.ReLU(), pool] for i, pool in enumerate(pools)]
    modules[-1] += [nn.Flatten(), nn.Linear(out * (h // 27) * (w // 27), num_classes)]
    return nn.Sequential(*(nn.Sequential(*layers) for layers in modules))


MODELS: dict[str, tuple[Callable[..., nn.Module], int]] = {
    "mlp": (mlp, 1), "perceptron": (perceptron, 1), "cnn": (cnn, 4), "vgg_small": (vgg_small, 8),
    "vgg_small_1fc": (vgg_small_1fc, 8), "resnet18": (resnet18, 8), "resnet20": (resnet20, 4),
    "dgl_cnn4": (dgl_cnn4, 4), "dgl_cnn6": (dgl_cnn6, 4), "dgl_cnn6_buffer": (dgl_cnn6_buffer, 4), "dni_cnn": (dni_cnn, 27),
}
"""Each model and the smallest image side that it takes."""
