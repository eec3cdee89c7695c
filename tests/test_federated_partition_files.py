"""Partitions: each refusal by its rule, and files of who holds what."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_federated_partition import LABELS, federations
from tracking.errors import UserError
from workbench.federation.partition import Partition, dirichlet, iid, partition, shards
from workbench.federation.partition_file import by_file
from workbench.federation.partition_shift import feature_shift

# --- refusals -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("call", "rule"), [
    (lambda: iid(LABELS, 7), "1 <= x <= 6"),
    (lambda: iid(LABELS, 0), "1 <= x <= 6"),
    (lambda: iid(LABELS, True), "1 <= x <= 6"),
    (lambda: iid(LABELS, 2, 0.5), "seed = 0.5"),
    (lambda: iid(LABELS.astype(float), 2), "whole numbers, not float64"),
    (lambda: iid(LABELS.reshape(2, 3), 2), "vector of whole numbers"),
    (lambda: iid(LABELS - 1, 2), "-1 is refused"),
    (lambda: iid(LABELS[:0], 1), "there are none"),
    (lambda: shards(LABELS, 2, 3), "the data have 2 classes"),
    (lambda: shards(LABELS, 2, 0), "1 or more"),
    (lambda: shards(LABELS, 1, 1), "clients x classes_per_client >= 2"),
    (lambda: shards(LABELS, 4, 2), "class 0 has 3 samples for 4 clients"),
    (lambda: shards(LABELS, 2, 1, scheme="sort"), "Did you mean 'sorted'"),
    (lambda: dirichlet(LABELS, 2, 0), "0 < x <= 1e6"),
    (lambda: dirichlet(LABELS, 2, math.nan), "0 < x <= 1e6"),
    (lambda: dirichlet(LABELS, 2, -1, sizes="fedfix"), "0 < x <= 1e6"),
    (lambda: dirichlet(LABELS, 2, 1, min_size=4), "1 <= x <= 3"),
    (lambda: dirichlet(LABELS, 2, 1, min_size=0), "1 <= x <= 3"),
    (lambda: dirichlet(LABELS, 2, 1, sizes="fedfax"), "Did you mean 'fedfix'"),
    (lambda: dirichlet(LABELS, 6, 1e-6), "none of 1000 draws"),  # two classes, two clients: four are empty
    (lambda: partition("shard", LABELS, 2, seed=0), "Did you mean 'shards'"),
    (lambda: feature_shift(LABELS, 2, angle_deg=(0, 1, 2)), "1 to 2"),
    (lambda: feature_shift(LABELS, 2, contrast=(-1,)), "0 or more"),
    (lambda: feature_shift(LABELS, 2, noise=(math.inf,)), "finite"),
    (lambda: Partition([0, 2, 1], [0, 1]), "offsets must ascend"),
    (lambda: Partition([0, 1], [0.0]), "index must be a vector of whole numbers"),
    (lambda: Partition([0, 1, 1], [0]).check(6), "client 1 has no sample"),
    (lambda: Partition([0], np.array([], int)).check(6), "there is no client"),
    (lambda: Partition([0, 1], [6]).check(6), "sample 6 does not exist. Allowed: 0 to 5"),
    (lambda: Partition([0, 1, 2], [3, 3]).check(6), "sample 3 is given out 2 times"),
    (lambda: Partition([0, 2], [0, 1]).check(6, covering=True), "4 of 6 samples are given to nobody, the first is 2"),
])
def test_refusals_name_the_rule(call, rule):
    with pytest.raises(UserError) as error:
        call()
    assert rule in str(error.value)


def test_a_partition_cannot_be_changed():
    p = iid(LABELS, 2)
    with pytest.raises(ValueError, match="read-only"):
        p.of(0)[0] = 3


# --- files --------------------------------------------------------------------------------------------------


@given(federations(), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_files_give_back_what_was_written(tmp_path_factory, federation, seed):
    labels, n = federation
    folder, p = tmp_path_factory.mktemp("partition"), iid(labels, n, seed, drop_remainder=True)
    np.savez(folder / "csr.npz", offsets=p.offsets, index=p.index)
    client = np.full(len(labels), -1)
    client[p.index] = p.owners
    np.savez(folder / "vector.npz", client=client)
    rows = np.random.default_rng(seed).permutation(np.stack([p.index, p.owners], 1))
    (folder / "pairs.csv").write_text("\ufeffsample,client\n" + "".join(f"{s},{c}\n" for s, c in rows), "utf-8")
    for name in ("csr.npz", "vector.npz", "pairs.csv"):
        read = by_file(folder / name, len(labels))
        assert np.array_equal(read.offsets, p.offsets)
        assert np.array_equal(read.index, p.index)


@pytest.mark.parametrize(("name", "content", "rule"), [
    ("a.csv", "client,sample\n0,0\n", "Allowed: sample,client"),
    ("a.csv", "", "Allowed: sample,client"),
    ("a.csv", "sample,client\n", "gives no sample"),
    ("a.csv", "sample,client\n0,0\n1,x\n", "line 3 is '1,x'"),
    ("a.csv", "sample,client\n0\n", "line 2 is '0'"),
    ("a.csv", "sample,client\n0,-1\n", "client -1 is refused"),
    ("a.csv", "sample,client\n0,0\n1,2\n2,2\n", "client 1 has no sample"),
    ("a.csv", "sample,client\n0,900\n", "without gaps"),
    ("a.csv", "sample,client\n9,0\n", "sample 9 does not exist"),
    ("a.csv", "sample,client\n1,0\n1,0\n", "given out 2 times"),
    ("a.txt", "", "Allowed: .csv, .npz"),
    ("a.npz", "no archive", "cannot be read"),
    ("a.npz", {"owner": np.zeros(6, int)}, "Allowed: offsets and index, or client alone"),
    ("a.npz", {"client": np.zeros(5, int)}, "client must be 6 whole numbers"),
    ("a.npz", {"client": np.zeros(6)}, "client must be 6 whole numbers"),
    ("a.npz", {"client": np.full(6, -1)}, "gives no sample"),
    ("a.npz", {"client": np.array([None] * 6)}, "cannot be read"),
    ("a.npz", {"offsets": np.array([0, 2]), "index": np.array([0, 0])}, "given out 2 times"),
])
def test_bad_files_are_refused_by_name_and_rule(tmp_path, name, content, rule):
    if isinstance(content, str):
        (tmp_path / name).write_text(content)
    else:
        np.savez(tmp_path / name, **content)
    with pytest.raises(UserError) as error:
        by_file(tmp_path / name, 6)
    assert name in str(error.value)
    assert rule in str(error.value)
    with pytest.raises(UserError, match="does not exist"):
        by_file(tmp_path / "none.csv", 6)


def test_a_file_may_repeat_samples_where_it_is_allowed(tmp_path):
    (tmp_path / "a.csv").write_text("sample,client\n1,0\n1,1\n")
    assert by_file(tmp_path / "a.csv", 6, repeats=True).class_counts(LABELS).tolist() == [[1, 0], [1, 0]]
