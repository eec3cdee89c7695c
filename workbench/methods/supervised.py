"""Training a network on labelled samples: the loop that supervised methods share.

A method that trains with its own optimiser overrides :meth:`SupervisedTraining.optimizer`; one that changes layers overrides
``prepare``; one with schedules beyond the learning rate overrides ``on_epoch``; one whose deployed weights
differ from the trained ones overrides ``deploy``.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from tracking.codecs import Dense, Levels
from tracking.metrics import METRICS
from workbench.method import Context, Method, Progress
from workbench.params import Field, Params
from workbench.task import SupervisedTask

if TYPE_CHECKING:
    from tracking.energy_model import PrecisionPlan


class SupervisedParams(Params):
    """What every supervised training has."""

    epochs: int = Field(10, ge=1, le=10_000, description="passes over the training set")
    batch_size: int = Field(100, ge=2, le=65_536, description="training samples a step")
    lr: float = Field(0.01, gt=0, le=100, description="learning rate at the start")
    base: Literal["adam", "sgd"] = Field("adam", description="update rule: Adam, or SGD with momentum")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD; Adam has its own")
    weight_decay: float = Field(0.0, ge=0, le=1, description="L2 penalty, added to the gradient")
    lr_schedule: Literal["steps", "cosine"] = Field(
        "steps", description="learning rate: lr_decay at the decay epochs, or half a cosine down to 0 over the epochs")
    lr_decay: float = Field(0.5, gt=0, le=1, description="factor on the learning rate at each decay epoch")
    lr_decay_epochs: tuple[int, ...] = Field((), description="epochs, counted from 0, at whose start the rate decays")
    bn_batches: int = Field(
        0, ge=0, le=10_000,
        description="training batches that re-estimate batch-norm statistics of the deployed model; 0 = not reported")
    eval_every: int = Field(1, ge=1, description="epochs between evaluations")
    report_every: int = Field(20, ge=1, description="batches between reports; Pause and Stop act between reports")


@dataclass
class SupervisedState:
    """All that a supervised training remembers."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    order: torch.Generator
    augment: torch.Generator
    permutation: Tensor
    batches_per_epoch: int
    epoch: int = 0
    batch: int = 0
    samples: int = 0


class SupervisedTraining(Method):
    """Mini-batch training with evaluation of the deployed model at epoch ends."""

    Params = SupervisedParams
    params: SupervisedParams

    # --- what a method overrides ------------------------------------------------------------------------

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Change the fresh model's layers before training."""
        return model

    def optimizer(self, model: nn.Module, ctx: Context) -> torch.optim.Optimizer:
        """The optimiser, the method's heart."""
        return plain_optimizer(model.parameters(), self.params)

    def on_epoch(self, state: SupervisedState) -> None:
        """Schedules, at the start of epoch ``state.epoch``."""

    def report(self, state: SupervisedState) -> dict[str, float]:
        """Further metrics of a step."""
        return {}

    def deploy(self, state: SupervisedState) -> nn.Module | None:
        """A copy of the model as it would be deployed; ``None`` when it is the trained model itself."""
        return None

    def precision(self, model: nn.Module) -> PrecisionPlan | None:
        """Number formats of every operand in training, for the energy model; ``None``: no energy is modelled."""
        return None

    # --- the loop ---------------------------------------------------------------------------------------

    def modelled(self, state: SupervisedState, task: SupervisedTask) -> tuple[nn.Module, Any, PrecisionPlan] | None:
        plan = self.precision(state.model)
        if plan is None:
            return None
        update = "adam" if self.params.base == "adam" else "momentum" if self.params.momentum else "sgd"
        return state.model, task.example(self.params.batch_size), plan.with_updates(update)

    def init(self, task: SupervisedTask, ctx: Context) -> SupervisedState:
        model = self.prepare(task.build_model(ctx), ctx)
        return SupervisedState(
            model=model, optimizer=self.optimizer(model, ctx),
            # the order is drawn on the CPU, so that both devices see the same batches
            order=ctx.generator("order", cpu=True), augment=ctx.generator("augment"),
            permutation=torch.empty(0, dtype=torch.int64, device=ctx.device),
            batches_per_epoch=count_batches(task.train_count, self.params.batch_size),
        )

    def step(self, state: SupervisedState, task: SupervisedTask, ctx: Context) -> dict[str, float]:
        size, batches = self.params.batch_size, state.batches_per_epoch
        if state.batch == 0:
            state.permutation = torch.randperm(task.train_count, generator=state.order).to(ctx.device)
            set_lr(state.optimizer, self.lr_at(state.epoch))
            self.on_epoch(state)
        stop = min(state.batch + self.params.report_every, batches)
        total, seen = torch.zeros((), device=ctx.device), 0
        state.model.train()
        for b in range(state.batch, stop):
            x, y = task.batch(state.permutation[b * size:(b + 1) * size], state.augment)
            loss = task.loss(state.model(x), y)
            state.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            state.optimizer.step()
            total += loss.detach() * len(y)
            seen += len(y)
        state.samples += seen
        epoch = state.epoch + stop / batches
        state.epoch, state.batch = (state.epoch + 1, 0) if stop == batches else (state.epoch, stop)
        return {task.train_loss: total.item() / seen, "train/epoch": epoch, "train/samples": state.samples,
                "train/lr": state.optimizer.param_groups[0]["lr"], **self.report(state)}

    def evaluate(self, state: SupervisedState, task: SupervisedTask, ctx: Context) -> dict[str, float]:
        trained = test(state.model, task, ctx)
        deployed = self.deploy(state)
        if deployed is None:
            return {**trained, **model_size(state.model)}
        latent = {f"{name}_latent": value for name, value in trained.items()}
        # declared for loss and accuracy alone: the others are of the deployed network only
        return {name: value for name, value in latent.items() if name in METRICS} | self.quality(deployed, task, ctx)

    def quality(self, deployed: nn.Module, task: SupervisedTask, ctx: Context) -> dict[str, float]:
        """Test figures and size of a deployed model, which this may change; then those at re-estimated batch-norm statistics."""
        metrics = test(deployed, task, ctx) | model_size(deployed)
        if self.params.bn_batches:
            recalibrate_batchnorm(deployed, task, self.params.batch_size, self.params.bn_batches, ctx)
            again = test(deployed, task, ctx)
            if "eval/accuracy" in again:
                metrics["eval/accuracy_bn"] = again["eval/accuracy"]
        return metrics

    def evaluation_due(self, state: SupervisedState) -> bool:
        return state.batch == 0 and state.epoch % self.params.eval_every == 0

    def progress(self, state: SupervisedState) -> Progress:
        return Progress(state.epoch * state.batches_per_epoch + state.batch, self.params.epochs * state.batches_per_epoch)

    def lr_at(self, epoch: int) -> float:
        """Learning rate of an epoch counted from 0."""
        return self.params.lr * self.lr_factor(epoch)

    def lr_factor(self, epoch: int) -> float:
        """What the schedule makes of a rate in an epoch: a cosine, or decayed once for each decay epoch that has begun."""
        p = self.params
        if p.lr_schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * epoch / p.epochs))
        return p.lr_decay ** sum(epoch >= e for e in p.lr_decay_epochs)


