"""What a data set of images is made of: labelled images, photographs of any size, images with a class for each pixel.

A declaration says how a table of the source becomes arrays, and what those arrays must be. Arrays hold no Python objects, so a file of
them is read without pickles.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Declaration:
    """What every data set declares."""

    name: str
    title: str
    file: str
    """Name of the Parquet file, without suffix; empty: there is none."""
    _: KW_ONLY
    licence: str
    hub: str = ""
    """What is downloaded: a Hugging Face id, or what :meth:`retrieve` makes of it; empty when there is nothing."""
    stand_in: str = "digits/mlp"
    """Embedded task that needs neither a file nor a network."""
    embedded: bool = False
    note: str = ""
    """What a reader of a figure should know of the data."""
    note_coding: str = ""
    """Coding of the images that the note speaks of; empty: it always holds."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the Parquet file that are read."""
        raise NotImplementedError

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the arrays."""
        raise NotImplementedError

    def decode(self, table: pyarrow.Table) -> tuple[Arrays, str]:
        """Arrays of a table with the :attr:`columns`, and the name of the images' coding (empty for texts)."""
        raise NotImplementedError

    def check(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Raise ``ValueError`` naming what differs from the declaration."""
        raise NotImplementedError

    def download(self, datasets: Any) -> tuple[Arrays, str]:
        """As :meth:`decode`, from :attr:`hub` through the module ``datasets``. Only for sets with a hub id."""
        raise NotImplementedError

    def retrieve(self) -> tuple[Arrays, str, str]:
        """Arrays and coding of :attr:`hub` through the ecosystem's own loader, and the words for where they came from."""
        import datasets  # optional

        arrays, coding = self.download(datasets)
        return arrays, coding, f"Hugging Face {self.hub}, datasets {datasets.__version__}"

    @property
    def json_file(self) -> str:
        """Path within a data folder of the source's own JSON file, which :meth:`read_json` reads; empty: there is none."""
        return ""

    def read_json(self, path: Path) -> Arrays:
        """Arrays of the :attr:`json_file`."""
        raise NotImplementedError

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that hold it, best first."""
        return tuple(filter(None, (self.file and f"{self.file}.parquet", f"{self.name}.npz", self.json_file)))


def rows_of(table: pyarrow.Table, split: str) -> slice | np.ndarray:
    """Rows of one split: a slice where they are sorted by split, as they should be, so that no image is copied."""
    rows = np.flatnonzero(table["split"].to_numpy() == split)
    return slice(rows[0], rows[-1] + 1) if len(rows) and rows[-1] - rows[0] + 1 == len(rows) else rows


def expect(what: str, array: np.ndarray, kind: type, shape: tuple[int, ...]) -> None:
    """Raise ``ValueError`` unless an array has this type and shape."""
    if array.dtype != kind or array.shape != shape:
        raise ValueError(f"{what} are {array.dtype} {array.shape}, expected {np.dtype(kind)} {shape}")


# --- labelled images ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dataset(Declaration):
    """Images of one size, a label each: ``train_x, test_x`` uint8 ``(n, c, h, w)`` and ``train_y, test_y`` int64 ``(n,)``."""

    shape: tuple[int, int, int]
    """(channels, height, width)."""
    num_classes: int
    train: int
    test: int
    hub_image: str = field(default="image", kw_only=True)

    columns = ("image", "label", "split")
    keys = ("train_x", "train_y", "test_x", "test_y")

    def decode(self, table: pyarrow.Table) -> tuple[Arrays, str]:
        images, coding = decode_images(coded(table, "image"), len(table), self.shape)
        labels = table["label"].to_numpy().astype(np.int64, casting="safe")
        arrays = {}
        for split in ("train", "test"):
            part = rows_of(table, split)
            arrays |= {f"{split}_x": images[part], f"{split}_y": labels[part]}
        return arrays, coding

    def check(self, arrays: Mapping[str, np.ndarray]) -> None:
        for split, count in (("train", self.train), ("test", self.test)):
            expect(f"{split} images", arrays[f"{split}_x"], np.uint8, (count, *self.shape))
            check_labels(f"{split} labels", arrays[f"{split}_y"], count, self.num_classes)

    def download(self, datasets: Any) -> tuple[Arrays, str]:
        arrays: Arrays = {}
        coding = set()
        for split in ("train", "test"):
            rows = datasets.load_dataset(self.hub, split=split).cast_column(self.hub_image, datasets.Image(decode=False))
            images, kind = decode_images((r["bytes"] for r in rows[self.hub_image]), len(rows), self.shape)
            arrays |= {f"{split}_x": images, f"{split}_y": np.array(list(rows["label"]), dtype=np.int64)}
            coding.add(kind)
        return arrays, "+".join(sorted(coding))


def check_labels(what: str, labels: np.ndarray, count: int, num_classes: int) -> None:
    """Raise ``ValueError`` unless there are ``count`` labels and each class occurs."""
    expect(what, labels, np.int64, (count,))
    seen = np.unique(labels)
    if not np.array_equal(seen, np.arange(num_classes)):
        raise ValueError(f"{what} are {seen[:12].tolist()}, expected each of 0 to {num_classes - 1}")


def coded(table: pyarrow.Table, column: str) -> list[bytes]:
    """The bytes of a column of coded images."""
    return table[column].combine_chunks().field("bytes").to_pylist()


def decode_images(coded: Iterable[bytes], count: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, str]:
    """Coded images (PNG, JPEG …) to uint8 ``(count, c, h, w)``, and the name of their coding(s).

    Raises ``ValueError`` for an image of another size, ``OSError`` or ``SyntaxError`` for one that Pillow cannot read.
    """
    from PIL import Image

    channels, height, width = shape
    pixels, codings = np.empty((count, height, width, channels), dtype=np.uint8), set()
    for i, raw in enumerate(coded):
        image = Image.open(io.BytesIO(raw))
        codings.add(image.format)
        if image.size != (width, height):
            raise ValueError(f"image {i} is {image.size[0]}x{image.size[1]}, expected {width}x{height}")
        pixels[i] = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(height, width, channels)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), "+".join(sorted(codings))


# --- photographs of any size --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Photographs(Declaration):
    """Colour photographs of any size, without labels; a split with none is absent.

    ``train_x, test_x``: uint8, the pixels of all photographs one after another, each as ``(3, h, w)``; ``train_sizes, test_sizes``:
    int64 ``(n, 2)``, height and width of each.
    """

    train: int
    test: int

    columns = ("image", "split")

    @property
    def splits(self) -> dict[str, int]:
        return {split: count for split, count in (("train", self.train), ("test", self.test)) if count}

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(f"{split}_{part}" for split in self.splits for part in ("x", "sizes"))

    def decode(self, table: pyarrow.Table) -> tuple[Arrays, str]:
        from PIL import Image

        images = [Image.open(io.BytesIO(raw)) for raw in coded(table, "image")]
        pixels = [np.asarray(image.convert("RGB")).transpose(2, 0, 1) for image in images]
        arrays: Arrays = {}
        for split in self.splits:
            rows = np.arange(len(table))[rows_of(table, split)]
            arrays |= photographs(split, [pixels[i] for i in rows])
        return arrays, "+".join(sorted({image.format for image in images}))

    def check(self, arrays: Mapping[str, np.ndarray]) -> None:
        for split, count in self.splits.items():
            x, sizes = arrays[f"{split}_x"], arrays[f"{split}_sizes"]
            expect(f"{split} sizes", sizes, np.int64, (count, 2))
            expect(f"{split} pixels", x, np.uint8, (3 * int(sizes.prod(1).sum()),))


def photographs(split: str, images: Sequence[np.ndarray]) -> Arrays:
    """The arrays of one split from its images, each ``(3, h, w)``."""
    sizes = np.array([image.shape[1:] for image in images], dtype=np.int64).reshape(-1, 2)
    return {f"{split}_x": np.concatenate([np.empty(0, np.uint8), *(image.ravel() for image in images)]), f"{split}_sizes": sizes}


# --- a class for each pixel ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segmented(Declaration):
    """Images of one size with a class for each pixel: ``*_x`` uint8 ``(n, c, h, w)`` and ``*_y`` uint8 ``(n, h, w)``.

    Splits are train, validation and test. Classes are 0 to ``len(classes) - 1``; :attr:`void` marks pixels that count nowhere.
    """

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    void: int
    train: int
    validation: int
    test: int

    columns = ("image", "annotation", "split")
    keys = tuple(f"{split}_{part}" for split in ("train", "validation", "test") for part in "xy")

    def decode(self, table: pyarrow.Table) -> tuple[Arrays, str]:
        _, height, width = self.shape
        images, coding = decode_images(coded(table, "image"), len(table), self.shape)
        labels, _ = decode_images(coded(table, "annotation"), len(table), (1, height, width))
        arrays = {}
        for split in ("train", "validation", "test"):
            part = rows_of(table, split)
            arrays |= {f"{split}_x": images[part], f"{split}_y": labels[part, 0]}
        return arrays, coding

    def check(self, arrays: Mapping[str, np.ndarray]) -> None:
        for split in ("train", "validation", "test"):
            count, x, y = getattr(self, split), arrays[f"{split}_x"], arrays[f"{split}_y"]
            expect(f"{split} images", x, np.uint8, (count, *self.shape))
            expect(f"{split} annotations", y, np.uint8, (count, *self.shape[1:]))
            if extra := sorted(set(np.unique(y).tolist()) - {*range(len(self.classes)), self.void}):
                raise ValueError(f"{split} annotations hold {extra[:12]}, expected 0 to {len(self.classes) - 1} and {self.void}")
