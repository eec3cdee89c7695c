"""Recorder, shipping, sync and store on a real SQLite store; that every point arrives once, against a model."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tracking_helpers import (
    database,
    expected,
    make_run,
    new_store,
    report,
    run_ids,
    stored,
    values,
    wait_for,
)
from tracking import shipping
from tracking.address import public_uri, tracking_uri
from tracking.errors import UserError
from tracking.folder import RunFolder
from tracking.journal import Journal, read
from tracking.recorder import Recorder
from tracking.store import Point, Store
from tracking.sync import ABANDONED, sync

ROOT = Path(__file__).parent.parent


@pytest.fixture
def quick_poll(monkeypatch) -> None:
    monkeypatch.setattr("tracking.recorder.CONTROL_POLL_S", 0.05)


def ship(folder: RunFolder, uri: str) -> str:
    recorder = Recorder(folder, uri, interval_s=0.02).start()
    assert recorder.close(60) == 0, recorder.error
    return recorder.run_id


# -- what arrives ----------------------------------------------------------------------------------------------


def test_everything_arrives(uri, tmp_path, caplog):
    folder = make_run(tmp_path / "run", parent="study-1", note="**hello**",
                      dataset={"name": "digits", "digest": "d1g35t"},
                      params={"lr": 0.1, **{f"p{i}": i for i in range(150)}})
    recorder = Recorder(folder, uri, interval_s=0.02)
    assert recorder.start() is recorder.start()
    report(folder, 0, 400)
    wait_for(lambda: recorder.run_id and len(stored(uri, recorder.run_id)) > 0)
    report(folder, 400, 700)
    with Journal(folder.journal_path) as journal:
        journal.append(700, {"train/metric_0": float("nan"), "train/metric_1": float("inf"), "train/metric_2": 1.0}, 5)
    (folder.artifacts_path / "figures").mkdir(parents=True)
    (folder.artifacts_path / "figures" / "a.txt").write_text("figure")
    folder.write_run(folder.read_run() | {"tags": {"workbench.attempt": "0", "colour": "red", "late": "yes"}})
    folder.write_status("finished")
    assert recorder.close(60) == 0
    assert recorder.error is None
    assert not caplog.records
    client, run = Store(uri).client, Store(uri).client.get_run(recorder.run_id)
    gone = Counter({("train/metric_0", 700): 1, ("train/metric_1", 700): 1})  # no store can hold nan or inf
    assert stored(uri, recorder.run_id) == expected(folder) - gone
    history = client.get_metric_history(recorder.run_id, "train/metric_1")
    assert [(m.step, m.timestamp, m.value) for m in history] == [
        (i, 1_700_000_000_000 + 10 * i, i + 1 / 7) for i in range(700)]
    assert run.data.params == {"lr": "0.1", **{f"p{i}": str(i) for i in range(150)}}
    assert run.info.run_name == "run k1"
    assert (run.info.status, run.info.start_time) == ("FINISHED", 1_700_000_000_250)
    assert run.info.end_time == int(folder.read_status()["time"] * 1000)
    tags = run.data.tags
    assert tags["mlflow.note.content"].startswith("**hello**")
    assert (tags["workbench.key"], tags["workbench.status"]) == ("k1", "finished")
    assert (tags["colour"], tags["late"]) == ("blue", "yes")  # what is there is left alone, what came later is added
    assert client.get_run(tags["mlflow.parentRunId"]).data.tags["workbench.key"] == "study-1"
    assert [(d.dataset.name, d.dataset.digest, d.tags[0].value) for d in run.inputs.dataset_inputs] == [
        ("digits", "d1g35t", "train")]
    assert {a.path for a in client.list_artifacts(recorder.run_id)} == {"figures", "journal.jsonl", "run.json"}
    experiment = client.get_experiment_by_name("bench")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert Path(experiment.artifact_location).parent == database(uri).parent / "artifacts"
    assert recorder.url == (f"http://127.0.0.1:5000/#/experiments/{experiment.experiment_id}/runs/{recorder.run_id}"
                            "?workflowType=machine_learning")


@pytest.mark.parametrize(("status", "mlflow"), [("finished", "FINISHED"), ("failed", "FAILED"), ("diverged", "FAILED"),
                                                ("stopped", "KILLED"), ("running", "RUNNING"), ("paused", "RUNNING")])
def test_status(uri, tmp_path, status, mlflow):
    folder = make_run(tmp_path / "run")
    folder.write_status(status, "because")
    report(folder, 0, 3)
    run = Store(uri).client.get_run(ship(folder, uri))
    assert run.info.status == mlflow
    if status not in ("running", "paused"):
        assert (run.data.tags["workbench.status"], run.data.tags["workbench.reason"]) == (status, "because")


def test_a_data_set_that_two_processes_enter_at_once(uri, tmp_path, caplog):
    """The second comes between the first one's look whether the data set is there and its insertion."""
    from sqlalchemy import event
    from sqlalchemy.orm import Session

    first, second = (make_run(tmp_path / name, dataset={"name": "digits", "digest": "d1g35t"}) for name in ("first", "second"))
    overtaken = []

    def overtake(session, *_):
        if not overtaken and any(type(row).__name__ == "SqlDataset" for row in session.new):
            overtaken.append("")
            overtaken.append(ship(second, uri))

    event.listen(Session, "before_flush", overtake)
    try:
        ids = [ship(first, uri), overtaken[1]]
    finally:
        event.remove(Session, "before_flush", overtake)
    assert "late" not in caplog.text, "nothing to be told of"
    for run_id in ids:
        assert [d.dataset.name for d in Store(uri).client.get_run(run_id).inputs.dataset_inputs] == ["digits"]


