"""Figures that an independent implementation of the transform reaches, with SciPy's SVD and scikit-learn's classifier.

On the citation graphs a figure hangs on the classifier's penalty, which 500 validation nodes choose among several that
are equal to them: their accuracy has a standard error of 1.8 points. So a figure is met when some penalty that is within
half of that of the best one gives it, to 3 of the 1000 test nodes, which rounding in another solver may move.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.graph_helpers import task_of
from tests.task_helpers import have, needs_data
from workbench.graphs.block_model import block_model
from workbench.graphs.expectation import gaussian_orders, mixing
from workbench.graphs.igt import InterferometricGraphTransform
from workbench.graphs.probe import C_GRID, fit_grid, linear_probe, principal_coordinates
from workbench.graphs.scaling import SCALINGS, scale_blocks
from workbench.studies.igt.concentration import deviations, drawn_features

HALF_AN_ERROR, NODES = 0.009, 0.3


def reachable(it, blocks: list[torch.Tensor]) -> list[float]:
    """Test accuracies in percent at the scalings and penalties that validation nodes cannot tell from the best."""
    scores = []
    for scaling in SCALINGS if len(blocks) > 1 else SCALINGS[:1]:
        x = scale_blocks(blocks, scaling).double()
        mean = x[it.train_mask].mean(0)
        z, back = principal_coordinates(x[it.train_mask] - mean)
        w, b = fit_grid(z, it.y[it.train_mask], it.num_classes, torch.tensor(C_GRID, dtype=torch.float64))
        right = (torch.einsum("nr,rgk->ngk", (x - mean) @ back, w) + b).argmax(2) == it.y[:, None]
        scores.append([right[mask].double().mean(0) for mask in (it.val_mask, it.test_mask)])
    val, test = (torch.cat(part) for part in zip(*scores, strict=True))
    return (100 * test[val >= val.max() - HALF_AN_ERROR]).tolist()


def met(target: float, found: list[float]) -> bool:
    return min(found) - NODES <= target <= max(found) + NODES


# --- citation graphs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["cora", "citeseer"])
def citations(request):
    have(request.param)
    it = task_of(request.param)
    return request.param, it, (it.x, it.edge_index)


@needs_data
def test_raw_and_averaged_features(citations):
    """256 principal directions; the symmetric average to the powers 1 to 4."""
    name, it, graph = citations
    raw, powers = {"cora": (59.8, (78.7, 81.4, 81.9, 81.9)), "citeseer": (63.2, (70.8, 71.3, 71.5, 71.3))}[name]
    basis = InterferometricGraphTransform(0).fit(graph).basis_
    u = torch.nn.functional.normalize(it.x) @ basis
    assert met(raw, reachable(it, [u]))
    for power, target in enumerate(powers, 1):
        assert met(target, reachable(it, [it.averaging("symmetric", power)(u)])), power


@needs_data
@pytest.mark.parametrize(
    ("averaging", "centred", "targets"),
    [
        ("symmetric", True, {"cora": (81.3, 81.5), "citeseer": (72.1, 71.8)}),
        pytest.param("row", False, {"cora": (80.4, 82.1), "citeseer": (72.2, 72.0)}, marks=pytest.mark.slow),
    ],
)
def test_orders_0_and_1_with_random_filters_and_with_filters_learnt_for_energy(citations, averaging, centred, targets):
    """Either twice averaged. The first filters are drawn, theirs and ours: a second draw where the first one misses."""
    name, it, graph = citations
    for target, solver in zip(targets[name], ("none", "mm"), strict=True):
        found = []
        for seed in range(2):
            ours = InterferometricGraphTransform(
                1, averaging=averaging, centred=centred, solver=solver, objective="energy", seed=seed
            )
            found += reachable(it, ours.fit(graph).orders_of(graph))
            if met(target, found):
                break
        assert met(target, found), (target, found)
    if (name, averaging) == ("cora", "symmetric"):  # energy kept by random and by learnt filters
        assert ours.ratios_[0][0] == pytest.approx(0.765, abs=0.003)
        assert ours.ratios_[0][-1] == pytest.approx(0.840, abs=0.003)


# --- generated graphs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "across", "error", "order_0", "both"),
    [(250, 0.0, 0.44, 0.72, 0.995), (1000, 0.0, 0.46, 0.72, 0.993), (250, 0.02, 0.44, 0.64, 0.79), (1000, 0.02, 0.47, 0.66, 0.78)],
)
def test_block_models_whose_communities_differ_in_spread_alone(nodes, across, error, order_0, both):
    """One row-stochastic average, filters learnt for energy, 40 labelled nodes, one weak penalty; raw features tell nothing."""
    rows, y = [], np.repeat([0, 1], nodes // 2)
    table, labels = np.array([[0.1, across], [across, 0.1]]), torch.from_numpy(y)
    mixture = mixing(torch.bincount(labels), torch.from_numpy(table))
    law = torch.zeros(2, 16), torch.diag_embed(torch.from_numpy(deviations(np.arange(2))) ** 2), mixture
    for seed in range(6):
        rng = np.random.default_rng(seed)
        graph = drawn_features(y, rng), torch.from_numpy(block_model(np.bincount(y), table, rng))
        ours = InterferometricGraphTransform(
            1, dim=None, averaging="row", power=1, normalise="none", objective="energy", seed=seed
        )
        zero, one = ours.fit(graph).orders_of(graph)
        expected = gaussian_orders(*law, ours.filters_[0])[1][labels]
        distance = ((one - expected).square().sum() / expected.square().sum()).sqrt().item()
        order = torch.from_numpy(rng.permutation(nodes))
        train, rest = torch.zeros(2, nodes, dtype=torch.bool)
        train[order[:40]], rest[order[40:]] = True, True
        kinds = (graph[0], zero, torch.cat([zero, one], 1))
        scores = [linear_probe(x, labels, train, rest, rest, grid=(100.0,)).test_accuracy for x in kinds]
        rows.append([distance * (graph[1].shape[1] / nodes) ** 0.5, *scores])
    rows = np.array(rows)
    # the figures are means of 3 such graphs, ours of 6: three standard errors of the difference, and a hundredth that they
    # are rounded to; their distance is from the nodes' own mean, ours from its expectation, by which it is larger by a tenth
    spread = rows.std(0, ddof=1) * (1 / 3 + 1 / 6) ** 0.5
    target = np.array([error, 0.5, order_0, both])
    assert (np.abs(rows.mean(0) - target) <= 3 * spread + [0.1 * error, 0.01, 0.01, 0.01]).all(), rows.mean(0)
    assert rows[:, 3].mean() > rows[:, 2].mean() + 0.05


@pytest.mark.parametrize("power", [1, 2, 3])
def test_three_communities_of_unequal_sizes_have_the_mixtures_of_their_expectations(power):
    sizes, p = np.array([600, 900, 1500]), 6
    table = np.array([[0.10, 0.01, 0.005], [0.01, 0.08, 0.005], [0.005, 0.005, 0.06]])
    y, rng = np.repeat([0, 1, 2], sizes), np.random.default_rng(0)
    spreads = torch.from_numpy(np.where(np.arange(p) // 2 == np.arange(3)[:, None], 1.5, 0.5))
    x = spreads[y] * torch.from_numpy(rng.standard_normal((len(y), p)))
    graph = x, torch.from_numpy(block_model(sizes, table, rng))
    ours = InterferometricGraphTransform(
        1, dim=None, averaging="row", power=power, normalise="none", dtype="float64", self_loops=0.0, solver="none"
    ).fit(graph)
    mixture = mixing(torch.from_numpy(sizes), torch.from_numpy(table), power)
    exact = gaussian_orders(torch.zeros(3, p), torch.diag_embed(spreads.square()), mixture, ours.filters_[0])
    for found, wanted in zip(ours.orders_of(graph), exact, strict=True):
        means = torch.stack([found[torch.from_numpy(y) == c].mean(0) for c in range(3)])
        # a mean over a community is one over some 10^3 nodes of spread 1.5 at most: five standard errors
        torch.testing.assert_close(means, wanted, rtol=0, atol=5 * 1.5 / 900**0.5 / 2)
        one = torch.sqrt((found - wanted[y]).square().sum(1).mean())
        # every node is near its community's mixture: a mean over the 80 neighbours that there are at least
        assert one < 80**-0.5 * x.square().sum(1).mean().sqrt()
    apart = torch.cdist(exact[1], exact[1]) + 10 * torch.eye(3)
    assert apart.min() > 0.1, "mixtures taken for each other would show"
