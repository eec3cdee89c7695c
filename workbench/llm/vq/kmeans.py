"""k-means for millions of short vectors: k-means++ and Lloyd on a sample, then on all of them.

The codebooks of weight matrices have few dimensions (1 to 8) and up to some thousand codewords, for which the search of
the nearest codeword is all the work. On a CPU a Numba kernel holds the vectors in registers while the codewords pass
by; where Numba is absent, and on a GPU, blocks of scores are made by matrix products.
"""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from tracking.errors import UserError, unknown
from workbench.llm.vq import _plain
from workbench.llm.vq._plain import Points

Backend = Literal["auto", "numba", "torch"]
Start = Literal["k-means++", "sample"]
SEEDS_FROM = 32
"""Vectors a codeword among which k-means++ looks for its seeds: enough not to miss a cluster, and its cost is quadratic in K."""


@dataclass(frozen=True)
class KMeans:
    """A codebook and what it makes of the vectors it was fitted to.

    Attributes:
        codebook: float32 (K, d).
        codes: int64 (n,), the number of each vector's nearest codeword.
        error: sum of ``w |x - c|^2`` over all vectors, in the vectors' units squared.
        iterations: Lloyd steps made, those on the sample included.
    """

    codebook: Tensor
    codes: Tensor
    error: float
    iterations: int


def kmeans(
    vectors: Tensor,
    size: int,
    *,
    weights: Tensor | None = None,
    start: Start | Tensor = "k-means++",
    iterations: int = 60,
    sample: int | None = None,
    refine: int = 2,
    tolerance: float = 1e-5,
    half: bool = False,
    generator: torch.Generator | None = None,
    backend: Backend = "auto",
) -> KMeans:
    """Fit a codebook of ``size`` codewords by Lloyd's algorithm (Lloyd, 1957/1982), seeded by k-means++ (Arthur & Vassilvitskii, 2007).

    The error never grows from one step to the next. A codeword that nobody uses moves to the vector that is served worst.

    Args:
        vectors: (n, d), finite.
        size: K, at least 1. More codewords than vectors are allowed: some stay unused.
        weights: not negative, (n,) or one for each coordinate (n, d): the error is ``sum w (x - c)^2``.
        start: how seeds are found, or the first codebook itself (K, d).
        iterations: most Lloyd steps on the sample.
        sample: vectors drawn (with replacement) for those; default ``max(2^16, 1024 K)``. All are used where there are no more.
        refine: most Lloyd steps on all vectors after that, where a sample was used.
        tolerance: stop when a step lowers the error by less than this share.
        half: round the codebook to float16 before the last assignment, as it is stored.
        generator: source of the sample and the seeds, on the CPU; default: seed 0.
        backend: ``auto`` is Numba on a CPU where it is installed, else PyTorch.

    Raises:
        UserError: shapes that do not fit, a value that is not finite, a negative weight.
    """
    x, w = _checked(vectors, size, weights)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    count = x.shape[1]
    wanted = max(1 << 16, 1024 * size) if sample is None else sample
    small, small_w = x, w
    module = engine(backend, x.device)
    if wanted < count:
        pick = torch.randint(count, (wanted,), generator=generator).sort().values.to(x.device)
        small, small_w = x[:, pick], w if w is None else w[:, pick]
    data = module.Points(small, small_w)
    book = _first(module, small, small_w, size, start, generator)
    book, steps = _descend(data, book, iterations, tolerance)
    if small is not x:
        data = module.Points(x, w)
        book, more = _descend(data, book, refine, tolerance)
        steps += more
    if half:
        book = book.half().float()
    codes, error = data.search(book)
    return KMeans(book, codes, error, steps)


