"""What there is to see inside a compressed language model: where its bits go, and the pattern of a matrix before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.llm.formats_vq import unpack_order
from workbench.llm.packed import TERMS, Packed
from workbench.llm.vq.ordering import ROWS, permute
from workbench.method import View

CORNER = 96
"""Rows and columns of a matrix that are drawn entry by entry, at most."""
PATCHES = 64
"""Patches along each side of a matrix that is drawn as a whole, at most."""


def bits_view(matrices: Sequence[Packed], total: int) -> View:
    """What the bits are spent on, over the matrices compressed so far."""
    count = sum(m.shape[0] * m.shape[1] for m in matrices)
    spent = {term: sum(m.bits().get(term, 0) for m in matrices) / count for term in TERMS}
    return View("Bits a weight by what they are spent on", "bars", {term: bits for term, bits in spent.items() if bits},
                y="stored bits a weight", note=f"{len(matrices)} of {total} matrices.")


@torch.no_grad()
def pattern_views(name: str, weight: Tensor, packed: Packed) -> list[View]:
    """Matrix ``name`` as it was and as it is stored, entry by entry, and the error all over it.

    Where the columns of a block of rows were ordered, also the first block in both orders: likeness of neighbours is what the stored
    order is for.
    """
    weight = weight.detach().float()
    stored = packed.dequantise().to(weight.device)
    rows, columns = (min(CORNER, n) for n in weight.shape)
    cut = f"The first {rows} outputs and {columns} inputs of {packed.shape[0]}×{packed.shape[1]}."
    both = {"as it was": weight[:rows, :columns], "as it is stored": stored[:rows, :columns]}
    found = [_matrices(name, both, "weight", cut)]
    order = packed.tensors.get("permutation")
    if order is not None and packed.format.startswith("vq"):
        places = unpack_order(order, *packed.shape).to(weight.device)
        block = {"in the model's order": weight[:ROWS, :columns], "in the stored order": permute(weight, places)[:ROWS, :columns]}
        found.append(_matrices(f"{name}: columns", block, "weight", f"The first {min(ROWS, rows)} outputs, which share an order."))
    size = [min(PATCHES, n) for n in weight.shape]
    error = F.adaptive_avg_pool2d((weight - stored).square()[None], size)[0].sqrt() / weight.square().mean().sqrt()
    relative = float((weight - stored).norm() / weight.norm())
    note = f"Root mean square of the error in {size[0]}×{size[1]} patches over that of the weights; of the whole matrix {relative:.3g}."
    return [*found, _matrices(f"{name}: where the error is", {"": error}, "relative error", note, " patch")]


def _matrices(title: str, values: Mapping[str, Tensor], shown: str, note: str, of: str = "") -> View:
    arrays = {name: array.cpu().numpy() for name, array in values.items()}
    return View(title, "matrix", arrays, x=f"input{of}", y=f"output{of}", z=shown, note=note)
