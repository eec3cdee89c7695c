"""Modules that do not wait for one another: turns, replay buffers, epochs of their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from workbench.decoupled import Channel, DecoupledTraining, EventLine, Line, RandomLine, ReplayBuffer, RoundRobin
from workbench.decoupled.buffer import Recency, pooled
from workbench.decoupled.line import link
from workbench.decoupled.messages import Message, size
from workbench.method import Context, Progress, derive_seed
from workbench.methods.decoupled._channels import exact_links, vq_figures
from workbench.methods.decoupled._decoupled import DecoupledState, Feed, LocalMethod
from workbench.methods.decoupled._params import LocalParams, Rule, WorkerParams
from workbench.methods.decoupled._traced import AllHeads
from workbench.methods.decoupled._views import SHOWN, Span, outputs, turns
from workbench.methods.supervised import set_lr
from workbench.params import Field
from workbench.task import SupervisedTask


class AsynchronousParams(WorkerParams, LocalParams):
    """Order of the turns, and replay buffers."""

    schedule: Literal["events", "random", "round_robin"] = Field(
        "events", description="who is next: each at its own pace with messages that take time; drawn, a slow module less often "
        "(the paper's simulation); or in turn")
    costs: Literal["equal", "macs"] = Field(
        "equal", description="time of a module's step, for events: the same for all, or by its multiply-accumulates, head included")
    buffer: int = Field(10, ge=1, le=10_000, description="batches that the replay buffer before each module but the first holds (M)")
    max_reads: int = Field(0, ge=0, le=10_000, description="how often a batch is read at most; then the module waits; 0 = no limit")
    recency: Recency = Field(
        "newest", description="which of the least used batches is read: the newest, or as in the official code, where the oldest of a "
        "full buffer counts as the newest")
    reset_momentum: bool = Field(
        False, description="a new optimiser at each change of the learning rate, as in the official buffer experiments")

    def rules(self) -> list[Rule]:
        events = self.schedule == "events"
        return [
            *super().rules(),
            ("latency", events or not self.latency, "0 where schedule is not 'events': messages are there at once"),
            ("bandwidth", events or not self.bandwidth, "0 where schedule is not 'events': messages are there at once"),
            ("costs", events or self.costs == "equal", "'equal' where schedule is not 'events'"),
            ("slow_module", self.schedule != "round_robin" or not self.slow_module, "0 with schedule = 'round_robin'"),
        ]


@dataclass
class AsynchronousState(DecoupledState):
    """Also whose turn it is and what is under way, and how far each module is."""

    line: Line = field(default_factory=lambda: Line(1, []))
    channels: list[Channel] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)
    """Of each module."""
    before: int = 0
    """Epochs that every module had done before the last report."""


class AsynchronousMethod(LocalMethod):
    """A module trains on the best batch that its buffer holds; it is done after ``epochs`` epochs of updates of its own.

    Modules that are done hand on their outputs, in evaluation mode and at the pace of their training, until all are.
    """

    Params = AsynchronousParams
    params: AsynchronousParams

    def links(self, task: SupervisedTask, network: nn.Module, ctx: Context) -> list[Channel]:
        """A channel for every border."""
        raise NotImplementedError

    def build(self, bodies: list[nn.Module], task: SupervisedTask, ctx: Context) -> AsynchronousState:
        p = self.params
        network, costs = self.local_network(bodies, ctx)
        self.shares = costs.local if p.costs == "macs" else (1 / p.modules,) * p.modules
        training = DecoupledTraining(network, self.new_optimizer, task.loss)
        return AsynchronousState(training, Feed.of(task, ctx, p.batch_size), line=self.line(ctx), channels=self.links(task, network, ctx),
                                 updates=[0] * p.modules)

    def line(self, ctx: Context) -> Line:
        """Who is when next."""
        p = self.params
        buffers = [ReplayBuffer(p.buffer, p.recency, p.max_reads) for _ in range(p.modules - 1)]
        paces = [p.pace(j) for j in range(p.modules)]
        if p.schedule == "round_robin":
            return RoundRobin(p.modules, buffers)
        if p.schedule == "random":
            return RandomLine(p.modules, buffers, paces, derive_seed(ctx.seed, "turns"))
        durations = [p.step_time * pace * share for pace, share in zip(paces, self.shares, strict=True)]
        return EventLine(durations, buffers, [link(p.latency, p.bandwidth) for _ in buffers], size)

    def step(self, state: AsynchronousState, task: SupervisedTask, ctx: Context) -> dict[str, float]:
        p, feed, target = self.params, state.feed, self.params.epochs * state.feed.batches
        state.training.network.train()
        state.before = self.epochs_done(state)
        losses: list[Tensor] = []

        def work(j: int, message: Message | None) -> Message | None:
            x, y = state.channels[j - 1].receive(message, ctx.device) if j else feed.next(task, p.batch_size)
            learns = state.updates[j] < target
            if learns:
                self.set_rate(state, j)
                loss, out = state.training.update(j, x, y)
                state.updates[j] += 1
                if j + 1 == p.modules:
                    losses.append(loss)
            else:
                out = state.training.forward(j, x)
            return state.channels[j].send(out, y, learns) if j + 1 < p.modules else None

        def arrived(j: int, message: Message) -> None:
            state.channels[j].arrive(message, [held[2] for held in state.line.buffers[j].items])

        stop = sum(state.updates) + p.report_every * p.modules
        while sum(state.updates) < min(stop, p.modules * target) and self.epochs_done(state) == state.before:
            state.line.turn(work, arrived)
        return self.reported(state, torch.stack(losses).mean().item() if losses else None, task)

    def set_rate(self, state: AsynchronousState, j: int) -> None:
        """The schedule of a module follows its own epochs."""
        epoch, into = divmod(state.updates[j], state.feed.batches)
        if into == 0:
            begin_epoch(state.training.optimizers[j], self.lr_at(epoch), self.params.reset_momentum)

    def reported(self, state: AsynchronousState, loss: float | None, task: SupervisedTask) -> dict[str, float]:
        p, line = self.params, state.line
        scale = 1.0 if p.schedule == "events" else p.step_time / p.modules
        state.now = line.now * scale
        found = {"train/epoch": sum(state.updates) / (p.modules * state.feed.batches), "train/samples": state.feed.samples,
                 "train/lr": state.training.optimizers[-1].param_groups[0]["lr"], "clock/virtual_s": state.now,
                 "memory/buffer_bytes": sum(b.nbytes for b in line.buffers)}
        found |= {f"train/{name}": value for name, value in pooled(line.buffers).items()} | vq_figures(state.channels)
        if isinstance(line, EventLine):
            found["clock/idle"] = sum(line.idle) / p.modules
        return found if loss is None else found | {task.train_loss: loss}

    def evaluate(self, state: AsynchronousState, task: SupervisedTask, ctx: Context) -> dict[str, float]:
        """With links as in training; beside it, with exact ones, where these differ."""
        network = state.training.network
        figures = self.heads_accuracy(network, task, ctx, lambda j, x: state.channels[j].through(x))
        return figures | exact_links(self, network, state.channels, task, ctx) | self.size_and_recalibrated(self.network(state), task, ctx)

    @staticmethod
    def epochs_done(state: AsynchronousState) -> int:
        """Epochs of updates that every module has done."""
        return min(state.updates) // state.feed.batches

    def evaluation_due(self, state: AsynchronousState) -> bool:
        every = self.params.eval_every
        return self.epochs_done(state) // every > state.before // every

    def progress(self, state: AsynchronousState) -> Progress:
        return Progress(sum(state.updates), self.params.modules * self.params.epochs * state.feed.batches)

    def modelled(self, state: AsynchronousState, task: SupervisedTask) -> tuple[nn.Module, Any, Any] | None:
        """All modules and heads in float32, where they go at one pace, so that each trains once on every sample the first one takes
        (in the random order: on average). Messages are not in it.

        ``None`` where paces differ: joules count per fresh sample, and how many updates of the others come to one of these, and how
        often a module that is done hands on, changes along the run.
        """
        p = self.params
        if p.slowdown > 1 or p.costs != "equal" or p.bandwidth:
            return None
        return self.in_float32(AllHeads(state.training.network, self.coded_links(state)), task)

    def spans(self, state: AsynchronousState, task: SupervisedTask) -> list[Span]:
        p, ctx = self.params, Context(self.sample.device, self.seed)  # with a ledger of its own: nothing is billed
        network, timed = state.training.network, p.schedule == "events" and bool(p.bandwidth)
        between = outputs(network.bodies, task, p.batch_size) if timed else []
        scale = 1.0 if p.schedule == "events" else p.step_time / p.modules
        return turns(self.line(ctx), "step with its head", self.links(task, network, ctx) if timed else [], between, SHOWN, scale)

    def waits(self, state: AsynchronousState) -> list[float]:
        """Where modules go at their own pace; in the other orders a turn is all there is."""
        return state.line.idle if isinstance(state.line, EventLine) else []

    def coded_links(self, state: AsynchronousState) -> list[nn.Module]:
        """What the energy model is shown of the borders."""
        return []


def begin_epoch(optimizer: torch.optim.Optimizer, rate: float, reset: bool) -> None:
    """Set the rate; with ``reset``, a change of it also empties the optimiser's memory."""
    changed = optimizer.param_groups[0]["lr"] != rate
    set_lr(optimizer, rate)
    if reset and changed:
        optimizer.state.clear()
