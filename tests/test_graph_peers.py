"""Unsupervised peers of IGT on graphs: losses, schedules and spectra against formulas in NumPy, SciPy and PyG."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F

from tests.graph_helpers import CTX, Drawn, adjacency_of, average_of, drawn_task, near, sigmoid, whole_run
from tests.graph_helpers import SMALL_N as N
from tests.graph_helpers import SMALL_P as P
from workbench.graphs.averaging import adjacency
from workbench.graphs.randomness import lent
from workbench.methods.graphs import _layers as layers
from workbench.methods.graphs.bgrl import BGRL, bootstrap_loss, moving_average_decay, warm_cosine
from workbench.methods.graphs.deepwalk import DeepWalk
from workbench.methods.graphs.dgi import DGI, corruption, deep_graph_infomax
from workbench.methods.graphs.fastrp import FastRP, sparse_projection
from workbench.methods.graphs.grace import contrastive_loss
from workbench.methods.graphs.sgc import SGC
from workbench.methods.graphs.spectral_embedding import DENSE, laplacian_eigenmaps
from workbench.methods.graphs.vgae import evidence_loss, variational_auto_encoder
from workbench.params import parse


@pytest.fixture(scope="module")
def task() -> Drawn:
    return drawn_task()


@pytest.fixture(scope="module")
def dense(task) -> np.ndarray:
    return adjacency_of(task)


@pytest.fixture(scope="module")
def average(task) -> np.ndarray:
    return average_of(task)


@pytest.mark.parametrize("sparse", [True, False])
def test_the_loss_of_dgi_is_that_of_the_paper(task, average, sparse):
    with lent(torch.Generator().manual_seed(4)):
        model = deep_graph_infomax(P, 6)
    graph = (task.x.to_sparse_csr() if sparse else task.x, layers.symmetric_adjacency(task.edge_index, N))
    with lent(torch.Generator().manual_seed(5)):
        loss = model.loss(*model(*graph))
    with lent(torch.Generator().manual_seed(5)):
        order = torch.randperm(N).numpy()
    layer, slope = model.encoder.convolution, model.encoder.activation.weight.item()

    def encode(x: np.ndarray) -> np.ndarray:
        h = average @ x @ layer.weight.detach().numpy() + layer.bias.detach().numpy()
        return np.where(h > 0, h, slope * h)

    x = task.x.numpy()
    own, other = encode(x), encode(x[order])
    s = model.weight.detach().numpy() @ sigmoid(own.mean(0))
    wanted = -np.log(sigmoid(own @ s)).mean() - np.log(1 - sigmoid(other @ s)).mean()
    assert loss.item() == pytest.approx(wanted, rel=1e-5)  # float32


def test_corruption_moves_features_and_leaves_the_edges(task):
    graph = (task.x.to_sparse_csr(), layers.symmetric_adjacency(task.edge_index, N))
    with lent(torch.Generator().manual_seed(6)):
        x, matrix = corruption(*graph)
    assert matrix is graph[1]
    assert not torch.equal(x.to_dense(), task.x)
    assert sorted(x.to_dense().tolist()) == sorted(task.x.tolist())


def test_dgi_ends_where_its_loss_stays_and_keeps_the_best_weights(task):
    # at a rate of this size the loss soon rises above the lowest one
    method = DGI(parse(DGI.Params, {"hidden": 4, "epochs": 500, "patience": 3, "lr": 0.5, "report_every": 2}, "dgi"))
    state = whole_run(method, task)
    assert state.epoch < 500
    assert state.epoch - 1 - state.best_epoch == 3
    best = {k: v.clone() for k, v in state.best.items()}
    assert not torch.equal(best["infomax.weight"], state.model.state_dict()["infomax.weight"])
    found = method.features(state, task, CTX)
    state.model.load_state_dict(best)
    graph = method.whole(task)
    assert torch.equal(found, state.model(graph.x, graph.adjacency))


def test_the_contrastive_loss_is_the_sum_over_pairs():
    generator = torch.Generator().manual_seed(7)
    u, v = (torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    views = [x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True) for x in (u, v)]
    terms, tau = [], 0.4
    for a, b in (views, views[::-1]):
        for i in range(7):
            across = [np.exp(a[i] @ b[k] / tau) for k in range(7)]
            inside = [np.exp(a[i] @ a[k] / tau) for k in range(7) if k != i]
            terms.append(-np.log(across[i] / (sum(across) + sum(inside))))
    assert contrastive_loss(u, v, tau).item() == pytest.approx(np.mean(terms), rel=1e-12)  # float64


def test_the_bootstrap_loss_and_schedules():
    generator = torch.Generator().manual_seed(8)
    q1, y1, q2, y2 = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(4))

    def cosine(a, b):
        a, b = a.numpy(), b.numpy()
        return np.mean((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))

    assert bootstrap_loss(q1, y1, q2, y2).item() == pytest.approx(2 - cosine(q1, y2) - cosine(q2, y1), rel=1e-12)
    assert bootstrap_loss(q1, q2, q2, 3 * q1).item() == pytest.approx(0, abs=1e-12)
    assert [warm_cosine(e, 10, 110) for e in (0, 5, 10, 60, 110)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert [moving_average_decay(e, 100, 0.96) for e in (0, 50, 100)] == pytest.approx([0.96, 0.98, 1])


def test_the_target_of_bgrl_follows_slowly_and_is_not_trained(task):
    given = {
        "hidden": 8,
        "dim": 4,
        "predictor": 8,
        "epochs": 4,
        "lr": 0.05,
        "warmup": 0,
        "momentum": 0.9,
        "report_every": 1,
    }
    method = BGRL(parse(BGRL.Params, given, "bgrl"))
    state = method.init(task, CTX)
    for epoch in range(4):
        before = [w.clone() for w in state.model.target.parameters()]
        method.step(state, task, CTX)
        decay = moving_average_decay(epoch, 4, 0.9)
        for old, new, fast in zip(
            before, state.model.target.parameters(), state.model.online.parameters(), strict=True
        ):
            torch.testing.assert_close(new, decay * old + (1 - decay) * fast.detach())
            assert new.grad is None
    assert state.optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * warm_cosine(4, 0, 5))


def test_the_loss_of_vgae_is_its_evidence_bound(task, average):
    from torch_geometric.utils import negative_sampling

    with lent(torch.Generator().manual_seed(9)):
        model = variational_auto_encoder(P, 6, 3)
        z = model.encode(task.x, layers.symmetric_adjacency(task.edge_index, N))
    with lent(torch.Generator().manual_seed(10)):
        loss = evidence_loss(model, z, task.edge_index)
    with lent(torch.Generator().manual_seed(10)):
        pairs = negative_sampling(task.edge_index, N).T.tolist()
    edges = task.edge_index.T.tolist()
    assert not {tuple(e) for e in edges} & {tuple(e) for e in pairs}
    assert len(pairs) == len(edges)
    h, x = z.detach().numpy().astype(float), task.x.numpy()
    first, mean, spread = (
        (e.weight.detach().numpy(), e.bias.detach().numpy())
        for e in (model.encoder.shared, model.encoder.mean, model.encoder.log_deviation)
    )
    hidden = np.maximum(average @ x @ first[0] + first[1], 0)
    mu, log = (average @ hidden @ w + b for w, b in (mean, spread))
    divergence = 0.5 * (np.exp(2 * log) + mu**2 - 1 - 2 * log).sum(1).mean()  # of two Gaussians, closed form
    wanted = -np.mean([np.log(sigmoid(h[i] @ h[j])) for i, j in edges]) - np.mean(
        [np.log(1 - sigmoid(h[i] @ h[j])) for i, j in pairs]
    )
    assert loss.item() == pytest.approx(wanted + divergence / N, rel=1e-5)  # float32
    assert not np.allclose(h, mu)  # a sample, not the mean


def test_fastrp_is_its_formula(task, dense):
    given = {"dim": 6, "weights": [0.5, 0.0, 1.0, 2.5], "beta": -0.4, "sparsity": 2.0, "standardise": False}
    method = FastRP(parse(FastRP.Params, given, "fastrp"))
    state = whole_run(method, task)
    r = sparse_projection(N, 6, 2.0, CTX.generator("projection", cpu=True)).numpy()
    degree = dense.sum(1)
    edges = degree.sum() / 2
    s = np.divide(dense, degree[:, None], out=np.zeros_like(dense), where=degree[:, None] > 0)
    weight = np.array([(d / (2 * edges)) ** -0.4 if d else 0 for d in degree])
    powers = [np.linalg.matrix_power(s, k) for k in (1, 2, 3, 4)]
    wanted = sum(w * p for w, p in zip((0.5, 0.0, 1.0, 2.5), powers, strict=True)) @ np.diag(weight) @ r
    near(method.features(state, task, CTX), wanted)
    standard = FastRP(parse(FastRP.Params, given | {"standardise": True}, "fastrp"))
    near(standard.features(state, task, CTX), (wanted - wanted.mean(0)) / wanted.std(0))


@pytest.mark.parametrize("s", [1.0, 3.0, 40.0])
def test_a_sparse_projection_has_the_law_of_the_paper(s):
    r = sparse_projection(2000, 100, s, torch.Generator().manual_seed(11)).numpy()
    assert set(np.unique(r)) <= {-np.float32(s**0.5), 0.0, np.float32(s**0.5)}
    # 200,000 entries of fourth moment s: five standard deviations of each mean
    count = r.size**0.5
    assert abs(r.mean()) < 5 / count
    assert abs((r**2).mean() - 1) <= 5 * max(s - 1, 0) ** 0.5 / count + 1e-6
    assert abs((r != 0).mean() - 1 / s) <= 5 * (1 / s * (1 - 1 / s)) ** 0.5 / count


def test_sgc_is_a_power_of_the_average_times_the_features(task, average):
    method = SGC(parse(SGC.Params, {"k": 3, "normalise": "none"}, "sgc"))
    near(method.features(whole_run(method, task), task, CTX), np.linalg.matrix_power(average, 3) @ task.x.numpy())


@pytest.mark.parametrize(("n", "tau"), [(60, 0.0), (60, 3.0), (DENSE + 40, 3.0)])
def test_spectral_embedding_solves_the_generalised_problem(n, tau):
    """Against SciPy's dense solver of L f = lambda D f, whichever way is taken here."""
    rng = np.random.default_rng(12)
    block = np.arange(n) * 4 // n
    a = np.triu(rng.random((n, n)) < np.where(block[:, None] == block, 30 / n, 2 / n), 1).astype(float)
    a += a.T
    a[np.arange(n), (np.arange(n) + 1) % n] = a[(np.arange(n) + 1) % n, np.arange(n)] = 1  # connected
    values, functions = laplacian_eigenmaps(adjacency(torch.from_numpy(np.stack(np.nonzero(a))), n), 6, tau)
    full = a + tau / n
    degrees = np.diag(full.sum(1))
    wanted, vectors = scipy.linalg.eigh(degrees - full, degrees, subset_by_index=[0, 6])
    assert abs(wanted[0]) < 1e-10  # the constant one, which is left out
    np.testing.assert_allclose(values, wanted[1:], atol=1e-8)  # Lanczos stops at 1e-9
    f = functions.numpy()
    np.testing.assert_allclose(f.T @ degrees @ f, np.eye(6), atol=1e-7)
    # eigenvectors of close eigenvalues may be turned into each other: what is compared is |cosine| of single, well separated ones
    gaps = np.diff(np.concatenate([wanted, [np.inf]]))
    apart = [i for i in range(6) if min(gaps[i], gaps[i + 1] if i < 5 else 0) > 1e-3]
    assert len(apart) >= 3
    for i in apart:
        assert abs(f[:, i] @ degrees @ vectors[:, i + 1]) == pytest.approx(1, abs=1e-6)
        assert f[np.abs(f[:, i]).argmax(), i] > 0


def test_walk_embeddings_leave_lonely_nodes_at_zero_and_draw_neighbours_together(task, dense):
    given = {"dim": 8, "walks_per_node": 30, "walk_length": 10, "window": 2, "batch_walks": 16}
    method = DeepWalk(parse(DeepWalk.Params, given, "deepwalk"))
    state = whole_run(method, task)
    assert method.progress(state).total == 30 * 2  # 23 nodes with edges in batches of 16
    z = method.features(state, task, CTX).numpy()
    alone = dense.sum(1) == 0
    assert alone.any()
    assert (z[alone] == 0).all()
    unit = F.normalize(torch.from_numpy(z[~alone])).numpy()
    cosine, linked = unit @ unit.T, dense[~alone][:, ~alone] > 0
    others = ~linked & ~np.eye(len(linked), dtype=bool)
    # hundreds of pairs of a spread below 1: the gap is many standard errors
    assert cosine[linked].mean() > cosine[others].mean() + 0.1
