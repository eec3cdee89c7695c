"""ReALLM: low rank plus a vector-quantised latent and its decoder, the shape chosen for each matrix where a budget is given.

Bedin, Leconte, Nguyen & Moulines, "ReALLM: A general framework for LLM compression and fine-tuning", 2024, arXiv:2405.13155. The quantiser,
free of the bench: ``from workbench.llm.reallm import ReALLM, VectorCode, Autoencoder``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pydantic

from workbench.llm.reallm import Autoencoder, ReALLM, VectorCode
from workbench.methods.compression._compression import Compression
from workbench.params import Field

if TYPE_CHECKING:
    from workbench.datasets.language import LanguageTask
    from workbench.method import Context


class ReALLMCompression(Compression):
    """Low rank plus a k-means coded latent and its decoder, in one shape for all matrices or in the best one for each under a budget."""

    id, title, family, paper = "reallm", "ReALLM", "compression", "arXiv:2405.13155"
    kinds = ("language_model",)
    example: ClassVar[dict[str, Any]] = {
        "task": "pydoc/tiny_llama",
        "params": {"bits": 2, "dim": 2, "rank": 4, "turns": 3}}

    class Params(Compression.Params):
        bits: int = Field(2, ge=1, le=8, description="bits of an index for each weight (b)")
        dim: int = Field(4, ge=1, le=16, description="weights in a vector (d); a codebook has 2^(b d / stages) codewords")
        axis: Literal["rows", "columns"] = Field("rows", description="a vector is d neighbouring rows at one column, or columns of a row")
        stages: int = Field(1, ge=1, le=8, description="codebooks in a row, each for what those before leave over")
        group_size: int = Field(64, ge=1, le=65_536, description="consecutive inputs of a row that share a scale")
        permute: Literal["auto", "always", "never"] = Field("auto", description="order columns; auto: where it pays")
        turns: int = Field(20, ge=1, le=1000, description="turns of low rank and code, at most")
        tolerance: float = Field(1e-3, ge=0, lt=1, description="turns end when one lowers the error by less than this share")
        weighting: Literal["none", "scale", "hessian", "fisher"] = Field("none", description="how much the error of a weight counts")
        row_norms: Literal["approximation", "weight"] = Field("approximation", description="what `magnitude` starts at")
        budget: float = Field(0.0, ge=0, le=16, description="bits a weight over all matrices, all terms counted: each gets bits, dim and "
                                                              "rank of its own; 0 = one shape for all")
        network: bool = Field(False, description="neural path: an autoencoder of the matrix's patches (minutes a matrix)")
        patch: int = Field(192, ge=4, le=4096, description="neural path: side of a patch, a multiple of 32")
        width: int = Field(32, ge=1, le=1024, description="neural path: channels behind the decoder's stem")
        decoder_bits: int = Field(6, ge=2, le=8, description="neural path: NormalFloat bits of the decoder's weights")
        network_steps: int = Field(1000, ge=0, le=1_000_000, description="neural path: training steps")

        @pydantic.model_validator(mode="after")
        def _storable(self) -> ReALLMCompression.Params:
            width = self.bits * self.dim
            if width % self.stages or width // self.stages > 16:
                raise ValueError(f"bits times dim is {width}; it is to be a multiple of stages = {self.stages}, with at most 16 a stage")
            if self.network and (self.patch % 32 or 16 % self.dim or self.stages > 1 or self.weighting != "none"):
                raise ValueError("network needs patch as a multiple of 32, a dim that divides 16, one stage and weighting none")
            return self

    params: Params

    def quantiser(self, task: LanguageTask, ctx: Context) -> ReALLM:
        p = self.params
        identity = VectorCode(p.bits, p.dim, p.axis, p.stages, p.group_size)
        network = Autoencoder(p.bits, p.dim, p.patch, width=p.width, decoder_bits=p.decoder_bits, steps=p.network_steps, group=p.group_size)
        return ReALLM(network if p.network else identity, p.rank, p.turns, p.permute, p.weighting,
                      p.row_norms if p.magnitude else "none", p.tolerance)
