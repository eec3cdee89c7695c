"""Sparsifiers: the k largest values with coded places, and k random values whose places are a seed."""

from __future__ import annotations

import math
import struct

import numpy as np

from tracking.codecs.base import Reader, TensorCodec, open_payload
from tracking.codecs.dense import FORMATS, from_bytes, to_bytes
from tracking.codecs.entropy import subset_bytes
from tracking.codecs.integers import decode_places, encode_places
from tracking.codecs.randomness import Source, keys, subset


class _Sparse(TensorCodec):
    """``k`` values (or ``fraction`` of them, rounded up) of format ``values``."""

    def __init__(self, k: int | None, fraction: float | None, values: str) -> None:
        if (k is None) == (fraction is None):
            raise ValueError("Give one of k (how many values) and fraction (what share of them).")
        if k is not None and (not isinstance(k, int) or isinstance(k, bool) or k < 0):
            raise ValueError(f"k = {k!r}; allowed: a whole number from 0 on.")
        if fraction is not None and not 0 < fraction <= 1:
            raise ValueError(f"fraction = {fraction!r}; allowed: above 0, at most 1.")
        if values not in FORMATS:
            raise ValueError(f"values = {values!r}; allowed: {', '.join(FORMATS)}.")
        self.k, self.fraction, self.values = k, fraction, values

    def count(self, n: int) -> int:
        """How many of ``n`` values are sent."""
        # 1e-9: the product 0.07 * 100 is a little above 7
        return min(n, self.k if self.k is not None else math.ceil(self.fraction * n - 1e-9))

    def _head(self, k: int) -> bytes:
        return struct.pack("<BI", list(FORMATS).index(self.values), k)

    def _read_head(self, reader: Reader, n: int) -> tuple[str, int]:
        form, k = reader.unpack("BI")
        if form >= len(FORMATS) or k > n:
            raise reader.wrong(f"{k} of {n} values in format {form}")
        return list(FORMATS)[form], k

    def _kept(self, n: int) -> float:
        return self.count(n) / n if n else 1.0


class TopK(_Sparse):
    """The k values of largest magnitude, ties to the lower place; the others become 0. Biased: run it under error
    feedback.

    Places are Golomb-Rice gaps, a bitmap or raw numbers, whichever is shortest
    (:func:`tracking.codecs.integers.encode_places`).
    """

    name = "top_k"
    tag = 7

    def __init__(self, k: int | None = None, fraction: float | None = None, values: str = "fp32") -> None:
        super().__init__(k, fraction, values)

    def pack(self, x: np.ndarray) -> bytes:
        places = largest(x, self.count(x.size))
        return self._head(places.size) + to_bytes(x[places], self.values) + encode_places(places, x.size)

    def unpack(self, reader: Reader, n: int) -> np.ndarray:
        form, k = self._read_head(reader, n)
        values = from_bytes(reader, k, form)
        places = decode_places(reader, k, n)
        out = np.zeros(n, np.float32)
        out[places] = values
        return out

    def contraction(self, n: int) -> float | None:
        """k / n (Stich, Cordonnier, Jaggi, NeurIPS 2018, Lemma A.1), times 1 - 2^-16 for bfloat16; None for float16,
        which underflows.
        """
        return {"fp32": self._kept(n), "bf16": self._kept(n) * (1 - 2.0**-16)}.get(self.values) or None

    def entropy_bytes(self, payload: bytes) -> float:
        """Values at their width and log2 C(n, k) bits for the places."""
        shape, reader = open_payload(payload, self.tag, self.name)
        form, k = self._read_head(reader, math.prod(shape))
        return k * FORMATS[form].itemsize + subset_bytes(math.prod(shape), k)


class RandomK(_Sparse):
    """k values at random places; both sides draw the places from the 8-byte seed in the payload.

    Scaled by n / k it is unbiased; with ``scaled=False`` it is a biased contraction for error feedback.
    """

    name = "random_k"
    tag = 8

    def __init__(
        self,
        k: int | None = None,
        fraction: float | None = None,
        values: str = "fp32",
        scaled: bool = True,
        rng: Source = 0,
    ) -> None:
        super().__init__(k, fraction, values)
        if self.k == 0 and scaled:
            raise ValueError("k = 0 values cannot stand for all; allowed: k from 1 on, or scaled = False.")
        self.scaled = scaled
        self.unbiased = scaled and values == "fp32"
        self.keys = keys(rng)

    def pack(self, x: np.ndarray) -> bytes:
        k, key = self.count(x.size), self.keys.next()
        chosen = x[subset(key, x.size, k)]
        if self.scaled and k:
            chosen = chosen.astype(np.float64) * (x.size / k)
            if np.abs(chosen).max() > np.finfo(np.float32).max:
                raise ValueError(
                    f"A value times n / k = {x.size / k:.4g} overflows float32. "
                    "Scale the values, or use scaled = False."
                )
        return self._head(k) + struct.pack("<Q", key) + to_bytes(chosen.astype(np.float32), self.values)

    def unpack(self, reader: Reader, n: int) -> np.ndarray:
        form, k = self._read_head(reader, n)
        (key,) = reader.unpack("Q")
        values = from_bytes(reader, k, form)
        out = np.zeros(n, np.float32)
        out[subset(key, n, k)] = values
        return out

    def variance(self, n: int) -> float | None:
        """n / k - 1 when scaled (Wangni et al., NeurIPS 2018); ``None`` for the 16-bit formats, whose rounding is
        biased.
        """
        return 1 / self._kept(n) - 1 if self.unbiased else None

    def contraction(self, n: int) -> float | None:
        """k / n when not scaled, exactly (Stich et al., 2018, Lemma A.1)."""
        return (self._kept(n) or None) if not self.scaled and self.values == "fp32" else None


def largest(x: np.ndarray, k: int) -> np.ndarray:
    """Sorted places of the ``k`` values of largest magnitude; of equal ones the lower places."""
    if k >= x.size:
        return np.arange(x.size)
    if k == 0:
        return np.arange(0)
    size = np.abs(x)
    bar = np.partition(size, x.size - k)[x.size - k]
    above, at = np.flatnonzero(size > bar), np.flatnonzero(size == bar)
    return np.sort(np.concatenate([above, at[: k - above.size]]))
