"""The identity path of ReALLM: the latent is the permuted, block-scaled matrix itself, and its vectors are coded by k-means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tracking.errors import UserError
from workbench.llm.formats_vq import index_bits, look_up, matrix, pack_order, stored_scales, to_weight, vectors
from workbench.llm.packed import pack_bits
from workbench.llm.vq.kmeans import kmeans
from workbench.llm.vq.ordering import permute
from workbench.llm.vq.scales import block_scales, divide

Axis = Literal["rows", "columns"]
PLUS_PLUS_UP_TO = 1024
"""Codewords up to which k-means++ seeds the codebook: its cost grows with their square."""


@dataclass
class Coded:
    """A matrix as it is stored, what it stands for (p, q), and its codebooks, float32 (stages, K, d), to start the next ones from."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    value: Tensor
    books: Tensor


@dataclass(frozen=True)
class VectorCode:
    """Block scales and k-means codebooks: ``bits`` a weight in vectors of ``dim``.

    Args:
        bits, dim: b and d; an index of a vector has b d bits, at most 16, shared evenly by the stages.
        axis: a vector is d consecutive rows at one column, as in ReALLM's released code, or d consecutive columns of a row.
        stages: residual vector quantisation: each stage codes what those before leave over.
        group: weights that share a scale.
        iterations: most Lloyd steps of the first codebook; one that starts from the last turn's makes a third of them.
    """

    bits: int = 2
    dim: int = 4
    axis: Axis = "rows"
    stages: int = 1
    group: int = 64
    iterations: int = 60

    def check(self) -> None:
        """Refuse what cannot be stored."""
        width = self.bits * self.dim
        if self.bits < 1 or self.dim < 1 or self.stages < 1 or width % self.stages or width // self.stages > 16:
            raise UserError(f"{self.bits} bits in vectors of {self.dim} by {self.stages} stages is refused: bits times dim is a multiple "
                            "of the stages, and at most 16 bits a stage.")

    @property
    def size(self) -> int:
        """K: codewords of a stage."""
        return 2 ** (self.bits * self.dim // self.stages)

    def __call__(self, weight: Tensor, generator: torch.Generator, *, order: Tensor | None = None, importance: Tensor | None = None,
                 start: Tensor | None = None) -> Coded:
        """Code ``weight`` (p, q).

        Args:
            order: columns of each row block, (blocks, q).
            importance: (p, q) or (1, q) weights of the squared errors; plain k-means on the scaled matrix without.
            start: codebooks to start from.
        """
        self.check()
        latent, tensors = scaled(weight, order, self.group)
        points = vectors(latent, self.dim, self.axis)
        weights = None
        if importance is not None:
            importance = importance.expand_as(weight)
            scale = stored_scales(tensors, self.group).dense(*weight.shape)
            weights = vectors((permute(importance, order) if order is not None else importance) * scale.square(), self.dim, self.axis)
            weights = weights / weights.mean().clamp(min=torch.finfo(torch.float32).tiny)
        books, codes = self._stages(points, weights, generator, start)
        stored = books.half()
        meta = {"bits": self.bits, "dim": self.dim, "axis": self.axis, "group": self.group}
        tensors = {"indices": pack_bits(codes, index_bits(self.size)), "codebooks": stored, **tensors}
        value = to_weight(matrix(look_up(stored, codes), *weight.shape, self.axis), tensors, meta)
        return Coded(tensors, meta, value, books)

    def _stages(self, points: Tensor, weights: Tensor | None, generator: torch.Generator, start: Tensor | None) -> tuple[Tensor, Tensor]:
        left, books, codes = points, [], []
        for i in range(self.stages):
            first = ("k-means++" if self.size <= PLUS_PLUS_UP_TO else "sample") if start is None else start[i]
            steps = self.iterations if start is None else -(-self.iterations // 3)
            fit = kmeans(left, self.size, weights=weights, start=first, iterations=steps, half=True, generator=generator)
            books.append(fit.codebook)
            codes.append(fit.codes)
            if i + 1 < self.stages:
                left = left - fit.codebook.T[:, fit.codes].T
        return torch.stack(books), torch.stack(codes)


def scaled(weight: Tensor, order: Tensor | None, group: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The permuted matrix over its stored block scales, and the tensors that undo both."""
    arranged = weight if order is None else permute(weight, order)
    scales = block_scales(arranged, group)
    tensors = {"scales.codes": scales.codes, "scales.tops": scales.tops, "scales.offset": scales.offset}
    if order is not None:
        tensors["permutation"] = pack_order(order)
    return divide(arranged, scales.dense(*weight.shape)), tensors
