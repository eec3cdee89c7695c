"""Uniform integer quantisation with a scale a tensor or a group: int8, int4 and any other width from 2 to 8 bits."""

from __future__ import annotations

import math
import struct

import numpy as np

from tracking.codecs import bits
from tracking.codecs.base import Reader, TensorCodec, check_group, count_groups, open_payload, per_group, spread
from tracking.codecs.dense import from_bytes, to_bytes
from tracking.codecs.entropy import entropy_bytes
from tracking.codecs.randomness import Source, keys, uniform

ROUNDINGS = ("nearest", "stochastic")
SCALES = {"fp32": 2.0**-23, "fp16": 2.0**-10}  # how far a stored scale may lie from the exact one, relative to it


class Uniform(TensorCodec):
    """Symmetric levels ``scale * {-q, ..., q}`` with q = 2^(bits - 1) - 1 and scale = max|x| / q for each group.

    ``rounding="nearest"`` is biased; ``"stochastic"`` goes to one of the two neighbouring levels with E[Q(x)] = x,
    and takes its noise from ``rng``. ``scale`` is the format of the scales; float16 ones are rounded upwards, so that
    nothing is clipped (4 bits in groups of 32 are then 4.5 bits a value), and refuse groups whose scale lies outside
    [6e-5, 65504], 0 excepted.
    """

    tag = 4

    def __init__(
        self, bits: int = 8, group: int | None = None, rounding: str = "nearest", scale: str = "fp32", rng: Source = 0
    ) -> None:
        if bits not in range(2, 9):
            raise ValueError(f"bits = {bits!r}; allowed: 2 to 8.")
        if rounding not in ROUNDINGS:
            raise ValueError(f"rounding = {rounding!r}; allowed: {', '.join(ROUNDINGS)}.")
        if scale not in SCALES:
            raise ValueError(f"scale = {scale!r}; allowed: {', '.join(SCALES)}.")
        self.bits, self.group, self.rounding, self.scale = bits, check_group(group), rounding, scale
        self.top = 2 ** (bits - 1) - 1
        self.name = f"int{bits}"
        self.unbiased = rounding == "stochastic"
        self.keys = keys(rng)

    def pack(self, x: np.ndarray) -> bytes:
        scales = self._scales(per_group(np.maximum, np.abs(x), self.group))
        # a group of zeros has scale 0; its quotients are 0 whatever they are divided by
        codes = x / spread(np.where(scales > 0, scales, 1).astype(np.float64), x.size, self.group)
        if self.unbiased:
            codes += uniform(self.keys.next(), x.size)
            np.floor(codes, out=codes)
        else:
            np.rint(codes, out=codes)
        codes = (np.clip(codes, -self.top, self.top) + self.top).astype(np.uint8)
        return (
            struct.pack("<BBI", self.bits, list(SCALES).index(self.scale), self.group or 0)
            + to_bytes(scales, self.scale)
            + bits.pack(codes, self.bits).tobytes()
        )

    def _scales(self, largest: np.ndarray) -> np.ndarray:
        exact = largest.astype(np.float64) / self.top
        if self.scale == "fp32":
            scales = exact.astype(np.float32)
            # among subnormals rounding down could clip; next to the largest float, rounding up could overflow
            with np.errstate(over="ignore"):
                up, down = np.nextafter(scales, np.float32(np.inf)), np.nextafter(scales, np.float32(0))
                scales = np.where(scales * np.float32(self.top + 0.5) < largest, up, scales)
                return np.where(np.isinf(scales * np.float32(self.top)), down, scales)
        outside = (exact > 65504) | ((exact < 2.0**-14) & (exact > 0))
        if outside.any():
            raise ValueError(
                f"A scale of {exact[outside][0]:.3g} lies outside float16's normal range, 6.1e-05 to 65504. "
                "Use scale = 'fp32'."
            )
        half = exact.astype(np.float16)
        return np.where(half < exact, np.nextafter(half, np.float16(np.inf)), half).astype(np.float32)

    def unpack(self, reader: Reader, n: int) -> np.ndarray:
        scales, codes, top, group = self._read(reader, n)
        return (codes.astype(np.float32) - np.float32(top)) * spread(scales, n, group)

    def _read(self, reader: Reader, n: int) -> tuple[np.ndarray, np.ndarray, int, int | None]:
        width, form, group = reader.unpack("BBI")
        if not 2 <= width <= 8 or form >= len(SCALES):
            raise reader.wrong(f"{width} bits with scale format {form}")
        scales = from_bytes(reader, count_groups(n, group or None), list(SCALES)[form])
        codes = bits.unpack(reader.take(bits.packed_size(n, width)), width, n)
        return scales, codes, 2 ** (width - 1) - 1, group or None

    def variance(self, n: int) -> float | None:
        """min(m h^2, 2 h sqrt(m)) for groups of m, h = (1 + e) / (2 q); e is the scale's rounding. None when rounding
        to nearest.

        A value between two levels at distance s has variance s^2 f (1 - f) <= min(s^2 / 4, s |x|), f being its place
        between them; sum, with s <= (1 + e) ||x|| / q and ||x||_1 <= sqrt(m) ||x||: the argument of Alistarh et al.,
        QSGD (NeurIPS 2017), Lemma 3.1, for the maximum norm.
        """
        m, h = min(n, self.group or n), self._half_step()
        return min(m * h * h, 2 * h * math.sqrt(m)) if self.unbiased else None

    def contraction(self, n: int) -> float | None:
        """max((1 - h^2) / m, 1 - m h^2), for rounding to nearest; None for stochastic rounding.

        No error exceeds s / 2 <= h max|x|, nor |x| itself because 0 is a level: all but the largest value can be lost
        at worst.
        """
        if self.unbiased:
            return None
        m, h = max(min(n, self.group or n), 1), self._half_step()
        return max((1 - h * h) / m, 1 - m * h * h)

    def _half_step(self) -> float:
        return (1 + SCALES[self.scale]) / (2 * self.top)

    def entropy_bytes(self, payload: bytes) -> float:
        shape, reader = open_payload(payload, self.tag, self.name)
        return entropy_bytes(self._read(reader, math.prod(shape))[1])
