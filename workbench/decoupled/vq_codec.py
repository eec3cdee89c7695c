"""The vector quantiser of links: on a processor with Numba by kernels of its own, else by matrix products; the same payloads.

All take the nearest codeword up to float32's rounding of the distances, so their codes differ between equally near codewords alone.
On a GPU nothing here waits for it: codes are sought, packed, unpacked and looked up where the activations are.
"""

from __future__ import annotations

import importlib
import math
import warnings
from functools import cache
from types import ModuleType
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from tracking.codecs.base import Reader, finite, header, open_payload
from tracking.codecs.bits import packed_size
from tracking.codecs.vq import VectorQuantiser
from tracking.errors import UserError, unknown
from workbench.decoupled.parcels import pack_bits, stays, unpack_bits

Backend = Literal["auto", "numba", "torch"]
SCORES = 1 << 26  # of vectors with codewords, that a GPU holds at once: 256 MiB


class Tally(NamedTuple):
    """What a batch has for each codeword, and how far it is from them."""

    counts: Tensor
    """(g, K), int64: vectors with each code."""
    sums: Tensor
    """(g, K, d): their sums."""
    error: float | Tensor
    """Sum of squared distances to the codewords; of a batch on a GPU a tensor (), float64, for which nobody has waited."""
    power: float | Tensor
    """Sum of squares, likewise."""


@cache
def _kernels() -> ModuleType | None:
    """The kernels, where Numba is there and loads."""
    try:
        return importlib.import_module("workbench.decoupled.vq_kernel")
    except ImportError as error:
        if not isinstance(error, ModuleNotFoundError):
            warnings.warn(f"numba is installed but does not load ({error}): codewords are sought by matrix products.", stacklevel=2)
        return None


def _native(value: Tensor, backend: Backend) -> ModuleType | None:
    """The kernels, where they are to work on ``value``."""
    if backend not in get_args(Backend):
        raise unknown("backend", backend, get_args(Backend))
    fits = value.device.type == "cpu" and value.dtype == torch.float32
    found = _kernels() if backend != "torch" and fits else None
    if backend == "numba" and not fits:
        raise UserError(f"backend = 'numba' works on float32 tensors on the processor, not on {value.dtype} on {value.device}. "
                        "Use 'auto' or 'torch'.")
    if backend == "numba" and found is None:
        raise UserError("backend = 'numba' needs the package numba: pip install numba. 'torch' needs nothing and finds the same "
                        "codewords, slower; 'auto' takes what there is.")
    return found


