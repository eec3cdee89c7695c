"""Local training of many clients at once: models as rows of one matrix, variable numbers of steps by sorting and slicing.

A model is a row of a stack ``(m, P)`` of flat parameter vectors, so that averaging, encoding and keeping versions are vector operations.
Three back ends take a step of all rows: ``matmul`` (hand-written forward and backward of a chain of linear layers and ReLUs, as
batched matrix products that update the weights in place), ``vmap`` (torch.func over any network) and ``loop`` (one row after the
other: the reference, and the fastest for large convolutions). They agree to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracking.errors import UserError, unknown

Backend = Literal["auto", "matmul", "vmap", "loop"]
Batch = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From sample indices ``(k,)`` to inputs ``(k, ...)`` and labels ``(k,)``."""
Loss = Callable[[Tensor, Tensor], Tensor]


class FlatModel:
    """A network as a function of one flat vector of its ``P`` parameters.

    Batch norms use the statistics of the batch at hand: statistics that run along have no place in a client that is interrupted at any
    step (re-estimate them before an evaluation).
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).train()
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None
        self.shapes = {name: p.shape for name, p in self.model.named_parameters()}
        self.sizes = [shape.numel() for shape in self.shapes.values()]
        self.P = sum(self.sizes)

    def vector(self, model: nn.Module | None = None) -> Tensor:
        """The parameters of ``model`` (this one, when none is given) as a new vector ``(P,)``."""
        return torch.cat([p.detach().reshape(-1) for p in (model or self.model).parameters()])

    @torch.no_grad()
    def load(self, vector: Tensor, model: nn.Module | None = None) -> nn.Module:
        """Write ``vector`` into the parameters of ``model`` (this one, when none is given), and return it."""
        target = model or self.model
        for p, part in zip(target.parameters(), vector.split(self.sizes), strict=True):
            p.copy_(part.view(p.shape))
        return target

    def views(self, stack: Tensor) -> dict[str, Tensor]:
        """The stack ``(m, P)`` as ``(m, *shape)`` a parameter; no copy."""
        parts = stack.split(self.sizes, dim=-1)
        return {name: part.view(*stack.shape[:-1], *shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}


def draws(seed: int, client: int, contact: int, steps: int, batch: int, size: int) -> np.ndarray:
    """Sample numbers ``(steps, batch)`` below ``size`` for the work a client did before a contact.

    They depend on (seed, client, contact) and the position alone, never on which clients are trained together.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed % 2**64, (client << 32) | contact]))
    return generator.integers(0, size, (steps, batch))


