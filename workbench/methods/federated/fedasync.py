"""FedAsync: the server mixes every arriving model into its own, the less the staler it is.

Xie, Koyejo & Gupta, "Asynchronous federated optimization", OPT workshop 2020, arXiv:1903.03934.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from workbench.federation.clock import Speeds
from workbench.federation.trace import Trace, arrivals
from workbench.methods.federated._aggregator import Stateless, Work
from workbench.methods.federated._federated import FederatedTraining
from workbench.methods.federated._params import ArrivalParams
from workbench.params import Field


class FedAsync(Stateless):
    """The server's rule: ``w <- (1 - m) w + m end`` for each delivery, ``m = mixing * s(tau)``.

    ``s``: ``constant`` 1; ``polynomial`` ``(1 + tau)^(-a)``; ``hinge`` 1 up to ``tau = b``, then
    ``1 / (a (tau - b) + 1)``.
    """

    def __init__(
        self,
        mixing: float = 0.6,
        staleness: Literal["constant", "polynomial", "hinge"] = "polynomial",
        a: float = 0.5,
        b: float = 4.0,
    ) -> None:
        self.mixing, self.staleness, self.a, self.b = mixing, staleness, a, b

    def weight(self, tau: Tensor) -> Tensor:
        """Mixing weights for differences ``tau`` server steps old."""
        tau = tau.double()
        if self.staleness == "polynomial":
            return self.mixing * (1 + tau) ** -self.a
        if self.staleness == "hinge":
            return self.mixing / (self.a * (tau - self.b).clamp_min(0) + 1)
        return torch.full_like(tau, self.mixing)

    def aggregate(self, server: Tensor, start: Tensor, end: Tensor, work: Work) -> Tensor:
        for row, m in zip(end, self.weight(work.staleness).tolist(), strict=True):
            server = torch.lerp(server, row, m)
        return server


class FedAsyncTraining(FederatedTraining):
    """All clients work all the time; every delivered model is mixed in at once."""

    id = "fedasync"
    title = "FedAsync"
    family = "federated"
    paper = "arXiv:1903.03934"
    example = {
        "task": "digits/perceptron",
        "params": {"clients": 20, "local_steps": 10, "batch_size": 32, "horizon": 400.0, "lr": 0.1},
    }

    class Params(ArrivalParams):
        lr: float = Field(0.1, gt=0, le=100, description="learning rate of the clients' plain SGD")
        mixing: float = Field(0.6, gt=0, le=1, description="weight of a fresh delivery")
        staleness: Literal["constant", "polynomial", "hinge"] = Field(
            "polynomial", description="how the weight falls with staleness tau"
        )
        a: float = Field(0.5, ge=0, description="power of the polynomial, or slope of the hinge")
        b: float = Field(4.0, ge=0, description="staleness up to which the hinge keeps the full weight")

    params: Params

    def trace(self, seed: int, speeds: Speeds) -> Trace:
        p = self.params
        return arrivals(speeds, C=p.clients, route="same", interaction=p.interaction_time, **self.clock(seed))

    def aggregator(self) -> FedAsync:
        p = self.params
        return FedAsync(p.mixing, p.staleness, p.a, p.b)
