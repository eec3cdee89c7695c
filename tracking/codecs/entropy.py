"""Entropy bounds, shown beside measured lengths."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor


def entropy_bytes(symbols: Tensor | np.ndarray) -> float:
    """n H / 8 for n symbols with empirical entropy H bits: no code that ignores their order and knows their
    frequencies is shorter.
    """
    symbols = np.ravel(symbols.detach().cpu().numpy() if isinstance(symbols, Tensor) else symbols)
    counts = (
        np.bincount(symbols)
        if symbols.dtype.kind in "ub" and symbols.itemsize <= 2
        else np.unique(symbols, return_counts=True)[1]
    )
    counts = counts[counts > 0]
    return float((counts * np.log2(symbols.size / counts)).sum() / 8) if symbols.size else 0.0


def subset_bytes(n: int, k: int) -> float:
    """log2 C(n, k) / 8: what naming k of n places takes when all choices are equally likely."""
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2) / 8
