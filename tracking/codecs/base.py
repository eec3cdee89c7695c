"""What every codec shares: the protocol, the header with shape and kind, and a reader that notices a torn payload."""

from __future__ import annotations

import math
import struct
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

MAX_VALUES = 2**36
"""A header that claims more values than this is taken for foreign bytes (256 GiB of float32)."""


class Codec(Protocol):
    """``encode`` returns real packed bytes; ``decode`` returns what the receiver uses.

    A codec whose receiver needs a tensor of its own to decode sets ``needs_reference = True`` and
    takes ``decode(payload, reference=...)``.
    """

    name: str

    def encode(self, value: Any) -> bytes: ...

    def decode(self, payload: bytes) -> Any: ...


class Reader:
    """A cursor over a payload. Whatever is missing or left over raises ``ValueError`` with the codec's name."""

    def __init__(self, payload: bytes, name: str) -> None:
        self.payload, self.name, self.at = memoryview(payload), name, 0

    def take(self, count: int) -> memoryview:
        """The next ``count`` bytes."""
        if count < 0 or self.at + count > len(self.payload):
            raise ValueError(
                f"Torn or foreign payload for codec {self.name!r}: it holds {len(self.payload)} bytes, "
                f"and {self.at + count} are needed at least."
            )
        self.at += count
        return self.payload[self.at - count : self.at]

    def unpack(self, form: str) -> tuple:
        """The next fields, in :mod:`struct` notation, little-endian."""
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))

    def array(self, dtype: str, count: int) -> np.ndarray:
        """The next ``count`` numbers (read-only)."""
        return np.frombuffer(self.take(np.dtype(dtype).itemsize * count), dtype)

    def rest(self) -> memoryview:
        """All that is left."""
        return self.take(len(self.payload) - self.at)

    def end(self) -> None:
        """Nothing may be left over."""
        if self.at != len(self.payload):
            raise ValueError(
                f"Torn or foreign payload for codec {self.name!r}: {len(self.payload) - self.at} bytes too many."
            )

    def wrong(self, what: str) -> ValueError:
        """The error for content that no encoder writes."""
        return ValueError(f"Torn or foreign payload for codec {self.name!r}: {what}.")


class TensorCodec:
    """A codec for tensors: header, float32 values and errors in one place; a kind adds ``pack`` and ``unpack``.

    Layout of the header: one byte ``8 * tag + dim`` (7 stands for "dim follows in a byte of its own"), then one
    uint32 a dimension. Decoding gives a float32 tensor on the CPU unless the kind says otherwise.

    What is claimed about errors holds for values in float32's normal range (magnitude 0 or at least 1.2e-38), up to
    float32 rounding. ``unbiased``: E[decode(encode(x))] = x.
    """

    name: str
    tag: int
    exact: bool = False
    unbiased: bool = False
    needs_reference: ClassVar[bool] = False

    def encode(self, value: Tensor) -> bytes:
        """The payload. A value that is not finite, or does not fit, raises ``ValueError``."""
        return header(value, self.tag) + self.pack(finite(value, self.name))

    def decode(self, payload: bytes) -> Tensor:
        """What the receiver uses; a torn or foreign payload raises ``ValueError``."""
        shape, reader = open_payload(payload, self.tag, self.name)
        try:
            flat = self.unpack(reader, math.prod(shape))
        except MemoryError:
            raise reader.wrong(f"shape {shape} does not fit into memory") from None
        reader.end()
        return torch.from_numpy(flat).reshape(shape)

    def pack(self, x: np.ndarray) -> bytes:
        """Body for the flat, finite float32 values ``x``, in order."""
        raise NotImplementedError

    def unpack(self, reader: Reader, n: int) -> np.ndarray:
        """The ``n`` flat values: the inverse of :meth:`pack` up to the codec's loss. The array is writable and owns
        its memory.
        """
        raise NotImplementedError

    def variance(self, n: int) -> float | None:
        """omega with E||Q(x) - x||^2 <= omega ||x||^2 for every x of n values; ``None`` when there is no such bound."""
        return 0.0 if self.exact else None

    def contraction(self, n: int) -> float | None:
        """delta with E||C(x) - x||^2 <= (1 - delta) ||x||^2 for every x of n values; ``None`` when none above 0 is
        known.
        """
        return 1.0 if self.exact else None

    def entropy_bytes(self, payload: bytes) -> float | None:
        """Zero-order entropy of the symbols in ``payload``, in bytes, tables and header left out; ``None`` when
        undefined.

        Shown beside a length, never instead of it.
        """
        return None