class LocalSGD:
    """Plain SGD of many models at once.

    Args:
        model: the network (its parameters are not used).
        loss: mean loss of a batch from outputs and labels; the back end ``matmul`` takes cross-entropy for granted.
        backend: ``auto`` takes ``matmul`` where the network is a chain of linear layers and ReLUs under cross-entropy, else ``vmap``
            for networks of up to 300,000 parameters, else ``loop``.
    """

    def __init__(self, model: nn.Module, loss: Loss = F.cross_entropy, backend: Backend = "auto") -> None:
        self.flat, self.loss = FlatModel(model), loss
        chain = linear_chain(self.flat.model)
        if backend == "auto":
            small = self.flat.P <= 300_000
            backend = "matmul" if chain and loss is F.cross_entropy else "vmap" if small else "loop"
        steps = {"matmul": self._matmul, "vmap": self._vmap, "loop": self._loop}
        if backend not in steps:
            raise unknown("back end", backend, ("auto", *steps))
        if backend == "matmul" and not (chain and loss is F.cross_entropy):
            raise UserError("Back end 'matmul' takes a chain of linear layers and ReLUs under cross-entropy; use 'vmap' or 'loop'.")
        self.backend, self._step, self._chain = backend, steps[backend], chain

    def train(self, stack: Tensor, samples: Sequence[np.ndarray], batch: Batch, lr: Tensor | float) -> Tensor:
        """Take ``len(samples[i])`` steps with row ``i`` of ``stack`` ``(m, P)``, in place; return each row's mean loss (0 without a step).

        ``samples[i]`` is ``(steps_i, B)``: the training samples of each step. ``lr`` is one rate, or one a row ``(m,)``. The work done
        is the sum of the steps: rows are ordered by their number, and the rows still at work are always the first ones.
        """
        steps = np.array([len(s) for s in samples])
        order = np.argsort(-steps, kind="stable")
        rows = torch.from_numpy(order).to(stack.device)
        work = stack.index_select(0, rows)
        rates = torch.as_tensor(lr, dtype=stack.dtype, device=stack.device).expand(len(steps)).index_select(0, rows)
        total = stack.new_zeros(len(steps))
        for q in range(int(steps.max(initial=0))):
            active = int((steps > q).sum())
            index = torch.from_numpy(np.stack([samples[i][q] for i in order[:active]]))
            x, y = batch(index.view(-1))
            total[:active] += self._step(work[:active], x.view(active, -1, *x.shape[1:]), y.view(active, -1), rates[:active])
        stack.index_copy_(0, rows, work)
        mean = total / torch.from_numpy(np.maximum(steps[order], 1)).to(total)
        return torch.empty_like(mean).index_copy_(0, rows, mean)

    # --- back ends: one step of every row, in place; returns the losses before it ----------------------------------

    @torch.no_grad()
    def _matmul(self, stack: Tensor, x: Tensor, y: Tensor, lr: Tensor) -> Tensor:
        views = self.flat.views(stack)
        layers = [(views[f"{name}.weight"], views.get(f"{name}.bias")) for name in self._chain]
        inputs = [x.flatten(2)]
        for i, (weight, bias) in enumerate(layers):
            out = torch.bmm(inputs[-1], weight.transpose(1, 2)) if bias is None else torch.baddbmm(
                bias.unsqueeze(1), inputs[-1], weight.transpose(1, 2))
            inputs.append(out.relu_() if i < len(layers) - 1 else out)
        log_p = inputs.pop().log_softmax(-1)
        at_label = log_p.gather(-1, y.unsqueeze(-1))
        losses = -at_label.mean((1, 2))
        delta = log_p.exp_().scatter_add_(-1, y.unsqueeze(-1), torch.full_like(at_label, -1.0))
        delta *= (lr / y.shape[1]).view(-1, 1, 1)  # the rate is in the signal, so products update the weights directly
        for i in reversed(range(len(layers))):
            weight, bias = layers[i]
            below = torch.bmm(delta, weight) if i else None
            weight.baddbmm_(delta.transpose(1, 2), inputs[i], alpha=-1)
            if bias is not None:
                bias -= delta.sum(1)
            if below is not None:
                delta = below.mul_(inputs[i] > 0)
        return losses

    def _vmap(self, stack: Tensor, x: Tensor, y: Tensor, lr: Tensor) -> Tensor:
        buffers = dict(self.flat.model.named_buffers())

        def loss(vector: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return self.loss(torch.func.functional_call(self.flat.model, (self.flat.views(vector), buffers), (x,)), y)

        gradient, losses = torch.func.vmap(torch.func.grad_and_value(loss))(stack, x, y)
        stack -= lr.view(-1, 1) * gradient
        return losses.detach()

    def _loop(self, stack: Tensor, x: Tensor, y: Tensor, lr: Tensor) -> Tensor:
        losses = []
        model = self.flat.model
        for row, xi, yi, rate in zip(stack, x, y, lr.tolist(), strict=True):
            self.flat.load(row)
            loss = self.loss(model(xi), yi)
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            row -= rate * torch.cat([g.reshape(-1) for g in gradients])
            losses.append(loss.detach())
        return torch.stack(losses)


def linear_chain(model: nn.Module) -> list[str]:
    """Names of the linear layers of a network that is nothing but [Flatten] Linear (ReLU Linear)*; empty for any other."""
    if not isinstance(model, nn.Sequential):
        return []
    layers = [(name, m) for name, m in model.named_children() if not isinstance(m, (nn.Flatten, nn.Identity))]
    linear = [name for name, m in layers[::2] if isinstance(m, nn.Linear)]
    rest = [m for _, m in layers[1::2]]
    right = len(layers) % 2 and len(linear) == len(layers[::2]) and all(isinstance(m, nn.ReLU) for m in rest)
    return linear if right else []
