"""Walks and skip-gram against closed forms, brute force and twins in NumPy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from workbench.methods.graphs._skipgram import (
    HuffmanTree,
    hierarchical_softmax_loss,
    negative_sampling_loss,
    window_mask,
)
from workbench.methods.graphs._walks import Neighbours, random_walks

# a triangle 0-1-2 with a path 2-3-4 on it, and node 5 alone: at node 2 all three distances from the node before occur
LINKS = [(0, 1), (0, 2), (1, 2), (2, 3), (3, 4)]


def neighbours(links=LINKS, n: int = 6) -> Neighbours:
    both = [*links, *((b, a) for a, b in links)]
    return Neighbours.of(torch.tensor(both).T, n)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- walks --------------------------------------------------------------------------------------------------


def test_adjacency_lists_are_those_of_the_edges():
    graph = neighbours([*LINKS, (0, 1)])  # an edge given twice
    lists = [graph.targets[a:b].tolist() for a, b in itertools.pairwise(graph.starts.tolist())]
    assert lists == [[1, 2], [0, 2], [0, 1, 3], [2, 4], [3], []]
    assert graph.degree.tolist() == [2, 2, 3, 2, 1, 0]
    a, b = (t.flatten() for t in torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij"))
    there = {
        (i, j)
        for i, j in zip(a.tolist(), b.tolist(), strict=True)
        if graph.linked(torch.tensor([i]), torch.tensor([j]))
    }
    assert there == {*LINKS, *((j, i) for i, j in LINKS)}
    assert graph.linked(a, b).sum() == 2 * len(LINKS)


@pytest.mark.parametrize(("p", "q"), [(1.0, 1.0), (0.25, 4.0), (4.0, 0.25)])
def test_every_step_of_a_walk_is_an_edge(p, q):
    generator = seeded()
    links = {
        tuple(sorted(pair)) for pair in torch.randint(30, (60, 2), generator=generator).tolist() if pair[0] != pair[1]
    }
    graph = neighbours(sorted(links), 31)
    walks = random_walks(graph, torch.arange(31).repeat(3), 12, generator, p, q)
    assert walks.shape == (93, 12)
    assert walks[:, 0].tolist() == list(range(31)) * 3
    for walk in walks.tolist():
        for a, b in itertools.pairwise(walk):
            alone = graph.degree[a] == 0
            assert (a == b) if alone else (min(a, b), max(a, b)) in links


@pytest.mark.parametrize(("p", "q"), [(1.0, 1.0), (0.25, 4.0), (4.0, 0.25), (0.5, 0.5)])
def test_steps_of_second_order_have_the_law_of_the_paper(p, q):
    """node2vec, Section 3.2.2: weights 1/p back to where the walk was, 1 to a neighbour of that node, 1/q elsewhere."""
    graph, count = neighbours(), 20_000
    walks = random_walks(graph, torch.tensor([1]).repeat(count), 3, seeded(), p, q).numpy()
    for here, weight in ((2, {1: 1 / p, 0: 1.0, 3: 1 / q}), (0, {1: 1 / p, 2: 1.0})):
        third = walks[walks[:, 1] == here, 2]
        assert len(third) > 0.4 * count  # the first step is uniform over two neighbours
        law, seen = np.array(list(weight.values())), np.array([(third == node).sum() for node in weight])
        # one in a million of correct samplers fails; a law off by 5 % would be at 10 standard deviations
        assert seen.sum() == len(third)
        assert stats.chisquare(seen, law / law.sum() * len(third)).pvalue > 1e-6


def test_uniform_walks_visit_nodes_in_proportion_to_their_degree():
    """The stationary law of a walk on a connected graph that is not bipartite is degree over twice the edges."""
    graph = neighbours(n=5)
    ends = random_walks(graph, torch.arange(5).repeat(4000), 40, seeded())[:, -1]
    # the second eigenvalue of the walk is below 0.85 in absolute value: after 39 steps 0.002 of the start is left
    share = torch.bincount(ends, minlength=5) / len(ends)
    torch.testing.assert_close(share, graph.degree / (2 * len(LINKS)), atol=0.02, rtol=0)


def test_walks_are_those_of_the_generator():
    graph, start = neighbours(), torch.arange(6)
    one, two, other = (random_walks(graph, start, 20, seeded(s), 0.5, 2.0) for s in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


# --- skip-gram ----------------------------------------------------------------------------------------------


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def pairs(walk: list[int], window: int) -> list[tuple[int, int]]:
    return [(u, v) for i, u in enumerate(walk) for j, v in enumerate(walk) if 0 < abs(i - j) <= window]


@pytest.fixture(scope="module")
def vectors():
    generator = seeded(3)
    draw = [torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    walks = torch.tensor([[0, 1, 2, 3, 4, 3], [2, 2, 5, 0, 1, 4]])
    return *draw, walks, torch.tensor([[5, 1, 1], [0, 3, 2]])


@pytest.mark.parametrize("window", [1, 2, 9])
def test_negative_sampling_is_the_sum_over_pairs(vectors, window):
    inputs, outputs, walks, noise = vectors
    u, v = inputs.detach().numpy(), outputs.detach().numpy()
    terms = []
    for walk, drawn in zip(walks.tolist(), noise.tolist(), strict=True):
        for centre, context in pairs(walk, window):
            expected = np.mean([log_sigmoid(-u[centre] @ v[n]) for n in drawn])
            terms.append(-log_sigmoid(u[centre] @ v[context]) - 5 * expected)
    loss = negative_sampling_loss(inputs, outputs, walks, noise, window, 5)
    assert loss.item() == pytest.approx(np.mean(terms), rel=1e-12)  # float64
    assert int(window_mask(6, window, torch.device("cpu")).sum()) * 2 == len(terms)


def test_a_huffman_tree_is_a_shortest_prefix_code():
    counts = torch.tensor([40, 1, 1, 7, 19, 3, 3])
    tree = HuffmanTree.of(counts)
    words = ["".join("10"[s < 0] for s in row if s) for row in tree.sign.tolist()]
    assert not [1 for a, b in itertools.permutations(words, 2) if b.startswith(a)]
    assert sum(2.0 ** -len(w) for w in words) == 1  # Kraft: no leaf is missing
    # the least weighted length over all lengths with a Kraft sum of at most 1, by brute force
    best = min(
        sum(c * n for c, n in zip(counts.tolist(), lengths, strict=True))
        for lengths in itertools.product(range(1, 7), repeat=7)
        if sum(2.0**-n for n in lengths) <= 1
    )
    assert sum(c * len(w) for c, w in zip(counts.tolist(), words, strict=True)) == best


def test_hierarchical_softmax_is_a_law_over_contexts_and_the_loss_its_logarithm(vectors):
    inputs, inner, walks, _ = vectors
    inner, tree = inner[:5], HuffmanTree.of(torch.tensor([5, 1, 8, 2, 2, 1]))
    u, t = inputs.detach().numpy(), inner.detach().numpy()

    def log_p(context: int, centre: int) -> float:
        path = zip(tree.inner[context].tolist(), tree.sign[context].tolist(), strict=True)
        return sum(log_sigmoid(s * (u[centre] @ t[k])) for k, s in path if s)

    for centre in range(6):
        assert sum(math.exp(log_p(context, centre)) for context in range(6)) == pytest.approx(1, rel=1e-12)
    terms = [-log_p(context, centre) for walk in walks.tolist() for centre, context in pairs(walk, 2)]
    loss = hierarchical_softmax_loss(inputs, inner, walks, tree, 2)
    # the signs are float32 ones, exact; the rest is float64
    assert loss.item() == pytest.approx(np.mean(terms), rel=1e-12)
    assert all(torch.isfinite(g).all() and g.abs().sum() > 0 for g in torch.autograd.grad(loss, [inputs, inner]))
