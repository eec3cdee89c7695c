"""Data sets of labelled texts, as arrays of bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.data_kinds import Arrays, Declaration, check_labels, expect, rows_of

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True)
class Texts(Declaration):
    """One text or a pair of texts, a label each.

    ``train_x, test_x``: uint8, all texts in UTF-8 one after another; ``train_ends, test_ends``: int64 ``(n, len(texts))``, where each ends;
    ``train_y, test_y``: int64 ``(n,)``. :func:`strings` gives the texts back.
    """

    texts: tuple[str, ...]
    """Columns of the texts: one, or two for pairs."""
    classes: tuple[str, ...]
    train: int
    test: int
    test_split: str = field(default="validation", kw_only=True)
    """The split of the source that is tested on: where the labels of ``test`` are kept secret it is the validation split."""
    hub_config: str = field(default="", kw_only=True)
    hub_train: str = field(default="train", kw_only=True)
    """The training split at the hub; several are joined by ``+``."""

    keys = tuple(f"{split}_{part}" for split in ("train", "test") for part in ("x", "ends", "y"))

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.texts, "label", "split")

    def decode(self, table: pyarrow.Table) -> tuple[Arrays, str]:
        arrays: Arrays = {}
        for split, source in (("train", "train"), ("test", self.test_split)):
            part = table.take(np.arange(len(table))[rows_of(table, source)])
            texts = [part[column].to_pylist() for column in self.texts]
            arrays |= labelled_texts(split, list(zip(*texts, strict=True)), part["label"].to_numpy())
        return arrays, ""

    def check(self, arrays: Mapping[str, np.ndarray]) -> None:
        for split, count in (("train", self.train), ("test", self.test)):
            x, ends = arrays[f"{split}_x"], arrays[f"{split}_ends"]
            expect(f"{split} ends", ends, np.int64, (count, len(self.texts)))
            expect(f"{split} texts", x, np.uint8, (int(ends[-1, -1]),))
            if (np.diff(ends.ravel(), prepend=0) < 0).any():
                raise ValueError(f"{split} texts end before they begin")
            check_labels(f"{split} labels", arrays[f"{split}_y"], count, len(self.classes))

    def download(self, datasets: Any) -> tuple[Arrays, str]:
        arrays: Arrays = {}
        for split, source in (("train", self.hub_train), ("test", self.test_split)):
            rows = datasets.load_dataset(self.hub, self.hub_config, split=source)
            arrays |= labelled_texts(split, list(zip(*(rows[column] for column in self.texts), strict=True)), np.array(list(rows["label"])))
        return arrays, ""


def labelled_texts(split: str, texts: Sequence[tuple[str, ...]], labels: np.ndarray) -> Arrays:
    """The arrays of one split from its texts (a tuple for each sample) and labels."""
    pieces = [[text.encode() for text in sample] for sample in texts]
    lengths = np.array([[len(piece) for piece in sample] for sample in pieces], dtype=np.int64)
    return {f"{split}_x": np.frombuffer(b"".join(piece for sample in pieces for piece in sample), np.uint8),
            f"{split}_ends": lengths.cumsum().reshape(lengths.shape), f"{split}_y": labels.astype(np.int64, casting="safe")}


def strings(arrays: Mapping[str, np.ndarray], split: str) -> list[tuple[str, ...]]:
    """The texts of one split, a tuple for each sample."""
    raw, ends = arrays[f"{split}_x"].tobytes(), arrays[f"{split}_ends"]
    begins = np.concatenate([[0], ends.ravel()[:-1]]).reshape(ends.shape)
    return [tuple(raw[a:b].decode() for a, b in zip(*sample, strict=True)) for sample in zip(begins.tolist(), ends.tolist(), strict=True)]
