"""A tensor of few values as a table and packed indices, exact."""

from __future__ import annotations

import struct

import numpy as np
import torch
from torch import Tensor

from tracking.codecs import bits
from tracking.codecs.base import Reader, TensorCodec, floats, header, open_payload
from tracking.codecs.entropy import entropy_bytes


class Levels(TensorCodec):
    """A tensor that takes few values: a table of those values and fixed-width packed indices, exact.

    Negative zero counts as zero, to which it is equal; a NaN is a value like others, known by its bits. The width is
    ``ceil(log2(number of levels))`` bits a value. Raises ``ValueError`` when the tensor takes more than
    ``max_levels`` values (it is not quantised then).
    """

    name = "levels"
    tag = 3
    exact = unbiased = True

    def __init__(self, max_levels: int = 256) -> None:
        if not 1 <= max_levels <= 256:
            raise ValueError(f"max_levels = {max_levels}; allowed: 1 to 256.")
        self.max_levels = max_levels

    def encode(self, value: Tensor) -> bytes:
        # -0 + 0 = 0; by bits: unique() takes every NaN for a value of its own, because none equals another
        flat = torch.from_numpy(floats(value) + np.float32(0)).view(torch.int32)
        levels, index = torch.unique(flat, return_inverse=True)
        if levels.numel() > self.max_levels:
            raise ValueError(f"{levels.numel()} different values; the codec {self.name!r} holds {self.max_levels}.")
        return (
            header(value, self.tag)
            + struct.pack("<H", levels.numel())
            + levels.view(torch.float32).numpy().astype("<f4", copy=False).tobytes()
            + bits.pack(index.numpy().astype(np.uint8), index_width(levels.numel())).tobytes()
        )

    def unpack(self, reader: Reader, n: int) -> np.ndarray:
        levels, index = self._read(reader, n)
        return levels[index]

    def _read(self, reader: Reader, n: int) -> tuple[np.ndarray, np.ndarray]:
        (count,) = reader.unpack("H")
        if count > 256 or (n > 0) != (count > 0):
            raise reader.wrong(f"a table of {count} levels for {n} values")
        levels = reader.array("<f4", count).astype(np.float32)
        width = index_width(count)
        index = bits.unpack(reader.take(bits.packed_size(n, width)), width, n)
        if n and int(index.max()) >= count:
            raise reader.wrong(f"an index {index.max()} into {count} levels")
        return levels, index

    def entropy_bytes(self, payload: bytes) -> float:
        shape, reader = open_payload(payload, self.tag, self.name)
        return entropy_bytes(self._read(reader, int(np.prod(shape)))[1])


def index_width(num_levels: int) -> int:
    """Bits that tell ``num_levels`` values apart (0 for a single one)."""
    return max(num_levels - 1, 0).bit_length()
