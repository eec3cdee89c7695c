"""What all decoupled methods share: cutting the task's network, the order of the batches, reports and evaluation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from workbench.decoupled import Border, Costs, LocalNetwork, auxiliary_heads, divide, module_costs
from workbench.decoupled.costs import evaluating
from workbench.method import Context, Progress, View
from workbench.methods.decoupled._params import LocalParams, SplitParams
from workbench.methods.decoupled._views import Span, module_views
from workbench.methods.supervised import (
    SupervisedTraining,
    count_batches,
    model_size,
    plain_optimizer,
    recalibrate_batchnorm,
    set_lr,
    test,
)
from workbench.task import SupervisedTask

if TYPE_CHECKING:
    from tracking.energy_model import PrecisionPlan


@dataclass
class Feed:
    """Fresh batches, in the order that every method of one seed sees them in."""

    order: torch.Generator
    augment: torch.Generator
    permutation: Tensor
    batches: int
    """Of an epoch."""
    epoch: int = 0
    batch: int = 0
    samples: int = 0

    @classmethod
    def of(cls, task: SupervisedTask, ctx: Context, size: int) -> Feed:
        """A feed from the first epoch on. The order is drawn on the CPU, so that all devices see the same batches."""
        empty = torch.empty(0, dtype=torch.int64, device=ctx.device)
        return cls(ctx.generator("order", cpu=True), ctx.generator("augment"), empty, count_batches(task.train_count, size))

    def next(self, task: SupervisedTask, size: int) -> tuple[Tensor, Tensor]:
        """The next batch of about ``size`` samples, augmented."""
        if self.batch == 0:
            self.permutation = torch.randperm(task.train_count, generator=self.order).to(self.permutation.device)
        x, y = task.batch(self.permutation[self.batch * size:(self.batch + 1) * size], self.augment)
        self.batch += 1
        if self.batch == self.batches:
            self.epoch, self.batch = self.epoch + 1, 0
        self.samples += len(y)
        return x, y

    @property
    def taken(self) -> int:
        """Batches so far."""
        return self.epoch * self.batches + self.batch


@dataclass
class DecoupledState:
    """What every decoupled training remembers; ``training`` holds modules and optimisers."""

    training: Any
    feed: Feed
    now: float = 0.0
    """Virtual time."""
    busy: float = 0.0
    """Virtual time worked, over all workers."""


class DecoupledMethod(SupervisedTraining):
    """Batch after batch through the cut network. A method says what it builds (``build``) and what a batch does (``train``)."""

    Params = SplitParams
    params: SplitParams
    time_line_note: ClassVar[str] = "The first batches of the run, all taken as full ones; the others go on alike."

    # --- what a method says -------------------------------------------------------------------------------

    def build(self, bodies: list[nn.Module], task: SupervisedTask, ctx: Context) -> DecoupledState:
        """The State, from the modules."""
        raise NotImplementedError

    def train(self, state: DecoupledState, x: Tensor, y: Tensor) -> Tensor:
        """Train on one batch and let the clock go on; the loss at the end of the network, detached."""
        raise NotImplementedError

    def network(self, state: DecoupledState) -> nn.Module:
        """What would be deployed."""
        return nn.Sequential(*state.training.bodies)

    # --- pieces -------------------------------------------------------------------------------------------

    def new_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return plain_optimizer(parameters, self.params)

    def cut(self, model: nn.Module, x: Tensor) -> list[nn.Module]:
        """The modules, at the given cuts or at those that balance their costs on inputs like ``x``."""
        return divide(model, self.params.modules, x, self.params.cuts)

    def borders(self, ctx: Context) -> list[Border]:
        """What single tensors cross between the modules."""
        return [Border(ctx.ledger, f"module {j}", f"module {j + 1}") for j in range(1, self.params.modules)]

    # --- the contract -------------------------------------------------------------------------------------

    def init(self, task: SupervisedTask, ctx: Context) -> DecoupledState:
        model, self.seed = task.build_model(ctx), ctx.seed
        self.sample, _ = task.batch(torch.arange(2))
        return self.build(self.cut(model, self.sample), task, ctx)

    def step(self, state: DecoupledState, task: SupervisedTask, ctx: Context) -> dict[str, float]:
        feed, total, seen = state.feed, torch.zeros((), device=ctx.device), 0
        for _ in range(min(self.params.report_every, feed.batches - feed.batch)):
            self.set_rates(state)
            x, y = feed.next(task, self.params.batch_size)
            total += self.train(state, x, y) * len(y)
            seen += len(y)
        return {task.train_loss: total.item() / seen, "train/epoch": feed.taken / feed.batches, "train/samples": feed.samples,
                "train/lr": self.rate(state), "clock/virtual_s": state.now, **self.report(state)}

    def set_rates(self, state: DecoupledState) -> None:
        for optimizer in state.training.optimizers:
            if optimizer and state.feed.batch == 0:
                set_lr(optimizer, self.lr_at(state.feed.epoch))

    def rate(self, state: DecoupledState) -> float:
        """Learning rate of the last batch."""
        return self.lr_at((state.feed.taken - 1) // state.feed.batches)

    def report(self, state: DecoupledState) -> dict[str, float]:
        waited = 1 - state.busy / (self.params.modules * state.now) if state.now else 0.0
        return {"clock/idle": min(max(waited, 0.0), 1.0)}

    def evaluate(self, state: DecoupledState, task: SupervisedTask, ctx: Context) -> dict[str, float]:
        network = self.network(state)
        return test(network, task, ctx) | self.size_and_recalibrated(network, task, ctx)

    def size_and_recalibrated(self, network: nn.Module, task: SupervisedTask, ctx: Context) -> dict[str, float]:
        """Size of the deployed network, and its accuracy at re-estimated batch-norm statistics where this is asked for."""
        p, metrics = self.params, model_size(network)
        if p.bn_batches:
            twin = copy.deepcopy(network)
            recalibrate_batchnorm(twin, task, p.batch_size, p.bn_batches, ctx)
            metrics["eval/accuracy_bn"] = test(twin, task, ctx)["eval/accuracy"]
        return metrics

    def modelled(self, state: DecoupledState, task: SupervisedTask) -> tuple[nn.Module, Any, PrecisionPlan] | None:
        """Each method says what a training sample costs in all its modules; ``None``: nothing is modelled."""
        return None

    def in_float32(self, network: nn.Module, task: SupervisedTask) -> tuple[nn.Module, Any, PrecisionPlan]:
        """What the energy model needs of ``network`` trained in float32 by the optimiser of the parameters."""
        from tracking.energy_model.plan import fp32

        p = self.params
        update = "adam" if p.base == "adam" else "momentum" if p.momentum else "sgd"
        return network, task.example(p.batch_size), fp32().with_updates(update)

    def spans(self, state: DecoupledState, task: SupervisedTask) -> list[Span]:
        """Who works when, in a stretch of the run that a person can look at."""
        return []

    def waits(self, state: DecoupledState) -> list[float]:
        """Share of the time so far in which each module waits; empty where nobody does, or before the first batch."""
        return []

    def views(self, state: DecoupledState, task: SupervisedTask) -> list[View]:
        """The time line of the modules, and how long each waits."""
        return module_views(self.spans(state, task), self.waits(state), self.time_line_note)

    def evaluation_due(self, state: DecoupledState) -> bool:
        return state.feed.batch == 0 and state.feed.epoch % self.params.eval_every == 0

    def progress(self, state: DecoupledState) -> Progress:
        return Progress(state.feed.taken, self.params.epochs * state.feed.batches)


class LocalMethod(DecoupledMethod):
    """A method in which modules have heads of their own."""

    Params = LocalParams
    params: LocalParams

    def local_network(self, bodies: list[nn.Module], ctx: Context) -> tuple[LocalNetwork, Costs]:
        """Modules with heads, whose weights come from a generator of their own, and what a step of each costs."""
        heads = auxiliary_heads(bodies, self.params.head, self.sample, ctx.generator("heads", cpu=True))
        return LocalNetwork(bodies, heads), module_costs(bodies, heads, self.sample)

    def network(self, state: DecoupledState) -> nn.Module:
        return state.training.network.deployed()

    def evaluate(self, state: DecoupledState, task: SupervisedTask, ctx: Context) -> dict[str, float]:
        return self.heads_accuracy(state.training.network, task, ctx) | self.size_and_recalibrated(self.network(state), task, ctx)

    @staticmethod
    def heads_accuracy(network: LocalNetwork, task: SupervisedTask, ctx: Context,
                       link: Callable[[int, Tensor], Tensor] | None = None) -> dict[str, float]:
        """Test figures of the last head, accuracy of every other, and of all together with weights 1, 2, 4, …"""
        tallies, together = [task.tally(ctx) for _ in range(len(network))], task.tally(ctx)
        with evaluating(network):
            for x, y in task.test_batches(500):
                ctx.poll()
                scores = network.outputs(x, link)
                for tally, score in zip(tallies, scores, strict=True):
                    tally.add(score, y)
                together.add(sum(2.0 ** (j + 1 - len(scores)) * s for j, s in enumerate(scores)), y)
        figures = tallies[-1].result()
        for j, tally in enumerate(tallies[:-1], 1):
            figures[f"eval/accuracy_module_{j}"] = tally.result()["eval/accuracy"]
        if len(tallies) > 1:
            figures["eval/accuracy_ensemble"] = together.result()["eval/accuracy"]
        return figures
