"""The recorder among real faults: killed servers and processes, locked and full databases, silent hosts, races."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sqlite3
import threading
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.tracking_helpers import (
    database,
    die_at,
    die_in_schema,
    expected,
    make_run,
    new_store,
    record_two,
    record_with_full_disk,
    report,
    run_ids,
    stored,
    wait_for,
)
from tracking.errors import UserError
from tracking.folder import RunFolder
from tracking.recorder import Recorder
from tracking.server import start, stop
from tracking.store import Store
from tracking.sync import sync

# children are forked from a clean process that has MLflow imported: they may be killed and still cost milliseconds
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["mlflow", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.artifact.cli"])


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory):
    """A real MLflow server that starts while the other tests of this module run; the test that needs it comes last."""
    home = tmp_path_factory.mktemp("server")
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(start, home, 0)
        yield home, starting
        with contextlib.suppress(UserError):
            stop(starting.result()[0], timeout_s=1)


def assert_synced(uri: str, folder: RunFolder) -> None:
    """A sync completes the one run; a second one adds nothing."""
    for _ in range(2):
        (row,) = sync(uri=uri, folders=[folder.path])
        assert row["left"] == 0, row
    (run_id,) = run_ids(uri)
    assert stored(uri, run_id) == expected(folder)
    run = Store(uri).client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert (run.data.params, run.data.tags["colour"]) == ({"lr": "0.5", "method": "toy"}, "blue")
    assert "mlflow.note.content" in run.data.tags


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_every_write(template, tmp_path, stride):
    """kill -9 before and after each single write to the store or the cursor (each fourth of them, in short); then resumed, or synced."""
    event, survived = 0, False
    while not survived:
        uri = new_store(template, tmp_path / f"{event}")
        folder = make_run(tmp_path / f"{event}" / "run")
        ends = report(folder, 0, 30)
        if event % 3 == 2:
            folder.write_status("finished")
        child = CHILDREN.Process(target=die_at, args=(event, str(folder.path), uri, 50))
        child.start()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        survived = child.exitcode == 0
        if event % 3 == 0:  # resumed from a checkpoint, on another machine's clock
            report(folder, 12, 45, salt=1, truncate_at=ends[11])
        elif event % 3 == 1:  # resumed from the very beginning
            report(folder, 0, 45, salt=1, truncate_at=0)
        folder.write_status("finished", when=1_700_000_001)
        assert_synced(uri, folder)
        shutil.rmtree(tmp_path / f"{event}")
        event += stride
    assert event > 20  # creation, description, three announced batches …: with fewer the child would count wrongly


def test_two_processes_two_runs_each_in_a_fresh_database(tmp_path):
    """The schema, the experiment, the study's parent and four runs, all made at once."""
    uri, gate = f"sqlite:///{tmp_path}/mlflow.db", CHILDREN.Barrier(2)
    folders = [make_run(tmp_path / f"run{i}", key=f"k{i}", parent="study") for i in range(4)]
    children = [CHILDREN.Process(target=record_two, args=([str(f.path) for f in pair], uri, gate, 400))
                for pair in (folders[:2], folders[2:])]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    client = Store(uri).client
    runs = client.search_runs([client.get_experiment_by_name("bench").experiment_id])
    parents = [r.info.run_id for r in runs if r.data.tags.get("workbench.kind") == "study"]
    assert len(parents) == 1
    children_runs = {r.data.tags["workbench.key"]: r for r in runs if r.info.run_id not in parents}
    assert (len(runs), set(children_runs)) == (5, {"k0", "k1", "k2", "k3"})
    for folder in folders:
        run = children_runs[folder.read_run()["key"]]
        assert (run.info.status, run.data.tags["mlflow.parentRunId"]) == ("FINISHED", parents[0])
        assert stored(uri, run.info.run_id) == expected(folder)


