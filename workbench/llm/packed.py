"""A compressed matrix exactly as it is stored, and the registry of the functions that decode one.

What a matrix costs is counted on the tensors that lie on disk, term by term, never by a formula.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracking.codecs.bits import pack, packed_size, unpack
from tracking.errors import UserError, unknown

TERMS = ("indices", "codebooks", "scales", "zeros", "permutation", "decoder", "low_rank", "magnitude", "other")
"""What the bits of a matrix are spent on. A tensor's name is a term, or a term, a dot and more."""
HIGH_PRECISION = ("low_rank", "magnitude")
"""Terms that fine-tuning changes; the others are the code."""

Decoder = Callable[["Packed"], Tensor]
FORMATS: dict[str, Decoder] = {}
"""Decoder by format: ``decoder(packed)`` is the float32 matrix (p, q) without its low-rank part and magnitude."""
Product = Callable[["Packed", Tensor], Tensor]
PRODUCTS: dict[str, Product] = {}
"""By format, where there is one: ``product(packed, x)`` for x (n, q) is ``x Q^T`` (n, p), float32, without Q ever
being whole in memory."""


def decoder(name: str) -> Callable[[Decoder], Decoder]:
    """Register a function as the decoder of a format. It lies in ``workbench/llm/formats_*.py``, or in your own
    module."""
    def register(function: Decoder) -> Decoder:
        there = FORMATS.get(name)
        if there is not None and (there.__module__, there.__qualname__) != (function.__module__, function.__qualname__):
            raise UserError(f"The format {name!r} has a decoder already, {there.__module__}.{there.__qualname__}. "
                            f"Take another name.")
        FORMATS[name] = function  # the same one again: a module that is reloaded
        return function

    return register


def fused(name: str) -> Callable[[Product], Product]:
    """Register the fused dequantise-multiply of a format. It stands beside the format's decoder."""
    def register(function: Product) -> Product:
        PRODUCTS[name] = function
        return function

    return register


def decoder_of(name: str) -> Decoder:
    """The decoder of a format; an unknown name raises :class:`tracking.errors.UserError`."""
    if name not in FORMATS:
        for file in sorted(Path(__file__).parent.glob("formats_*.py")):
            import_module(f"workbench.llm.{file.stem}")
    if name not in FORMATS:
        raise unknown("format of a compressed matrix", name, FORMATS)
    return FORMATS[name]


