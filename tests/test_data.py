"""Data sets: decoding, caching, damaged and missing sources."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data_helpers import TINY, forget, pixels, same, write_parquet
from tracking.errors import UserError
from workbench import data, data_files, data_sources


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