class LinkQuantiser(VectorQuantiser):
    """:class:`tracking.codecs.vq.VectorQuantiser` with the channels on axis 1, and a choice of what does its arithmetic.

    Args:
        codebook: (g, K, d) or (K, d).
        strict: whether payloads of other codebooks are refused.
        backend: ``numba``, for float32 tensors on the processor; ``torch``, for any; ``auto``: the first where it can.
    """

    def __init__(self, codebook: Tensor, *, strict: bool = True, backend: Backend = "auto") -> None:
        super().__init__(codebook, strict=strict)
        _native(self.codebook, backend)  # refuses what is not there
        self.backend = backend
        self._tiles: np.ndarray | None = None
        self._copies: dict[torch.device, Tensor] = {}

    def codes(self, value: Tensor) -> Tensor:
        """Index (vectors, groups) of the nearest codeword for every vector of ``value``, int64, on its device.

        Values that are not finite raise ``ValueError`` where they are on the processor; on a GPU nobody looks, and they get some code.
        """
        if stays(value):
            return self._sought(value)
        kernels = _native(value, self.backend)
        return super().codes(value) if kernels is None else self._searched(kernels, value)[0]

    def encode(self, value: Tensor) -> bytes:
        return self.coded(value)[0]

    def coded(self, value: Tensor) -> tuple[bytes, Tensor]:
        """What :meth:`encode` sends of ``value``, and its :meth:`codes`."""
        kernels = _native(value, self.backend)
        if kernels is None:
            codes = super().codes(value)
            return self.payload(value, codes), codes
        codes, packed = self._searched(kernels, value)
        return header(value, self.tag) + self.mark.to_bytes(4, "little") + packed.tobytes(), codes

    def _searched(self, kernels: ModuleType, value: Tensor) -> tuple[Tensor, np.ndarray]:
        groups = self._groups(value.shape)
        if self._tiles is None:
            self._tiles = kernels.tiled(self._books(groups))
        codes, packed, all_finite = kernels.search(self._planes(value.detach(), groups), self._tiles, self.width)
        if not all_finite:
            finite(value, self.name)  # raises, and says how many
        return codes, packed

    def decode(self, payload: bytes | memoryview) -> Tensor:
        kernels = _native(self.codebook, self.backend)
        if kernels is None:
            return super().decode(payload)
        shape, reader = self._opened(payload)
        groups, count = self._groups(shape), math.prod(shape) // self._d
        packed = reader.array("u1", packed_size(count, self.width))
        reader.end()
        out = kernels.empty(*shape)
        worst = kernels.decode(packed, self.width, count, self._books(groups), self._planes(out, groups))
        if worst >= self.words:
            raise reader.wrong(f"an index {worst} into {self.words} codewords")
        return out

    @property
    def words(self) -> int:
        """K."""
        return self.codebook.shape[-2]

    def _opened(self, payload: bytes | memoryview) -> tuple[tuple[int, ...], Reader]:
        """The shape of a payload, and a reader that stands behind the codebook's mark."""
        shape, reader = open_payload(payload, self.tag, self.name)
        (mark,) = reader.unpack("I")
        if self.strict and mark != self.mark:
            raise ValueError("The payload was made with another codebook; receive the codebook before its indices.")
        self._check(shape, reader)
        return shape, reader

    # --- parcels: see :class:`workbench.decoupled.parcels.Kind` --------------------------------------------

    fields = 4

    def pack(self, value: Tensor) -> tuple[bytes, Tensor]:
        return self.packed(value, self._sought(value))

    def packed(self, value: Tensor, codes: Tensor) -> tuple[bytes, Tensor]:
        """The parcel of ``value``, whose ``codes`` are known."""
        return header(value, self.tag) + self.mark.to_bytes(4, "little"), pack_bits(codes.reshape(-1), self.width)

    def unpack(self, head: bytes, body: Tensor) -> Tensor:
        shape, _ = self._opened(head)
        groups = self._groups(shape)
        count = math.prod(shape) // self._d
        return self._gathered(unpack_bits(body, self.width, count).view(-1, groups), shape)

    def on(self, device: torch.device) -> Tensor:
        """The codebook, (groups, K, d) or (K, d), on ``device``: copied there once."""
        if device not in self._copies:
            self._copies[device] = self.codebook.to(device)
        return self._copies[device]

    def _books_on(self, device: torch.device, groups: int) -> Tensor:
        own = self.on(device)
        return own if own.dim() == 3 else own.expand(groups, *own.shape)

    def _sought(self, value: Tensor) -> Tensor:
        """:meth:`codes` by few large products, a part of the samples at a time."""
        planes = self._planes(value.detach().float(), groups := self._groups(value.shape))
        _, _, d, positions = planes.shape
        books = self._books_on(value.device, groups)
        constants = -books.square().sum(-1).unsqueeze(1) / 2
        found = []
        for part in planes.split(max(SCORES // max(groups * positions * books.shape[1], 1), 1)):
            v = part.permute(1, 0, 3, 2).reshape(groups, -1, d)
            # v e - |e|^2 / 2 is greatest where |v - e| is least
            found.append(torch.baddbmm(constants, v, books.transpose(1, 2)).argmax(-1))
        return torch.cat(found, 1).T.contiguous() if found else planes.new_empty(0, groups, dtype=torch.int64)

    def _gathered(self, codes: Tensor, shape: tuple[int, ...]) -> Tensor:
        """:meth:`look_up` by one gather for all groups."""
        books = self._books_on(codes.device, codes.shape[1])
        groups, words, d = books.shape
        rows = torch.nn.functional.embedding(codes + words * torch.arange(groups, device=codes.device), books.reshape(-1, d))
        out = torch.empty(shape, device=codes.device)
        planes = self._planes(out, groups)
        planes.copy_(rows.view(len(planes), planes.shape[-1], groups, d).permute(0, 2, 3, 1))
        return out

    def look_up(self, codes: Tensor, shape: tuple[int, ...]) -> Tensor:
        if stays(codes):
            return self._gathered(codes, tuple(shape))
        kernels = _native(self.codebook, self.backend)
        if kernels is None:
            return super().look_up(codes, shape)
        groups, out = self._groups(shape), kernels.empty(*shape)
        kernels.look_up(codes, self._books(groups), self._planes(out, groups))
        return out


def tally(x: Tensor, codes: Tensor, books: Tensor, backend: Backend = "auto") -> Tally:
    """What codebooks ``books`` (g, K, d) are to learn from ``x`` (n, c, ...) with its ``codes`` (vectors, g), and their error on it."""
    groups, size, d = books.shape
    planes = x.detach().reshape(len(x), groups, d, -1)
    if (kernels := _native(x, backend)) is not None:
        return Tally(*kernels.tally(planes, codes, books))
    v = planes.float().permute(0, 3, 1, 2).reshape(-1, d)
    place = (codes + torch.arange(groups, device=codes.device) * size).reshape(-1)
    # not bincount: on a GPU it waits to learn the greatest index
    counts = torch.zeros(groups * size, dtype=torch.int64, device=v.device).index_add_(0, place, torch.ones_like(place)).view(groups, size)
    sums = torch.zeros(groups * size, d, device=v.device).index_add_(0, place, v).view(groups, size, d)
    error = (v - books.reshape(-1, d)[place]).square().sum(dtype=torch.float64)
    power = v.square().sum(dtype=torch.float64)
    return Tally(counts, sums, error, power) if stays(v) else Tally(counts, sums, float(error), float(power))


def warm_up() -> None:
    """Have the kernels compiled, which takes seconds the first time on a machine, before anyone looks at the clock."""
    book, x = torch.zeros(1, 2, 1), torch.zeros(1, 1, 1)
    vq = LinkQuantiser(book)
    payload, codes = vq.coded(x)
    vq.decode(payload)
    tally(x, codes, book)
