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

CHUNK = 1 << 18  # scores held at once: what is written and read again stays in a core's second-level cache


class VectorQuantiser(TensorCodec):
    """Codebook (K, d), shared by all groups, or (g, K, d), one a group of d neighbouring channels; ``axis`` is the
    channel axis.

    An activation (B, c, H, W) with axis 1 and c = g d becomes B H W g indices of ceil(log2 K) bits. The payload
    carries a 4-byte mark of the codebook that made it: decoding with another one (not yet arrived, or already
    replaced) raises ``ValueError``, unless ``strict`` is false: indices then stand for whatever the codewords of
    this codebook have become.
    """

    name = "vq"
    tag = 13

    def __init__(self, codebook: Tensor, axis: int = 1, *, strict: bool = True) -> None:
        if codebook.dim() not in (2, 3) or not 1 <= codebook.shape[-2] <= 2**16 or 0 in codebook.shape:
            raise ValueError(
                f"The codebook has shape {tuple(codebook.shape)}; "
                "allowed: (K, d) or (groups, K, d) with K from 1 to 65536."
            )
        flat = finite(codebook, "codebook")
        self.codebook, self.axis = torch.from_numpy(flat.copy()).reshape(codebook.shape), axis
        self.mark = zlib.crc32(flat.tobytes(), zlib.crc32(repr(tuple(codebook.shape)).encode()))
        self.width, self.strict = index_width(codebook.shape[-2]), strict

    def encode(self, value: Tensor) -> bytes:
        return self.payload(value, self.codes(value))

    def codes(self, value: Tensor) -> Tensor:
        """Index (vectors, groups) of the nearest codeword for every vector of ``value``, int64, on its device.

        Nearest up to float32's rounding of the distances.
        """
        x = value.detach().float()
        groups = self._groups(x.shape)
        if not torch.isfinite(x.sum()):
            finite(value, self.name)  # raises, unless it was the sum alone that went beyond float32
        return _search(self._planes(x, groups), self._books(groups).to(x.device)).reshape(-1, groups)

    def payload(self, value: Tensor, codes: Tensor) -> bytes:
        """What :meth:`encode` sends of ``value`` whose :meth:`codes` are known."""
        packed = bits.pack(codes.reshape(-1).cpu().numpy().astype(np.uint16), self.width)
        return header(value, self.tag) + self.mark.to_bytes(4, "little") + packed.tobytes()

    def look_up(self, codes: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The values (of ``shape``) that ``codes`` stand for, on their device."""
        groups = self._groups(shape)
        out = torch.empty(shape, device=codes.device)
        planes = self._planes(out, groups)
        samples, _, _, positions = planes.shape
        tables = self._books(groups).to(codes.device).transpose(1, 2).contiguous()
        places = codes.view(samples, positions, groups).permute(2, 0, 1)
        for g in range(groups):
            rows = tables[g].index_select(1, places[g].reshape(-1))
            planes[:, g] = rows.view(self._d, samples, positions).transpose(0, 1)
        return out

    def _planes(self, x: Tensor, groups: int) -> Tensor:
        """A view (samples, groups, d, positions) of ``x``: what stands before the channel axis, the channels, what stands behind."""
        axis = self.axis % x.dim()
        return x.reshape(math.prod(x.shape[:axis]), groups, self._d, math.prod(x.shape[axis + 1 :]))

    def decode(self, payload: bytes) -> Tensor:
        shape, index = self._read(payload)
        return self.look_up(index, shape)

    def _read(self, payload: bytes) -> tuple[tuple[int, ...], Tensor]:
        shape, reader = open_payload(payload, self.tag, self.name)
        (mark,) = reader.unpack("I")
        if self.strict and mark != self.mark:
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
    """Index (n, g) of the nearest codeword in ``books`` (g, K, d) for each of ``vectors`` (n, g, d), in their precision."""
    return _search(vectors.unsqueeze(-1), books)[:, 0]


def _search(planes: Tensor, books: Tensor) -> Tensor:
    """Index (samples, positions, groups) of the nearest codeword for the vectors of ``planes`` (samples, groups, d, positions)."""
    samples, groups, d, positions = planes.shape
    size, books = books.shape[1], books.to(planes.dtype)
    # v e - |e|^2 / 2 is greatest where |v - e| is least; a coordinate that is 1 for all vectors brings the second term in
    tables = torch.cat([books, -books.square().sum(-1, keepdim=True) / 2], -1).transpose(1, 2).contiguous()
    out = torch.empty(samples, positions, groups, dtype=torch.int64, device=planes.device)
    step = max(CHUNK // max(size * positions, 1), 1)
    part = planes.new_ones(d + 1, min(step, samples), positions)
    scores = planes.new_empty(part.shape[1] * positions, size)
    for start in range(0, samples, step):
        some = planes[start : start + step].permute(1, 2, 0, 3)
        count = some.shape[2]
        for g in range(groups):
            part[:d, :count] = some[g]
            found = torch.mm(part[:, :count].reshape(d + 1, -1).T, tables[g], out=scores[: count * positions])
            # NumPy's search along rows is several times faster than PyTorch's on a CPU
            best = found.argmax(1) if found.is_cuda else torch.from_numpy(found.numpy().argmax(1))
            out[start : start + count, :, g] = best.view(count, positions)
    return out
