"""Random graphs and embedded ones: numbers of edges, degrees and moments against their laws, NetworkX and the
definition.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.graph_helpers import task_of
from tracking.errors import UserError
from workbench.data_graphs import check_edges
from workbench.graphs.block_model import (
    _subset,
    block_model,
    degree_corrected,
    pareto_propensity,
    planted_probabilities,
    signal_to_noise,
    triangle,
)

# --- generators ---------------------------------------------------------------------------------------------


def test_triangle_numbers_pairs_in_order_also_where_roots_round():
    i, j = triangle(np.arange(2000 * 1999 // 2))
    rows, columns = np.tril_indices(2000, -1)
    assert np.array_equal(i, rows)
    assert np.array_equal(j, columns)
    for i in (10**7, 3 * 10**7):  # the first and the last pair of a row, near the limit of float64
        first = i * (i - 1) // 2
        assert [triangle(np.array([k]))[0][0] for k in (first - 1, first, first + i - 1, first + i)] == [
            i - 1,
            i,
            i,
            i + 1,
        ]


def test_subsets_are_drawn_alike():
    rng, n = np.random.default_rng(0), 6000
    for total, count in ((6, 2), (6, 5), (6, 0), (6, 6)):
        seen = np.zeros(total)
        for _ in range(n if 0 < count < 6 else 1):
            found = _subset(total, count, rng)
            assert len(set(found.tolist())) == count
            assert np.array_equal(found, np.sort(found))
            seen[found] += 1
        if 0 < count < 6:
            share = count / total
            assert np.abs(seen / n - share).max() < 5 * np.sqrt(share * (1 - share) / n)


@pytest.mark.parametrize("probabilities", [[[0.05, 0.01], [0.01, 0.2]], [[0.9, 0.6], [0.6, 0.7]]])
def test_a_block_model_has_its_densities(probabilities):
    sizes, table = np.array([150, 250]), np.array(probabilities)
    edges = block_model(sizes, table, np.random.default_rng(1))
    check_edges(edges, 400)
    y = np.repeat([0, 1], sizes)
    counts = np.zeros((2, 2))
    np.add.at(counts, (y[edges[0]], y[edges[1]]), 1)
    pairs = np.outer(sizes, sizes) - np.diag(sizes)
    # directed counts: within a block each edge counts twice in the number and in the pairs; five standard deviations
    deviation = np.sqrt(table * (1 - table) * pairs * (1 + np.eye(2)))
    assert (np.abs(counts - table * pairs) < 5 * deviation).all()
    assert block_model(np.array([3, 4]), np.ones((2, 2)), np.random.default_rng(0)).shape == (2, 42)
    assert block_model(np.array([3, 4]), np.zeros((2, 2)), np.random.default_rng(0)).shape == (2, 0)


def test_a_degree_corrected_model_has_its_edges_and_its_degrees():
    rng = np.random.default_rng(0)
    sizes, expected = np.array([2000, 3000]), np.array([[8000.0, 2000.0], [2000.0, 15000.0]])
    t = pareto_propensity(5000, 2.5, 20, rng)
    assert 1 <= t.min() < 1.01
    assert 15 < t.max() <= 20
    edges = degree_corrected(sizes, expected, t, rng)
    check_edges(edges, 5000)
    y = np.repeat([0, 1], sizes)
    counts = np.zeros((2, 2))
    np.add.at(counts, (y[edges[0]], y[edges[1]]), 1)
    counts[[0, 1], [0, 1]] /= 2
    # Poisson, of which about 2 in 100 repeat an edge or join a node to itself
    assert (np.abs(counts / expected - 1) < 0.06).all()
    assert (counts <= expected + 5 * np.sqrt(expected)).all()
    degree = np.bincount(edges[0], minlength=5000)
    share = np.concatenate([t[:2000] / t[:2000].sum() * 18000, t[2000:] / t[2000:].sum() * 32000])
    few, many = share < np.quantile(share, 0.3), share > np.quantile(share, 0.95)
    assert degree[few].mean() == pytest.approx(share[few].mean(), rel=0.05)
    assert degree[many].mean() == pytest.approx(share[many].mean(), rel=0.1)
    assert pareto_propensity(4, 2.0, 1.0, rng).tolist() == [1.0] * 4
    # density t^-1 on [1, e]: the logarithm is uniform
    assert np.log(pareto_propensity(20_000, 1.0, np.e, rng)).mean() == pytest.approx(0.5, abs=0.02)


def test_planted_probabilities_give_the_degree_and_the_threshold_is_kesten_and_stigum_s():
    within, across = planted_probabilities(1000, 4, 10.0, 0.25)
    assert 249 * within + 750 * across == pytest.approx(10)
    assert across == within / 4
    with pytest.raises(UserError, match="largest is 24"):
        planted_probabilities(50, 2, 30.0, 0.0)
    # of two communities of mean degree d the threshold is (a - b)^2 = 2 (a + b)
    assert signal_to_noise(2, 5.0, 1.0) == pytest.approx(16 / 12)
    with pytest.raises(UserError, match="must be symmetric"):
        block_model(np.array([2, 2]), np.array([[0.1, 0.2], [0.3, 0.1]]), np.random.default_rng(0))
    with pytest.raises(UserError, match="each block needs a node"):
        block_model(np.array([2, 0]), np.eye(2), np.random.default_rng(0))


@pytest.mark.parametrize(("id", "degree"), [("sbm", 12.0), ("dcsbm", 12.0)])
def test_generated_tasks_have_the_degree_and_the_moments_asked_for(id, degree):
    it = task_of(
        id,
        nodes=3001,
        communities=3,
        degree=degree,
        ratio=0.1,
        dim=12,
        features="both",
        shift=2.0,
        wide=3.0,
        narrow=0.5,
    )
    # a standard deviation of the mean degree is 0.1; repeated edges of the corrected model are about 2 in 100
    assert it.edge_index.shape[1] / 3001 == pytest.approx(degree, rel=0.05)
    assert torch.bincount(it.y).tolist() == [1001, 1000, 1000]
    means, deviations = it.moments()
    for c in range(3):
        x = it.x[it.y == c].numpy()
        own = np.arange(12) // 4 == c
        assert np.array_equal(means[c], np.where(own, 2.0, 0.0))
        assert np.array_equal(deviations[c], np.where(own, 3.0, 0.5))
        assert np.allclose(x.mean(0), means[c], atol=5 * 3 / np.sqrt(1000))
        assert np.allclose(x.std(0) / deviations[c], 1, atol=5 / np.sqrt(2000))
    assert not torch.equal(
        it.x, task_of(id, nodes=3001, communities=3, degree=degree, ratio=0.1, dim=12, data_seed=1).x
    )


def test_karate_is_that_of_networkx():
    networkx = pytest.importorskip("networkx")
    it, theirs = task_of("karate"), networkx.karate_club_graph()
    assert np.array_equal(it.adjacency().to_dense(), networkx.to_numpy_array(theirs, weight=None))
    assert it.y.tolist() == [int(theirs.nodes[v]["club"] == "Officer") for v in theirs]


def test_digits_are_joined_to_their_nearest():
    it = task_of("digits_graph", neighbours=3)
    images = torch.round(it.x.double() * 16)
    near = torch.zeros(len(images), len(images), dtype=torch.bool)
    for i in range(0, len(images), 100):  # from the definition, an image at a time for a hundredth of them
        distance = (images - images[i]).square().sum(1)
        distance[i] = torch.inf
        near[i, distance.sort(stable=True).indices[:3]] = True
        assert (it.adjacency().to_dense()[i].bool() | ~near[i]).all()
    degrees = torch.bincount(it.edge_index[0])
    assert degrees.min() >= 3
    assert it.edge_index.shape[1] <= 2 * 3 * 1797
