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
