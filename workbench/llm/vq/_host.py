"""Lloyd's steps on the processor by Numba kernels, shared among as many threads as PyTorch may use.

The vectors are cut into parts whose number depends on theirs alone, and the parts' sums are added in order: the result
is the same for any number of threads.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from workbench.boolean.packed.host import share
from workbench.llm.vq import _kernels, _plain

PARTS, PART = 16, 1 << 12  # most parts, and least vectors in one
NONE = np.empty((0, 0), np.float32)


class Points:
    """Vectors (d, n) with their weights, ready to be searched."""

    def __init__(self, x: Tensor, w: Tensor | None) -> None:
        self.x, self.w = x, w
        self.count = x.shape[1]
        made = _plain.features(x, w)
        short = -self.count % _kernels.BLOCK
        made = torch.nn.functional.pad(made, (0, short)).numpy() if short else made.numpy()
        self.rows, self.points = tuple(made), made[:len(x)]
        self.weights = NONE if w is None else made[len(x):]
        self.index = np.empty(made.shape[1], np.int32)
        self.energy = 0.0 if w is None else float((w.double() * x.double().square()).sum())
        blocks = made.shape[1] // _kernels.BLOCK
        parts = max(1, min(PARTS, self.count // PART))
        self.edges = [blocks * i // parts * _kernels.BLOCK for i in range(parts + 1)]

    def search(self, book: Tensor) -> tuple[Tensor, float]:
        _, _, error = self._lloyd(book)
        return torch.from_numpy(self.index[:self.count].astype(np.int64)), error

    def step(self, book: Tensor) -> tuple[Tensor, float]:
        sums, mass, error = self._lloyd(book)
        return _plain.moved(book, torch.from_numpy(sums), torch.from_numpy(mass), self.x, lambda: self._errors(book)), error

    def _lloyd(self, book: Tensor) -> tuple[np.ndarray, np.ndarray, float]:
        parts, (size, d) = len(self.edges) - 1, book.shape
        sums, mass, errors = np.zeros((parts, size, d)), np.zeros((parts, size, d)), np.zeros(parts)
        words = _plain.table(book, self.w is not None).numpy()
        codewords = book.numpy()

        def work(first: int, last: int) -> None:
            for i in range(first, last):
                errors[i] = _kernels.lloyd(self.rows, self.points, self.weights, codewords, words, self.index, self.edges[i],
                                           self.edges[i + 1], self.count, sums[i], mass[i])

        share(work, parts, 1, self.count * size * len(self.rows) // 16)
        sums, mass = sums.sum(0), mass.sum(0)
        return sums, mass if self.w is not None else np.broadcast_to(mass[:, :1], mass.shape).copy(), float(errors.sum()) + self.energy

    def _errors(self, book: Tensor) -> Tensor:
        square = (self.x - book.T[:, torch.from_numpy(self.index[:self.count].astype(np.int64))]).square()
        return (square if self.w is None else square * self.w).sum(0)


def seeds(x: Tensor, w: Tensor | None, draws: Tensor) -> Tensor:
    """k-means++ (K, d) among ``x`` (d, n) with weights (n,)."""
    weights = np.empty(0, np.float32) if w is None else w.contiguous().numpy()
    chosen = np.empty(len(draws), np.int64)
    _kernels.plus_plus(x.contiguous().numpy(), weights, draws.numpy(), np.empty(x.shape[1], np.float32), chosen)
    return x[:, torch.from_numpy(chosen)].T.contiguous()


def order(blocks: Tensor) -> Tensor:
    """Greedy orders (blocks, q) of the columns of ``blocks`` (blocks, rows, q); see :func:`workbench.llm.vq.ordering.order_columns`."""
    count, rows, q = blocks.shape
    width = _kernels.BLOCK
    padded = torch.nn.functional.pad(blocks, (0, -q % width))
    tiles = padded.view(count, rows, -1, width).transpose(1, 2).contiguous()
    tiles = (tiles.clone() if tiles.data_ptr() == blocks.data_ptr() else tiles).numpy()  # the walk changes them
    halves = torch.nn.functional.pad(blocks.square().sum(1) / 2, (0, -q % width), value=torch.inf).numpy()
    orders = np.empty((count, q), np.int64)
    # a float32 product of R terms, its mean rounded once more, is off by at most (R + 4) 2^-24 of the sum of magnitudes
    slack = (rows + 4) * 2.0**-24

    def work(first: int, last: int) -> None:
        for k in range(first, last):
            names, scores = np.arange(halves.shape[1]), np.empty(halves.shape[1], np.float32)
            _kernels.walk(tiles[k], halves[k], names, orders[k], scores, slack)

    share(work, count, 1, count * q * q * rows // 32)
    return torch.from_numpy(orders)
