"""Skip-gram on walks: the two objectives of word2vec, for a batch of walks as a few matrix products.

Mikolov, Sutskever, Chen, Corrado & Dean, NIPS 2013, eqs. 3 and 4, with nodes for words and walks for sentences. A walk is scored
against itself at once, all centres against all contexts, and pairs outside of the window are masked.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """Boolean ``(length, length)``: which places are context of which centre, ``0 < |i - j| <= window``."""
    place = torch.arange(length, device=device)
    distance = (place[:, None] - place).abs()
    return (distance > 0) & (distance <= window)


def negative_sampling_loss(
    inputs: Tensor, outputs: Tensor, walks: Tensor, noise: Tensor, window: int, negatives: int
) -> Tensor:
    """Mean over all pairs (centre, context) of ``-log s(u.v) - k E log s(-u.v')``, s the logistic function, k = ``negatives``.

    Args:
        inputs, outputs: vectors of the nodes as centre and as context, ``(N, d)``.
        walks: node numbers ``(B, L)``.
        noise: nodes from the noise law, ``(B, M)``: every centre of a walk is set against all of them, so the expectation over k draws
            a pair is estimated from M draws a walk (ours: it leaves the expectation as it is).
    """
    near = window_mask(walks.shape[1], window, walks.device)
    centres = inputs[walks]
    scores = centres @ outputs[walks].transpose(1, 2)
    against = centres @ outputs[noise].transpose(1, 2)
    pulled = F.softplus(-scores[:, near]).sum()
    pushed = (F.softplus(against).mean(-1) * near.sum(1)).sum()
    return (pulled + negatives * pushed) / (len(walks) * near.sum())


@dataclass(frozen=True)
class HuffmanTree:
    """Paths from the root of a binary tree to its leaves: frequent leaves have short ones.

    ``inner[i, l]`` is the number of the ``l``-th inner node on the way to leaf ``i`` and ``sign[i, l]`` is 1 where the way goes left there,
    -1 where it goes right, 0 behind the end.
    """

    inner: Tensor
    sign: Tensor

    @classmethod
    def of(cls, counts: Tensor) -> HuffmanTree:
        """The tree for leaves of these frequencies, int64 ``(N,)``, N >= 2."""
        n = len(counts)
        heap = [(int(c), i) for i, c in enumerate(counts.tolist())]
        heapq.heapify(heap)
        parent, side = [0] * (2 * n - 1), [0] * (2 * n - 1)
        for node in range(n, 2 * n - 1):
            (a, left), (b, right) = heapq.heappop(heap), heapq.heappop(heap)
            parent[left], side[left] = node, 1
            parent[right], side[right] = node, -1
            heapq.heappush(heap, (a + b, node))
        paths = []
        for leaf in range(n):
            node, way = leaf, []
            while node != 2 * n - 2:
                way.append((parent[node] - n, side[node]))
                node = parent[node]
            paths.append(way[::-1])
        depth = max(map(len, paths))
        padded = torch.tensor([way + [(0, 0)] * (depth - len(way)) for way in paths], device=counts.device)
        return cls(padded[..., 0], padded[..., 1].float())


def hierarchical_softmax_loss(inputs: Tensor, inner: Tensor, walks: Tensor, tree: HuffmanTree, window: int) -> Tensor:
    """Mean over all pairs (centre, context) of ``-log P(context | centre)`` with the probabilities of a binary tree.

    Args:
        inputs: vectors of the nodes as centre, ``(N, d)``.
        inner: vectors of the tree's inner nodes, ``(N - 1, d)``.
        walks: node numbers ``(B, L)``.
    """
    near = window_mask(walks.shape[1], window, walks.device)
    sign = tree.sign[walks]
    b, length, depth = sign.shape
    scores = inputs[walks] @ inner[tree.inner[walks]].reshape(b, length * depth, -1).transpose(1, 2)
    scores = scores.reshape(b, length, length, depth) * sign[:, None]
    lost = (F.softplus(-scores) * sign.abs()[:, None]).sum(-1)
    return lost[:, near].sum() / (b * near.sum())
