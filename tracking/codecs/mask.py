"""Masks, such as which weights flip: the shortest of four exact payloads."""

from __future__ import annotations

import math
import struct
import zlib

import numpy as np
import torch
from torch import Tensor

from tracking.codecs import bits, rans
from tracking.codecs.base import Reader, TensorCodec, header, open_payload
from tracking.codecs.entropy import subset_bytes
from tracking.codecs.integers import decode_places, encode_places

FORMS = ("bitmap", "zlib", "places", "arithmetic")
LANES = 16
_ONES = np.bitwise_count(np.arange(256, dtype=np.uint8)).astype(np.int64)


class Mask(TensorCodec):
    """A boolean tensor, exactly: as a bitmap, a bitmap under zlib, coded places, or an arithmetic code of the
    bitmap's bytes.

    The first byte of the body says which; ``forms`` limits the choice. Places are those of the rarer value. The
    arithmetic code takes the bits for independent with the mask's own share of ones, which is all of its table.
    Decodes to a boolean tensor.
    """

    name = "mask"
    tag = 14
    exact = unbiased = True

    def __init__(self, forms: tuple[str, ...] = FORMS) -> None:
        if not forms or set(forms) - set(FORMS):
            raise ValueError(f"forms = {forms!r}; allowed: some of {', '.join(FORMS)}.")
        self.forms = tuple(forms)

    def encode(self, value: Tensor) -> bytes:
        if not isinstance(value, Tensor) or value.dtype != torch.bool:
            raise ValueError(
                f"The codec 'mask' takes a boolean tensor, not {getattr(value, 'dtype', type(value).__name__)}; "
                "compare first, as in (new != old)."
            )
        mask = value.detach().cpu().reshape(-1).numpy()
        packed, ones = bits.pack(mask, 1).tobytes(), int(mask.sum())
        best: bytes | None = None
        for form in self.forms:
            # the slow coder is tried where the entropy of independent bits leaves it room to win
            if best is None or form != "arithmetic" or subset_bytes(mask.size, ones) + 4 * LANES < len(best):
                body = bytes([FORMS.index(form)]) + _BODY[form](mask, packed, ones)
                best = body if best is None or len(body) < len(best) else best
        return header(value, self.tag) + best

    def unpack(self, reader: Reader, n: int) -> np.ndarray:
        (form,) = reader.unpack("B")
        if form >= len(FORMS):
            raise reader.wrong(f"form {form}")
        return _UNBODY[FORMS[form]](reader, n)

    def entropy_bytes(self, payload: bytes) -> float:
        """log2 C(n, ones) / 8."""
        shape, _ = open_payload(payload, self.tag, self.name)
        return subset_bytes(math.prod(shape), int(self.decode(payload).sum()))


def _zlib(mask: np.ndarray, packed: bytes, ones: int) -> bytes:
    return zlib.compress(packed, 9)


def _unzlib(reader: Reader, n: int) -> np.ndarray:
    inflater = zlib.decompressobj()
    try:
        packed = inflater.decompress(reader.rest(), bits.packed_size(n, 1) + 1)
    except zlib.error as error:
        raise reader.wrong(str(error)) from None
    if len(packed) != bits.packed_size(n, 1) or not inflater.eof or inflater.unused_data:
        raise reader.wrong("its zlib stream is not that of one mask")
    return bits.unpack(packed, 1, n).astype(bool)


def _places(mask: np.ndarray, packed: bytes, ones: int) -> bytes:
    rarer = ones * 2 <= mask.size
    places = np.flatnonzero(mask == rarer)
    return struct.pack("<BI", rarer, places.size) + encode_places(places, mask.size)


def _unplaces(reader: Reader, n: int) -> np.ndarray:
    rarer, count = reader.unpack("BI")
    mask = np.full(n, not rarer)
    mask[decode_places(reader, count, n)] = bool(rarer)
    return mask


def _arithmetic(mask: np.ndarray, packed: bytes, ones: int) -> bytes:
    return struct.pack("<Q", ones) + rans.encode(
        np.frombuffer(packed, np.uint8), _byte_frequencies(ones, mask.size), LANES
    )


def _unarithmetic(reader: Reader, n: int) -> np.ndarray:
    (ones,) = reader.unpack("Q")
    if ones > n:
        raise reader.wrong(f"{ones} ones among {n}")
    symbols = rans.decode(reader, bits.packed_size(n, 1), _byte_frequencies(ones, n), LANES)
    return bits.unpack(symbols, 1, n).astype(bool)


def _byte_frequencies(ones: int, n: int) -> np.ndarray:
    """Of bytes of eight independent bits; products, not powers, because they are the same on every machine."""
    p = ones / n if n else 0.0
    table = np.ones(9)
    for k in range(9):
        for bit in range(8):
            table[k] *= p if bit < k else 1 - p
    return rans.frequencies(table[_ONES])


_BODY = {"bitmap": lambda mask, packed, ones: packed, "zlib": _zlib, "places": _places, "arithmetic": _arithmetic}
_UNBODY = {
    "bitmap": lambda reader, n: bits.unpack(reader.take(bits.packed_size(n, 1)), 1, n).astype(bool),
    "zlib": _unzlib,
    "places": _unplaces,
    "arithmetic": _unarithmetic,
}
