"""Graph tasks: their splits, generators and sources against definitions, other libraries and published counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graph_helpers import task_of
from tests.task_helpers import have, needs_data
from tracking.errors import UserError
from workbench import data, registry
from workbench.data_graphs import check_edges
from workbench.datasets.graphs import GraphParams, PublicParams, split

GRAPHS = {id: e for id, e in registry.tasks().items() if e.literals["kind"] == "node_classification"}
EMBEDDED = [id for id, e in GRAPHS.items() if e.literals["embedded"]]


# --- all of them --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", EMBEDDED)
def test_a_graph_is_what_the_contract_says(id):
    it = task_of(id)
    n = it.num_nodes
    assert it.x.dtype == torch.float32
    assert it.x.shape[0] == n
    assert it.x.isfinite().all()
    assert it.edge_index.dtype == it.y.dtype == torch.int64
    check_edges(it.edge_index.numpy(), n)
    masks = torch.stack([it.train_mask, it.val_mask, it.test_mask])
    assert masks.dtype == torch.bool
    assert (masks.sum(0) <= 1).all()
    assert masks.any(1).all()
    assert torch.equal(it.stopping_mask, it.val_mask)
    assert it.y.unique().tolist() == list(range(it.num_classes))
    dense = torch.zeros(n, n)
    dense[tuple(it.edge_index)] = 1
    assert it.adjacency().layout == torch.sparse_csr
    assert torch.equal(it.adjacency().to_dense(), dense)
    assert it.adjacency() is it.adjacency()
    assert it.averaging("row", 1) is it.averaging("row", 1)
    facts = it.provenance()
    assert facts["nodes"] == str(n)
    assert facts["edges"] == str(int(dense.sum()) // 2)
    assert facts["source"]


@pytest.mark.parametrize("id", EMBEDDED)
def test_a_run_s_seed_draws_the_split_and_nothing_else_unless_it_is_fixed(id):
    first, again, other = task_of(id, 0), task_of(id, 0), task_of(id, 1)
    assert torch.equal(first.train_mask, again.train_mask)
    assert not torch.equal(first.train_mask, other.train_mask)
    assert torch.equal(first.edge_index, other.edge_index)
    assert torch.equal(first.x, other.x)
    fixed = [task_of(id, seed, split_seed=5).train_mask for seed in (0, 1)]
    assert torch.equal(*fixed)


# --- splits -------------------------------------------------------------------------------------------------

PARAMS = {"public": PublicParams(), "full": PublicParams(protocol="full")}


@settings(max_examples=60)
@given(
    st.lists(st.integers(-1, 3), min_size=30, max_size=120),
    st.integers(1, 6),
    st.integers(1, 12),
    st.integers(0, 8),
    st.integers(0, 5),
)
def test_a_random_split_has_its_sizes(labels, per_class, val, test, seed):
    y, labelled = np.maximum(labels, 0), np.array(labels) >= 0
    p = GraphParams(train_per_class=per_class, val_size=val, test_size=test)
    counts = np.bincount(y[labelled], minlength=4)
    left = labelled.sum() - np.minimum(counts, per_class).sum()
    if val + max(test, 1) > left or not labelled.any():
        with pytest.raises(UserError, match=r"are left; val_size|no node is left"):
            split(y, labelled, {}, p, seed, "t")
        return
    masks = split(y, labelled, {}, p, seed, "t")
    assert np.array_equal(np.bincount(y[masks["train"]], minlength=4), np.minimum(counts, per_class))
    assert masks["val"].sum() == val
    assert masks["test"].sum() == (test or left - val)
    total = masks["train"].astype(int) + masks["val"] + masks["test"]
    assert total.max() == 1
    assert not total[~labelled].any()


def test_fractions_and_splits_of_the_data_set():
    y, labelled = np.arange(100) % 4, np.arange(100) != 7
    masks = split(y, labelled, {}, GraphParams(protocol="fractions"), 0, "t")
    assert [int(masks[k].sum()) for k in ("train", "val", "test")] == [
        9,
        10,
        80,
    ]  # a tenth of 99, to the next tenth, the rest
    given_masks = {
        "train": np.arange(100) < 10,
        "val": (np.arange(100) >= 10) & (np.arange(100) < 30),
        "test": np.arange(100) >= 60,
        "stopping": np.arange(100) == 40,
    }
    public, full = (split(y, labelled, given_masks, PARAMS[name], 0, "t") for name in ("public", "full"))
    assert public["train"].sum() == 9, "a node without a label is in no set"
    assert np.array_equal(public["stopping"], given_masks["stopping"])
    assert np.flatnonzero(full["train"]).tolist() == [*range(7), 8, 9, *range(30, 60)]
    with pytest.raises(UserError, match="no split of its own"):
        split(y, labelled, {}, PARAMS["public"], 0, "t")


def test_every_node_is_drawn_as_often_as_its_kind():
    """Means over 400 seeds: each class draws 3 of its nodes, all with the same chance."""
    y, n = np.array([0] * 10 + [1] * 20), 400
    p = GraphParams(train_per_class=3, val_size=6, test_size=6)
    share = np.mean([split(y, np.ones(30, bool), {}, p, seed, "t")["train"] for seed in range(n)], 0)
    expected = np.where(y == 0, 0.3, 0.15)
    # binomial standard deviation, five of them
    assert (np.abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / n)).all()


# --- the published data sets --------------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize(
    ("name", "degrees", "classes", "isolated", "ones"),
    [
        # largest degree, nodes of each class, nodes without an edge, features that are not 0: of the Planetoid files
        ("cora", 168, [351, 217, 418, 818, 426, 298, 180], 0, 49_216),
        ("citeseer", 99, [249, 590, 668, 701, 596, 508], 48, 105_165),  # and 15 nodes without a label
        ("pubmed", 171, [4103, 7739, 7875], 0, 988_031),
        ("amazon_photo", 1434, [369, 1686, 703, 915, 882, 823, 1941, 331], None, 1_979_909),
    ],
)
def test_published_counts(name, degrees, classes, isolated, ones):
    have(name)
    it = task_of(name)
    declared = data.DATASETS[name]
    assert (it.num_nodes, it.edge_index.shape[1] // 2, it.x.shape[1], it.num_classes) == (
        declared.nodes,
        declared.edges,
        declared.features,
        declared.num_classes,
    )
    degree = torch.bincount(it.edge_index[0], minlength=it.num_nodes)
    assert torch.bincount(it.y[it.labelled]).tolist() == classes
    assert (int(degree.max()), int((it.x != 0).sum())) == (degrees, ones)
    assert isolated is None or int((degree == 0).sum()) == isolated


@needs_data
@pytest.mark.parametrize(("name", "full"), [("cora", 1208), ("citeseer", 1812), ("pubmed", 18_217)])
def test_protocols_are_those_of_the_field(name, full):
    """Public: 20 a class, 500, 1000 (Yang et al. 2016). Full: all others train, the sizes of FastGCN (Chen, Ma & Xiao,
    ICLR 2018).
    """
    have(name)
    public, complete = task_of(name), task_of(name, protocol="full")
    assert torch.bincount(public.y[public.train_mask]).tolist() == [20] * public.num_classes
    assert (int(public.val_mask.sum()), int(public.test_mask.sum())) == (500, 1000)
    assert int(complete.train_mask.sum()) == full
    assert torch.equal(complete.test_mask, public.test_mask)
    drawn = task_of(name, protocol="random")
    assert torch.bincount(drawn.y[drawn.train_mask]).tolist() == [20] * public.num_classes
    assert (int(drawn.val_mask.sum()), int(drawn.test_mask.sum())) == (500, 1000)
    assert not torch.equal(drawn.test_mask, public.test_mask)
    assert not (drawn.train_mask | drawn.val_mask | drawn.test_mask)[~drawn.labelled].any()
