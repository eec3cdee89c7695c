"""Natural compression: magnitudes rounded to powers of two, 9 bits a value. Horvath et al., MSML 2022."""

from __future__ import annotations

import math

import numpy as np

from tracking.codecs import bits
from tracking.codecs.base import Reader, TensorCodec, open_payload
from tracking.codecs.entropy import entropy_bytes
from tracking.codecs.randomness import Source, keys, uniform


class Natural(TensorCodec):
    """Up or down to a power of two at random, with E[C(x)] = x: float32's sign and exponent are all that is sent.

    The chance of rounding up is the significand's fraction. Below 1.2e-38 the neighbours are 0 and 1.2e-38. Values
    above 2^127 have no power of two above them in float32 and raise ``ValueError``.
    """

    name = "natural"
    tag = 9
    unbiased = True

    def __init__(self, rng: Source = 0) -> None:
        self.keys = keys(rng)

    def pack(self, x: np.ndarray) -> bytes:
        if x.size and np.abs(x).max() > 2.0**127:
            raise ValueError(
                f"A value of magnitude {np.abs(x).max():.3g} exceeds 2^127, the largest power of two. Scale the values."
            )
        word = np.ascontiguousarray(x).view(np.uint32)
        up = uniform(self.keys.next(), x.size) < (word & 0x7FFFFF) * np.float32(2.0**-23)
        return bits.pack(((word >> 23) + up).astype(np.uint16), 9).tobytes()

    def unpack(self, reader: Reader, n: int) -> np.ndarray:
        word = self._read(reader, n)
        if ((word & 0xFF) == 0xFF).any():
            raise reader.wrong("an infinite exponent")
        return (word.astype(np.uint32) << 23).view(np.float32)

    def _read(self, reader: Reader, n: int) -> np.ndarray:
        return bits.unpack(reader.take(bits.packed_size(n, 9)), 9, n)

    def variance(self, n: int) -> float:
        """1 / 8 (Horvath et al.): between 1 and 2 the relative variance (x - 1)(2 - x) / x^2 peaks at x = 4 / 3."""
        return 1 / 8

    def entropy_bytes(self, payload: bytes) -> float:
        shape, reader = open_payload(payload, self.tag, self.name)
        return entropy_bytes(self._read(reader, math.prod(shape)))
