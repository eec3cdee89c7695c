"""Graphs from files and downloads: Wiki-CS as PyG reads it, graphs of one's own, and what is said of bad ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data_helpers import forget, same
from tests.graph_helpers import task_of
from tracking.errors import UserError
from workbench import data
from workbench.data_graphs import NodeGraphs, check_edges, from_pyg, wiki_arrays
from workbench.datasets.graphs import GraphTask
from workbench.provenance import data_digest

# --- Wiki-CS and graphs of one's own ------------------------------------------------------------------------

SMALL = NodeGraphs(
    "smallwiki",
    "S",
    "",
    12,
    0,
    3,
    3,
    licence="none",
    splits=2,
    sparse=False,
    json_file="wikics/data.json",
    stand_in="sbm/node",
)


def wiki_table() -> dict[str, list]:
    """Twelve articles in the format of Wiki-CS's data.json: links of one direction, of both, repeated, and to
    oneself.
    """
    rng = np.random.default_rng(0)
    masks = [[[bool((i + s) % 4 == k) for i in range(12)] for s in range(2)] for k in range(3)]
    return {
        "features": rng.standard_normal((12, 3)).round(3).tolist(),
        "labels": [i % 3 for i in range(12)],
        "links": [[(i + 1) % 12, (i + 5) % 12, (i + 5) % 12] if i % 2 else [i, (i + 7) % 12] for i in range(12)],
        "train_masks": masks[0],
        "val_masks": masks[1],
        "stopping_masks": masks[2],
        "test_mask": [i % 4 == 3 for i in range(12)],
    }


@pytest.fixture
def wiki(place: Path, monkeypatch) -> Path:
    monkeypatch.setitem(data.DATASETS, "smallwiki", SMALL)
    (place / "wikics").mkdir()
    path = place / "wikics" / "data.json"
    path.write_text(json.dumps(wiki_table()))
    return path


def test_wiki_cs_is_read_as_pyg_reads_it(wiki, place, tmp_path):
    datasets = pytest.importorskip("torch_geometric.datasets")
    (tmp_path / "pyg" / "raw").mkdir(parents=True)
    (tmp_path / "pyg" / "raw" / "data.json").write_text(wiki.read_text())
    theirs = from_pyg(datasets.WikiCS(str(tmp_path / "pyg"), is_undirected=True)[0], SMALL)
    ours = data.load("smallwiki")
    assert same(ours, theirs)
    assert same(wiki_arrays(wiki_table()), ours)
    check_edges(ours["edge_index"], 12)
    assert "data.json, sha256" in data.provenance("smallwiki")["source"]


def test_wiki_cs_has_a_split_a_number_and_goes_through_npz(wiki, place, monkeypatch):
    found = data.load("smallwiki")
    for number in (0, 1):
        graph = SMALL.graph(found, number)
        assert graph.masks.keys() == {"train", "val", "stopping", "test"}
        assert graph.masks["train"].tolist() == wiki_table()["train_masks"][number]
        assert graph.masks["test"].tolist() == wiki_table()["test_mask"]
    first = data_digest("smallwiki")
    data.fetch("smallwiki", place)
    wiki.unlink()
    forget(monkeypatch)
    assert same(data.load("smallwiki"), found)
    assert data_digest("smallwiki") == first
    table = wiki_table()
    table["labels"] = [0] * 12
    wiki.write_text(json.dumps(table))
    (place / "smallwiki.npz").unlink()
    forget(monkeypatch)
    with pytest.raises(UserError, match=r"data\.json is damaged or not.*labels are"):
        data.load("smallwiki")
    wiki.write_text("{")
    forget(monkeypatch)
    with pytest.raises(UserError, match=r"data\.json is damaged"):
        data.load("smallwiki")


@pytest.mark.parametrize(
    ("name", "file"),
    [("cora", "cora.npz"), ("wikics", r"wikics\.npz and wikics/data\.json"), ("amazon_photo", "amazon_photo.npz")],
)
def test_without_data_and_network_the_error_says_what_to_do(name, file, place, monkeypatch):
    datasets = pytest.importorskip("torch_geometric.datasets")
    for loader in ("Planetoid", "WikiCS", "Amazon"):
        monkeypatch.setattr(datasets, loader, _no_network)
    with pytest.raises(UserError, match=f"Looked for {file}") as caught:
        data.load(name)
    for words in ("ConnectionError: no network", f"workbench data fetch {name}", "'sbm/node' needs no data"):
        assert words in str(caught.value)
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    with pytest.raises(UserError, match=r"PyG.*is not installed: pip install 'efficient-workbench\[graphs\]'"):
        data.load(name)


def _no_network(*_, **__):
    raise ConnectionError("no network")


def test_a_download_becomes_the_same_arrays_and_is_kept(place, monkeypatch):
    """PyG's loader replaced by one that gives a graph at hand: through the conversion, the check and the cache."""
    datasets, pyg = pytest.importorskip("torch_geometric.datasets"), pytest.importorskip("torch_geometric.data")
    declared = NodeGraphs(
        "tinygraph",
        "T",
        "",
        5,
        4,
        3,
        2,
        licence="none",
        hub="Planetoid:Tiny",
        splits=1,
        sizes=(2, 1, 1),
        unlabelled=True,
    )
    monkeypatch.setitem(data.DATASETS, "tinygraph", declared)
    edges = torch.tensor([[0, 1, 2, 3, 0, 0], [1, 2, 3, 0, 1, 0]])
    at = torch.arange(5)
    graph = pyg.Data(
        x=torch.tensor([[1.0, 0, 2], [0, 0, 1], [3, 0, 0], [0, 1, 0], [0, 0, 0]]),
        edge_index=edges,
        y=torch.tensor([0, 1, 0, 1, 0]),
        train_mask=at < 2,
        val_mask=at == 2,
        test_mask=at == 3,
    )
    monkeypatch.setattr(datasets, "Planetoid", lambda root, name: [graph])
    arrays = data.load("tinygraph")
    assert "PyG" in data.provenance("tinygraph")["source"]
    found = declared.graph(arrays)
    assert np.array_equal(found.x, graph.x)
    assert found.labelled.tolist() == [True] * 4 + [False], "no words and no citations: a place-holder"
    assert found.edge_index.shape == (2, 8)
    forget(monkeypatch)
    monkeypatch.setattr(datasets, "Planetoid", _no_network)
    assert same(data.load("tinygraph"), arrays)


