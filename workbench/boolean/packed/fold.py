"""Integer thresholds for what stands between a sum of votes and its threshold: batch norms, max-pools, nothing.

A batch norm rounds, so solving ``gamma (s - mean) / sigma + beta >= tau`` for ``s`` could miss the float network by
one vote. The votes are integers of a known range: the float modules are asked about every one of them, and the bound
is where their answer changes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

PART = 1 << 22  # values put through the float modules at a time: 16 MB


class Folded(NamedTuple):
    """Bits ``(s >= bound) ^ flip`` before all pools; ``falls`` says, for each pool, where what follows it falls.

    ``matrix``: a batch norm of rows is in it, which takes the last dimension for channels in a matrix alone.
    """

    bound: Tensor
    flip: Tensor
    falls: list[Tensor]
    matrix: bool


def foldable(m: nn.Module) -> bool:
    """Whether ``m`` may stand between sums and their threshold: monotone in each channel, and the same for every
    batch.
    """
    if isinstance(m, _BatchNorm):
        return m.running_mean is not None
    return isinstance(m, nn.Identity) or (isinstance(m, nn.MaxPool2d) and not m.return_indices)


@torch.no_grad()
def fold(
    chain: list[nn.Module], largest: int, channels: int, maps: bool, dtype: torch.dtype, device: torch.device
) -> Folded | None:
    """Bounds for sums in ``[-largest, largest]``; ``chain`` ends in a threshold. ``None`` where a decision changes
    more than once.
    """
    steps = [m for m in chain if not isinstance(m, (nn.MaxPool2d, nn.Identity))]
    norms = [m for m in chain if isinstance(m, _BatchNorm)]
    if any(m.num_features != channels for m in norms) or (not maps and any(isinstance(m, nn.MaxPool2d) for m in chain)):
        return None  # these run along other dimensions
    first = last = None
    trues, changes = (torch.zeros(channels, dtype=torch.int64, device=device) for _ in range(2))
    step = max(2, PART // channels)
    for begin in range(-largest, largest + 1, step):
        s = torch.arange(begin, min(begin + step, largest + 1), dtype=dtype, device=device)
        # laid out as in the network: a batch norm of maps runs along their pixels
        s = (
            s.expand(channels, -1)[None, :, :, None].contiguous()
            if maps
            else s[:, None].expand(-1, channels).contiguous()
        )
        for m in steps:
            s = m(s)
        fired = (s[0, :, :, 0].T if maps else s) > 0
        first = fired[0] if first is None else first
        changes += (fired[1:] != fired[:-1]).sum(0) + (0 if last is None else (fired[0] != last))
        trues, last = trues + fired.sum(0), fired[-1]
    if (changes > 1).any():
        return None
    rises, drops = last & ~first, first & ~last
    bound = torch.where(rises, largest + 1 - trues, torch.where(drops, trues - largest, -largest))
    # a constant decision is a bound that all sums reach, turned where it is FALSE
    flip = drops | (~first & ~last)
    pools = [i for i, m in enumerate(chain) if isinstance(m, nn.MaxPool2d)]
    falls = [_falls(chain[i + 1 :], channels, device) for i in pools]
    return Folded(bound, flip, falls, bool(norms) and not maps)


def _falls(rest: list[nn.Module], channels: int, device: torch.device) -> Tensor:
    """Where the product of the batch norms' weights is negative. Rounding keeps order, so each rises or falls as
    its weight says.
    """
    falls = torch.zeros(channels, dtype=torch.bool, device=device)
    for m in rest:
        if isinstance(m, _BatchNorm) and m.weight is not None:
            falls ^= m.weight < 0
    return falls
