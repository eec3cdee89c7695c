"""Data sets: decoding, caching, faults, a machine without decoders."""

from __future__ import annotations

import io
import os
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracking import journal
from tracking.errors import UserError
from tracking.metrics import METRICS
from workbench import data, data_files, data_sources
from workbench.provenance import data_digest
from workbench.runs import Run, RunFailed, run

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
Image = pytest.importorskip("PIL.Image")

TINY = data.Dataset("tiny", "Tiny", "tiny_file", (3, 8, 6), 4, train=24, test=8, licence="none", hub="someone/tiny",
                    stand_in="digits/cnn", note="lossy", note_coding="JPEG")


def pixels(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"train_x": rng.integers(0, 256, (24, 3, 8, 6), dtype=np.uint8), "train_y": np.arange(24) % 4,
            "test_x": rng.integers(0, 256, (8, 3, 8, 6), dtype=np.uint8), "test_y": np.arange(8) // 2}


def coded(image: np.ndarray, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, form)
    return file.getvalue()


def write_parquet(folder: Path, arrays: dict[str, np.ndarray], form: str = "PNG", **columns: list) -> Path:
    folder.mkdir(exist_ok=True)
    images = [{"bytes": coded(x, form), "path": f"{i}.png"} for i, x in enumerate((*arrays["train_x"], *arrays["test_x"]))]
    table = {"image": images, "label": [*arrays["train_y"].tolist(), *arrays["test_y"].tolist()],
             "split": ["train"] * len(arrays["train_y"]) + ["test"] * len(arrays["test_y"])} | columns
    path = folder / "tiny_file.parquet"
    pq.write_table(pa.table({k: v for k, v in table.items() if v is not None}), path)
    return path


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty data folder and cache, and the tiny declaration."""
    monkeypatch.setitem(data.DATASETS, "tiny", TINY)
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "_memory", {})
    monkeypatch.setitem(sys.modules, "datasets", None)  # importing it fails
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def forget(monkeypatch) -> None:
    """What a new process would start with."""
    monkeypatch.setattr(data, "_memory", {})


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def no_reading(*_):
    raise AssertionError("the source was decoded again")


# --- decoding and caching -----------------------------------------------------------------------------------


def test_png_is_exact_and_is_loaded_once(place):
    write_parquet(place, pixels())
    found = data.load("tiny")
    assert same(found, pixels())
    assert data.load("tiny")["train_x"] is found["train_x"]
    origin = data.provenance("tiny")
    assert "tiny_file.parquet (PNG), sha256" in origin["source"]
    assert "note" not in origin  # the note speaks of JPEG


def test_rows_in_any_order_keep_their_labels(place):
    arrays = pixels()
    splits = np.array(["train"] * 24 + ["test"] * 8)
    mixed = np.random.default_rng(1).permutation(32)
    x, y = (np.concatenate([arrays[f"train_{k}"], arrays[f"test_{k}"]])[mixed] for k in "xy")
    write_parquet(place, {"train_x": x, "train_y": y, "test_x": x[:0], "test_y": y[:0]}, split=splits[mixed].tolist())
    found = data.load("tiny")
    for split in ("train", "test"):
        assert np.array_equal(found[f"{split}_x"], x[splits[mixed] == split])
        assert np.array_equal(found[f"{split}_y"], y[splits[mixed] == split])


def test_jpeg_coding_is_reported(place, monkeypatch):
    write_parquet(place, pixels(), "JPEG")
    for _ in range(2):  # decoded, then from the cache
        assert data.provenance("tiny")["note"] == "lossy"
        assert "JPEG" in data.provenance("tiny")["source"]
        forget(monkeypatch)


def test_a_second_process_reads_the_cache(place, monkeypatch):
    write_parquet(place, pixels())
    origin = data.provenance("tiny")
    forget(monkeypatch)
    monkeypatch.setattr(data_sources, "read_parquet", no_reading)
    assert same(data.load("tiny"), pixels())
    assert data.provenance("tiny") == origin


def test_a_changed_source_is_decoded_afresh_and_its_old_copy_goes(place):
    write_parquet(place, pixels())
    data.load("tiny")
    path = write_parquet(place, pixels(seed=5))
    os.utime(path, ns=(1, 1))  # coarse clocks: the change must show in the time stamp
    assert same(data.load("tiny"), pixels(seed=5))
    assert len(list((place.parent / "cache" / "decoded").iterdir())) == 1


def test_a_damaged_cache_is_named_removed_and_rebuilt(place, monkeypatch):
    write_parquet(place, pixels())
    data.load("tiny")
    (path,) = (place.parent / "cache" / "decoded").iterdir()
    whole = path.read_bytes()
    for broken in (whole[:-100], whole[:50], b"", whole[:600] + bytes([whole[600] ^ 1]) + whole[601:]):
        path.write_bytes(broken)
        forget(monkeypatch)
        with pytest.warns(UserWarning, match=path.name):
            assert same(data.load("tiny"), pixels())
        assert same(data_files.read_npz(path, TINY).arrays, pixels())


@settings(max_examples=150, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), compress=st.booleans())
def test_no_flipped_byte_of_an_npz_goes_unseen(where, flip, compress):
    """A flip in a field that carries no data (a time stamp) may pass; then the arrays are still the right ones."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.npz"
        data_files.write_npz(path, data_files.Decoded(pixels(), "here"), compress=compress)
        raw = bytearray(path.read_bytes())
        raw[int(where * len(raw))] ^= flip
        path.write_bytes(raw)
        try:
            assert same(data_files.read_npz(path, TINY).arrays, pixels())
        except data_files.Damaged as error:
            message = str(error)
        else:
            return
        assert str(path) in message


def test_an_unwritable_cache_costs_only_the_caching(place, monkeypatch):
    (place.parent / "file").write_text("not a folder")
    monkeypatch.setenv("WORKBENCH_CACHE", str(place.parent / "file" / "cache"))
    write_parquet(place, pixels())
    with pytest.warns(UserWarning, match="not kept"):
        assert same(data.load("tiny"), pixels())
    assert not list(place.glob(".*"))


# --- damaged and missing sources ----------------------------------------------------------------------------


def with_label(value: int) -> dict[str, np.ndarray]:
    arrays = pixels()
    arrays["train_y"] = np.where(arrays["train_y"] == 3, value, arrays["train_y"])
    return arrays


FAULTS = {
    "one image too few": (lambda d: write_parquet(d, {k: v[1:] if "train" in k else v for k, v in pixels().items()}), "train images"),
    "a label out of range": (lambda d: write_parquet(d, with_label(4)), "train labels"),
    "a class without a sample": (lambda d: write_parquet(d, with_label(2)), "train labels"),
    "images of another size": (lambda d: write_parquet(d, {k: v.swapaxes(2, 3) if "x" in k else v for k, v in pixels().items()}),
                               "8x6, expected 6x8"),
    "no label column": (lambda d: write_parquet(d, pixels(), label=None), "label"),
    "labels that are words": (lambda d: write_parquet(d, pixels(), label=["cat"] * 32), "cat|str|cast"),
    "no split": (lambda d: write_parquet(d, pixels(), split=["validation"] * 32), "train images"),
    "images that are none": (lambda d: write_parquet(d, pixels(), image=[{"bytes": b"GIF89a??", "path": ""}] * 32), "image"),
    "images as text": (lambda d: write_parquet(d, pixels(), image=["x"] * 32), "damaged"),
    "no Parquet": (lambda d: (d / "tiny_file.parquet").write_bytes(b"404 not found"), "damaged"),
    "an empty file": (lambda d: (d / "tiny_file.parquet").write_bytes(b""), "damaged"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_source_is_refused_by_name(place, fault):
    make, words = FAULTS[fault]
    make(place)
    with pytest.raises(UserError, match=words) as caught:
        data.load("tiny")
    assert str(place / "tiny_file.parquet") in str(caught.value)
    assert (place / "tiny_file.parquet").exists()  # a person's file is not ours to remove
    assert not (place.parent / "cache" / "decoded").exists()


def test_a_truncated_source_is_refused(place):
    path = write_parquet(place, pixels())
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"tiny_file\.parquet is damaged"):
        data.load("tiny")


@pytest.mark.parametrize("kind", ["parquet", "npz"])
def test_checksums_of_the_folder_are_believed(place, kind):
    path = write_parquet(place, pixels())
    if kind == "npz":
        data.fetch("tiny", place)
        path.unlink()
        path = place / "tiny.npz"
    (place / "SHA256SUMS").write_text(f"{'0' * 64}  other.parquet\n{data_files.check_sum(path)} *{path.name}\n")
    data.load("tiny")
    data._memory.clear()
    (place / "SHA256SUMS").write_text(f"{'0' * 64}  {path.name}\n")
    os.utime(path, ns=(1, 1))
    with pytest.raises(UserError, match="sha256") as caught:
        data.load("tiny")
    assert str(path) in str(caught.value)


def test_a_missing_set_says_what_to_do(place, monkeypatch):
    with pytest.raises(UserError) as caught:
        data.load("tiny")
    for words in ("tiny_file.parquet", "tiny.npz", "WORKBENCH_DATA", str(place), str(place.parent / "cache"),
                  "workbench data fetch tiny", "'digits/cnn'", "download", "datasets"):
        assert words in str(caught.value)
    monkeypatch.delenv("WORKBENCH_DATA")
    with pytest.raises(UserError, match="not set"):
        data.load("tiny")
    monkeypatch.setenv("WORKBENCH_DATA", "/nowhere/at/all")
    with pytest.raises(UserError, match="no such folder"):
        data.load("tiny")
    with pytest.raises(UserError, match="Did you mean 'mnist'"):
        data.load("mnsit")


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


# --- runs and their data ------------------------------------------------------------------------------------

TASK = '''
from workbench.datasets.images import ImageTask


class Tiny(ImageTask):
    """Noise in four classes."""

    dataset, models, title, kind, embedded = "tiny", ("mlp",), "Tiny", "classification", False
    mean, std = (0.5, 0.5, 0.5), (0.3, 0.3, 0.3)
'''


@pytest.fixture
def task(place, tmp_path, monkeypatch) -> Path:
    """A task on the tiny data set; returns the folder of the data."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "tiny.py").write_text(TASK)
    monkeypatch.setenv("WORKBENCH_PLUGINS", str(tmp_path / "plugins"))
    return place


def go(**options) -> Run:
    common = {"threads": 1, "device": "cpu", "tracking": "off", "progress": False}
    return run("binaryconnect", "tiny/mlp", {"epochs": 4, "batch_size": 8}, **common | options)


def lasting(r: Run) -> list[dict[str, float]]:
    return [{k: v for k, v in e.values.items() if not METRICS[k].volatile} for e in journal.read(r.folder.journal_path)]


def test_the_digest_is_of_the_content(place, tmp_path, monkeypatch):
    assert data_digest("tiny") is None  # nothing at hand, and nothing is downloaded
    assert data_digest("two_moons") is None
    write_parquet(place, pixels())
    first = data_digest("tiny")
    assert len(first) == 16
    assert data_digest("tiny") == first
    data.fetch("tiny", tmp_path / "elsewhere")
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "elsewhere"))
    assert data_digest("tiny") == first  # another folder, another form
    np.savez(tmp_path / "elsewhere" / "tiny.npz", **pixels())
    assert "unstated" in data.provenance("tiny")["source"]
    assert data_digest("tiny") == first
    for name in ("train_x", "test_y"):  # one value of one array, in a file that says nothing of its origin
        changed = pixels()
        changed[name] = np.roll(changed[name], 1, axis=0)
        np.savez(tmp_path / "elsewhere" / "tiny.npz", **changed)
        assert data_digest("tiny") != first


def test_a_finished_run_on_other_data_is_repeated(task, tmp_path, monkeypatch, caplog):
    write_parquet(task, pixels())
    first = go()
    before, figures = first.folder.read_run(), lasting(first)
    assert before["tags"]["data.digest"] == data_digest("tiny")
    assert go().cached
    assert not caplog.records
    write_parquet(task, pixels(1))
    other = go()
    assert not other.cached
    assert "is repeated: the data set 'tiny' here is not the one of its kept figures" in caplog.text
    after = other.folder.read_run()
    assert (other.key, after["tags"]["workbench.attempt"]) == (first.key, "1")
    for key in ("data.digest", "data.source"):
        assert before["tags"][key] != after["tags"][key]
    assert before["dataset"]["digest"] != after["dataset"]["digest"]
    assert lasting(other) != figures
    assert go().cached
    data.fetch("tiny", tmp_path / "moved")  # the same data in another folder are no other data
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "moved"))
    assert go().cached
    write_parquet(tmp_path / "moved", pixels())
    again = go()
    assert not again.cached
    assert lasting(again) == figures


def test_a_finished_run_outlives_its_data(task):
    path = write_parquet(task, pixels())
    figures = lasting(go())
    path.write_bytes(path.read_bytes()[:-9])
    assert go().cached
    path.unlink()
    kept = go()
    assert kept.cached
    assert lasting(kept) == figures


def test_an_interrupted_run_goes_on_with_its_own_data_only(task):
    seen = []

    def stumble(report) -> None:
        seen.append(report.step)
        if len(seen) == 3:
            raise RuntimeError("power cut")

    write_parquet(task, pixels())
    figures = lasting(go())
    with pytest.raises(RunFailed, match="power cut"):
        go(fresh=True, observer=stumble, checkpoint_s=0)
    source = data.provenance("tiny")["source"]
    write_parquet(task, pixels(1))
    with pytest.raises(RunFailed, match="begun on other data") as caught:
        go()
    for words in (source, data.provenance("tiny")["source"], "fresh=True"):
        assert words in str(caught.value)
    write_parquet(task, pixels())
    resumed = go(observer=lambda report: seen.append(report.step))
    assert lasting(resumed) == figures
    assert seen[3:] == sorted(set(seen[3:]) - set(seen[:2]))  # from the checkpoint on, which has the first two reports
    write_parquet(task, pixels(1))
    assert lasting(go(fresh=True)) != figures


def test_the_store_shows_the_digest_of_the_data(task, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/m.db"
    digests = []
    for seed in (0, 1):
        write_parquet(task, pixels(seed))
        ended = go(tracking=uri)
        cursor, = ended.folder.read_cursors().values()
        (entry,) = mlflow.MlflowClient(uri).get_run(cursor["run_id"]).inputs.dataset_inputs
        assert (entry.dataset.name, entry.dataset.digest) == ("tiny", ended.folder.read_run()["dataset"]["digest"])
        digests.append(entry.dataset.digest)
    assert digests[0] != digests[1]
