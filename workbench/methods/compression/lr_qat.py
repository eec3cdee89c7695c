"""LR-QAT: a low-rank part inside the rounding is trained, then fused, so that nothing of it is stored.

Bondarenko, Del Chiaro & Nagel, "Low-Rank Quantization-Aware Training for LLMs", arXiv:2406.06385, 2024.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from workbench.llm.descent import descend, half_through, round_through
from workbench.llm.feedback import required
from workbench.llm.formats_grid import TINY, Steps, UniformGrid
from workbench.llm.formats_uniform import per_input
from workbench.llm.packed import Packed
from workbench.methods.compression._compression import Compression
from workbench.params import Field

if TYPE_CHECKING:
    from workbench.datasets.language import LanguageTask
    from workbench.llm.calibration import LayerStatistics
    from workbench.method import Context


@dataclass(frozen=True)
class LRQAT:
    """``W' = s clamp(round(phi(W / s_0) + (alpha / r) B A))`` (Bondarenko et al. 2024, section 3), A, B and s trained, straight-through.

    The grid is symmetric, its codes from ``-2^(b-1)`` to ``2^(b-1) - 1``; s_0 is its scale at the start and stays in phi. What is
    stored is a plain uniform matrix. B starts at zero, so with ``phi="float"`` and no steps this is rounding to nearest. The paper
    trains the whole network on its language-model loss for 10,000 steps; here each matrix is trained on its outputs, for fewer
    steps at higher rates.

    Args:
        grid: width, groups and search of the first range; always symmetric.
        rank: r of the part inside the rounding; costs no bits.
        alpha: its factor is ``alpha / r``; 0: alpha = r.
        phi: ``fixed``: W / s_0 is kept in 8 bits, b of them before the point (the paper's fixed-point-8); ``float``: as it is. Tells what
            training has to remember, and nothing about what is stored in the end.
        steps, lr, scale_lr: of Adam; rates of A and B, and of s as a share of its mean.
    """

    grid: UniformGrid = field(default_factory=lambda: UniformGrid(symmetric=True, clip=20))
    rank: int = 32
    alpha: float = 0.0
    phi: Literal["fixed", "float"] = "fixed"
    steps: int = 100
    lr: float = 1e-2
    scale_lr: float = 1e-3
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})

    def __call__(self, weight: Tensor, stats: LayerStatistics | None = None, generator: torch.Generator | None = None) -> Packed:
        (hessian,) = required("LR-QAT", stats, "hessian")
        return self.solve(weight.float(), hessian, generator)[0]

    def solve(self, weight: Tensor, hessian: Tensor, generator: torch.Generator | None = None) -> tuple[Packed, list[float]]:
        """The matrix, and the objective as a share of that of a zero matrix, step by step."""
        (p, q), half, size = weight.shape, 2 ** (self.grid.bits - 1), self.grid.group_size
        r = min(self.rank, p, q)
        start = self.grid.fit(weight, hessian.diagonal())
        frozen = self._phi(weight / per_input(start.scale, q, size))
        a = ((torch.rand(r, q, generator=generator) * 2 - 1) / math.sqrt(q)).to(weight)
        b = weight.new_zeros(p, r)
        mean = start.scale.mean()
        relative = start.scale / mean
        factor = (self.alpha or r) / r

        def scale() -> Tensor:
            return half_through((relative * mean).clamp(min=TINY))

        def approximate() -> Tensor:
            codes = round_through(frozen + factor * (b @ a)).clamp(-half, half - 1)
            return codes * per_input(scale(), q, size)

        rates = [{"params": [a, b], "lr": self.lr}, {"params": [relative], "lr": self.scale_lr}]
        objective = descend(approximate, [{**rate, "weight_decay": 0.0} for rate in rates], weight, hessian, self.steps)
        codes = (frozen + factor * (b @ a)).round().clamp(-half, half - 1) + half
        return self.grid.pack(codes, Steps(scale(), start.zero)), objective

    def _phi(self, x: Tensor) -> Tensor:
        if self.phi == "float":
            return x
        half, unit = 2 ** (self.grid.bits - 1), 2 ** (8 - self.grid.bits)
        return (x * unit).round().clamp(-half * unit, half * unit - 1) / unit


class LRQATCompression(Compression):
    """A low-rank part inside the rounding is trained, then fused, so that nothing of it is stored."""

    id, title, family, paper = "lr_qat", "LR-QAT", "compression", "arXiv:2406.06385"
    kinds = ("language_model",)
    example: ClassVar[dict[str, Any]] = {"task": "pydoc/tiny_llama", "params": {"bits": 2, "layer_steps": 40}}

    class Params(Compression.Params):
        inner_rank: int = Field(32, ge=1, le=1024, description="rank of the part inside the rounding, which costs no bits")
        layer_steps: int = Field(100, ge=0, le=100_000, description="gradient steps a matrix")
        layer_lr: float = Field(1e-2, gt=0, le=1, description="learning rate of the part inside the rounding")
        scale_lr: float = Field(1e-3, ge=0, le=1, description="learning rate of the scales, as a share of their mean")
        phi: Literal["fixed", "float"] = Field("fixed", description="how weights are kept in training: 8-bit fixed point or as they are")

    params: Params

    def quantiser(self, task: LanguageTask, ctx: Context) -> LRQAT:
        p = self.params
        grid = UniformGrid(p.bits, p.group_size, symmetric=True, clip=20)
        return LRQAT(grid, p.inner_rank, 0.0, p.phi, p.layer_steps, p.layer_lr, p.scale_lr)
