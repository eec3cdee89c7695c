"""Federated training on a GPU: the same results as on a CPU, and the back end that ``auto`` takes there."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.test_federated_local import chain, convolved, problem
from workbench.federation.replicas import replicate
from workbench.methods.federated import _local
from workbench.methods.federated._local import Job, LocalSGD
from workbench.methods.federated._local_askew import LocalAskewSGD
from workbench.methods.federated._local_luq import LocalLUQ
from workbench.runs import run

GPU, CPU = torch.device("cuda"), torch.device("cpu")
JOBS = [Job(0, i, 0, 0.5) for i in range(5)]


def test_auto_takes_the_back_end_for_the_network_and_the_device(monkeypatch):
    """Without a GPU, too: the choice is a function of the device."""
    assert [LocalSGD(chain(True)).best(device) for device in (CPU, GPU)] == ["matmul", "matmul"]
    assert [LocalSGD(convolved()).best(device) for device in (CPU, GPU)] == ["loop", "vmap"]
    assert LocalLUQ(convolved(), layers="all").best(GPU) == "loop", "quantisers cannot be vmapped"
    monkeypatch.setattr(_local, "VMAP_LIMIT", 10)
    assert LocalSGD(convolved()).best(GPU) == "loop", "one large model fills the device"


@pytest.mark.gpu
@pytest.mark.parametrize(("make", "backend"), [(lambda: chain(True), "matmul"), (convolved, "vmap"), (convolved, "loop")])
def test_local_training_gives_the_same_on_both_devices(make, backend):
    model = make()
    stack, samples = problem(model)
    there = stack.to(GPU)
    trainers = LocalSGD(model, backend=backend), LocalSGD(copy.deepcopy(model).to(GPU), backend=backend)
    for trainer, rows in zip(trainers, (stack, there), strict=True):
        trainer.train(rows, samples, _batch(rows), 0.2)
    torch.testing.assert_close(there.cpu(), stack, rtol=0, atol=1e-10)  # float64, five steps
    assert LocalSGD(copy.deepcopy(model).to(GPU)).backend in ("matmul", "vmap")


@pytest.mark.gpu
@pytest.mark.parametrize("cls", [LocalLUQ, LocalAskewSGD])
def test_quantised_training_draws_the_same_on_both_devices(cls):
    model = chain(True, 2)
    stack, samples = problem(model)
    there = stack.to(GPU)
    for net, rows in ((model, stack), (copy.deepcopy(model).to(GPU), there)):
        cls(net, backend="matmul", layers="all").train(rows, samples, _batch(rows), 0.2, JOBS)
    torch.testing.assert_close(there.cpu(), stack, rtol=0, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["favas", "quafl", "asyncsgd"])
def test_a_run_on_the_gpu_follows_the_one_on_the_cpu(method):
    # a job of asyncsgd is local_steps long, so that few end in the time of three exchanges of the others
    own = {"jobs": 4, "horizon": 240.0} if method == "asyncsgd" else {"selected": 3, "horizon": 60.0}
    params = own | {"clients": 6, "local_steps": 4, "batch_size": 16, "report_every": 20.0}
    ends = [run(method, "digits/perceptron", params, device=device, tracking="off", progress=False) for device in ("cpu", "cuda")]
    rows = [e.frame().filter(regex="train/loss|comm/") for e in ends]
    assert len(rows[0]) == len(rows[1]) > 1
    assert abs(rows[0] / rows[1] - 1).max().max() < 1e-3  # float32 sums in another order


@pytest.mark.gpu
def test_replicas_on_the_gpu():
    params = {"clients": 6, "selected": 3, "local_steps": 4, "batch_size": 16, "horizon": 60.0}
    replicas = replicate("favas", "digits/cnn", params, seeds=(0, 1), rates=(0.05, 0.1), device="cuda")
    assert all(r.status == "finished" and r.state.server.is_cuda for r in replicas)
    assert replicas[0].method.local.backend == "vmap"


def _batch(rows: torch.Tensor):
    from tests.test_federated_local import batch_of

    take = batch_of(rows.dtype)
    return lambda index: tuple(t.to(rows.device) for t in take(index.cpu()))


def test_the_networks_here_are_what_they_are_taken_for():
    assert isinstance(chain(True), nn.Sequential)
    assert any(isinstance(m, nn.Conv2d) for m in convolved().modules())
