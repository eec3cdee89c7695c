"""cDNI: synthetic gradients that depend on the labels.

Jaderberg, Czarnecki, Osindero, Vinyals, Graves, Silver & Kavukcuoglu, ICML 2017, arXiv:1608.05343.
"""

from __future__ import annotations

from workbench.methods.decoupled._synthetic import SyntheticMethod


class ContextDNI(SyntheticMethod):
    """DNI whose gradient predictors also see the labels, embedded into their first layer."""

    id = "cdni"
    title = "Context DNI"
    family = "decoupled"
    paper = "arXiv:1608.05343"
    example = {"task": "digits/mlp", "params": {"epochs": 5, "modules": 3, "lr": 0.003, "synthesiser_lr": 0.0001}}
    published = {"source": "DGL's comparison on CIFAR-10 (arXiv:1901.08164), by its authors' code", "params": {
        "epochs": 2000, "batch_size": 256, "base": "adam", "lr": 3e-5}}
    context = True
