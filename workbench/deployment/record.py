"""What a deployment leaves behind: a run folder, written while it happens, and the tables read back from it.

Besides the files of :mod:`tracking.folder` (``workbench sync FOLDER`` takes them to MLflow) there are, in ``artifacts/``:
``steps.jsonl`` (a line a server step), ``messages.jsonl`` (a line a payload), ``events.jsonl`` (who came and went), and
``final.npy``, the last model as a vector.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tracking import journal
from tracking.folder import RunFolder
from tracking.metrics import split_finite

if TYPE_CHECKING:
    import pandas

    from workbench.deployment.settings import Settings

TABLES = {
    "steps": ("step", "time_s", "contacted", "clients", "steps", "staleness", "contacts", "up_bytes", "total_up_bytes", "total_down_bytes",
              "wire_up_bytes", "wire_down_bytes"),
    "messages": ("time_s", "direction", "client", "bytes", "codec", "kind", "step"),
    "events": ("time_s", "event", "client", "note"),
}


class Record:
    """The writing end. ``time_s`` in every row is real time since the server was set up."""

    def __init__(self, folder: RunFolder, settings: Settings) -> None:
        from workbench.provenance import environment

        self.folder = folder
        self._opened = time.monotonic()
        self._lock = threading.Lock()
        folder.artifacts_path.mkdir(parents=True, exist_ok=True)
        created = time.time()
        params = settings.model_dump(mode="json")
        folder.write_run({
            "key": hashlib.sha256(f"{created} {folder.path} {params}".encode()).hexdigest()[:16],
            "name": f"{settings.method} {settings.task} deployed s{settings.seed}", "experiment": "deployment", "parent": None,
            "params": params, "created": created, "provenance": environment(), "spec": {"deployment": params},
            "tags": {"workbench.attempt": "0", "workbench.family": "federated", "workbench.task": settings.task},
            "note": f"Real processes: `{settings.method}` on `{settings.task}`, {settings.clients} clients, real time.",
        })
        folder.write_status("running")
        self._over = False
        self.journal = journal.Journal(folder.journal_path)

    def event(self, event: str, client: int | None, note: str) -> None:
        """Somebody came, went, or did something that is to be known."""
        self._write("events", {"event": event, "client": client, "note": note})

    def message(self, direction: str, client: int, size: int, codec: str, kind: str, step: int) -> None:
        """A payload crossed; ``step``: the server steps made until then."""
        self._write("messages", {"direction": direction, "client": client, "bytes": size, "codec": codec, "kind": kind, "step": step})

    def step(self, row: dict[str, Any], metrics: dict[str, float]) -> None:
        """A server step was made: its row, and its metrics for the journal."""
        self._write("steps", row)
        self.journal.append(row["step"], split_finite(metrics)[0])

    def finish(self, vector: np.ndarray, status: str, reason: str) -> None:
        """The run is over."""
        np.save(self.folder.artifacts_path / "final.npy", vector)
        self.journal.close()
        with self._lock:
            self._over = True
        self.folder.write_status(status, reason)

    def _write(self, table: str, row: dict[str, Any]) -> None:
        with self._lock:
            if not self._over:  # clients may still come after the end; that is no part of the run
                row = {"time_s": round(time.monotonic() - self._opened, 6)} | row
                with open(self.folder.artifacts_path / f"{table}.jsonl", "a") as file:
                    file.write(json.dumps(row, separators=(",", ":")) + "\n")


def table(folder: RunFolder, name: str) -> pandas.DataFrame:
    """One of the three tables, as far as it is written; a torn last line is left out."""
    import pandas

    path = folder.artifacts_path / f"{name}.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return pandas.DataFrame([json.loads(line) for line in lines], columns=list(TABLES[name]))


@dataclass
class Result:
    """A deployment that has ended.

    ``steps`` has a row a server step: ``time_s`` (real), ``contacted``, and for the deliveries taken in, in order,
    ``clients``, ``steps`` (E ^ K), ``staleness`` (server steps) and ``contacts`` (how many models the client had been
    sent before); ``up_bytes`` of these deliveries; the ledger's totals so far; and measured bytes of the sockets so far
    (:mod:`workbench.deployment.wire`). ``messages``: a row a payload. ``events``: who joined, was left out, came back.
    """

    folder: RunFolder
    status: str
    reason: str
    steps: pandas.DataFrame
    messages: pandas.DataFrame
    events: pandas.DataFrame
    metrics: dict[str, float]
    """Last value of every metric of the journal."""
    vector: np.ndarray | None
    """The last model ``(P,)``; ``None`` when the server did not live to write it."""

    @property
    def accuracy(self) -> float:
        """Test accuracy of the last model evaluated."""
        return self.metrics["eval/accuracy"]

    @classmethod
    def read(cls, folder: RunFolder) -> Result:
        """From the folder of a deployment, also one whose server was killed."""
        status = folder.read_status() or {"status": "failed", "reason": "the server did not begin"}
        metrics: dict[str, float] = {}
        for entry in journal.read(folder.journal_path):
            metrics |= entry.values
        final = folder.artifacts_path / "final.npy"
        return cls(folder, status["status"], status["reason"], *(table(folder, name) for name in TABLES), metrics,
                   np.load(final) if final.exists() else None)
