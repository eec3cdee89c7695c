"""Lattice quantiser: a value's place on a cubic lattice modulo 2^b, resolved by the receiver's own tensor.

Davies, Gurunathan, Moshrefi, Ashkboos, Alistarh, New Bounds for Distributed Mean Estimation and Variance Reduction,
ICLR 2021; used by QuAFL (Zakerinia, Talaei, Nadiradze, Alistarh, AISTATS 2024).
"""

from __future__ import annotations

import math
import struct
import zlib

import numpy as np
import torch
from torch import Tensor

from tracking.codecs import bits
from tracking.codecs.base import Reader, TensorCodec, finite, header, open_payload
from tracking.codecs.entropy import entropy_bytes
from tracking.codecs.randomness import Source, keys, stream

_DITHER, _ROTATE, _CHECK = 1, 2, 4


class Lattice(TensorCodec):
    """Sends z mod 2^b with z = round(x / side); the receiver takes the member of z + 2^b Z nearest to reference /
    side.

    ``decode(payload, reference=y)`` gives x up to side / 2 in every coordinate as long as |x - y| < (2^(b-1) - 1/2)
    side there. Beyond that the coordinate is off by a multiple of 2^b side: silently, or with an error where
    ``check`` sends a 4-byte sum of the z. ``dither`` shifts the lattice by a shared random offset: the error is then
    uniform on (-side/2, side/2] and independent of x. ``rotate`` applies a shared random rotation (signs and Hadamard
    transforms) first: the condition and the error hold for rotated coordinates, where a distance is spread evenly.
    Both share one 8-byte seed.

    The defaults, 14 bits and a side of 1e-4 without dither or rotation, are those of QuAFL's published simulator.
    """

    name = "lattice"
    tag = 12
    needs_reference = True

    def __init__(
        self,
        bits: int = 14,
        side: float = 1e-4,
        dither: bool = False,
        rotate: bool = False,
        check: bool = False,
        rng: Source = 0,
    ) -> None:
        if bits not in range(1, 33):
            raise ValueError(f"bits = {bits!r}; allowed: 1 to 32.")
        if not (isinstance(side, int | float) and 0 < side < math.inf):
            raise ValueError(f"side = {side!r}; allowed: a finite number above 0.")
        self.bits, self.side = bits, float(side)
        self.flags = _DITHER * dither + _ROTATE * rotate + _CHECK * check
        self.unbiased = dither
        self.keys = keys(rng)

    def encode(self, value: Tensor) -> bytes:
        x = finite(value, self.name).astype(np.float64)
        key = self.keys.next() if self.flags & (_DITHER | _ROTATE) else None
        place = _shift(_rotate(x, key, self.flags) / self.side, key, self.flags)
        if x.size and np.abs(place).max() > 2.0**51:
            raise ValueError(
                f"A value of {np.abs(x).max():.3g} is beyond 2^51 sides of {self.side:.3g}, "
                "where float64 has no halves. Use a larger side."
            )
        z = np.rint(place)
        head = struct.pack("<BBd", self.bits, self.flags, self.side) + (
            struct.pack("<Q", key) if key is not None else b""
        )
        if self.flags & _CHECK:
            head += struct.pack("<I", _sum(z))
        return (
            header(value, self.tag) + head + bits.pack(np.mod(z, 2.0**self.bits).astype(np.uint32), self.bits).tobytes()
        )

    def decode(self, payload: bytes, reference: Tensor | None = None) -> Tensor:
        """What the receiver makes of the payload with ``reference``, a tensor of the same shape near the one sent."""
        shape, reader = open_payload(payload, self.tag, self.name)
        if reference is None:
            raise ValueError(
                "The codec 'lattice' is decoded with the receiver's reference: decode(payload, reference=tensor)."
            )
        if tuple(reference.shape) != shape:
            raise ValueError(f"The reference has shape {tuple(reference.shape)}, the payload {shape}.")
        width, flags, side, key, total, code = self._read(reader, math.prod(shape))
        near = _shift(_rotate(finite(reference, self.name).astype(np.float64), key, flags) / side, key, flags)
        z = code + 2.0**width * np.rint((near - code) / 2.0**width)
        if flags & _CHECK and _sum(z) != total:
            raise ValueError(
                f"The reference is too far from what was sent: {width} bits of side {side:.3g} resolve distances below "
                f"{(2.0 ** (width - 1) - 0.5) * side:.3g}. Use more bits or a larger side."
            )
        out = _rotate(_shift(z, key, flags, back=True) * side, key, flags, back=True)
        return torch.from_numpy(np.clip(out, -_LARGEST, _LARGEST).astype(np.float32)).reshape(shape)

    def _read(self, reader: Reader, n: int) -> tuple[int, int, float, int | None, int, np.ndarray]:
        width, flags, side = reader.unpack("BBd")
        if not 1 <= width <= 32 or flags > 7 or not 0 < side < math.inf:
            raise reader.wrong(f"{width} bits, flags {flags}, side {side}")
        key = reader.unpack("Q")[0] if flags & (_DITHER | _ROTATE) else None
        total = reader.unpack("I")[0] if flags & _CHECK else 0
        code = bits.unpack(reader.take(bits.packed_size(n, width)), width, n).astype(np.float64)
        reader.end()
        return width, flags, side, key, total, code

    def reach(self) -> float:
        """Distance from the reference below which every (rotated) coordinate decodes rightly: (2^(b-1) - 1/2) side."""
        return (2.0 ** (self.bits - 1) - 0.5) * self.side

    def squared_error(self, n: int) -> float:
        """E||Q(x) - x||^2 within reach: n side^2 / 12 with dither, at most n side^2 / 4 without. Absolute: no omega
        or delta bounds it.
        """
        return n * self.side**2 / (12 if self.unbiased else 4)

    def entropy_bytes(self, payload: bytes) -> float:
        """Of the places modulo 2^b."""
        shape, reader = open_payload(payload, self.tag, self.name)
        return entropy_bytes(self._read(reader, math.prod(shape))[-1])


_LARGEST = float(np.finfo(np.float32).max)


def _sum(z: np.ndarray) -> int:
    return zlib.crc32((z + 0.0).astype("<f8").tobytes())  # -0 + 0 = 0


def _shift(place: np.ndarray, key: int | None, flags: int, back: bool = False) -> np.ndarray:
    if not flags & _DITHER:
        return place
    offset = stream(key).random(place.size) - 0.5
    return place - offset if back else place + offset


def _rotate(x: np.ndarray, key: int | None, flags: int, back: bool = False) -> np.ndarray:
    """Random signs, then orthonormal Hadamard transforms on blocks of the sizes in n's binary expansion: no padding
    is sent.
    """
    if not flags & _ROTATE:
        return x
    signs = 1.0 - 2.0 * stream(key ^ 1).integers(0, 2, x.size)
    out, start = np.array(x if back else x * signs), 0
    for power in range(x.size.bit_length() - 1, -1, -1):
        if x.size >> power & 1:
            out[start : start + 2**power] = _hadamard(out[start : start + 2**power])
            start += 2**power
    return out * signs if back else out


def _hadamard(x: np.ndarray) -> np.ndarray:
    """Orthonormal and its own inverse; len(x) is a power of two."""
    half, n = 1, x.size
    while half < n:
        pairs = x.reshape(-1, 2, half)
        x = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1).reshape(-1)
        half *= 2
    return x / math.sqrt(n)
