"""Peers of IGT on graphs: propagation, losses and spectra against dense formulas, twins in NumPy, SciPy and PyG."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F

from tracking.errors import UserError
from workbench.datasets.graphs import Graph, GraphParams, GraphTask
from workbench.graphs.averaging import adjacency
from workbench.graphs.randomness import lent
from workbench.method import Context
from workbench.methods.graphs import _layers as layers
from workbench.methods.graphs._derived import derived, sparse_inputs, sparse_where_worth
from workbench.methods.graphs.appnp import APPNPNetwork
from workbench.methods.graphs.bgrl import BGRL, bootstrap_loss, moving_average_decay, warm_cosine
from workbench.methods.graphs.dagnn import DAGNNetwork
from workbench.methods.graphs.deepwalk import DeepWalk
from workbench.methods.graphs.dgi import DGI, corruption, deep_graph_infomax
from workbench.methods.graphs.fastrp import FastRP, sparse_projection
from workbench.methods.graphs.gat import GATNetwork
from workbench.methods.graphs.gcn import GCNetwork
from workbench.methods.graphs.grace import contrastive_loss
from workbench.methods.graphs.sgc import SGC
from workbench.methods.graphs.spectral_embedding import DENSE, laplacian_eigenmaps
from workbench.methods.graphs.vgae import evidence_loss, variational_auto_encoder
from workbench.params import parse

N, P = 24, 10
CTX = Context(torch.device("cpu"), 0)


class Drawn(GraphTask):
    """A random graph with a node that has no edge, and features of which one in five is not zero."""

    dataset = "drawn"

    def read(self) -> Graph:
        rng = np.random.default_rng(5)
        a = np.triu(rng.random((N, N)) < 0.2, 1)
        a[:, -1] = False
        x = (rng.random((N, P)) * (rng.random((N, P)) < 0.2)).astype(np.float32)
        return Graph(x, np.stack(np.nonzero(a | a.T)), np.arange(N) % 2)


@pytest.fixture(scope="module")
def task() -> Drawn:
    it = Drawn("", parse(GraphParams, {"train_per_class": 3, "val_size": 6, "test_size": 0}, "drawn"))
    it.setup(CTX)
    return it


@pytest.fixture(scope="module")
def dense(task) -> np.ndarray:
    """A as a matrix of float64."""
    a = np.zeros((N, N))
    a[tuple(task.edge_index.numpy())] = 1
    return a


@pytest.fixture(scope="module")
def average(dense) -> np.ndarray:
    """D̃^-1/2 (A + I) D̃^-1/2."""
    loops = dense + np.eye(N)
    root = np.sqrt(loops.sum(1))
    return loops / root[:, None] / root


def whole_run(method, task):
    state = method.init(task, CTX)
    while method.progress(state).done < method.progress(state).total:
        method.step(state, task, CTX)
    return state


def near(found: torch.Tensor, wanted: np.ndarray, rtol: float = 1e-5) -> None:
    """Equal but for float32 rounding: a dozen sums of tens of terms cost some 1e-6 of the largest."""
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=0, atol=rtol * np.abs(wanted).max())


# --- layers -------------------------------------------------------------------------------------------------


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


# --- unsupervised -------------------------------------------------------------------------------------------


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


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


# --- supervised ---------------------------------------------------------------------------------------------


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
