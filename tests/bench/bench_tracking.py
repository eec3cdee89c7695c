"""What tracking costs: the journal's pace, and 100,000 points into SQLite beside one MLflow call a value.

``ours`` and ``peer`` are measured in one process, one after the other, on the same disk; MLflow is imported and both
databases have their tables before a clock starts.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tracking.folder import RunFolder
from tracking.journal import Journal
from tracking.service import RemoteRecorder
from tracking.store import Store

LINES, VALUES, PEER_VALUES = 12_500, 8, 1_000
STEPS, REPEATS = 150, 5


def main() -> list[dict[str, Any]]:
    """Rows ``{"name", "ours", "peer", "unit", "ratio", "n", "target", "met"}``; ``n``: values or repeats of ours."""
    with tempfile.TemporaryDirectory() as home:
        uri = f"sqlite:///{home}/mlflow.db"
        Store(uri).experiment("bench")
        folder = _folder(home, "run")
        began = time.perf_counter()
        _journal(folder)
        journal = LINES * VALUES / (time.perf_counter() - began)
        folder.write_status("finished")
        recorder = RemoteRecorder(folder, uri).start()
        left = recorder.close(timeout_s=600)
        ours = LINES * VALUES / (time.perf_counter() - began)
        if left:
            raise RuntimeError(f"{left} points did not arrive: {recorder.error}")
        peer = _peer(f"sqlite:///{home}/peer.db", Path(home))
        slow, quick = _slowdown(home, uri)
    n = LINES * VALUES
    return [
        {"name": "journal", "ours": journal, "peer": None, "unit": "values/s", "ratio": None, "n": n,
         "target": ">= 50000", "met": journal >= 50_000},
        {"name": f"journal and recorder into SQLite; peer: mlflow.log_metric ({PEER_VALUES} values)", "ours": ours,
         "peer": peer, "unit": "values/s", "ratio": ours / peer, "n": n, "target": ">= 20", "met": ours >= 20 * peer},
        {"name": f"run of {STEPS} steps, 20 ms of pure Python and 8 values each, recorded; peer: not recorded",
         "ours": slow, "peer": quick, "unit": "s", "ratio": slow / quick, "n": REPEATS},
    ]


def _folder(home: str, name: str) -> RunFolder:
    folder = RunFolder(Path(home) / name)
    folder.write_run({"key": name, "name": name, "experiment": "bench", "params": {}, "tags": {}, "created": 0.0})
    folder.write_status("running")
    return folder


def _journal(folder: RunFolder) -> None:
    with Journal(folder.journal_path) as journal:
        for i in range(LINES):
            journal.append(i, {f"bench/metric_{k}": i * 0.1 + k for k in range(VALUES)})
            journal.flush()


def _peer(uri: str, home: Path) -> float:
    """Values a second through ``mlflow.log_metric``, the documented way to log a value."""
    import mlflow

    Store(uri)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        mlflow.create_experiment("peer", str(home / "artifacts"))
        mlflow.set_experiment("peer")
        with mlflow.start_run():
            mlflow.log_metric("bench/metric_0", 0.0, step=0)
            began = time.perf_counter()
            for i in range(1, PEER_VALUES + 1):
                mlflow.log_metric(f"bench/metric_{i % VALUES}", i * 0.1, step=i)
            return PEER_VALUES / (time.perf_counter() - began)
    finally:
        mlflow.set_tracking_uri(before)


def _slowdown(home: str, uri: str) -> tuple[float, float]:
    """Seconds of a run with and without a recorder, medians of interleaved repeats.

    Pure Python is the worst case: unlike a tensor operation it never lets go of the interpreter by itself.
    """
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for repeat in range(REPEATS):
        for tracked in (False, True):
            folder = _folder(home, f"slow-{repeat}-{tracked}")
            recorder = RemoteRecorder(folder, uri).start() if tracked else None
            began = time.perf_counter()
            with Journal(folder.journal_path) as journal:
                for i in range(STEPS):
                    _work()
                    journal.append(i, {f"bench/metric_{k}": i * 0.1 + k for k in range(VALUES)})
            seconds[tracked].append(time.perf_counter() - began)
            folder.write_status("finished")
            if recorder:
                recorder.close(60)
    return statistics.median(seconds[True]), statistics.median(seconds[False])


def _work() -> None:
    until = time.thread_time() + 0.02  # of this thread's own processor time, so waiting for others makes it longer
    while time.thread_time() < until:
        pass


if __name__ == "__main__":
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for row in main():
        print(row)
