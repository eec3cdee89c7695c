"""Sync: brings run folders to a store, whoever left them: a run without a server, a killed process, another machine.

Doing it twice changes nothing, and a folder copied home from a compute node is a folder like any other.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tracking.errors import UserError
from tracking.folder import LIVE, RunFolder, held
from tracking.journal import read
from tracking.shipping import Shipper, one_line, reached
from tracking.store import Store, home, tracking_uri

STORE_FOLDERS = {"artifacts", "mlartifacts", "mlruns"}  # a store's own files, with copies of run.json among them
ABANDONED = "the process ended without a word; run the same spec again to resume"


def sync(home: str | os.PathLike[str] | None = None, uri: str | None = None,
         folders: Iterable[str | os.PathLike[str]] | None = None) -> list[dict[str, Any]]:
    """Ship what the store at ``uri`` lacks of every run folder at or below ``folders`` (default: ``home``).

    A run whose process is alive is left alone; one whose process died without a word is marked failed. Trouble with one
    folder does not keep the others from being shipped.

    Returns:
        One row a folder: ``run`` (its name), ``status``, ``sent`` (points sent now), ``left`` (points the store still
        lacks), ``note`` (why, for a person) and ``folder``.

    Raises:
        UserError: tracking is off, a named folder does not exist, or the store cannot be reached at all.
    """
    address = tracking_uri(uri if uri or home is None or os.environ.get("MLFLOW_TRACKING_URI")
                           else f"sqlite:///{Path(home).absolute() / 'mlflow.db'}")
    if address is None:
        raise UserError("Tracking is off, so there is no store to sync with. Name one: sqlite:///… or http://…")
    found = list(find_runs(folders if folders is not None else [_root(home)]))
    if not found:
        return []
    with reached(address) as store:
        return [_sync_one(folder, address, store) for folder in found]


def _root(given: str | os.PathLike[str] | None) -> Path:
    return Path(given) if given is not None else home()


def find_runs(roots: Iterable[str | os.PathLike[str]]) -> Iterator[RunFolder]:
    """Every folder with a ``run.json`` at or below ``roots``, in name order.

    Raises :class:`UserError` for a root that does not exist.
    """
    for root in roots:
        if not Path(root).is_dir():
            raise UserError(f"There is no folder {root}.")
        for path, below, files in os.walk(root):
            below[:] = sorted(set(below) - STORE_FOLDERS)
            if "run.json" in files:
                below.clear()  # what lies inside a run belongs to it
                yield RunFolder(path)


def _sync_one(folder: RunFolder, uri: str, store: Store) -> dict[str, Any]:
    row: dict[str, Any] = {"run": folder.path.name, "status": "", "sent": 0, "left": "", "note": "",
                           "folder": str(folder.path)}
    try:
        row["run"] = folder.read_run()["name"]
        with held(folder.path / ".lock") as free:
            status = folder.read_status() or {"status": "never started"}
            row["status"] = status["status"]
            if not free:
                row["note"] = "is running: its own process ships it"
                return row
            if status["status"] in LIVE:
                folder.write_status("failed", ABANDONED, _last_sign(folder))
                row["status"], row["note"] = "failed", ABANDONED
            _ship(Shipper(folder, uri, store), row)
    except Exception as problem:
        row["note"] = one_line(problem, uri)
    return row


def _ship(shipper: Shipper, row: dict[str, Any]) -> None:
    try:
        shipper.open()
        before = shipper.left()
        try:
            while shipper.ship():
                pass
            shipper.save()
            shipper.finish()
        finally:
            row["left"] = shipper.left()
            row["sent"] = before - row["left"]
    finally:
        shipper.close()


def _last_sign(folder: RunFolder) -> float:
    """When the run last showed that it was alive, in Unix seconds."""
    times = [entry.time_ms / 1000 for entry in read(folder.journal_path)][-1:]
    return times[0] if times else folder.read_status()["time"]
