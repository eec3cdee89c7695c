"""One loss at the end of the network, whose gradient reaches earlier modules late: backpropagation, DDG and features replay.

DDG: Huo, Gu, Yang & Huang, "Decoupled parallel backpropagation with convergence guarantee", ICML 2018 (arXiv:1804.10574). Features
replay: Huo, Gu & Huang, "Training neural networks using features replay", NeurIPS 2018 (arXiv:1807.04511).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tracking.errors import UserError
from workbench.decoupled.training import Loss, MakeOptimizer, optimizers_for


class Border(Protocol):
    """What carries tensors over a border between two modules."""

    def carry(self, value: Tensor, direction: str) -> Tensor: ...


class DelayedGradients:
    """K modules on workers of their own; module k (from 1) applies the gradient of the batch of ``delay * (K - k)`` steps ago.

    ``delay=0`` is end-to-end backpropagation. Otherwise the backward passes of all modules run at once, each on another batch:

    - DDG (``replay=False``): with the weights of that batch's forward pass, and applied to those of today. The paper keeps the
      forward pass's intermediate activations; here its input and its weights are kept, and the pass is repeated with them,
      which gives the same gradients and is plain data, but other memory.
    - Features replay (``replay=True``): the forward pass is repeated with today's weights on the kept input.

    Batch norm takes statistics into its running averages in the first pass alone. Layers that draw random numbers, such as
    dropout, are not repeated faithfully. Until its first gradient comes, a module stays as it is.

    Args:
        bodies: modules in order; the last one puts out the scores.
        optimizer: makes an optimiser from a list of parameters.
        loss: ``loss(scores, y)``.
        borders: one a border; ``None``: nothing is billed.
    """

    def __init__(self, bodies: Sequence[nn.Module], optimizer: MakeOptimizer, *, delay: int = 1, replay: bool = False,
                 loss: Loss = F.cross_entropy, borders: Sequence[Border] | None = None) -> None:
        if delay < 0 or (borders is not None and len(borders) != len(bodies) - 1):
            raise UserError(f"delay = {delay} with {None if borders is None else len(borders)} borders is refused. "
                            f"Allowed: 0 <= delay, and a border between any two of the {len(bodies)} modules.")
        self.bodies, self.delay, self.replay, self.loss, self.borders = list(bodies), delay, replay, loss, borders
        self.optimizers = optimizers_for([list(body.parameters()) for body in bodies], optimizer)
        self.time = 0
        self.kept: list[dict[int, list[Tensor]]] = [{} for _ in bodies]
        """For each module by batch number: the input, then (DDG) the parameters it went through, until its gradient comes."""
        self.errors: list[dict[int, Tensor]] = [{} for _ in bodies]
        """For each module by batch number: gradients to its output that have come and not been used."""

    def lag(self, k: int) -> int:
        """Steps between the forward and the backward pass of module ``k`` (from 0)."""
        return self.delay * (len(self.bodies) - 1 - k)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One mini-batch forward through all modules, and one backward pass of each that has a gradient; the loss, detached."""
        last = len(self.bodies) - 1
        graphs: list[tuple[Tensor, Tensor] | None] = []
        for k, body in enumerate(self.bodies):
            body.train()
            if self.lag(k):
                out = self._first_pass(k, x)
                graphs.append(None)
            else:
                x = x.detach().requires_grad_(k > 0)
                out = body(x)
                graphs.append((x, out))
            if k < last:
                x = self._carry(k, out.detach(), "up")
        loss = self.loss(out, y)
        arrivals: list[tuple[int, int, Tensor]] = []
        for k in range(last, -1, -1):
            batch = self.time - self.lag(k)
            if k < last and batch not in self.errors[k]:
                continue
            inputs = self._backward(k, batch, graphs[k], loss)
            if k:
                gradient = self._carry(k - 1, inputs.grad, "down")
                if self.delay:
                    arrivals.append((k - 1, batch, gradient))  # used from the next step on
                else:
                    self.errors[k - 1][batch] = gradient
        for k, batch, gradient in arrivals:
            self.errors[k][batch] = gradient
        self.time += 1
        return loss.detach()

    @torch.no_grad()
    def _first_pass(self, k: int, x: Tensor) -> Tensor:
        body = self.bodies[k]
        weights = [] if self.replay else [p.detach().clone() for p in body.parameters()]
        self.kept[k][self.time] = [x.detach().clone(), *weights]
        return body(x)

    def _backward(self, k: int, batch: int, graph: tuple[Tensor, Tensor] | None, loss: Tensor) -> Tensor:
        """Backward pass of module ``k`` on ``batch``, and its update; the input, with its gradient."""
        optimizer = self.optimizers[k]
        if optimizer:
            optimizer.zero_grad(set_to_none=True)
        if k == len(self.bodies) - 1:
            inputs, _ = graph
            loss.backward()
        else:
            inputs, out, weights = (*graph, []) if graph else self._repeat(k, batch)
            out.backward(self.errors[k].pop(batch))
            for parameter, old in zip(self.bodies[k].parameters(), weights, strict=False):
                parameter.grad = old.grad
        if optimizer:
            optimizer.step()
        return inputs

    def _repeat(self, k: int, batch: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The forward pass of ``batch`` once more: input, output, and the old weights it was made with, where these were kept."""
        body = self.bodies[k]
        inputs, *weights = self.kept[k].pop(batch)
        inputs.requires_grad_(k > 0)
        used = [w.requires_grad_(True) for w in weights] or list(body.parameters())
        named = dict(zip((name for name, _ in body.named_parameters()), used, strict=True))
        # copies of the buffers, as batch norm has counted this batch already
        buffers = {name: b.clone() for name, b in body.named_buffers()}
        return inputs, functional_call(body, named | buffers, (inputs,)), weights

    def _carry(self, border: int, value: Tensor, direction: str) -> Tensor:
        return self.borders[border].carry(value, direction) if self.borders is not None else value

    def state_dict(self) -> dict[str, Any]:
        return {"time": self.time, "kept": self.kept, "errors": self.errors, "bodies": [b.state_dict() for b in self.bodies],
                "optimizers": [o.state_dict() if o else None for o in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for body, saved in zip(self.bodies, state["bodies"], strict=True):
            body.load_state_dict(saved)
        load_optimizers(self.optimizers, state["optimizers"])
        self.time, self.kept, self.errors = state["time"], list(state["kept"]), list(state["errors"])


def load_optimizers(optimizers: Sequence[torch.optim.Optimizer | None], states: Sequence[dict[str, Any] | None]) -> None:
    """Load every optimiser that there is."""
    for optimizer, saved in zip(optimizers, states, strict=True):
        if optimizer:
            optimizer.load_state_dict(saved)
