"""End-to-end backpropagation over K workers: the control of the decoupled methods, with the same network, batches and meters."""

from __future__ import annotations

from workbench.methods.decoupled._delayed import DelayedMethod


class Backpropagation(DelayedMethod):
    """End-to-end backpropagation, a worker a module: activations go on, gradients come back, and all but one worker wait."""

    id = "decoupled_backprop"
    title = "Backpropagation over workers"
    family = "decoupled"
    paper = ""
    example = {"task": "digits/mlp", "params": {"epochs": 5, "modules": 3}}
