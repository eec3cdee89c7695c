"""FedFix and the general framework of aggregation weights for asynchronous federated learning.

Fraboni, Vidal, Kameni & Lorenzi, "A general theory for federated optimization with asynchronous and heterogeneous
clients updates", JMLR 24 (2023), arXiv:2206.10189.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from workbench.federation.clock import Speeds
from workbench.federation.reweighting import aggregation_weights, delivery_rates
from workbench.federation.trace import Trace, arrivals, buffered, rounds, windows
from workbench.methods.federated._aggregator import Stateless, Work
from workbench.methods.federated._federated import FederatedTraining
from workbench.methods.federated._params import FederatedParams
from workbench.params import Field


class WeightedAggregation(Stateless):
    """The server's rule: ``w + server_lr * sum_i d_i (end_i - start_i)`` over the clients that delivered.

    With the right ``d`` (:func:`aggregation_weights`) the fixed points are those of the wanted objective, whatever the
    clients' speeds.

    Args:
        d: (n,) weight of a delivery, by client.
    """

    def __init__(self, d: Tensor, server_lr: float = 1.0) -> None:
        self.d, self.server_lr = d, server_lr

    def aggregate(self, server: Tensor, start: Tensor, end: Tensor, work: Work) -> Tensor:
        return server + self.server_lr * (self.d[work.clients].to(server).view(-1, 1) * (end - start)).sum(0)


class FedFixTraining(FederatedTraining):
    """Server steps at fixed times take in all who are done; weights correct for speed.

    FedAvg, asynchronous FedAvg and FedBuff are cases of it.
    """

    id = "fedfix"
    title = "FedFix"
    family = "federated"
    paper = "arXiv:2206.10189"
    example = {
        "task": "digits/perceptron",
        "params": {"clients": 20, "local_steps": 10, "batch_size": 32, "horizon": 3000.0, "dt": 40.0, "lr": 0.2},
    }

    class Params(FederatedParams):
        lr: float = Field(0.1, gt=0, le=100, description="learning rate of the clients' plain SGD")
        scheme: Literal["fedfix", "fedavg", "async", "fedbuff"] = Field(
            "fedfix",
            description="when the server steps: at fixed times, when all are done, at each arrival, at "
            "each c-th arrival",
        )
        dt: float = Field(80.0, gt=0, description="virtual time between server steps, for fedfix")
        buffer: int = Field(10, ge=1, description="deliveries of a server step (c), for fedbuff")
        identical: bool = Field(False, description="the same weight for all deliveries, which favours fast clients")
        server_lr: float = Field(1.0, gt=0, le=10, description="step of the server along the weighted differences")

        def rules(self) -> list[tuple[str, bool, str]]:
            fits = (
                self.reaches(self.dt, "the dt of a first server step")
                if self.scheme == "fedfix"
                else self.reaches(self.least_work(), "local_steps")
            )
            return [*super().rules(), fits, *([self.within("buffer", "clients")] if self.scheme == "fedbuff" else [])]

    params: Params

    def trace(self, seed: int, speeds: Speeds) -> Trace:
        p = self.params
        common = self.clock(seed)
        if p.scheme == "fedavg":
            return rounds(speeds, selected=p.clients, interaction=0.0, **common)
        if p.scheme == "async":
            return arrivals(speeds, C=p.clients, route="same", **common)
        if p.scheme == "fedbuff":
            return buffered(speeds, Z=p.buffer, interaction=0.0, **common)
        return windows(speeds, dt=p.dt, **common)

    def aggregator(self) -> WeightedAggregation:
        p = self.params
        tau = (
            np.asarray(self.client_speeds.mean) * p.local_steps
        )  # work times are random here: their means stand for them
        extra: dict[str, Any] = {"dt": p.dt} if p.scheme == "fedfix" else {}
        if p.scheme == "fedbuff":
            extra["rates"] = delivery_rates(self.schedule)
        return WeightedAggregation(
            torch.from_numpy(aggregation_weights(p.scheme, tau, identical=p.identical, **extra)), p.server_lr
        )