def test_paused_shows_while_it_lasts(uri, tmp_path, quick_poll):
    folder = make_run(tmp_path / "run")
    recorder = Recorder(folder, uri, interval_s=0.02).start()
    client = Store(uri).client
    run_id = wait_for(lambda: recorder.run_id)
    for status in ("paused", "running"):
        folder.write_status(status)
        wait_for(lambda: client.get_run(run_id).data.tags.get("workbench.status") == status)  # noqa: B023
    folder.write_status("stopped", "by hand")
    recorder.close(60)
    assert client.get_run(recorder.run_id).data.tags["workbench.status"] == "stopped"


def test_control_tag(uri, tmp_path, quick_poll):
    """A word in the tag reaches the run once each time it is written; a wrong word is answered with the right ones."""
    folder, heard = make_run(tmp_path / "run"), []
    recorder = Recorder(folder, uri, on_control=heard.append, interval_s=0.02).start()
    run_id, client = wait_for(lambda: recorder.run_id), Store(uri).client

    def tag() -> str:
        return client.get_run(run_id).data.tags["workbench.control"]

    for word in ("pause", "resume", "pause", "halt", "stop"):
        client.set_tag(run_id, "workbench.control", f" {word.upper()}")
        wait_for(lambda: tag().startswith(f"{word} ("))  # noqa: B023
        assert tag() == ("halt (unknown; use stop, pause, resume)" if word == "halt" else f"{word} (seen)")
    recorder.close(60)
    assert heard == ["pause", "resume", "pause", "stop"]


# -- every point once ------------------------------------------------------------------------------------------


def test_resumed_run_sends_nothing_twice(uri, tmp_path):
    """Killed at line 50, resumed from the checkpoint at line 20: lines 20 to 49 come again with other clocks."""
    folder = make_run(tmp_path / "run")
    ends = report(folder, 0, 50)
    run_id = ship(folder, uri)
    assert stored(uri, run_id) == expected(folder)
    report(folder, 20, 40, salt=1, truncate_at=ends[19])
    assert ship(folder, uri) == run_id  # fewer lines than the store has
    report(folder, 40, 80, salt=1)
    folder.write_status("finished")
    assert ship(folder, uri) == run_id
    assert stored(uri, run_id) == expected(folder)
    assert len(run_ids(uri)) == 1


def test_journal_cut_while_the_recorder_follows_it(uri, tmp_path):
    folder = make_run(tmp_path / "run")
    ends = report(folder, 0, 50)
    recorder = Recorder(folder, uri, interval_s=0.01).start()
    for salt in range(1, 6):
        known = len(ends)
        wait_for(lambda: recorder._shipper and recorder._shipper.lines >= known)  # noqa: B023
        report(folder, 10 * salt, known + 10, salt, truncate_at=ends[10 * salt - 1])
        ends = [entry.end for entry in read(folder.journal_path)]
    folder.write_status("finished")
    assert recorder.close(60) == 0
    assert stored(uri, recorder.run_id) == expected(folder)


