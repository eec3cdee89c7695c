"""DDG: backward passes of all modules at once, each with the gradient of an earlier batch.

Huo, Gu, Yang & Huang, ICML 2018, arXiv:1804.10574.
"""

from __future__ import annotations

from workbench.methods.decoupled._delayed import LateMethod


class DelayedGradientsTraining(LateMethod):
    """Module k applies the gradient of the batch of K - k steps ago, so that no module waits for the others' backward pass."""

    id = "ddg"
    title = "DDG"
    family = "decoupled"
    paper = "arXiv:1804.10574"
    example = {"task": "digits/mlp", "params": {"epochs": 5, "modules": 3, "lr": 0.002}}
    published = {"source": "DGL's comparison on CIFAR-10 (arXiv:1901.08164), by its authors' code", "params": {
        "epochs": 300, "batch_size": 128, "base": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "lr_decay": 0.1,
        "lr_decay_epochs": [150, 225]}}
