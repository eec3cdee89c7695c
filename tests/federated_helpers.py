"""What tests of federated training share: small tasks, a federation at hand, and plain SGD of one client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.method import Context, derive_seed
from workbench.methods.federated._federated import FederatedState, FederatedTraining
from workbench.methods.federated._local import draws
from workbench.methods.federated.asyncsgd import AsyncSGDTraining
from workbench.methods.federated.favas import FAVASTraining
from workbench.methods.federated.fedasync import FedAsyncTraining
from workbench.methods.federated.fedavg import FedAvgTraining
from workbench.methods.federated.fedbuff import FedBuffTraining
from workbench.methods.federated.fedfix import FedFixTraining
from workbench.methods.federated.quafl import QuAFLTraining
from workbench.params import Params, parse
from workbench.task import SupervisedTask

METHODS = (
    FedAvgTraining,
    FedBuffTraining,
    AsyncSGDTraining,
    FedAsyncTraining,
    FedFixTraining,
    FAVASTraining,
    QuAFLTraining,
)
CLASSES = pytest.mark.parametrize("cls", METHODS, ids=lambda c: c.id)
"""Parametrises a test over all federated trainings."""

# Models are float32 vectors of size 1: unit roundoff 6e-8, times tens of steps and of terms in a sum.
ROUNDING = {"rtol": 2e-5, "atol": 2e-5}


class Clouds(SupervisedTask):
    """Four Gaussian clouds in six dimensions, a chain of two linear layers."""

    dataset, kind = "clouds", "classification"

    def __init__(self, size: int = 60) -> None:
        super().__init__("chain", Params())
        self.size = size

    def setup(self, ctx: Context) -> None:
        g = torch.Generator().manual_seed(0)
        y = torch.arange(self.size + 40) % 4
        x = 2 * torch.randn(4, 6, generator=g)[y] + torch.randn(self.size + 40, 6, generator=g)
        self.train_x, self.train_y, self.test_x, self.test_y = (
            x[: self.size],
            y[: self.size],
            x[self.size :],
            y[self.size :],
        )
        self.num_classes, self.sample_shape = 4, (6,)

    def build_model(self, ctx: Context) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))

    def batch(self, index: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        return self.train_x[index], self.train_y[index]

    def test_batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return self.test_x[start:stop], self.test_y[start:stop]


class Slope(Clouds):
    """A loss that is linear in the weights: its gradient is the batch's mean input, wherever the weights are."""

    def build_model(self, ctx: Context) -> nn.Module:
        model = nn.Linear(6, 1, bias=False)
        nn.init.zeros_(model.weight)
        return model

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return outputs.mean()


class Federation:
    """A method, its task and its state, between two server steps."""

    def __init__(
        self, cls: type[FederatedTraining], task: SupervisedTask | None = None, seed: int = 0, **params: Any
    ) -> None:
        self.task, self.ctx = task or Clouds(), Context(torch.device("cpu"), seed)
        self.task.setup(self.ctx)
        small = {"clients": 4, "local_steps": 3, "batch_size": 4, "lr": 0.1, "horizon": 100.0, "report_every": 1e-9}
        small |= {name: 2 for name in ("selected", "buffer", "jobs") if name in cls.Params.model_fields}
        self.net = self.task.build_model(self.ctx)
        self.method = cls(parse(cls.Params, small | params, cls.id))
        self.state: FederatedState = self.method.init(self.task, self.ctx)

    def __iter__(self) -> Iterator[dict[str, float]]:
        """Metrics of each server step."""
        while self.method.progress(self.state).done < self.method.progress(self.state).total:
            yield self.method.step(self.state, self.task, self.ctx)

    def run(self) -> Tensor:
        """The server's model at the end."""
        for _ in self:
            pass
        return self.state.server

    def samples(self, client: int, contact: int, steps: int) -> np.ndarray:
        """Training samples of a client's work, ``(steps, B)``."""
        own = self.method.shares.of(client)
        return own[
            draws(
                derive_seed(self.ctx.seed, "batches"), client, contact, steps, self.method.params.batch_size, len(own)
            )
        ]

    def trained(self, model: Tensor, client: int, contact: int, steps: int, lr: float) -> Tensor:
        """Plain SGD of one client with torch's own autograd and optimiser."""
        net = self.net
        nn.utils.vector_to_parameters(model.clone(), net.parameters())
        optimizer = torch.optim.SGD(net.parameters(), lr)
        for index in self.samples(client, contact, steps):
            x, y = self.task.train_x[index], self.task.train_y[index]
            loss = F.cross_entropy(net(x), y) if type(self.task) is Clouds else self.task.loss(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return nn.utils.parameters_to_vector(net.parameters()).detach()

    def first(self) -> Tensor:
        """The model at time 0."""
        return nn.utils.parameters_to_vector(self.task.build_model(self.ctx).parameters()).detach()
