"""Gradient descent on the output of one layer: what learns its grid or its low-rank part against calibration inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workbench.llm.feedback import row_errors


def round_through(x: Tensor) -> Tensor:
    """Round; the gradient passes as if nothing had happened (straight-through estimator, Bengio et al., 2013)."""
    return x + (x.round() - x).detach()


def half_through(x: Tensor) -> Tensor:
    """The value that fp16 gives back; the gradient passes."""
    return x + (x.detach().half().float() - x.detach())


@torch.enable_grad()
def descend(approximate: Callable[[], Tensor], groups: list[dict[str, Any]], weight: Tensor, hessian: Tensor, steps: int) -> list[float]:
    """AdamW on ``tr(E H E^T) / tr(W H W^T)`` for ``E = W - approximate()``, the rate falling linearly to zero after a tenth of warm-up.

    Args:
        approximate: the matrix (p, q) as it would be stored, from the parameters.
        groups: parameter groups as for ``torch.optim.AdamW``: leaf tensors, ``lr``, ``weight_decay``.
        steps: 0 changes nothing.

    Returns the objective before each step and at the end. The parameters are left at the best of these, so it never ends higher than it
    began.
    """
    parameters = [p for group in groups for p in group["params"]]
    for p in parameters:
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warm) * (1 - step / max(1, steps)))
    whole = row_errors(weight, hessian).sum()
    whole = torch.where(whole == 0, torch.ones_like(whole), whole)
    objective: list[Tensor] = []  # stays where it is computed: a GPU need not be waited for at each step
    best, least = [p.detach().clone() for p in parameters], torch.full_like(whole, torch.inf)
    for step in range(steps + 1):
        approximation = approximate()
        error = weight - approximation.detach()
        pulled = error @ hessian  # serves the objective and its gradient
        objective.append((pulled * error).sum() / whole)
        better = objective[-1] <= least
        least = torch.where(better, objective[-1], least)
        best = [torch.where(better, p.detach(), b) for p, b in zip(parameters, best, strict=True)]
        if step < steps:
            optimizer.zero_grad()
            approximation.backward(pulled * (-2 / whole))
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        for p, value in zip(parameters, best, strict=True):
            p.requires_grad_(False).copy_(value)
    return torch.stack(objective).tolist()