# --- pieces usable on their own ---------------------------------------------------------------------------


def count_batches(samples: int, size: int) -> int:
    """Batches of an epoch. A last batch of a single sample is left out: batch norm cannot normalise it."""
    return max(samples // size + (samples % size > 1), 1)


def plain_optimizer(parameters: Any, p: SupervisedParams) -> torch.optim.Optimizer:
    """Adam or SGD from torch, as the parameters say."""
    if p.base == "adam":
        return torch.optim.Adam(parameters, lr=p.lr, weight_decay=p.weight_decay)
    return torch.optim.SGD(parameters, lr=p.lr, momentum=p.momentum, weight_decay=p.weight_decay)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


@torch.no_grad()
def test(model: nn.Module, task: SupervisedTask, ctx: Context, batch: int = 500) -> dict[str, float]:  # noqa: PT028
    """Test figures of ``model``, those that the task names; its mode is put back afterwards."""
    was_training = model.training
    model.eval()
    tally = task.tally(ctx)
    try:
        for x, y in task.test_batches(batch):
            ctx.poll()
            tally.add(model(x), y)
    finally:
        model.train(was_training)
    return tally.result()


@torch.no_grad()
def recalibrate_batchnorm(model: nn.Module, task: SupervisedTask, batch: int, batches: int, ctx: Context) -> None:
    """Re-estimate batch-norm running statistics in place as the plain average over training batches."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # cumulative average
    model.train()
    order = torch.randperm(task.train_count, generator=ctx.generator("bn", cpu=True)).to(ctx.device)
    for b in range(min(batches, count_batches(len(order), batch))):
        ctx.poll()
        x, _ = task.batch(order[b * batch:(b + 1) * batch], None)
        model(x)
    model.eval()


def model_size(model: nn.Module) -> dict[str, float]:
    """Encode every parameter and floating-point buffer as it would be shipped: the shorter of packed levels and float32."""
    tensors = [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]
    total = sum(encoded_bytes(t) for t in tensors)
    return {"memory/model_bytes": total, "memory/bits_per_weight": 8 * total / sum(p.numel() for p in model.parameters())}


def encoded_bytes(tensor: Tensor) -> int:
    """Length of the shorter of the two exact payloads, packed levels and dense float32."""
    dense, packed = Dense(), Levels()
    # a short look spares the sorting of a large tensor that is plainly not quantised
    if torch.unique(tensor.detach().reshape(-1)[:1024]).numel() > packed.max_levels:
        return len(dense.encode(tensor))
    try:
        return min(len(packed.encode(tensor)), len(dense.encode(tensor)))
    except ValueError:
        return len(dense.encode(tensor))


def copy_with(model: nn.Module, values: dict[nn.Parameter, Tensor]) -> nn.Module:
    """A deep copy of ``model`` in which the given parameters take other values."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            if ours in values:
                theirs.copy_(values[ours])
    return twin
