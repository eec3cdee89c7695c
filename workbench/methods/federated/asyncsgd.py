"""AsyncSGD: every arriving gradient is applied at once, and the new model goes to a client drawn at random.

Koloskova, Stich & Jaggi, "Sharper convergence guarantees for asynchronous SGD", NeurIPS 2022, arXiv:2206.08307.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from workbench.federation.clock import Speeds
from workbench.federation.trace import Trace, arrivals
from workbench.methods.federated._aggregator import Stateless, Work
from workbench.methods.federated._federated import FederatedTraining
from workbench.methods.federated._network import selection_law
from workbench.methods.federated._params import ArrivalParams
from workbench.params import Field


class AsyncSGD(Stateless):
    """The server's rule: ``w + sum(scale (end - start))``.

    ``scale`` is 1, or ``min(1, patience / tau)`` for a difference ``tau`` steps old. With one local step ``end - start``
    is ``-lr`` times a gradient; the second form is the delay-adaptive step with the paper's ``1 / (4 L lr)`` in the
    place of ``patience``.

    ``weight`` ``(n,)``, by client, multiplies the scale: ``1 / (n p_i)`` where jobs go to client i with probability
    ``p_i`` (Generalized AsyncSGD: Leconte, Jonckheere, Samsonov & Moulines, AISTATS 2024, arXiv:2405.00017).
    """

    def __init__(self, patience: float | None = None, weight: Tensor | None = None) -> None:
        self.patience, self.weight = patience, weight

    def aggregate(self, server: Tensor, start: Tensor, end: Tensor, work: Work) -> Tensor:
        if self.patience is None and self.weight is None:
            return server + (end - start).sum(0)
        scale = torch.ones(len(end)) if self.weight is None else self.weight[work.clients]
        if self.patience is not None:
            scale = scale * (self.patience / work.staleness.clamp_min(1)).clamp_max(1.0)
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

    class Params(ArrivalParams):
        local_steps: int = Field(1, ge=1, le=10_000, description="gradient steps of a job")
        lr: float = Field(0.05, gt=0, le=100, description="learning rate")
        jobs: int = Field(20, ge=1, description="jobs in flight (C)")
        route: Literal["uniform", "same"] = Field(
            "uniform", description="where the next job goes: any client alike, or the one that delivered"
        )
        speed_bias: float = Field(
            0.0,
            ge=-4,
            le=4,
            description="a job goes to a client with probability in proportion to its speed to this power; 0 = all alike. "
            "Deliveries are weighted by 1/(n p_i)",
        )
        patience: float = Field(
            0.0, ge=0, description="staleness from which on a step shrinks in proportion; 0 = never"
        )

        def rules(self) -> list[tuple[str, bool, str]]:
            drawn = not self.speed_bias or self.route == "uniform"
            return [*super().rules(), ("speed_bias", drawn, "0 with route = 'same', which draws nobody")]

    params: Params

    def trace(self, seed: int, speeds: Speeds) -> Trace:
        p = self.params
        law = selection_law(speeds, p.speed_bias) if p.route == "uniform" else None
        return arrivals(speeds, C=p.jobs, route=p.route, p=law, interaction=p.interaction_time, **self.clock(seed))

    def aggregator(self) -> AsyncSGD:
        law = selection_law(self.client_speeds, self.params.speed_bias)
        weight = None if law is None else torch.from_numpy(1 / (len(law) * law))
        return AsyncSGD(self.params.patience or None, weight)
