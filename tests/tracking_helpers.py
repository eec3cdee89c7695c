"""Run folders of known content, what a store should hold of them, and child processes that die where they are told."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from tracking import shipping
from tracking.folder import RunFolder
from tracking.journal import Journal, read
from tracking.store import Point, Store

NAMES = [f"train/metric_{i}" for i in range(4)]


def make_run(path: Path, key: str = "k1", **more: Any) -> RunFolder:
    folder = RunFolder(path)
    folder.write_run({"key": key, "name": f"run {key}", "experiment": "bench", "params": {"lr": 0.5, "method": "toy"},
                      "tags": {"workbench.attempt": "0", "colour": "blue"}, "spec": {"method": "toy"},
                      "provenance": {"commit": "abc123"}, "created": 1_700_000_000.25, "parent": None, **more})
    folder.write_status("running")
    return folder


def values(i: int, salt: int = 0) -> dict[str, float]:
    """The report of line ``i``. Every third line has one metric less; the last is volatile and depends on ``salt``."""
    return {**{name: i + n / 7 for n, name in enumerate(NAMES[:3 if i % 3 else 2])}, "clock/wall_s": i + salt / 1000}


def report(folder: RunFolder, start: int, stop: int, salt: int = 0, truncate_at: int | None = None) -> list[int]:
    """Append lines ``start`` to ``stop`` (step = line number) and return the offset after each."""
    ends = []
    with Journal(folder.journal_path, truncate_at=truncate_at) as journal:
        for i in range(start, stop):
            journal.append(i, values(i, salt), 1_700_000_000_000 + 10 * i + 1_000_000 * salt)
            ends.append(journal.offset)
    return ends


def database(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///"))


def stored(uri: str, run_id: str) -> Counter[tuple[str, int]]:
    """How often each (metric, step) is in the SQLite store, read past MLflow with plain SQL."""
    with sqlite3.connect(database(uri), timeout=30) as connection:
        return Counter(connection.execute("select key, step from metrics where run_uuid = ?", (run_id,)).fetchall())


def expected(folder: RunFolder) -> Counter[tuple[str, int]]:
    return Counter((key, entry.step) for entry in read(folder.journal_path) for key in entry.values)


def run_ids(uri: str) -> list[str]:
    with sqlite3.connect(database(uri), timeout=30) as connection:
        return [row[0] for row in connection.execute(
            "select run_uuid from runs where run_uuid not in (select run_uuid from tags where key = 'workbench.kind')")]


def wait_for(condition, timeout: float = 60.0) -> Any:
    """Poll until ``condition`` is true and return its value; the limit is far above what any machine needs."""
    began = time.monotonic()
    while not (got := condition()):
        if time.monotonic() - began > timeout:
            raise AssertionError("waited in vain")
        time.sleep(0.02)
    return got


def new_store(template: Path, home: Path) -> str:
    """A copy of a database that has its schema already (creating one takes over a second)."""
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(template, home / "mlflow.db")
    return f"sqlite:///{home / 'mlflow.db'}"


COSTS = {"clock/wall_s": 1.0, "comm/up_bytes": 1e6, "energy/model_j": 0.5}


def recorded(uri: str, parent: str | None = None, experiment: str = "bench") -> Store:
    """A store with two methods, two seeds each: accuracy, and three of the costs."""
    store = Store(uri)
    for method in ("dense", "binary"):
        for seed in (0, 1):
            run_id = store.open_run({"key": f"{method}{seed}", "name": f"{method} s{seed}", "created": time.time(),
                                     "experiment": experiment,
                                     "params": {"method": method, "seed": seed}, "tags": {"workbench.method": method}, "parent": parent})
            store.log_points(run_id, [Point(name, value, 1000 + step, step) for step in range(1, 5) for name, value in (
                ("eval/accuracy", 0.1 * step + 0.01 * seed), *((cost, unit * step) for cost, unit in COSTS.items()))])
            store.finish(run_id, "finished")
    return store


# -- child processes -------------------------------------------------------------------------------------------


def die_at(event: int, path: str, uri: str, batch: int) -> None:
    """Ship a run folder, and be killed just before or after the ``event``-th write to the store or to the cursor."""
    shipping.MAX_POINTS = batch
    count = 0

    def tick() -> None:
        nonlocal count
        if count == event:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    def deadly(owner: type, name: str) -> None:
        real = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            tick()
            result = real(*args, **kwargs)
            tick()
            return result
        setattr(owner, name, wrapped)

    for owner, name in ((RunFolder, "write_cursors"), (Store, "log_points"), (Store, "_create"), (Store, "_describe"),
                        (Store, "log_artifacts"), (Store, "finish")):
        deadly(owner, name)
    shipper = shipping.Shipper(RunFolder(path), uri)
    shipper.open()
    shipper.show_status()
    while shipper.ship():
        pass
    shipper.save()
    shipper.finish()


def die_in_schema(uri: str) -> None:
    """Open a store that does not exist yet, and be killed when half its tables are made."""
    from mlflow.store.db import utils

    def die(engine: Any) -> None:
        assert engine.connect().exec_driver_sql("select count(*) from sqlite_master").scalar() > 0
        os.kill(os.getpid(), signal.SIGKILL)

    utils._upgrade_db = die
    Store(uri)


def record_two(paths: list[str], uri: str, gate: Any, lines: int) -> None:
    """Two runs of one process, reporting at once."""
    from tracking.recorder import Recorder

    gate.wait()
    recorders = [Recorder(RunFolder(path), uri, interval_s=0.05).start() for path in paths]
    for path in paths:
        report(RunFolder(path), 0, lines)
        RunFolder(path).write_status("finished")
    assert [recorder.close(120) for recorder in recorders] == [0, 0]


def record_in_two_parts(paths: list[str], uri: str, gate: Any, again: Any, lines: int, home: str) -> None:
    """Runs of one process: half of each is reported at once with all others, the rest when ``again`` is set."""
    from tracking import recorder as recording

    os.environ["WORKBENCH_HOME"] = home
    recording.MAX_BACKOFF_S = 0.5
    folders = [RunFolder(path) for path in paths]
    gate.wait()
    recorders = [recording.Recorder(folder, uri, interval_s=0.05).start() for folder in folders]
    for folder in folders:
        report(folder, 0, lines // 2)
    assert again.wait(120)
    for folder in folders:
        report(folder, lines // 2, lines)
        folder.write_status("finished")
    assert [recorder.close(120) for recorder in recorders] == [0, 0], [recorder.error for recorder in recorders]


def record_with_full_disk(path: str, uri: str) -> None:
    """Record while no file of this process may grow beyond the database's present size, then while it may again."""
    import resource

    from tracking.recorder import Recorder

    folder = RunFolder(path)
    recorder = Recorder(folder, uri, interval_s=0.05).start()
    wait_for(lambda: recorder.run_id)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (database(uri).stat().st_size, hard))
    report(folder, 0, 3000)
    wait_for(lambda: recorder.error)
    print(recorder.error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    folder.write_status("finished")
    assert recorder.close(120) == 0
    assert recorder.error is None
