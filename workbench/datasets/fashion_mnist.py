"""Fashion-MNIST: articles of clothing, 28x28."""

from __future__ import annotations

from workbench.datasets.images import ImageTask


class FashionMnist(ImageTask):
    """60,000 training and 10,000 test images of clothing. Augmented by random crops; not by flips, since shoes all point left."""

    dataset = "fashion_mnist"
    models = ("mlp", "perceptron", "cnn", "vgg_small", "vgg_small_1fc", "resnet18", "resnet20", "dgl_cnn4")
    title = "Fashion-MNIST"
    kind = "classification"
    embedded = False

    mean, std = (0.2860,), (0.3530,)
    crop_padding = 4
