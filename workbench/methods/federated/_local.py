"""Local training of many clients at once: models as rows of one matrix, varying numbers of steps by sorting and slicing.

A model is a row of a stack ``(m, P)`` of flat parameter vectors, so that averaging, encoding and keeping versions are
vector operations. Three back ends train the rows: ``matmul`` (hand-written forward and backward of a chain of linear
layers and ReLUs, as batched matrix products that update the weights in place), ``vmap`` (torch.func over any network)
and ``loop`` (a row by itself: the reference, and the fastest for large convolutions). On a CPU, ``matmul`` and ``loop``
train as many rows or groups of rows at a time as there are cores.

What a row becomes does not depend on the rows it is trained with, nor on the number of cores: bit for bit with
``loop``, up to the rounding of sums (whose order the kernels choose by the size of the batch) with the others. The back
ends agree to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracking.errors import UserError, unknown
from workbench.federation.side_by_side import side_by_side, this_thread
from workbench.methods.federated._stacked import by_step, chain_step, linear_chain

if TYPE_CHECKING:
    from workbench.task import SupervisedTask

Backend = Literal["auto", "matmul", "vmap", "loop"]
PIECE = 2**20  # inputs of a step of rows trained together: as many as stay in a core's cache
WORTH_A_THREAD = 2**24  # multiplications of a step below which two threads hold each other up with Python's lock
VMAP_LIMIT = 1_000_000  # parameters up to which ``auto`` vmaps on a GPU: ResNet-20 has 0.27 million, ResNet-18 has 11
Batch = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From sample indices ``(k,)`` to inputs ``(k, ...)`` and labels ``(k,)``, valid until the thread's next call."""
Loss = Callable[[Tensor, Tensor], Tensor]


