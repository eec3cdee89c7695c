"""What tests of the Boolean optimiser share: parameters of signs, and signals for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from workbench.boolean.layers import random_signs


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parameter(*shape: int, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(random_signs(shape, generator=source(seed)))


def signals(p: Tensor, steps: int, seed: int = 1, size: float = 1.0) -> list[Tensor]:
    generator = source(seed)
    return [size * torch.randn(p.shape, generator=generator) for _ in range(steps)]


def follow(optimizer: torch.optim.Optimizer, p: nn.Parameter, qs: list[Tensor]) -> None:
    for q in qs:
        p.grad = q.clone()
        optimizer.step()
