"""QuAFL: asynchronous averaging in which clients keep their own drift, with a lattice quantiser both ways.

Zakerinia, Talaei, Nadiradze & Alistarh, "Communication-efficient federated learning with data and client heterogeneity",
AISTATS 2024, arXiv:2206.10032; mechanics as in the authors' published simulator.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from torch import Tensor

from workbench.federation.clock import Speeds
from workbench.federation.trace import Trace
from workbench.method import Context
from workbench.methods.federated._aggregator import Stateless, Work
from workbench.methods.federated._exchange import download, download_on_lattice
from workbench.methods.federated._federated import FederatedTraining
from workbench.methods.federated.favas import ContactParams, contact_trace
from workbench.params import Field


class QuAFL(Stateless):
    """The server's rule: ``w <- p w + (1 - p) mean(end)`` with ``p = 1/(s+1)`` for ``s`` deliveries.

    Clients mix likewise (:meth:`mixed`).
    """

    def aggregate(self, server: Tensor, start: Tensor, end: Tensor, work: Work) -> Tensor:
        return (server + end.sum(0)) / (len(end) + 1)

    def mixed(self, server: Tensor, end: Tensor) -> Tensor:
        """Where ``s`` clients go on: ``p w + (1 - p) w_i``, from the server's model before the step and their own."""
        p = 1 / (len(end) + 1)
        return p * server + (1 - p) * end


class QuAFLTraining(FederatedTraining):
    """Asynchronous averaging without re-weighting; clients keep part of their own model."""

    id = "quafl"
    title = "QuAFL"
    family = "federated"
    paper = "arXiv:2206.10032"
    example = {
        "task": "digits/perceptron",
        "params": {"clients": 20, "selected": 4, "local_steps": 10, "batch_size": 32, "horizon": 700.0, "lr": 0.1},
    }

    class Params(ContactParams):
        upload: Literal["dense_fp32", "dense_bf16", "lattice"] = Field(
            "dense_fp32", description="encoding of the clients' models; on the lattice the server decodes with its own"
        )
        download: Literal["dense_fp32", "dense_bf16", "lattice"] = Field(
            "dense_fp32",
            description="encoding of the server's models; on the lattice a client decodes with its own "
            "(the first model goes dense)",
        )
        scale_lr: bool = Field(True, description="clients step with lr (s + 1) / s, as in the authors' simulator")

    params: Params

    def trace(self, seed: int, speeds: Speeds) -> Trace:
        return contact_trace(self.params, speeds, self.clock(seed))

    def aggregator(self) -> QuAFL:
        return QuAFL()

    def client_lr(self) -> float:
        s = self.params.selected
        return self.params.lr * ((s + 1) / s if self.params.scale_lr else 1.0)

    def reply(self, before: Tensor, end: Tensor, clients: np.ndarray, ctx: Context) -> Tensor:
        if self.params.download == "lattice":
            return QuAFL().mixed(download_on_lattice(self.params, before, clients, end, ctx), end)
        return QuAFL().mixed(download(self.params, before, clients, ctx), end)
