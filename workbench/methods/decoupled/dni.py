"""DNI: modules are trained by synthetic gradients.

Jaderberg, Czarnecki, Osindero, Vinyals, Graves, Silver & Kavukcuoglu, ICML 2017, arXiv:1608.05343.
"""

from __future__ import annotations

from workbench.methods.decoupled._synthetic import SyntheticMethod


class DNI(SyntheticMethod):
    """A small network behind each module predicts the gradient of the loss from the module's output alone."""

    id = "dni"
    title = "DNI"
    family = "decoupled"
    paper = "arXiv:1608.05343"
    example = {"task": "digits/mlp", "params": {"epochs": 10, "modules": 2, "lr": 0.003, "synthesiser_lr": 0.0001}}
    published = {"source": "DGL's comparison on CIFAR-10 (arXiv:1901.08164), by its authors' code", "params": {
        "epochs": 2000, "batch_size": 256, "base": "adam", "lr": 3e-5}}
