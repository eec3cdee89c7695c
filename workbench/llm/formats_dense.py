"""The numbers themselves, in a type of 16 or 32 bits."""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.llm.packed import Packed, decoder


def pack_dense(weight: Tensor, dtype: torch.dtype = torch.float16) -> Packed:
    """Store a matrix (p, q) as it is, in ``dtype``. Its bits are billed as ``other``."""
    return Packed("dense", tuple(weight.shape), {"other": weight.detach().to(dtype)})


@decoder("dense")
def unpack_dense(packed: Packed) -> Tensor:
    """float32 (p, q)."""
    return packed.tensors["other"].float()
