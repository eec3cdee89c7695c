"""NF4 and its narrower kin: levels at quantiles of the normal distribution, scales quantised once more; with a rank, QLoRA.

Dettmers, Pagnoni, Holtzman & Zettlemoyer, "QLoRA: Efficient Finetuning of Quantized LLMs", NeurIPS 2023, arXiv:2305.14314.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from workbench.llm.formats_grid import NormalFloatGrid
from workbench.llm.low_rank import with_low_rank
from workbench.llm.packed import Packed
from workbench.methods.compression._compression import Compression
from workbench.params import Field

if TYPE_CHECKING:
    from workbench.datasets.language import LanguageTask
    from workbench.llm.calibration import LayerStatistics
    from workbench.method import Context


@dataclass(frozen=True)
class QLoRA:
    """NormalFloat (QLoRA, section 3): each weight to the nearest level times its group's largest magnitude; no data are needed.

    Args:
        grid: width, group and storage of the scales.
        rank: of LoRA factors to fine-tune, A uniform in ``±1/sqrt(q)`` (Kaiming with slope sqrt 5) and B zero, so that the matrix
            starts unchanged.
    """

    grid: NormalFloatGrid = field(default_factory=NormalFloatGrid)
    rank: int = 0
    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, weight: Tensor, stats: LayerStatistics | None = None, generator: torch.Generator | None = None) -> Packed:
        packed = self.grid(weight.float())
        if self.rank:
            (p, q), r = weight.shape, min(self.rank, *weight.shape)
            a = (torch.rand(r, q, generator=generator) * 2 - 1) / math.sqrt(q)
            packed = with_low_rank(packed, a.to(weight.device), weight.new_zeros(p, r))
        return packed


class NF4(Compression):
    """Levels at quantiles of the normal distribution, with scales quantised once more; with a rank, QLoRA's adapters."""

    id, title, family, paper = "nf4", "NF4 / QLoRA", "compression", "arXiv:2305.14314"
    kinds = ("language_model",)
    example: ClassVar[dict[str, Any]] = {"task": "pydoc/tiny_llama", "params": {"bits": 2, "rank": 4, "steps": 40, "tune_lr": 5e-3}}
    published = {"source": "QLoRA's paper, 7B and 13B models", "params": {
        "group_size": 64, "rank": 64, "tune_lr": 2e-4, "tune_batch": 16}}

    class Params(Compression.Params):
        bits: int = Field(4, ge=2, le=8, description="bits a code; 4 is NF4, others use the same quantile rule")
        scales: Literal["double", "fp16"] = Field("double", description="how the scales of the groups are stored")

    params: Params

    def quantiser(self, task: LanguageTask, ctx: Context) -> QLoRA:
        p = self.params
        return QLoRA(NormalFloatGrid(p.bits, p.group_size, p.scales), p.rank)
