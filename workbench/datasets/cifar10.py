"""CIFAR-10: small colour photographs, 32x32."""

from __future__ import annotations

from workbench.datasets.images import ImageTask


class Cifar10(ImageTask):
    """50,000 training and 10,000 test photographs in ten classes. Augmented by random crops (padding 4) and flips.

    The coding of the images is part of a run's provenance: a JPEG-coded copy is lossy, and its accuracies are not
    exactly comparable with published ones.
    """

    dataset = "cifar10"
    models = (
        "mlp", "perceptron", "cnn", "vgg_small", "vgg_small_1fc", "resnet18", "resnet20",
        "dgl_cnn4", "dgl_cnn6", "dgl_cnn6_buffer", "dni_cnn",
    )
    title = "CIFAR-10"
    kind = "classification"
    embedded = False

    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    crop_padding = 4
    flip = True