def test_killed_while_making_the_database(tmp_path):
    """MLflow's schema is made in dozens of steps; a kill among them must not leave a database that nobody can open."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    child = CHILDREN.Process(target=die_in_schema, args=(uri,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert not database(uri).exists()
    folder = make_run(tmp_path / "run")
    report(folder, 0, 10)
    folder.write_status("finished")
    assert_synced(uri, folder)


def test_full_disk_on_the_stores_side(uri, tmp_path, capfd):
    """The database may not grow for a while: the recorder says so, and catches up when it may."""
    folder = make_run(tmp_path / "run")
    child = CHILDREN.Process(target=record_with_full_disk, args=(str(folder.path), uri))
    child.start()
    child.join()
    assert child.exitcode == 0
    (run_id,) = run_ids(uri)
    assert stored(uri, run_id) == expected(folder)


def test_locked_database(uri, tmp_path):
    """Another program holds the SQLite file: the run goes on, close() keeps its limit, sync finishes the job."""
    folder = make_run(tmp_path / "run")
    recorder = Recorder(folder, uri, interval_s=0.02).start()
    report(folder, 0, 20)
    wait_for(lambda: recorder.run_id and stored(uri, recorder.run_id) == expected(folder))
    other = sqlite3.connect(database(uri))
    other.execute("BEGIN EXCLUSIVE")
    report(folder, 20, 40)
    time.sleep(0.3)  # long enough for the recorder to meet the lock
    other.rollback()
    wait_for(lambda: stored(uri, recorder.run_id) == expected(folder))
    other.execute("BEGIN EXCLUSIVE")
    report(folder, 40, 60)
    folder.write_status("finished")
    left = recorder.close(0.5)
    assert left == sum(n for (_, step), n in expected(folder).items() if step >= 40)
    assert recorder._thread.is_alive()  # it still waits for the lock, and close() did not
    other.rollback()
    recorder._thread.join()
    assert_synced(uri, folder)


def test_server_that_was_never_there(uri, tmp_path, caplog):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = make_run(tmp_path / "run")
    recorder = Recorder(folder, f"http://me:secret@127.0.0.1:{port}", interval_s=0.02).start()
    report(folder, 0, 40)
    wait_for(lambda: recorder.error)
    folder.write_status("finished")
    assert recorder.close(1.0) == sum(expected(folder).values())
    warnings = [r for r in caplog.records if r.levelno >= logging.WARNING and r.name == "tracking.recorder"]
    assert len(warnings) == 1
    assert "\n" not in warnings[0].getMessage()
    assert "secret" not in warnings[0].getMessage() + recorder.error
    recorder._thread.join()
    assert_synced(uri, folder)


def test_server_that_never_answers(uri, tmp_path, caplog):
    """It accepts the connection and is silent: close() returns while the request still hangs, and its word is the last one."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        folder = make_run(tmp_path / "run")
        recorder = Recorder(folder, f"http://127.0.0.1:{silent.getsockname()[1]}", interval_s=0.02).start()
        connection, _ = silent.accept()
        report(folder, 0, 40)
        folder.write_status("finished")
        assert recorder.close(0.5) == sum(expected(folder).values())
        assert recorder._thread.is_alive()
        assert "did not take everything within 0.5 s" in recorder.error
        connection.close()
    recorder._thread.join()  # the address refuses connections now, so the attempt ends
    assert "did not take everything within 0.5 s" in recorder.error
    (warning,) = [r for r in caplog.records if r.levelno >= logging.WARNING and r.name.startswith("tracking")]
    assert "workbench sync" in warning.getMessage()
    assert_synced(uri, folder)


def test_server_killed_and_brought_back(server, tmp_path, monkeypatch):
    """A real server dies under a run and comes back at the same address: late, complete, nothing twice."""
    monkeypatch.setattr("tracking.recorder.MAX_BACKOFF_S", 0.5)
    home, starting = server
    process, url = starting.result()
    folder, heard, later = make_run(tmp_path / "run"), [], []
    try:
        recorder = Recorder(folder, url, on_control=heard.append, interval_s=0.02).start()
        report(folder, 0, 300)
        run_id = wait_for(lambda: recorder.run_id)
        wait_for(lambda: recorder._shipper.lines == 300)
        recorder._shipper.store.client.set_tag(run_id, "workbench.control", "pause")
        wait_for(lambda: heard)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        report(folder, 300, 600)
        wait_for(lambda: recorder.error)
        port = int(url.rpartition(":")[2])
        back = threading.Thread(target=lambda: later.append(start(home, port)[0]))
        back.start()
        report(folder, 600, 700)
        folder.artifacts_path.mkdir()
        (folder.artifacts_path / "figure.txt").write_text("figure")
        folder.write_status("stopped", "by hand")
        assert recorder.close(0.1) == sum(n for (_, step), n in expected(folder).items() if step >= 300)
        back.join()
        recorder._thread.join()
        (row,) = sync(uri=url, folders=[folder.path])
        assert (row["left"], row["status"]) == (0, "stopped")
        assert heard == ["pause"]
        store = Store(url)
        keys = {key for key, _ in expected(folder)}
        history = {key: store.client.get_metric_history(run_id, key) for key in keys}
        assert Counter((key, m.step) for key in keys for m in history[key]) == expected(folder)
        assert stored(f"sqlite:///{home}/mlflow.db", run_id) == expected(folder)
        assert store.client.get_run(run_id).info.status == "KILLED"
        with urllib.request.urlopen(f"{url}/get-artifact?path=figure.txt&run_uuid={run_id}") as answer:
            assert answer.read() == b"figure"
        assert store.run_url(run_id, "bench").startswith(f"{url}/#/experiments/")
        _one_store_two_ways(f"sqlite:///{home}/mlflow.db", url, tmp_path)
        with pytest.raises(UserError, match=f"Port {port} cannot be used"):
            start(home, port)
    finally:
        for process in later:
            stop(process, timeout_s=1)


def _one_store_two_ways(direct: str, url: str, tmp_path: Path) -> None:
    """Files of a run that wrote to the database directly are shown by the server, whoever made the experiment."""
    for experiment in ("bench", "made directly"):
        folder = make_run(tmp_path / experiment, key=experiment, experiment=experiment)
        folder.artifacts_path.mkdir()
        (folder.artifacts_path / "plot.txt").write_text(experiment)
        folder.write_status("finished")
        recorder = Recorder(folder, direct).start()
        assert recorder.close(60) == 0
        assert recorder.error is None
        with urllib.request.urlopen(f"{url}/get-artifact?path=plot.txt&run_uuid={recorder.run_id}") as answer:
            assert answer.read() == experiment.encode()