def header(value: Tensor, tag: int) -> bytes:
    """Kind and shape of ``value``."""
    if not isinstance(value, Tensor):
        raise ValueError(f"A codec for tensors was given {type(value).__name__}; pass a torch.Tensor.")
    dim = value.dim()
    if any(side >= 2**32 for side in value.shape) or dim > 255:
        raise ValueError(f"Shape {tuple(value.shape)} does not fit the header: at most 255 dimensions below 2^32 each.")
    first = struct.pack("<B", 8 * tag + dim) if dim < 7 else struct.pack("<BB", 8 * tag + 7, dim)
    return first + struct.pack(f"<{dim}I", *value.shape)


def open_payload(payload: bytes, tag: int, name: str) -> tuple[tuple[int, ...], Reader]:
    """Shape, and a reader that stands behind the header."""
    reader = Reader(payload, name)
    (first,) = reader.unpack("B")
    if first >> 3 != tag:
        raise reader.wrong(f"its kind is {first >> 3}, and {name!r} has kind {tag}")
    dim = first & 7 if first & 7 < 7 else reader.unpack("B")[0]
    shape = reader.unpack(f"{dim}I")
    if math.prod(shape) > MAX_VALUES:
        raise reader.wrong(f"shape {shape} is beyond {MAX_VALUES} values")
    return shape, reader


def floats(value: Tensor) -> np.ndarray:
    """Flat float32 copy or view of ``value`` on the CPU."""
    if value.is_complex():
        raise ValueError("A codec was given complex values; send torch.view_as_real(value).")
    return value.detach().to("cpu", torch.float32).reshape(-1).numpy()


def finite(value: Tensor, name: str) -> np.ndarray:
    """Flat float32 values, all of them finite, else ``ValueError``."""
    x = floats(value)
    # finite float32 values have a finite float64 sum: one number to look at instead of a mask as long as x
    with np.errstate(invalid="ignore"):
        total = x.sum(dtype=np.float64)
    if not np.isfinite(total):
        bad = int(x.size - np.isfinite(x).sum())
        raise ValueError(
            f"{bad} of {x.size} values are not finite; the codec {name!r} carries finite values. "
            "Dense float32 carries all."
        )
    return x


def per_group(reduce: np.ufunc, x: np.ndarray, size: int | None) -> np.ndarray:
    """``reduce`` (``np.add``, ``np.maximum``) over each group of ``size`` neighbours; the last group may be shorter."""
    return reduce.reduceat(x, np.arange(0, x.size, size or max(x.size, 1))) if x.size else x[:0]


def count_groups(n: int, size: int | None) -> int:
    """Number of groups, hence of scales, for ``n`` values."""
    return -(-n // (size or n)) if n else 0


def spread(entries: np.ndarray, n: int, size: int | None) -> np.ndarray:
    """One entry a value from one entry a group (a single entry is left to broadcasting)."""
    return np.repeat(entries, size or n)[:n] if entries.size > 1 else entries


def check_group(size: int | None) -> int | None:
    """``size`` if it is a group size, else ``ValueError``."""
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or not 1 <= size < 2**32):
        raise ValueError(
            f"group = {size!r}; allowed: a whole number from 1 to 2^32 - 1, or None for one scale a tensor."
        )
    return size
