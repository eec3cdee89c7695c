"""Descent on a smooth problem from a corner of the cube, with the theorem's quantities measured on the way.

Points have the shape ``(r, d)``: ``r`` trajectories that know nothing of each other go in one pass. A run of the bench
is one of them, a study takes many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.datasets._finite_sums import FiniteSum
from workbench.datasets.boolean_problems import BooleanProblem
from workbench.method import Context, Method, Progress, View
from workbench.params import Field, Params

Memory = dict[str, Tensor]
Draw = Callable[[], Tensor]


class Moved(NamedTuple):
    """What error feedback did in a step, ``(r, d)`` each: the accumulator ``m``, the spent part ``Delta``, and ``u = w - Delta``."""

    m: Tensor
    spent: Tensor
    u: Tensor


class Rule:
    """An update rule. ``advance`` gets points ``w``, a memory that it may change in place, and the signal, ``(r, d)`` each."""

    binary = True
    """Weights are -1 and +1 at all times."""

    def begin(self, w: Tensor) -> Memory:
        """The memory at the start."""
        return {}

    def advance(self, w: Tensor, memory: Memory, signal: Tensor, draw: Draw) -> tuple[Tensor, Moved | None]:
        """The next points; ``draw()`` gives uniform numbers in [0, 1) of the points' shape."""
        raise NotImplementedError


@dataclass
class Tally:
    """Sums and maxima over the steps so far, ``(r,)`` each. Of a step ``t`` these are taken at ``w_t``, before the update."""

    steps: int
    gradient2: Tensor
    """Sum of ``||grad f(w_t)||^2``."""
    sigma2: Tensor
    """Largest ``E||g||^2`` of a signal at ``w_t``, exact (A.3)."""
    flips: Tensor
    # of error feedback
    m_max: Tensor
    """Largest ``|m|``; over eta it is kappa (A.5)."""
    spent_max: Tensor
    """Largest ``|m|`` that passed the threshold."""
    gamma: Tensor
    """Largest ``||Q1(m, w) - m||^2 / ||m||^2`` over the steps in which a weight passed (A.4); -inf before the first."""
    idle: Tensor
    """Steps in which none did."""
    spent: Tensor
    """Weights that passed the threshold."""
    biased: Tensor
    """Those with ``|m| > 2``, for which no unbiased rounding exists (A.6)."""
    e2: Tensor
    """Sum of ``||e_{t+1}||^2``."""
    e2_max: Tensor
    h2: Tensor
    """Sum of ``||h_t||^2``."""
    h2_max: Tensor

    @classmethod
    def start(cls, w: Tensor) -> Tally:
        zeros = {
            name: torch.zeros(len(w), dtype=torch.float64, device=w.device)
            for name in cls.__dataclass_fields__
            if name != "steps"
        }
        return cls(steps=0, **zeros | {"gamma": torch.full_like(zeros["gamma"], -torch.inf)})

    def look(self, norm2: Tensor, second_moment: Tensor) -> None:
        """Before a step: at the present points."""
        self.steps += 1
        self.gradient2 += norm2
        self.sigma2 = torch.maximum(self.sigma2, second_moment)

    def moved(self, moved: Moved, turned: Tensor) -> None:
        """After a step of error feedback from ``w_t`` to ``turned``."""
        size, passed = moved.m.abs(), moved.spent != 0
        count = passed.sum(-1)
        e2, h2 = (moved.m - moved.spent).square().sum(-1), (turned - moved.u).square().sum(-1)
        ratio = torch.where(count > 0, e2 / moved.m.square().sum(-1), -torch.inf)
        self.m_max = torch.maximum(self.m_max, size.amax(-1))
        self.spent_max = torch.maximum(self.spent_max, (size * passed).amax(-1))
        self.gamma = torch.maximum(self.gamma, ratio)
        self.idle += count == 0
        self.spent += count
        self.biased += (passed & (size > 2)).sum(-1)
        self.e2 += e2
        self.e2_max = torch.maximum(self.e2_max, e2)
        self.h2 += h2
        self.h2_max = torch.maximum(self.h2_max, h2)


@dataclass
class DescentState:
    """All that a descent remembers."""

    w: Tensor
    """Where the next gradient is taken, ``(r, d)``."""
    memory: Memory
    order: torch.Generator
    draws: torch.Generator
    tally: Tally = field(init=False)

    def __post_init__(self) -> None:
        self.tally = Tally.start(self.w)


