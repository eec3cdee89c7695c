"""Lloyd's steps and column orders in plain PyTorch, on any device: scores of a block of vectors by one matrix product."""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.llm.vq.sums import as_whole, sums_by_code

WINDOW = 16
"""Columns whose mean the next one is to be near."""
SCORES = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Scores held at once: on a CPU what is written and read again stays in a core's second-level cache."""


def features(x: Tensor, w: Tensor | None) -> Tensor:
    """What the scores are linear in: x, or (w x, w) where there are weights."""
    return x if w is None else torch.cat([w * x, w])


def table(book: Tensor, weighted: bool) -> Tensor:
    """(K, D + 1): coefficients of the features, then the constant. The greatest score is that of the nearest codeword."""
    half = book.square() / 2
    if weighted:
        return torch.cat([book, -half, book.new_zeros(len(book), 1)], 1)
    return torch.cat([book, -half.sum(1, keepdim=True)], 1)


def moved(book: Tensor, sums: Tensor, mass: Tensor, x: Tensor, residual: object) -> Tensor:
    """Means of the cells; a codeword of no mass goes to the vector served worst, the next one to the next worst.

    ``residual()`` gives each vector's own error (n,).
    """
    fresh = torch.where(mass > 0, sums / mass.clamp(min=torch.finfo(mass.dtype).tiny), book.to(sums)).float()
    idle = (mass.sum(1) == 0).nonzero()[:, 0]
    if len(idle):
        errors = residual()
        worst = errors.topk(min(len(idle), len(errors)))
        useful = worst.indices[worst.values > 0]
        fresh[idle[:len(useful)]] = x.T[useful]
    return fresh


class Points:
    """Vectors (d, n) with their weights, ready to be searched."""

    def __init__(self, x: Tensor, w: Tensor | None) -> None:
        self.x, self.w, self.features = x, w, features(x, w)

    def search(self, book: Tensor) -> tuple[Tensor, float]:
        codes = self._nearest(book)
        return codes, float(self._errors(book, codes).sum(dtype=torch.float64))

    def step(self, book: Tensor) -> tuple[Tensor, float]:
        codes = self._nearest(book)
        sums = sums_by_code((self.x if self.w is None else self.w * self.x).T, codes, len(book))
        if self.w is None:
            mass = torch.bincount(codes, minlength=len(book))[:, None].expand_as(sums).double()
        else:
            mass = sums_by_code(self.w.T, codes, len(book))
        errors = self._errors(book, codes)
        return moved(book, sums, mass, self.x, lambda: errors), float(errors.sum(dtype=torch.float64))

    def _nearest(self, book: Tensor) -> Tensor:
        words = table(book, self.w is not None).T.contiguous()
        chunk = max(SCORES.get(self.x.device.type, 1 << 22) // len(book), 1)
        parts = []
        for part in self.features.split(chunk, 1):
            scores = torch.addmm(words[-1], part.T, words[:-1])
            # NumPy's search along rows is several times as fast as PyTorch's on a CPU
            on_cpu = scores.device.type == "cpu"
            parts.append(torch.from_numpy(scores.numpy().argmax(1)) if on_cpu else scores.argmax(1))
        return torch.cat(parts)

    def _errors(self, book: Tensor, codes: Tensor) -> Tensor:
        square = (self.x - book.T[:, codes]).square()
        return (square if self.w is None else square * self.w).sum(0)


def seeds(x: Tensor, w: Tensor | None, draws: Tensor) -> Tensor:
    """k-means++ (K, d) among ``x`` (d, n) with weights (n,)."""
    count, draws = x.shape[1], draws.to(x.device)
    at = (draws[:1] * count).long().clamp(max=count - 1)
    chosen, distance = [at], None
    for draw in draws[1:]:
        far = (x - x[:, at]).square().sum(0)
        far = far if w is None else far * w
        distance = far if distance is None else torch.minimum(distance, far)
        run = as_whole(distance)[0].cumsum(0)  # of floating-point numbers a GPU's running sums differ from run to run
        at = torch.searchsorted(run, (draw * run[-1:]).long(), right=True).clamp(max=count - 1)
        chosen.append(at)
    return x[:, torch.cat(chosen)].T.contiguous()


def order(blocks: Tensor) -> Tensor:
    """Greedy orders (blocks, q) of the columns of ``blocks`` (blocks, rows, q): all together, a place at a time, in float64."""
    x = blocks.double()
    x = x - x.mean(2, keepdim=True)  # distances stay, and cancel less
    count, rows, q = x.shape
    square = x.square().sum(1, keepdim=True)
    # |x|^2 - 2 m x + |m|^2 cancels, so that equal columns may differ by the rounding of its terms; a mean is no longer than the longest
    slack = 2e-12 * square.amax(2)
    orders = torch.zeros(count, q, dtype=torch.int64, device=x.device)
    square[:, :, 0] = torch.inf  # of columns that are placed
    for place in range(1, q):
        window = orders[:, None, max(place - WINDOW, 0):place]
        mean = x.gather(2, window.expand(-1, rows, -1)).mean(2)
        far = torch.baddbmm(square, mean[:, None], x, alpha=-2)[:, 0]
        near = far <= far.amin(1, keepdim=True) + slack
        chosen = near.int().argmax(1, keepdim=True)
        orders[:, place:place + 1] = chosen
        square.scatter_(2, chosen[:, None], torch.inf)
    return orders
