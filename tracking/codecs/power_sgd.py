"""PowerSGD: a matrix as the product of two thin factors, from one warm-started power iteration. Vogels, Karimireddy,
Jaggi, NeurIPS 2019.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracking.codecs.base import Reader, TensorCodec, finite, header, open_payload
from tracking.codecs.dense import FORMATS, from_bytes, to_bytes
from tracking.codecs.randomness import Source, keys, stream


class PowerSGD:
    """P = orthogonalise(M Q), Q <- M^T P, receive P Q^T (Algorithm 1); Q is kept for the next message of the same
    tensor.

    ``power.of("layer 1")`` is the codec of one tensor. A tensor counts as the matrix (shape[0], rest). Where the
    factors would not be smaller, r (m + n) >= m n, as for vectors and scalars, the tensor goes densely. ``values`` is
    the format of the factors.
    """

    def __init__(self, rank: int = 2, values: str = "fp32", rng: Source = 0) -> None:
        if not isinstance(rank, int) or not 1 <= rank < 2**16:
            raise ValueError(f"rank = {rank!r}; allowed: a whole number from 1 to 65535.")
        if values not in FORMATS:
            raise ValueError(f"values = {values!r}; allowed: {', '.join(FORMATS)}.")
        self.rank, self.values, self.keys = rank, values, keys(rng)
        self.warm: dict[str, Tensor] = {}

    def of(self, tensor: str) -> PowerSGDOf:
        """The codec of one tensor."""
        return PowerSGDOf(self, tensor)

    def state_dict(self) -> dict[str, Any]:
        return {"warm": {name: q.clone() for name, q in self.warm.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.warm = {name: q.clone() for name, q in state["warm"].items()}


class PowerSGDOf(TensorCodec):
    """:class:`PowerSGD` for one tensor. Biased; no contraction is stated: a warm Q orthogonal to the rows of M keeps
    nothing.

    The body is r (m + n) p bytes of factors behind five bytes, or the dense values.
    """

    name = "power_sgd"
    tag = 11

    def __init__(self, power: PowerSGD, tensor: str) -> None:
        self.power, self.tensor = power, tensor

    def encode(self, value: Tensor) -> bytes:
        x, (rows, columns) = finite(value, self.name), matrix_shape(value.shape)
        rank, values = self.power.rank, self.power.values
        if rank * (rows + columns) >= rows * columns:
            rank, factors = 0, x
        else:
            factors = self._factors(torch.from_numpy(x).reshape(rows, columns).double())
        return (
            header(value, self.tag) + struct.pack("<BI", list(FORMATS).index(values), rank) + to_bytes(factors, values)
        )

    def _factors(self, matrix: Tensor) -> np.ndarray:
        size = (matrix.shape[1], self.power.rank)
        q = self.power.warm.get(self.tensor)
        if q is None:
            q = torch.from_numpy(stream(self.power.keys.next()).standard_normal(size, dtype=np.float32))
        elif q.shape != size:
            raise ValueError(
                f"The warm start of {self.tensor!r} has shape {tuple(q.shape)}; this tensor needs {size}. "
                "Use a name of its own for every tensor."
            )
        largest = float(matrix.abs().max())
        scaled = (
            matrix / largest if largest else matrix
        )  # the warm start then stays in float32's range, whatever the tensor's scale
        p = torch.linalg.qr(scaled @ q.double()).Q
        direction = scaled.T @ p
        factors = torch.cat([p.reshape(-1), (direction * largest).reshape(-1)])
        if float(factors.abs().max()) > torch.finfo(torch.float32).max:
            raise ValueError("The factors overflow float32. Scale the values.")
        self.power.warm[self.tensor] = direction.float() if largest else q  # a zero tensor teaches nothing
        return factors.float().numpy()

    def decode(self, payload: bytes) -> Tensor:
        shape, reader = open_payload(payload, self.tag, self.name)
        flat = self._product(reader, shape)
        reader.end()
        return torch.from_numpy(flat).reshape(shape)

    def _product(self, reader: Reader, shape: tuple[int, ...]) -> np.ndarray:
        form, rank = reader.unpack("BI")
        if form >= len(FORMATS):
            raise reader.wrong(f"format {form}")
        form = list(FORMATS)[form]
        if not rank:
            return from_bytes(reader, math.prod(shape), form)
        rows, columns = matrix_shape(shape)
        p = from_bytes(reader, rows * rank, form).reshape(rows, rank)
        q = from_bytes(reader, columns * rank, form).reshape(columns, rank)
        return (p @ q.T).reshape(-1)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns) of a tensor seen as a matrix; a vector is one row."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))
