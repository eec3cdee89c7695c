"""The journal of a run: an append-only file with one JSON line a report.

Every other record of the metrics (MLflow, tables, curves) is derived from it. A line reads
``{"step":3,"time_ms":1700000000000,"values":{"train/loss":0.25}}``; floats are written with the fewest digits that read
back to the same bits.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from tracking.errors import UserError
from tracking.folder import write_atomic

if TYPE_CHECKING:
    import pandas

_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
_BLOCK = 1 << 16


class Entry(NamedTuple):
    """One report. ``end`` is the byte offset just after its line."""

    step: int
    time_ms: int
    values: dict[str, float]
    end: int


class Journal:
    """Appends reports to ``path``, creating it if needed.

    Opening cuts off a torn last line, which is what a killed process or a full disk leaves. ``truncate_at`` (bytes,
    an earlier ``offset``) cuts everything reported after a checkpoint; it must be the end of a line inside the file,
    else :class:`UserError`. The shortened journal is a new file under the old name, so that a reader that is following
    the old one can tell.

    Each append is one ``write`` to the operating system, so killing the process loses no report. ``flush(sync=True)``
    also waits for the disk, which a checkpoint that refers to ``offset`` needs in case the machine itself dies.
    """

    def __init__(self, path: str | os.PathLike[str], truncate_at: int | None = None) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self.offset, self.lines = self._cut(truncate_at)
        except BaseException:
            self.close()
            raise

    def append(self, step: int, values: Mapping[str, float], time_ms: int | None = None) -> None:
        """Add one report. ``time_ms`` is Unix time in milliseconds; now when not given.

        A line that cannot be written whole (disk full) is taken back before the ``OSError`` is raised.
        """
        plain = {name: value if type(value) in (int, float) else float(value) for name, value in values.items()}
        time_ms = time.time_ns() // 1_000_000 if time_ms is None else int(time_ms)
        line = _encode({"step": int(step), "time_ms": time_ms, "values": plain}).encode() + b"\n"
        try:
            written = os.write(self._fd, line)
            while written < len(line):
                written += os.write(self._fd, line[written:])
        except OSError:
            os.ftruncate(self._fd, self.offset)
            raise
        self.offset += len(line)
        self.lines += 1

    def flush(self, sync: bool = False) -> None:
        """Nothing is buffered in the process; with ``sync`` wait until the disk has everything."""
        if sync:
            os.fsync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _cut(self, truncate_at: int | None) -> tuple[int, int]:
        size = os.fstat(self._fd).st_size
        if truncate_at is None:
            end = _whole_end(self._fd, size)
        else:
            end = truncate_at
            if not 0 <= end <= size:
                raise UserError(f"Journal {self.path} has {size} bytes; it cannot be cut at byte {end}. "
                                f"The checkpoint does not belong to this journal.")
            if end and os.pread(self._fd, 1, end - 1) != b"\n":
                raise UserError(f"Byte {end} of journal {self.path} is in the middle of a line; "
                                f"it cannot be cut there. The checkpoint does not belong to this journal.")
        if end < size and truncate_at is None:
            os.ftruncate(self._fd, end)
        elif end < size:
            write_atomic(self.path, b"".join(os.pread(self._fd, _BLOCK, at) for at in range(0, end, _BLOCK))[:end])
            os.close(self._fd)
            self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND)
        return end, sum(os.pread(self._fd, min(_BLOCK, end - at), at).count(b"\n") for at in range(0, end, _BLOCK))


def _whole_end(fd: int, size: int) -> int:
    """Offset after the last whole line: behind the last newline, and one line further up if that line is no report."""
    end = _after_newline(fd, size)
    if end == 0:
        return 0
    start = _after_newline(fd, end - 1)
    return end if _parse(os.pread(fd, end - start, start), end) is not None else start


def _after_newline(fd: int, end: int) -> int:
    """Offset after the last newline before ``end``, searching backwards block by block; 0 when there is none."""
    while end > 0:
        start = max(0, end - _BLOCK)
        found = os.pread(fd, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _parse(line: bytes, end: int) -> Entry | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
        step, time_ms, values = record["step"], record["time_ms"], record["values"]
    except (ValueError, TypeError, KeyError):
        return None
    return Entry(step, time_ms, values, end) if isinstance(step, int) and isinstance(values, dict) else None


def read(path: str | os.PathLike[str], start: int = 0) -> Iterator[Entry]:
    """Yield the reports from byte ``start`` (an earlier ``end`` or ``offset``) on; nothing when there is no file.

    May run while the journal is being written: a torn last line is left for the next call. Raises :class:`UserError`
    with file and line number for a line in the middle that is no report.
    """
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        file.seek(start)
        end = start
        for line in file:
            end += len(line)
            entry = _parse(line, end)
            if entry is None:
                if not line.endswith(b"\n") or not file.read(1):
                    return
                file.seek(0)
                number = file.read(end - len(line)).count(b"\n") + 1
                raise UserError(f"{path}, line {number} is not a report: {line[:60]!r}. The file was edited or "
                                f"damaged; delete that line, or restore the file.")
            yield entry


def frame(path: str | os.PathLike[str]) -> pandas.DataFrame:
    """The journal as a table: one row a report, columns ``step``, ``time_ms`` and the metrics; absent is NaN."""
    import pandas

    rows = [{"step": e.step, "time_ms": e.time_ms, **e.values} for e in read(path)]
    return pandas.DataFrame(rows) if rows else pandas.DataFrame({"step": [], "time_ms": []}, dtype="int64")
