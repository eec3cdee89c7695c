"""Data sets that are no labelled images: from their Parquet files to arrays and back through npz; what is wrong is named."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.data_helpers import coded, forget, same
from tracking.errors import UserError
from workbench import data
from workbench.data_kinds import Declaration, Photographs, Segmented
from workbench.data_texts import Texts, strings

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

PHOTOS = Photographs("photos", "P", "photos_file", 3, 2, licence="none", stand_in="sample_photos/edsr_small")
TRAIN_ONLY = Photographs("photos", "P", "photos_file", 3, 0, licence="none")
MAPS = Segmented("maps", "M", "maps_file", (3, 4, 5), ("a", "b"), 2, 3, 1, 2, licence="none")
PAIRS = Texts("pairs", "T", "pairs_file", ("one", "two"), ("no", "yes"), 4, 2, licence="none")


def photos(count: int = 5) -> tuple[list[np.ndarray], dict[str, list]]:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (3, 3 + i, 7 - i), dtype=np.uint8) for i in range(count)]
    rows = [{"bytes": coded(image), "path": ""} for image in images]
    return images, {"image": rows, "split": ["train", "test", "train", "test", "train"][:count]}


def maps(labels: int = 3) -> tuple[np.ndarray, np.ndarray, dict[str, list]]:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (6, 3, 4, 5), dtype=np.uint8), rng.integers(0, labels, (6, 4, 5), dtype=np.uint8)
    images, annotations = ([{"bytes": coded(i), "path": ""} for i in part] for part in (x, np.stack([y] * 3, 1)))
    return x, y, {"image": images, "annotation": annotations, "split": ["train"] * 3 + ["validation"] + ["test"] * 2}


def pairs(**changes: list) -> dict[str, list]:
    return {"one": ["a", "naïve", "", "d", "e", "f", "g"], "two": ["1", "2", "日本", "4", "5", "6", "7"], "label": [0, 1, 1, 0, 1, 0, -1],
            "split": ["train"] * 4 + ["validation"] * 2 + ["test"]} | changes


@pytest.fixture
def put(place: Path, monkeypatch):
    """Write a declared set's Parquet file and load it."""
    def write(declared: Declaration, columns: dict[str, list]) -> dict[str, np.ndarray]:
        monkeypatch.setitem(data.DATASETS, declared.name, declared)
        pq.write_table(pa.table(columns), place / f"{declared.file}.parquet")
        return data.load(declared.name)

    return write


def test_photographs_keep_their_sizes_and_their_split(put):
    images, columns = photos()
    arrays = put(PHOTOS, columns)
    for split, chosen in (("train", (0, 2, 4)), ("test", (1, 3))):
        assert arrays[f"{split}_sizes"].tolist() == [list(images[i].shape[1:]) for i in chosen]
        assert np.array_equal(arrays[f"{split}_x"], np.concatenate([images[i].ravel() for i in chosen]))
    assert put(TRAIN_ONLY, columns).keys() == {"train_x", "train_sizes"}


def test_annotations_keep_their_classes(put):
    x, y, columns = maps()
    arrays = put(MAPS, columns)
    for split, part in (("train", slice(0, 3)), ("validation", slice(3, 4)), ("test", slice(4, 6))):
        assert np.array_equal(arrays[f"{split}_x"], x[part])
        assert np.array_equal(arrays[f"{split}_y"], y[part])


def test_texts_and_labels_and_no_secret_ones(put):
    arrays = put(PAIRS, pairs())
    assert strings(arrays, "train") == [("a", "1"), ("naïve", "2"), ("", "日本"), ("d", "4")]
    assert strings(arrays, "test") == [("e", "5"), ("f", "6")]
    assert arrays["test_y"].tolist() == [1, 0]
    assert "pairs_file.parquet, sha256" in data.provenance("pairs")["source"]


@pytest.mark.parametrize(("declared", "columns"), [(PHOTOS, lambda: photos()[1]), (MAPS, lambda: maps()[2]), (PAIRS, pairs)])
def test_a_node_without_decoders_reads_what_fetch_wrote(declared, columns, put, place, monkeypatch):
    found, origin = put(declared, columns()), data.provenance(declared.name)
    data.fetch(declared.name, place / "node")
    forget(monkeypatch)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setenv("WORKBENCH_DATA", str(place / "node"))
    monkeypatch.setenv("WORKBENCH_CACHE", str(place / "empty"))
    assert same(data.load(declared.name), found)
    assert data.provenance(declared.name) == origin
    assert [row["ok"] for row in data.verify(declared.name)] == [True]


@pytest.mark.parametrize(("declared", "columns", "words"), [
    (PHOTOS, lambda: photos(4)[1], "train sizes"),
    (MAPS, lambda: maps(labels=9)[2], r"annotations hold \[[3-8, ]+\], expected 0 to 1 and 2"),
    (PAIRS, lambda: pairs(label=[0, 1, 1, 0, 1, 1, -1]), "test labels are"),
    (PAIRS, lambda: pairs(label=[0, 1, 2, 0, 1, 0, -1]), "train labels are"),
    (PAIRS, lambda: pairs(split=["train"] * 5 + ["validation"] + ["test"]), "train ends"),
    (PAIRS, lambda: {k: v for k, v in pairs().items() if k != "two"}, "two"),
    (PAIRS, lambda: pairs(one=["a", None, "c", "d", "e", "f", "g"]), "damaged"),
])
def test_a_wrong_source_is_refused_by_name(declared, columns, words, put):
    with pytest.raises(UserError, match=words) as caught:
        put(declared, columns())
    assert f"{declared.file}.parquet" in str(caught.value)


def test_an_altered_npz_is_refused(put, place, monkeypatch):
    put(PAIRS, pairs())
    data.fetch("pairs", place)
    (place / "pairs_file.parquet").unlink()
    with np.load(place / "pairs.npz") as file:
        arrays = dict(file)
    arrays["train_ends"][0] = arrays["train_ends"][0, ::-1].copy()  # the second text would end before the first
    np.savez(place / "pairs.npz", **arrays)
    forget(monkeypatch)
    with pytest.raises(UserError, match="end before they begin"):
        data.load("pairs")


def test_spread_takes_even_steps():
    assert data.spread(10, 0).tolist() == list(range(10))
    assert data.spread(10, 5).tolist() == [0, 2, 4, 6, 8]
    assert data.spread(7, 3).tolist() == [0, 2, 4]
    with pytest.raises(UserError, match="8 samples asked for, 7 exist"):
        data.spread(7, 8)
