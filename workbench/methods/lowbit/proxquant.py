"""ProxQuant: gradient steps at real-valued weights, each followed by a proximal step towards the levels.

Bai, Wang & Liberty, "ProxQuant: Quantized Neural Networks via Proximal Operators", ICLR 2019, arXiv:1810.00861.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import pydantic
import torch
from torch import Tensor, nn

from workbench.method import Context
from workbench.methods.lowbit._levels import LEVELS
from workbench.methods.lowbit._optim import LowBitOptimizer
from workbench.methods.lowbit._training import LowBitParams, LowBitTraining
from workbench.methods.supervised import SupervisedState
from workbench.params import Field


def prox_l1(v: Tensor, q: Tensor, t: float) -> Tensor:
    """``argmin_w 0.5 (w - v)^2 + t |w - q|``: soft threshold of ``v`` towards ``q`` by ``t >= 0``.

    With ``q = sign(v)`` this is the proximal operator of the W-shaped ``t min(|w - 1|, |w + 1|)``: ``sign(v) (1 +
    sign(r) relu(|r| - t))`` with ``r = |v| - 1``.
    """
    return q + torch.sign(v - q) * ((v - q).abs() - t).clamp_min(0)


def prox_l2(v: Tensor, q: Tensor, t: float) -> Tensor:
    """``argmin_w 0.5 (w - v)^2 + 0.5 t (w - q)^2 = (v + t q) / (1 + t)``, for ``t >= 0``."""
    return (v + t * q) / (1 + t)


def ternarise(w: Tensor) -> Tensor:
    """Ternary weights fitted to ``w``: threshold ``0.7 mean|w|``, each outer level the mean of its weights."""
    delta = 0.7 * w.abs().mean()
    q = torch.zeros_like(w)
    for side in (w >= delta, w <= -delta):
        q = torch.where(side, (w * side).sum() / side.sum().clamp_min(1), q)
    return q


class ProxQuant(LowBitOptimizer):
    """ProxQuant (Bai, Wang & Liberty 2019, Alg. 1) over SGD or Adam.

    The parameter is the real-valued ``W``, also in the forward pass. A step is::

        g = dloss/dW;   V <- W - lr * direction(g);   W <- prox(V; Q(V), lr * lam);   W <- clamp(W, c_1, c_M)

    ``Q`` is ``sign`` (0 goes to +1) or the nearest level. ``lam`` of each group is the caller's to raise; the paper
    takes ``lam = reg_rate * epoch``. :meth:`freeze` puts ``W`` on its levels for good. Nothing is kept beside the
    inner rule's moments.

    Args:
        lam: strength of the regulariser, of every group that names none.
        penalty: ``"l1"`` (:func:`prox_l1`, the paper's for binary weights) or ``"l2"`` (:func:`prox_l2`, the
            authors' code for ternary ones).
        clip: keep ``W`` within the outer levels, as the authors' code does; has no meaning under ``scale="sawb"``.
        scale: besides ``"unit"`` and ``"sawb"``, ternary weights can take ``"fitted"`` levels (:func:`ternarise`).
    """

    def __init__(
        self, params: Iterable[Any], *, lr: float, lam: float = 0.0, penalty: Literal["l1", "l2"] = "l1",
        clip: bool = True, scale: Literal["unit", "sawb", "fitted"] = "unit", weights: str | None = "binary",
        **common: Any,
    ) -> None:
        if penalty not in ("l1", "l2"):
            raise ValueError(f"penalty = {penalty!r}; allowed: 'l1', 'l2'.")
        super().__init__(params, lr=lr, lam=lam, penalty=penalty, clip=clip, scale=scale, weights=weights,
                         frozen=False, **common)

    def _begin(self, group: dict[str, Any]) -> None:
        if group["scale"] == "fitted" and group["weights"] not in ("ternary", None):
            raise ValueError(f"scale = 'fitted' is for weights = 'ternary', not {group['weights']!r}.")

    def _update(self, group: dict[str, Any], params: list[nn.Parameter]) -> None:
        if group["frozen"]:
            return
        self._descend(group, params, params, [p.grad for p in params])
        prox = prox_l1 if group["penalty"] == "l1" else prox_l2
        for p in params:
            p.copy_(prox(p, self.quantise(p, group), group["lr"] * group["lam"]))
            if group["clip"] and group["scale"] != "sawb":
                p.clamp_(LEVELS[group["weights"]][0], LEVELS[group["weights"]][-1])

    @torch.no_grad()
    def quantise(self, w: Tensor, group: dict[str, Any]) -> Tensor:
        """``Q(w)``: as the base class, or the fitted ternary levels."""
        return ternarise(w) if group["scale"] == "fitted" else super().quantise(w, group)

    @torch.no_grad()
    def freeze(self) -> None:
        """``W <- Q(W)``, fixed from now on, its moments dropped; the other groups and batch-norm statistics go on."""
        # requires_grad stays: a network whose every parameter is frozen must still accept a backward pass
        for p, q in self.deployed().items():
            p.copy_(q)
            self.state.pop(p, None)
        for group in self.param_groups:
            group["frozen"] = group["weights"] is not None


# --- the method -------------------------------------------------------------------------------------------


class ProxQuantTraining(LowBitTraining):
    """Quantised weights by a proximal step towards the levels that grows stronger each epoch, then frozen."""

    id = "proxquant"
    title = "ProxQuant"
    family = "lowbit"
    paper = "arXiv:1810.00861"
    kinds = ("classification",)
    example = {"task": "digits/mlp", "params": {"epochs": 12, "lr": 0.01, "reg_rate": 0.1, "freeze_epoch": 10}}
    weight_ops = 3

    class Params(LowBitParams):
        scale: Literal["unit", "sawb", "fitted"] = Field(
            "unit",
            description="levels at integer values, scaled by layer (SAWB), or fitted by layer (ternary, authors' code)")
        reg_rate: float = Field(
            1e-4, ge=0, le=1000,
            description="strength of the pull, lam = reg_rate * epoch (authors' code: 1e-4 over 300 epochs)")
        penalty: Literal["auto", "l1", "l2"] = Field(
            "auto", description="penalised distance; auto: l1 for binary, l2 for more levels (authors' code)")
        freeze_epoch: int = Field(
            200, ge=0,
            description="epoch at whose start the quantised weights are rounded and fixed (paper: 200); 0 = never")
        clip: bool = Field(True, description="keep weights within the outer levels after each step (authors' code)")

        @pydantic.model_validator(mode="after")
        def _fitted_is_ternary(self) -> ProxQuantTraining.Params:
            if self.scale == "fitted" and self.weights != "ternary":
                raise ValueError("scale = 'fitted' is for weights = 'ternary'; take 'unit' or 'sawb' for other levels")
            return self

    params: Params

    def optimizer(self, model: nn.Module, ctx: Context) -> ProxQuant:
        p = self.params
        penalty = ("l1" if p.weights == "binary" else "l2") if p.penalty == "auto" else p.penalty
        return ProxQuant(self.groups(model), penalty=penalty, clip=p.clip, **self.common())

    def on_epoch(self, state: SupervisedState) -> None:
        for group in state.optimizer.param_groups:
            group["lam"] = self.params.reg_rate * state.epoch
        if self.params.freeze_epoch and state.epoch == self.params.freeze_epoch:
            state.optimizer.freeze()

    def report(self, state: SupervisedState) -> dict[str, float]:
        return {"train/regularisation": state.optimizer.param_groups[0]["lam"]}
