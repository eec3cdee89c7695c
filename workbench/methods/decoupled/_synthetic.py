"""What DNI and cDNI share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workbench.decoupled import Synthesiser, SyntheticGradients, Tandem, module_costs
from workbench.decoupled.costs import evaluating, multiply_accumulates
from workbench.decoupled.line import link
from workbench.decoupled.messages import crossing_seconds
from workbench.method import Context
from workbench.methods.decoupled._decoupled import DecoupledMethod, DecoupledState, Feed
from workbench.methods.decoupled._params import WorkerParams
from workbench.methods.decoupled._traced import WithSynthesisers
from workbench.methods.decoupled._views import SHOWN, Span, outputs
from workbench.methods.supervised import set_lr
from workbench.params import Field
from workbench.task import SupervisedTask

if TYPE_CHECKING:
    from tracking.energy_model import PrecisionPlan


@dataclass
class SyntheticState(DecoupledState):
    """Also the modules' clock."""

    clock: Tandem = field(default_factory=lambda: Tandem(1))


class SyntheticParams(WorkerParams):
    """Rate of the synthesisers."""

    synthesiser_lr: float = Field(
        0.0, ge=0, le=100, description="learning rate of the synthesisers at the start, of the modules' schedule; 0 = that of the modules")


class SyntheticMethod(DecoupledMethod):
    """Modules in step, trained by synthetic gradients. Gradients that synthesisers learn from hold nobody up."""

    Params = SyntheticParams
    params: SyntheticParams
    context: bool = False
    """Whether synthesisers see the labels."""

    def build(self, bodies: list[nn.Module], task: SupervisedTask, ctx: Context) -> SyntheticState:
        p, x, generator = self.params, self.sample, ctx.generator("synthesisers", cpu=True)
        costs = module_costs(bodies, [nn.Identity()] * len(bodies), x)
        whole, extra, synthesisers = max(sum(costs.primary), 1), [], []
        for body in bodies[:-1]:
            with evaluating(body):
                x = body(x)
            synthesisers.append(Synthesiser(x.shape[1:], task.num_classes * self.context, generator).to(x.device))
            extra.append(multiply_accumulates(synthesisers[-1], x, torch.zeros(len(x), dtype=torch.int64, device=x.device))[0] / whole)
        self.durations = [p.step_time * p.pace(j) * (f + b + s) for j, (f, b, s) in
                          enumerate(zip(costs.forward, costs.backward, [*extra, 0.0], strict=True))]
        self.link, self.between = link(p.latency, p.bandwidth), self.borders(ctx)
        training = SyntheticGradients(bodies, synthesisers, self.new_optimizer, loss=task.loss, borders=self.between)
        return SyntheticState(training, Feed.of(task, ctx, p.batch_size), clock=Tandem(p.modules))

    def set_rates(self, state: SyntheticState) -> None:
        super().set_rates(state)
        rate = (self.params.synthesiser_lr or self.params.lr) * self.lr_factor(state.feed.epoch)
        for optimizer in state.training.synthesiser_optimizers:
            set_lr(optimizer, rate)

    def train(self, state: SyntheticState, x: Tensor, y: Tensor) -> Tensor:
        loss = state.training.step(x, y)
        delays = [self.link.seconds(border.sizes()["up"], "up") for border in self.between]
        state.clock.batch(self.durations, delays)
        state.now = state.clock.now
        return loss

    def report(self, state: SyntheticState) -> dict[str, float]:
        error = state.training.relative_error()
        return {"clock/idle": state.clock.idle} | ({} if error is None else {"train/synthetic_error": error})

    def spans(self, state: SyntheticState, task: SupervisedTask) -> list[Span]:
        delays = crossing_seconds(self.link, outputs(state.training.bodies, task, self.params.batch_size), "up")
        clock = Tandem(self.params.modules)
        return [Span("forward, backward and synthesiser", j, *times) for _ in range(SHOWN)
                for j, times in enumerate(clock.batch(self.durations, delays))]

    def waits(self, state: SyntheticState) -> list[float]:
        return [1 - state.feed.taken * d / state.now for d in self.durations] if state.now else []

    def modelled(self, state: SyntheticState, task: SupervisedTask) -> tuple[nn.Module, Any, PrecisionPlan] | None:
        """Modules and synthesisers in float32."""
        return self.in_float32(WithSynthesisers(state.training.bodies, state.training.synthesisers), task)
