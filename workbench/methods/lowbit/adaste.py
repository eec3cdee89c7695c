"""AdaSTE: a straight-through estimator whose scale adapts to each latent weight, for binary networks.

Le, Høier, Lin & Zach, "AdaSTE: An Adaptive Straight-Through Estimator to Train Binary Neural Networks", CVPR 2022,
arXiv:2112.02880.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from workbench.method import Context
from workbench.methods.lowbit._levels import sign
from workbench.methods.lowbit._optim import LowBitOptimizer
from workbench.methods.lowbit._training import LowBitParams, LowBitTraining
from workbench.methods.supervised import SupervisedState
from workbench.params import Field

if TYPE_CHECKING:
    from tracking.energy_model import PrecisionPlan


def relaxed_weight(theta: Tensor, a: float, b: float) -> Tensor:
    """``W = hardtanh((theta + b (1 + a) sign(theta)) / (1 + b))``: between hardtanh (b = 0) and sign (b large)."""
    return ((theta + b * (1 + a) * sign(theta)) / (1 + b)).clamp(-1, 1)


def adaptive_scale(theta: Tensor, g: Tensor, a: float, b: float, small: float = 1e-3) -> Tensor:
    """Factor ``sc`` on the gradient ``g = dloss/dW``, entry by entry, as the authors' code computes it.

    "Same" means that ``g`` and ``theta`` have one sign, so that descent moves ``theta`` towards zero. Entries with
    ``|g| <= small`` keep the first value of their case.

    ======================  ======================  =====================================================
    case                    signs of g and theta    sc
    ======================  ======================  =====================================================
    a b < 1                 (start)                 1 / (1 + b)
    a b < 1, |theta| > 1-ab opposite                0
    a b < 1, |theta| > 1-ab same                    clamp((1 + 2b + ab) / ((1 + b) |theta|), 0, 1/2)
    a b < 1, |theta| < 1-ab same                    clamp((2b (1 + a) - theta) / ((1 + b) |theta|), 0, 1/2)
    a b >= 1                (start)                 1
    a b >= 1                same                    clamp(1 / |theta|, 0, 1/2)
    a b >= 1                opposite                0
    ======================  ======================  =====================================================

    The fourth row has ``theta``, not ``|theta|``, as coded.
    """
    live = g.abs() > small
    same, opposite = live & (theta * g > 0), live & (theta * g < 0)
    size = theta.abs()
    if a * b >= 1:
        sc = torch.where(same, (1 / size).clamp(0, 0.5), 1.0)
        return torch.where(opposite, 0.0, sc)
    far, near = size > 1 - a * b, size < 1 - a * b
    sc = torch.full_like(theta, 1 / (1 + b))
    sc = torch.where(near & same, ((2 * b * (1 + a) - theta) / ((1 + b) * size)).clamp(0, 0.5), sc)
    sc = torch.where(far & same, ((1 + 2 * b + a * b) / ((1 + b) * size)).clamp(0, 0.5), sc)
    return torch.where(far & opposite, 0.0, sc)


class AdaSTE(LowBitOptimizer):
    """AdaSTE (Le et al. 2022) for binary weights.

    The parameter holds the relaxed weight ``W`` (:func:`relaxed_weight`), at which forward and backward run; the
    latent ``theta`` and the averaged direction ``m`` live in the state. Step ``t`` is::

        g = dloss/dW + weight_decay W
        m <- mu m + (1 - mu) (gain sc g + theta);   theta <- theta - lr m / (1 - mu^t);   W <- relaxed_weight(theta)

    with ``sc`` of :func:`adaptive_scale` and ``mu`` the group's ``momentum``. Deployed is ``sign(theta)``.
    :meth:`relax` raises ``b``. Groups with ``weights=None`` follow ``base``.

    The ``state_dict`` holds ``theta, m, step``; ``W`` belongs to the model's.

    Args:
        a, b: constants alpha and beta of the relaxation.
        gain: factor on the gradient. The authors' code multiplies twice by N, ten times the number of training samples.
        theta0: start from ``theta = +-theta0`` at random; ``None`` starts from the model's own weights.
        small: gradients up to this size escape the adaptation.
        generator: source of the random start, on the CPU, so that it is the same on every device; needed unless ``theta0``
            is ``None``.
    """

    def __init__(
        self, params: Iterable[Any], *, lr: float, a: float = 0.01, b: float = 0.01, gain: float = 1.0,
        theta0: float | None = 10.0, small: float = 1e-3, generator: torch.Generator | None = None, **common: Any,
    ) -> None:
        if theta0 is not None and generator is None:
            raise ValueError("A random start needs generator=, a torch.Generator; "
                             "or give theta0=None to keep the model's weights.")
        self._theta0, self._generator = theta0, generator  # read by _begin, which the base class calls
        super().__init__(params, lr=lr, a=a, b=b, gain=gain, small=small, **common)

    def _begin(self, group: dict[str, Any]) -> None:
        if (group["weights"], group["scale"]) != ("binary", "unit"):
            raise ValueError("AdaSTE is for weights -1 and 1, "
                             f"not weights = {group['weights']!r}, scale = {group['scale']!r}.")
        for p in group["params"]:
            theta = p.detach().clone()
            if self._theta0 is not None:
                coin = torch.rand(p.shape, generator=self._generator).to(p.device)
                theta = torch.where(coin < 0.5, -self._theta0, self._theta0).to(p.dtype)
            self.state[p].update(theta=theta, m=torch.zeros_like(theta), step=torch.zeros(()))
            p.copy_(relaxed_weight(theta, group["a"], group["b"]))

    @torch.no_grad()
    def relax(self, b: float) -> None:
        """Set ``b`` in every group and move the weights to what it makes of ``theta``."""
        for group in self.param_groups:
            group["b"] = b
            if group["weights"] is not None:
                for p in group["params"]:
                    p.copy_(relaxed_weight(self.state[p]["theta"], group["a"], b))

    def latent(self, p: nn.Parameter) -> Tensor:
        """``theta``."""
        return self.state[p]["theta"]

    def _update(self, group: dict[str, Any], params: list[nn.Parameter]) -> None:
        a, b, mu = group["a"], group["b"], group["momentum"]
        for p in params:
            s = self.state[p]
            s["step"] += 1
            g = p.grad + group["weight_decay"] * p
            pull = group["gain"] * adaptive_scale(s["theta"], g, a, b, group["small"]) * g
            s["m"].mul_(mu).add_(pull + s["theta"], alpha=1 - mu)
            s["theta"].add_(s["m"], alpha=-group["lr"] / (1 - mu ** s["step"].item()))
            p.copy_(relaxed_weight(s["theta"], a, b))


# --- the method -------------------------------------------------------------------------------------------


class AdaSTETraining(LowBitTraining):
    """Binary weights by a straight-through estimator whose scale adapts to each latent weight."""

    id = "adaste"
    title = "AdaSTE"
    family = "lowbit"
    paper = "arXiv:2112.02880"
    kinds = ("classification",)
    example = {"task": "digits/mlp", "params": {"epochs": 12}}
    keeps_latent = True
    weight_ops = 8

    class Params(LowBitParams):
        weights: Literal["binary"] = Field("binary", description="level set of the quantised weights; AdaSTE is binary")
        scale: Literal["unit"] = Field("unit", description="levels at -1 and 1")
        lr: float = Field(3e-4, gt=0, le=100, description="learning rate at the start (authors' code: 3e-4)")
        lr_schedule: Literal["cosine", "steps"] = Field(
            "cosine",
            description="learning rate: half a cosine down to 0 over the epochs (authors' code), or lr_decay steps")
        base: Literal["adam", "sgd"] = Field("adam", description="update rule of parameters that are not quantised")
        momentum: float = Field(
            0.9, ge=0, lt=1, description="weight of the past in the averaged direction; also momentum of SGD")
        a: float = Field(0.01, ge=0, le=10, description="alpha of the relaxation (authors' code: 0.01)")
        b: float = Field(0.01, gt=0, le=10_000, description="beta of the relaxation at the start (authors' code: 0.01)")
        b_growth: float = Field(
            1.05, ge=1, le=10,
            description="factor on beta at the start of each epoch, capped at 1/alpha (CIFAR 1.05, TinyImageNet 1.009)")
        n_scale: Literal["squared", "linear", "none"] = Field(
            "squared", description="gradient times N^2 (authors' code), times N (AskewSGD's notebooks), or as it is")
        n_factor: float = Field(
            10.0, gt=0, le=1000, description="N as a multiple of the training-set size (authors' code: 10)")
        theta0: float = Field(
            10.0, ge=0, le=1000, description="latent weights start at +-theta0 at random; 0 = at the model's weights")
        small: float = Field(
            1e-3, ge=0, le=1, description="gradients up to this size are not adapted (authors' code: 1e-3)")

    params: Params

    def init(self, task: Any, ctx: Context) -> SupervisedState:
        state = super().init(task, ctx)
        n = self.params.n_factor * len(task.train_y)
        for group in state.optimizer.param_groups:
            group["gain"] = n ** {"squared": 2, "linear": 1, "none": 0}[self.params.n_scale]
        return state

    def precision(self, model: nn.Module) -> PrecisionPlan:
        plan = super().precision(model)  # its own rule has one average, whatever ``base`` says
        return dataclasses.replace(plan, overrides=plan.with_updates("momentum").overrides)

    def optimizer(self, model: nn.Module, ctx: Context) -> AdaSTE:
        p = self.params
        return AdaSTE(self.groups(model), a=p.a, b=self.b_at(0), theta0=p.theta0 or None, small=p.small,
                      generator=ctx.generator("theta", cpu=True), **self.common())

    def on_epoch(self, state: SupervisedState) -> None:
        state.optimizer.relax(self.b_at(state.epoch))

    def b_at(self, epoch: int) -> float:
        """beta in an epoch counted from 0: raised at the start of each, the first included; never beyond 1/alpha."""
        p = self.params
        # a fixed beta is taken as given: AskewSGD's notebooks run alpha = 0.01, beta = 100
        return min(p.b * p.b_growth ** (epoch + 1), max(p.b, 1 / p.a if p.a else math.inf))

    def report(self, state: SupervisedState) -> dict[str, float]:
        return {"train/regularisation": state.optimizer.param_groups[0]["b"]}
