"""Speed and size of packing: gigabytes of input a second on one thread, and payloads against a pickle of the same
values.

Input of the one-bit row is float32 (its signs are packed), of the four-bit row uint8 codes. The peers are the plain
array formulations: a matrix of bits for ``np.packbits``. Ours and the peer take turns on 16 MiB; figures are medians
over the turns. All of it runs on one thread and its own processor time is what counts, so that other work on the
machine does not.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from tracking.codecs import Levels, bits
from tracking.codecs.entropy import subset_bytes
from tracking.codecs.registry import codec

TURNS = 9
INPUT = 1 << 24  # bytes: beyond the caches of a core, so that memory is part of the figure
D = 1_000_000


def main() -> list[dict]:
    """Rows of the table."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [*packing(), *sizes(), *codecs()]
    finally:
        torch.set_num_threads(threads)


def packing() -> list[dict]:
    """Packing and unpacking, with the naive formulation as peer."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(INPUT // 4, dtype=np.float32)
    codes = rng.integers(0, 16, INPUT, dtype=np.uint8)
    packed = bits.pack(codes, 4)
    return [
        speed(
            "pack 1-bit signs of float32",
            lambda: bits.pack_signs(x),
            lambda: naive_pack((x >= 0).astype(np.uint8), 1),
            x.nbytes,
            2,
        ),
        speed("pack 4-bit codes of uint8", lambda: bits.pack(codes, 4), lambda: naive_pack(codes, 4), codes.nbytes, 2),
        speed(
            "pack 3-bit codes of uint8", lambda: bits.pack(codes & 7, 3), lambda: naive_pack(codes & 7, 3), codes.nbytes
        ),
        speed(
            "unpack 4-bit codes to uint8 (of output)",
            lambda: bits.unpack(packed, 4, codes.size),
            lambda: naive_unpack(packed, 4, codes.size),
            codes.nbytes,
        ),
    ]


def naive_pack(codes: np.ndarray, width: int) -> np.ndarray:
    """A row of bits a code, then packbits."""
    rows = (codes[:, None] >> np.arange(width, dtype=np.uint8)) & 1
    return np.packbits(rows, bitorder="little")


def naive_unpack(packed: np.ndarray, width: int, count: int) -> np.ndarray:
    """The inverse, the same way."""
    rows = np.unpackbits(packed, count=count * width, bitorder="little").reshape(count, width)
    return (rows << np.arange(width, dtype=np.uint8)).sum(1, dtype=np.uint8)


def speed(name: str, ours: Callable, peer: Callable, size: int, target: float | None = None) -> dict:
    """GB/s of both, in turns, after they agreed."""
    assert np.array_equal(ours(), peer())
    times = [(clock(ours), clock(peer)) for _ in range(TURNS)]
    mine, theirs = (size / statistics.median(column) / 1e9 for column in zip(*times, strict=True))
    row = {"name": name, "ours": mine, "peer": theirs, "unit": "GB/s", "ratio": mine / theirs, "n": TURNS}
    return row | ({"target": f">= {target:g} GB/s", "met": mine >= target} if target else {})


def clock(work: Callable) -> float:
    begin = time.thread_time()
    work()
    return time.thread_time() - begin


def sizes() -> list[dict]:
    """Payloads of a million values against what ``torch.save`` writes, or against the entropy of what is sent."""
    x = torch.randn(D, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(D, generator=torch.Generator().manual_seed(0)) < 0.05
    pickled = io.BytesIO()
    torch.save(x > 0, pickled)
    top = codec("top_k", fraction=0.01)
    signs, flips, places = Levels().encode(x.sign()), codec("mask").encode(mask), len(top.encode(x)) - 5 - 5 - 40_000
    return [
        size("binary weights, against torch.save of booleans", len(signs), pickled.tell(), 0.126),
        size("mask with 5 % ones, against log2 C(n, k)", len(flips), subset_bytes(D, int(mask.sum())), 1.01),
        size("places of the top 1 %, against log2 C(n, k)", places, subset_bytes(D, D // 100), 1.005),
    ]


def size(name: str, ours: float, peer: float, target: float) -> dict:
    return {
        "name": f"bytes of 10^6 {name}",
        "ours": ours,
        "peer": peer,
        "unit": "B",
        "ratio": ours / peer,
        "n": 1,
        "target": f"<= {target:g}",
        "met": ours <= target * peer,
    }


def codecs() -> list[dict]:
    """Encoding and decoding of a million normal values: megabytes of float32 a second, without a peer."""
    x = torch.randn(D, generator=torch.Generator().manual_seed(0))
    rows = []
    for name, options in (
        ("dense_fp16", {}),
        ("int8", {}),
        ("int4", {"group": 32}),
        ("qsgd", {}),
        ("sign", {}),
        ("top_k", {"fraction": 0.01}),
        ("random_k", {"fraction": 0.01}),
        ("natural", {}),
        ("terngrad", {}),
        ("lattice", {"side": 1e-3}),
    ):
        made = codec(name, **options)
        more = {"reference": x} if made.needs_reference else {}
        payload = made.encode(x)
        for what, work in (
            ("encode", lambda made=made: made.encode(x)),
            ("decode", lambda made=made, payload=payload, more=more: made.decode(payload, **more)),
        ):
            taken = statistics.median(clock(work) for _ in range(5))
            rows.append({"name": f"{what} 10^6 values, {name}", "ours": 4 * D / taken / 1e6, "unit": "MB/s", "n": 5})
    return rows


if __name__ == "__main__":
    from tests.bench.__main__ import describe

    for row in main():
        print(describe(row))
