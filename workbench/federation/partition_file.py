"""A partition of the user's own, read from a file."""

from __future__ import annotations

import csv
from os import PathLike
from pathlib import Path

import numpy as np

from tracking.errors import UserError
from workbench.federation.partition import Partition, from_owners


def by_file(path: str | PathLike[str], num_samples: int, *, repeats: bool = False) -> Partition:
    """Who holds what, as a file says it, for a data set of ``num_samples``.

    ``.csv``: a header ``sample,client`` and one row for each sample that is given out, both numbered from 0. ``.npz``:
    either ``offsets`` and ``index`` (as in :class:`Partition`) or ``client``, one number a sample, -1 for nobody.

    Clients are those from 0 to the largest named. Samples may be left out; ``repeats`` allows one to be given out more
    than once. UserError where the file cannot be read, a client has no sample, or a sample does not exist or is given
    out twice.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"Partition file {str(path)!r} does not exist.")
    readers = {".csv": _from_csv, ".npz": _from_npz}
    if file.suffix.lower() not in readers:
        raise UserError(f"Partition file {file.name!r}: unknown kind {file.suffix!r}. Allowed: .csv, .npz.")
    try:
        return readers[file.suffix.lower()](file, num_samples, repeats).check(num_samples)
    except UserError as error:
        raise UserError(f"Partition file {file.name!r}: {error}") from None


def _from_csv(file: Path, num_samples: int, repeats: bool) -> Partition:
    with file.open(newline="", encoding="utf-8-sig") as lines:  # spreadsheets put a byte order mark first
        rows = csv.reader(lines)
        header = [cell.strip() for cell in next(rows, [])]
        if header != ["sample", "client"]:
            raise UserError(f"the header is {','.join(header)!r}. Allowed: sample,client.")
        pairs = []
        for row in filter(None, rows):
            try:
                sample, client = (int(cell) for cell in row)
            except ValueError:
                raise UserError(f"line {rows.line_num} is {','.join(row)!r}. "
                                "Allowed: two whole numbers, sample and client.") from None
            pairs.append((sample, client))
    samples, owners = np.array(pairs, np.int64).reshape(-1, 2).T
    return _named(owners, samples, repeats)


def _from_npz(file: Path, num_samples: int, repeats: bool) -> Partition:
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:  # ValueError: arrays of Python objects
        raise UserError(f"cannot be read as arrays of numbers ({error}).") from None
    if set(arrays) == {"offsets", "index"}:
        return Partition(arrays["offsets"], arrays["index"], repeats)
    if set(arrays) != {"client"}:
        raise UserError(f"holds {', '.join(sorted(arrays)) or 'nothing'}. Allowed: offsets and index, or client alone.")
    owners = arrays["client"]
    if owners.shape != (num_samples,) or not np.issubdtype(owners.dtype, np.integer) or owners.min(initial=0) < -1:
        raise UserError(f"client must be {num_samples} whole numbers, -1 (nobody) or more, "
                        f"not {owners.dtype} of shape {owners.shape}.")
    given = np.flatnonzero(owners >= 0)
    return _named(owners[given], given, repeats)


def _named(owners: np.ndarray, samples: np.ndarray, repeats: bool) -> Partition:
    if not len(owners):
        raise UserError("gives no sample to anybody.")
    if owners.min() < 0:
        raise UserError(f"client {owners.min()} is refused. Allowed: 0 or more.")
    if owners.max() >= len(owners):  # each client needs a sample
        raise UserError(f"names client {owners.max()} and gives out {len(owners)} samples. "
                        "Number the clients from 0 without gaps.")
    return from_owners(owners, samples, int(owners.max()) + 1, repeats=repeats)
