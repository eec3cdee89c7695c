"""What every representation of nodes is measured by, a linear probe and clustering, against scikit-learn; and lent
generators.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tracking.errors import UserError
from workbench.graphs.clustering import adjusted_rand, kmeans, normalised_mutual_information
from workbench.graphs.probe import C_GRID, linear_probe, probe_blocks
from workbench.graphs.randomness import lent
from workbench.graphs.scaling import SCALINGS, block_weights, directions, scale_blocks

metrics = pytest.importorskip("sklearn.metrics")


def problem(n: int, dim: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Features off centre, labels that depend on them with noise, and masks of thirds."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, dim)) * np.linspace(2, 0.1, dim) + 3
    scores = (x - 3) @ rng.standard_normal((dim, classes)) + rng.gumbel(size=(n, classes))
    masks = [torch.from_numpy(np.arange(n) % 3 == i) for i in range(3)]
    return torch.from_numpy(x), torch.from_numpy(scores.argmax(1)), masks


# --- the probe ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "dim", "classes"), [(90, 200, 4), (300, 12, 3), (120, 5, 2)]
)  # wider than long, and longer than wide
@pytest.mark.parametrize("c", [1e-3, 0.1, 10.0])
def test_the_probe_is_scikit_learn_s_logistic_regression(n, dim, classes, c):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y, (train, val, test) = problem(n, dim, classes)
    ours = linear_probe(x, y, train, val, test, (c,))
    theirs = linear_model.LogisticRegression(C=c, tol=1e-10, solver="newton-cholesky").fit(x[train], y[train])
    logits = x @ ours.weight + ours.bias
    # of two classes scikit-learn fits one logit; two opposite halves of it have half its penalty
    if classes == 2:
        theirs = linear_model.LogisticRegression(C=2 * c, tol=1e-10, solver="newton-cholesky").fit(x[train], y[train])
    expected = torch.from_numpy(theirs.predict_proba(x))
    # theirs, by Newton steps, is exact; ours ends at derivatives of 1e-7 of the objective, which is flattest at c = 10
    torch.testing.assert_close(logits.softmax(1), expected, rtol=0, atol=2e-5)
    for mask, accuracy in ((val, ours.val_accuracy), (test, ours.test_accuracy)):
        assert accuracy == pytest.approx(theirs.score(x[mask], y[mask]), abs=1.5 / mask.sum().item())
    assert torch.equal(ours.predict(x), ours.classes[logits.argmax(1)])


def test_the_objective_is_at_its_minimum():
    """The gradient of the problem as it is stated, by autograd, in the features' own coordinates."""
    x, y, (train, val, test) = problem(120, 30, 3)
    for c in (1e-3, 1.0, 100.0):
        probe = linear_probe(x, y, train, val, test, (c,))
        steep = []
        for w, b in (
            (torch.zeros_like(probe.weight), torch.zeros_like(probe.bias)),
            (probe.weight.clone(), probe.bias.clone()),
        ):
            w, b = w.requires_grad_(), b.requires_grad_()
            losses = torch.nn.functional.cross_entropy(x[train] @ w + b, y[train], reduction="sum")
            (c * losses + 0.5 * w.square().sum()).backward()
            steep.append(torch.cat([w.grad, b.grad[None]]).norm().item())
        # the solver ends at 1e-7 of the objective in its scaled variables; in the plain ones directions weigh
        # differently
        assert steep[1] < 1e-4 * steep[0]


def test_the_grid_is_fitted_as_its_values_one_by_one():
    x, y, masks = problem(90, 40, 3)
    together = linear_probe(x, y, *masks)
    alone = {c: linear_probe(x, y, *masks, (c,)).val_accuracy for c in C_GRID}
    assert list(together.grid) == list(C_GRID)
    # a node on a border may fall to either side within the tolerance of the fit
    assert all(abs(together.grid[c] - alone[c]) < 1.5 / 30 for c in C_GRID)
    assert together.val_accuracy == max(together.grid.values()) == together.grid[together.c]


