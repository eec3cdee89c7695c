"""Class-balanced subsets, and the real files where WORKBENCH_DATA names them."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracking.errors import UserError
from workbench import data

# --- subsets ------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.data())
def test_balanced_subset_is_the_slow_round_robin(labels, draw):
    size = draw.draw(st.integers(1, len(labels)))
    queues = {c: [i for i, y in enumerate(labels) if y == c] for c in set(labels)}
    taken: list[int] = []
    while len(taken) < size:
        turn = sorted(q.pop(0) for q in queues.values() if q)
        taken += turn[:size - len(taken)]
    assert data.balanced_subset(np.array(labels), size).tolist() == sorted(taken)


def test_balanced_subset_limits():
    labels = np.repeat(np.arange(10), 10)  # sorted by class, as a test split can be
    assert np.bincount(labels[data.balanced_subset(labels, 50)]).tolist() == [5] * 10
    assert np.array_equal(data.balanced_subset(labels, 0), np.arange(100))
    with pytest.raises(UserError, match="101 samples asked for, 100 exist"):
        data.balanced_subset(labels, 101)


# --- the real files -----------------------------------------------------------------------------------------

needs_data = pytest.mark.skipif(not os.environ.get("WORKBENCH_DATA"), reason="WORKBENCH_DATA is not set")


def have(name: str) -> dict[str, np.ndarray]:
    if not data.sources_of(data.DATASETS[name]):
        pytest.skip(f"{name} is not in $WORKBENCH_DATA")
    return data.load(name)


@needs_data
@pytest.mark.parametrize(("name", "per_class", "labels"), [
    ("mnist", [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949], [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]),
    ("fashion_mnist", [6000] * 10, [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]),
    ("cifar10", [5000] * 10, [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]),
])
def test_published_counts_and_first_labels(name, per_class, labels):
    found = have(name)
    assert np.bincount(found["train_y"]).tolist() == per_class
    assert found["train_y"][:10].tolist() == labels


@needs_data
def test_cifar10_deviates_from_the_lossless_images_by_what_the_note_says():
    found = have("cifar10")
    path = Path(os.environ["WORKBENCH_DATA"]) / "cifar10_lossless_2k.parquet"
    if "JPEG" not in data.provenance("cifar10")["source"] or not path.exists():
        pytest.skip("needs the JPEG-coded set and the lossless sample")
    pq = pytest.importorskip("pyarrow.parquet")
    Image = pytest.importorskip("PIL.Image")
    table = pq.read_table(path)
    original = np.stack([np.asarray(Image.open(io.BytesIO(r["bytes"])).convert("RGB")) for r in table["image"].to_pylist()])
    ours = found["train_x"][table["train_index"].to_numpy()].transpose(0, 2, 3, 1)
    error = ((original.astype(float) - ours) ** 2).mean((1, 2, 3))
    psnr = 10 * np.log10(255**2 / error)
    # the note's figures are of 4,000 images, these are the first 2,000 of them
    assert abs(psnr.mean() - 30.5) < 0.2
    assert psnr.min() > 23
