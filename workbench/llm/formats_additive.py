"""Additive codebooks: d consecutive inputs of an output are the sum of one codeword from each of M tables, times the row's scale."""

from __future__ import annotations

from torch import Tensor

from workbench.llm.packed import Packed, decoder, pack_bits, unpack_bits


def pack_additive(codes: Tensor, codebooks: Tensor, scales: Tensor, q: int) -> Packed:
    """Store codes (p, groups, M) into ``codebooks`` (M, 2^B, d) and the rows' ``scales`` (p,), both as fp16.

    ``groups = ceil(q / d)``: the last codewords may reach beyond the last input, and are cut there.
    """
    tensors = {"indices": pack_bits(codes, (codebooks.shape[1] - 1).bit_length()), "codebooks": codebooks.half(), "scales": scales.half()}
    return Packed("additive", (len(codes), q), tensors)


def sum_codewords(codes: Tensor, codebooks: Tensor) -> Tensor:
    """Sums of codewords (p, groups d) for codes (p, groups, M) into codebooks (M, K, d)."""
    total = codebooks[0][codes[..., 0]]
    for m in range(1, len(codebooks)):
        total = total + codebooks[m][codes[..., m]]
    return total.flatten(1)


@decoder("additive")
def unpack_additive(packed: Packed) -> Tensor:
    """``scale_i sum_m C_m[code]``, float32 (p, q)."""
    (p, q), codebooks = packed.shape, packed.tensors["codebooks"].float()
    count, size, d = codebooks.shape
    groups = -(-q // d)
    codes = unpack_bits(packed.tensors["indices"], (size - 1).bit_length(), p * groups * count).view(p, groups, count)
    return sum_codewords(codes, codebooks)[:, :q] * packed.tensors["scales"].float()[:, None]
