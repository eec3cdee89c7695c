"""ApiQ: the ranges of the grid and a low-rank part are learnt together against the layer's outputs.

Liao, Herold, Khadivi & Monz, "ApiQ: Finetuning of 2-Bit Quantized Large Language Model", EMNLP 2024, arXiv:2402.05147.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from workbench.llm.descent import descend, half_through, round_through
from workbench.llm.feedback import required
from workbench.llm.formats_grid import TINY, Steps, UniformGrid
from workbench.llm.formats_uniform import groups_of, per_input
from workbench.llm.low_rank import with_low_rank
from workbench.llm.packed import Packed
from workbench.methods.compression._compression import Compression
from workbench.params import Field

if TYPE_CHECKING:
    from workbench.datasets.language import LanguageTask
    from workbench.llm.calibration import LayerStatistics
    from workbench.method import Context


@dataclass(frozen=True)
class ApiQ:
    """``min |X W^T - X (Q + B A)^T|^2`` over A, B and the clipping of each group (Liao et al. 2024, layer-wise variant).

    Q lies on a uniform grid from ``sigmoid(beta) min`` to ``sigmoid(gamma) max`` of its group (learnable weight clipping:
    OmniQuant, Shao et al., ICLR 2024), straight-through. Start: A Kaiming-uniform, B zero, clipping logits 4. Inputs enter by their
    second moment, which is the same objective. The paper's target is the layer on the full-precision model's own inputs; here
    inputs are those of the layers compressed so far, for both sides. Rates are ours, for fewer steps than the paper's 2560 (5e-4
    and 5e-3).

    Args:
        grid: width and groups.
        rank: cut to what the matrix has.
        steps: of AdamW; 0 is rounding to nearest in slightly clipped groups.
        lr, clip_lr, weight_decay: of the factors, of the logits, of both.
    """

    grid: UniformGrid = field(default_factory=UniformGrid)
    rank: int = 16
    steps: int = 100
    lr: float = 5e-3
    clip_lr: float = 0.1
    weight_decay: float = 0.0
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})

    def __call__(self, weight: Tensor, stats: LayerStatistics | None = None, generator: torch.Generator | None = None) -> Packed:
        (hessian,) = required("ApiQ", stats, "hessian")
        return self.solve(weight.float(), hessian, generator)[0]

    def solve(self, weight: Tensor, hessian: Tensor, generator: torch.Generator | None = None) -> tuple[Packed, list[float]]:
        """The matrix, and the objective as a share of that of a zero matrix, step by step."""
        (p, q), top, size = weight.shape, self.grid.top, self.grid.group_size
        r = min(self.rank, p, q)
        low, high = (torch.cat([f(w, 2) for w in groups_of(weight, size)], 1) for f in (torch.amin, torch.amax))
        low, high = low.clamp(max=0), high.clamp(min=0)
        a = ((torch.rand(r, q, generator=generator) * 2 - 1) / math.sqrt(q)).to(weight)
        b = weight.new_zeros(p, r)
        gamma, beta = torch.full_like(high, 4.0), torch.full_like(low, 4.0)

        def steps() -> Steps:
            bottom = beta.sigmoid() * low
            scale = half_through(((gamma.sigmoid() * high - bottom) / top).clamp(min=TINY))
            return Steps(scale, round_through(-bottom / scale).clamp(0, top))

        def approximate() -> Tensor:
            scale, zero = (per_input(t, q, size) for t in steps())
            code = (round_through(weight / scale + zero).clamp(0, top) - zero) * scale
            return code + half_through(b) @ half_through(a)

        rates = [{"params": [a, b], "lr": self.lr}, {"params": [gamma, beta], "lr": self.clip_lr}]
        objective = descend(approximate, [{**rate, "weight_decay": self.weight_decay} for rate in rates], weight, hessian, self.steps)
        with torch.no_grad():
            scale, zero = steps()
            # straight-through sums are a rounding error away from whole numbers
            found = Steps(scale.half().float(), zero.round())
            return with_low_rank(self.grid.pack(self.grid.encode(weight, found), found), a, b), objective


class ApiQCompression(Compression):
    """The ranges of the grid and a low-rank part are learnt together against the layer's outputs."""

    id, title, family, paper = "apiq", "ApiQ", "compression", "arXiv:2402.05147"
    kinds = ("language_model",)
    example: ClassVar[dict[str, Any]] = {"task": "pydoc/tiny_llama", "params": {"bits": 2, "rank": 4, "layer_steps": 40}}

    class Params(Compression.Params):
        rank: int = Field(8, ge=1, le=1024, description="rank of the part in high precision")
        layer_steps: int = Field(100, ge=0, le=100_000, description="gradient steps a matrix")
        layer_lr: float = Field(5e-3, gt=0, le=1, description="learning rate of the low-rank part")
        clip_lr: float = Field(0.1, gt=0, le=10, description="learning rate of the groups' ranges")

    params: Params

    def quantiser(self, task: LanguageTask, ctx: Context) -> ApiQ:
        p = self.params
        return ApiQ(UniformGrid(p.bits, p.group_size), p.rank, p.layer_steps, p.layer_lr, p.clip_lr)
