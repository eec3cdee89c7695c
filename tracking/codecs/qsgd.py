"""QSGD: stochastic levels of the norm, Elias-coded. Alistarh, Grubic, Li, Tomioka, Vojnovic, NeurIPS 2017."""

from __future__ import annotations

import math
import struct

import numpy as np

from tracking.codecs import bits
from tracking.codecs.base import Reader, TensorCodec, check_group, count_groups, open_payload, per_group, spread
from tracking.codecs.entropy import entropy_bytes
from tracking.codecs.integers import gamma_bits, gamma_decode, gamma_encode
from tracking.codecs.randomness import Source, keys, uniform

NORMS = ("l2", "max")


class QSGD(TensorCodec):
    """Q_s(x_i) = ||x|| sign(x_i) l_i / s with l_i one of the two whole numbers round s |x_i| / ||x||, so that
    E[Q_s(x)] = x.

    ``levels`` is s, ``bucket`` the number of neighbours that share a norm (``None``: all), ``norm`` the paper's
    2-norm or the maximum norm of its experiments. The payload holds the norms (32 bits each) and the shorter of two
    codes, both Elias gamma: places and levels of the non-zeros (the paper's Code_s) or l_i + 1 of every value (its
    dense variant), with a sign bit for each non-zero.
    """

    name = "qsgd"
    tag = 6
    unbiased = True

    def __init__(self, levels: int = 16, bucket: int | None = 512, norm: str = "l2", rng: Source = 0) -> None:
        if not isinstance(levels, int) or not 1 <= levels < 2**24:
            raise ValueError(f"levels = {levels!r}; allowed: a whole number from 1 to 2^24 - 1.")
        if norm not in NORMS:
            raise ValueError(f"norm = {norm!r}; allowed: {', '.join(NORMS)}.")
        self.levels, self.bucket, self.norm = levels, check_group(bucket), norm
        self.keys = keys(rng)

    def pack(self, x: np.ndarray) -> bytes:
        size = np.abs(x).astype(np.float64)
        norms = (
            per_group(np.maximum, size, self.bucket)
            if self.norm == "max"
            else np.sqrt(per_group(np.add, size**2, self.bucket))
        )
        if norms.size and norms.max() > np.finfo(np.float32).max:
            raise ValueError(f"A norm of {norms.max():.3g} overflows float32. Use norm = 'max' or smaller buckets.")
        norms = norms.astype("<f4")
        size *= self.levels
        size /= spread(np.where(norms > 0, norms, 1).astype(np.float64), x.size, self.bucket)
        size += uniform(self.keys.next(), x.size)
        level = np.minimum(size.astype(np.int64), self.levels)
        return struct.pack("<II", self.levels, self.bucket or 0) + norms.tobytes() + _encode(level, x < 0)

    def unpack(self, reader: Reader, n: int) -> np.ndarray:
        norms, bucket, levels, level, negative = self._read(reader, n)
        out = level * (spread(norms, n, bucket).astype(np.float64) / levels)
        return np.where(negative, -out, out).astype(np.float32)

    def _read(self, reader: Reader, n: int) -> tuple[np.ndarray, int | None, int, np.ndarray, np.ndarray]:
        levels, bucket = reader.unpack("II")
        norms = reader.array("<f4", count_groups(n, bucket or None))
        level, negative = _decode(reader, n)
        if not levels or (n and int(level.max()) > levels):
            raise reader.wrong(f"a level above {levels}")
        return norms, bucket or None, levels, level, negative

    def variance(self, n: int) -> float:
        """min(m / s^2, sqrt(m) / s) for buckets of m (Lemma 3.1 (ii)); the maximum norm is never larger than the
        2-norm and keeps it.
        """
        m, s = min(n, self.bucket or n), self.levels
        return min(m / s**2, math.sqrt(m) / s)

    def expected_bits(self, n: int) -> float | None:
        """A bound on the expected length of norms and codes together, in bits; ``None`` for the maximum norm.

        With K >= E nnz (s^2 + s sqrt(m) a bucket, Lemma 3.1 (iii)) and S >= E sum l^2 (s^2 (1 + omega) a bucket) the
        lengths 2 floor(log2 v) + 1 sum, by concavity of the logarithm, to at most n (1 + log2(1 + 2 s / sqrt(m) + S /
        n)) + K (dense) and 3 K + 2 h(K, n) + h(K, S) (sparse), where h(K, S) is the largest k log2(S / k) with k <=
        K. Our derivation: the paper's Theorem 3.2 takes Elias' recursive code instead.
        """
        if self.norm != "l2" or not n:
            return None
        m, s = min(n, self.bucket or n), self.levels
        buckets = count_groups(n, self.bucket)
        squares = buckets * s * s * (1 + self.variance(n))
        nonzero = min(n, buckets * (s * s + s * math.sqrt(m)))
        dense = n * (1 + math.log2(1 + 2 * s / math.sqrt(n / buckets) + squares / n)) + nonzero
        return 32 * buckets + min(dense, 3 * nonzero + 2 * _peak(nonzero, n) + _peak(nonzero, squares))

    def entropy_bytes(self, payload: bytes) -> float:
        """Of the signed levels."""
        shape, reader = open_payload(payload, self.tag, self.name)
        *_, level, negative = self._read(reader, math.prod(shape))
        return entropy_bytes(np.where(negative, -level, level))


def _peak(k: float, total: float) -> float:
    return k * math.log2(total / k) if k < total / math.e else total * math.log2(math.e) / math.e


def _encode(level: np.ndarray, negative: np.ndarray) -> bytes:
    places = np.flatnonzero(level)
    gaps, found = np.diff(places, prepend=-1), level[places]
    if gamma_bits(gaps) + gamma_bits(found) < gamma_bits(level + 1):
        body = struct.pack("<BI", 1, places.size) + gamma_encode(gaps) + gamma_encode(found)
    else:
        body = b"\0" + gamma_encode(level + 1)
    return body + bits.pack(negative[places], 1).tobytes()


def _decode(reader: Reader, n: int) -> tuple[np.ndarray, np.ndarray]:
    (form,) = reader.unpack("B")
    if form == 0:
        level = gamma_decode(reader, n) - 1
        places = np.flatnonzero(level)
    elif form == 1:
        (count,) = reader.unpack("I")
        if count > n:
            raise reader.wrong(f"{count} non-zeros among {n} values")
        places = np.cumsum(gamma_decode(reader, count)) - 1
        found = gamma_decode(reader, count)
        if count and not 0 <= places[-1] < n:
            raise reader.wrong(f"a place {places[-1]} among {n} values")
        level = np.zeros(n, np.int64)
        level[places] = found
    else:
        raise reader.wrong(f"form {form}")
    negative = np.zeros(n, bool)
    negative[places] = bits.unpack(reader.take(bits.packed_size(places.size, 1)), 1, places.size).astype(bool)
    return level, negative
