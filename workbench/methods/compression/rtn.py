"""RTN: every weight is rounded to the nearest level of a uniform grid; no data are needed.

The simplest whole example of a quantiser. The formulas are those of uniform affine quantisation (Jacob et al., CVPR
2018, section 2.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from workbench.llm.formats_grid import UniformGrid
from workbench.llm.packed import Packed
from workbench.methods.compression._compression import Compression
from workbench.params import Field

if TYPE_CHECKING:
    from workbench.datasets.language import LanguageTask
    from workbench.llm.calibration import LayerStatistics
    from workbench.method import Context


@dataclass(frozen=True)
class RTN:
    """``RTN(bits=3, group_size=64)(weight)`` is the packed matrix.

    Each group of ``group_size`` consecutive inputs of a row (0: the row; the last one has what is left) has a scale s
    of its own:

    * asymmetric: ``s = (max - min) / (2^b - 1)`` over the group and zero, ``z = round(-min / s)``;
    * symmetric: ``s = max|w| / (2^(b-1) - 1)``, ``z = 2^(b-1)``;

    and ``code = clip(round(w / s + z), 0, 2^b - 1)`` stands for ``s (code - z)``.

    Codes are found with the scales as they are stored, in fp16.
    """

    bits: int = 3
    group_size: int = 64
    symmetric: bool = False
    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, weight: Tensor, stats: LayerStatistics | None = None, generator: torch.Generator | None = None) -> Packed:
        return UniformGrid(self.bits, self.group_size, self.symmetric)(weight.float())


class RTNCompression(Compression):
    """Every weight is rounded to the nearest level of a uniform grid; no data are needed."""

    id, title, family, paper = "rtn", "Round to nearest", "compression", ""
    kinds = ("language_model",)
    example: ClassVar[dict[str, Any]] = {
        "task": "pydoc/tiny_llama", "params": {"bits": 2, "rank": 4, "steps": 40, "tune_lr": 5e-3}}

    class Params(Compression.Params):
        symmetric: bool = Field(False, description="levels symmetric about zero, without zero points")

    params: Params

    def quantiser(self, task: LanguageTask, ctx: Context) -> RTN:
        return RTN(self.params.bits, self.params.group_size, self.params.symmetric)
