"""Exact small forms of what a backward pass keeps: signs in one bit, integers in two bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from tracking.errors import UserError

# A word of eight bytes 0 or 1 times _GATHER has byte i's bit at bit i of its top byte; all partial products are distinct powers of two, so
# nothing carries. Back: the byte repeated eight times, of which _TAKE leaves bit i in byte i.
_GATHER, _REPEAT, _TAKE = 0x0102_0408_1020_4080, 0x0101_0101_0101_0101, 0x8040_2010_0804_0201 - 2**64


def pack_signs(x: Tensor) -> Tensor:
    """Signs of a tensor of +-1, eight to a byte: uint8, ``(ceil(x.numel() / 8),)``.

    Raises :class:`tracking.errors.UserError` for another value.
    """
    size = x.abs()
    _require((size.amin() == 1) & (size.amax() == 1), "compact=True keeps one bit of each input for the backward pass, and these inputs "
             "are not all +1 or -1. Leave it off for real-valued inputs.")
    words = torch.zeros(-(-x.numel() // 8) * 8, dtype=torch.uint8, device=x.device)
    torch.gt(x.reshape(-1), 0, out=words[:x.numel()])
    return (words.view(torch.int64) * _GATHER >> 56).to(torch.uint8)  # the cast keeps the low byte, whatever the sign


def unpack_signs(packed: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The tensor of +-1 that :func:`pack_signs` was given."""
    bits = (packed.to(torch.int64) * _REPEAT & _TAKE).view(torch.int8)[:shape.numel()]
    return torch.ne(bits, 0, out=bits.new_empty(bits.shape, dtype=dtype)).mul_(2).sub_(1).view(shape)


def pack_integers(s: Tensor) -> Tensor:
    """A tensor of integers in int16, of its shape; raises :class:`tracking.errors.UserError` for another value."""
    packed = s.to(torch.int16)
    _require((packed.to(s.dtype) - s).abs().amax() == 0, "compact=True keeps pre-activations as 16-bit integers for the backward pass, and "
             "these are not all integers within -32768..32767. Leave it off behind real-valued layers.")
    return packed


def _require(holds: Tensor, message: str) -> None:
    """Raise unless ``holds``; on a GPU the check runs among the other kernels, and ends them: waiting for it would stall every step."""
    if holds.device.type != "cpu":
        torch._assert_async(holds, message)
    elif not holds:
        raise UserError(message)
