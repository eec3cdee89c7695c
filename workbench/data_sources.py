"""Where the arrays of a data set are read from: package, Parquet or npz file, download; and the cache of decoded arrays."""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tracking.errors import UserError
from workbench.data_files import Damaged, Decoded, read_json, read_npz, read_parquet, write_npz
from workbench.data_kinds import Arrays, photographs

if TYPE_CHECKING:
    from workbench.data_kinds import Dataset, Declaration, Photographs

Source = tuple[Callable[[], Decoded], Path | str]
"""How to read it, and the file or the package it is in."""


def data_folder() -> Path | None:
    """``$WORKBENCH_DATA``, or ``None`` when it is not set."""
    folder = os.environ.get("WORKBENCH_DATA")
    return Path(folder).expanduser() if folder else None


def cache_folder() -> Path:
    """``$WORKBENCH_CACHE``, or ``~/.cache/workbench``. It need not exist."""
    return Path(os.environ.get("WORKBENCH_CACHE") or "~/.cache/workbench").expanduser()


def sources_of(d: Declaration) -> list[Source]:
    """Sources at hand, best first; nothing is read yet."""
    found: list[Source] = []
    if d.embedded and util.find_spec("sklearn"):
        found.append((lambda: _read_package(d), f"scikit-learn {metadata.version('scikit-learn')}"))
    for folder in filter(None, (data_folder(), cache_folder())):
        for path in map(folder.joinpath, d.files):
            if path.is_file():
                found.append((lambda path=path: _read_file(path, d), path))
    return found


def _read_file(path: Path, d: Declaration) -> Decoded:
    return {".parquet": read_parquet, ".npz": read_npz, ".json": read_json}[path.suffix](path, d)


def read_any(d: Declaration, sources: list[Source]) -> Decoded:
    """From the first source that this machine can read; a damaged one is refused, never passed over."""
    reasons: list[str] = []
    for read, where in sources:
        try:
            return _cached(d, where, read)
        except ModuleNotFoundError as error:
            reasons.append(f"{where} needs {error.name}, which is not installed; on a machine that has it, "
                           f"`workbench data fetch {d.name} --to FOLDER` writes a {d.name}.npz that needs nothing.")
        except Damaged as error:
            if not isinstance(where, Path) or where.parent != cache_folder() or where.suffix != ".npz":
                instead = f", or remove it and run {_fetching(d)}" if d.hub or d.embedded else ""
                raise UserError(f"{error} Replace it by an intact copy{instead}.") from None
            _discard(where, error)
    if d.hub:
        try:
            value = _download(d)
        except UserError as error:
            reasons.append(str(error))
        except Exception as error:  # the loader raises errors of a dozen libraries
            reasons.append(f"The download of {d.hub!r} failed: {type(error).__name__}: {str(error).splitlines()[0]}."
                           if str(error) else f"The download of {d.hub!r} failed: {type(error).__name__}.")
        else:
            _keep(cache_folder() / f"{d.name}.npz", value)
            return value
    raise UserError(_missing(d, reasons))


def _missing(d: Declaration, reasons: list[str]) -> str:
    folder = data_folder()
    looked = f"{folder}{'' if folder.is_dir() else ' (no such folder)'}" if folder else "the folder WORKBENCH_DATA names (not set)"
    return "\n".join([
        f"Data set {d.name!r} is not at hand. Looked for {' and '.join(d.files)} in {looked} and in {cache_folder()}.",
        *reasons,
        f"Put {'one of the two files' if len(d.files) > 1 else 'the file'} into a folder and set WORKBENCH_DATA to it"
        f"{f', or run {_fetching(d)}' if d.hub or d.embedded else ''}.", f"The task {d.stand_in!r} needs no data." if not d.embedded else
        "Or install scikit-learn, which holds it."])


def _fetching(d: Declaration) -> str:
    return f"`workbench data fetch {d.name}` on a machine with {'a network' if d.hub else 'scikit-learn'}"


def _download(d: Declaration) -> Decoded:
    arrays, coding, source = d.retrieve()
    return Decoded.checked(d, arrays, source, coding)


# --- what comes with scikit-learn ---------------------------------------------------------------------------


def _read_package(d: Declaration) -> Decoded:
    return Decoded.checked(d, PACKAGED[d.name](d), f"scikit-learn {metadata.version('scikit-learn')}", "")


def _digits(d: Dataset) -> Arrays:
    from sklearn.datasets import load_digits

    table = load_digits()
    images, labels = table.images[:, None].astype(np.uint8), table.target.astype(np.int64)
    return {"train_x": images[:d.train], "train_y": labels[:d.train], "test_x": images[d.train:], "test_y": labels[d.train:]}


def _sample_photos(d: Photographs) -> Arrays:
    """The two photographs at half their size; the left two thirds of each train, the right third tests."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    halves = [Image.fromarray(photo).reduce(2) for photo in load_sample_images().images]  # averages: coding errors shrink with the size
    pixels = [np.asarray(image).transpose(2, 0, 1) for image in halves]
    cut = 2 * pixels[0].shape[2] // 3
    return photographs("train", [p[:, :, :cut] for p in pixels]) | photographs("test", [p[:, :, cut:] for p in pixels])


PACKAGED: dict[str, Callable[[Any], Arrays]] = {"digits": _digits, "sample_photos": _sample_photos}


# --- the cache of decoded arrays ----------------------------------------------------------------------------


def _cached(d: Declaration, where: Path | str, read: Callable[[], Decoded]) -> Decoded:
    """``read()``, through a decoded copy that belongs to this very state of the source."""
    if isinstance(where, Path) and where.suffix == ".npz":
        return read()
    place = f"{d.name}-{_hash(str(where.resolve() if isinstance(where, Path) else 'package'))}"
    path = cache_folder() / "decoded" / f"{place}-{_hash(str(state_of(where)))}.npz"
    if path.is_file():
        try:
            return read_npz(path, d)
        except Damaged as error:
            _discard(path, error)
    value = read()
    if _keep(path, value):
        for old in path.parent.glob(f"{place}-*.npz"):  # copies of what the source was before
            if old != path:
                old.unlink(missing_ok=True)
    return value


def _keep(path: Path, value: Decoded) -> bool:
    try:
        write_npz(path, value, compress=False)
    except OSError as error:
        warnings.warn(f"Decoded data are not kept: cannot write {path} ({error.strerror or error}).", stacklevel=2)
        return False
    return True


def _discard(path: Path, error: Damaged) -> None:
    warnings.warn(f"{error} The cached file is removed and made anew.", stacklevel=2)
    with contextlib.suppress(OSError):  # an unwritable cache: its damaged file is passed over each time
        path.unlink(missing_ok=True)


def state_of(where: Path | str) -> tuple[Any, ...]:
    """Changes when the source does."""
    if isinstance(where, str):
        return (where,)
    stat = where.stat()
    return (str(where), stat.st_size, stat.st_mtime_ns)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
