"""Decoupled neural interfaces: modules that are trained by gradients a small network makes up.

Jaderberg, Czarnecki, Osindero, Vinyals, Graves, Silver & Kavukcuoglu, "Decoupled neural interfaces using synthetic gradients",
ICML 2017 (arXiv:1608.05343). cDNI: the synthesiser also sees the labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracking.errors import UserError
from workbench.datasets.models import initialise
from workbench.decoupled.delayed import Border, load_optimizers
from workbench.decoupled.training import Loss, MakeOptimizer, optimizers_for


class Synthesiser(nn.Module):
    """Predicts the gradient of the loss to a module's output ``(n, *shape)``: two hidden layers, the last one initialised to zero.

    Of images (c, h, w): 5x5 convolutions with c channels, as in the paper; of vectors (c,): linear layers. ``labels``: number of
    classes whose one-hot vector is embedded into the first layer's output (cDNI); 0: none. With ``generator``, weights are
    drawn from it and the global generators left alone.
    """

    def __init__(self, shape: Sequence[int], labels: int = 0, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if len(shape) not in (1, 3):
            raise UserError(f"A synthesiser takes module outputs (c, h, w) or (c,); these have the shape {tuple(shape)}.")
        c, image = shape[0], len(shape) == 3
        with torch.random.fork_rng(devices=[], enabled=generator is not None):
            def layer() -> nn.Module:
                return nn.Conv2d(c, c, 5, padding=2) if image else nn.Linear(c, c)

            def norm() -> nn.Module:
                return nn.BatchNorm2d(c) if image else nn.BatchNorm1d(c)

            self.trigger, self.context = layer(), nn.Linear(labels, c) if labels else None
            self.hidden = nn.Sequential(norm(), nn.ReLU(), layer(), norm(), nn.ReLU())
            self.output = layer()
        self.labels = labels
        if generator is not None:
            initialise(self, generator)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Synthetic gradient, of the shape of ``x``; ``y`` int64 ``(n,)`` is used with labels only."""
        first = self.trigger(x)
        if self.context is not None:
            embedded = self.context(F.one_hot(y, self.labels).to(x.dtype))
            first = first + embedded.view(*embedded.shape, *[1] * (x.dim() - 2))
        return self.output(self.hidden(first))


class SyntheticGradients:
    """Every module but the last is trained with the synthetic gradient of its output, at once; the last one with the loss.

    The gradient that a module's own backward pass gives to its input, itself made of the next synthetic one, is what the
    synthesiser before it is trained on: squared error, summed over values and averaged over samples. The synthetic gradient
    replaces the true one.

    Args:
        bodies: modules in order.
        synthesisers: one a border; ``synthesiser(x, y)`` is the gradient to ``x`` of the mean loss over the batch.
        optimizer: makes an optimiser from a list of parameters; a synthesiser without parameters gets none.
        borders: one a border; ``None``: nothing is billed.
    """

    def __init__(self, bodies: Sequence[nn.Module], synthesisers: Sequence[Callable[[Tensor, Tensor], Tensor]],
                 optimizer: MakeOptimizer, *, loss: Loss = F.cross_entropy, borders: Sequence[Border] | None = None) -> None:
        if len(synthesisers) != len(bodies) - 1:
            raise UserError(f"{len(bodies)} modules and {len(synthesisers)} synthesisers: give one for each border between modules.")
        self.bodies, self.synthesisers, self.loss, self.borders = list(bodies), list(synthesisers), loss, borders
        owned = [list(part.parameters()) if isinstance(part, nn.Module) else [] for part in (*bodies, *synthesisers)]
        made = optimizers_for(owned, optimizer)
        self.optimizers, self.synthesiser_optimizers = made[:len(bodies)], made[len(bodies):]
        self.error: float | Tensor = 0.0
        self.power: float | Tensor = 0.0
        """Sums of squared errors of the synthetic gradients, and of squares of what they were to be, since last asked."""

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One mini-batch; the loss, detached."""
        last = len(self.bodies) - 1
        predicted: Tensor | None = None
        for k, body in enumerate(self.bodies):
            body.train()
            x = x.detach().requires_grad_(k > 0)
            out = body(x)
            if self.optimizers[k]:
                self.optimizers[k].zero_grad(set_to_none=True)
            if k == last:
                loss = self.loss(out, y)
                loss.backward()
                following = None
            else:
                following = self._synthesise(k, out, y)
                out.backward(following.detach())
            if self.optimizers[k]:
                self.optimizers[k].step()
            if k:
                self._learn(k - 1, predicted, x.grad)
            predicted = following
            if k < last:
                x = self.borders[k].carry(out.detach(), "up") if self.borders is not None else out
        return loss.detach()

    def _synthesise(self, k: int, out: Tensor, y: Tensor) -> Tensor:
        synthesiser = self.synthesisers[k]
        if isinstance(synthesiser, nn.Module):
            synthesiser.train()
        return synthesiser(out.detach(), y)

    def _learn(self, border: int, predicted: Tensor, gradient: Tensor) -> None:
        target = self.borders[border].carry(gradient, "down") if self.borders is not None else gradient
        error = (predicted - target).square().sum()
        # tensors in float64: on a GPU nobody waits for them
        self.error = self.error + error.detach().double()
        self.power = self.power + target.square().sum().double()
        optimizer = self.synthesiser_optimizers[border]
        if optimizer:
            optimizer.zero_grad(set_to_none=True)
            (error / len(target)).backward()
            optimizer.step()

    def relative_error(self) -> float | None:
        """Squared error of the synthetic gradients since the last call, over the squares of what they were to be."""
        error, power = float(self.error), float(self.power)
        found = error / power if power else None
        self.error = self.power = 0.0
        return found

    def state_dict(self) -> dict[str, Any]:
        networks = [part.state_dict() if isinstance(part, nn.Module) else None for part in (*self.bodies, *self.synthesisers)]
        optimizers = [o.state_dict() if o else None for o in (*self.optimizers, *self.synthesiser_optimizers)]
        return {"networks": networks, "optimizers": optimizers, "error": self.error, "power": self.power}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part, saved in zip((*self.bodies, *self.synthesisers), state["networks"], strict=True):
            if isinstance(part, nn.Module):
                part.load_state_dict(saved)
        load_optimizers((*self.optimizers, *self.synthesiser_optimizers), state["optimizers"])
        self.error, self.power = state["error"], state["power"]
