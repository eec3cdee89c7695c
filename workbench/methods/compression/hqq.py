"""HQQ: zero points that make a robust norm of the error small, found by half-quadratic splitting; no data.

Badri & Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", Mobius Labs, November 2023
(https://mobiusml.github.io/hqq_blog/).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from workbench.llm.formats_grid import Steps, UniformGrid
from workbench.llm.formats_uniform import groups_of, per_input
from workbench.llm.packed import Packed, pack_bits
from workbench.methods.compression._compression import Compression
from workbench.params import Field

if TYPE_CHECKING:
    from workbench.datasets.language import LanguageTask
    from workbench.llm.calibration import LayerStatistics
    from workbench.method import Context


@dataclass(frozen=True)
class HQQ:
    """Half-quadratic quantisation: ``min over z of sum |W - s (round(W / s + z) - z)|^p`` with ``p < 1``, scales s fixed.

    With an auxiliary error ``W_e`` the problem splits (the report's equations for its two sub-problems): ``W_e <- shrink(W - W_r;
    beta, p)``, the generalised soft threshold ``sign(x) relu(|x| - |x|^(p-1) / beta)``, and ``z <- mean over the group of (code -
    (W - W_e) / s)``; beta grows by ``kappa``. The threshold is no exact proximal step and the codes change
    after it, so a group takes a new z only where that lowers its own sum, rounding of z to fp16 included: the objective never
    rises. (The published code takes every step and stops at the first iteration that does not lower the mean error.)

    Args:
        grid: width, group and the range that gives scales and first zero points.
        iterations, p, beta, kappa: the report's 20, 0.7, 10, 1.01.
    """

    grid: UniformGrid = field(default_factory=UniformGrid)
    iterations: int = 20
    p: float = 0.7
    beta: float = 10.0
    kappa: float = 1.01
    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, weight: Tensor, stats: LayerStatistics | None = None, generator: torch.Generator | None = None) -> Packed:
        weight = weight.float()
        steps, _ = self.solve(weight)
        size, bits = self.grid.group_size, self.grid.bits
        tensors = {"indices": pack_bits(self.grid.encode(weight, steps).long(), bits), "scales": steps.scale.half().reshape(-1),
                   "zeros": steps.zero.half().reshape(-1)}
        return Packed("grid", tuple(weight.shape), tensors, {"bits": bits, "group_size": size, "levels": "uniform"})

    def solve(self, weight: Tensor) -> tuple[Steps, list[float]]:
        """Scales and zero points, and the objective at the start and after each iteration."""
        grid, q = replace(self.grid, symmetric=False), weight.shape[1]
        scale, zero = grid.fit(weight)
        beta, least = self.beta, self._sums(weight, grid, Steps(scale, zero))
        objective = [least.sum()]
        each = per_input(scale, q, grid.group_size)
        for _ in range(self.iterations):
            codes = grid.encode(weight, Steps(scale, zero))
            error = weight - grid.decode(codes, Steps(scale, zero))
            size = error.abs()
            shrunk = error.sign() * (size - size.clamp(min=1e-8).pow(self.p - 1) / beta).clamp(min=0)
            proposed = per_group(codes - (weight - shrunk) / each, torch.mean, grid.group_size).half().float()
            sums = self._sums(weight, grid, Steps(scale, proposed))
            zero = torch.where(sums < least, proposed, zero)
            least = torch.minimum(sums, least)
            objective.append(least.sum())
            beta *= self.kappa
        return Steps(scale, zero), torch.stack(objective).tolist()

    def _sums(self, weight: Tensor, grid: UniformGrid, steps: Steps) -> Tensor:
        error = weight - grid.decode(grid.encode(weight, steps), steps)
        return per_group(error.abs().pow(self.p), torch.sum, grid.group_size)


def per_group(values: Tensor, reduce: Callable[[Tensor, int], Tensor], group_size: int) -> Tensor:
    """A sum or a mean over the groups of each row, of which the last may be shorter: (p, q) to (p, groups)."""
    return torch.cat([reduce(part, 2) for part in groups_of(values, group_size)], 1)


class HQQCompression(Compression):
    """Zero points that make a robust norm of the weights' error small; no data are needed."""

    id, title, family = "hqq", "HQQ", "compression"
    kinds = ("language_model",)
    example: ClassVar[dict[str, Any]] = {"task": "pydoc/tiny_llama", "params": {"bits": 2}}

    class Params(Compression.Params):
        iterations: int = Field(20, ge=0, le=1000, description="half-quadratic steps")
        p: float = Field(0.7, gt=0, le=2, description="exponent of the norm of the error")
        beta: float = Field(10.0, gt=0, description="first strength of the splitting")
        kappa: float = Field(1.01, ge=1, le=10, description="factor on it a step")

    params: Params

    def quantiser(self, task: LanguageTask, ctx: Context) -> HQQ:
        p = self.params
        return HQQ(UniformGrid(p.bits, p.group_size), p.iterations, p.p, p.beta, p.kappa)
