"""Block scales by double quantisation: the largest magnitude of every 64 neighbours in a row, itself kept in 8 bits.

Dettmers et al., QLoRA, NeurIPS 2023, section 3 (double quantisation); the offset by the least scale as in LQ-LoRA
(Guo et al., ICLR 2024). A scale costs 8 + 32/256 bits: 0.127 bit a weight with blocks of 64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP, SUPER = 64, 256


@dataclass(frozen=True)
class BlockScales:
    """Scales of the blocks of a matrix (p, q), as they are stored.

    Attributes:
        codes: uint8 (p g,), ``g = ceil(q / group)`` blocks a row.
        tops: float32 (ceil(p g / 256),): the largest ``scale - offset`` of 256 neighbours of the list.
        offset: float32 (1,): the least scale of the matrix.
        group: weights in a block; the last one of a row may be shorter.
    """

    codes: Tensor
    tops: Tensor
    offset: Tensor
    group: int

    def values(self) -> Tensor:
        """``offset + top u / 255`` for each block, flat float32."""
        count = self.codes.numel()
        return self.offset + self.tops.repeat_interleave(SUPER)[:count] * (self.codes.float() / 255)

    def dense(self, p: int, q: int) -> Tensor:
        """The scale of each weight, (p, q)."""
        return self.values().view(p, -1).repeat_interleave(self.group, 1)[:, :q]


def block_scales(weight: Tensor, group: int = GROUP) -> BlockScales:
    """Scales of ``weight`` (p, q) by the largest magnitude of a block; where ``group`` does not divide q, the rest of a row is one too.

    The list of scales is filled up with its offset for the last run of 256, and that filling is not stored. A block whose
    8-bit scale would vanish while its weights do not takes the least positive one.
    """
    p, q = weight.shape
    wide = F.pad(weight.float(), (0, -q % group))
    exact = wide.view(p, -1, group).abs().amax(2).reshape(-1)
    offset = exact.min().reshape(1)
    above = F.pad(exact - offset, (0, -exact.numel() % SUPER)).view(-1, SUPER)
    tops = above.amax(1)
    codes = torch.where(tops[:, None] > 0, 255 * above / tops[:, None].clamp(min=torch.finfo(torch.float32).tiny), 0.0).round()
    codes = codes.reshape(-1)[:exact.numel()]
    codes = codes.masked_fill((exact > 0) & (codes == 0) & (offset == 0), 1)
    return BlockScales(codes.to(torch.uint8), tops, offset, group)


def divide(weight: Tensor, scales: Tensor) -> Tensor:
    """``weight / scales``, and 0 where a scale is 0."""
    return torch.where(scales > 0, weight / scales.clamp(min=torch.finfo(torch.float32).tiny), torch.zeros_like(weight))
