"""MNIST: handwritten digits, 28x28."""

from __future__ import annotations

from workbench.datasets.images import ImageTask


class Mnist(ImageTask):
    """60,000 training and 10,000 test images of handwritten digits. Not augmented: the digits are centred."""

    dataset = "mnist"
    models = ("mlp", "perceptron", "cnn", "vgg_small", "vgg_small_1fc", "resnet18", "resnet20", "dgl_cnn4")
    title = "MNIST"
    kind = "classification"
    embedded = False

    mean, std = (0.1307,), (0.3081,)
