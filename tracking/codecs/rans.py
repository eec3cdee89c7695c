"""Range asymmetric numeral systems: an arithmetic coder for bytes of known frequencies. Duda, arXiv:1311.2540.

Symbol i belongs to lane i mod ``lanes``; the lanes are coders of their own that share one stream of 16-bit words, so
that a step is a handful of operations on whole arrays.
"""

from __future__ import annotations

import numpy as np

from tracking.codecs.base import Reader

PRECISION = 16
LOW = 1 << 16
"""States live in [2^16, 2^32); the interval a lane returns to by reading or writing one word."""


def frequencies(probabilities: np.ndarray) -> np.ndarray:
    """Whole numbers >= 1 that sum to 2^16, near the given probabilities of (at most 256) symbols. The same on every
    machine that adds alike.
    """
    scaled = np.maximum(np.floor(probabilities * (1 << PRECISION)), 1).astype(np.int64)
    scaled[np.argmax(scaled)] += (1 << PRECISION) - scaled.sum()
    return scaled


def encode(symbols: np.ndarray, freq: np.ndarray, lanes: int) -> bytes:
    """Final states (4 bytes a lane) and words; about -sum log2(freq / 2^16) bits."""
    start = np.cumsum(freq) - freq
    state = np.full(lanes, LOW, np.int64)
    words: list[np.ndarray] = []
    rows = -(-symbols.size // lanes)
    for row in range(rows - 1, -1, -1):  # last in, first out
        s = symbols[row * lanes : (row + 1) * lanes]
        x, f = state[: s.size], freq[s]
        full = x >= f << PRECISION  # x >= 2^16 f would leave [2^16, 2^32)
        if full.any():
            words.append((x[full] & 0xFFFF)[::-1].astype("<u2"))
            x[full] >>= 16
        state[: s.size] = (x // f << PRECISION) + x % f + start[s]
    stream = np.concatenate(words)[::-1] if words else np.zeros(0, "<u2")
    return state.astype("<u4").tobytes() + stream.tobytes()


def decode(reader: Reader, count: int, freq: np.ndarray, lanes: int) -> np.ndarray:
    """The ``count`` symbols (uint8); reads all that is left and checks that it was used up."""
    start = np.cumsum(freq) - freq
    symbol_of = np.repeat(np.arange(freq.size), freq)
    state = reader.array("<u4", lanes).astype(np.int64)
    stream = reader.array("<u2", (len(reader.payload) - reader.at) // 2).astype(np.int64)
    out = np.empty(count, np.uint8)
    at = 0
    for first in range(0, count, lanes):
        x = state[: min(lanes, count - first)]
        slot = x & (LOW - 1)
        s = symbol_of[slot]
        out[first : first + x.size] = s
        x = freq[s] * (x >> PRECISION) + slot - start[s]
        short = x < LOW
        need = int(short.sum())
        if need:
            if at + need > stream.size:
                raise reader.wrong("its words end early")
            x[short] = x[short] << 16 | stream[at : at + need]
            at += need
        state[: x.size] = x
    if at != stream.size or (state != LOW).any():
        raise reader.wrong("its words do not lead back to the coder's start")
    return out
