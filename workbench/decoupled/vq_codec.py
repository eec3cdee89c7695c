"""The vector quantiser of links: on a processor with Numba by kernels of its own, else by matrix products; the same payloads.

Both take the nearest codeword up to float32's rounding of the distances, so their codes differ between equally near codewords alone.
"""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from types import ModuleType
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from tracking.codecs.base import finite, header
from tracking.codecs.vq import VectorQuantiser
from tracking.errors import UserError, unknown

Backend = Literal["auto", "numba", "torch"]


class Tally(NamedTuple):
    """What a batch has for each codeword, and how far it is from them."""

    counts: Tensor
    """(g, K), int64: vectors with each code."""
    sums: Tensor
    """(g, K, d): their sums."""
    error: float
    """Sum of squared distances to the codewords."""
    power: float
    """Sum of squares."""


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

    def codes(self, value: Tensor) -> Tensor:
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

    def look_up(self, codes: Tensor, shape: tuple[int, ...]) -> Tensor:
        kernels = _native(self.codebook, self.backend) if codes.device.type == "cpu" else None
        if kernels is None:
            return super().look_up(codes, shape)
        groups, out = self._groups(shape), torch.empty(shape)
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
    counts = torch.bincount(place, minlength=groups * size).view(groups, size)
    sums = torch.zeros(groups * size, d, device=v.device).index_add_(0, place, v).view(groups, size, d)
    error = (v - books.reshape(-1, d)[place]).square().sum(dtype=torch.float64)
    return Tally(counts, sums, float(error), float(v.square().sum(dtype=torch.float64)))


def warm_up() -> None:
    """Have the kernels compiled, which takes seconds the first time on a machine, before anyone looks at the clock."""
    book, x = torch.zeros(1, 2, 1), torch.zeros(1, 1, 1)
    vq = LinkQuantiser(book)
    payload, codes = vq.coded(x)
    vq.decode(payload)
    tally(x, codes, book)
