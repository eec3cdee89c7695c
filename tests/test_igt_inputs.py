"""The Interferometric Graph Transform as an estimator, and the kinds of graphs that it takes or refuses in words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.graph_helpers import F64, N, dense, small_graph, transform
from tracking.errors import UserError
from workbench.graphs.inputs import as_graph

sparse = pytest.importorskip("scipy.sparse")


@pytest.fixture(scope="module")
def graph() -> tuple[torch.Tensor, torch.Tensor]:
    return small_graph()


# --- scikit-learn's conventions and the kinds of graphs ------------------------------------------------------


def test_it_is_an_estimator_as_scikit_learn_has_them(graph):
    base = pytest.importorskip("sklearn.base")
    pipeline = pytest.importorskip("sklearn.pipeline")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    ours = transform(orders=1, power=3)
    twin = base.clone(ours)
    assert twin.get_params() == ours.get_params()
    assert (
        repr(ours)
        == "InterferometricGraphTransform(orders=1, dim=None, power=3, iterations=12, normalise='none', dtype='float64')"
    )
    assert twin.set_params(power=2).power == 2
    with pytest.raises(UserError, match=r"Unknown parameter 'pover'\. Did you mean 'power'"):
        twin.set_params(pover=2)
    x = graph[0].numpy(), sparse.csr_matrix(dense(graph, 0))
    chain = pipeline.make_pipeline(ours, preprocessing.StandardScaler())
    assert np.allclose(chain.fit_transform(x).mean(0), 0, atol=1e-12)
    with pytest.raises(UserError, match=r"not fitted yet. Call fit"):
        transform().transform(graph)


def test_every_kind_of_graph_gives_the_same_features(graph):
    networkx, data = pytest.importorskip("networkx"), pytest.importorskip("torch_geometric.data")
    x, edges = graph
    expected = transform(orders=1).fit_transform(graph)
    net = networkx.Graph()
    net.add_nodes_from((i, {"x": x[i].tolist()}) for i in range(N))
    net.add_edges_from(edges.T.tolist())
    one_way = edges[:, edges[0] < edges[1]]
    kinds = {
        "csr": (x.numpy(), sparse.csr_matrix(dense(graph, 0))),
        "csr array with self-loops": (x.numpy(), sparse.csr_array(dense(graph, 5))),
        "sparse features": (sparse.csr_matrix(x.numpy()), sparse.coo_matrix(dense(graph, 0))),
        "dense": (x.numpy(), dense(graph, 0)),
        "sparse tensor": (x, torch.from_numpy(dense(graph, 0)).to_sparse_csr()),
        "one direction, twice": (x, torch.cat([one_way, one_way], 1)),
        "pyg": data.Data(x=x, edge_index=edges),
        "networkx": net,
        "lists": (x.tolist(), edges.tolist()),
    }
    for name, kind in kinds.items():
        found = transform(orders=1).fit_transform(kind)
        assert isinstance(found, torch.Tensor) == (name in ("sparse tensor", "one direction, twice", "pyg"))
        assert np.allclose(found, expected, atol=1e-12), name


def test_weights_count(graph):
    weights = torch.rand(N, N, dtype=F64, generator=torch.Generator().manual_seed(0)) * torch.from_numpy(
        dense(graph, 0)
    )
    weights = weights + weights.T
    a = weights.numpy() + np.eye(N)
    expected = (a / a.sum(1, keepdims=True)) @ graph[0].numpy()
    found = transform(orders=0, averaging="row", power=1).fit_transform((graph[0], sparse.csr_matrix(weights.numpy())))
    assert np.allclose(found, expected, atol=1e-7)  # weights are kept in float32


def edges_of(*pairs: tuple[int, int]) -> torch.Tensor:
    return torch.tensor(pairs).T


X3 = torch.eye(3)


@pytest.mark.parametrize(
    ("given_graph", "words"),
    [
        ((torch.ones(3), edges_of((0, 1))), r"shape \(3,\).*table \(nodes, features\)"),
        ((torch.full((3, 2), torch.nan), edges_of((0, 1))), "features of node 0 hold NaN"),
        ((X3, edges_of((0, 3))), "name node 3, but there are features for 3 nodes"),
        ((X3, edges_of((-1, 2))), "name node -1"),
        ((X3, np.ones((3, 4))), "3 x 4; it must be square"),
        ((X3, np.ones((4, 4))), "of 4 nodes, the features of 3"),
        ((X3, sparse.csr_matrix(np.ones((5, 5)))), "of 5 nodes, the features of 3"),
        ((X3, np.ones((2, 3, 3), dtype=int)), "give an edge_index"),
        ((X3, -np.ones((3, 3))), "finite and not negative"),
        ((np.array([["a"], ["b"]]), edges_of((0, 1))), "are no numbers"),
        ("cora", "A str is no graph"),
    ],
)
def test_bad_graphs_are_refused_in_words(given_graph, words):
    with pytest.raises(UserError, match=words):
        transform().fit(given_graph)


def test_bad_networkx_and_pyg_graphs_and_directed_ones(graph):
    networkx, data = pytest.importorskip("networkx"), pytest.importorskip("torch_geometric.data")
    net = networkx.path_graph(3)
    with pytest.raises(UserError, match="no attribute 'x'"):
        as_graph(net)
    networkx.set_node_attributes(net, {0: [1.0], 1: [1.0, 2.0], 2: [3.0]}, "x")
    with pytest.raises(UserError, match="not vectors of one length"):
        as_graph(net)
    with pytest.raises(UserError, match="no node features"):
        as_graph(data.Data(edge_index=edges_of((0, 1))))
    with pytest.raises(UserError, match="is directed"):
        as_graph((X3, edges_of((0, 1))), symmetrise=False)
    assert as_graph((X3, edges_of((0, 1), (1, 0))), symmetrise=False).adjacency.values().numel() == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"averaging": "symetric"}, "Unknown averaging operator 'symetric'. Did you mean 'symmetric'"),
        ({"solver": "adam"}, "Unknown solver 'adam'"),
        ({"objective": "energetic"}, "Unknown objective 'energetic'"),
        ({"solver": "mm"}, "objective 'energy'"),
        ({"constraint": "iso"}, "Unknown constraint 'iso'"),
        ({"normalise": "l3"}, "Unknown norm 'l3'"),
        ({"dtype": "float16"}, "Unknown dtype"),
        ({"filters": (3,)}, "for each of the 2 orders"),
        ({"filters": (3, 0)}, "at least 1"),
    ],
)
def test_wrong_arguments_are_named(graph, changes, words):
    with pytest.raises(UserError, match=words):
        transform(**changes).fit(graph)


def test_nodes_without_neighbours_are_averaged_with_themselves_or_refused():
    x, edges = torch.rand(4, 3, dtype=F64), edges_of((0, 1), (1, 0))
    found = transform(orders=0).fit_transform((x, edges))
    torch.testing.assert_close(found[2:], x[2:], rtol=1e-12, atol=0)
    with pytest.raises(UserError, match="2 nodes have no neighbour"):
        transform(orders=0, self_loops=0.0).fit((x, edges))
    with pytest.raises(UserError, match=r"have 2 features; the transform was fitted on 3"):
        transform(orders=0).fit((x, edges)).transform((x[:, :2], edges))
