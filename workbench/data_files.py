"""Image data files: Parquet of coded images and npz archives to checked arrays, and back to npz."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from workbench.data import Dataset

ARRAYS = ("train_x", "train_y", "test_x", "test_y")


class Damaged(Exception):
    """A file that is not what it should be; the message names it and says what is wrong."""


class Decoded(NamedTuple):
    """Checked arrays and where they came from."""

    arrays: dict[str, np.ndarray]
    source: str
    note: str = ""

    @classmethod
    def checked(cls, declared: Dataset, arrays: dict[str, np.ndarray], source: str, coding: str) -> Decoded:
        """Compare the arrays with the declaration; raises ``ValueError`` naming what differs."""
        check_arrays(declared, arrays)
        applies = not declared.note_coding or declared.note_coding in coding
        return cls(arrays, source, declared.note if applies else "")


def check_arrays(declared: Dataset, arrays: dict[str, np.ndarray]) -> None:
    """Raise ``ValueError`` unless keys, types, counts, shapes and labels are the declared ones."""
    for split, count in (("train", declared.train), ("test", declared.test)):
        x, y = arrays[f"{split}_x"], arrays[f"{split}_y"]
        if x.dtype != np.uint8 or x.shape != (count, *declared.shape):
            raise ValueError(f"{split} images are {x.dtype} {x.shape}, expected uint8 {(count, *declared.shape)}")
        if y.dtype != np.int64 or y.shape != (count,):
            raise ValueError(f"{split} labels are {y.dtype} {y.shape}, expected int64 {(count,)}")
        seen = np.unique(y)
        if not np.array_equal(seen, np.arange(declared.num_classes)):
            raise ValueError(f"{split} labels are {seen[:12].tolist()}, expected each of 0 to {declared.num_classes - 1}")


def read_parquet(path: Path, declared: Dataset) -> Decoded:
    """Decode a Parquet file with columns ``image`` (struct of ``bytes`` and ``path``), ``label`` and ``split``.

    Raises :class:`Damaged` when the checksum, the file or its content is wrong; ``ModuleNotFoundError`` without pyarrow or Pillow.
    """
    import pyarrow
    import pyarrow.parquet
    from PIL import Image  # noqa: F401 -- so that its absence is no damage

    digest = check_sum(path)
    try:
        table = pyarrow.parquet.read_table(path, columns=["image", "label", "split"])
        images, coding = decode_images(table["image"].combine_chunks().field("bytes").to_pylist(), len(table), declared.shape)
        labels, splits = table["label"].to_numpy().astype(np.int64, casting="safe"), table["split"].to_numpy()
        arrays = {}
        for split in ("train", "test"):
            rows = np.flatnonzero(splits == split)
            # rows sorted by split, as they should be, need no copy of the images
            part = slice(rows[0], rows[-1] + 1) if len(rows) and rows[-1] - rows[0] + 1 == len(rows) else rows
            arrays |= {f"{split}_x": images[part], f"{split}_y": labels[part]}
        return Decoded.checked(declared, arrays, f"{path.name} ({coding}), sha256 {digest[:16]}", coding)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SyntaxError, EOFError, zlib.error, struct.error,
            pyarrow.ArrowException) as error:  # what pyarrow and Pillow raise on broken bytes
        raise Damaged(f"{path} is damaged or not the data set {declared.name!r}: {_first_line(error)}.") from error


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


def read_npz(path: Path, declared: Dataset) -> Decoded:
    """Read what :func:`write_npz` wrote; raises :class:`Damaged` when it is torn, altered or another data set."""
    check_sum(path, only_if_listed=True)
    try:
        with np.load(path, allow_pickle=False) as file:  # reading to the end checks the CRC of each member
            arrays = {key: file[key] for key in ARRAYS}
            source = str(file["source"]) if "source" in file else f"{path.name}, origin unstated"
            note = str(file["note"]) if "note" in file else ""
        check_arrays(declared, arrays)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError,
            SyntaxError, TypeError, AttributeError, MemoryError, OverflowError, RuntimeError) as error:  # broken headers
        raise Damaged(f"{path} is damaged or not the data set {declared.name!r}: {_first_line(error)}.") from error
    return Decoded(arrays, source, note)


def write_npz(path: Path, value: Decoded, *, compress: bool) -> None:
    """Write arrays, source and note so that a reader sees the whole file or none; raises ``OSError``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        with part.open("wb") as file:
            save = np.savez_compressed if compress else np.savez
            save(file, **value.arrays, source=np.array(value.source), note=np.array(value.note))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def check_sum(path: Path, *, only_if_listed: bool = False) -> str:
    """SHA-256 of a file, compared with the folder's ``SHA256SUMS``; raises :class:`Damaged` when they differ.

    ``only_if_listed`` spares the reading of a file that the list does not name (and returns ``""`` then).
    """
    listed = listed_sum(path)
    if only_if_listed and listed is None:
        return ""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if listed not in (None, digest):
        raise Damaged(f"{path} has sha256 {digest[:16]}…, but SHA256SUMS beside it says {listed[:16]}….")
    return digest


def listed_sum(path: Path) -> str | None:
    """The checksum that ``SHA256SUMS`` in the same folder gives for the file, if any."""
    try:
        lines = (path.parent / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    for line in lines:
        digest, _, name = line.partition(" ")
        if name.lstrip(" *") == path.name:
            return digest.lower()
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
