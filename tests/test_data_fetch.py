"""Data sets on other machines: a node without decoders, a download, and what the command line says is there."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

from tests.data_helpers import coded, forget, pixels, same, write_parquet
from tracking.errors import UserError
from workbench import data, data_sources

# --- a machine without decoders -----------------------------------------------------------------------------


def test_a_node_without_pyarrow_reads_what_fetch_wrote(place, monkeypatch):
    write_parquet(place, pixels(), "JPEG")
    expected, origin = data.load("tiny"), data.provenance("tiny")
    node = place.parent / "node"
    assert data.fetch("tiny", node) == node / "tiny.npz"
    assert [p.name for p in node.iterdir()] == ["tiny.npz"]  # no half-written file stays
    forget(monkeypatch)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setenv("WORKBENCH_CACHE", str(place.parent / "empty"))
    with pytest.raises(UserError, match=r"pyarrow.*workbench data fetch tiny --to"):
        data.load("tiny")
    monkeypatch.setenv("WORKBENCH_DATA", str(node))
    assert same(data.load("tiny"), expected)
    assert data.provenance("tiny") == origin
    (node / "tiny.npz").write_bytes((node / "tiny.npz").read_bytes()[:-30])
    with pytest.raises(UserError, match=r"tiny\.npz is damaged"):
        data.load("tiny")
    assert (node / "tiny.npz").exists()


def test_a_parquet_beside_an_npz_does_not_stop_a_node(place, monkeypatch):
    write_parquet(place, pixels())
    data.fetch("tiny", place)
    forget(monkeypatch)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setenv("WORKBENCH_CACHE", str(place.parent / "empty"))
    assert same(data.load("tiny"), pixels())


def test_digits_come_from_sklearn_or_from_the_npz(place, monkeypatch):
    sklearn = pytest.importorskip("sklearn.datasets")
    table = sklearn.load_digits()
    found = data.load("digits")
    assert np.array_equal(np.concatenate([found["train_x"], found["test_x"]])[:, 0], table.images)
    assert np.array_equal(np.concatenate([found["train_y"], found["test_y"]]), table.target)
    data.fetch("digits", place)
    forget(monkeypatch)
    monkeypatch.setattr(data_sources.util, "find_spec", lambda name: None)
    assert same(data.load("digits"), found)
    forget(monkeypatch)
    (place / "digits.npz").unlink()
    with pytest.raises(UserError, match="scikit-learn"):
        data.load("digits")


def test_fetch_into_an_impossible_folder(place):
    write_parquet(place, pixels())
    (place / "file").write_text("")
    with pytest.raises(UserError, match="Name another folder"):
        data.fetch("tiny", place / "file" / "sub")


# --- download -----------------------------------------------------------------------------------------------


class FakeSplit:
    """The part of a Hugging Face data set that is used."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.columns = {"image": [{"bytes": coded(x), "path": None} for x in images], "label": labels.tolist()}

    def __len__(self) -> int:
        return len(self.columns["label"])

    def __getitem__(self, name: str) -> list:
        return self.columns[name]

    def cast_column(self, name: str, feature: object) -> FakeSplit:
        assert name == "image"
        assert feature == "undecoded"
        return self


def test_a_download_is_kept(place, monkeypatch):
    asked = []

    def load_dataset(hub: str, split: str) -> FakeSplit:
        asked.append((hub, split))
        return FakeSplit(pixels()[f"{split}_x"], pixels()[f"{split}_y"])

    fake = types.SimpleNamespace(load_dataset=load_dataset, Image=lambda decode: "undecoded" if not decode else "", __version__="4.0")
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert same(data.load("tiny"), pixels())
    assert same(data.load("tiny"), pixels())
    assert asked == [("someone/tiny", "train"), ("someone/tiny", "test")]
    monkeypatch.setitem(sys.modules, "datasets", None)
    forget(monkeypatch)
    assert same(data.load("tiny"), pixels())
    assert "someone/tiny" in data.provenance("tiny")["source"]
    # a damaged download is fetched again
    (place.parent / "cache" / "tiny.npz").write_bytes(b"PK torn")
    monkeypatch.setitem(sys.modules, "datasets", fake)
    forget(monkeypatch)
    with pytest.warns(UserWarning, match=r"tiny\.npz"):
        assert same(data.load("tiny"), pixels())
    assert len(asked) == 4


def test_a_failing_download_is_one_readable_sentence(place, monkeypatch):
    def load_dataset(hub: str, split: str) -> None:
        raise ConnectionError("no route to host\nlong trace")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(UserError, match="ConnectionError: no route to host") as caught:
        data.load("tiny")
    assert "long trace" not in str(caught.value)


# --- command line -------------------------------------------------------------------------------------------


def row(rows: list[dict], name: str) -> dict:
    (found,) = [r for r in rows if r["name"] == name]
    return found


def test_status_and_verify(place):
    assert row(data.status(), "tiny")["state"] == "missing"
    assert row(data.status(), "digits")["state"] == "embedded"
    assert row(data.status(), "tiny")["bytes"] is None
    path = write_parquet(place, pixels())
    present = row(data.status(), "tiny")
    assert (present["state"], present["where"], present["bytes"]) == ("present", str(path), path.stat().st_size)
    assert row(data.verify("tiny"), "tiny")["ok"]
    data.fetch("tiny")
    assert [r["ok"] for r in data.verify("tiny")] == [True, True]
    path.write_bytes(path.read_bytes()[:-9])
    bad, good = data.verify("tiny")
    assert not bad["ok"]
    assert str(path) in bad["detail"]
    assert good["ok"]
    path.unlink()
    assert row(data.status(), "tiny")["state"] == "cached"
