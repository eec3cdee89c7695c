"""Named data sets as arrays: what exists, where it is looked for, and what to do when it is not there.

Sources, in this order: ``<file>.parquet`` or ``<name>.npz`` in the folder ``$WORKBENCH_DATA``, the same in the user's cache
folder (``$WORKBENCH_CACHE``, default ``~/.cache/workbench``), a download through Hugging Face ``datasets``. Digits come from
scikit-learn, and from ``digits.npz`` where that is not installed. Decoding coded images takes seconds, so decoded arrays
are kept in the cache folder; a compute node that can decode nothing reads the ``<name>.npz`` which :func:`fetch` writes.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tracking.errors import UserError, unknown
from workbench.data_files import Damaged, Decoded, write_npz
from workbench.data_sources import cache_folder, read_any, sources_of, state_of


@dataclass(frozen=True)
class Dataset:
    """Declaration of an image data set."""

    name: str
    title: str
    file: str
    """Name of the Parquet file, without suffix."""
    shape: tuple[int, int, int]
    """(channels, height, width)."""
    num_classes: int
    train: int
    test: int
    licence: str
    hub: str = ""
    """Hugging Face id, empty when there is none."""
    hub_image: str = "image"
    stand_in: str = "digits/mlp"
    """Embedded task that needs neither a file nor a network."""
    embedded: bool = False
    note: str = ""
    """What a reader of a figure should know of the data."""
    note_coding: str = ""
    """Coding of the images that the note speaks of; empty: it always holds."""


DATASETS: dict[str, Dataset] = {d.name: d for d in (
    Dataset("digits", "Optical recognition of handwritten digits, 8x8", "digits", (1, 8, 8), 10, 1437, 360,
            "CC BY 4.0 (UCI)", embedded=True,
            note="The 1,797 images of scikit-learn in their order: the first 1,437 train, the last 360 test. Grey levels 0 to 16."),
    Dataset("mnist", "MNIST, 28x28 grey", "mnist", (1, 28, 28), 10, 60_000, 10_000, "licence unstated", "ylecun/mnist"),
    Dataset("fashion_mnist", "Fashion-MNIST, 28x28 grey", "fashion_mnist", (1, 28, 28), 10, 60_000, 10_000, "MIT",
            "zalando-datasets/fashion_mnist"),
    Dataset("cifar10", "CIFAR-10, 32x32 colour", "cifar10_jpeg", (3, 32, 32), 10, 50_000, 10_000,
            "research use, licence unstated", "uoft-cs/cifar10", hub_image="img", stand_in="digits/cnn", note_coding="JPEG",
            note="Lossy copy: images coded as JPEG (quality 75, 4:2:0 chroma), mean PSNR 30.5 dB and lowest 23.1 dB against "
                 "4,000 lossless originals. Accuracies are not exactly comparable with published ones."),
)}

_memory: dict[str, tuple[Any, Decoded]] = {}
_lock = threading.Lock()


def load(name: str) -> dict[str, np.ndarray]:
    """Arrays ``train_x, test_x`` (uint8, ``(n, c, h, w)``) and ``train_y, test_y`` (int64, ``(n,)``) of a data set.

    The arrays are kept in memory and shared between callers: do not write into them. Raises
    :class:`tracking.errors.UserError` when the set is unknown, missing or damaged.
    """
    return decoded(name).arrays


def provenance(name: str) -> dict[str, str]:
    """Where the arrays of :func:`load` came from: ``source`` (file and checksum, or package) and ``note`` when there is one."""
    found = decoded(name)
    return {"source": found.source} | ({"note": found.note} if found.note else {})


def decoded(name: str) -> Decoded:
    """The arrays of a data set with their origin, from memory when its source has not changed."""
    declared = declaration(name)
    with _lock:  # two runs in threads wait for one decoding
        sources = sources_of(declared)
        if name not in _memory or _memory[name][0] != _states(sources):
            _memory.pop(name, None)  # so that two copies are never held at once
            value = read_any(declared, sources)
            _memory[name] = _states(sources_of(declared)), value  # looked up again: a download has made one
        return _memory[name][1]


def _states(sources: list[Any]) -> list[Any]:
    return [state_of(where) for _, where in sources]


def declaration(name: str) -> Dataset:
    """The declaration of a data set; an unknown name raises with the nearest known one."""
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    return DATASETS[name]


def balanced_subset(labels: np.ndarray, size: int) -> np.ndarray:
    """Indices of ``size`` samples in file order, each class represented as equally as its count allows; 0 = all.

    Takes the first sample of every class, then the second of every class and so on: deterministic, and a smaller subset
    is part of a larger one. Raises :class:`tracking.errors.UserError` when fewer samples exist.
    """
    if size > len(labels):
        raise UserError(f"{size} samples asked for, {len(labels)} exist. Ask for fewer, or for 0, which means all.")
    if size == 0:
        return np.arange(len(labels))
    by_class = np.argsort(labels, kind="stable")
    counts = np.unique(labels, return_counts=True)[1]
    rank = np.empty(len(labels), dtype=np.int64)  # how many samples of its class stand before it
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(np.argsort(rank, kind="stable")[:size])


# --- for the command line -----------------------------------------------------------------------------------


def status() -> list[dict[str, Any]]:
    """One row a data set: ``name, title, state, where, bytes, licence, note``. ``bytes`` is ``None`` where there is no file."""
    rows = []
    for d in DATASETS.values():
        found = sources_of(d)
        state, where, size = "missing", "", None
        if found and isinstance(path := found[0][1], Path):
            state, where, size = ("cached" if path.parent == cache_folder() else "present"), str(path), path.stat().st_size
        elif found:
            state, where = "embedded", str(path)
        rows.append({"name": d.name, "title": d.title, "state": state, "where": where, "bytes": size,
                     "licence": d.licence, "note": d.note})
    return rows


def fetch(name: str, to: Path | None = None) -> Path:
    """Write ``<name>.npz`` into the folder ``to`` (default: the cache folder) from any source, and return its path.

    A machine without pyarrow, Pillow, scikit-learn and network reads it when ``WORKBENCH_DATA`` names the folder.
    """
    value = decoded(name)
    path = (Path(to) if to else cache_folder()) / f"{name}.npz"
    try:
        write_npz(path, value, compress=True)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}. Name another folder.") from None
    return path


def verify(name: str | None = None) -> list[dict[str, Any]]:
    """Read every file of one data set, or of all, afresh. One row a file: ``name, where, ok, detail``.

    Checked: the checksum where the folder's ``SHA256SUMS`` lists the file, that all can be decoded, counts, shapes, labels.
    """
    rows = []
    for d in [declaration(name)] if name else DATASETS.values():
        for read, where in sources_of(d):
            row = {"name": d.name, "where": str(where), "ok": True}
            try:
                rows.append(row | {"detail": read().source})
            except (UserError, Damaged) as error:
                rows.append(row | {"ok": False, "detail": str(error)})
    return rows
