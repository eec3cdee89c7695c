"""Bop: one-bit weights flipped by an average of their gradients, without latent weights.

Helwegen, Widdicombe, Geiger, Liu, Cheng & Nusselder, "Latent Weights Do Not Exist: Rethinking Binarized Neural Network Optimization",
NeurIPS 2019, arXiv:1906.02107.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workbench.method import Context, View
from workbench.methods.lowbit._binary import BinaryParams, BinaryTraining
from workbench.methods.lowbit._levels import sign
from workbench.methods.lowbit._optim import LowBitOptimizer
from workbench.methods.lowbit._views import vote_view
from workbench.methods.supervised import SupervisedState
from workbench.params import Field

if TYPE_CHECKING:
    from tracking.energy_model import PrecisionPlan
    from workbench.task import SupervisedTask


class Bop(LowBitOptimizer):
    """Binary optimiser (Helwegen et al. 2019, Alg. 1); plain groups take SGD or Adam.

    For weights of -1 and 1::

        m <- (1 - gamma) m + gamma g;    w <- -w  where  |m| > tau  and  sign(m) = sign(w)

    ``m`` starts at 0 and is not reset by a flip. A weight takes its sign when the group is added.

    Args:
        gamma: adaptivity rate, weight of the newest gradient.
        threshold: tau, in units of the gradient.
    """

    def __init__(self, params: Iterable[Any], *, lr: float, gamma: float = 1e-4, threshold: float = 1e-8, **common: Any) -> None:
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma = {gamma}; allowed: 0 < gamma <= 1.")
        if threshold < 0:
            raise ValueError(f"threshold = {threshold}; allowed: 0 or more.")
        super().__init__(params, lr=lr, gamma=gamma, threshold=threshold, **common)

    def _begin(self, group: dict[str, Any]) -> None:
        if (group["weights"], group["scale"]) != ("binary", "unit"):
            raise ValueError(f"Bop is for weights -1 and 1, not weights = {group['weights']!r}, scale = {group['scale']!r}.")
        # in the group, because loading a state makes the state's integers real numbers
        group["flips"] = torch.zeros((), dtype=torch.int64, device=group["params"][0].device)
        for p in group["params"]:
            p.copy_(sign(p))
            self.state[p]["m"] = torch.zeros_like(p)

    def _update(self, group: dict[str, Any], params: list[nn.Parameter]) -> None:
        for p in params:
            m = self.state[p]["m"].lerp_(p.grad, group["gamma"])
            flip = p * m > group["threshold"]  # of weights that are signs, one comparison tests both conditions
            group["flips"] += flip.sum()
            p.copy_(torch.where(flip, -p, p))

    def latent(self, p: nn.Parameter) -> Tensor:
        """The weight itself: there is nothing behind it."""
        return p.detach()

    def flips(self) -> int:
        """Flips of all steps so far."""
        return sum(int(group["flips"]) for group in self.param_groups if group["weights"] is not None)


# --- the method -------------------------------------------------------------------------------------------


class BopTraining(BinaryTraining):
    """One-bit weights and activations; weights are flipped by an average of their gradients, no latent weights."""

    id = "bop"
    title = "Bop"
    family = "lowbit"
    paper = "arXiv:1906.02107"
    kinds = ("classification",)
    example = {"task": "digits/mlp", "params": {"epochs": 8, "gamma": 1e-2, "threshold": 1e-5}}

    class Params(BinaryParams):
        gamma: float = Field(
            1e-4, gt=0, le=1, description="weight of the newest gradient in the average (paper, CIFAR-10: 1e-4, decayed)")
        threshold: float = Field(
            1e-8, ge=0, le=1, description="size of the average at which a weight flips, in units of the gradient (paper: 1e-8)")
        gamma_schedule: bool = Field(
            True, description="gamma follows the schedule of the learning rate (the paper decays it by steps)")

    params: Params

    def optimizer(self, model: nn.Module, ctx: Context) -> Bop:
        p = self.params
        return Bop(self.groups(model), lr=p.lr, gamma=p.gamma, threshold=p.threshold, base=p.base, momentum=p.momentum,
                   weight_decay=p.weight_decay)

    def on_epoch(self, state: SupervisedState) -> None:
        if self.params.gamma_schedule:
            for group in state.optimizer.param_groups:
                group["gamma"] = self.params.gamma * self.lr_factor(state.epoch)

    def report(self, state: SupervisedState) -> dict[str, float]:
        return {"train/flips": state.optimizer.flips()}

    def precision(self, model: nn.Module) -> PrecisionPlan:
        plan = super().precision(model)
        return dataclasses.replace(plan, name=self.id, body=dataclasses.replace(plan.body, latent=None, update="momentum"))

    def views(self, state: SupervisedState, task: SupervisedTask) -> list[View]:
        """How near the weights are to their next flip, and how many average gradients speak against them."""
        optimizer = state.optimizer
        weights = {name.removesuffix(".weight"): p for name, p in state.model.named_parameters() if "m" in optimizer.state.get(p, ())}
        votes = {name: optimizer.state[p]["m"] * p for name, p in weights.items()}
        against = {name: float((v > 0).float().mean()) for name, v in votes.items()}
        note = f"Average gradient times weight; a weight flips where it passes tau = {self.params.threshold:g}."
        return [vote_view(votes, "average gradient times weight", note),
                View("Weights that their average gradient speaks against", "bars", against, x="layer",
                     y="share of the layer's weights [fraction]", note=f"{optimizer.flips():,} flips so far.")]
