"""Dense floating-point payloads: float32, float16 and bfloat16."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tracking.codecs.base import Reader, TensorCodec, floats, header

FORMATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Dense(TensorCodec):
    """Little-endian IEEE float32 (exact), float16 or bfloat16 (rounded to nearest, ties to even).

    NaN and infinity travel as such. A finite value that would become infinite raises ``ValueError`` (float16 ends at
    65,504).
    """

    tag = 0

    def __init__(self, form: str = "fp32") -> None:
        if form not in FORMATS:
            raise ValueError(f"form = {form!r}; allowed: {', '.join(FORMATS)}.")
        self.form, self.name = form, f"dense_{form}"
        self.tag = list(FORMATS).index(form)
        self.exact = self.unbiased = form == "fp32"

    def encode(self, value: Tensor) -> bytes:
        return header(value, self.tag) + to_bytes(floats(value), self.form)

    def unpack(self, reader: Reader, n: int) -> np.ndarray:
        return from_bytes(reader, n, self.form)

    def contraction(self, n: int) -> float | None:
        """1 for float32; 1 - u^2 with unit roundoff u = 2^-8 for bfloat16; None for float16, which keeps nothing
        below 3e-8.
        """
        return {"fp32": 1.0, "bf16": 1 - 2.0**-16}.get(self.form)


def to_bytes(x: np.ndarray, form: str) -> bytes:
    """Flat float32 values in one of the three formats; a finite value that overflows raises ``ValueError``."""
    if form == "fp32":
        return x.astype("<f4", copy=False).tobytes()
    narrow = torch.from_numpy(x).to(FORMATS[form])
    if int(narrow.isinf().sum()) != int(np.isinf(x).sum()):
        raise ValueError(
            f"A value of magnitude {np.abs(x[np.isfinite(x)]).max():.3g} overflows {form}, "
            f"which ends at {torch.finfo(FORMATS[form]).max:.5g}. Scale the values or use fp32."
        )
    return narrow.view(torch.int16).numpy().astype("<i2", copy=False).tobytes()


def from_bytes(reader: Reader, n: int, form: str) -> np.ndarray:
    """The ``n`` values that :func:`to_bytes` wrote, as float32."""
    if form == "fp32":
        return reader.array("<f4", n).astype(np.float32)
    return torch.from_numpy(reader.array("<i2", n).astype(np.int16)).view(FORMATS[form]).float().numpy()
