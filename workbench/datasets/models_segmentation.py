"""DeepLabV3 on a dilated ResNet-18, in float and in Boolean form.

Chen, Papandreou, Schroff & Adam, "Rethinking Atrous Convolution for Semantic Image Segmentation", arXiv:1706.05587. No dropout: all draws
of a run come from its own generators.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracking.errors import unknown
from workbench.datasets.models import initialise, scaled
from workbench.datasets.models_superresolution import with_modules

if TYPE_CHECKING:
    from workbench.boolean.networks import BooleanOptions

STAGES = ((64, 1, 1), (128, 2, 1), (256, 1, 2), (512, 1, 4))
"""Channels, stride and dilation of the stages: the last two keep the resolution and dilate instead."""
BLOCKS = 2  # residual blocks a stage
HEAD = 256  # channels of a branch of the head

MODELS = ("deeplab", "deeplab_small")
"""The first has the stem of ResNet-18 (7x7 with stride 2, pooling; output stride 8); the second, for images of some dozens of pixels, one
3x3 convolution with stride 2 (output stride 4)."""

Rates = tuple[int, int, int]


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size at stride 1, and its batch norm."""
    return [nn.Conv2d(inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation, bias=False), nn.BatchNorm2d(outputs)]


class DilatedBlock(nn.Module):
    """Residual block of ResNet-18 (He et al., CVPR 2016) with dilated 3x3 convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.main = nn.Sequential(*conv_norm(inputs, outputs, 3, stride, dilation), nn.ReLU(), *conv_norm(outputs, outputs, 3, 1, dilation))
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_norm(inputs, outputs, 1, stride))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.main(x) + self.shortcut(x))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1 convolution, three dilated 3x3 ones and the image's mean, side by side, then projected."""

    def __init__(self, inputs: int, outputs: int, rates: Rates) -> None:
        super().__init__()
        self.branches = nn.ModuleList([
            nn.Sequential(*conv_norm(inputs, outputs, 1), nn.ReLU()),
            *(nn.Sequential(*conv_norm(inputs, outputs, 3, dilation=rate), nn.ReLU()) for rate in rates),
            nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_norm(inputs, outputs, 1), nn.ReLU())])
        self.project = nn.Sequential(*conv_norm(5 * outputs, outputs, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        # the image's mean is one pixel: the same everywhere
        return self.project(torch.cat([branch(x).expand(-1, -1, *x.shape[2:]) for branch in self.branches], 1))


def head(inputs: int, outputs: int, num_classes: int, rates: Rates) -> nn.Sequential:
    """ASPP, a 3x3 convolution and the classifier."""
    return nn.Sequential(ASPP(inputs, outputs, rates), *conv_norm(outputs, outputs, 3), nn.ReLU(), nn.Conv2d(outputs, num_classes, 1))


class BooleanHead(nn.Module):
    """Bool-ASPP (arXiv:2405.16339, section 4): integer features ``(n, inputs, h, w)`` to class scores.

    Every convolution but the classifier is Boolean, with a threshold behind it. The branch of the image's mean takes the features as
    integers, before the threshold that the others see them through, and has a batch norm before each of its thresholds.

    Args:
        activation: the threshold of the features.
        classifier: 1x1 convolution in full precision.
    """

    def __init__(self, inputs: int, outputs: int, rates: Rates, activation: nn.Module, classifier: nn.Module, options: BooleanOptions,
                 generator: torch.Generator | None) -> None:
        from workbench.boolean.activation import Fork, Threshold

        super().__init__()

        def layer(inputs: int, kernel: int, dilation: int = 1) -> nn.Sequential:
            conv = options.conv(inputs, outputs, kernel, dilation=dilation, generator=generator)
            norm = [nn.BatchNorm2d(outputs)] if options.batch_norm else []
            return nn.Sequential(conv, *norm, options.threshold(conv))

        def normed(channels: int) -> list[nn.Module]:
            return [nn.BatchNorm2d(channels), Threshold(window="approx_sign")]

        self.activation, self.fork = activation, Fork(4)
        self.branches = nn.ModuleList([layer(inputs, 1), *(layer(inputs, 3, rate) for rate in rates)])
        self.mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), *normed(inputs), options.conv(inputs, outputs, 1, generator=generator),
                                  *normed(outputs))
        self.project = nn.Sequential(layer(5 * outputs, 1), layer(outputs, 3))
        self.classifier = classifier

    def forward(self, s: Tensor) -> Tensor:
        beside = self.mean(s).expand(-1, -1, *s.shape[2:])
        copies = self.fork(self.activation(s))
        pyramid = [branch(x) for branch, x in zip(self.branches, copies, strict=True)]
        return self.classifier(self.project(torch.cat([*pyramid, beside], 1)))


