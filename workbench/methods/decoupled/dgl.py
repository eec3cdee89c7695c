"""DGL: decoupled greedy learning in step; every module trains on what the one before puts out, while that one trains.

Belilovsky, Eickenberg & Oyallon, ICML 2020, arXiv:1901.08164, Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from workbench.decoupled import Channel, DecoupledTraining, Tandem
from workbench.decoupled.line import link
from workbench.decoupled.messages import size
from workbench.method import Context
from workbench.methods.decoupled._channels import Encoding, channels, exact_links
from workbench.methods.decoupled._decoupled import DecoupledState, Feed, LocalMethod
from workbench.methods.decoupled._params import LocalParams, WorkerParams
from workbench.methods.decoupled._traced import AllHeads
from workbench.methods.decoupled._views import SHOWN, Span, messages, outputs
from workbench.params import Field
from workbench.task import SupervisedTask


@dataclass
class DGLState(DecoupledState):
    """Also the modules' clock and their links."""

    clock: Tandem = field(default_factory=lambda: Tandem(1))
    channels: list[Channel] = field(default_factory=list)


class DGLTraining(LocalMethod):
    """All modules train at once, each by the loss of its own head; activations go on, and nothing ever comes back."""

    id = "dgl"
    title = "DGL"
    family = "decoupled"
    paper = "arXiv:1901.08164"
    example = {"task": "digits/mlp", "params": {"epochs": 5, "modules": 3, "head": "linear"}}
    published = {"source": "the authors' comparison with DNI on CIFAR-10, by their code", "params": {
        "epochs": 1500, "batch_size": 256, "base": "adam", "lr": 3e-5, "head": "conv5"}}

    class Params(WorkerParams, LocalParams):
        codec: Encoding = Field("dense_fp32", description="encoding of the activations that modules send")

    params: Params

    def build(self, bodies: list[nn.Module], task: SupervisedTask, ctx: Context) -> DGLState:
        p = self.params
        network, costs = self.local_network(bodies, ctx)
        self.durations = [p.step_time * p.pace(j) * c for j, c in enumerate(costs.local)]
        self.link = link(p.latency, p.bandwidth)
        training = DecoupledTraining(network, self.new_optimizer, task.loss)
        return DGLState(training, Feed.of(task, ctx, p.batch_size), clock=Tandem(p.modules), channels=channels(p, task, ctx))

    def train(self, state: DGLState, x: Tensor, y: Tensor) -> Tensor:
        delays: list[float] = []

        def hand_over(j: int, out: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            message = state.channels[j].send(out, y)
            delays.append(self.link.seconds(size(message), "up"))
            state.channels[j].arrive(message)
            return state.channels[j].receive(message, out.device, last=True)

        losses = state.training.step(x, y, hand_over)
        state.clock.batch(self.durations, delays)
        state.now = state.clock.now
        return losses[-1]

    def report(self, state: DGLState) -> dict[str, float]:
        return {"clock/idle": state.clock.idle}

    def evaluate(self, state: DGLState, task: SupervisedTask, ctx: Context) -> dict[str, float]:
        network = state.training.network
        figures = self.heads_accuracy(network, task, ctx, lambda j, x: state.channels[j].through(x))
        return figures | exact_links(self, network, state.channels, task, ctx) | self.size_and_recalibrated(self.network(state), task, ctx)

    def spans(self, state: DGLState, task: SupervisedTask) -> list[Span]:
        p, clock = self.params, Tandem(self.params.modules)
        fresh = channels(p, task, Context(self.sample.device, self.seed))  # with a ledger of their own: nothing is billed
        sent = messages(fresh, outputs(state.training.network.bodies, task, p.batch_size))
        delays = [self.link.seconds(size(message), "up") for message in sent]
        return [Span("step with its head", j, *times) for _ in range(SHOWN) for j, times in enumerate(clock.batch(self.durations, delays))]

    def waits(self, state: DGLState) -> list[float]:
        return [1 - state.feed.taken * d / state.now for d in self.durations] if state.now else []

    def modelled(self, state: DGLState, task: SupervisedTask) -> tuple[nn.Module, Any, Any] | None:
        """All modules and heads in float32; messages are not in it."""
        return self.in_float32(AllHeads(state.training.network), task)
