"""The model as it is: the reference of every table, with the same fine-tuning as the others where it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from workbench.llm.formats_dense import pack_dense
from workbench.llm.packed import Packed
from workbench.methods.compression._compression import Compression
from workbench.params import Field

if TYPE_CHECKING:
    from workbench.datasets.language import LanguageTask
    from workbench.llm.calibration import LayerStatistics
    from workbench.method import Context


@dataclass(frozen=True)
class Dense:
    """``Dense("float16")(weight)`` stores the numbers themselves."""

    dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, weight: Tensor, stats: LayerStatistics | None = None, generator: torch.Generator | None = None) -> Packed:
        return pack_dense(weight, getattr(torch, self.dtype))


class Uncompressed(Compression):
    """The model as it is, 16 bits a weight, or fine-tuned with low-rank parts as the compressed ones are."""

    id, title, family, paper = "uncompressed", "Uncompressed", "compression", ""
    kinds = ("language_model",)
    example: ClassVar[dict[str, Any]] = {"task": "pydoc/tiny_llama", "params": {}}

    class Params(Compression.Params):
        dtype: Literal["float32", "float16", "bfloat16"] = Field("float16", description="type that the weights are "
                                                                                        "stored in")

    params: Params

    def quantiser(self, task: LanguageTask, ctx: Context) -> Dense:
        return Dense(self.params.dtype)
