"""Random walks on a graph, many at once: uniform ones (DeepWalk) and those of second order (node2vec).

Perozzi, Al-Rfou & Skiena, "DeepWalk", KDD 2014; Grover & Leskovec, "node2vec", KDD 2016, Section 3.2. Second-order steps are drawn exactly,
by rejection: a uniform neighbour is proposed and kept with its weight over the largest one, so no table of edge pairs is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Neighbours:
    """Adjacency lists: the neighbours of node ``i`` are ``targets[starts[i]:starts[i + 1]]``, in increasing order."""

    starts: Tensor
    targets: Tensor
    keys: Tensor

    @classmethod
    def of(cls, edge_index: Tensor, num_nodes: int) -> Neighbours:
        """From edges ``(2, E)``, an undirected one in both directions. Edges that are there twice count once."""
        keys = torch.unique(edge_index[0] * num_nodes + edge_index[1])  # sorted
        sources = torch.div(keys, num_nodes, rounding_mode="floor")
        starts = torch.searchsorted(sources, torch.arange(num_nodes + 1, device=keys.device))
        return cls(starts, keys % num_nodes, keys)

    @property
    def num_nodes(self) -> int:
        return len(self.starts) - 1

    @property
    def degree(self) -> Tensor:
        """Number of neighbours of each node, int64 ``(N,)``."""
        return self.starts.diff()

    def linked(self, a: Tensor, b: Tensor) -> Tensor:
        """Boolean vector: whether there is an edge from ``a[i]`` to ``b[i]``."""
        wanted = a * self.num_nodes + b
        place = torch.searchsorted(self.keys, wanted).clamp_(max=len(self.keys) - 1)
        return self.keys[place] == wanted

    def uniform(self, nodes: Tensor, generator: torch.Generator) -> Tensor:
        """A neighbour of each node, drawn uniformly; a node without neighbours stays where it is."""
        count = self.starts[nodes + 1] - self.starts[nodes]
        draw = torch.rand(len(nodes), generator=generator, device=nodes.device, dtype=torch.float64)
        place = self.starts[nodes] + (draw * count).long().clamp_(max=(count - 1).clamp_(min=0))
        return torch.where(count > 0, self.targets[place.clamp_(max=len(self.targets) - 1)], nodes)


def random_walks(
    graph: Neighbours, start: Tensor, length: int, generator: torch.Generator, p: float = 1.0, q: float = 1.0
) -> Tensor:
    """A walk from each node of ``start`` (int64 ``(B,)``): node numbers ``(B, length)``, the start included.

    Having come from ``t`` to ``v``, the walk goes on to a neighbour ``x`` of ``v`` with a probability proportional to ``1/p`` where
    ``x = t``, to 1 where ``x`` is a neighbour of ``t``, and to ``1/q`` elsewhere (node2vec, Section 3.2.2). ``p = q = 1``: uniform.
    """
    walk = [start]
    for step in range(1, length):
        if step == 1 or p == q == 1:
            walk.append(graph.uniform(walk[-1], generator))
        else:
            walk.append(_second_order(graph, walk[-2], walk[-1], p, q, generator))
    return torch.stack(walk, dim=1)


def _second_order(
    graph: Neighbours, before: Tensor, here: Tensor, p: float, q: float, generator: torch.Generator
) -> Tensor:
    largest = max(1 / p, 1.0, 1 / q)
    chosen, pending = here.clone(), torch.arange(len(here), device=here.device)
    while len(pending):
        came, now = before[pending], here[pending]
        offered = graph.uniform(now, generator)
        weight = torch.where(graph.linked(came, offered), 1.0, 1 / q)
        weight = torch.where(offered == came, 1 / p, weight)
        kept = torch.rand(len(pending), generator=generator, device=here.device) * largest < weight
        chosen[pending[kept]] = offered[kept]
        pending = pending[~kept]
    return chosen
