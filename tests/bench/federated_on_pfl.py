"""The case on pfl's simulated backend: clients' tensors made once; alone, or one of the processes of ``torchrun``."""

from __future__ import annotations

import os
import sys

import pfl
import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.internal.ops import get_ops
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from tests.bench.federated_case import BATCH, CLIENTS, RATE, SELECTED, SHARE, Stopwatch, network, report, share


class Network(nn.Module):
    """The network, with what pfl asks of one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.layers(x), y)

    def metrics(self, x: Tensor, y: Tensor) -> dict:
        return {"loss": Weighted(float(self.loss(x, y)) * len(x), len(x))}  # pfl evaluates in the first round at least


class Timed(TrainingProcessCallback):
    """Stops the run when the stopwatch of the first process says so."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):  # type: ignore[no-untyped-def]
        over = torch.tensor(float(self.watch.lap()))
        if get_ops().distributed.world_size > 1:
            torch.distributed.broadcast(over, 0)
        return bool(over), Metrics()


def main(seconds: float, steps: int) -> None:
    """Run, and report."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    users = {str(c): PyTorchTensorDataset(share(c), user_id=str(c)) for c in range(CLIENTS)}
    clients = FederatedDataset(users.__getitem__, get_user_sampler("random", list(users)))
    module, watch = Network(), Stopwatch(warm_up=3, seconds=seconds, steps=steps)
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), 1.0))
    size = NNAlgorithmParams(central_num_iterations=10**6, evaluation_frequency=10**6, train_cohort_size=SELECTED, val_cohort_size=0)
    epochs, rest = divmod(steps * BATCH, SHARE)
    if epochs and rest:
        raise ValueError(f"{steps} steps are neither within an epoch nor whole epochs, which is all that pfl does")
    length = {"local_num_epochs": None, "local_num_steps": steps} if not epochs else {"local_num_epochs": epochs}
    local = NNTrainHyperParams(local_batch_size=BATCH, local_learning_rate=RATE, **length)
    FederatedAveraging().run(size, SimulatedBackend(clients, None), model, local, None, [Timed(watch)])
    if get_ops().distributed.global_rank == 0:
        report(rate=watch.rate(), rounds=watch.rounds, version=f"pfl {pfl.__version__}")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
