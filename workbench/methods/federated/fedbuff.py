"""FedBuff: asynchronous training with a buffer; the Z-th delivery makes a server step.

Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek & Huba, AISTATS 2022, arXiv:2106.06639.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from workbench.federation.clock import Speeds
from workbench.federation.trace import Trace, buffered
from workbench.methods.federated._aggregator import Stateless, Work
from workbench.methods.federated._federated import FederatedTraining
from workbench.methods.federated._params import FederatedParams
from workbench.params import Field


class FedBuff(Stateless):
    """The server's rule: ``w + server_lr * mean(v(tau) (end - start))``.

    ``v`` is ``(1 + tau)^(-1/2)`` or 1 for a difference ``tau`` steps old.
    """

    def __init__(self, server_lr: float = 1.0, staleness: Literal["none", "sqrt"] = "none") -> None:
        self.server_lr, self.staleness = server_lr, staleness

    def aggregate(self, server: Tensor, start: Tensor, end: Tensor, work: Work) -> Tensor:
        weight = torch.ones(len(end)) if self.staleness == "none" else (1.0 + work.staleness).rsqrt()
        return server + self.server_lr * ((end - start) * weight.to(server).view(-1, 1)).mean(0)


class FedBuffTraining(FederatedTraining):
    """All clients work all the time; the server steps when its buffer is full."""

    id = "fedbuff"
    title = "FedBuff"
    family = "federated"
    paper = "arXiv:2106.06639"
    example = {
        "task": "digits/perceptron",
        "params": {"clients": 20, "buffer": 5, "local_steps": 10, "batch_size": 32, "horizon": 1000.0, "lr": 0.05},
    }

    class Params(FederatedParams):
        lr: float = Field(
            0.01,
            gt=0,
            le=100,
            description="learning rate of the clients' plain SGD (0.1 Z/n works on MNIST, 0.5 Z/n diverges)",
        )
        buffer: int = Field(10, ge=1, description="deliveries of a server step (Z)")
        server_lr: float = Field(1.0, gt=0, le=10, description="step of the server along the mean difference")
        staleness: Literal["none", "sqrt"] = Field(
            "none", description="weight of a difference tau steps old: 1, or (1 + tau)^(-1/2)"
        )
        interaction_time: float = Field(3.0, ge=0, description="virtual time of the exchange that ends a server step")
        restart_from_old: bool = Field(
            False, description="clients go on from the model before the step they contributed to (QuAFL's simulator)"
        )

        def rules(self) -> list[tuple[str, bool, str]]:
            least = self.least_work() + self.interaction_time
            return [
                *super().rules(),
                self.within("buffer", "clients"),
                self.reaches(least, "local_steps and interaction_time of a first delivery"),
            ]

    params: Params

    def trace(self, seed: int, speeds: Speeds) -> Trace:
        p = self.params
        options = {"interaction": p.interaction_time, "restart_from_old": p.restart_from_old}
        return buffered(speeds, Z=p.buffer, **options, **self.clock(seed))

    def aggregator(self) -> FedBuff:
        return FedBuff(self.params.server_lr, self.params.staleness)
