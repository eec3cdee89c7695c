"""AsyncSGD: every arriving gradient is applied at once, and the new model goes to a client drawn at random.

Koloskova, Stich & Jaggi, "Sharper convergence guarantees for asynchronous SGD", NeurIPS 2022, arXiv:2206.08307.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from workbench.federation.clock import Speeds
from workbench.federation.trace import Trace, arrivals
from workbench.methods.federated._aggregator import Stateless, Work
from workbench.methods.federated._federated import FederatedTraining
from workbench.methods.federated._params import FederatedParams
from workbench.params import Field


class AsyncSGD(Stateless):
    """The server's rule: ``w + sum(scale (end - start))``.

    ``scale`` is 1, or ``min(1, patience / tau)`` for a difference ``tau`` steps old. With one local step ``end - start``
    is ``-lr`` times a gradient; the second form is the delay-adaptive step with the paper's ``1 / (4 L lr)`` in the
    place of ``patience``.
    """

    def __init__(self, patience: float | None = None) -> None:
        self.patience = patience

    def aggregate(self, server: Tensor, start: Tensor, end: Tensor, work: Work) -> Tensor:
        if self.patience is None:
            return server + (end - start).sum(0)
        scale = (self.patience / work.staleness.clamp_min(1)).clamp_max(1.0)
        return server + ((end - start) * scale.to(server).view(-1, 1)).sum(0)


class AsyncSGDTraining(FederatedTraining):
    """Gradients of stale models, applied one by one as they arrive."""

    id = "asyncsgd"
    title = "AsyncSGD"
    family = "federated"
    paper = "arXiv:2206.08307"
    example = {
        "task": "digits/perceptron",
        "params": {"clients": 20, "jobs": 4, "batch_size": 32, "horizon": 600.0, "lr": 0.1},
    }

    class Params(FederatedParams):
        local_steps: int = Field(1, ge=1, le=10_000, description="gradient steps of a job")
        lr: float = Field(0.05, gt=0, le=100, description="learning rate")
        jobs: int = Field(20, ge=1, description="jobs in flight (C)")
        route: Literal["uniform", "same"] = Field(
            "uniform", description="where the next job goes: any client alike, or the one that delivered"
        )
        patience: float = Field(
            0.0, ge=0, description="staleness from which on a step shrinks in proportion; 0 = never"
        )
        interaction_time: float = Field(0.0, ge=0, description="virtual time the server spends on an arrival")

        def rules(self) -> list[tuple[str, bool, str]]:
            least = self.least_work() + self.interaction_time
            return [*super().rules(), self.reaches(least, "local_steps and interaction_time of a first arrival")]

    params: Params

    def trace(self, seed: int, speeds: Speeds) -> Trace:
        p = self.params
        return arrivals(
            speeds,
            C=p.jobs,
            K=p.local_steps,
            route=p.route,
            interaction=p.interaction_time,
            horizon=p.horizon,
            seed=seed,
        )

    def aggregator(self) -> AsyncSGD:
        return AsyncSGD(self.params.patience or None)
