"""Handwritten digits of scikit-learn: the embedded image task, seconds to train."""

from __future__ import annotations

from workbench.datasets.images import ImageTask


class Digits(ImageTask):
    """1,437 training and 360 test images of 8x8 pixels; needs neither a file nor a network.

    The writers of the last images differ from those of the first, so the test is harder than a shuffled split.
    """

    dataset = "digits"
    models = ("mlp", "perceptron", "cnn", "dgl_cnn4")
    title = "Digits 8x8 (scikit-learn)"
    kind = "classification"
    embedded = True

    pixel_max = 16
    mean, std = (0.3054,), (0.3755,)
