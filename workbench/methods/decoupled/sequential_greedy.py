"""Sequential greedy learning: one module after the other, each on the finished ones before it.

Belilovsky, Eickenberg & Oyallon, "Greedy layerwise learning can scale to ImageNet", ICML 2019, arXiv:1812.11446.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workbench.decoupled import DecoupledTraining, LocalNetwork
from workbench.method import Context, Progress
from workbench.methods.decoupled._decoupled import DecoupledState, Feed, LocalMethod
from workbench.methods.decoupled._params import LocalParams
from workbench.methods.decoupled._traced import StageByStage
from workbench.methods.decoupled._views import Span
from workbench.methods.supervised import set_lr
from workbench.params import Field
from workbench.task import SupervisedTask

if TYPE_CHECKING:
    from tracking.energy_model import PrecisionPlan


@dataclass
class GreedyState(DecoupledState):
    """Also which module is being trained."""

    stage: int = 0


class SequentialGreedy(LocalMethod):
    """Trains module 1 with its head, freezes it, trains module 2 on what it puts out, and so on, on one worker."""

    id = "sequential_greedy"
    title = "Sequential greedy"
    family = "decoupled"
    paper = "arXiv:1812.11446"
    example = {"task": "digits/mlp", "params": {"epochs": 3, "modules": 2, "head": "linear"}}
    published = {"source": "the comparison with DGL on CIFAR-10 (arXiv:2106.06401), by its authors' code", "params": {
        "epochs": 50, "batch_size": 128, "base": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "lr_decay": 0.2,
        "lr_decay_epochs": [15, 30, 45]}}
    time_line_note = "The whole run, on one worker."

    class Params(LocalParams):
        epochs: int = Field(10, ge=1, le=10_000, description="passes over the training set for each module")

    params: Params

    def build(self, bodies: list[nn.Module], task: SupervisedTask, ctx: Context) -> GreedyState:
        network, costs = self.local_network(bodies, ctx)
        # the finished modules run forward only
        self.step_times = [self.params.step_time * (sum(costs.forward[:j]) + local) for j, local in enumerate(costs.local)]
        return GreedyState(DecoupledTraining(network, self.new_optimizer, task.loss), Feed.of(task, ctx, self.params.batch_size))

    def set_rates(self, state: GreedyState) -> None:
        epoch, feed = self.params.epochs, state.feed
        state.stage = feed.epoch // epoch
        if feed.batch == 0:
            set_lr(state.training.optimizers[state.stage], self.lr_at(feed.epoch % epoch))

    def rate(self, state: GreedyState) -> float:
        return state.training.optimizers[state.stage].param_groups[0]["lr"]

    def train(self, state: GreedyState, x: Tensor, y: Tensor) -> Tensor:
        network = state.training.network.train()
        with torch.no_grad():
            for body in network.bodies[:state.stage]:
                x = body.eval()(x)
        state.now += self.step_times[state.stage]
        return state.training.update(state.stage, x, y)[0]

    def report(self, state: GreedyState) -> dict[str, float]:
        return {}  # the one worker never waits

    def network(self, state: GreedyState) -> nn.Module:
        return state.training.network.deployed(state.stage + 1)

    def spans(self, state: GreedyState, task: SupervisedTask) -> list[Span]:
        spans, begin = [], 0.0
        for stage, duration in enumerate(self.step_times):
            end = begin + duration * self.params.epochs * state.feed.batches
            spans += [Span("forward only, finished", j, begin, end) for j in range(stage)] + [Span("training", stage, begin, end)]
            begin = end
        return spans

    def modelled(self, state: GreedyState, task: SupervisedTask) -> tuple[nn.Module, Any, PrecisionPlan] | None:
        """The mean over all stages, in float32: right at the end of the run, while early stages cost less and the last one most."""
        network, _, plan = self.in_float32(StageByStage(state.training.network), task)
        return network, task.example(self.params.modules * self.params.batch_size), plan

    def evaluate(self, state: GreedyState, task: SupervisedTask, ctx: Context) -> dict[str, float]:
        """Of the modules trained so far: what comes behind is not there yet."""
        whole, there = state.training.network, state.stage + 1
        trained = LocalNetwork(whole.bodies[:there], whole.heads[:there])
        return self.heads_accuracy(trained, task, ctx) | self.size_and_recalibrated(self.network(state), task, ctx)

    def progress(self, state: GreedyState) -> Progress:
        return Progress(state.feed.taken, self.params.modules * self.params.epochs * state.feed.batches)