def assign(vectors: Tensor, codebook: Tensor, weights: Tensor | None = None, backend: Backend = "auto") -> tuple[Tensor, float]:
    """Numbers (n,) of the nearest codewords, int64, and the sum of ``w |x - c|^2``. Arguments as of :func:`kmeans`."""
    x, w = _checked(vectors, len(codebook), weights)
    if codebook.dim() != 2 or codebook.shape[1] != x.shape[0]:
        raise UserError(f"A codebook of shape {tuple(codebook.shape)} does not fit vectors of shape {tuple(vectors.shape)}.")
    return engine(backend, x.device).Points(x, w).search(codebook.float().to(x.device))


def _descend(data: Points, book: Tensor, steps: int, tolerance: float) -> tuple[Tensor, int]:
    """Lloyd's steps from ``book``, at most ``steps``; the codebook after them and their number."""
    last = float("inf")
    for step in range(steps):
        moved, error = data.step(book)  # the error is that of ``book``, before the move
        if last - error <= tolerance * abs(error):
            return moved, step + 1
        book, last = moved, error
    return book, steps


def _first(module: ModuleType, x: Tensor, w: Tensor | None, size: int, start: Start | Tensor, generator: torch.Generator) -> Tensor:
    d, count = x.shape
    if isinstance(start, Tensor):
        if start.shape != (size, d):
            raise UserError(f"The first codebook has shape {tuple(start.shape)}; ({size}, {d}) is due.")
        return start.to(x.device, torch.float32).clone()
    if start not in ("k-means++", "sample"):
        raise unknown("start of k-means", str(start), ("k-means++", "sample"))
    few = SEEDS_FROM * size if start == "k-means++" else size
    if few < count:  # distinct ones: with replacement, seeds of a sample would often coincide
        pick = torch.randperm(count, generator=generator)[:few].to(x.device)
        x, w = x[:, pick], w if w is None else w[:, pick]
    if start == "sample":
        return x[:, torch.arange(size, device=x.device) % x.shape[1]].T.contiguous()
    draws = torch.rand(size, generator=generator, dtype=torch.float64)
    return module.seeds(x, None if w is None else w.mean(0), draws)


def _checked(vectors: Tensor, size: int, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The vectors as float32 (d, n), and their weights as None or (d, n)."""
    if vectors.dim() != 2 or 0 in vectors.shape or size < 1:
        raise UserError(f"k-means takes vectors (n, d) with n, d >= 1 and at least one codeword, not {tuple(vectors.shape)} and {size}.")
    x = vectors.detach().float().T.contiguous()
    if not torch.isfinite(x.sum()) and not torch.isfinite(x).all():
        raise UserError("k-means was given a vector that is not finite.")
    if weights is None:
        return x, None
    if weights.shape not in (vectors.shape, vectors.shape[:1]):
        raise UserError(f"Weights of shape {tuple(weights.shape)} do not fit vectors of shape {tuple(vectors.shape)}: give (n,) or (n, d).")
    w = weights.detach().to(x.device, torch.float32)
    if not torch.isfinite(w).all() or bool((w < 0).any()):
        raise UserError("Weights of k-means are finite and not negative.")
    return x, (w[None].expand_as(x) if w.dim() == 1 else w.T).contiguous()


@cache
def host() -> ModuleType | None:
    """The module of Numba kernels, or None where they cannot be had."""
    try:
        return importlib.import_module("workbench.llm.vq._host")
    except ImportError as error:
        if not isinstance(error, ModuleNotFoundError):
            warnings.warn(f"numba is installed but does not load ({error}): vector quantisation runs in plain PyTorch.", stacklevel=2)
        return None


def engine(backend: str, device: torch.device) -> ModuleType:
    """The module that searches and sums: ``Points(x, w)`` with ``step`` and ``search``, ``seeds`` and ``order``."""
    if backend not in ("auto", "numba", "torch"):
        raise unknown("backend", backend, ("auto", "numba", "torch"))
    found = host() if device.type == "cpu" and backend != "torch" else None
    if backend == "numba" and found is None:
        raise UserError(f"backend = 'numba' needs the package numba (pip install numba) and data on the CPU, not on {device}. "
                        "'torch' needs nothing; 'auto' takes what there is.")
    return found or _plain