@dataclass
class Packed:
    """A matrix W (p, q) as it is stored: ``W = m ⊙ row-normalised(Q + B A)``, where Q is what the format's decoder
    gives.

    ``low_rank.a`` (r, q), ``low_rank.b`` (p, r) and ``magnitude`` (p,) are common to all formats; without a magnitude
    the rows keep the norms of ``Q + B A`` (weight-decomposed adaptation: Liu et al., DoRA, ICML 2024, equation 5).
    """

    format: str
    """Name of the decoder, key of :data:`FORMATS`."""
    shape: tuple[int, int]
    """(p, q): output features, input features, as the weight of ``nn.Linear``."""
    tensors: dict[str, Tensor]
    """The payload, packed to whole bytes: uint8 code words, fp16 codebooks …"""
    meta: dict[str, Any] = field(default_factory=dict)
    """What the decoder needs beside, small and JSON: bits, group size …"""

    def __post_init__(self) -> None:
        self.shape = (int(self.shape[0]), int(self.shape[1]))
        for name in self.tensors:
            if term_of(name) not in TERMS:
                raise unknown("term of a compressed matrix", term_of(name), TERMS)
        p, q = self.shape
        a, b, m = (self.tensors.get(name) for name in ("low_rank.a", "low_rank.b", "magnitude"))
        if (a is None) != (b is None) or (a is not None and (a.shape != (len(a), q) or b.shape != (p, len(a)))):
            raise UserError(f"The low-rank part of a {p}×{q} matrix is low_rank.a (r, {q}) and low_rank.b ({p}, r), "
                            f"not {None if a is None else tuple(a.shape)} and {None if b is None else tuple(b.shape)}.")
        if m is not None and m.shape != (p,):
            raise UserError(f"The magnitude of a {p}×{q} matrix has shape ({p},), not {tuple(m.shape)}.")

    def code(self) -> Tensor:
        """Q, float32 (p, q): what the codes say, before low rank and magnitude."""
        decoded = decoder_of(self.format)(self)
        if decoded.shape != self.shape or decoded.dtype != torch.float32:
            raise UserError(f"The decoder of {self.format!r} gave {decoded.dtype} {tuple(decoded.shape)}; a float32 "
                            f"matrix {self.shape} is due.")
        return decoded

    def dequantise(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """W (p, q). All is computed in float32 and cast at the end."""
        tensors = self.tensors
        return combine(self.code(), tensors.get("low_rank.a"), tensors.get("low_rank.b"), tensors.get("magnitude")).to(dtype)

    def bits(self) -> dict[str, int]:
        """Bits by term, of the tensors as they are stored; a term without a tensor is absent."""
        found: dict[str, int] = {}
        for name, tensor in self.tensors.items():
            found[term_of(name)] = found.get(term_of(name), 0) + 8 * tensor.nbytes
        return {term: found[term] for term in TERMS if term in found}

    def bpw(self) -> float:
        """Bits a weight, all terms."""
        return sum(self.bits().values()) / (self.shape[0] * self.shape[1])

    def code_bpw(self) -> float:
        """Bits a weight without low rank and magnitude."""
        return sum(b for term, b in self.bits().items() if term not in HIGH_PRECISION) / (self.shape[0] * self.shape[1])


def combine(code: Tensor, a: Tensor | None, b: Tensor | None, magnitude: Tensor | None) -> Tensor:
    """``m ⊙ row-normalised(Q + B A)`` in float32, differentiable in a, b and m, the norm held fixed as in DoRA
    (section 4.3).

    ``code`` (p, q), ``a`` (r, q), ``b`` (p, r), ``magnitude`` (p,). A row of zeros stays one.
    """
    weight = code if a is None else torch.addmm(code, b.float(), a.float())
    if magnitude is None:
        return weight
    norm = weight.detach().norm(dim=1)
    return weight * torch.where(norm > 0, magnitude.float() / norm, torch.zeros_like(norm))[:, None]


def row_norm(code: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor:
    """The magnitude (p,) that leaves ``Q + B A`` as it is."""
    return combine(code, a, b, None).norm(dim=1)


def term_of(name: str) -> str:
    """The term that a tensor's bits are billed to."""
    return name.partition(".")[0]


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Whole numbers ``0 <= code < 2**bits`` of any shape as a flat uint8 tensor of ``ceil(n bits / 8)`` bytes; 1 to 16
    bits."""
    _check_width(bits)
    flat = codes.detach().reshape(-1)
    least, most = torch.stack(flat.aminmax()).tolist() if flat.numel() else (0, 0)
    if flat.is_floating_point() or least < 0 or most >> bits:
        raise UserError(f"Codes of {bits} bits are whole numbers from 0 to {2**bits - 1}; given were {flat.dtype} "
                        f"from {least} to {most}.")
    if flat.device.type == "cpu":
        return torch.from_numpy(pack(flat.numpy().astype(np.uint8 if bits <= 8 else np.uint16), bits))
    return _pack_anywhere(flat.int(), bits)


def _pack_anywhere(codes: Tensor, bits: int) -> Tensor:
    """The layout of :mod:`tracking.codecs.bits` in plain PyTorch: a bit at a time, eight to a byte."""
    if bits > 8:
        return torch.cat([(codes & 255).to(torch.uint8), _pack_anywhere(codes >> 8, bits - 8)])
    places = torch.arange(8, device=codes.device, dtype=torch.int32)
    stream = (codes[:, None] >> places[:bits] & 1).flatten()
    stream = torch.nn.functional.pad(stream, (0, -len(stream) % 8)).view(-1, 8)
    return (stream << places).sum(1).to(torch.uint8)


def unpack_bits(packed: Tensor, bits: int, count: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """The ``count`` codes of :func:`pack_bits`, flat. On a GPU they are unpacked there."""
    _check_width(bits)
    if packed.dtype != torch.uint8 or packed.numel() != packed_size(count, bits):
        raise UserError(f"{count} codes of {bits} bits are {packed_size(count, bits)} bytes, not {packed.numel()} of "
                        f"{packed.dtype}.")
    if packed.device.type == "cpu":
        codes = unpack(packed.detach().numpy(), bits, count)
        return torch.from_numpy(codes if bits <= 8 else codes.astype(np.int32)).to(dtype)
    return _unpack_anywhere(packed.reshape(-1), bits, count).to(dtype)


def _unpack_anywhere(packed: Tensor, bits: int, count: int) -> Tensor:
    """The layout of :mod:`tracking.codecs.bits` by gathers: each code lies in two neighbouring bytes."""
    if bits > 8:
        return packed[:count].int() | _unpack_anywhere(packed[count:], bits - 8, count) << 8
    place = torch.arange(count, device=packed.device) * bits
    padded = torch.cat([packed, packed.new_zeros(1)]).int()
    byte = place >> 3
    return (padded[byte] | padded[byte + 1] << 8) >> (place & 7) & (1 << bits) - 1


def _check_width(bits: int) -> None:
    if not 1 <= bits <= 16:
        raise UserError(f"Codes have 1 to 16 bits, not {bits}.")
