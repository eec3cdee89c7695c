"""Supervised references on graphs: each network is its formula on dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.graph_helpers import SMALL_N as N
from tests.graph_helpers import SMALL_P as P
from tests.graph_helpers import Drawn, adjacency_of, average_of, drawn_task, near, sigmoid
from workbench.graphs.randomness import lent
from workbench.methods.graphs.appnp import APPNPNetwork
from workbench.methods.graphs.dagnn import DAGNNetwork
from workbench.methods.graphs.gat import GATNetwork
from workbench.methods.graphs.gcn import GCNetwork


@pytest.fixture(scope="module")
def task() -> Drawn:
    return drawn_task()


@pytest.fixture(scope="module")
def dense(task) -> np.ndarray:
    return adjacency_of(task)


@pytest.fixture(scope="module")
def average(task) -> np.ndarray:
    return average_of(task)


@pytest.fixture(params=["dense", "sparse"])
def features(task, request):
    return task.x if request.param == "dense" else task.x.to_sparse_csr()


@pytest.fixture
def weights():
    with lent(torch.Generator().manual_seed(13)):
        yield


def as_numpy(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in module.named_parameters()}


def test_gcn_is_its_formula(task, features, average, weights):
    net = GCNetwork(P, 5, 3, 0.5).eval()
    w = as_numpy(net)
    x = task.x.numpy()
    hidden = np.maximum(average @ x @ w["first.lin.weight"].T + w["first.bias"], 0)
    near(net(features, task.edge_index), average @ hidden @ w["second.lin.weight"].T + w["second.bias"])


def test_appnp_drops_edges_anew_in_every_step(task, weights):
    """Each step keeps half of the edges' weight, so that the mean over draws is the whole propagation."""
    net = APPNPNetwork(P, 5, 3, 2, 0.1, 0.5).train()
    h = torch.eye(N)[:, :3]
    with lent(torch.Generator().manual_seed(14)):
        draws = torch.stack([net.average(net.average(h, task.edge_index), task.edge_index) for _ in range(3000)])
    mean, deviation = draws.mean(0), draws.std(0) / len(draws) ** 0.5
    net.eval()
    whole = net.average(net.average(h, task.edge_index), task.edge_index)
    # the two draws are independent, so the mean of their product is the product of the means; five standard errors
    assert ((mean - whole).abs() <= 5 * deviation + 1e-6).all()
    # where an edge lost in one step stays lost, a walk there and back has weight w^2 / 0.5 in the mean
    assert whole.diagonal().gt(0).all()


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_appnp_is_its_power_iteration_and_tends_to_personalised_pagerank(task, features, average, weights, alpha):
    net = APPNPNetwork(P, 5, 3, 6, alpha, 0.5).eval()
    w = as_numpy(net)
    h = np.maximum(task.x.numpy() @ w["first.weight"].T + w["first.bias"], 0) @ w["second.weight"].T + w["second.bias"]
    z = h
    for _ in range(6):
        z = (1 - alpha) * average @ z + alpha * h
    near(net(features, task.edge_index), z)
    net.k = 300
    # eq. 3 of the paper; what is left of the start is (1 - alpha)^300
    near(net(features, task.edge_index), alpha * np.linalg.inv(np.eye(N) - (1 - alpha) * average) @ h)


def test_dagnn_is_its_formula(task, features, average, weights):
    net = DAGNNetwork(P, 5, 3, 4, 0.5).eval()
    w = as_numpy(net)
    h = np.maximum(task.x.numpy() @ w["first.weight"].T + w["first.bias"], 0) @ w["second.weight"].T + w["second.bias"]
    powers = [np.linalg.matrix_power(average, k) @ h for k in range(5)]
    near(net(features, task.edge_index), sum(sigmoid(z @ w["weigh.weight"].T + w["weigh.bias"]) * z for z in powers))


def test_gat_is_its_formula(task, features, dense, weights):
    net = GATNetwork(P, 4, 3, 2, 1, 0.6).eval()
    w, near_by = as_numpy(net), (dense + np.eye(N)) > 0

    def attend(x: np.ndarray, layer: str, heads: int) -> np.ndarray:
        h = (x @ w[f"{layer}.lin.weight"].T).reshape(N, heads, -1)
        there, here = ((h * w[f"{layer}.att_{side}"]).sum(2) for side in ("src", "dst"))
        score = here[:, None] + there[None]
        score = np.where(score > 0, score, 0.2 * score)
        score = np.exp(np.where(near_by[..., None], score, -np.inf))
        alpha = score / score.sum(1, keepdims=True)
        return np.einsum("ijh,jhc->ihc", alpha, h)

    hidden = attend(task.x.numpy(), "first", 2).reshape(N, -1) + w["first.bias"]
    hidden = np.where(hidden > 0, hidden, np.exp(np.minimum(hidden, 0)) - 1)
    near(net(features, task.edge_index), attend(hidden, "second", 1)[:, 0] + w["second.bias"])
