"""Packing of +-1 into 64-bit words, and the two orders in which words are stored.

TRUE, that is ``x >= 0``, is bit 1. Value ``i`` of the last dimension is bit ``i mod 64`` of word ``i // 64``, lowest
bit first (the order of :mod:`tracking.codecs.bits`); the bits past the end are 0. Words are int64, whose top bit is
the sign.

==========  =================================  =================================================================
what        shape                              meaning
==========  =================================  =================================================================
rows        (batch, words)                     inputs and outputs of a linear layer
maps        (batch, height, width, words)      inputs and outputs of a convolution: channels of a pixel are packed
lanes       (blocks, 2 words, 16), int32       weights, 32 an entry: output ``o`` is lane ``o mod 16`` of block
                                               ``o // 16``
==========  =================================  =================================================================
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tracking.errors import UserError

BITS = 64
LANES = 16
BLOCKS = 2  # blocks come in pairs: the kernels work on two at a time


def num_words(n: int) -> int:
    """Words that hold ``n`` bits."""
    return -(-n // BITS)


def num_blocks(outputs: int) -> int:
    """Blocks of 16 outputs, an even number."""
    return -(-outputs // (LANES * BLOCKS)) * BLOCKS


def pack(x: Tensor, tau: float = 0.0) -> Tensor:
    """Bits ``x >= tau`` of the last dimension: ``(..., n)`` of any real type to int64 ``(..., ceil(n / 64))``. NaN
    gives 0, FALSE.
    """
    if not x.ndim or x.is_complex():
        raise UserError(
            f"Packing takes a real tensor of at least one dimension, not {x.dtype} of shape {tuple(x.shape)}."
        )
    return pack_bools(x >= tau)


def pack_bools(x: Tensor) -> Tensor:
    """The same from a tensor of booleans."""
    n = x.shape[-1]
    if x.device.type == "cpu":
        out = np.zeros((*x.shape[:-1], num_words(n) * 8), np.uint8)
        out[..., : -(-n // 8)] = np.packbits(x.detach().numpy(), axis=-1, bitorder="little")
        return torch.from_numpy(out.view(np.int64))
    x = torch.nn.functional.pad(x, (0, num_words(n) * BITS - n)).unflatten(-1, (num_words(n), BITS))
    return (x.to(torch.int64) << torch.arange(BITS, device=x.device)).sum(
        -1
    )  # distinct powers of two: the sum is an or


def unpack_bools(words: Tensor, n: int) -> Tensor:
    """int64 ``(..., words)`` to booleans ``(..., n)``."""
    if words.dtype != torch.int64 or words.ndim < 1 or words.shape[-1] != num_words(n):
        raise UserError(
            f"{n} bits take {num_words(n)} int64 words a row, not {words.dtype} of shape {tuple(words.shape)}."
        )
    if words.device.type == "cpu":
        octets = np.ascontiguousarray(words.numpy()).view(np.uint8)
        return torch.from_numpy(np.unpackbits(octets, axis=-1, count=n, bitorder="little")).view(torch.bool)
    bits = (words[..., None] >> torch.arange(BITS, device=words.device)) & 1
    return bits.flatten(-2)[..., :n].to(torch.bool)


def unpack(words: Tensor, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """int64 ``(..., ceil(n / 64))`` to +-1 ``(..., n)``; a wrong number of words raises
    :class:`tracking.errors.UserError`.
    """
    return unpack_bools(words, n).to(dtype).mul_(2).sub_(1)


def to_lanes(words: Tensor) -> Tensor:
    """Rows of words ``(outputs, words)`` as the kernels read them; the rows past the end are 0."""
    outputs, width = words.shape
    padded = words.new_zeros(num_blocks(outputs) * LANES, width)
    padded[:outputs] = words
    return padded.view(torch.int32).view(-1, LANES, 2 * width).transpose(1, 2).contiguous()


def from_lanes(lanes: Tensor, outputs: int) -> Tensor:
    """The inverse of :func:`to_lanes`."""
    return lanes.transpose(1, 2).reshape(-1, lanes.shape[1])[:outputs].contiguous().view(torch.int64)


def regroup(words: Tensor, channels: int, groups: int) -> Tensor:
    """Words of ``channels`` bits ``(..., words)`` as ``(..., groups, words a group)``: every group begins a word."""
    part = channels // groups
    if groups == 1 or part % BITS == 0:
        return words.unflatten(-1, (groups, num_words(part)))
    return pack_bools(unpack_bools(words, channels).unflatten(-1, (groups, part)))


def window_slices(
    maps: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    output: tuple[int, int],
) -> Tensor:
    """Windows of maps ``(batch, height, width, ...)`` as a view ``(batch, out h, out w, kernel h, kernel w, ...)``;
    0 beyond the border.
    """
    (kh, kw), (sh, sw), (ph, pw), (dh, dw), (oh, ow) = kernel, stride, padding, dilation, output
    batch, height, width, *rest = maps.shape
    below, right = (
        max((o - 1) * s + (k - 1) * d + 1 - n - p, 0)
        for o, s, k, d, n, p in ((oh, sh, kh, dh, height, ph), (ow, sw, kw, dw, width, pw))
    )
    if ph or pw or below or right:
        whole = maps.new_zeros(batch, height + ph + below, width + pw + right, *rest)
        whole[:, ph : ph + height, pw : pw + width] = maps
        maps = whole
    b, y, x, *inner = maps.stride()
    return maps.as_strided((batch, oh, ow, kh, kw, *rest), (b, y * sh, x * sw, y * dh, x * dw, *inner))


def output_size(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[int, int]:
    """Height and width of what a window passes over; :class:`tracking.errors.UserError` where it does not fit."""
    out = tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    )
    if min(out) < 1:
        raise UserError(
            f"Maps of {size[0]} x {size[1]} are smaller than the window {kernel} with dilation {dilation} and padding "
            f"{padding}."
        )
    return out
