"""Packing of unsigned b-bit integers, b = 0..32, with whole-array operations.

Value i lies in bits [i b, (i + 1) b) of the stream, least significant bit first, for b up to 8. Wider values are
split: their low bytes come first, one a value, then the rest packed with b - 8 bits; n values take ceil(n b / 8)
bytes either way.
"""

from __future__ import annotations

import numpy as np

CHUNK = 1 << 15  # pairs a pass works on: what it reads and writes (160 KB) stays in a core's second-level cache


def packed_size(count: int, width: int) -> int:
    """Bytes of ``count`` integers of ``width`` bits."""
    return -(-count * width // 8)


def pack(codes: np.ndarray, width: int) -> np.ndarray:
    """Flat unsigned integers (or booleans) below ``2**width``, packed into uint8. A larger code raises
    ``ValueError``.
    """
    codes = np.ascontiguousarray(codes)
    if codes.ndim != 1 or codes.dtype.kind not in "ub" or not 0 <= width <= 32:
        raise ValueError(
            "Packing takes a flat array of unsigned integers and 0 to 32 bits, "
            f"not {codes.dtype}{codes.shape} and {width}."
        )
    if codes.dtype.kind == "b":
        codes = codes.view(np.uint8)
    if codes.size and width < 8 * codes.itemsize and int(codes.max()) >> width:
        raise ValueError(f"The code {int(codes.max())} does not fit into {width} bits.")
    if width > 8:
        high = codes.astype(np.uint32, copy=False) >> np.uint32(8)
        return np.concatenate([(codes & 0xFF).astype(np.uint8), pack(high, width - 8)])
    codes = codes.astype(np.uint8, copy=False)
    if width == 1:
        return np.packbits(codes, bitorder="little")
    if width == 2:
        return _pair(_pair(codes, 6), 4)
    if width == 4:
        return _pair(codes, 4)
    return _fold(codes, width) if width not in (0, 8) else codes[: codes.size if width else 0].copy()


def pack_signs(x: np.ndarray) -> np.ndarray:
    """One bit a value: 1 where ``x >= 0`` (a NaN gives 0)."""
    return np.packbits(x >= 0, bitorder="little")


def unpack(packed: bytes | memoryview | np.ndarray, width: int, count: int) -> np.ndarray:
    """The ``count`` codes: uint8 up to 8 bits, uint16 up to 16, else uint32. A wrong length raises ``ValueError``."""
    packed = np.frombuffer(packed, np.uint8)
    if packed.size != packed_size(count, width):
        raise ValueError(f"{packed.size} packed bytes; {count} codes of {width} bits take {packed_size(count, width)}.")
    if width > 8:
        high = unpack(packed[count:], width - 8, count)
        wide = np.uint16 if width <= 16 else np.uint32
        return high.astype(wide) << wide(8) | packed[:count]
    if width == 0:
        return np.zeros(count, np.uint8)
    if width == 8:
        return packed.copy()
    if width == 1:
        return np.unpackbits(packed, count=count, bitorder="little")
    if width == 2:
        return _unpair(_unpair(packed, 4), 6)[:count]
    return _unpair(packed, 4)[:count] if width == 4 else _unfold(packed, width)[:count]


def _pair(codes: np.ndarray, shift: int) -> np.ndarray:
    """Two neighbours a byte, the second one moved down by ``shift``: as 16-bit words, whose high byte the cast then
    drops.
    """
    words = codes[: codes.size & ~1].view("<u2")
    out, scratch = np.empty(-(-codes.size // 2), np.uint8), np.empty(min(CHUNK, words.size), np.uint16)
    for start in range(0, words.size, CHUNK):
        part = words[start : start + CHUNK]
        both = scratch[: part.size]
        np.right_shift(part, shift, out=both)
        np.bitwise_or(both, part, out=both)
        np.copyto(out[start : start + part.size], both, casting="unsafe")
    out[words.size :] = codes[2 * words.size :]
    return out


def _unpair(packed: np.ndarray, shift: int) -> np.ndarray:
    """The inverse of :func:`_pair`: two codes of ``8 - shift`` bits from each byte."""
    mask = (1 << (8 - shift)) - 1
    out = np.empty(packed.size, "<u2")
    for start in range(0, packed.size, CHUNK):
        part = out[start : start + CHUNK]
        np.copyto(part, packed[start : start + CHUNK])
        np.bitwise_or(part, part << np.uint16(shift), out=part)
        np.bitwise_and(part, np.uint16(mask * 0x101), out=part)
    return out.view(np.uint8)


def _fold(codes: np.ndarray, width: int) -> np.ndarray:
    """Eight codes a 64-bit word, of which ``width`` bytes are then kept."""
    whole = codes.size & ~7
    tail = np.zeros(8 if whole < codes.size else 0, np.uint8)
    tail[: codes.size - whole] = codes[whole:]
    out = np.empty((whole + tail.size) // 8 * width, np.uint8)
    for start in range(0, whole, 8 * CHUNK):
        part = codes[start : min(start + 8 * CHUNK, whole)]
        out[start // 8 * width : (start + part.size) // 8 * width] = _fold_words(part.view("<u8"), width)
    out[whole // 8 * width :] = _fold_words(tail.view("<u8"), width)
    return out[: packed_size(codes.size, width)]


def _fold_words(words: np.ndarray, width: int) -> np.ndarray:
    mask = (1 << width) - 1
    folded = words & np.uint64(mask)
    for i in range(1, 8):
        folded |= (words >> np.uint64((8 - width) * i)) & np.uint64(mask << width * i)
    return folded.view(np.uint8).reshape(-1, 8)[:, :width].reshape(-1)


def _unfold(packed: np.ndarray, width: int) -> np.ndarray:
    full, words = packed.size // width, np.zeros((-(-packed.size // width), 8), np.uint8)
    words[:full, :width] = packed[: full * width].reshape(-1, width)
    if full < len(words):
        words[full, : packed.size - full * width] = packed[full * width :]
    words, mask = words.view("<u8").reshape(-1), (1 << width) - 1
    spread = words & np.uint64(mask)
    for i in range(1, 8):
        spread |= (words & np.uint64(mask << width * i)) << np.uint64((8 - width) * i)
    return spread.view(np.uint8)
