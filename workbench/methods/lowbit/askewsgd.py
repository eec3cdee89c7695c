"""AskewSGD: quantised weights by annealed interval constraints; the forward pass is never quantised.

Leconte, Schechtman & Moulines, "ASkewSGD: An Annealed interval-constrained Optimisation method to train Quantized
Neural Networks", AISTATS 2023 (PMLR 206:3644-3663), arXiv:2211.03741.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import pydantic
import torch
from torch import Tensor, nn

from workbench.method import Context
from workbench.methods.lowbit import _askew_kernel as kernel
from workbench.methods.lowbit._askew_constraint import askew_direction, constraint, eps_bound, epsilon_at
from workbench.methods.lowbit._levels import LEVELS, nearest_level, sawb_scale
from workbench.methods.lowbit._optim import LowBitOptimizer
from workbench.methods.lowbit._training import LowBitParams, LowBitTraining
from workbench.methods.supervised import SupervisedState
from workbench.params import Field


class AskewSGD(LowBitOptimizer):
    """AskewSGD (Leconte et al. 2023, Alg. 1) over SGD or Adam. The parameter is the latent weight itself.

    Any training loop serves: the forward pass uses the real-valued weights, and ``deployed()`` gives the nearest
    levels. Put ``eps`` of the groups on a schedule (:func:`epsilon_at`); torch's schedulers act on ``lr``.

    With ``scale="sawb"`` a layer trains plainly until eps falls below its bound; its SAWB scale ``s`` is measured then
    and kept (a scale that followed the clamped weights would shrink the layer step by step). From there on levels are
    ``s c_j``, and the direction is taken in units of ``s``, as in the authors' multi-bit code.

    Args:
        weights: level set: binary, ternary, 2bit, 4bit (17 levels, the paper's) or 4bit16.
        eps: width of the intervals in integer level units; ``None``: at the bound, where nothing is constrained yet.
        alpha: strength of the pull towards feasibility (paper's alpha). It is a rate for plain SGD only.
        clip: largest step of plain SGD that the constraint may ask for, in level gaps: the paper's
            ``M = clip * gap * s / lr``. In these units it means the same for every layer, level set and learning rate;
            0.25 is the authors' multi-bit code. From 1 on it does not bind in plain binary SGD with ``clamp``, because
            such a step ends at the level anyway: that is the authors' binary code, which has no clip.
        order: ``"skew_then_base"`` hands the skewed gradient to SGD or Adam (authors' code); ``"base_then_skew"`` skews
            the direction of SGD or Adam, so that the constraint acts on the step itself (our ablation).
        clamp: keep weights within the outer levels (authors' code; not in Alg. 1).
        compile: one compiled kernel instead of eager operations (torch.compile: needs a C++ compiler, or Triton on
            CUDA; order skew_then_base with clamp). Results differ in the last digit.
    """

    def __init__(
        self, params: Iterable[Any], *, lr: float, weights: str | None = "binary", eps: float | None = None,
        alpha: float = 0.5, clip: float = 1.0, order: Literal["skew_then_base", "base_then_skew"] = "skew_then_base",
        clamp: bool = True, compile: bool = False, **inner: Any,
    ) -> None:
        if order not in ("skew_then_base", "base_then_skew"):
            raise ValueError(f"order = {order!r}; allowed: 'skew_then_base', 'base_then_skew'.")
        super().__init__(params, lr=lr, weights=weights, eps=eps, alpha=alpha, clip=clip, order=order, clamp=clamp,
                         compile=compile, **inner)

    def _begin(self, group: dict[str, Any]) -> None:
        if group["eps"] is None:
            group["eps"] = eps_bound(LEVELS[group["weights"]])

    def _update(self, group: dict[str, Any], params: list[nn.Parameter]) -> None:
        for name in ("eps", "alpha", "clip"):
            if not group[name] > 0:
                raise ValueError(f"{name} = {group[name]}; allowed: greater than 0.")
        levels = LEVELS[group["weights"]]
        bound = eps_bound(levels)
        # at the bound phi <= eps everywhere between the levels: nothing is infeasible
        idle = group["eps"] >= bound and (group["scale"] == "sawb" or group["clamp"])
        if not idle or group["scale"] == "unit":
            self._enter(group, params)
        if idle:
            self._descend(group, params, params, [p.grad for p in params])
        else:
            params = self._askew_step(group, params, group["eps"] / bound, levels[1] - levels[0])
        if group["clamp"]:
            for p in params:
                if "scale" in self.state[p]:
                    p.clamp_(*self._range(group, p))

    def _enter(self, group: dict[str, Any], params: list[nn.Parameter]) -> None:
        """Fix the levels of parameters that have none yet, and bring the weights within them."""
        for p in params:
            if "scale" not in self.state[p]:
                self.state[p]["scale"] = (torch.ones((), dtype=p.dtype) if group["scale"] == "unit"
                                          else sawb_scale(p, group["weights"]))
                if group["clamp"]:
                    p.clamp_(*self._range(group, p))

    def _range(self, group: dict[str, Any], p: nn.Parameter) -> tuple[float, float]:
        levels, s = LEVELS[group["weights"]], float(self.state[p]["scale"])
        return levels[0] * s, levels[-1] * s

    def _askew_step(
        self, group: dict[str, Any], params: list[nn.Parameter], e: float, gap: float,
    ) -> list[nn.Parameter]:
        """A step under the constraint; returns the parameters still to be clamped.

        ``e`` is eps over its bound, ``gap`` in integer units.
        """
        if group["order"] == "base_then_skew":
            directions = [torch.zeros_like(p) for p in params]
            grads = [p.grad.add(p, alpha=group["weight_decay"]) for p in params]
            self._descend({**group, "lr": 1.0, "weight_decay": 0.0}, params, directions, grads)
            for p, d in zip(params, directions, strict=True):
                p.add_(self._skewed(group, p, d.neg_(), e, gap), alpha=-group["lr"])
            return params
        if group["clamp"]:
            for p in (p for p in params if p.is_contiguous()):
                self._fused(group, p, self._constraint(group, p, e, gap))
            params = [p for p in params if not p.is_contiguous()]
        if params:
            self._descend(group, params, params, [self._skewed(group, p, p.grad, e, gap) for p in params])
        return params

    def _constraint(self, group: dict[str, Any], p: nn.Parameter, e: float, gap: float) -> kernel.Constraint:
        gap = gap * float(self.state[p]["scale"])
        return kernel.Constraint(e, group["alpha"], self._speed_limit(group, gap), gap, group["weights"] == "binary")

    def _speed_limit(self, group: dict[str, Any], gap: float) -> float:
        return group["clip"] * gap / max(group["lr"], 1e-12)  # a scheduler's warm-up may start at lr = 0

    def _skewed(self, group: dict[str, Any], p: nn.Parameter, g: Tensor, e: float, gap: float) -> Tensor:
        if group["clamp"] and p.is_contiguous():
            return kernel.skew_into(torch.empty_like(p), p, g.contiguous(), self._constraint(group, p, e, gap))
        s = float(self.state[p]["scale"])
        levels = torch.tensor(LEVELS[group["weights"]], dtype=p.dtype, device=p.device)
        return askew_direction(p / s, g / s, levels, group["eps"], group["alpha"], self._speed_limit(group, gap)) * -s

    def _fused(self, group: dict[str, Any], p: nn.Parameter, k: kernel.Constraint) -> None:
        """Skew, inner step and clamp in one; the state is the one that :meth:`_descend` keeps."""
        state, (low, high) = self.state[p], self._range(group, p)
        common = dict(lr=group["lr"], weight_decay=group["weight_decay"], low=low, high=high, compiled=group["compile"])
        if group["base"] == "sgd":
            if group["momentum"] and "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p)
            return kernel.sgd_step(p, p.grad.contiguous(), state.get("momentum_buffer"), k, momentum=group["momentum"],
                                   **common)
        if "exp_avg" not in state:
            state.update(step=torch.zeros(()), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        state["step"] += 1
        kernel.adam_step(p, p.grad.contiguous(), state["exp_avg"], state["exp_avg_sq"], k, t=int(state["step"]),
                         betas=group["betas"], eps=group["adam_eps"], **common)

    def scale_of(self, group: dict[str, Any], p: nn.Parameter) -> Tensor | float:
        """Weight units a level unit: the scale in force, or the one that SAWB would give now."""
        if "scale" in self.state[p]:
            return self.state[p]["scale"]
        return 1.0 if group["scale"] == "unit" else sawb_scale(p, group["weights"])

    @torch.no_grad()
    def deployed(self) -> dict[nn.Parameter, Tensor]:
        values = {}
        for group in self.param_groups:
            if group["weights"] is not None:
                for p in group["params"]:
                    s = self.scale_of(group, p)
                    levels = torch.tensor(LEVELS[group["weights"]], dtype=p.dtype, device=p.device)
                    values[p] = nearest_level(p.detach() / s, levels) * s
        return values

    @torch.no_grad()
    def constraint_report(self) -> dict[str, float]:
        """Over all quantised weights: the share with ``phi > eps``, and the mean distance from the nearest level.

        The distance is in integer level units.
        """
        infeasible, distance, count, eps = 0.0, 0.0, 0, None
        for group in self.param_groups:
            if group["weights"] is None:
                continue
            eps = group["eps"]
            for p in group["params"]:
                levels = torch.tensor(LEVELS[group["weights"]], dtype=p.dtype, device=p.device)
                w = p.detach() / self.scale_of(group, p)
                infeasible = infeasible + (constraint(w, levels)[0] > eps).sum()
                distance = distance + (w - nearest_level(w, levels)).abs().sum()
                count += p.numel()
        if not count:
            return {}
        return {"train/epsilon": eps, "train/infeasible": float(infeasible) / count,
                "train/level_distance": float(distance) / count}


# --- the method -------------------------------------------------------------------------------------------


class AskewSGDParams(LowBitParams):
    """Defaults: the paper's binary CIFAR-10 run (its grid's best pair of alpha and learning rate)."""

    epochs: int = Field(
        100, ge=1, le=10_000, description="passes over the training set (paper: 100 binary, 200 multi-bit)")
    lr: float = Field(
        0.06, gt=0, le=100, description="learning rate at the start (paper's CIFAR-10 grid: 0.01 to 0.06)")
    lr_decay_epochs: tuple[int, ...] = Field(
        (20, 40), description="epochs, counted from 0, at whose start the learning rate decays (paper, binary: 20, 40)")
    alpha: float = Field(
        0.5, gt=0, le=10,
        description="strength of the pull towards the intervals (paper: tuned in 0.1 to 5; its CIFAR-10 grid: 0.2 to 0.5)")
    eps_start: float = Field(
        0.0, ge=0, le=1,
        description="interval width at the start, in integer level units; 0 = at the bound of the level set, min gap^4/16 "
        "(binary 1, others 1/16; the paper's start)")
    eps_warmup: int = Field(50, ge=0, le=10_000, description="epochs before the width shrinks (paper: 50)")
    eps_decay: float = Field(
        0.88, gt=0, le=1, description="factor on the width each epoch afterwards (paper: 0.88; 0.5 and 0.8 also worked)")
    clip: float = Field(
        1.0, gt=0, le=1e6,
        description="largest plain SGD step the constraint may ask for, in level gaps (authors' multi-bit code: 0.25; from "
        "1 on it does not bind in plain binary SGD; the paper does not state its M)")
    order: Literal["skew_then_base", "base_then_skew"] = Field(
        "skew_then_base", description="skew the gradient before Adam or SGD (authors' code), or their step (our ablation)")
    clamp: bool = Field(True, description="keep weights within the outer levels (authors' code)")
    compile: bool = Field(
        False, description="compile the update into one kernel; needs a C++ compiler, or Triton on CUDA")

    @pydantic.model_validator(mode="after")
    def _within_bound(self) -> AskewSGDParams:
        bound = eps_bound(LEVELS[self.weights])
        if self.eps_start > bound:
            raise ValueError(
                f"eps_start = {self.eps_start} is above {bound}, the bound of {self.weights} levels (min gap^4/16): their "
                f"intervals would merge. Give at most {bound}, or 0 for the bound itself")
        return self


class AskewSGDTraining(LowBitTraining):
    """Real-valued weights drawn into shrinking intervals round the levels."""

    id = "askewsgd"
    title = "AskewSGD"
    family = "lowbit"
    paper = "arXiv:2211.03741"
    kinds = ("classification",)
    example = {"task": "digits/mlp", "params": {
        "epochs": 12, "lr": 0.02, "lr_decay_epochs": [6], "alpha": 0.2, "eps_warmup": 4, "eps_decay": 0.7, "bn_batches": 14}}
    published = {"source": "the paper's binary CIFAR-10 run, with the best pair of its grid of alpha and learning rate",
                 "task": "cifar10/vgg_small"}
    weight_ops = 4

    Params = AskewSGDParams
    params: AskewSGDParams

    def epsilon(self, epoch: int) -> float:
        """Interval width of an epoch."""
        p = self.params
        return epsilon_at(epoch, p.eps_start or eps_bound(LEVELS[p.weights]), p.eps_warmup, p.eps_decay)

    def optimizer(self, model: nn.Module, ctx: Context) -> AskewSGD:
        p = self.params
        return AskewSGD(self.groups(model), **self.common(), eps=self.epsilon(0), alpha=p.alpha, clip=p.clip,
                        order=p.order, clamp=p.clamp, compile=p.compile)

    def on_epoch(self, state: SupervisedState) -> None:
        for group in state.optimizer.param_groups:
            group["eps"] = self.epsilon(state.epoch)

    def report(self, state: SupervisedState) -> dict[str, float]:
        return state.optimizer.constraint_report()
