"""BinaryNet: signs for weights and activations, both by a straight-through estimator.

Hubara, Courbariaux, Soudry, El-Yaniv & Bengio, "Binarized Neural Networks", NeurIPS 2016, arXiv:1602.02830.
"""

from __future__ import annotations

from torch import nn

from workbench.method import Context, View
from workbench.methods.lowbit._binary import BinaryTraining
from workbench.methods.lowbit._views import latent_views
from workbench.methods.lowbit.binaryconnect import BinaryConnect
from workbench.methods.supervised import SupervisedState
from workbench.task import SupervisedTask


class BinaryNetTraining(BinaryTraining):
    """One-bit weights and activations by straight-through estimators, with real-valued latent weights.

    The algorithm (paper, Alg. 1) is two parts that stand by themselves: :class:`BinaryConnect` for the weights, whose latent values are
    clipped to [-1, 1], and :func:`sign_ste` for the activations, whose gradient is cancelled beyond that range. The paper makes all layers
    binary; here the first and the last stay real, as in the comparisons that later papers make.
    """

    id = "binarynet"
    title = "BinaryNet (W1/A1, STE)"
    family = "lowbit"
    paper = "arXiv:1602.02830"
    kinds = ("classification",)
    example = {"task": "digits/mlp", "params": {"epochs": 8, "lr": 0.01}}

    def optimizer(self, model: nn.Module, ctx: Context) -> BinaryConnect:
        p = self.params
        return BinaryConnect(self.groups(model), lr=p.lr, base=p.base, momentum=p.momentum, weight_decay=p.weight_decay)

    def evaluate(self, state: SupervisedState, task: SupervisedTask, ctx: Context) -> dict[str, float]:
        """Of the network as it is: its weights are the signs already."""
        return self.quality(self.deploy(state) or state.model, task, ctx)

    def views(self, state: SupervisedState, task: SupervisedTask) -> list[View]:
        """Weights before and after quantisation: the optimiser has the latent ones."""
        return latent_views(state.model, state.optimizer)
