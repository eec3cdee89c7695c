"""How representations that come in blocks are scaled before they are measured: one number a block, never one a feature.

Scaling each feature would let rare words weigh as much as frequent ones. Which number suits depends on the graph: the
spread about the mean brings out moduli that vary little around a large mean, and where they vary by noise alone it
brings out noise. The probe has labels to choose by (:func:`workbench.graphs.probe.probe_blocks`); clustering has none,
so its rule is fixed. Both are ours, and the same for every method.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tracking.errors import unknown

SCALINGS = ("spread", "rms")
"""Root mean square of a block's deviations from its feature means; root mean square of the block."""
TINY = 1e-12


def block_weights(blocks: Sequence[Tensor], scaling: str) -> list[float]:
    """What to multiply each block ``(N, D_b)`` by: the inverse of its ``scaling``, and one factor for all.

    With that factor the blocks together have a spread of 1, so that a penalty means the same whatever the scaling, and
    of a single block every scaling is the same. A block of constants under ``spread``, and one of zeros, stays as it
    is.
    """
    if scaling not in SCALINGS:
        raise unknown("scaling of blocks", scaling, SCALINGS)
    sizes = torch.tensor([b.shape[1] for b in blocks], dtype=torch.float64)
    spread, rms = torch.tensor([_moments(b) for b in blocks], dtype=torch.float64).T
    size = spread if scaling == "spread" else rms
    weights = torch.where(size > TINY, 1 / size, 1.0)
    total = ((weights * spread).square() * sizes).sum().div(sizes.sum()).sqrt()
    return (weights / total if total > TINY else weights).tolist()


def scale_blocks(blocks: Sequence[Tensor], scaling: str = "spread") -> Tensor:
    """The blocks side by side, ``(N, D)``, each times its number of :func:`block_weights`."""
    return torch.cat([b * w for b, w in zip(blocks, block_weights(blocks, scaling), strict=True)], 1)


def directions(blocks: Sequence[Tensor]) -> Tensor:
    """What k-means is run on, ``(N, D)``: blocks over their root mean squares, side by side, then rows of norm 1.

    k-means adds up squares and cannot learn that a block is noise. Over their root mean squares all blocks have one
    energy, and one that hardly varies about a large mean adds hardly anything to distances. Rows of norm 1, as in
    spectral clustering (Ng, Jordan & Weiss, NIPS 2001), take out what an average over few or many neighbours does to the
    length of a node's vector. Rows of zeros stay.
    """
    table = scale_blocks(blocks, "rms")
    size = table.norm(dim=1, keepdim=True)
    return table / torch.where(size > 0, size, 1)


def _moments(block: Tensor) -> tuple[float, float]:
    """Spread about the feature means, and root mean square; float64, a part of the nodes at a time."""
    mean = block.mean(0, dtype=torch.float64)
    total = sum((part - mean).square().sum() for part in block.split(65_536)) / len(block)
    dim = max(block.shape[1], 1)
    return (total / dim).sqrt().item(), ((total + mean.square().sum()) / dim).sqrt().item()
