"""Signs and a scale: one bit a value."""

from __future__ import annotations

import math
import struct

import numpy as np

from tracking.codecs import bits
from tracking.codecs.base import Reader, TensorCodec, check_group, count_groups, open_payload, per_group, spread
from tracking.codecs.entropy import entropy_bytes


class Sign(TensorCodec):
    """C(x) = (||x||_1 / m) sign(x) for each group of m values, with sign(0) = 1: the scaled sign of Karimireddy et
    al. (ICML 2019).

    Biased; meant to run under :class:`tracking.codecs.feedback.ErrorFeedback`.
    """

    name = "sign"
    tag = 5

    def __init__(self, group: int | None = None) -> None:
        self.group = check_group(group)

    def pack(self, x: np.ndarray) -> bytes:
        sums = per_group(np.add, np.abs(x).astype(np.float64), self.group)
        size = min(self.group or x.size, x.size)
        counts = np.full(sums.size, size, np.float64)
        if sums.size:
            counts[-1] = x.size - size * (sums.size - 1)
        return (
            struct.pack("<I", self.group or 0) + (sums / counts).astype("<f4").tobytes() + bits.pack_signs(x).tobytes()
        )

    def unpack(self, reader: Reader, n: int) -> np.ndarray:
        scales, signs, group = self._read(reader, n)
        return (signs.astype(np.float32) * 2 - 1) * spread(scales, n, group)

    def _read(self, reader: Reader, n: int) -> tuple[np.ndarray, np.ndarray, int | None]:
        group = reader.unpack("I")[0] or None
        scales = reader.array("<f4", count_groups(n, group))
        return scales, bits.unpack(reader.take(bits.packed_size(n, 1)), 1, n), group

    def contraction(self, n: int) -> float:
        """1 / m: the error is ||x||^2 - ||x||_1^2 / m exactly, and ||x||_1 >= ||x|| (Karimireddy et al., 2019)."""
        return 1 / max(min(n, self.group or n), 1)

    def entropy_bytes(self, payload: bytes) -> float:
        shape, reader = open_payload(payload, self.tag, self.name)
        return entropy_bytes(self._read(reader, math.prod(shape))[1])
