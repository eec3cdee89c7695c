"""Which code runs a packed product: Numba on the processor, Triton on CUDA, plain PyTorch anywhere.

``auto`` takes the fast one of the device where it is installed, else plain PyTorch; all give the same integers.
"""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from tracking.errors import UserError, unknown
from workbench.boolean.packed import plain
from workbench.boolean.packed.words import output_size, pack, regroup, window_slices

Backend = Literal["auto", "numba", "triton", "torch"]
MODULES = {"numba": "host", "triton": "gpu"}
DEVICES = {"cpu": "numba", "cuda": "triton"}
"""The fast backend of a device."""


def check(backend: str) -> None:
    """Refuse an unknown backend, and one whose package is missing, saying what to install."""
    if backend not in ("auto", "torch", *MODULES):
        raise unknown("backend", backend, ("auto", "torch", *MODULES))
    if backend in MODULES and isinstance(found := _load(backend), ImportError):
        raise UserError(
            f"backend = {backend!r} needs the package {backend}: pip install {backend} ({found}). backend = 'torch' "
            "needs nothing and gives the same numbers, slower; 'auto' takes what there is."
        )


@cache
def _load(backend: str) -> ModuleType | ImportError:
    try:
        return importlib.import_module(f"workbench.boolean.packed.{MODULES[backend]}")
    except ImportError as error:
        if not isinstance(error, ModuleNotFoundError):
            warnings.warn(
                f"{backend} is installed but does not load ({error}): packed products run in plain PyTorch.",
                stacklevel=2,
            )
        return error


def _module(backend: str, device: torch.device) -> ModuleType:
    if backend == "auto":
        found = _load(DEVICES[device.type]) if device.type in DEVICES else plain
        return plain if isinstance(found, ImportError) else found
    check(backend)
    if backend == "torch":
        return plain
    module = _load(backend)
    if DEVICES.get(device.type) != backend and not getattr(module, "INTERPRETED", False):
        raise UserError(
            f"backend = {backend!r} does not run on {device}, where the tensors are. Use 'auto' or 'torch'."
        )
    return module


def product(
    x: Tensor,
    lanes: Tensor,
    n: int,
    shift: Tensor,
    pattern: Tensor,
    bound: Tensor | None = None,
    flip: Tensor | None = None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Votes ``s = n - 2 popcount(x ^ w) + shift`` of every row and output, or the bits of their thresholds.

    Args:
        x: int64 rows ``(rows, words)``.
        lanes: weights, int32 ``(blocks, 2 words, 16)`` (:mod:`workbench.boolean.packed.words`).
        n: bits of a row that are values; the others are 0 in inputs and weights.
        shift: int32 ``(patterns, 16 blocks)`` added to the votes of row ``r`` by ``pattern[r % len(pattern)]``, int32.
        bound, flip: int32 ``(16 blocks,)`` and int64 words of the outputs: give both to get bits ``(s >= bound) ^
            flip``.

    Returns int32 ``(rows, 16 blocks)``, or int64 ``(rows, words of flip)`` where ``bound`` is given. Exact.
    """
    return _module(backend, x.device).product(x, lanes, n, shift, pattern, bound, flip)


def conv(
    x: Tensor,
    lanes: Tensor,
    n: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    shift: Tensor,
    pattern: Tensor,
    bound: Tensor | None = None,
    flip: Tensor | None = None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """The same over windows of int64 maps ``(batch, height, width, words)``, whose words beyond the border are 0, that
    is FALSE.

    ``pattern`` has an entry for each output pixel, or one for all. Returns ``(batch, out height, out width, ...)``.
    """
    module = _module(backend, x.device)
    if hasattr(module, "conv"):
        return module.conv(x, lanes, n, kernel, stride, padding, dilation, shift, pattern, bound, flip)
    out = output_size(x.shape[1:3], kernel, stride, padding, dilation)
    rows = window_slices(x, kernel, stride, padding, dilation, out).reshape(
        x.shape[0] * out[0] * out[1], kernel[0] * kernel[1] * x.shape[3]
    )
    return module.product(rows, lanes, n, shift, pattern, bound, flip).unflatten(0, (x.shape[0], *out))


def real(x: Tensor, lanes: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Every weight adds or subtracts its input: real ``(rows, n)`` to float32 ``(rows, 16 blocks)``, accumulated in
    float32.

    Sums are those of ``F.linear`` up to the order of additions: within ``(n - 1) eps sum_i |x_i|``.
    """
    return _module(backend, x.device).real(x, lanes)


def pack_rows(x: Tensor, tau: float = 0.0, *, backend: Backend = "auto") -> Tensor:
    """Bits ``x >= tau`` of the last dimension, as :func:`workbench.boolean.packed.words.pack`."""
    module = _module(backend, x.device)
    return module.pack_rows(x, tau) if x.dtype == torch.float32 else pack(x, tau)


def pack_maps(x: Tensor, tau: float = 0.0, *, backend: Backend = "auto") -> Tensor:
    """Bits of the channels of ``(batch, channels, height, width)``: int64 ``(batch, height, width, words)``."""
    if x.ndim != 4:
        raise UserError(
            f"Maps are packed in batches (batch, channels, height, width); this tensor has shape {tuple(x.shape)}."
        )
    module = _module(backend, x.device)
    return module.pack_maps(x, tau) if x.dtype == torch.float32 else plain.pack_maps(x, tau)


def grouped(x: Tensor, channels: int, groups: int) -> list[Tensor]:
    """Words of each group of channels, a tensor a group."""
    return [x] if groups == 1 else [part.contiguous() for part in regroup(x, channels, groups).unbind(-2)]