class DeepLab(nn.Module):
    """Images ``(n, 3, h, w)`` to class scores ``(n, num_classes, h, w)``, enlarged bilinearly from the output stride.

    Args:
        small: the stem for small images (:data:`MODELS`).
        rates: dilations of the head's 3x3 convolutions.
    """

    def __init__(self, num_classes: int, width: float, rates: Rates, small: bool) -> None:
        super().__init__()
        self.rates = rates
        channels = scaled(STAGES[0][0], width)
        stem = conv_norm(3, channels, 3, 2) if small else [*conv_norm(3, channels, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        self.stem = nn.Sequential(*stem, *[nn.ReLU()] * small)
        self.shapes: list[tuple[int, int, int, int]] = []
        for count, stride, dilation in STAGES:
            for block in range(BLOCKS):
                self.shapes.append((channels, scaled(count, width), 1 if block else stride, dilation))
                channels = scaled(count, width)
        self.backbone = nn.Sequential(*(DilatedBlock(*shape) for shape in self.shapes))
        self.head = head(channels, scaled(HEAD, width), num_classes, rates)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.head(self.backbone(self.stem(x))), size=x.shape[2:], mode="bilinear", align_corners=False)

    def boolean(self, options: BooleanOptions | None = None, *, generator: torch.Generator | None = None) -> DeepLab:
        """This network with Boolean residual blocks and :class:`BooleanHead`; the stem's convolution and the classifier are its own.

        As in arXiv:2405.16339, appendix D: a threshold behind the stem's pooling, no batch norm unless ``options`` keep them, 3x3
        convolutions in the shortcuts, not dilated. The dilations are those of the float network.
        """
        from workbench.boolean.networks import BooleanBlock, BooleanOptions

        made = options or BooleanOptions()
        kept = (nn.Conv2d, nn.MaxPool2d, *([nn.BatchNorm2d] if made.batch_norm else []))
        stem = nn.Sequential(*(m for m in self.stem if isinstance(m, kept)), made.threshold())
        blocks = [BooleanBlock(inputs, outputs, stride, made, dilation=dilation, generator=generator)
                  for inputs, outputs, stride, dilation in self.shapes]
        activation, blocks[-1].threshold2 = blocks[-1].threshold2, nn.Identity()  # the head takes integers
        classifier = self.head[-1]
        boolean_head = BooleanHead(self.shapes[-1][1], classifier.in_channels, self.rates, activation, classifier, made, generator)
        return with_modules(self, stem=stem, backbone=nn.Sequential(*blocks), head=boolean_head).to(classifier.weight.device)


def build(name: str, num_classes: int, width: float, rates: Rates, generator: torch.Generator) -> DeepLab:
    """A network of :data:`MODELS` on the CPU, initialised from ``generator`` alone.

    Raises :class:`tracking.errors.UserError` for an unknown name.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    with torch.random.fork_rng(devices=[]):  # layers draw default weights when they are made
        return initialise(DeepLab(num_classes, width, rates, name == "deeplab_small"), generator)
