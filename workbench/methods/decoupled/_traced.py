"""What the energy model is shown of a method: a training step as one graph, cut where no gradient goes.

Joules count per training sample, so a graph holds what a sample costs in all modules. Messages and waiting are in none of them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.decoupled import LocalNetwork, OnlineVQ


def frozen(parts: Iterable[nn.Module]) -> nn.ModuleList:
    """Copies that run forward and learn nothing."""
    return nn.ModuleList(copy.deepcopy(part).requires_grad_(False) for part in parts)


class AllHeads(nn.Module):
    """All modules and heads on every sample: scores of all heads, ``(heads, n, classes)``. ``links``: what borders compute, if anything."""

    def __init__(self, network: LocalNetwork, links: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.network, self.links = network, nn.ModuleList(links)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(self.network.outputs(x, lambda j, out: self.links[j](out.detach()) if len(self.links) else out.detach()))


class CodedLink(nn.Module):
    """A border with a vector quantiser: scores of all codewords, the greatest, the look-up behind it, and the sums it learns from."""

    def __init__(self, vq: OnlineVQ) -> None:
        super().__init__()
        self.vectors = vq.vectors
        self.register_buffer("book", torch.zeros(vq.groups, vq.codewords, vq.d))

    def forward(self, x: Tensor) -> Tensor:
        v = self.vectors(x).transpose(0, 1).contiguous()  # (g, vectors, d)
        scores = torch.bmm(v, self.book.transpose(1, 2))
        scores.amax(-1)  # counted as comparisons, which argmax is made of
        g, words, d = self.book.shape
        place = (scores.argmax(-1) + words * torch.arange(g, device=x.device)[:, None]).reshape(-1)
        torch.zeros(g * words, d, dtype=x.dtype, device=x.device).index_add(0, place, v.reshape(-1, d))
        seen = F.embedding(place, self.book.reshape(-1, d)).view_as(v).transpose(0, 1)
        return seen.reshape(len(x), -1, x.shape[1]).transpose(1, 2).reshape(x.shape)


class StageByStage(nn.Module):
    """Sequential greedy training, all stages in equal parts of the samples: the modules before run forward, one trains with its head."""

    def __init__(self, network: LocalNetwork) -> None:
        super().__init__()
        self.network, self.before = network, frozen(network.bodies[:-1]).eval()

    def forward(self, x: Tensor) -> Tensor:
        scores = []
        for j, part in enumerate(x.chunk(len(self.network))):
            for body in self.before[:j]:
                part = body(part)
            scores.append(self.network.heads[j](self.network.bodies[j](part)))
        return torch.stack(scores)


class WithSynthesisers(nn.Module):
    """Modules that all go forward and back, and synthesisers that learn from what they put out.

    The gradient of a module's input, which its neighbour's synthesiser learns to predict, is that of the whole network's
    backward pass, so modules stay in one piece.
    """

    def __init__(self, bodies: Sequence[nn.Module], synthesisers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.bodies, self.synthesisers = nn.ModuleList(bodies), nn.ModuleList(synthesisers)

    def forward(self, x: Tensor) -> list[Tensor]:
        gradients, y = [], torch.zeros(len(x), dtype=torch.int64, device=x.device)
        for k, body in enumerate(self.bodies):
            x = body(x)
            if k + 1 < len(self.bodies):
                gradients.append(self.synthesisers[k](x.detach(), y))
        return [x, *gradients]


class Replayed(nn.Module):
    """A network of which the first modules go forward twice, the first time without anything to learn."""

    def __init__(self, bodies: Sequence[nn.Module], twice: int) -> None:
        super().__init__()
        self.bodies, self.first = nn.Sequential(*bodies), nn.Sequential(*frozen(bodies[:twice]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.bodies(x), self.first(x)
