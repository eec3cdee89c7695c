"""Scalar grids beside the plain uniform one: NormalFloat levels, fractional zero points, re-ordered and rescaled inputs.

``uniform_columns``: a uniform grid (:mod:`workbench.llm.formats_uniform`) over re-ordered inputs (``permutation``), or one whose
inputs are multiplied by a factor each (``scales.column``, fp16). ``grid``: codes that index a table of levels, or that stand on a
uniform grid with a zero point in fp16; scales in fp16 or quantised once more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from workbench.llm.formats_uniform import group_count, groups_of, pack_uniform, per_input, unpack_uniform
from workbench.llm.formats_vq import index_bits
from workbench.llm.packed import Packed, decoder, pack_bits, unpack_bits
from workbench.llm.vq.normal_float import nearest_level, normal_float
from workbench.llm.vq.scales import BlockScales, block_scales, divide

TINY, HUGE = 2.0**-24, 65504.0
"""The smallest and the largest fp16: a stored scale is neither zero nor infinite."""
Scales = Literal["fp16", "double"]


class Steps(NamedTuple):
    """Scale and zero point of every group, (p, groups) float32, with the values that are read back from storage."""

    scale: Tensor
    zero: Tensor | None = None


@dataclass(frozen=True)
class UniformGrid:
    """Evenly spaced levels ``s (k - z)``, ``k = 0 … 2^b - 1``, for each group of ``group_size`` inputs of a row (0: the row).

    Asymmetric: ``s = (max - min) / (2^b - 1)`` over a range made to include zero, ``z = round(-min / s)`` a whole number, so that a
    weight of zero stays zero. Symmetric: ``s = max|w| / (2^(b-1) - 1)``, ``z = 2^(b-1)``.

    Args:
        clip: ranges tried a group, the full one and ever smaller ones; the one of least ``sum |w - w'|^2.4`` is taken, the norm of
            GPTQ's published search. 1: the full range.
        least: no range is tried that is this share of the full one or less (GPTQ's search: 0.2).
    """

    bits: int = 4
    group_size: int = 64
    symmetric: bool = False
    clip: int = 1
    least: float = 0.2
    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def top(self) -> int:
        return 2**self.bits - 1

    def fit(self, weight: Tensor, importance: Tensor | None = None) -> Steps:
        """The grid of every group of ``weight`` (p, q). With ``importance`` (q,), clipping minimises ``sum importance (w - w')^2``."""
        groups = groups_of(weight, self.group_size)
        weights = [None] * len(groups) if importance is None else groups_of(importance[None], self.group_size)
        parts = [self._fit_groups(w, i) for w, i in zip(groups, weights, strict=True)]
        return Steps(*(torch.cat(part, 1) for part in zip(*parts, strict=True)))

    def _fit_groups(self, w: Tensor, importance: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scales and zero points (p, groups) of groups of one length, (p, groups, length)."""
        best: tuple[Tensor, Tensor] | None = None
        for step in range(self.clip):
            scale, zero = self._range(w, 1 - (1 - self.least) * step / self.clip)
            if self.clip == 1:
                return scale, zero
            error = (w - self._round(w, scale[..., None], zero[..., None])).abs()
            error = error.pow(2.4).sum(2) if importance is None else (error.square() * importance).sum(2)
            if best is None:
                best, least = (scale, zero), error
            better = error < least
            best = torch.where(better, scale, best[0]), torch.where(better, zero, best[1])
            least = torch.minimum(error, least)
        assert best is not None
        return best

    def _range(self, w: Tensor, share: float) -> tuple[Tensor, Tensor]:
        if self.symmetric:
            scale = stored_half(w.abs().amax(2) * share / (2 ** (self.bits - 1) - 1))
            return scale, torch.full_like(scale, 2 ** (self.bits - 1))
        low, high = w.amin(2).clamp(max=0) * share, w.amax(2).clamp(min=0) * share
        scale = stored_half((high - low) / self.top)
        return scale, (-low / scale).round().clamp(0, self.top)

    def _round(self, w: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return ((w / scale + zero).round().clamp(0, self.top) - zero) * scale

    def encode(self, weight: Tensor, steps: Steps) -> Tensor:
        """The code of the nearest level, float32 whole numbers (p, q)."""
        scale, zero = self.spread(steps, weight.shape[1])
        return (weight / scale + zero).round().clamp(0, self.top)

    def decode(self, codes: Tensor, steps: Steps) -> Tensor:
        """The levels (p, q) that codes stand for."""
        scale, zero = self.spread(steps, codes.shape[1])
        return (codes - zero) * scale

    def spread(self, steps: Steps, q: int) -> tuple[Tensor, Tensor]:
        """Scale and zero point of every input (p, q)."""
        return per_input(steps.scale, q, self.group_size), per_input(steps.zero, q, self.group_size)

    def pack(self, codes: Tensor, steps: Steps, permutation: Tensor | None = None, column: Tensor | None = None) -> Packed:
        """Store codes (p, q). ``permutation`` (q,): stored input i is input ``permutation[i]``; ``column`` (q,): factors of the inputs."""
        packed = pack_uniform(codes.long(), steps.scale, None if self.symmetric else steps.zero.long(), self.bits, self.group_size)
        if permutation is not None:
            packed.tensors["permutation"] = pack_bits(permutation, index_bits(len(permutation)))
        if column is not None:
            packed.tensors["scales.column"] = column.half()
        if permutation is not None or column is not None:
            packed.format = "uniform_columns"
        return packed

    def __call__(self, weight: Tensor, stats: Any = None, generator: torch.Generator | None = None) -> Packed:
        """Each weight to its nearest level. A quantiser that needs no data and draws nothing."""
        weight = weight.float()
        steps = self.fit(weight)
        return self.pack(self.encode(weight, steps), steps)


@dataclass(frozen=True)
class NormalFloatGrid:
    """NormalFloat levels times the largest magnitude of each group (QLoRA: Dettmers et al., NeurIPS 2023, section 3).

    ``scales="double"``: the magnitudes are quantised once more, to 8 bits with an fp32 scale for 256 of them: 0.127 bits a weight
    for groups of 64, where fp16 takes 0.25 (:mod:`workbench.llm.vq.scales`).
    """

    bits: int = 4
    group_size: int = 64
    scales: Scales = "double"

    def __call__(self, weight: Tensor) -> Packed:
        """Each weight to the nearest level, at the scale as it is stored."""
        tensors, scale = self._scales(weight)
        codes = nearest_level(divide(weight, scale), normal_float(self.bits).to(weight.device))
        meta = {"bits": self.bits, "group_size": self.group_size, "levels": "normal_float"}
        return Packed("grid", tuple(weight.shape), {"indices": pack_bits(codes, self.bits), **tensors}, meta)

    def _scales(self, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The payload, and the scale of each weight (p, q) as it is read back."""
        p, q = weight.shape
        if self.scales == "double":
            scales = block_scales(weight, self.group_size or q)
            return {"scales.codes": scales.codes, "scales.tops": scales.tops, "scales.offset": scales.offset}, scales.dense(p, q)
        largest = torch.cat([w.abs().amax(2) for w in groups_of(weight, self.group_size)], 1)
        return {"scales": largest.clamp(max=HUGE).half()}, per_input(stored_half(largest), q, self.group_size)


# --- scales ------------------------------------------------------------------------------------------


def stored_half(scale: Tensor) -> Tensor:
    """A positive scale as fp16 gives it back; zero (a group of zeros) becomes the smallest fp16."""
    return scale.clamp(TINY, HUGE).half().float()


# --- decoders -------------------------------------------------------------------------------------------------


@decoder("uniform_columns")
def unpack_uniform_columns(packed: Packed) -> Tensor:
    """A uniform grid, its inputs put back in order and multiplied by their factors."""
    weight, q = unpack_uniform(packed), packed.shape[1]
    if "permutation" in packed.tensors:
        order = unpack_bits(packed.tensors["permutation"], index_bits(q), q)
        weight = weight[:, order.argsort()]
    if "scales.column" in packed.tensors:
        weight = weight * packed.tensors["scales.column"].float()
    return weight


@decoder("grid")
def unpack_grid(packed: Packed) -> Tensor:
    """``s level[code]``, or ``s (code - z)`` with z in fp16."""
    (p, q), meta, tensors = packed.shape, packed.meta, packed.tensors
    bits, size = meta["bits"], meta["group_size"]
    groups = group_count(q, size)
    if "scales.codes" in tensors:
        scale = BlockScales(tensors["scales.codes"], tensors["scales.tops"], tensors["scales.offset"], size or q).dense(p, q)
    else:
        scale = per_input(tensors["scales"].float().view(p, groups), q, size)
    codes = unpack_bits(tensors["indices"], bits, p * q).view(p, q)
    if meta["levels"] == "normal_float":
        return normal_float(bits).to(codes.device)[codes] * scale
    return (codes - per_input(tensors["zeros"].float().view(p, groups), q, size)) * scale
