"""Decoupled greedy learning: every module minimises the loss of its own head, and no gradient crosses a border between modules.

Belilovsky, Eickenberg & Oyallon, "Decoupled greedy learning of CNNs", ICML 2020 (arXiv:1901.08164), Algorithm 1; asynchronous, with
buffers: the same authors with Leconte and Caccia, arXiv:2106.06401.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracking.errors import UserError

Loss = Callable[[Tensor, Tensor], Tensor]
MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
HandOver = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(module j counted from 0, its output, labels) to what module j + 1 receives."""


class LocalNetwork(nn.Module):
    """Modules f_1 … f_J in a row and their heads g_1 … g_J: x_j = f_j(x_{j-1}), o_j = g_j(x_j).

    Called like the network it came from, it gives the scores of the last head.
    """

    def __init__(self, bodies: Iterable[nn.Module], heads: Iterable[nn.Module]) -> None:
        super().__init__()
        self.bodies, self.heads = nn.ModuleList(bodies), nn.ModuleList(heads)
        if not len(self.bodies) or len(self.bodies) != len(self.heads):
            raise UserError(f"{len(self.bodies)} modules and {len(self.heads)} heads: give one head a module, and one module at least. "
                            "The last head may be nn.Identity().")

    def __len__(self) -> int:
        return len(self.bodies)

    def forward(self, x: Tensor) -> Tensor:
        for body in self.bodies:
            x = body(x)
        return self.heads[-1](x)

    def outputs(self, x: Tensor, link: Callable[[int, Tensor], Tensor] | None = None) -> list[Tensor]:
        """Scores of every head. ``link(j, x_j)``, where given, is what the module after j sees."""
        scores = []
        for j, (body, head) in enumerate(zip(self.bodies, self.heads, strict=True)):
            x = body(x)
            scores.append(head(x))
            if link is not None and j + 1 < len(self):
                x = link(j, x)
        return scores

    def deployed(self, modules: int | None = None) -> nn.Sequential:
        """The first ``modules`` modules (all of them by default) with the head of the last of these, as a plain network."""
        last = len(self) if modules is None else modules
        return nn.Sequential(*self.bodies[:last], self.heads[last - 1])


class DecoupledTraining:
    """Local training of a :class:`LocalNetwork`, with an optimiser for each module and its head.

    Args:
        network: the modules and heads; no parameter may belong to two modules.
        optimizer: makes an optimiser from a list of parameters, e.g. ``lambda p: torch.optim.SGD(p, lr=0.1)``.
        loss: ``loss(scores, y)``, a scalar; cross-entropy by default.

    >>> modules = divide(model, 3, x)
    >>> network = LocalNetwork(modules, auxiliary_heads(modules, "mlp_sr", x))
    >>> training = DecoupledTraining(network, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    >>> for x, y in loader:
    ...     losses = training.step(x, y)
    """

    def __init__(self, network: LocalNetwork, optimizer: MakeOptimizer, loss: Loss = F.cross_entropy) -> None:
        self.network, self.loss = network, loss
        owned = [[*body.parameters(), *head.parameters()] for body, head in zip(network.bodies, network.heads, strict=True)]
        for j, parameters in enumerate(owned, 1):
            if not parameters:
                raise UserError(f"Module {j} and its head have no parameters: there is nothing to train. Cut the network elsewhere.")
        self.optimizers = optimizers_for(owned, optimizer)

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def update(self, j: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """One step of module ``j`` (from 0) on inputs ``x`` and labels ``y``: the local loss, and the output to hand on.

        Both are detached; the output is the one computed before the update. Gradients of no other module are touched.
        """
        out = self.network.bodies[j](x.detach())
        loss = self.loss(self.network.heads[j](out), y)
        self.optimizers[j].zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers[j].step()
        return loss.detach(), out.detach()

    @torch.no_grad()
    def forward(self, j: int, x: Tensor) -> Tensor:
        """Output of module ``j`` alone, in evaluation mode: what a module that has finished its training hands on."""
        body = self.network.bodies[j].eval()
        out = body(x)
        body.train()
        return out

    def step(self, x: Tensor, y: Tensor, hand_over: HandOver | None = None) -> list[Tensor]:
        """Synchronous DGL on one mini-batch (Alg. 1): the local loss of every module.

        ``hand_over`` says what a module receives from the one before, such as what a :class:`workbench.decoupled.Channel` makes of it.
        """
        self.network.train()
        losses = []
        for j in range(len(self.network)):
            loss, out = self.update(j, x, y)
            losses.append(loss)
            if j + 1 < len(self.network):
                x, y = hand_over(j, out, y) if hand_over else (out, y)
        return losses


def optimizers_for(owned: Sequence[Sequence[nn.Parameter]], optimizer: MakeOptimizer) -> list[torch.optim.Optimizer | None]:
    """An optimiser for every list of parameters, ``None`` for an empty one.

    Raises :class:`UserError` when a parameter is in two of the lists, and for an ``optimizer`` that makes none.
    """
    check_disjoint(owned)
    if not callable(optimizer):
        raise UserError(f"optimizer, a {type(optimizer).__name__}, is refused: every module gets an optimiser of its own. "
                        "Allowed: a function that makes one of a list of parameters, such as lambda p: torch.optim.SGD(p, lr=0.1).")
    return [optimizer(list(parameters)) if parameters else None for parameters in owned]


def check_disjoint(owned: Sequence[Sequence[nn.Parameter]]) -> None:
    """Raise :class:`UserError` when a parameter is in two of the lists."""
    seen: dict[nn.Parameter, int] = {}
    for j, parameters in enumerate(owned, 1):
        for parameter in parameters:
            if seen.setdefault(parameter, j) != j:
                raise UserError(f"Modules {seen[parameter]} and {j} share a parameter of shape {tuple(parameter.shape)}: "
                                "modules that train apart cannot share weights. Put both uses into one module.")
