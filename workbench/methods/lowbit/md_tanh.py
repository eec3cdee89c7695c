"""MD-tanh: mirror descent on weights kept in (-1, 1) by a tanh whose slope is annealed.

Ajanthan, Gupta, Torr, Hartley & Dokania, "Mirror Descent View for Neural Network Quantization", AISTATS 2021,
arXiv:1910.08237.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import pydantic
import torch
from torch import Tensor, nn

from workbench.method import Context
from workbench.methods.lowbit._optim import LowBitOptimizer
from workbench.methods.lowbit._training import LowBitParams, LowBitTraining
from workbench.methods.supervised import SupervisedState
from workbench.params import Field

BETA_MAX = 1e35
"""Cap on beta, so that float32 never holds an infinite one."""


def projection(x: Tensor, beta: float, weights: str) -> Tensor:
    """``W = tanh(beta x)``, or for ternary weights the mean of two tanh shifted by a half."""
    if weights == "binary":
        return torch.tanh(beta * x)
    return 0.5 * (torch.tanh(beta * (x + 0.5)) + torch.tanh(beta * (x - 0.5)))


def mirror_step(w: Tensor, z: Tensor) -> Tensor:
    """``tanh(atanh(w) + z)``, the mirror-descent step in the primal.

    Equals ``(A - 1) / (A + 1)`` with ``A = (1 + w) / (1 - w + 1e-20) * exp(2 z)``, the form of the authors' code, but
    stays finite where ``A`` overflows. The guard 1e-20 is on both sides here, so that +1 and -1 are left alike.
    """
    return torch.tanh(0.5 * (torch.log(1 + w + 1e-20) - torch.log(1 - w + 1e-20)) + z)


class MDTanh(LowBitOptimizer):
    """Mirror descent with the tanh projection (Ajanthan et al. 2021), over SGD or Adam.

    The parameter holds the soft weight ``W`` in [-1, 1], at which forward and backward run, ``g = dloss/dW``. A step is

    - ``form="stable"`` (MD-tanh-S): ``x <- x - lr * direction(g)``, then ``W <- tanh(beta x)``; ``x`` lives in
      ``state[p]["x"]``;
    - ``form="mda"``: ``W <- tanh(atanh(W) - beta lr * direction(g))``; nothing is kept but the inner rule's moments.
      In float32 a weight that has reached -1 or 1 practically stays.

    At fixed beta both are the same map. Every ``beta_every`` steps beta is multiplied by ``beta_scale``. Weight decay
    acts on ``x`` in the first form and on ``W`` in the second, as in the authors' code. Deployed is ``sign(W)``, or
    for ternary weights (stable form only) the nearest level.

    The ``state_dict`` holds ``x``, beta and the count of steps; ``W`` belongs to the model's.

    Args:
        beta: slope of the tanh at the start.
        beta_scale, beta_every: factor on beta, and steps between its rises.
    """

    def __init__(
        self, params: Iterable[Any], *, lr: float, form: Literal["stable", "mda"] = "stable", beta: float = 1.0,
        beta_scale: float = 1.0, beta_every: int = 1, **common: Any,
    ) -> None:
        if form not in ("stable", "mda"):
            raise ValueError(f"form = {form!r}; allowed: 'stable', 'mda'.")
        super().__init__(params, lr=lr, form=form, beta=beta, beta_scale=beta_scale, beta_every=beta_every, steps=0,
                         **common)

    def _begin(self, group: dict[str, Any]) -> None:
        allowed = ("binary", "ternary") if group["form"] == "stable" else ("binary",)
        if group["weights"] not in allowed or group["scale"] != "unit":
            raise ValueError(f"MD-tanh in form {group['form']!r} is for weights {' or '.join(allowed)} "
                             f"with scale = 'unit', not weights = {group['weights']!r}, scale = {group['scale']!r}.")
        for p in group["params"]:
            if group["form"] == "stable":
                self.state[p]["x"] = p.detach().clone()
            p.copy_(projection(p, group["beta"], group["weights"]))

    def _update(self, group: dict[str, Any], params: list[nn.Parameter]) -> None:
        grads = [p.grad for p in params]
        if group["form"] == "stable":
            self._descend(group, params, [self.state[p]["x"] for p in params], grads)
        else:
            decayed = [g + group["weight_decay"] * p for g, p in zip(grads, params, strict=True)]
            moves = [torch.zeros_like(p) for p in params]
            self._descend(group | {"weight_decay": 0.0}, params, moves, decayed)  # moves = -lr * direction
            for p, move in zip(params, moves, strict=True):
                p.copy_(mirror_step(p, group["beta"] * move))
        group["steps"] += 1
        if group["steps"] % group["beta_every"] == 0:
            group["beta"] = min(group["beta"] * group["beta_scale"], BETA_MAX)
        if group["form"] == "stable":
            for p in params:
                p.copy_(projection(self.state[p]["x"], group["beta"], group["weights"]))


# --- the method -------------------------------------------------------------------------------------------


class MDTanhTraining(LowBitTraining):
    """Binary or ternary weights by mirror descent through a tanh that grows steeper."""

    id = "md_tanh"
    title = "MD-tanh"
    family = "lowbit"
    paper = "arXiv:1910.08237"
    kinds = ("classification",)
    example = {"task": "digits/mlp", "params": {"epochs": 12, "lr": 0.01, "beta_scale": 1.05, "beta_every": 1}}
    keeps_latent = True
    weight_ops = 3

    class Params(LowBitParams):
        weights: Literal["binary", "ternary"] = Field("binary", description="level set of the quantised weights")
        scale: Literal["unit"] = Field("unit", description="levels at integer values")
        form: Literal["stable", "mda"] = Field(
            "stable", description="MD-tanh-S, which keeps the tanh's argument, or descent on the weights (binary only)")
        lr: float = Field(1e-3, gt=0, le=100, description="learning rate at the start (authors' code: 1e-3)")
        beta: float = Field(
            1.0, gt=0, le=1e6, description="slope of the tanh at the start (authors: 1; AskewSGD's baseline: 100)")
        beta_scale: float = Field(
            1.02, ge=1, le=10,
            description="factor on the slope (authors' code: 1.02 stable, 1.01 mda; AskewSGD's baseline: 1)")
        beta_every: int = Field(
            200, ge=1, le=1_000_000,
            description="training batches between rises of the slope (authors' code: 200 stable, 100 mda)")

        @pydantic.model_validator(mode="after")
        def _ternary_is_stable(self) -> MDTanhTraining.Params:
            if self.form == "mda" and self.weights != "binary":
                raise ValueError("form = 'mda' is for weights = 'binary'; take form = 'stable' for ternary weights")
            return self

    params: Params

    def optimizer(self, model: nn.Module, ctx: Context) -> MDTanh:
        p = self.params
        return MDTanh(self.groups(model), form=p.form, beta=p.beta, beta_scale=p.beta_scale, beta_every=p.beta_every,
                      **self.common())

    def report(self, state: SupervisedState) -> dict[str, float]:
        return {"train/regularisation": state.optimizer.param_groups[0]["beta"]}
