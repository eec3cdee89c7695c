"""Exhaustive search over all binary networks of a small architecture: the optimum that training can hope for.

Used for the two-moons network of 9 weights in Leconte, Schechtman & Moulines, AISTATS 2023, arXiv:2211.03741.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from tracking.errors import UserError
from workbench.method import Context, Method, Progress
from workbench.methods.supervised import model_size, test
from workbench.params import Field, Params
from workbench.task import SupervisedTask

MAX_WEIGHTS = 20


class SplitNorm(nn.Module):
    """Batch norm of the first ``count`` rows of its input in training mode, and of the others with their statistics.

    So one pass over training samples followed by test samples gives the outputs of a training batch of all, and test
    outputs as with running statistics from it. Free of state, so it can be mapped over networks.

    Args:
        norm: the layer whose ``eps``, scale and shift are taken.
        count: number of leading rows (training samples).
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm, count: int) -> None:
        super().__init__()
        self.eps, self.weight, self.bias, self.count = norm.eps, norm.weight, norm.bias, count

    def forward(self, x: Tensor) -> Tensor:
        dims, shape = [d for d in range(x.dim()) if d != 1], [-1 if d == 1 else 1 for d in range(x.dim())]
        first, rest = x[:self.count], x[self.count:]
        # as in torch: biased variance for the batch itself, unbiased in the running statistics
        var, mean = torch.var_mean(first, dims, keepdim=True)
        n = first.numel() // x.shape[1]
        y = torch.cat([(first - mean) * torch.rsqrt(var * (n - 1) / n + self.eps), (rest - mean) * torch.rsqrt(var + self.eps)])
        return y if self.weight is None else y * self.weight.view(shape) + self.bias.view(shape)


def configuration(index: Tensor, size: int) -> Tensor:
    """Signs of configurations: bit ``i`` of ``index`` (any shape) set means weight ``i`` is +1; ``(*index.shape, size)``."""
    bits = (index[..., None] >> torch.arange(size, device=index.device)) & 1
    return 2.0 * bits - 1


def unflatten(w: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cut a vector into named tensors of the shapes of ``like``, in order."""
    parts = w.split([p.numel() for p in like.values()])
    return {name: part.view(p.shape) for (name, p), part in zip(like.items(), parts, strict=True)}


def losses_of(
    model: nn.Module, x: Tensor, train_y: Tensor, test_y: Tensor, loss: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """A function from weight vectors ``(k, d)`` to training and test losses ``(k,), (k,)`` of the ``k`` networks.

    ``x`` holds the training inputs, then the test inputs; batch norms use the statistics of the former.
    """
    split = len(train_y)
    net = copy.deepcopy(model).eval()
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, SplitNorm(child, split))
    like = {name: p.detach() for name, p in model.named_parameters()}

    def one(w: Tensor) -> tuple[Tensor, Tensor]:
        outputs = functional_call(net, unflatten(w, like), (x,))
        return loss(outputs[:split], train_y), loss(outputs[split:], test_y)

    return vmap(one)


# --- the method -------------------------------------------------------------------------------------------


class ExhaustiveParams(Params):
    """What is searched for, and how many networks at a time."""

    select: Literal["test", "train"] = Field(
        "test", description="loss by which the best network is chosen (the paper's search: test loss)")
    slice_size: int = Field(64, ge=1, le=65_536, description="configurations tried at a time")


@dataclass
class ExhaustiveState:
    """The search so far."""

    model: nn.Module
    tried: int
    total: int
    best_loss: float
    best: int


class Exhaustive(Method):
    """Tries every sign configuration of a network of at most 20 weights and keeps the best."""

    id = "exhaustive"
    title = "Exhaustive search"
    family = "lowbit"
    paper = "arXiv:2211.03741"
    kinds = ("classification",)
    example = {"task": "two_moons", "params": {}}

    Params = ExhaustiveParams
    params: ExhaustiveParams

    @classmethod
    def refuses(cls, task: SupervisedTask, params: ExhaustiveParams) -> str | None:
        if reason := super().refuses(task, params):
            return reason
        try:
            model = task.build_model(Context(torch.device("cpu"), seed=0))
        except AttributeError:
            return None  # the network depends on the data, which are not there yet: init() looks again
        return too_large(task, model)

    def init(self, task: SupervisedTask, ctx: Context) -> ExhaustiveState:
        model = task.build_model(ctx)
        if reason := too_large(task, model):
            raise UserError(reason)
        size = sum(p.numel() for p in model.parameters())
        return ExhaustiveState(model=model, tried=0, total=2**size, best_loss=float("inf"), best=0)

    def step(self, state: ExhaustiveState, task: SupervisedTask, ctx: Context) -> dict[str, float]:
        stop = min(state.tried + self.params.slice_size, state.total)
        index = torch.arange(state.tried, stop, device=ctx.device)
        with torch.no_grad():
            train, held_out = self.losses(state, task)(configuration(index, state.total.bit_length() - 1))
        chosen = held_out if self.params.select == "test" else train
        low, at = chosen.min(0)
        if low.item() < state.best_loss:
            state.best_loss, state.best = low.item(), state.tried + at.item()
        state.tried = stop
        return {"train/candidates": stop, "train/loss": train.mean().item()}

    def losses(self, state: ExhaustiveState, task: SupervisedTask) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Losses over the whole training and test set, see :func:`losses_of`."""
        x, y = training_set(task)
        test_x, test_y = task.test_batch(0, len(task.test_y))
        return losses_of(state.model, torch.cat([x, test_x]), y, test_y, task.loss)

    def evaluate(self, state: ExhaustiveState, task: SupervisedTask, ctx: Context) -> dict[str, float]:
        best = deployed(state, task)
        return {**test(best, task, ctx), **model_size(best)}

    def progress(self, state: ExhaustiveState) -> Progress:
        return Progress(state.tried, state.total)


def too_large(task: SupervisedTask, model: nn.Module) -> str | None:
    """Why the networks of ``task`` cannot all be tried; ``None`` when they can."""
    size = sum(p.numel() for p in model.parameters())
    if size <= MAX_WEIGHTS:
        return None
    return (f"Exhaustive search tries all 2^n binary networks, for n up to {MAX_WEIGHTS} weights; the network of {task.id!r} "
            f"has {size:,}. Use the task 'two_moons'.")


def training_set(task: SupervisedTask) -> tuple[Tensor, Tensor]:
    """All training samples as one batch, not augmented."""
    return task.batch(torch.arange(len(task.train_y), device=task.train_y.device), None)


@torch.no_grad()
def deployed(state: ExhaustiveState, task: SupervisedTask) -> nn.Module:
    """The best network so far, its batch-norm statistics those of the training set."""
    best = copy.deepcopy(state.model)
    like = dict(best.named_parameters())
    signs = configuration(torch.tensor(state.best, device=task.train_y.device), state.total.bit_length() - 1)
    for name, value in unflatten(signs, like).items():
        like[name].copy_(value)
    for m in best.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.reset_running_stats()
            m.momentum = None
    best.train()(training_set(task)[0])
    return best.eval()
