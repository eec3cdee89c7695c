"""Small layers with inputs as language models have them, and a decoder of scalar formats written in NumPy alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from workbench.llm.calibration import LayerStatistics
from workbench.llm.feedback import row_errors
from workbench.llm.packed import Packed


def layer(p: int, q: int, seed: int = 0, outliers: int = 0, tokens: int = 400) -> tuple[Tensor, LayerStatistics]:
    """A weight (p, q) with some heavy tails, and statistics of correlated inputs, ``outliers`` of which are 20 times as large."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(p, q, generator=g) * 0.05 * (1 + torch.rand(p, 1, generator=g))
    weight[torch.rand(p, q, generator=g) < 0.02] *= 4
    x = torch.randn(tokens, q, generator=g) @ (torch.eye(q) + 0.3 * torch.randn(q, q, generator=g))
    x[:, :outliers] *= 20
    fisher = torch.rand(p, q, generator=g) * torch.logspace(-2, 2, p)[:, None]
    return weight, LayerStatistics(tokens, 2 / tokens * x.T @ x, x.abs().mean(0), x[:64], fisher)


def output_error(weight: Tensor, packed: Packed, stats: LayerStatistics) -> float:
    """tr(E H E^T) in double precision."""
    return float(row_errors((weight - packed.dequantise()).double(), stats.hessian.double()).sum())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def np_bits(stream: Tensor, bits: int, count: int) -> np.ndarray:
    """Codes of up to 8 bits: value i lies in bits [i b, (i + 1) b), least significant first."""
    flat = np.unpackbits(stream.numpy(), bitorder="little")[: bits * count].reshape(count, bits)
    return flat.astype(np.int64) @ (1 << np.arange(bits))


def np_per_input(values: np.ndarray, q: int, size: int) -> np.ndarray:
    return np.stack([values[:, j // (size or q)] for j in range(q)], 1)


def np_uniform(packed: Packed) -> np.ndarray:
    """``s (code - z)`` of the formats ``uniform`` and ``uniform_columns``, and of ``grid`` with a zero point, float64."""
    (p, q), t, bits, size = packed.shape, packed.tensors, packed.meta["bits"], packed.meta["group_size"]
    codes = np_bits(t["indices"], bits, p * q).reshape(p, q).astype(float)
    scale = t["scales"].numpy().astype(float).reshape(p, -1)
    if "zeros" not in t:
        zero = np.full_like(scale, 2 ** (bits - 1))
    elif t["zeros"].dtype == torch.uint8:
        zero = np_bits(t["zeros"], bits, scale.size).reshape(scale.shape).astype(float)
    else:
        zero = t["zeros"].numpy().astype(float).reshape(scale.shape)
    weight = (codes - np_per_input(zero, q, size)) * np_per_input(scale, q, size)
    if "permutation" in t:
        order = np_bits(t["permutation"], max(1, (q - 1).bit_length()), q)
        restored = np.empty_like(weight)
        for place, column in enumerate(order):
            restored[:, column] = weight[:, place]
        weight = restored
    return weight * t["scales.column"].numpy().astype(float) if "scales.column" in t else weight


def np_rtn(weight: Tensor, bits: int, size: int, symmetric: bool = False) -> np.ndarray:
    """Rounding to nearest by its textbook formulas with scales in fp16, group by group, float64."""
    w, top = weight.double().numpy(), 2**bits - 1
    out, q = np.empty_like(w), w.shape[1]
    for i in range(len(w)):
        for a in range(0, q, size or q):
            part = w[i, a:a + (size or q)]
            low, high = min(0.0, part.min()), max(0.0, part.max())
            if symmetric:
                scale, zero = np.float16(np.abs(part).max() / (2 ** (bits - 1) - 1)).astype(float), 2 ** (bits - 1)
            else:
                scale = np.float16((high - low) / top).astype(float)
                zero = np.clip(np.round(-low / scale), 0, top)
            out[i, a:a + (size or q)] = (np.clip(np.round(part / scale + zero), 0, top) - zero) * scale
    return out
