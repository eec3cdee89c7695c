"""Features replay: delayed gradients, computed with today's weights on the kept inputs.

Huo, Gu & Huang, NeurIPS 2018, arXiv:1807.04511.
"""

from __future__ import annotations

from workbench.methods.decoupled._delayed import LateMethod


class FeaturesReplay(LateMethod):
    """Modules keep a history of their inputs and go through it again when the gradient for it arrives."""

    id = "features_replay"
    title = "Features replay"
    family = "decoupled"
    paper = "arXiv:1807.04511"
    example = {"task": "digits/mlp", "params": {"epochs": 5, "modules": 3, "lr": 0.002}}
    replay = True