def iterate(problem: FiniteSum, rule: Rule, state: DescentState, batch_size: int, steps: int) -> None:
    """Take ``steps`` steps. Samples are drawn uniformly with replacement, so signals are unbiased; ``batch_size`` 0: the full gradient."""
    n, shape = len(problem.y), state.w.shape

    def draw() -> Tensor:
        return torch.rand(shape, generator=state.draws, dtype=state.w.dtype, device=state.w.device)

    for _ in range(steps):
        look = problem.look(state.w)
        state.tally.look(look.norm2, look.second_moment(batch_size) if batch_size else look.norm2)
        signal = look.gradient
        if batch_size:  # drawn on the CPU, so that both devices see the same samples
            index = torch.randint(n, (shape[0], batch_size), generator=state.order).to(state.w.device)
            signal = problem.signal(state.w, problem.x[index], problem.y[index])
        turned, moved = rule.advance(state.w, state.memory, signal, draw)
        if rule.binary:
            state.tally.flips += (turned != state.w).sum(-1)
        if moved is not None:
            state.tally.moved(moved, turned)
        state.w = turned


def report_points(steps: int, reports: int) -> list[int]:
    """Numbers of steps after which to report: evenly spaced on a logarithmic scale from 1 to ``steps``."""
    return np.unique(np.geomspace(1, steps, min(reports, steps)).round().astype(int)).tolist()


class DescentParams(Params):
    """Length, step and noise of a descent."""

    steps: int = Field(1000, ge=1, le=10_000_000, description="steps T")
    eta: float = Field(0.1, gt=0, le=1e6, description="step size; of Boolean weights the accumulation factor")
    batch_size: int = Field(
        16, ge=0, le=100_000, description="samples of a signal, drawn with replacement; 0 = the full gradient"
    )
    reports: int = Field(40, ge=1, le=10_000, description="reports, evenly spaced on a logarithmic scale of steps")


class Descent(Method):
    """Base of the methods on smooth problems: a subclass gives the rule."""

    kinds = ("minimisation",)

    Params = DescentParams
    params: DescentParams

    def rule(self) -> Rule:
        """The update, the method's heart."""
        raise NotImplementedError

    def figures(self, tally: Tally) -> dict[str, float]:
        """Further metrics of a report."""
        return {"train/flips": tally.flips.item()} if self.rule().binary else {}

    def init(self, task: BooleanProblem, ctx: Context) -> DescentState:
        w = task.build_model(ctx).w.detach()[None]
        return DescentState(w, self.rule().begin(w), ctx.generator("order", cpu=True), ctx.generator("rounding"))

    def step(self, state: DescentState, task: BooleanProblem, ctx: Context) -> dict[str, float]:
        done = state.tally.steps
        until = next(p for p in report_points(self.params.steps, self.params.reports) if p > done)
        while state.tally.steps < until:  # in pieces, so that a stop is prompt
            ctx.poll()
            iterate(task.problem, self.rule(), state, self.params.batch_size, min(500, until - state.tally.steps))
        t = state.tally
        return {
            "train/samples": t.steps * (self.params.batch_size or len(task.train_y)),
            "train/gradient_norm2": t.gradient2.item() / t.steps,
            "train/signal_moment": t.sigma2.item(),
            **self.figures(t),
        }

    @torch.no_grad()
    def evaluate(self, state: DescentState, task: BooleanProblem, ctx: Context) -> dict[str, float]:
        outputs = task.problem.outputs(state.w, task.test_x)[0]
        return {
            "eval/objective": task.problem.value(state.w).item(),
            "eval/gradient_norm2": task.problem.look(state.w).norm2.item(),
            "eval/loss": task.loss(outputs, task.test_y).item(),
            "eval/accuracy": task.correct(outputs, task.test_y).double().mean().item(),
        }

    def views(self, state: DescentState, task: BooleanProblem) -> list[View]:
        """Where it is, and what the rule remembers of each weight."""
        kept = {"w": state.w, **{name: t for name, t in state.memory.items() if t.shape == state.w.shape}}
        place = np.arange(1, state.w.shape[1] + 1)
        return [View("Weights and what is remembered of them", "points", {name: (place, t[0].cpu().numpy()) for name, t in kept.items()},
                     x="weight", y="value", note=f"After {state.tally.steps} steps.")]

    def progress(self, state: DescentState) -> Progress:
        return Progress(state.tally.steps, self.params.steps)
