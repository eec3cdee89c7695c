"""Vector quantisation: nearest codewords, of which only the packed indices travel; the codebook is a message of its
own.
"""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tracking.codecs import bits
from tracking.codecs.base import Reader, TensorCodec, finite, header, open_payload
from tracking.codecs.dense import Dense
from tracking.codecs.entropy import entropy_bytes
from tracking.codecs.levels import index_width
from tracking.codecs.randomness import Source, keys, stream

if TYPE_CHECKING:
    from tracking.ledger import Direction, Ledger

CHUNK = 1 << 22  # distances held at once


class VectorQuantiser(TensorCodec):
    """Codebook (K, d), shared by all groups, or (g, K, d), one a group of d neighbouring channels; ``axis`` is the
    channel axis.

    An activation (B, c, H, W) with axis 1 and c = g d becomes B H W g indices of ceil(log2 K) bits. The payload
    carries a 4-byte mark of the codebook that made it: decoding with another one (not yet arrived, or already
    replaced) raises ``ValueError``.
    """

    name = "vq"
    tag = 13

    def __init__(self, codebook: Tensor, axis: int = 1) -> None:
        if codebook.dim() not in (2, 3) or not 1 <= codebook.shape[-2] <= 2**16 or 0 in codebook.shape:
            raise ValueError(
                f"The codebook has shape {tuple(codebook.shape)}; "
                "allowed: (K, d) or (groups, K, d) with K from 1 to 65536."
            )
        flat = finite(codebook, "codebook")
        self.codebook, self.axis = torch.from_numpy(flat.copy()).reshape(codebook.shape), axis
        self.mark = zlib.crc32(flat.tobytes(), zlib.crc32(repr(tuple(codebook.shape)).encode()))
        self.width = index_width(codebook.shape[-2])

    def encode(self, value: Tensor) -> bytes:
        x = torch.from_numpy(finite(value, self.name)).reshape(value.shape)
        self._groups(x.shape)
        vectors = x.movedim(self.axis, -1).reshape(-1, x.shape[self.axis] // self._d, self._d)
        index = nearest(vectors, self._books(vectors.shape[1]))
        return (
            header(value, self.tag)
            + self.mark.to_bytes(4, "little")
            + bits.pack(index.reshape(-1).numpy().astype(np.uint16), self.width).tobytes()
        )

    def decode(self, payload: bytes) -> Tensor:
        shape, index = self._read(payload)
        groups = self._groups(shape)
        moved = torch.empty(shape, device="meta").movedim(self.axis, -1).shape
        rows = self._books(groups)[torch.arange(groups), index.reshape(-1, groups)]
        return rows.reshape(moved).movedim(-1, self.axis).contiguous()

    def _read(self, payload: bytes) -> tuple[tuple[int, ...], Tensor]:
        shape, reader = open_payload(payload, self.tag, self.name)
        (mark,) = reader.unpack("I")
        if mark != self.mark:
            raise ValueError(
                "The payload was made with another codebook; receive the codebook (send_codebook) before its indices."
            )
        self._check(shape, reader)
        count = math.prod(shape) // self._d
        index = torch.from_numpy(
            bits.unpack(reader.take(bits.packed_size(count, self.width)), self.width, count).astype(np.int64)
        )
        reader.end()
        if count and int(index.max()) >= self.codebook.shape[-2]:
            raise reader.wrong(f"an index {int(index.max())} into {self.codebook.shape[-2]} codewords")
        return shape, index

    def _check(self, shape: tuple[int, ...], reader: Reader) -> None:
        try:
            self._groups(shape)
        except ValueError as error:
            raise reader.wrong(str(error).rstrip(".")) from None

    @property
    def _d(self) -> int:
        return self.codebook.shape[-1]

    def _books(self, groups: int) -> Tensor:
        return self.codebook if self.codebook.dim() == 3 else self.codebook.expand(groups, *self.codebook.shape)

    def _groups(self, shape: tuple[int, ...]) -> int:
        if not -len(shape) <= self.axis < len(shape):
            raise ValueError(f"A tensor of shape {tuple(shape)} has no axis {self.axis}.")
        groups, over = divmod(shape[self.axis], self._d)
        if over or (self.codebook.dim() == 3 and groups != self.codebook.shape[0]):
            wanted = (
                f"{self.codebook.shape[0]} times {self._d}" if self.codebook.dim() == 3 else f"a multiple of {self._d}"
            )
            raise ValueError(
                f"Axis {self.axis} of shape {tuple(shape)} has {shape[self.axis]} channels; "
                f"the codebook takes {wanted}."
            )
        return groups

    def entropy_bytes(self, payload: bytes) -> float:
        """Of the indices, all groups together."""
        return entropy_bytes(self._read(payload)[1])


def send_codebook(
    ledger: Ledger, vq: VectorQuantiser, direction: Direction, party: str = "server", form: str = "fp32"
) -> VectorQuantiser:
    """Bill the codebook as a message of its own and return the quantiser that both ends use from now on (rounded to
    ``form``).
    """
    return VectorQuantiser(ledger.send(vq.codebook, Dense(form), direction, party, part="codebook"), vq.axis)


def fit_codebook(vectors: Tensor, codewords: int, rng: Source = 0, iterations: int = 25) -> Tensor:
    """Codebook (K, d) for ``vectors`` (n, d) by Lloyd's k-means from a k-means++ start (Arthur and Vassilvitskii,
    2007).

    The mean squared error never grows from one iteration to the next; it stops early where the assignment stands
    still. A codeword nobody uses moves to the vector that is served worst. Fewer than K vectors raise ``ValueError``.
    """
    if vectors.dim() != 2 or len(vectors) < codewords or codewords < 1:
        raise ValueError(
            f"{codewords} codewords cannot be fitted to vectors of shape {tuple(vectors.shape)}: "
            "give (n, d) with n >= K >= 1."
        )
    points = torch.from_numpy(finite(vectors, "vectors")).reshape(vectors.shape).double()
    book, old = _plus_plus(points, codewords, stream(keys(rng).next())), None
    for _ in range(iterations):
        index = nearest(points[:, None], book[None])[:, 0]
        counts = torch.bincount(index, minlength=codewords)
        sums = torch.zeros_like(book).index_add_(0, index, points)
        book = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], book)
        idle = (counts == 0).nonzero()[:, 0]
        if len(idle):
            worst = (points - book[index]).square().sum(1).argsort(descending=True)[: len(idle)]
            book[idle] = points[worst]
        elif old is not None and torch.equal(index, old):
            break
        old = index
    return book.float()


def _plus_plus(points: Tensor, codewords: int, noise: np.random.Generator) -> Tensor:
    chosen = [int(noise.integers(len(points)))]
    distance = (points - points[chosen[0]]).square().sum(1)
    for _ in range(codewords - 1):
        total = distance.cumsum(0)
        place = (
            int(torch.searchsorted(total, noise.random() * float(total[-1]), right=True))
            if total[-1] > 0
            else len(chosen)
        )
        chosen.append(min(place, len(points) - 1))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(1))
    return points[chosen]


def nearest(vectors: Tensor, books: Tensor) -> Tensor:
    """Index (n, g) of the nearest codeword in ``books`` (g, K, d) for each of ``vectors`` (n, g, d)."""
    groups, size, _ = books.shape
    half = books.double().square().sum(-1) / 2
    out = torch.empty(vectors.shape[:2], dtype=torch.int64)
    step = max(CHUNK // max(groups * size, 1), 1)
    for start in range(0, len(vectors), step):  # |v - e|^2 / 2 less |v|^2 / 2, which all codewords share
        part = vectors[start : start + step].double()
        out[start : start + step] = (half[:, None] - torch.einsum("ngd,gkd->gnk", part, books.double())).argmin(-1).T
    return out
