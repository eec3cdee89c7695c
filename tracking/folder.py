"""A run folder: all that one run leaves behind, as plain files that can be read, copied and brought home.

==================  ========================================================================================
``run.json``        what a store must know: key, name, experiment, params, tags, spec, provenance, created, parent
``journal.jsonl``   every reported metric (:mod:`tracking.journal`)
``status.json``     running, paused, finished, failed, stopped or diverged; the reason; who holds the run
``checkpoint.pt``   what the run resumes from
``tracking.json``   how much of the journal each store has (:mod:`tracking.shipping`)
``control``         one word for the run, written by another process: run, pause or stop
``error.txt``       the traceback of a failure
``artifacts/``      files that are shown in the store
==================  ========================================================================================
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tracking.errors import UserError, unknown

STATUSES = ("running", "paused", "finished", "failed", "stopped", "diverged")
LIVE = ("running", "paused")
CONTROLS = ("run", "pause", "stop")


def write_atomic(path: Path, data: bytes | memoryview | str) -> None:
    """Replace ``path`` as a whole: after a crash it holds the old content or the new, never a mixture."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private; a folder is read by others (a server, a colleague)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    if os.name == "posix":  # the rename itself is durable only once the folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class RunFolder:
    """The files of one run. Nothing is created before something is written."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self._control_file = str(self.control_path)  # looked at before every step
        self._control_seen: tuple[int, ...] | None = None
        self._control_word = "run"

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def run_path(self) -> Path:
        return self.path / "run.json"

    @property
    def journal_path(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def status_path(self) -> Path:
        return self.path / "status.json"

    @property
    def checkpoint_path(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def cursor_path(self) -> Path:
        return self.path / "tracking.json"

    @property
    def control_path(self) -> Path:
        return self.path / "control"

    @property
    def error_path(self) -> Path:
        return self.path / "error.txt"

    @property
    def artifacts_path(self) -> Path:
        return self.path / "artifacts"

    # -- run.json, status.json, tracking.json ------------------------------------------------------------------

    def read_run(self) -> dict[str, Any]:
        """The content of ``run.json``; :class:`UserError` when the folder is not a run folder."""
        run = self._read_json(self.run_path)
        if run is None:
            raise UserError(f"{self.path} is not a run folder: it has no run.json.")
        return run

    def write_run(self, run: dict[str, Any]) -> None:
        write_atomic(self.run_path, json.dumps(run, indent=1) + "\n")

    def read_status(self) -> dict[str, Any] | None:
        """``{"status", "reason", "time", "pid", "host"}``, or ``None`` before the first :meth:`write_status`."""
        return self._read_json(self.status_path)

    def write_status(self, status: str, reason: str = "", when: float | None = None) -> None:
        """Say how the run stands; ``when`` (Unix seconds) is now when not given."""
        if status not in STATUSES:
            raise unknown("run status", status, STATUSES)
        record = {"status": status, "reason": reason, "time": time.time() if when is None else when,
                  "pid": os.getpid(), "host": socket.gethostname()}
        write_atomic(self.status_path, json.dumps(record) + "\n")

    def read_cursors(self) -> dict[str, dict[str, Any]]:
        """How much each store has, by store address."""
        return self._read_json(self.cursor_path) or {}

    def write_cursors(self, cursors: dict[str, dict[str, Any]]) -> None:
        write_atomic(self.cursor_path, json.dumps(cursors, indent=1) + "\n")

    def _read_json(self, path: Path) -> dict[str, Any] | None:
        try:
            return json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(f"{path} is not readable JSON ({error}). Restore it, or delete the run folder.") from None

    # -- control -----------------------------------------------------------------------------------------------

    def control(self) -> str:
        """The word in force: ``"run"`` (also when nobody wrote one), ``"pause"`` or ``"stop"``.

        Made to be called in a loop: one ``stat``, and a read only after a change. A word that is none of the three is
        passed over, because a slip of somebody else's pen must not end a run.
        """
        try:
            stat = os.stat(self._control_file)
        except FileNotFoundError:
            self._control_seen, self._control_word = None, "run"
            return "run"
        seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if seen != self._control_seen:
            with contextlib.suppress(FileNotFoundError):
                word = self.control_path.read_text(errors="replace").strip().lower()
                self._control_word = word if word in CONTROLS else self._control_word
                self._control_seen = seen
        return self._control_word

    def write_control(self, word: str) -> None:
        """Tell the process that holds the run to ``run``, ``pause`` or ``stop``."""
        if word not in CONTROLS:
            raise unknown("control word", word, CONTROLS)
        write_atomic(self.control_path, word + "\n")

    # -- one process a run -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run: one process (and one thread) at a time. The operating system frees it when the holder dies.

        Raises :class:`UserError` at once, naming the holder, when the run is held.
        """
        with held(self.path / ".lock") as got:
            if not got:
                status = self.read_status() or {}
                who = f"process {status['pid']} on {status['host']}" if "pid" in status else "another process"
                raise UserError(f"The run in {self.path} is held by {who}. Wait for it, or stop it there "
                                f"(write the word stop into {self.control_path}).")
            yield


@contextlib.contextmanager
def held(path: Path, timeout_s: float = 0.0) -> Iterator[bool]:
    """Try for ``timeout_s`` to take the lock file ``path``; yields whether it is ours until the end of the block."""
    import filelock

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=timeout_s)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
