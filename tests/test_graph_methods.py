"""Methods on graphs: IGT is its library, the unsupervised ones read no label, and training of a network keeps its best
epoch.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.graph_helpers import task_of
from tests.task_helpers import context
from tracking.errors import UserError
from workbench import registry
from workbench.graphs.clustering import adjusted_rand, kmeans
from workbench.graphs.filters import project, random_filters, violation
from workbench.graphs.igt import FilterSearch, InterferometricGraphTransform
from workbench.graphs.probe import probe_blocks
from workbench.graphs.scaling import directions
from workbench.method import derive_seed
from workbench.methods.graphs._supervised import NodeClassifier
from workbench.methods.graphs.averaged_features import AveragedFeatures
from workbench.methods.graphs.igt import IGT
from workbench.methods.graphs.raw_features import RawFeatures
from workbench.params import parse

UNSUPERVISED = (RawFeatures, AveragedFeatures, IGT)


@pytest.fixture(scope="module")
def task():
    return task_of("sbm", nodes=240, degree=12.0, features="both", val_size=60)


def trained(cls: type, task, ctx=None, **values):
    """Method and state at the end of a run."""
    ctx = ctx or context()
    method = cls(parse(cls.Params, values, cls.id))
    state = method.init(task, ctx)
    while (at := method.progress(state)).done < at.total:
        method.step(state, task, ctx)
    return method, state


# --- IGT ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [
    {"averaging": "row", "power": 1, "centred": False}, {"orders": 2, "dim": 10, "filters": (4, 3)}, {"solver": "none"},
    {"averaging": "lowrank", "rank": 20, "lr": 2.0}, {"constraint": "rows", "solver": "pgd"}, {"orders": 0},
])  # fmt: skip
def test_the_method_is_the_library_on_the_same_first_filters(task, settings):
    """Step by step and at once; the library is given the method's generator."""
    ctx = context(3)
    method, state = trained(IGT, task, ctx, iterations=4, **settings)
    library = {k: v for k, v in method.params.model_dump().items() if k in InterferometricGraphTransform().get_params()}
    ours = InterferometricGraphTransform(
        **{**library, "filters": library["filters"] or None, "tol": -1.0, "seed": ctx.seed}
    )
    u, operator, _ = ours._prepare((task.x, task.edge_index), fitting=True)
    features = torch.cat(ours._learn(u, operator, ctx.generator("init", cpu=True)), 1)
    # the same float32 arithmetic in the same order
    torch.testing.assert_close(method.features(state, task, ctx), features, rtol=0, atol=1e-6)
    blocks = method.blocks(state, task, ctx)
    assert [b.shape[1] for b in blocks] == [ours.basis_.shape[1], *(w.shape[1] // 2 for w in ours.filters_)]
    assert all(violation(w, ours.constraint) < 2e-6 for w in ours.filters_)


def test_reported_energy_never_falls_within_an_order(task):
    method = IGT(parse(IGT.Params, {"orders": 2, "iterations": 6, "dim": 12}, "igt"))
    ctx = context()
    state = method.init(task, ctx)
    rows = [method.step(state, task, ctx) for _ in range(12)]
    for order in (1, 2):
        energies = [r["train/energy"] for r in rows if r["train/order"] == order]
        assert len(energies) == 6
        # float32 sums
        assert all(b > a - 1e-6 for a, b in pairwise(energies))
    with pytest.raises(UserError, match="without negative entries"):
        IGT(parse(IGT.Params, {"averaging": "lowrank", "solver": "mm"}, "igt")).init(task, ctx)


def test_the_search_starts_where_it_is_told(task):
    w = project(random_filters(16, 8, torch.Generator().manual_seed(0)), "isometry")
    search = FilterSearch.begin(task.x, w, task.averaging())
    assert torch.equal(search.w, w.float())
    before = search.ratio
    search.step(task.averaging(), "none")
    assert search.ratio == before
    nothing = FilterSearch.begin(0 * task.x, w, task.averaging())
    nothing.step(task.averaging())
    assert (nothing.finished, nothing.ratio) == (True, 0.0)


# --- unsupervised methods -----------------------------------------------------------------------------------


def unsupervised() -> list[str]:
    """Every method that is evaluated by the probe."""
    from workbench.methods.graphs._embedding import NodeEmbedding

    ids = [id for id, e in registry.methods().items() if e.family == "graphs"]
    return [id for id in ids if issubclass(registry.load_method(id), NodeEmbedding)]


@pytest.mark.parametrize("id", unsupervised())
def test_no_label_is_read_before_the_evaluation(id):
    cls = registry.load_method(id)
    the_task = task_of(cls.example["task"].partition("/")[0], **cls.example.get("task_params", {}))
    params = cls.example["params"] | ({"epochs": 1} if "epochs" in cls.Params.model_fields else {})
    method, ctx = cls(parse(cls.Params, params, id)), context()
    del the_task.y, the_task.train_mask, the_task.val_mask, the_task.test_mask, the_task.stopping_mask
    state = method.init(the_task, ctx)
    method.step(state, the_task, ctx)
    found = method.features(state, the_task, ctx)
    assert found.shape[0] == the_task.x.shape[0]
    assert found.isfinite().all()


@pytest.mark.parametrize("cls", UNSUPERVISED)
def test_evaluation_is_the_probe_and_the_clustering_of_the_scaled_blocks(task, cls):
    ctx = context(2)
    method, state = trained(cls, task, ctx)
    found = method.evaluate(state, task, ctx)
    blocks = method.blocks(state, task, ctx)
    probe = probe_blocks(blocks, task.y, task.train_mask, task.val_mask, task.test_mask)
    assert found["eval/accuracy"] == probe.test_accuracy
    assert (found["eval/val_accuracy"], found["eval/probe_c"]) == (probe.val_accuracy, probe.c)
    clusters = kmeans(directions(blocks), 2, restarts=10, seed=derive_seed(2, "kmeans"))
    assert found["eval/ari"] == adjusted_rand(task.y, clusters)


def test_raw_and_averaged_features_are_what_they_say(task):
    ctx = context()
    for norm, p in (("l1", 1), ("l2", 2)):
        method, state = trained(RawFeatures, task, normalise=norm)
        torch.testing.assert_close(method.features(state, task, ctx), F.normalize(task.x, p=p))
        averaged, done = trained(AveragedFeatures, task, normalise=norm, averaging="row", power=1)
        a = task.adjacency().to_dense() + torch.eye(task.num_nodes)
        expected = (a / a.sum(1, keepdim=True)) @ F.normalize(task.x, p=p)
        torch.testing.assert_close(averaged.features(done, task, ctx), expected, rtol=1e-4, atol=1e-6)
    method, state = trained(RawFeatures, task, normalise="none", eval_every=1)
    assert method.features(state, task, ctx) is task.x
    assert method.evaluation_due(state)
    assert not trained(RawFeatures, task)[0].evaluation_due(state), "at the end alone"


# --- supervised training ------------------------------------------------------------------------------------


class Plain(nn.Module):
    def __init__(self, inputs: int, hidden: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, classes)
        )

    def forward(self, x, edge_index):
        return self.layers(x)


class PlainNetwork(NodeClassifier):
    """A network that does not look at the graph."""

    id, title, family = "plain", "Plain", "graphs"

    def network(self, task):
        return Plain(task.x.shape[1], self.params.hidden, task.num_classes, self.params.dropout)


def test_training_repeats_itself_and_leaves_the_global_generator(task):
    before = torch.get_rng_state()
    first = trained(PlainNetwork, task, epochs=20)[1]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    second, other = trained(PlainNetwork, task, epochs=20)[1], trained(PlainNetwork, task, context(1), epochs=20)[1]
    for a, b, c in zip(*(s.model.parameters() for s in (first, second, other)), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


@pytest.mark.parametrize("stop_on", ["loss", "accuracy"])
def test_the_best_epoch_on_the_stopping_nodes_is_tested(task, stop_on):
    """Against a record of every epoch: a high rate makes it overfit, so the best is not the last."""
    ctx = context()
    method = PlainNetwork(
        parse(PlainNetwork.Params, {"lr": 0.2, "epochs": 40, "normalise": "none", "stop_on": stop_on}, "plain")
    )
    state, record = method.init(task, ctx), []
    for _ in range(40):
        figures = method.step(state, task, ctx)
        test_accuracy = method.measure(state.model, task.x, task, task.test_mask)[1]
        record.append((figures["train/val_loss"], -figures["train/val_accuracy"], test_accuracy))
    best = min(range(40), key=lambda i: record[i][0 if stop_on == "loss" else 1])
    assert state.best_epoch == best + 1 < 40
    found = method.evaluate(state, task, ctx)
    assert found["eval/accuracy"] == record[best][2]
    assert found["eval/val_accuracy"] == pytest.approx(-record[best][1])


def test_patience_ends_it(task):
    method, state = trained(PlainNetwork, task, lr=0.5, epochs=500, patience=10, normalise="none")
    assert state.epoch == state.best_epoch + 10 < 500
    assert method.progress(state) == (state.epoch, state.epoch)
    assert method.evaluation_due(state) == (state.epoch % 10 == 0)
