"""Three values -a, 0, a at five to a byte: exact packing of ternary tensors, and TernGrad's stochastic rounding."""

from __future__ import annotations

import math
import struct

import numpy as np

from tracking.codecs.base import Reader, TensorCodec, check_group, count_groups, open_payload, per_group, spread
from tracking.codecs.entropy import entropy_bytes
from tracking.codecs.randomness import Source, keys, uniform

ROUNDINGS = ("exact", "stochastic")
_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)


class Ternary(TensorCodec):
    """Values in {-a, 0, a} with a = max|x| of the group, 3^5 = 243 <= 256 of them a byte: 1.6 bits a value against
    log2 3 = 1.585.

    ``rounding="exact"`` refuses any other value; ``"stochastic"`` keeps a sign(x_i) with chance |x_i| / a and 0
    otherwise, so that E[Q(x)] = x (Wen et al., TernGrad, NeurIPS 2017).
    """

    tag = 10

    def __init__(self, rounding: str = "exact", group: int | None = None, rng: Source = 0) -> None:
        if rounding not in ROUNDINGS:
            raise ValueError(f"rounding = {rounding!r}; allowed: {', '.join(ROUNDINGS)}.")
        self.rounding, self.group = rounding, check_group(group)
        self.name = "ternary" if rounding == "exact" else "terngrad"
        self.unbiased, self.exact = True, rounding == "exact"
        self.keys = keys(rng)

    def pack(self, x: np.ndarray) -> bytes:
        scales = per_group(np.maximum, np.abs(x), self.group)
        scale = spread(scales, x.size, self.group)
        if self.rounding == "exact":
            kept = x != 0
            if (kept & (np.abs(x) != scale)).any():
                odd = x[kept & (np.abs(x) != scale)][0]
                raise ValueError(
                    f"The value {odd:.6g} is none of -a, 0, a; the codec {self.name!r} packs ternary tensors. "
                    "Quantise first, or use rounding = 'stochastic'."
                )
        else:
            kept = uniform(self.keys.next(), x.size) * scale.astype(np.float64) < np.abs(x)
        trits = np.where(kept, np.where(x < 0, 0, 2), 1).astype(np.uint8)
        return struct.pack("<I", self.group or 0) + scales.astype("<f4").tobytes() + pack_trits(trits)

    def unpack(self, reader: Reader, n: int) -> np.ndarray:
        scales, trits, group = self._read(reader, n)
        return (trits.astype(np.float32) - 1) * spread(scales, n, group)

    def _read(self, reader: Reader, n: int) -> tuple[np.ndarray, np.ndarray, int | None]:
        group = reader.unpack("I")[0] or None
        return reader.array("<f4", count_groups(n, group)), unpack_trits(reader, n), group

    def variance(self, n: int) -> float:
        """(sqrt(m) - 1) / 2 for groups of m when stochastic, reached by one value a and m - 1 of a / (1 + sqrt(m)); 0
        when exact.

        E||Q(x) - x||^2 = a ||x||_1 - ||x||^2 (Bernoulli variances), maximised over x.
        """
        return 0.0 if self.exact or not n else (math.sqrt(min(n, self.group or n)) - 1) / 2

    def entropy_bytes(self, payload: bytes) -> float:
        shape, reader = open_payload(payload, self.tag, self.name)
        return entropy_bytes(self._read(reader, math.prod(shape))[1])


def pack_trits(trits: np.ndarray) -> bytes:
    """Digits 0, 1, 2, five to a byte, base 3, the first one lowest."""
    padded = np.zeros(-(-trits.size // 5) * 5, np.uint8)
    padded[: trits.size] = trits
    return (padded.reshape(-1, 5) * _POWERS).sum(1, dtype=np.uint8).tobytes()


def unpack_trits(reader: Reader, n: int) -> np.ndarray:
    """The ``n`` digits."""
    packed = reader.array("u1", -(-n // 5))
    if packed.size and packed.max() >= 243:
        raise reader.wrong(f"a byte {packed.max()} for five digits of base 3")
    return (packed[:, None] // _POWERS % 3).reshape(-1)[:n]