def test_lost_cursor(uri, tmp_path):
    """Without its cursor the folder finds its run by the tags and counts what is there."""
    folder = make_run(tmp_path / "run")
    report(folder, 0, 30)
    run_id = ship(folder, uri)
    folder.cursor_path.unlink()
    report(folder, 30, 45)
    folder.write_status("finished")
    assert ship(folder, uri) == run_id
    assert stored(uri, run_id) == expected(folder)


def test_store_begun_anew(uri, template, tmp_path):
    """The cursor of a database that was deleted counts for nothing in the next one at the same place."""
    folder = make_run(tmp_path / "run")
    report(folder, 0, 30)
    ship(folder, uri)
    other = new_store(template, tmp_path / "other")
    assert stored(other, ship(folder, other)) == expected(folder)  # one cursor a store: the first is not disturbed
    assert set(folder.read_cursors()) == {uri, other}
    folder.write_cursors({other: {**folder.read_cursors()[other], "run_id": "0" * 32}})
    report(folder, 30, 40)
    folder.write_status("finished")
    assert stored(other, ship(folder, other)) == expected(folder)


class ModelStore:
    """A store that takes each batch whole or not at all, and may fail before or after having taken it."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.fail: str | None = None

    def ensure_run(self, run):
        return "run", True

    def run_url(self, run_id, experiment):
        return ""

    def log_points(self, run_id, points):
        if self.fail != "before":
            self.points += points
        if self.fail:
            raise ConnectionError("away")

    def has_point(self, run_id, key, step, time_ms):
        return any((p.key, p.step, p.time_ms) == (key, step, time_ms) for p in self.points)

    def count_reports(self, run_id, reports):
        store = Store.__new__(Store)
        store.client = self
        return store.count_reports(run_id, reports)

    def get_run(self, run_id):  # the two calls of a client that count_reports makes
        class data:
            metrics = dict.fromkeys(p.key for p in self.points)
        return type("Run", (), {"data": data})

    def get_metric_history(self, run_id, key):
        return [p for p in self.points if p.key == key]


ACTIONS = st.lists(st.one_of(
    st.tuples(st.just("report"), st.integers(1, 9)), st.tuples(st.just("ship"), st.integers(1, 3)),
    st.tuples(st.just("resume"), st.integers(0, 9)),
    st.tuples(st.sampled_from(["fail before", "fail after", "crash", "checkpoint", "lose the cursor"]), st.just(0))),
    max_size=25)


@given(ACTIONS)
@settings(max_examples=150, deadline=None)
def test_every_point_once_whatever_happens(tmp_path_factory, actions):
    """Reports, batches, broken connections, crashes, resumes, lost cursors in any order: each point is there once."""
    home = tmp_path_factory.getbasetemp() / "model"
    shutil.rmtree(home, ignore_errors=True)
    folder, store = make_run(home), ModelStore()
    lines = most = salt = 0  # most: lines that were ever reported, so that the run goes on to there at the end
    checkpoint = (0, 0)
    size, shipping.MAX_POINTS = shipping.MAX_POINTS, 10
    shipper = shipping.Shipper(folder, "model://", store)
    try:
        for action, n in [*actions, ("report", 0), ("ship", 10_000)]:
            if action == "report":
                n = n or most - lines
                report(folder, lines, lines + n, salt)
                lines += n
                most = max(lines, most)
            elif action == "ship":
                while n and shipper.ship():
                    n -= 1
            elif action.startswith("fail"):
                store.fail = action.split()[1]
                with suppress(ConnectionError):
                    shipper.ship()
                store.fail = None
            elif action == "checkpoint":
                checkpoint = (lines, folder.journal_path.stat().st_size if lines else 0)
            elif action == "resume" and folder.journal_path.exists():
                lines, salt = min(lines, checkpoint[0] + n), salt + 1
                report(folder, checkpoint[0], lines, salt, truncate_at=checkpoint[1])
            elif action in ("crash", "lose the cursor"):
                if action == "lose the cursor":
                    folder.cursor_path.unlink(missing_ok=True)
                shipper.close()
                shipper = shipping.Shipper(folder, "model://", store)
    finally:
        shipper.close()
        shipping.MAX_POINTS = size
    assert Counter((p.key, p.step) for p in store.points) == expected(folder)
    lasting = {(p.key, p.step): p.value for p in store.points if p.key != "clock/wall_s"}
    assert lasting == {(k, i): v for i in range(lines) for k, v in values(i).items() if k != "clock/wall_s"}


# -- sync ------------------------------------------------------------------------------------------------------


def test_sync(uri, tmp_path):
    """A finished run, one whose process died, one that is alive, a damaged one: each gets what it needs, and once."""
    home = tmp_path / "home"
    done, dead, alive, bad = (make_run(home / "journals" / key, key=key) for key in ("done", "dead", "live", "bad"))
    for folder in (done, dead, alive, bad):
        report(folder, 0, 10)
    done.write_status("finished")
    bad.journal_path.write_bytes(b"rubbish\n" + bad.journal_path.read_bytes())
    with alive.lock():
        rows = {row["run"]: row for row in sync(home)}
    points = sum(expected(done).values())
    assert {key: (row["status"], row["sent"], row["left"]) for key, row in rows.items() if key != "run bad"} == {
        "run done": ("finished", points, 0), "run dead": ("failed", points, 0), "run live": ("running", 0, "")}
    assert rows["run dead"]["note"] == ABANDONED
    assert "line 1 is not a report" in rows["run bad"]["note"]
    client = Store(uri).client
    found = client.search_runs([client.get_experiment_by_name("bench").experiment_id])
    runs = {r.data.tags["workbench.key"]: r for r in found}
    assert set(runs) == {"done", "dead"}
    assert (runs["done"].info.status, runs["dead"].info.status) == ("FINISHED", "FAILED")
    assert runs["dead"].data.tags["workbench.reason"] == ABANDONED
    assert runs["dead"].info.end_time == 1_700_000_000_090  # its last sign of life, not the moment of the sync
    before = {key: stored(uri, r.info.run_id) for key, r in runs.items()}
    shutil.rmtree(bad.path)
    with alive.lock():
        again = {row["run"]: (row["status"], row["sent"], row["left"]) for row in sync(home)}
    assert again == {"run done": ("finished", 0, 0), "run dead": ("failed", 0, 0), "run live": ("running", 0, "")}
    assert before == {key: stored(uri, r.info.run_id) for key, r in runs.items()}
    dead.write_status("running")  # the same spec was run again
    report(dead, 10, 20)
    recorder = Recorder(dead, uri).start()
    wait_for(lambda: recorder.run_id and client.get_run(recorder.run_id).info.status == "RUNNING")
    dead.write_status("finished")
    assert recorder.close(60) == 0
    assert recorder.run_id == runs["dead"].info.run_id
    assert client.get_run(recorder.run_id).info.status == "FINISHED"
    assert stored(uri, recorder.run_id) == expected(dead)


def test_sync_with_a_store_that_breaks_off(uri, tmp_path, monkeypatch):
    """The row tells what has arrived and what has not; the next sync sends the rest, once."""
    folder = make_run(tmp_path / "home" / "journals" / "one")
    report(folder, 0, 10)
    folder.write_status("finished")
    batches, log_points = [], Store.log_points

    def breaking(store, run_id, points):
        batches.append(len(points))
        if len(batches) == 2:
            raise ConnectionError("the store has gone")
        log_points(store, run_id, points)

    monkeypatch.setattr(shipping, "MAX_POINTS", 12)
    monkeypatch.setattr(Store, "log_points", breaking)
    points = sum(expected(folder).values())
    (row,) = sync(tmp_path / "home", uri)
    assert (row["sent"], row["left"], row["note"]) == (batches[0], points - batches[0], "the store has gone")
    assert 0 < row["sent"] < points
    (row,) = sync(tmp_path / "home", uri)
    assert (row["sent"], row["left"], row["note"]) == (points - batches[0], 0, "")
    (run_id,) = run_ids(uri)
    assert stored(uri, run_id) == expected(folder)


def test_folders_brought_home(uri, tmp_path):
    """A copy of a folder that grows on another machine, synced at every visit, is one run without doubles."""
    away, here = make_run(tmp_path / "node" / "run"), tmp_path / "copies" / "run"
    for visit in range(3):
        report(away, 10 * visit, 10 * visit + 10)
        if visit == 2:
            away.write_status("finished")
        shutil.copytree(away.path, here, dirs_exist_ok=True)
        rows = sync(uri=uri, folders=[tmp_path / "copies"])
        assert [(row["sent"], row["left"]) for row in rows] == [
            (sum(len(values(i)) for i in range(10 * visit, 10 * visit + 10)), 0)]
        assert rows[0]["status"] == ("finished" if visit == 2 else "failed")
    (run_id,) = run_ids(uri)
    assert stored(uri, run_id) == expected(away)
    assert Store(uri).client.get_run(run_id).info.status == "FINISHED"


def test_deleted_run_stays_deleted(uri, tmp_path):
    folder = make_run(tmp_path / "home" / "run")
    report(folder, 0, 5)
    folder.write_status("finished")
    Store(uri).client.delete_run(ship(folder, uri))
    (row,) = sync(tmp_path / "home")
    assert "was deleted in MLflow" in row["note"]
    assert len(run_ids(uri)) == 1


def test_sync_errors(tmp_path):
    with pytest.raises(UserError, match="Tracking is off"):
        sync(tmp_path, uri="off")
    with pytest.raises(UserError, match="no folder"):
        sync(folders=[tmp_path / "absent"])
    make_run(tmp_path / "run")
    (tmp_path / "mlflow.db").write_bytes(b"this is not a database" * 100)
    with pytest.raises(UserError, match="cannot be used"):
        sync(tmp_path)


# -- addresses, studies, absence of MLflow -----------------------------------------------------------------------


def test_addresses(tmp_path, monkeypatch, own_home):
    assert tracking_uri() == f"sqlite:///{own_home}/mlflow.db"
    assert tracking_uri("off") is None
    monkeypatch.chdir(tmp_path)
    assert tracking_uri("sqlite:///a.db") == f"sqlite:///{tmp_path}/a.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000/")
    assert tracking_uri() == "http://host:5000"
    for folder in ("mlruns", "file:./mlruns", "./runs"):
        with pytest.raises(UserError, match="refused"):
            tracking_uri(folder)
    assert public_uri("postgresql://me:secret@db.host/runs") == "postgresql://db.host/runs"
    assert public_uri("http://host:5000/a") == "http://host:5000/a"


def test_study(uri):
    store = Store(uri)
    study = store.study_run("it's one", "bench", name="A study", params={"n": 3}, tags={"a": "b"}, note="why")
    assert store.study_run("it's one", "bench") == study
    run = store.client.get_run(study)
    assert (run.info.run_name, run.data.params, run.data.tags["mlflow.note.content"]) == ("A study", {"n": "3"}, "why")
    assert store.study_run("another", "bench") != study
    assert store.experiment_url("bench", "by bytes") == (
        f"http://127.0.0.1:5000/#/experiments/{store.experiment('bench')}/runs"
        "?compareRunsMode=CHART&viewStateShareKey=by%20bytes&workflowType=machine_learning")


def test_deleted_experiment_is_named(uri):
    store = Store(uri)
    store.client.delete_experiment(store.experiment("gone"))
    with pytest.raises(UserError, match="was deleted in MLflow"):
        Store(uri).experiment("gone")


def test_nothing_heavy_is_imported():
    code = ("import sys, tracking.recorder, tracking.sync, tracking.server, tracking.folder, tracking.journal\n"
            "print(*{m.partition('.')[0] for m in sys.modules} & {'mlflow', 'torch', 'pandas', 'numpy', 'filelock'})")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_without_mlflow(tmp_path, monkeypatch, caplog):
    """A compute node: the run goes on, one warning says what is missing, the journal waits for a sync."""
    monkeypatch.setitem(sys.modules, "mlflow", None)
    folder = make_run(tmp_path / "run")
    with caplog.at_level(logging.INFO):
        recorder = Recorder(folder, f"sqlite:///{tmp_path}/mlflow.db", interval_s=0.01).start()
        report(folder, 0, 10)
        wait_for(lambda: recorder.error)
        folder.write_status("finished")
        assert recorder.close(0.5) == sum(expected(folder).values())
    assert "MLflow is not installed" in recorder.error
    assert recorder.run_id is None
    assert [r.levelname for r in caplog.records if r.name == "tracking.recorder"] == ["WARNING"]