class Job(NamedTuple):
    """Whose work a row is: the key of its randomness, and how far the federation was when it began."""

    seed: int
    client: int
    contact: int
    progress: float
    """Share of the horizon, 0 to 1, that had gone by when the client received its model."""
    scales: tuple[float, ...] = ()
    """Steps between the levels of the quantised layers, once the server has fixed them (AskewSGD)."""


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
    that the thread's next batch overwrites: normalising and fresh memory cost more than a small network's gradient.
    """

    def __init__(self, task: SupervisedTask, limit: int = 2**28) -> None:
        self.task, count = task, len(task.train_y)
        first, _ = task.batch(torch.zeros(1, dtype=torch.int64))
        self.shape, self.table = first.shape[1:], None
        self.buffers: dict[int, Tensor] = {}
        if first.nbytes * count <= limit:
            self.table = first.new_empty(count, first.numel())
            for rows in torch.arange(count).split(4096):
                self.table[rows[0] : rows[-1] + 1] = task.batch(rows)[0].flatten(1)

    def __call__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        if self.table is None:
            return self.task.batch(index)
        index, size = index.to(self.table.device), len(index) * self.table.shape[1]
        buffer = self.buffers.get(this_thread())
        if buffer is None or len(buffer) < size:
            buffer = self.buffers[this_thread()] = self.table.new_empty(size)
        x = torch.index_select(self.table, 0, index, out=buffer[:size].view(len(index), -1))
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
        backend: ``auto`` takes ``matmul`` where the network is a chain of linear layers and ReLUs under cross-entropy.
            For others it takes ``loop`` on a CPU, where vmapped convolutions and norms are slower than separate ones,
            and on a GPU ``vmap`` up to :data:`VMAP_LIMIT` parameters: below, the device waits for the launches of many
            small kernels; above, one model fills it.
    """

    backends: tuple[str, ...] = ("matmul", "vmap", "loop")

    def __init__(self, model: nn.Module, loss: Loss = F.cross_entropy, backend: Backend = "auto") -> None:
        self.flat, self.loss = FlatModel(model), loss
        self._chain = linear_chain(self.flat.model) if loss is F.cross_entropy else []
        if backend == "auto":
            backend = self.best(next(self.flat.model.parameters()).device)
        if backend not in self.backends:
            raise unknown("back end", backend, ("auto", *self.backends))
        if backend == "matmul" and not self._chain:
            raise UserError(
                "Back end 'matmul' takes a chain of linear layers and ReLUs under cross-entropy; use 'vmap' or 'loop'."
            )
        self.backend = backend
        if backend == "loop" and next(self.flat.model.parameters()).device.type == "cpu":
            self.flat.model.to(memory_format=torch.channels_last)  # convolutions take 0.8 to 0.95 of the time
        self._twins = [self]
        self._gradients = torch.func.vmap(torch.func.grad_and_value(self._loss_at))

    def best(self, device: torch.device) -> str:
        """The back end that ``auto`` stands for on ``device``."""
        if self._chain:
            return "matmul"
        together = device.type == "cuda" and self.flat.P <= VMAP_LIMIT and "vmap" in self.backends
        return "vmap" if together else "loop"

    def train(
        self,
        stack: Tensor,
        samples: Sequence[np.ndarray],
        batch: Batch,
        lr: Tensor | float,
        jobs: Sequence[Job] | None = None,
    ) -> Tensor:
        """Take ``len(samples[i])`` steps with row ``i`` of ``stack`` ``(m, P)``, in place.

        Args:
            samples: for each row, ``(steps_i, B)``: the training samples of each step.
            lr: one rate, or one a row ``(m,)``.
            jobs: whose work each row is, for trainings with randomness or a schedule of their own; plain SGD has none.

        Returns:
            (m,) each row's mean loss over its steps; 0 without a step.
        """
        rates = torch.as_tensor(lr, dtype=stack.dtype, device=stack.device).expand(len(stack))
        mean, (pieces, threads) = stack.new_zeros(len(stack)), self._pieces(samples, stack.device)
        train_piece, workers = LocalSGD._train_together, [self] * max(threads, 1)
        if self.backend == "loop":
            train_piece, workers = LocalSGD._train_rows, self._workers(threads)

        def work(worker: int, rows: list[int]) -> None:
            where = torch.tensor(rows, device=stack.device)
            piece, own = stack.index_select(0, where), [samples[i] for i in rows]
            their = [jobs[i] for i in rows] if jobs else None
            mean[where] = train_piece(workers[worker], piece, own, batch, rates[where], their)
            stack[where] = piece

        if threads:
            side_by_side(work, pieces)
        else:
            for rows in pieces:
                work(0, rows)
        return mean

    def _workers(self, count: int) -> list[LocalSGD]:
        """This training and copies of it, each with a network of its own; the loss, which may hold a task's data, is shared."""
        while len(self._twins) < count:
            self._twins.append(copy.deepcopy(self, {id(self.loss): self.loss, id(self._twins): []}))
        return self._twins

    def _pieces(self, samples: Sequence[np.ndarray], device: torch.device) -> tuple[list[list[int]], int]:
        """Rows to be trained together, longest work first, and on how many workers; 0 for kernels of all cores."""
        order = sorted(range(len(samples)), key=lambda i: -len(samples[i]))
        if device.type != "cpu" or self.backend == "vmap" or not order:
            return [order] if order else [], 0
        if self.backend == "loop":
            return [[i] for i in order if len(samples[i])], torch.get_num_threads()
        B, threads = samples[0].shape[1], torch.get_num_threads()
        count = -(-len(order) * B * max(shape[-1] for shape in self.flat.shapes.values()) // PIECE)
        if count == 1 and len(order) * B * self.flat.P < threads * WORTH_A_THREAD:
            threads = 0
        else:
            count = min(-(-count // threads) * threads, len(order))
        return [order[i::count] for i in range(count)], threads

    def _train_rows(
        self,
        stack: Tensor,
        samples: Sequence[np.ndarray],
        batch: Batch,
        rates: Tensor,
        jobs: Sequence[Job] | None,
    ) -> Tensor:
        mean = stack.new_zeros(len(stack))
        for i, (own, rate) in enumerate(zip(samples, rates.tolist(), strict=True)):
            if not len(own):
                continue
            self.flat.load(stack[i])
            step = self.alone(rate, jobs[i] if jobs else None)
            for index in torch.from_numpy(own):
                mean[i] += step(*batch(index)) / len(own)
            stack[i] = self.flat.vector()
        return mean

    def alone(self, lr: float, job: Job | None) -> Callable[[Tensor, Tensor], Tensor]:
        """A client's step of ``flat.model`` on a batch, which returns the loss before it; asked for anew for each job."""
        model, parameters = self.flat.model, list(self.flat.model.parameters())

        def step(x: Tensor, y: Tensor) -> Tensor:
            loss = self.loss(model(x), y)
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                torch._foreach_add_(parameters, gradients, alpha=-lr)
            return loss.detach()

        return step

    def together(self, jobs: Sequence[Job] | None) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """A step in place of the first rows of a stack whose rows have these jobs; like :meth:`_matmul`."""
        return self._matmul if self.backend == "matmul" else self._vmap

    def _train_together(
        self,
        stack: Tensor,
        samples: Sequence[np.ndarray],
        batch: Batch,
        rates: Tensor,
        jobs: Sequence[Job] | None,
    ) -> Tensor:
        """All rows at once: ordered by their number of steps, so that those still at work are always the first ones.

        The work done is the sum of the steps.
        """
        steps = np.array([len(s) for s in samples], np.int64)
        order = np.argsort(-steps, kind="stable")
        active = (steps[:, None] > np.arange(steps.max(initial=0))).sum(0)  # rows at work, a step
        if not len(active):
            return stack.new_zeros(len(stack))
        rows = torch.from_numpy(order).to(stack.device)
        index = torch.from_numpy(by_step([samples[i] for i in order], active)).to(stack.device)
        work, rates = stack.index_select(0, rows), rates.index_select(0, rows)
        total, step = stack.new_zeros(len(steps)), self.together([jobs[i] for i in order] if jobs else None)
        for part in index.split(active.tolist()):
            m = len(part)
            x, y = batch(part.view(-1))
            total[:m] += step(work[:m], x.view(m, -1, *x.shape[1:]), y.view(m, -1), rates[:m])
        stack.index_copy_(0, rows, work)
        mean = total / torch.from_numpy(np.maximum(steps[order], 1)).to(total)
        return torch.empty_like(mean).index_copy_(0, rows, mean)

    def _matmul(self, stack: Tensor, x: Tensor, y: Tensor, lr: Tensor) -> Tensor:
        """One step of every row, in place; returns the losses before it, ``(m,)``."""
        return chain_step(self._chain, self.flat.views(stack), x, y, lr)

    def _vmap(self, stack: Tensor, x: Tensor, y: Tensor, lr: Tensor) -> Tensor:
        gradient, losses = self._gradients(stack, x, y)
        stack -= lr.view(-1, 1) * gradient
        return losses.detach()

    def _loss_at(self, vector: Tensor, x: Tensor, y: Tensor) -> Tensor:
        state = (self.flat.views(vector), dict(self.flat.model.named_buffers()))
        return self.loss(torch.func.functional_call(self.flat.model, state, (x,)), y)
