"""Layers that graph encoders share: dense formulas, sparse features, views of a graph, and what is made once."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from tests.graph_helpers import CTX, Drawn, average_of, drawn_task, near
from tests.graph_helpers import SMALL_N as N
from tests.graph_helpers import SMALL_P as P
from tracking.errors import UserError
from workbench.graphs.randomness import lent
from workbench.methods.graphs import _layers as layers
from workbench.methods.graphs._derived import derived, sparse_inputs, sparse_where_worth


@pytest.fixture(scope="module")
def task() -> Drawn:
    return drawn_task()


@pytest.fixture(scope="module")
def average(task) -> np.ndarray:
    return average_of(task)


@pytest.mark.parametrize("sparse", [True, False])
def test_a_graph_convolution_is_the_dense_formula_and_pyg_s(task, average, sparse):
    from torch_geometric.nn import GCNConv

    torch.manual_seed(0)
    layer, theirs = layers.GraphConvolution(P, 4), GCNConv(P, 4)
    layer.bias.data.normal_()
    theirs.lin.weight.data, theirs.bias.data = layer.weight.data.T, layer.bias.data
    x = task.x.to_sparse_csr() if sparse else task.x
    out = layer(x, layers.symmetric_adjacency(task.edge_index, N))
    near(out, average @ task.x.numpy() @ layer.weight.detach().numpy() + layer.bias.detach().numpy())
    near(theirs(task.x, task.edge_index), out.detach().numpy())
    out.square().sum().backward()
    near(layer.weight.grad, task.x.numpy().T @ average.T @ (2 * out.detach().numpy()))


def test_a_view_has_fewer_edges_and_its_own_normalisation(task):
    generator = torch.Generator().manual_seed(1)
    with lent(generator):
        counts = [layers.with_edges_dropped(task.edge_index, 0.3).shape[1] for _ in range(200)]
        view = layers.with_edges_dropped(task.edge_index, 0.3)
    total = task.edge_index.shape[1]
    # binomial: the mean of 200 counts has a standard deviation of 0.0325 sqrt(E)
    assert abs(np.mean(counts) - 0.7 * total) < 5 * 0.0325 * total**0.5
    kept = {tuple(e) for e in view.T.tolist()}
    assert kept < {tuple(e) for e in task.edge_index.T.tolist()}
    a = np.eye(N)
    a[tuple(view.numpy())] = 1
    root = np.sqrt(a.sum(1))
    matrix = layers.symmetric_adjacency(view, N)
    near(matrix.to_dense(), a / root[:, None] / root)
    # an edge may be left in one direction alone: the gradient needs the transpose, not the matrix
    h = torch.randn(N, 3, requires_grad=True)
    weight = torch.randn(N, 3)
    (gradient,) = torch.autograd.grad((matrix @ h * weight).sum(), h)
    near(gradient, (a / root[:, None] / root).T @ weight.numpy())
    assert not np.array_equal(a, a.T)


@pytest.mark.parametrize("sparse", [True, False])
def test_features_are_masked_by_column_and_shuffled_by_row(task, sparse):
    x = task.x.to_sparse_csr() if sparse else task.x
    with lent(torch.Generator().manual_seed(2)):
        masked = layers.with_features_masked(x, 0.5).to_dense() if sparse else layers.with_features_masked(x, 0.5)
    zero = (masked == 0).all(0)
    assert 0 < zero.sum() < P
    assert torch.equal(masked[:, ~zero], task.x[:, ~zero])
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    again = layers.shuffled(x, order)
    assert torch.equal(again.to_dense() if sparse else again, task.x[order])


def test_features_are_sparse_only_where_it_pays():
    bag = torch.zeros(10, 10)
    bag[:, 0] = 1
    assert sparse_where_worth(bag).layout == torch.sparse_csr
    assert sparse_where_worth(bag + 1).layout == torch.strided


def test_what_follows_from_a_graph_is_made_once_and_anew_for_another(task):
    made = []
    first = [derived(task, "some", lambda: made.append(1) or len(made)) for _ in range(2)]
    assert first == [1, 1]
    other = Drawn("", task.params)
    other.setup(CTX)
    assert derived(other, "some", lambda: "another's") == "another's"
    other.setup(CTX)
    assert derived(other, "some", lambda: "set up anew") == "set up anew"
    near(sparse_inputs(task, "l1").to_dense().sum(1), (task.x.sum(1) > 0).float().numpy())


def test_dropout_of_sparse_features_is_that_of_what_is_stored(task):
    x = task.x.to_sparse_csr()
    with lent(torch.Generator().manual_seed(1)):
        draws = torch.stack([layers.dropout(x, 0.25, True).to_dense() for _ in range(400)])
    assert torch.equal((draws != 0).any(0), task.x != 0)
    assert torch.isin((draws / task.x)[draws != 0].round(decimals=4), torch.tensor([1.3333])).all()
    # a mean of 400 draws of x * Bernoulli(0.75) / 0.75 has a standard deviation of 0.029 x
    assert ((draws.mean(0) - task.x).abs() <= 5 * 0.029 * task.x).all()
    assert layers.dropout(x, 0.25, False) is x


def test_without_pyg_a_sentence_says_what_to_install(monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] == "torch_geometric"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    with pytest.raises(UserError, match=r"pip install 'efficient-workbench\[graphs\]'"):
        layers.pyg()
