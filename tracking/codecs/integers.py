"""Codes for whole numbers of unknown size: Elias gamma and Golomb-Rice, and from them the coding of places.

A code word has a unary part, which says how long the rest is, and a binary part. The unary parts of all numbers come
first, then the binary parts: as many bits as word by word, and both parts can be read with whole-array operations.
"""

from __future__ import annotations

import struct

import numpy as np

from tracking.codecs import bits
from tracking.codecs.base import Reader


def gamma_bits(values: np.ndarray) -> int:
    """Length of the Elias gamma code of ``values`` >= 1: 2 floor(log2 v) + 1 bits each (Elias, 1975)."""
    return int(2 * _floor_log2(values).sum() + values.size)


def gamma_encode(values: np.ndarray) -> bytes:
    """Elias gamma code of whole numbers >= 1."""
    lengths = _floor_log2(values)
    return _unary_encode(lengths) + _varying_encode(values, lengths)


def gamma_decode(reader: Reader, count: int) -> np.ndarray:
    """The ``count`` numbers, int64."""
    lengths = _unary_decode(reader, count)
    if lengths.size and int(lengths.max()) > 40:
        raise reader.wrong(f"a number of {int(lengths.max())} bits")
    return _varying_decode(reader, lengths) + (np.int64(1) << lengths)


def encode_places(places: np.ndarray, n: int) -> bytes:
    """Sorted distinct places below ``n`` in the shortest of three forms; the first byte says which (Rice: parameter;
    254: bitmap; 255: raw).

    Rice: gaps between neighbours (0 when adjacent), g >> m in unary and m low bits (Golomb, 1966; Rice, 1979).
    Bitmap: n bits. Raw: ceil(log2 n) bits a place. No places take no bytes at all.
    """
    if not places.size:
        return b""
    form, parameter = shortest_form(places, n)
    if form == "bitmap":
        mask = np.zeros(n, bool)
        mask[places] = True
        return b"\xfe" + bits.pack(mask, 1).tobytes()
    if form == "raw":
        return b"\xff" + bits.pack(places.astype(np.uint32), _raw_width(n)).tobytes()
    gaps = _gaps(places)
    low = bits.pack((gaps & ((1 << parameter) - 1)).astype(np.uint32), parameter).tobytes()
    return struct.pack("<B", parameter) + _unary_encode(gaps >> parameter) + low


def decode_places(reader: Reader, count: int, n: int) -> np.ndarray:
    """The ``count`` sorted places, int64."""
    if count > n:
        raise reader.wrong(f"{count} places of {n}")
    if not count:
        return np.zeros(0, np.int64)
    (form,) = reader.unpack("B")
    if form == 254:
        places = np.flatnonzero(bits.unpack(reader.take(bits.packed_size(n, 1)), 1, n))
    elif form == 255:
        places = bits.unpack(reader.take(bits.packed_size(count, _raw_width(n))), _raw_width(n), count).astype(np.int64)
    elif form > 32:
        raise reader.wrong(f"place coding {form}")
    else:
        high = _unary_decode(reader, count)
        low = bits.unpack(reader.take(bits.packed_size(count, form)), form, count).astype(np.int64)
        places = np.cumsum((high << form) + low + 1) - 1
    if places.size != count or places[-1] >= n or places[0] < 0 or (np.diff(places) <= 0).any():
        raise reader.wrong("places out of order or out of range")
    return places


def shortest_form(places: np.ndarray, n: int) -> tuple[str, int]:
    """Name of the shortest form of :func:`encode_places` and Rice's parameter."""
    rice, parameter = min((size, m) for m, size in enumerate(_rice_sizes(places)))
    # at equal size the first: Rice with m = 0 is the bitmap, cut off behind the last place, and slower to read
    sizes = {"bitmap": bits.packed_size(n, 1), "raw": bits.packed_size(places.size, _raw_width(n)), "rice": rice}
    if _raw_width(n) > 32:
        del sizes["raw"]
    return min(sizes, key=sizes.get), parameter


def _rice_sizes(places: np.ndarray) -> list[int]:
    gaps = _gaps(places)
    return [
        bits.packed_size(int((gaps >> m).sum()) + gaps.size, 1) + bits.packed_size(gaps.size, m)
        for m in range(min(int(gaps.max()).bit_length(), 32) + 1)
    ]


def _gaps(places: np.ndarray) -> np.ndarray:
    return np.diff(places.astype(np.int64), prepend=-1) - 1


def _raw_width(n: int) -> int:
    return max(n - 1, 0).bit_length()


def _floor_log2(values: np.ndarray) -> np.ndarray:
    return np.frexp(values.astype(np.float64))[1].astype(np.int64) - 1  # exact below 2^53


def _unary_encode(values: np.ndarray) -> bytes:
    """v zeros and a one for each v."""
    ends = np.cumsum(values.astype(np.int64) + 1) - 1
    stream = np.zeros(int(ends[-1]) + 1 if ends.size else 0, bool)
    stream[ends] = True
    return bits.pack(stream, 1).tobytes()


def _unary_decode(reader: Reader, count: int) -> np.ndarray:
    """Finds the count-th one of the stream; the padding after it must be zero."""
    if not count:
        return np.zeros(0, np.int64)
    ones, found, start, size = [], 0, reader.at, 0
    while found < count:  # the stream does not say how long it is: look at more of it, in growing steps
        chunk = reader.payload[start + size : start + size + max(count // 4, size, 64)]
        if not len(chunk):
            reader.take(1)  # raises: nothing is left
            raise reader.wrong("its unary part does not end")
        here = np.flatnonzero(np.unpackbits(np.frombuffer(chunk, np.uint8), bitorder="little")) + 8 * size
        ones.append(here)
        found, size = found + here.size, size + len(chunk)
    ones = np.concatenate(ones)
    reader.take((int(ones[count - 1]) + 8) // 8)
    return np.diff(ones[:count], prepend=-1) - 1


def _varying_encode(values: np.ndarray, lengths: np.ndarray) -> bytes:
    """The ``lengths[i]`` low bits of ``values[i]``, end to end."""
    owner = np.repeat(np.arange(values.size), lengths)
    place = np.arange(owner.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return bits.pack((values.astype(np.int64)[owner] >> place & 1).astype(bool), 1).tobytes()


def _varying_decode(reader: Reader, lengths: np.ndarray) -> np.ndarray:
    total = int(lengths.sum())
    stream = bits.unpack(reader.take(bits.packed_size(total, 1)), 1, total).astype(np.int64)
    owner = np.repeat(np.arange(lengths.size), lengths)
    place = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    values = np.zeros(lengths.size, np.int64)
    np.add.at(values, owner, stream << place)
    return values
