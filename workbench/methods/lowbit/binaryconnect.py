"""BinaryConnect: forward and backward at quantised weights, update of real-valued ones (straight-through estimator).

Courbariaux, Bengio & David, "BinaryConnect: Training Deep Neural Networks with binary weights during propagations",
NeurIPS 2015, arXiv:1511.00363.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from workbench.method import Context
from workbench.methods.lowbit._levels import LEVELS, sawb_scale
from workbench.methods.lowbit._optim import LowBitOptimizer
from workbench.methods.lowbit._training import LowBitParams, LowBitTraining
from workbench.methods.supervised import SupervisedState
from workbench.params import Field
from workbench.task import SupervisedTask


def stochastic_level(w: Tensor, levels: Tensor, generator: torch.Generator) -> Tensor:
    """Round each entry of ``w`` to one of the two sorted ``levels`` (1-D) around it, without bias.

    Between ``a`` and the next level ``b`` the upper one has probability ``(w - a) / (b - a)``; for levels -1 and 1
    this is the paper's "hard sigmoid" ``P(+1) = clamp((w + 1) / 2, 0, 1)`` (eq. 2-3). At and beyond the outer levels
    it is certain.
    """
    j = (torch.bucketize(w, levels, right=True) - 1).clamp(0, len(levels) - 2)
    a, b = levels[j], levels[j + 1]
    # rand is in [0, 1): probability 1 always goes up, probability 0 never
    up = torch.rand(w.shape, generator=generator, dtype=w.dtype, device=w.device) < (w - a) / (b - a)
    return torch.where(up, b, a)


class BinaryConnect(LowBitOptimizer):
    """BinaryConnect (Courbariaux et al. 2015, Alg. 1) and its multi-level form, over SGD or Adam.

    The parameter itself holds ``W_b`` at all times, so any training loop runs forward and backward at quantised
    weights; the latent ``W`` lives in ``state[p]["latent"]``. A step is::

        g = dloss/dW_b;   W <- W - lr * direction(g);   W <- clamp(W, c_1, c_M);   W_b <- quantise(W)

    ``quantise`` is ``sign`` (0 goes to +1) or the nearest level; in stochastic mode :func:`stochastic_level`. Deployed
    are the deterministic levels. With ``scale="sawb"`` there is no clamp: the scale is recomputed from ``W``, so a
    clamp in its units would shrink the layer at every step. At unit scale and more than two levels, a common start
    (weights below a half) puts every weight on level 0, where no gradient passes: take ``"sawb"`` there.

    The ``state_dict`` holds ``W``; ``W_b`` belongs to the model's, and the generator's state is the caller's to keep.

    Args:
        mode: ``"deterministic"`` or ``"stochastic"`` weights in the forward pass.
        ste: ``"identity"`` hands ``g`` to ``W`` unchanged and clamps ``W`` (the paper); ``"hard_tanh"`` differentiates
            the clamp instead: ``W`` is free, and ``g`` is dropped where ``W`` is outside ``[c_1, c_M]``.
        generator: source of the stochastic mode's draws, on the parameters' device; needed there.
    """

    generator: torch.Generator | None = None

    def __init__(
        self, params: Iterable[Any], *, lr: float, mode: Literal["deterministic", "stochastic"] = "deterministic",
        ste: Literal["identity", "hard_tanh"] = "identity", generator: torch.Generator | None = None, **common: Any,
    ) -> None:
        if mode not in ("deterministic", "stochastic"):
            raise ValueError(f"mode = {mode!r}; allowed: 'deterministic', 'stochastic'.")
        if ste not in ("identity", "hard_tanh"):
            raise ValueError(f"ste = {ste!r}; allowed: 'identity', 'hard_tanh'.")
        if mode == "stochastic" and generator is None:
            raise ValueError("Stochastic BinaryConnect needs generator=, a torch.Generator on the parameters' device.")
        self.generator = generator  # before the base class adds the groups, which draws the first weights
        super().__init__(params, lr=lr, mode=mode, ste=ste, **common)

    def _begin(self, group: dict[str, Any]) -> None:
        for p in group["params"]:
            self.state[p]["latent"] = p.detach().clone()
            self._bind(p, group)

    def _update(self, group: dict[str, Any], params: list[nn.Parameter]) -> None:
        latents, grads = [self.state[p]["latent"] for p in params], [p.grad for p in params]
        if group["ste"] == "hard_tanh":
            low, high = LEVELS[group["weights"]][0], LEVELS[group["weights"]][-1]
            scaled = [w / _scale(w, group) for w in latents]
            grads = [torch.where((w >= low) & (w <= high), g, 0.0) for w, g in zip(scaled, grads, strict=True)]
        self._descend(group, params, latents, grads)
        for p in params:
            self._bind(p, group)

    def _bind(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        """Clamp the latent weight and write ``W_b`` into the parameter."""
        w, levels = self.state[p]["latent"], LEVELS[group["weights"]]
        if group["scale"] == "unit" and group["ste"] == "identity":
            w.clamp_(levels[0], levels[-1])
        if group["mode"] == "deterministic":
            p.copy_(self.quantise(w, group))
        else:
            s = _scale(w, group)
            p.copy_(stochastic_level(w / s, torch.tensor(levels, dtype=w.dtype, device=w.device), self.generator) * s)


def _scale(w: Tensor, group: dict[str, Any]) -> Tensor | float:
    return sawb_scale(w, group["weights"]) if group["scale"] == "sawb" else 1.0


# --- the method -------------------------------------------------------------------------------------------


@dataclass
class BinaryConnectState(SupervisedState):
    """Adds the generator of the stochastic mode."""

    rounding: torch.Generator | None = None


class BinaryConnectTraining(LowBitTraining):
    """Quantised weights by the straight-through estimator: gradients at sign(W), updates on W."""

    id = "binaryconnect"
    title = "BinaryConnect (STE)"
    family = "lowbit"
    paper = "arXiv:1511.00363"
    kinds = ("classification",)
    example = {"task": "digits/mlp", "params": {"epochs": 8, "lr": 0.01}}
    at_levels = True
    keeps_latent = True
    weight_ops = 1

    class Params(LowBitParams):
        mode: Literal["deterministic", "stochastic"] = Field(
            "deterministic", description="weights of the forward pass: nearest level, or drawn with P(+1) = (W+1)/2")
        ste: Literal["identity", "hard_tanh"] = Field(
            "identity", description="gradient handed to W: all, W clamped (paper), or none outside the levels, W free")

    params: Params

    def init(self, task: SupervisedTask, ctx: Context) -> BinaryConnectState:
        state = super().init(task, ctx)
        return BinaryConnectState(**vars(state), rounding=state.optimizer.generator)

    def optimizer(self, model: nn.Module, ctx: Context) -> BinaryConnect:
        p = self.params
        generator = ctx.generator("rounding") if p.mode == "stochastic" else None
        return BinaryConnect(self.groups(model), mode=p.mode, ste=p.ste, generator=generator, **self.common())

    def evaluate(self, state: BinaryConnectState, task: SupervisedTask, ctx: Context) -> dict[str, float]:
        """Of the deployed network alone: none ever runs at ``W``, and the batch norms know ``W_b``."""
        return self.quality(self.deploy(state), task, ctx)
