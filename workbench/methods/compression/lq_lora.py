"""LQ-LoRA: low-rank part first, quantiser second, in turns, and errors weighed by the Fisher information.

Guo, Greengard, Xing & Kim, "LQ-LoRA: Low-rank Plus Quantized Matrix Decomposition for Efficient Language Model Finetuning", ICLR 2024,
arXiv:2311.12023.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from workbench.llm.feedback import required
from workbench.llm.formats_grid import NormalFloatGrid
from workbench.llm.low_rank import with_low_rank
from workbench.llm.packed import Packed
from workbench.llm.reallm_lowrank import Importance, alternate
from workbench.methods.compression._compression import Compression
from workbench.params import Field

if TYPE_CHECKING:
    from workbench.datasets.language import LanguageTask
    from workbench.llm.calibration import LayerStatistics
    from workbench.method import Context


@dataclass(frozen=True)
class LQLoRA:
    """``min |sqrt(F) ⊙ (W - Q - B A)|_F`` in turns (Guo et al. 2024, Alg. 1 and 2): B A first, then ``Q = NF(W - B A)``.

    It ends at the first turn that does not lower the error, and returns the turn before. Weighting each entry makes the low-rank
    step NP-hard, so F
    is replaced there by the product of its row and column means: ``diag(w_row) (W - Q) diag(w_col)`` is decomposed.

    Args:
        grid: NormalFloat levels of the codes.
        rank: cut to what the matrix has.
        turns: at most (released code: 100).
        weighted: use the Fisher information; otherwise all entries weigh the same and no data are needed.
    """

    grid: NormalFloatGrid = field(default_factory=NormalFloatGrid)
    rank: int = 16
    turns: int = 20
    weighted: bool = False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"fisher"} if self.weighted else ())

    def __call__(self, weight: Tensor, stats: LayerStatistics | None = None, generator: torch.Generator | None = None) -> Packed:
        importance = Importance.of_fisher(required("LQ-LoRA with Fisher weights", stats, "fisher")[0]) if self.weighted else None
        return self.solve(weight.float(), importance, generator)[0]

    def solve(self, weight: Tensor, importance: Importance | None = None,
              generator: torch.Generator | None = None) -> tuple[Packed, list[float]]:
        """The answer, and the error of each turn that was kept."""
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        found = alternate(weight, min(self.rank, *weight.shape), self._code, steps=self.turns, generator=generator, importance=importance)
        return with_low_rank(found.code, found.a, found.b), found.errors

    def _code(self, matrix: Tensor) -> tuple[Packed, Tensor]:
        packed = self.grid(matrix)
        return packed, packed.code()


class LQLoRACompression(Compression):
    """Low-rank part first, quantiser second, in turns; errors may be weighed by the Fisher information."""

    id, title, family, paper = "lq_lora", "LQ-LoRA", "compression", "arXiv:2311.12023"
    kinds = ("language_model",)
    example: ClassVar[dict[str, Any]] = {"task": "pydoc/tiny_llama", "params": {"bits": 2, "rank": 4}}

    class Params(Compression.Params):
        rank: int = Field(8, ge=1, le=1024, description="rank of the part in high precision")
        turns: int = Field(20, ge=1, le=100, description="turns of decomposition and quantiser, at most")
        weighting: Literal["none", "fisher"] = Field("none", description="how much the error of a weight counts")

    params: Params

    def quantiser(self, task: LanguageTask, ctx: Context) -> LQLoRA:
        p = self.params
        return LQLoRA(NormalFloatGrid(p.bits, p.group_size), p.rank, p.turns, p.weighting == "fisher")
