"""What the methods with one loss at the end share: modules on workers, which send activations on and gradients back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from workbench.decoupled import DelayedGradients, module_costs
from workbench.decoupled.line import link
from workbench.decoupled.messages import crossing_seconds
from workbench.method import Context
from workbench.methods.decoupled._decoupled import DecoupledMethod, DecoupledState, Feed
from workbench.methods.decoupled._params import WorkerParams
from workbench.methods.decoupled._traced import Replayed
from workbench.methods.decoupled._views import Span, outputs
from workbench.params import Field
from workbench.task import SupervisedTask

if TYPE_CHECKING:
    from tracking.energy_model import PrecisionPlan


class DelayedMethod(DecoupledMethod):
    """Backpropagation over K workers, at once or with gradients that come late."""

    Params = WorkerParams
    params: WorkerParams
    replay: bool = False

    def delay(self) -> int:
        """Steps that a gradient takes to the module before."""
        return 0

    def build(self, bodies: list[nn.Module], task: SupervisedTask, ctx: Context) -> DecoupledState:
        p, none = self.params, [nn.Identity()] * len(bodies)
        costs = module_costs(bodies, none, self.sample)
        self.forward = [p.step_time * p.pace(j) * c for j, c in enumerate(costs.forward)]
        self.backward = [p.step_time * p.pace(j) * c for j, c in enumerate(costs.backward)]
        self.link, self.between = link(p.latency, p.bandwidth), self.borders(ctx)
        training = DelayedGradients(
            bodies, self.new_optimizer, delay=self.delay(), replay=self.replay, loss=task.loss, borders=self.between)
        return DecoupledState(training, Feed.of(task, ctx, p.batch_size))

    def train(self, state: DecoupledState, x: Tensor, y: Tensor) -> Tensor:
        loss = state.training.step(x, y)
        spent, worked = self.spent(state.training)
        state.now, state.busy = state.now + spent, state.busy + worked
        return loss

    def spent(self, training: DelayedGradients) -> tuple[float, float]:
        """Virtual time of the step just made, and work of all workers in it.

        The forward pass goes through the modules one after the other. So does backpropagation's backward pass; those of the
        other methods run at once, while gradients are under way.
        """
        carried = [border.sizes() for border in self.between]
        up, down = (sum(self.link.seconds(sizes.get(way, 0), "up") for sizes in carried if way in sizes) for way in ("up", "down"))
        again = [f if self.replay and training.lag(k) else 0.0 for k, f in enumerate(self.forward)]
        second = [a + b for a, b in zip(again, self.backward, strict=True)]
        after = max(second) if training.delay else sum(second) + down
        return sum(self.forward) + up + after, sum(self.forward) + sum(second)

    def spans(self, state: DecoupledState, task: SupervisedTask) -> list[Span]:
        """Three batches, from the first one on for which every module has a gradient."""
        training, between, spans = state.training, outputs(state.training.bodies, task, self.params.batch_size), []
        up, down = ([*crossing_seconds(self.link, between, way), 0.0] for way in ("up", "down"))
        again = [f if self.replay and training.lag(k) else 0.0 for k, f in enumerate(self.forward)]
        after = [a + b for a, b in zip(again, self.backward, strict=True)]
        last = max(after) if training.delay else sum(after) + sum(down)
        begin = training.lag(0) * (sum(self.forward) + sum(up) + last)
        for _ in range(3):
            for k, f in enumerate(self.forward):
                spans.append(Span("forward", k, begin, begin + f))
                begin += f + up[k]
            for k in reversed(range(len(after))):
                if again[k]:
                    spans.append(Span("forward once more", k, begin, begin + again[k]))
                spans.append(Span("backward", k, begin + again[k], begin + after[k]))
                begin += 0.0 if training.delay else after[k] + down[k - 1]
            begin += last if training.delay else 0.0
        return spans

    def waits(self, state: DecoupledState) -> list[float]:
        lags = [self.replay and state.training.lag(k) for k in range(self.params.modules)]
        work = [(2 if lag else 1) * f + b for lag, f, b in zip(lags, self.forward, self.backward, strict=True)]
        return [1 - state.feed.taken * w / state.now for w in work] if state.now else []

    def modelled(self, state: DecoupledState, task: SupervisedTask) -> tuple[nn.Module, Any, PrecisionPlan] | None:
        """The network's own training in float32. DDG keeps what its backward passes need; features replay goes forward once more, which
        is in it.
        """
        lagging = sum(state.training.lag(k) > 0 for k in range(self.params.modules)) if self.replay else 0
        return self.in_float32(Replayed(state.training.bodies, lagging) if lagging else self.network(state), task)


class DelayParams(WorkerParams):
    """Gradients that come late."""

    delay: int = Field(1, ge=0, le=100, description="steps that a gradient takes from a module to the one before; 0 = backpropagation")


class LateMethod(DelayedMethod):
    """Backward passes of all modules at once."""

    Params = DelayParams
    params: DelayParams

    def delay(self) -> int:
        return self.params.delay
