"""FedAvg: synchronous federated averaging, the server waits for the slowest of the selected clients.

McMahan, Moore, Ramage, Hampson & Agüera y Arcas, AISTATS 2017, arXiv:1602.05629; its clock
as in QuAFL's published simulator.
"""

from __future__ import annotations

from torch import Tensor

from workbench.federation.clock import Speeds
from workbench.federation.trace import Trace, rounds
from workbench.methods.federated._aggregator import Stateless, Work
from workbench.methods.federated._federated import FederatedTraining
from workbench.methods.federated._network import selection_law
from workbench.methods.federated._params import SelectionParams
from workbench.params import Field


class FedAvg(Stateless):
    """The server's rule: ``w + server_lr * mean(end - start)``; with ``server_lr = 1`` and equal starts, the mean of what
    is delivered.
    """

    def __init__(self, server_lr: float = 1.0) -> None:
        self.server_lr = server_lr

    def aggregate(self, server: Tensor, start: Tensor, end: Tensor, work: Work) -> Tensor:
        return server + self.server_lr * (end - start).mean(0)


class FedAvgTraining(FederatedTraining):
    """Synchronous averaging of clients that all do the same number of steps."""

    id = "fedavg"
    title = "FedAvg"
    family = "federated"
    paper = "arXiv:1602.05629"
    example = {
        "task": "digits/perceptron",
        "params": {"clients": 20, "selected": 4, "local_steps": 10, "batch_size": 32, "horizon": 3000.0},
    }

    class Params(SelectionParams):
        interaction_time: float = Field(3.0, ge=0, description="virtual time of the exchange at the end of a round")
        server_lr: float = Field(1.0, gt=0, le=10, description="step of the server along the mean difference")

        def rules(self) -> list[tuple[str, bool, str]]:
            least = self.least_work() + self.interaction_time
            return [
                *super().rules(),
                self.reaches(least, "local_steps and interaction_time of a first round"),
            ]

    params: Params

    def trace(self, seed: int, speeds: Speeds) -> Trace:
        p = self.params
        who = {"selected": p.selected, "select": p.select, "p": selection_law(speeds, p.speed_bias)}
        return rounds(speeds, interaction=p.interaction_time, **who, **self.clock(seed))

    def aggregator(self) -> FedAvg:
        return FedAvg(self.params.server_lr)