def test_of_equally_good_penalties_the_surest_is_taken():
    """Far apart classes: every penalty is right everywhere, and the weakest is the surest."""
    y = torch.arange(60) % 2
    x = 10.0 * y[:, None] + torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    masks = [torch.arange(60) % 3 == i for i in range(3)]
    probe = linear_probe(x, y, *masks)
    assert set(probe.grid.values()) == {1.0}
    assert probe.c == max(C_GRID)


def test_no_label_of_a_test_node_is_read():
    x, y, (train, val, test) = problem(90, 10, 3)
    other = torch.where(test, (y + 1) % 3, y)
    first, second = linear_probe(x, y, train, val, test), linear_probe(x, other, train, val, test)
    assert (first.c, first.val_accuracy) == (second.c, second.val_accuracy)
    assert torch.equal(first.weight, second.weight)
    assert first.test_accuracy != second.test_accuracy


def test_labels_that_do_not_train_are_never_foretold_and_constant_features_do_no_harm():
    x, y, (train, val, test) = problem(90, 10, 4)
    x[:, 3], x[:, 4] = 7.0, x[:, 5]  # constant, and repeated
    train &= y != 2
    probe = linear_probe(x, y, train, val, test)
    assert probe.classes.tolist() == [0, 1, 3]
    assert set(probe.predict(x).tolist()) <= {0, 1, 3}
    one = linear_probe(x, torch.zeros_like(y), train, val, test)
    assert (one.val_accuracy, one.test_accuracy) == (1.0, 1.0)


def test_bad_input_is_named():
    x, y, masks = problem(30, 4, 2)
    with pytest.raises(UserError, match="at least one value, all positive"):
        linear_probe(x, y, *masks, ())
    with pytest.raises(UserError, match="not finite"):
        linear_probe(x.log().mul(torch.nan), y, *masks)


# --- scaling ------------------------------------------------------------------------------------------------


def test_blocks_are_scaled_as_wholes_by_their_spread_or_their_root_mean_square():
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, 3, generator=draw), torch.randn(50, 2, generator=draw)
    for scaling in SCALINGS:
        scaled = scale_blocks([7 * a + 40, b, a], scaling).double()
        assert scaled.shape == (50, 8)
        assert scaled.var(0, correction=0).mean().item() == pytest.approx(1, rel=1e-6), "the penalty's meaning stays"
        first, second, third = (part - part.mean(0) * (scaling == "spread") for part in scaled.split([3, 2, 3], 1))
        sizes = [part.square().mean().sqrt().item() for part in (first, second, third)]
        assert sizes == pytest.approx([sizes[0]] * 3, rel=1e-5)  # float32 rounding of numbers of size 40
    assert block_weights([a], "rms") == pytest.approx(block_weights([a], "spread"), rel=1e-12)
    ones = torch.ones(50, 2)
    assert torch.equal(scale_blocks([a, ones, 0 * a])[:, 3:5] * 0 + 1, torch.ones(50, 2)), "constants stay finite"
    assert block_weights([ones, 0 * a], "spread") == [1.0, 1.0]
    assert block_weights([3 * ones, 0 * a], "rms") == [pytest.approx(1 / 3), 1.0]
    with pytest.raises(UserError, match="spread"):
        block_weights([a], "spreed")


