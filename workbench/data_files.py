"""Data files: Parquet of coded images or texts, npz archives and JSON to checked arrays, and back to npz."""

from __future__ import annotations

import hashlib
import os
import struct
import threading
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from workbench.data_kinds import Declaration


class Damaged(Exception):
    """A file that is not what it should be; the message names it and says what is wrong."""


class Decoded(NamedTuple):
    """Checked arrays and where they came from."""

    arrays: dict[str, np.ndarray]
    source: str
    note: str = ""

    @classmethod
    def checked(cls, declared: Declaration, arrays: dict[str, np.ndarray], source: str, coding: str) -> Decoded:
        """Compare the arrays with the declaration; raises ``ValueError`` naming what differs."""
        declared.check(arrays)
        applies = not declared.note_coding or declared.note_coding in coding
        return cls(arrays, source, declared.note if applies else "")


def read_parquet(path: Path, declared: Declaration) -> Decoded:
    """Decode a Parquet file with the columns of the declaration (images: structs of ``bytes`` and ``path``).

    Raises :class:`Damaged` when the checksum, the file or its content is wrong; ``ModuleNotFoundError`` without pyarrow or Pillow.
    """
    import pyarrow
    import pyarrow.parquet

    digest = check_sum(path)
    try:
        arrays, coding = declared.decode(pyarrow.parquet.read_table(path, columns=list(declared.columns)))
        name = f"{path.name} ({coding})" if coding else path.name
        return Decoded.checked(declared, arrays, f"{name}, sha256 {digest[:16]}", coding)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SyntaxError, EOFError, zlib.error, struct.error,
            pyarrow.ArrowException) as error:  # what pyarrow and Pillow raise on broken bytes
        raise Damaged(f"{path} is damaged or not the data set {declared.name!r}: {_first_line(error)}.") from error


def read_npz(path: Path, declared: Declaration) -> Decoded:
    """Read what :func:`write_npz` wrote; raises :class:`Damaged` when it is torn, altered or another data set."""
    digest = check_sum(path, only_if_listed=True)
    try:
        with np.load(path, allow_pickle=False) as file:  # reading to the end checks the CRC of each member
            arrays = {key: file[key] for key in declared.keys}
            source = str(file["source"]) if "source" in file else f"{path.name}, {f'sha256 {digest[:16]}' if digest else 'origin unstated'}"
            note = str(file["note"]) if "note" in file else ""
        declared.check(arrays)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError,
            SyntaxError, TypeError, AttributeError, MemoryError, OverflowError, RuntimeError) as error:  # broken headers
        raise Damaged(f"{path} is damaged or not the data set {declared.name!r}: {_first_line(error)}.") from error
    return Decoded(arrays, source, note)


def read_json(path: Path, declared: Declaration) -> Decoded:
    """Read the JSON file of a data set's source; raises :class:`Damaged` when it is no such file."""
    digest = check_sum(path)
    try:
        return Decoded.checked(declared, declared.read_json(path), f"{path.name}, sha256 {digest[:16]}", "")
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:  # what parsing raises
        raise Damaged(f"{path} is damaged or not the data set {declared.name!r}: {_first_line(error)}.") from error


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
