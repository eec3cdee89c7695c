"""RTN: every weight is rounded to the nearest level of a uniform grid; no data are needed.

The formulas are those of uniform affine quantisation (Jacob et al., CVPR 2018, section 2.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from workbench.llm.formats_grid import UniformGrid
from workbench.methods.compression._compression import Compression
from workbench.params import Field

if TYPE_CHECKING:
    from workbench.datasets.language import LanguageTask
    from workbench.method import Context


@dataclass(frozen=True)
class RTN(UniformGrid):
    """``RTN(bits=3, group_size=64)(weight)`` is the packed matrix: :class:`workbench.llm.formats_grid.UniformGrid` on the full ranges.

    Codes are found with the scales as they are stored, in fp16.
    """

    bits: int = 3


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