@pytest.mark.parametrize("good", SCALINGS)
def test_the_scaling_is_chosen_on_validation_nodes_and_its_weights_are_for_features_as_they_are(good):
    """Of two blocks one has labels in it, the other noise. Which scaling is better depends on which of them has a mean."""
    rng = np.random.default_rng(0)
    n = 300
    y = torch.arange(n) % 2
    told = torch.from_numpy(rng.standard_normal((n, 4))) + 1.5 * y[:, None]
    noise = torch.from_numpy(rng.standard_normal((n, 400)))
    blocks = [told + 100, noise] if good == "spread" else [told, noise + 100]
    masks = [torch.from_numpy(np.arange(n) // 2 % 3 == i) for i in range(3)]
    probe = probe_blocks(blocks, y, *masks)
    alone = {s: probe_blocks(blocks, y, *masks, scalings=(s,)) for s in SCALINGS}
    assert probe.scaling == good
    assert alone[good].val_accuracy > min(a.val_accuracy for a in alone.values())
    assert (probe.c, probe.val_accuracy, probe.test_accuracy) == (
        alone[good].c, alone[good].val_accuracy, alone[good].test_accuracy)  # fmt: skip
    by_hand = linear_probe(scale_blocks(blocks, good), y, *masks)
    assert by_hand.grid == probe.grid
    found = probe.predict(torch.cat(blocks, 1))
    assert (found == y)[masks[2]].double().mean().item() == probe.test_accuracy
    assert probe_blocks(blocks[:1], y, *masks).grid == linear_probe(scale_blocks(blocks[:1]), y, *masks).grid


def test_no_label_of_a_test_node_is_read_by_the_choice_of_scaling():
    x, y, (train, val, test) = problem(90, 10, 3)
    other = torch.where(test, (y + 1) % 3, y)
    first, second = (probe_blocks([x, x.square()], labels, train, val, test) for labels in (y, other))
    assert (first.c, first.scaling, first.val_accuracy) == (second.c, second.scaling, second.val_accuracy)
    assert torch.equal(first.weight, second.weight)


def test_directions_know_neither_the_length_of_a_row_nor_the_scale_of_a_block():
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(40, d, generator=draw, dtype=torch.float64) for d in (3, 5))
    a[7], b[7] = 0, 0
    found = directions([a, b])
    assert found.norm(dim=1)[:7].tolist() == pytest.approx([1.0] * 7)
    assert not found[7].any(), "nothing has no direction"
    torch.testing.assert_close(directions([9 * a, 0.1 * b]), found)
    length = torch.rand(40, 1, generator=draw, dtype=torch.float64) + 0.5
    # rows of other lengths: the blocks' relative scale changes a little, their directions apart do not
    torch.testing.assert_close(directions([length * a]), directions([a]))


# --- clustering ---------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=2, max_size=40))
def test_agreement_scores_are_scikit_learn_s(pairs):
    a, b = (torch.tensor(part) for part in zip(*pairs, strict=True))
    ours = normalised_mutual_information(a, b), adjusted_rand(a, b)
    theirs = metrics.normalized_mutual_info_score(a, b), metrics.adjusted_rand_score(a, b)
    if len(a.unique()) > 1 or len(b.unique()) > 1:  # two constant labellings: by convention
        assert ours == pytest.approx(theirs, abs=1e-12)
    else:
        assert ours == (1.0, 1.0)


def test_kmeans_finds_what_is_apart_and_a_local_optimum_of_what_is_not():
    cluster = pytest.importorskip("sklearn.cluster")
    draw = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(5, 6, generator=draw)
    y = torch.arange(400) % 5
    x = centres[y] + torch.randn(400, 6, generator=draw) + 1000  # far from 0: float32 would lose digits uncentred
    assert adjusted_rand(y, kmeans(x, 5)) == 1
    mixed = torch.randn(300, 4, generator=draw)
    labels = kmeans(mixed, 6, restarts=10)
    means = torch.stack([mixed[labels == c].mean(0) for c in range(6)])
    assert torch.equal(torch.cdist(mixed, means).argmin(1), labels), "Lloyd's algorithm has nothing left to do"
    inertia = (mixed - means[labels]).square().sum().item()
    assert inertia < 1.02 * cluster.KMeans(6, n_init=10, random_state=0).fit(mixed).inertia_
    assert torch.equal(labels, kmeans(mixed, 6, restarts=10)), "one seed, one result"


def test_kmeans_with_as_many_clusters_as_points_or_points_alike():
    x = torch.tensor([[0.0], [0.0], [5.0]])
    assert kmeans(x, 5).unique().numel() >= 2
    assert kmeans(torch.ones(4, 2), 2).shape == (4,)


# --- lent generators ----------------------------------------------------------------------------------------


def draws() -> tuple:
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()


def test_a_lent_generator_is_drawn_from_and_the_global_ones_are_as_before():
    mine, twin = (torch.Generator().manual_seed(5) for _ in range(2))
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    with lent(mine):
        first = draws()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]
    torch.manual_seed(99)
    with lent(twin):
        assert draws() == first, "what the global generators were does not matter"
    with lent(mine):
        assert draws() != first, "it has moved on"
    with pytest.raises(ZeroDivisionError), lent(mine):
        1 / 0  # noqa: B018
    assert random.getstate() == before[2]
