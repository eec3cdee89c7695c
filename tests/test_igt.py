"""The Interferometric Graph Transform: constraints, monotone learning, invariances, an independent twin, and what it accepts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tracking.errors import UserError
from workbench.graphs.averaging import averaging
from workbench.graphs.block_model import block_model
from workbench.graphs.filters import (
    energy_gradient,
    farthest,
    moduli,
    modulus,
    pgd_step,
    polar,
    project,
    random_filters,
    violation,
)
from workbench.graphs.igt import FilterSearch, InterferometricGraphTransform, cascade
from workbench.graphs.inputs import as_graph
from workbench.graphs.spectrum import principal_directions, smoothest

sparse = pytest.importorskip("scipy.sparse")
F64 = torch.float64
N, P = 60, 12
KINDS = ["symmetric", "row", "lazy", "lowrank"]


@pytest.fixture(scope="module")
def graph() -> tuple[torch.Tensor, torch.Tensor]:
    """Features and edges of a graph with two communities, in float64."""
    rng = np.random.default_rng(0)
    edges = block_model(np.array([25, 35]), np.array([[0.3, 0.05], [0.05, 0.2]]), rng)
    return torch.from_numpy(rng.standard_normal((N, P)) * np.linspace(2, 0.3, P)), torch.from_numpy(edges)


def dense(graph, self_loops: float = 1.0) -> np.ndarray:
    a = np.zeros((N, N))
    a[tuple(graph[1].numpy())] = 1
    return a + self_loops * np.eye(N)


def operator_of(graph, kind: str, power: int = 2, self_loops: float = 1.0):
    return averaging(as_graph(graph, dtype=F64).adjacency, kind, power, self_loops=self_loops, rank=7, dtype=F64)


def transform(**changes) -> InterferometricGraphTransform:
    return InterferometricGraphTransform(**{"dim": None, "normalise": "none", "dtype": "float64", "iterations": 12} | changes)


# --- averaging ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("self_loops", [1.0, 2.5, 0.0])
@pytest.mark.parametrize("kind", KINDS)
def test_sparse_averages_are_the_dense_formulas(graph, kind, self_loops):
    a = dense(graph, self_loops)
    d = a.sum(1)
    s = a / np.sqrt(np.outer(d, d))
    values, vectors = np.linalg.eigh(s)
    expected = {"symmetric": s @ s @ s, "row": np.linalg.matrix_power(a / d[:, None], 3),
                "lazy": np.linalg.matrix_power((np.eye(N) + s) / 2, 3), "lowrank": vectors[:, -7:] @ vectors[:, -7:].T}[kind]
    ours = operator_of(graph, kind, 3, self_loops)
    assert np.allclose(ours.dense(), expected, atol=1e-12)  # float64, sums of at most 60 terms
    u = torch.randn(N, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    assert np.allclose(ours.adjoint(u), expected.T @ u.numpy(), atol=1e-12)
    assert np.allclose(ours.gram(u), expected.T @ expected @ u.numpy(), atol=1e-12)
    assert ours.nonnegative == (kind != "lowrank")
    if kind == "row":
        assert torch.allclose(ours(torch.ones(N, 1, dtype=F64)), torch.ones(N, 1, dtype=F64), atol=1e-13)


def test_smoothest_vectors_by_iteration_are_those_of_the_dense_solver(graph, monkeypatch):
    matrix = operator_of(graph, "symmetric").matrix
    values, vectors = smoothest(matrix, 5)
    monkeypatch.setattr("workbench.graphs.spectrum.DENSE_UP_TO", 1)
    again, found = smoothest(matrix, 5, tol=1e-10)
    torch.testing.assert_close(again, values, rtol=0, atol=1e-9)
    torch.testing.assert_close(found, vectors, rtol=0, atol=1e-7)  # residual over the gap, some hundredths


@pytest.mark.parametrize("filled", [0.05, 1.0])
def test_principal_directions_span_the_best_subspace(filled):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((200, 50)) * np.geomspace(5, 0.05, 50) * (rng.random((200, 50)) < filled)
    q = principal_directions(torch.from_numpy(x), 8, power=12, oversampling=10)
    assert violation(q.T.contiguous(), "isometry") < 1e-12
    _, s, vh = np.linalg.svd(x)
    # the share of energy converges as the square of the gaps' 25th powers
    assert (x @ q.numpy()).__pow__(2).sum() == pytest.approx((s[:8] ** 2).sum(), rel=1e-6)
    if filled == 1:
        assert np.allclose(np.abs(vh[:8] @ q.numpy()), np.eye(8), atol=1e-3)
    assert torch.equal(principal_directions(torch.from_numpy(x), 50), torch.eye(50, dtype=F64))
    low = torch.from_numpy(x[:, :3] @ x[:3, :])  # of rank 3: fewer directions than asked for hold anything
    assert violation(principal_directions(low, 8).T.contiguous(), "isometry") < 1e-10


# --- constraints --------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 99), st.booleans())
def test_polar_is_that_of_the_svd(p, k, seed, degenerate):
    g = torch.randn(p, 2 * k, dtype=F64, generator=torch.Generator().manual_seed(seed))
    if degenerate:
        g[0] = g[-1] * (1 + 1e-9)
    u, s, vh = np.linalg.svd(g.numpy(), full_matrices=False)
    assert violation(polar(g), "isometry") < 1e-12
    # the largest inner product with g that an isometry can have is the sum of the singular values
    assert (polar(g) * g).sum().item() == pytest.approx(s.sum(), rel=1e-9)
    if s[-1] > 1e-3 * s[0]:
        assert np.allclose(polar(g), u @ vh, atol=1e-9)


@pytest.mark.parametrize("constraint", ["isometry", "contraction", "rows"])
@pytest.mark.parametrize("count", [2, 6, 10])
def test_projections_are_nearest_and_maximisers_farthest(constraint, count):
    draw = torch.Generator().manual_seed(0)
    g = 2 * torch.randn(P, 2 * count, dtype=F64, generator=draw)
    near, far = project(g, constraint), farthest(g, constraint)
    assert violation(near, constraint) < 1e-12
    assert violation(far, constraint) < 1e-12
    assert torch.allclose(project(near, constraint), near, atol=1e-12)
    for _ in range(50):
        other = project(torch.randn(P, 2 * count, dtype=F64, generator=draw), constraint)
        assert (other - g).norm() >= (near - g).norm() - 1e-12
        assert (other * g).sum() <= (far * g).sum() + 1e-12


@pytest.mark.parametrize("solver", ["mm", "pgd"])
@pytest.mark.parametrize("constraint", ["isometry", "contraction", "rows"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_every_update_satisfies_the_constraint(graph, solver, constraint, dtype):
    operator = averaging(as_graph(graph).adjacency, "symmetric", 2, dtype=dtype)
    search = FilterSearch.begin(graph[0].to(dtype), project(random_filters(P, P // 2, torch.Generator().manual_seed(0)), constraint), operator)
    for _ in range(10):
        search.step(operator, solver, constraint)
        # an entry of W in float32 is off by 2^-24 at most, a sum of 12 products of them by less than 1e-6
        assert violation(search.w, constraint) < (1e-6 if dtype == torch.float32 else 1e-12)


# --- learning -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_autograd_slice_by_slice(graph, kind, monkeypatch):
    operator = operator_of(graph, kind)
    w = random_filters(P, 10, torch.Generator().manual_seed(0)).requires_grad_()
    objective = operator(modulus(graph[0] @ w)).square().sum()
    objective.backward()
    for chunk in (2**28, 1):  # all filters at once, and 8 at a time
        monkeypatch.setattr("workbench.graphs.filters.CHUNK_BYTES", chunk)
        energy, gradient = energy_gradient(graph[0], w.detach(), operator.gram)
        assert energy == pytest.approx(objective.item(), rel=1e-12)
        torch.testing.assert_close(gradient, w.grad, rtol=1e-10, atol=1e-12)


def test_a_filter_that_hears_nothing_has_no_slope_of_infinity(graph):
    y = graph[0].clone()
    y[:, :2] = 0
    w = torch.zeros(P, 4, dtype=F64)
    w[0, 0] = w[1, 2] = w[2, 1] = w[3, 3] = 1  # the first filter sees zeros alone
    energy, gradient = energy_gradient(y, w, operator_of(graph, "symmetric").gram)
    assert gradient.isfinite().all()
    assert not gradient[:, [0, 2]].any()
    assert energy > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("solver", ["mm", "pgd"])
def test_the_objective_never_falls_and_learning_beats_chance(graph, kind, centred, solver):
    if (kind, solver) == ("lowrank", "mm"):
        with pytest.raises(UserError, match="without negative entries"):
            transform(averaging=kind, solver=solver).fit(graph)
        return
    ours = transform(averaging=kind, rank=7, centred=centred, solver=solver, tol=-1.0, orders=2).fit(graph)
    for ratios in ours.ratios_:
        assert len(ratios) >= 2
        # float64 sums of some thousand terms
        assert all(b >= a - 1e-13 for a, b in zip(ratios, ratios[1:], strict=False))
        assert ratios[-1] > ratios[0]
        if kind in ("symmetric", "lazy", "lowrank"):  # of norm 1, so nothing is gained by averaging
            assert ratios[-1] <= 1 + 1e-12


def test_tolerance_ends_an_order_early(graph):
    quick = transform(tol=1e-2, orders=1, iterations=200).fit(graph)
    assert len(quick.ratios_[0]) < 100
    assert quick.ratios_[0][-1] - quick.ratios_[0][-2] < 1e-2 * quick.ratios_[0][-2]


def test_a_gradient_step_that_is_far_too_long_is_shortened(graph):
    operator = operator_of(graph, "lowrank")
    w = random_filters(P, 6, torch.Generator().manual_seed(0))
    energy, gradient = energy_gradient(graph[0], w, operator.gram)
    new, found, _, lr = pgd_step(graph[0], w, energy, gradient, operator.gram, "isometry", 1e6)
    assert found >= energy
    assert lr <= 1e6
    assert pgd_step(graph[0] * 0, w, 0.0, gradient * 0, operator.gram, "isometry", 1.0)[3] == 0
    assert violation(new, "isometry") < 1e-12


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
    """Spectra in [0, 1]; without centring each order has at most the energy of the one before it, so no sum is bounded."""
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
    ours.filters_ = [torch.cat([real * angle.cos() - imaginary * angle.sin(), real * angle.sin() + imaginary * angle.cos()], 1)]
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
    """A ring: each node averages over two neighbours and itself, features and filters are dyadic, the average is by weights 1/4, 1/2, 1/4."""
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
    torch.testing.assert_close(features[1], features[0][order], rtol=1e-15, atol=0)  # moduli are roots: their sums round


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


# --- scikit-learn's conventions and the kinds of graphs ------------------------------------------------------


def test_it_is_an_estimator_as_scikit_learn_has_them(graph):
    base = pytest.importorskip("sklearn.base")
    pipeline = pytest.importorskip("sklearn.pipeline")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    ours = transform(orders=1, power=3)
    twin = base.clone(ours)
    assert twin.get_params() == ours.get_params()
    assert repr(ours) == "InterferometricGraphTransform(orders=1, dim=None, power=3, iterations=12, normalise='none', dtype='float64')"
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
    weights = torch.rand(N, N, dtype=F64, generator=torch.Generator().manual_seed(0)) * torch.from_numpy(dense(graph, 0))
    weights = weights + weights.T
    a = weights.numpy() + np.eye(N)
    expected = (a / a.sum(1, keepdims=True)) @ graph[0].numpy()
    found = transform(orders=0, averaging="row", power=1).fit_transform((graph[0], sparse.csr_matrix(weights.numpy())))
    assert np.allclose(found, expected, atol=1e-7)  # weights are kept in float32


def edges_of(*pairs: tuple[int, int]) -> torch.Tensor:
    return torch.tensor(pairs).T


X3 = torch.eye(3)


@pytest.mark.parametrize(("given_graph", "words"), [
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
])
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


@pytest.mark.parametrize(("changes", "words"), [
    ({"averaging": "symetric"}, "Unknown averaging operator 'symetric'. Did you mean 'symmetric'"),
    ({"solver": "adam"}, "Unknown solver 'adam'"), ({"constraint": "iso"}, "Unknown constraint 'iso'"),
    ({"normalise": "l3"}, "Unknown norm 'l3'"), ({"dtype": "float16"}, "Unknown dtype"),
    ({"filters": (3,)}, "for each of the 2 orders"), ({"filters": (3, 0)}, "at least 1"),
])
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
