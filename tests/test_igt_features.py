"""Features of the Interferometric Graph Transform: an independent twin, energy, phases, renumbered nodes, seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.graph_helpers import F64, KINDS, N, P, dense, operator_of, small_graph, transform
from workbench.graphs.filters import moduli, random_filters, violation
from workbench.graphs.igt import cascade


@pytest.fixture(scope="module")
def graph() -> tuple[torch.Tensor, torch.Tensor]:
    return small_graph()


# --- the features -------------------------------------------------------------------------------------------


def test_an_independent_twin_in_numpy(graph):
    """Order by order, from the definition, with loops over nodes and filters, in the filters that were learnt."""
    ours = transform(averaging="row", power=1, orders=2).fit(graph)
    a = dense(graph)
    a /= a.sum(1, keepdims=True)
    u, orders = graph[0].numpy(), []
    for w in [*ours.filters_, None]:
        smooth = np.array([sum(a[i, j] * u[j] for j in range(N)) for i in range(N)])
        orders.append(smooth)
        if w is not None:
            k = w.shape[1] // 2
            z = (u - smooth) @ (w[:, :k].numpy() + 1j * w[:, k:].numpy())
            u = np.abs(z)
    assert np.allclose(ours.transform(graph), np.concatenate(orders, 1), atol=1e-12)
    assert [o.shape[1] for o in orders] == [12, 6, 3]
    for found, expected in zip(ours.orders_of(graph), orders, strict=True):
        assert np.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_order_0_is_the_averaged_features(graph, kind):
    first = transform(orders=0, averaging=kind, rank=7).fit_transform(graph)
    assert torch.equal(first, operator_of(graph, kind)(graph[0]))
    both = transform(orders=1, averaging=kind, rank=7).fit_transform(graph)
    assert torch.equal(both[:, :P], first)


def test_isometric_filters_keep_the_energy_of_every_signal_and_fewer_lose_some(graph):
    draw = torch.Generator().manual_seed(3)
    x = graph[0]
    for count, kept in ((P // 2, True), (P, True), (P // 3, False)):
        w = random_filters(P, count, draw)
        energy, norms = moduli(x, w).square().sum(1), x.square().sum(1)
        if kept:
            torch.testing.assert_close(energy, norms, rtol=1e-12, atol=0)
        else:
            assert (energy <= norms * (1 + 1e-12)).all()
            assert energy.sum() < 0.99 * norms.sum()


@pytest.mark.parametrize("kind", ["symmetric", "lazy", "lowrank"])
@pytest.mark.parametrize("centred", [True, False])
def test_features_have_no_more_energy_than_the_input_and_do_not_expand(graph, kind, centred):
    """Spectra in [0, 1]; without centring each order has at most the energy of the one before it, so no sum is
    bounded.
    """
    operator = operator_of(graph, kind)
    draw = torch.Generator().manual_seed(0)
    filters = [random_filters(P, 6, draw), random_filters(6, 3, draw)]
    x, other = graph[0], graph[0] + 0.1 * torch.randn(N, P, dtype=F64, generator=draw)
    s, t = (torch.cat(list(cascade(u, operator, filters, centred)), 1) for u in (x, other))
    bound = 1 if centred else 3
    assert s.square().sum() <= bound * x.square().sum() * (1 + 1e-12)
    assert (s - t).square().sum() <= bound * (x - other).square().sum() * (1 + 1e-12)


def test_phases_of_filters_do_not_matter(graph):
    ours = transform(orders=1).fit(graph)
    before = ours.transform(graph)
    real, imaginary = ours.filters_[0].chunk(2, 1)
    angle = torch.rand(real.shape[1], dtype=F64, generator=torch.Generator().manual_seed(0)) * 7
    ours.filters_ = [
        torch.cat([real * angle.cos() - imaginary * angle.sin(), real * angle.sin() + imaginary * angle.cos()], 1)
    ]
    assert violation(ours.filters_[0], "isometry") < 1e-12
    torch.testing.assert_close(ours.transform(graph), before, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_renumbered_nodes_have_renumbered_features(graph, kind):
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    place = order.argsort()
    renumbered = (graph[0][order], place[graph[1]])
    settings = {"averaging": kind, "rank": 7, "dim": 8, "orders": 2, "normalise": "l2"}
    first, second = (transform(**settings).fit_transform(g) for g in (graph, renumbered))
    # learning sums over nodes in another order: 12 iterations of float64 rounding
    torch.testing.assert_close(second, first[order], rtol=0, atol=1e-9)


def test_renumbered_nodes_have_the_same_features_to_the_bit_where_sums_are_exact():
    """A ring: each node averages over two neighbours and itself, features and filters are dyadic, the average is by
    weights 1/4, 1/2, 1/4.
    """
    n = 16
    ring = torch.stack([torch.arange(n).repeat(2), torch.cat([(torch.arange(n) + 1) % n, (torch.arange(n) - 1) % n])])
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(-64, 64, (n, 2), generator=draw).double()
    order = torch.randperm(n, generator=draw)
    ours = transform(orders=1, averaging="row", power=2, self_loops=2.0, centred=False).fit((x, ring))
    ours.filters_ = [torch.eye(2, dtype=F64)]
    features = [ours.transform(g) for g in ((x, ring), (x[order], order.argsort()[ring]))]
    zero = [f[:, :2] for f in features]
    # division by the root of the degree, which is 2, and squares of whole numbers are exact; so are their sums
    assert torch.equal(zero[1], zero[0][order])
    torch.testing.assert_close(
        features[1], features[0][order], rtol=1e-15, atol=0
    )  # moduli are roots: their sums round


def test_one_seed_one_result_and_the_global_generators_are_left_alone(graph):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = transform(orders=2, seed=4).fit_transform(graph)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(transform(orders=2, seed=4).fit_transform(graph), first)
    assert not torch.equal(transform(orders=2, seed=5).fit_transform(graph), first)


def test_fit_then_transform_is_fit_transform_and_knows_other_graphs(graph):
    ours = transform(orders=2, dim=8, normalise="l1")
    together = ours.fit_transform(graph)
    assert torch.equal(ours.transform(graph), together)
    assert len(ours.get_feature_names_out()) == together.shape[1] == 8 + 4 + 2
    part = torch.arange(30)
    inside = (graph[1] < 30).all(0)
    assert ours.transform((graph[0][part], graph[1][:, inside])).shape == (30, 14)
    random = transform(orders=1, solver="none").fit(graph)
    assert len(set(random.ratios_[0])) == 1, "nothing is learnt"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_gives_the_same_features(graph, kind):
    settings = {"averaging": kind, "rank": 7, "dim": 8, "orders": 2, "normalise": "l2"}
    first, second = (transform(**settings, device=d).fit_transform(graph) for d in ("cpu", "cuda"))
    assert second.device.type == "cuda"
    # float64 sums in another order, in 12 iterations an order
    torch.testing.assert_close(second.cpu(), first, rtol=0, atol=1e-8)
