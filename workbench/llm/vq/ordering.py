"""Order the columns of each row block so that neighbours are alike: greedily, by the distance to the last ones' mean.

Similar columns next to each other share a block scale, and make the smooth picture that a convolutional decoder needs.
The chain is that of ReALLM's released code (Bedin et al., arXiv:2405.13155), with three changes of ours: the window
grows from one column to its width at the beginning, the order itself is what is kept, so that it is a permutation
whatever the columns are, and equally near columns are taken by number.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tracking.errors import UserError
from workbench.llm.vq.kmeans import engine, host

ROWS = 64


def order_columns(weight: Tensor, rows: int = ROWS, backend: str = "auto") -> Tensor:
    """Order (ceil(p / rows), q), int64: column ``order[k, i]`` of row block k comes to place i.

    It begins with column 0; each next place takes, of the columns left, the one nearest (Euclidean, over the block's rows)
    to the mean of the last 16 placed. Distances within 1e-12 of each other are equal: the lower number goes first.

    Where Numba is installed distances are screened on the processor in float32, sixteen columns at a time, with a bound of
    their rounding error, and only those that may be the nearest are computed in float64: the result is that of float64
    throughout. With 64 rows the products with the mean cost no more than a Gram matrix of all columns would, and need no
    room, so there is none.

    Raises:
        UserError: not a finite matrix.
    """
    if weight.dim() != 2 or 0 in weight.shape or rows < 1 or not torch.isfinite(weight).all():
        raise UserError(f"Columns of a finite matrix (p, q) can be ordered, not {tuple(weight.shape)} in blocks of {rows} rows.")
    p, q = weight.shape
    blocks = F.pad(weight.detach().float(), (0, 0, 0, -p % rows)).view(-1, rows, q)
    # a chain of many small steps: the processor's kernel is at its end before a GPU has had the steps' launches
    place = torch.device("cpu") if backend == "auto" and host() is not None else weight.device
    return engine(backend, place).order(blocks.to(place)).to(weight.device)


def inverse(order: Tensor) -> Tensor:
    """The places (k, q) to which the columns went: ``permute(permute(w, order), inverse(order)) == w``."""
    places = torch.empty_like(order)
    return places.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))


def permute(weight: Tensor, order: Tensor, rows: int = ROWS) -> Tensor:
    """``weight`` (p, q) with the columns of each block of ``rows`` rows in ``order`` (blocks, q)."""
    index = order.repeat_interleave(rows, 0)[:len(weight)]
    return weight.gather(1, index)


def smoothness(weight: Tensor) -> float:
    """Root mean square difference of neighbouring columns over the standard deviation: 1.41 for independent entries, less in a pattern."""
    deviation = weight.float().std()
    return float(weight.float().diff(dim=1).square().mean().sqrt() / deviation) if deviation > 0 else 0.0
