"""LoftQ: quantiser and low-rank part fit the matrix together, in turns.

Li, Yu, Liang, He, Karampatziakis, Chen & Zhao, "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models", ICLR 2024,
arXiv:2310.08659.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from workbench.llm.formats_grid import NormalFloatGrid, UniformGrid
from workbench.llm.low_rank import with_low_rank
from workbench.llm.packed import Packed
from workbench.llm.reallm_lowrank import truncated_svd
from workbench.methods.compression._compression import Compression
from workbench.params import Field

if TYPE_CHECKING:
    from workbench.datasets.language import LanguageTask
    from workbench.llm.calibration import LayerStatistics
    from workbench.method import Context


@dataclass(frozen=True)
class LoftQ:
    """``min |W - Q - B A|_F`` in turns (Li et al. 2024, Alg. 1): ``Q = quantise(W - B A)``, then B A the best rank r for ``W - Q``.

    Starts with B A = 0. Rounding may raise the error of a turn, so the best turn's answer is taken (the paper takes the last one's). The
    factors are rounded to fp16, as they are stored, before the error is measured. No data are needed.

    Args:
        quantise: a function of the matrix alone, such as a grid.
        rank: cut to what the matrix has.
        turns: paper's T; 1 is quantising first and decomposing what is left.
    """

    quantise: Callable[[Tensor], Packed] = field(default_factory=NormalFloatGrid)
    rank: int = 16
    turns: int = 5
    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, weight: Tensor, stats: LayerStatistics | None = None, generator: torch.Generator | None = None) -> Packed:
        return self.solve(weight.float(), generator)[0]

    def solve(self, weight: Tensor, generator: torch.Generator | None = None) -> tuple[Packed, list[tuple[float, float]]]:
        """The best turn's answer, and of each turn the error before and after its low-rank step."""
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        errors: list[tuple[float, float]] = []
        low_rank, best, least = torch.zeros_like(weight), None, float("inf")
        for _ in range(self.turns):
            packed = self.quantise(weight - low_rank)
            code = packed.code()
            before = float((weight - code - low_rank).norm())
            b, a = truncated_svd(weight - code, min(self.rank, *weight.shape), generator)
            packed = with_low_rank(packed, a, b)
            low_rank = packed.dequantise() - code
            errors.append((before, float((weight - code - low_rank).norm())))
            if best is None or errors[-1][1] < least:
                best, least = packed, errors[-1][1]
        assert best is not None
        return best, errors


class LoftQCompression(Compression):
    """Quantiser and low-rank part fit the matrix together, in turns; no data are needed."""

    id, title, family, paper = "loftq", "LoftQ", "compression", "arXiv:2310.08659"
    kinds = ("language_model",)
    example: ClassVar[dict[str, Any]] = {"task": "pydoc/tiny_llama", "params": {"bits": 2, "rank": 4}}

    class Params(Compression.Params):
        rank: int = Field(8, ge=1, le=1024, description="rank of the part in high precision")
        turns: int = Field(5, ge=1, le=100, description="turns of quantiser and decomposition")
        levels: Literal["normal_float", "uniform"] = Field("normal_float", description="levels of the codes")

    params: Params

    def quantiser(self, task: LanguageTask, ctx: Context) -> LoftQ:
        p = self.params
        grid = NormalFloatGrid(p.bits, p.group_size) if p.levels == "normal_float" else UniformGrid(p.bits, p.group_size)
        return LoftQ(grid, p.rank, p.turns)
