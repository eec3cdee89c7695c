"""A tiny data set: its declaration, its pixels, and the source file it is decoded from."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from workbench import data

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


def forget(monkeypatch) -> None:
    """What a new process would start with."""
    monkeypatch.setattr(data, "_memory", {})


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)
