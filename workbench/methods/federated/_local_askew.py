"""Local training of many clients under the constraint of AskewSGD: weights drawn to levels as virtual time goes by."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.methods.federated._local import Backend, Job, Loss
from workbench.methods.federated._local_quantised import ChainRule, QuantisedSGD, needed
from workbench.methods.lowbit import _askew_kernel as kernel
from workbench.methods.lowbit._askew_constraint import eps_bound
from workbench.methods.lowbit._levels import LEVELS, Weights, nearest_level, sawb_scale
from workbench.methods.lowbit.askewsgd import AskewSGD

ASKEW_CLIP = 0.25
"""Largest step that the constraint asks for, in level gaps (AskewSGD's authors' multi-bit code)."""


class LocalAskewSGD(QuantisedSGD):
    """Constraint steps on the clients (AskewSGD: Leconte, Schechtman & Moulines, AISTATS 2023, Alg. 1) over plain SGD.

    The forward pass runs at real-valued weights; weights are drawn into intervals round the levels, whose width
    shrinks with virtual time: ``eps`` is at its bound until the share ``warmup`` of the horizon has gone by, and then
    falls geometrically to ``end`` times the bound at the horizon. From there on the server has fixed the levels' scales
    (SAWB of its model then), and clients keep to them: scales that followed the clamped weights would shrink the layers
    contact by contact. (Schedule and scales are our choice: the papers leave open how the two methods meet.)
    """

    option = "askewsgd"

    def __init__(self, model: nn.Module, loss: Loss = F.cross_entropy, backend: Backend = "auto", *,
                 weights: Weights = "4bit", layers: str = "inner", alpha: float = 0.5, warmup: float = 0.6,
                 end: float = 0.02) -> None:
        super().__init__(model, loss, backend, weights, layers)
        self.alpha, self.warmup, self.end = alpha, warmup, end
        named = dict(self.flat.model.named_modules())
        self.constrained = [named[name].weight for name in self.names]
        ids = {id(w) for w in self.constrained}
        self.plain = [p for p in self.flat.model.parameters() if id(p) not in ids]

    @torch.no_grad()
    def measured(self, vector: Tensor) -> tuple[float, ...]:
        """Scales of the quantised layers of the model ``vector``, by SAWB."""
        views = self.flat.views(vector)
        return tuple(float(sawb_scale(views[f"{name}.weight"], self.weights)) for name in self.names)

    def constrains(self, progress: float) -> bool:
        """Whether clients that receive their model then work under the constraint."""
        return self.width(progress) < 1

    @torch.no_grad()
    def deployed(self, model: nn.Module, scales: tuple[float, ...] = ()) -> nn.Module:
        twin = copy.deepcopy(model)
        layers = dict(twin.named_modules())
        for name, scale in zip(self.names, scales or self.measured(self.flat.vector(model)), strict=True):
            w = layers[name].weight
            w.copy_(nearest_level(w / scale, torch.tensor(LEVELS[self.weights], dtype=w.dtype, device=w.device)) * scale)
        return twin

    def width(self, progress: float) -> float:
        """``eps`` over its bound, when that share of the horizon has gone by."""
        late = (progress - self.warmup) / (1 - self.warmup)
        return self.end ** max(late, 0.0)

    def alone(self, lr: float, job: Job | None) -> Callable[[Tensor, Tensor], Tensor]:
        optimizer = self.optimizer(lr, needed(job and [job])[0])

        def step(x: Tensor, y: Tensor) -> Tensor:
            loss = self.loss(self.flat.model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    @torch.no_grad()
    def optimizer(self, lr: float, job: Job) -> AskewSGD:
        """The single-model optimiser of a job, for the parameters of ``flat.model``, which it brings within the levels."""
        groups = [{"params": self.constrained}, {"params": self.plain, "weights": None}]
        optimizer = AskewSGD([g for g in groups if g["params"]], lr=lr, weights=self.weights, base="sgd", momentum=0.0, scale="sawb",
                             eps=self.width(job.progress) * eps_bound(LEVELS[self.weights]), alpha=self.alpha, clip=ASKEW_CLIP)
        if self.constrains(job.progress):
            levels = LEVELS[self.weights]
            for p, scale in zip(self.constrained, job.scales, strict=True):
                optimizer.state[p]["scale"] = torch.tensor(scale, dtype=p.dtype)
                p.clamp_(levels[0] * scale, levels[-1] * scale)
        return optimizer

    def rule(self, jobs: Sequence[Job]) -> ChainRule:
        return AskewRule(self, jobs)


class AskewRule(ChainRule):
    """AskewSGD for many rows, each with its own width of the intervals."""

    def __init__(self, local: LocalAskewSGD, jobs: Sequence[Job]) -> None:
        self.local, self.jobs, self.entered = local, jobs, set()
        self.widths = [local.width(job.progress) for job in jobs]

    def weight(self, name: str, w: Tensor) -> Tensor:
        if name in self.local.names and name not in self.entered:
            self.entered.add(name)
            at, levels = self.local.names.index(name), LEVELS[self.local.weights]
            for row, job, e in zip(w, self.jobs, self.widths, strict=False):
                if e < 1:
                    row.clamp_(levels[0] * job.scales[at], levels[-1] * job.scales[at])
        return w

    def update(self, name: str, w: Tensor, gradient: Tensor, lr: Tensor) -> None:
        if name not in self.local.names:
            return super().update(name, w, gradient, lr)
        at, levels = self.local.names.index(name), LEVELS[self.local.weights]
        for row, g, rate, e, job in zip(w, gradient, lr.tolist(), self.widths, self.jobs, strict=False):
            if e >= 1:  # at the bound no weight is infeasible: a plain step
                row.sub_(g, alpha=rate)
                continue
            s = job.scales[at]
            gap = (levels[1] - levels[0]) * s
            low, high = levels[0] * s, levels[-1] * s
            constraint = kernel.Constraint(e, self.local.alpha, ASKEW_CLIP * gap / rate, gap, self.local.weights == "binary")
            kernel.sgd_step(row, g, None, constraint, lr=rate, momentum=0.0, weight_decay=0.0, low=low, high=high)
