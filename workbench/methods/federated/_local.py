"""Local training of many clients at once: models as rows of one matrix, varying numbers of steps by sorting and slicing.

A model is a row of a stack ``(m, P)`` of flat parameter vectors, so that averaging, encoding and keeping versions are
vector operations. Three back ends train the rows: ``matmul`` (hand-written forward and backward of a chain of linear
layers and ReLUs, as batched matrix products that update the weights in place), ``vmap`` (torch.func over any network)
and ``loop`` (one row after the other: the reference, and the fastest for large convolutions).

What a row becomes does not depend on the rows it is trained with: bit for bit with ``loop``, up to the rounding of
sums (whose order the kernels choose by the size of the batch) with the others. The back ends agree to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracking.errors import UserError, unknown

if TYPE_CHECKING:
    from workbench.task import SupervisedTask

Backend = Literal["auto", "matmul", "vmap", "loop"]
Batch = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From sample indices ``(k,)`` to inputs ``(k, ...)`` and labels ``(k,)``, valid until the next call."""
Loss = Callable[[Tensor, Tensor], Tensor]


class FlatModel:
    """A network as a function of one flat vector of its ``P`` parameters.

    Batch norms use the statistics of the batch at hand: statistics that run along have no place in a client that is
    interrupted at any step (re-estimate them before an evaluation).
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
        parts, lead = stack.split(self.sizes, dim=-1), stack.shape[:-1]
        return {name: part.view(*lead, *shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}


class Samples:
    """A task's normalised training samples by index, never augmented; a :data:`Batch`.

    Where a table of all inputs takes at most ``limit`` bytes it is made once, and a batch is one gather into a buffer
    that the next batch overwrites: normalising and fresh memory cost more than a small network's gradient.
    """

    def __init__(self, task: SupervisedTask, limit: int = 2**28) -> None:
        self.task, count = task, len(task.train_y)
        first, _ = task.batch(torch.zeros(1, dtype=torch.int64))
        self.shape, self.table, self.buffer = first.shape[1:], None, first.new_empty(0)
        if first.nbytes * count <= limit:
            self.table = first.new_empty(count, first.numel())
            for rows in torch.arange(count).split(4096):
                self.table[rows[0] : rows[-1] + 1] = task.batch(rows)[0].flatten(1)

    def __call__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        if self.table is None:
            return self.task.batch(index)
        index, size = index.to(self.table.device), len(index) * self.table.shape[1]
        if len(self.buffer) < size:
            self.buffer = self.table.new_empty(size)
        x = torch.index_select(self.table, 0, index, out=self.buffer[:size].view(len(index), -1))
        return x.view(-1, *self.shape), self.task.train_y.index_select(0, index)


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
        backend: ``auto`` takes ``matmul`` where the network is a chain of linear layers and ReLUs under cross-entropy,
            else ``loop``: vmapped convolutions and norms are slower than separate ones on a CPU.
    """

    def __init__(self, model: nn.Module, loss: Loss = F.cross_entropy, backend: Backend = "auto") -> None:
        self.flat, self.loss = FlatModel(model), loss
        self._chain = linear_chain(self.flat.model) if loss is F.cross_entropy else []
        if backend == "auto":
            backend = "matmul" if self._chain else "loop"
        if backend not in ("matmul", "vmap", "loop"):
            raise unknown("back end", backend, ("auto", "matmul", "vmap", "loop"))
        if backend == "matmul" and not self._chain:
            raise UserError(
                "Back end 'matmul' takes a chain of linear layers and ReLUs under cross-entropy; use 'vmap' or 'loop'."
            )
        self.backend = backend
        self._gradients = torch.func.vmap(torch.func.grad_and_value(self._loss_at))

    def train(
        self,
        stack: Tensor,
        samples: Sequence[np.ndarray],
        batch: Batch,
        lr: Tensor | float,
        begin: Callable[[int], object] | None = None,
    ) -> Tensor:
        """Take ``len(samples[i])`` steps with row ``i`` of ``stack`` ``(m, P)``, in place.

        Args:
            samples: for each row, ``(steps_i, B)``: the training samples of each step.
            lr: one rate, or one a row ``(m,)``.
            begin: called with a row's number before its first step, by the back end ``loop`` only.

        Returns:
            (m,) each row's mean loss over its steps; 0 without a step.
        """
        rates = torch.as_tensor(lr, dtype=stack.dtype, device=stack.device).expand(len(stack))
        if self.backend == "loop":
            return self._train_rows(stack, samples, batch, rates, begin)
        return self._train_together(stack, samples, batch, rates)

    def _train_rows(
        self,
        stack: Tensor,
        samples: Sequence[np.ndarray],
        batch: Batch,
        rates: Tensor,
        begin: Callable[[int], object] | None,
    ) -> Tensor:
        model = self.flat.model
        parameters, mean = list(model.parameters()), stack.new_zeros(len(stack))
        for i, (own, rate) in enumerate(zip(samples, rates.tolist(), strict=True)):
            if not len(own):
                continue
            if begin is not None:
                begin(i)
            self.flat.load(stack[i])
            for index in torch.from_numpy(own):
                x, y = batch(index)
                loss = self.loss(model(x), y)
                gradients = torch.autograd.grad(loss, parameters)
                with torch.no_grad():
                    torch._foreach_add_(parameters, gradients, alpha=-rate)
                mean[i] += loss.detach() / len(own)
            stack[i] = self.flat.vector()
        return mean

    def _train_together(self, stack: Tensor, samples: Sequence[np.ndarray], batch: Batch, rates: Tensor) -> Tensor:
        """All rows at once: ordered by their number of steps, so that those still at work are always the first ones.

        The work done is the sum of the steps.
        """
        steps = np.array([len(s) for s in samples], np.int64)
        order = np.argsort(-steps, kind="stable")
        active = (steps[:, None] > np.arange(steps.max(initial=0))).sum(0)  # rows at work, a step
        if not len(active):
            return stack.new_zeros(len(stack))
        rows = torch.from_numpy(order).to(stack.device)
        index = torch.from_numpy(_by_step([samples[i] for i in order], active)).to(stack.device)
        work, rates = stack.index_select(0, rows), rates.index_select(0, rows)
        total, step = stack.new_zeros(len(steps)), self._matmul if self.backend == "matmul" else self._vmap
        for part in index.split(active.tolist()):
            m = len(part)
            x, y = batch(part.view(-1))
            total[:m] += step(work[:m], x.view(m, -1, *x.shape[1:]), y.view(m, -1), rates[:m])
        stack.index_copy_(0, rows, work)
        mean = total / torch.from_numpy(np.maximum(steps[order], 1)).to(total)
        return torch.empty_like(mean).index_copy_(0, rows, mean)

    @torch.no_grad()
    def _matmul(self, stack: Tensor, x: Tensor, y: Tensor, lr: Tensor) -> Tensor:
        """One step of every row, in place; returns the losses before it, ``(m,)``.

        Outputs and signals have the layout ``(m, units, B)``, activations ``(m, B, units)``: so the softmax runs over a
        middle axis and the weights' products need no transposed operand, both several times faster.
        """
        views = self.flat.views(stack)
        layers = [(views[f"{name}.weight"], views.get(f"{name}.bias")) for name in self._chain]
        inputs = [x.flatten(2)]
        for weight, bias in layers[:-1]:
            out = _affine(None if bias is None else bias.unsqueeze(1), inputs[-1], weight.transpose(1, 2))
            inputs.append(out.relu_())
        weight, bias = layers[-1]
        out = _affine(None if bias is None else bias.unsqueeze(2), weight, inputs[-1].transpose(1, 2))
        log_p, label = out.log_softmax(1), y.unsqueeze(1)
        at_label = log_p.gather(1, label)
        losses = -at_label.mean((1, 2))
        delta = log_p.exp_().scatter_add_(1, label, torch.full_like(at_label, -1.0))
        delta *= (lr / y.shape[1]).view(-1, 1, 1)  # the rate is in the signal: products update the weights directly
        for i in reversed(range(len(layers))):
            weight, bias = layers[i]
            below = torch.bmm(weight.transpose(1, 2), delta) if i else None
            weight.baddbmm_(delta, inputs[i], alpha=-1)
            if bias is not None:
                bias -= delta.sum(2)
            if below is not None:
                delta = torch.ops.aten.threshold_backward(below, inputs[i].transpose(1, 2), 0).contiguous()
        return losses

    def _vmap(self, stack: Tensor, x: Tensor, y: Tensor, lr: Tensor) -> Tensor:
        gradient, losses = self._gradients(stack, x, y)
        stack -= lr.view(-1, 1) * gradient
        return losses.detach()

    def _loss_at(self, vector: Tensor, x: Tensor, y: Tensor) -> Tensor:
        state = (self.flat.views(vector), dict(self.flat.model.named_buffers()))
        return self.loss(torch.func.functional_call(self.flat.model, state, (x,)), y)


def _affine(bias: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a, b) if bias is None else torch.baddbmm(bias, a, b)


def _by_step(samples: Sequence[np.ndarray], active: np.ndarray) -> np.ndarray:
    """Rows' samples ``(steps_i, B)``, longest first, as ``(sum of steps, B)`` with step 0 of all rows first."""
    first = active.cumsum() - active
    out = np.empty((active.sum(), samples[0].shape[1]), np.int64)
    for rank, own in enumerate(samples):
        out[first[: len(own)] + rank] = own
    return out


def linear_chain(model: nn.Module) -> list[str]:
    """Names of the linear layers of a network that is nothing but [Flatten] Linear (ReLU Linear)*; empty for others."""
    if not isinstance(model, nn.Sequential):
        return []
    layers = [(name, m) for name, m in model.named_children() if not isinstance(m, (nn.Flatten, nn.Identity))]
    linear = [name for name, m in layers[::2] if isinstance(m, nn.Linear)]
    rest = [m for _, m in layers[1::2]]
    right = len(layers) % 2 and len(linear) == len(layers[::2]) and all(isinstance(m, nn.ReLU) for m in rest)
    return linear if right else []