def own(path: Path, seed: int = 0, **values) -> GraphTask:
    return task_of("own_graph", seed, path=str(path), **values)


def test_a_graph_of_one_s_own(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.standard_normal((40, 3)),
        "edge_index": np.array([[0, 1, 1, 5, 5], [1, 0, 2, 5, 6]]),
        "y": np.arange(40) % 3,
    }
    arrays["y"][7] = -1
    np.savez(tmp_path / "g.npz", **arrays)
    it = own(tmp_path / "g.npz")
    assert it.edge_index.tolist() == [[0, 1, 1, 2, 5, 6], [1, 0, 2, 1, 6, 5]]
    assert not it.labelled[7]
    assert int(it.labelled.sum()) == 39
    assert len(it.provenance()["digest"]) == 16
    with pytest.raises(UserError, match="no split of its own"):
        own(tmp_path / "g.npz", protocol="public")
    masks = {f"{name}_mask": np.arange(40) % 4 == k for k, name in enumerate(("train", "val", "test"))}
    np.savez(tmp_path / "m.npz", **arrays, **masks)
    assert np.array_equal(own(tmp_path / "m.npz", protocol="public").test_mask, masks["test_mask"])
    data_module = pytest.importorskip("torch_geometric.data")
    torch.save(
        data_module.Data(
            x=torch.from_numpy(arrays["x"]),
            edge_index=torch.from_numpy(arrays["edge_index"]),
            y=torch.from_numpy(arrays["y"]),
        ),
        tmp_path / "g.pt",
    )
    twin = own(tmp_path / "g.pt")
    for name in ("x", "edge_index", "y", "train_mask", "labelled"):
        assert torch.equal(getattr(it, name), getattr(twin, name)), name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"y": None}, "it has no array 'y'"),
        ({"x": None}, "cannot be read as a graph"),
        ({"y": np.arange(3)}, r"labels are of 3 nodes"),
        ({"x": np.full((6, 2), np.nan)}, "NaN"),
        ({"edge_index": np.array([[0], [6]])}, "nodes 0 to 6, there are 6"),
        ({"y": np.array([0, 2, 0, 2, 0, 2])}, r"labels are \[0, 2\]"),
        ({"train_mask": np.ones(6, bool)}, "a split needs"),
        ({"edge_index": np.array([[0.5], [1.5]])}, "cannot be read as a graph"),
    ],
)
def test_a_bad_graph_of_one_s_own_is_named(tmp_path, changes, words):
    arrays = {"x": np.ones((6, 2)), "edge_index": np.array([[0], [1]]), "y": np.arange(6) % 2} | changes
    np.savez(tmp_path / "g.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(UserError, match=words) as caught:
        own(tmp_path / "g.npz")
    assert "g.npz" in str(caught.value)


def test_a_file_that_is_no_graph_is_named(tmp_path):
    for name, words in (
        ("no.npz", "There is no file"),
        ("no.csv", "neither .npz nor .pt"),
        ("bad.npz", "cannot be read"),
        ("bad.pt", "cannot be read"),
    ):
        if words != "There is no file":
            (tmp_path / name).write_bytes(b"junk")
        if name.endswith(".pt"):
            pytest.importorskip("torch_geometric")
        with pytest.raises(UserError, match=words):
            own(tmp_path / name)
    with pytest.raises(UserError, match="needs a file: set its parameter 'path'"):
        task_of("own_graph")


def test_a_pickle_in_a_file_is_not_run(tmp_path):
    pytest.importorskip("torch_geometric")

    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    torch.save(Harm(), tmp_path / "g.pt")
    with pytest.raises(UserError, match="no plain PyG Data"):
        own(tmp_path / "g.pt")
    assert not (tmp_path / "harm").exists()
