"""Codecs: from a tensor to the bytes that would really be sent or stored, and back to what the receiver uses.

A payload describes itself (shape, scale, level table), so its length is all that a receiver needs.
"""

from __future__ import annotations

import math
import struct
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class Codec(Protocol):
    """``encode`` returns real packed bytes; ``decode`` returns what the receiver uses."""

    name: str

    def encode(self, value: Any) -> bytes: ...

    def decode(self, payload: bytes) -> Any: ...


def _header(value: Tensor) -> bytes:
    return struct.pack(f"<B{value.dim()}I", value.dim(), *value.shape)


def _read_header(payload: bytes) -> tuple[tuple[int, ...], int]:
    dim = payload[0]
    return struct.unpack_from(f"<{dim}I", payload, 1), 1 + 4 * dim


class Dense:
    """Little-endian IEEE float32: exact."""

    name = "dense_fp32"

    def encode(self, value: Tensor) -> bytes:
        return _header(value) + value.detach().to("cpu", torch.float32).numpy().astype("<f4", copy=False).tobytes()

    def decode(self, payload: bytes) -> Tensor:
        shape, start = _read_header(payload)
        return torch.from_numpy(np.frombuffer(payload, "<f4", offset=start).copy()).reshape(shape)


class Levels:
    """A tensor that takes few values: a table of those values and fixed-width packed indices, exact.

    Negative zero counts as zero, to which it is equal; a NaN is a value like others, known by its bits. The width is
    ``ceil(log2(number of levels))`` bits a value. Raises ``ValueError`` when the tensor takes more than ``max_levels`` values
    (it is not quantised then).
    """

    name = "levels"

    def __init__(self, max_levels: int = 256) -> None:
        if not 1 <= max_levels <= 256:
            raise ValueError(f"max_levels = {max_levels}; allowed: 1 to 256.")
        self.max_levels = max_levels

    def encode(self, value: Tensor) -> bytes:
        flat = value.detach().to("cpu", torch.float32).reshape(-1) + 0.0  # -0 + 0 = 0
        # by bits: unique() takes every NaN for a value of its own, because none equals another
        levels, index = torch.unique(flat.view(torch.int32), return_inverse=True)
        if levels.numel() > self.max_levels:
            raise ValueError(f"{levels.numel()} different values; the codec {self.name!r} holds {self.max_levels}.")
        width = index_width(levels.numel())
        bits = (index.numpy().astype(np.uint8)[:, None] >> np.arange(width, dtype=np.uint8)) & 1
        return (_header(value) + struct.pack("<H", levels.numel())
                + levels.view(torch.float32).numpy().astype("<f4", copy=False).tobytes() + np.packbits(bits, bitorder="little").tobytes())

    def decode(self, payload: bytes) -> Tensor:
        shape, start = _read_header(payload)
        (count,) = struct.unpack_from("<H", payload, start)
        levels = np.frombuffer(payload, "<f4", count=count, offset=start + 2)
        width, n = index_width(count), math.prod(shape)
        packed = np.frombuffer(payload, np.uint8, offset=start + 2 + 4 * count)
        if packed.size != -(-n * width // 8):  # unpackbits would make up what is missing
            raise ValueError(f"The payload holds {packed.size} bytes of indices; {n} values of {width} bits were sent.")
        bits = np.unpackbits(packed, count=n * width, bitorder="little").reshape(n, width)
        index = (bits << np.arange(width, dtype=np.uint8)).sum(1, dtype=np.int64)
        return torch.from_numpy(levels[index].copy()).reshape(shape)


def index_width(num_levels: int) -> int:
    """Bits that tell ``num_levels`` values apart (0 for a single one)."""
    return max(num_levels - 1, 0).bit_length()
