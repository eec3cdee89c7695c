"""A team's store: a real PostgreSQL, with several processes writing at once, crashes, and a password that nobody may read."""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.browser import free_port
from tests.postgres import PASSWORD, Cluster, postgres, why_not
from tests.tracking_helpers import expected, make_run, record_in_two_parts, wait_for
from tracking.address import hide_secrets, passwords, public_uri, scrub, tracking_uri
from tracking.errors import UserError
from tracking.files import kept_in
from tracking.folder import RunFolder
from tracking.recorder import Recorder
from tracking.server import START_S, start
from tracking.store import Store
from tracking.sync import sync
from tracking.views import publish

WHY_NOT = why_not()
ROOT = Path(__file__).parent.parent
LINES = 400
SECRETS = [PASSWORD, quote(PASSWORD, safe="")]
needs_postgres = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["mlflow", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.artifact.cli"])


@pytest.fixture(scope="module")
def cluster():
    with postgres() as made:
        made.rows("postgres", "create database runs")
        yield made


class Ui:
    """``workbench ui --store <address with a password>``, as a person would type it."""

    def __init__(self, cluster: Cluster, home: Path) -> None:
        self.cluster, self.home, self.port = cluster, home, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = home / "terminal.txt"
        self.process: subprocess.Popen | None = None

    def open(self) -> None:
        command = [sys.executable, "-m", "workbench", "ui", "--port", str(self.port), "--store", self.cluster.uri("runs")]
        before = self.output.read_text().count("Runs:") if self.output.exists() else 0
        with open(self.output, "ab") as output:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True,
                                            env={**os.environ, "WORKBENCH_HOME": str(self.home)})

        def told() -> bool:
            return self.output.read_text().count(f"Runs: {self.url}") > before or self.process.poll() is not None

        wait_for(told, START_S)
        assert self.process.poll() is None, self.output.read_text()

    def commands(self) -> list[str]:
        """What anybody on this machine can read of the server's processes."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # it has ended meanwhile
                continue
            if str(self.port) in words and "python" in words:
                found.append(words)
        return found

    def kill(self) -> None:
        """Kill -9 for the server, whose group is not that of the command that waits for it; if need be as soon as it is there."""
        end = time.monotonic() + 60
        while self.process.poll() is None:
            assert time.monotonic() < end, "the command has not ended with its server"
            for line in subprocess.run(["ps", "-eww", "-o", "pid,pgid,args"], capture_output=True, text=True).stdout.splitlines():
                pid, pgid, args = line.split(None, 2)
                if pid == pgid and "mlflow server" in args and f"--port {self.port}" in args:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(int(pid), signal.SIGKILL)
            time.sleep(0.2)

    def close(self) -> None:
        if self.process is not None:
            self.kill()


@pytest.fixture(scope="module")
def ui(cluster, tmp_path_factory):
    made = Ui(cluster, tmp_path_factory.mktemp("team"))
    yield made
    made.close()


@pytest.mark.slow
@needs_postgres
def test_processes_writing_at_once_through_a_crash(cluster, ui, tmp_path):
    """Four processes, half through the server and half to the database, runs of one study. All begin at once, the server too, in a
    database without a table. In the middle the database crashes, the server is killed, and both come back: every point is there once.
    """
    direct = cluster.uri("runs")
    gate, again = CHILDREN.Barrier(5), CHILDREN.Event()
    folders = {}
    children = []
    for number, uri in enumerate([direct, ui.url, direct, ui.url]):
        paths = [str(tmp_path / f"{number}{part}") for part in "ab"]
        for path in paths:
            folders[Path(path).name] = make_run(Path(path), key=Path(path).name, experiment="team", parent="team-quick")
        child = CHILDREN.Process(target=record_in_two_parts, args=(paths, uri, gate, again, LINES, str(ui.home)))
        child.start()
        children.append(child)
    try:
        _crash_in_the_middle(cluster, ui, gate, again, len(folders))
        for child in children:
            child.join(120)
        assert [child.exitcode for child in children] == [0] * len(children)
    finally:
        for child in children:
            child.kill()
    stored = cluster.stored("runs")
    assert {key: stored[key] for key in folders} == {key: expected(folder) for key, folder in folders.items()}
    assert sorted(stored) == sorted(folders)  # no twin of a run
    assert cluster.rows("runs", "select count(*), count(distinct status), min(status) from runs join tags using (run_uuid) "
                                "where key = 'workbench.attempt'") == [(len(folders), 1, "FINISHED")]
    parents = cluster.rows("runs", "select count(distinct value) from tags where key = 'mlflow.parentRunId'")
    # two parents at most: one that the processes at the database agree on, and those at the server find it unless they were as early
    assert parents[0][0] == cluster.rows("runs", "select count(*) from tags where key = 'workbench.kind' and value = 'study'")[0][0] <= 2
    assert cluster.rows("runs", "select count(*) from experiments where name = 'team'") == [(1,)]


def _crash_in_the_middle(cluster: Cluster, ui: Ui, gate, again, num_runs: int) -> None:
    """Once every run has points in the store, the database crashes and the server is killed; the writers go on meanwhile."""
    gate.wait()
    ui.open()
    wait_for(lambda: len(cluster.stored("runs")) == num_runs)
    cluster.crash()
    ui.kill()
    again.set()
    cluster.start()
    ui.open()


@needs_postgres
def test_no_password_anywhere(cluster, ui, tmp_path, caplog, monkeypatch):
    """In no file, command line, row of the database or message; after a run that went well, one whose store is away, and mistakes."""
    monkeypatch.setenv("WORKBENCH_HOME", str(ui.home))
    if ui.process is None:
        ui.open()
    said = []
    good, bad, away = cluster.uri("runs"), cluster.uri("nowhere"), cluster.uri("runs").replace(str(cluster.port), str(free_port()))
    with caplog.at_level(logging.INFO):
        for name, uri in (("good", good), ("bad", bad), ("away", away)):
            folder = make_run(ui.home / "journals" / name, key=name)
            folder.write_status("finished")
            recorder = Recorder(folder, uri, interval_s=0.02).start()
            recorder.close(20 if uri == good else 3)
            said.append(str(recorder.error))
        assert said[0] == "None"
        assert all("None" not in text for text in said[1:])
        for uri in (bad, away, good.replace("%2F", "/"), good.replace(quote(PASSWORD, safe=""), "wr%40ng")):
            with pytest.raises(UserError) as refused:
                start(tmp_path / "home", 0, uri)
            said.append(str(refused.value))
            with pytest.raises(UserError, match=r"The store at postgresql://127|its port is no number") as refused:
                publish("bench", tracking=uri)
            said.append("".join(traceback.format_exception(refused.value)))
            if "%2F" in uri:
                with pytest.raises(UserError) as refused:
                    sync(uri=uri, folders=[ui.home / "journals"])
                said.append(str(refused.value))
    said += caplog.messages + ui.commands()
    assert any("mlflow server" in text for text in ui.commands())
    assert any("workbench ui" in text for text in ui.commands())
    for table, columns in (("tags", "value"), ("params", "value"), ("experiment_tags", "value"), ("experiments", "artifact_location"),
                           ("runs", "concat(artifact_uri, source_name, entry_point_name)")):
        said += [row[0] for row in cluster.rows("runs", f"select {columns} from {table}") if row[0]]
    files = [path for path in (*ui.home.rglob("*"), *tmp_path.rglob("*")) if path.is_file()]
    assert any(path.name == f"server-{ui.port}.log" for path in files)
    said += [path.read_text(errors="replace") for path in files]
    found = [text[:200] for text in said for secret in [*SECRETS, "wr@ng", "wr%40ng"] if secret in text]
    assert not found


@pytest.mark.slow
@needs_postgres
def test_files_of_a_team_lie_where_its_server_looks_for_them(cluster, tmp_path, monkeypatch):
    """Two people with homes of their own, straight to one database: no path of either is in it, and with a place named that all
    machines share one reads what the other wrote, and MLflow's server, which knows the same variable, does, too.
    """
    uri = cluster.uri("runs")
    for person, shared in (("ann", ""), ("bob", ""), ("cleo", str(tmp_path / "shared")), ("dan", str(tmp_path / "shared"))):
        monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / person))
        monkeypatch.setenv("MLFLOW_ARTIFACTS_DESTINATION", shared)
        store = Store(uri)
        folder = make_run(tmp_path / person / "journals" / person, key=person, experiment="files")
        run_id = store.open_run(folder.read_run())
        store.log_artifacts(run_id, [folder.run_path])
        location = store.client.get_run(run_id).info.artifact_uri
        assert location == f"mlflow-artifacts:/files/{run_id}/artifacts"
        place = Path(shared or tmp_path / person / "artifacts") / "files" / run_id / "artifacts" / "run.json"
        assert place.read_bytes() == folder.run_path.read_bytes()
        assert Path(kept_in(tmp_path / person)) in place.parents  # what tracking.server tells the server
    fetched = store.fetch_file(store.open_run(RunFolder(tmp_path / "cleo" / "journals" / "cleo").read_run()), "run.json", tmp_path)
    assert json.loads(fetched.read_text())["key"] == "cleo"


def test_without_a_driver_the_extra_is_named(monkeypatch):
    from tracking import database

    assert database.with_driver("sqlite:////a/b.db") == "sqlite:////a/b.db"
    monkeypatch.setattr(database.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"postgresql://h/db needs .* pip install 'efficient-workbench\[postgres\]'"):
        database.with_driver("postgresql://u:pw@h/db")
    monkeypatch.setattr(database.importlib.util, "find_spec", lambda name: name == "psycopg2" or None)
    assert database.with_driver("postgresql://u:pw@h/db") == "postgresql+psycopg2://u:pw@h/db"
    with pytest.raises(UserError, match="a driver for PostgreSQL \\(psycopg\\)"):
        database.with_driver("postgresql+psycopg://u:pw@h/db")


@needs_postgres
def test_one_process_at_a_time(cluster, monkeypatch):
    """Who waits too long for the other is told so, and the lock goes with the connection that holds it."""
    from tracking import database

    monkeypatch.setattr(database, "TIMEOUT_S", 0.2)
    uri = cluster.uri("postgres")
    with database.exclusive(uri):
        with pytest.raises(TimeoutError, match="another process has been preparing postgresql://127") as late, database.exclusive(uri):
            pass
        assert PASSWORD not in str(late.value)
        cluster.rows("postgres", "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and granted")
        with database.exclusive(uri):
            pass


@pytest.mark.parametrize(("uri", "shown", "words"), [
    ("postgresql://me:secret@db.host/runs", "postgresql://db.host/runs", ["secret"]),
    ("postgresql://me:p/w@h:5/db", "postgresql://h:5/db", ["p/w"]),  # not encoded
    ("postgresql://me:p?w@h:5/db", "postgresql://h:5/db", ["p?w"]),
    ("postgresql://h/db?password=p%40w&sslmode=require", "postgresql://h/db?sslmode=require", ["p%40w", "p@w"]),
    ("postgresql+psycopg://u:p%2Fw@[::1]:5/db", "postgresql+psycopg://[::1]:5/db", ["p%2Fw", "p/w"]),
    ("http://u:pass@host:5000/a", "http://host:5000/a", ["pass"]),
    ("https://host/a@b?x=1", "https://host/a@b?x=1", []),
    ("sqlite:////a@b:c/x.db", "sqlite:////a@b:c/x.db", []),
    ("postgresql://me@h/db", "postgresql://h/db", []),
])
def test_passwords_are_found_and_not_shown(uri, shown, words):
    assert public_uri(uri) == shown
    assert passwords(uri) == words
    text = scrub(f"cannot open {uri}: {' '.join(words)} refused", uri)
    assert not [word for word in words if word in text]
    assert "cannot open" in text


def test_passwords_leave_the_command_line():
    uri = "postgresql://u:pw@h/db?x=y"
    environment = {"MLFLOW_TRACKING_URI": uri}
    assert hide_secrets(["w", "ui", "--store", uri, "--port", "0"]) == (["w", "ui", "--store", "", "--port", "0"], environment)
    assert hide_secrets([f"--store={uri}"]) == (["--store="], environment)
    assert hide_secrets(["--set", f"tracking_uri={uri}"]) == (["--set", "tracking_uri="], environment)
    for harmless in ("postgresql://u@h/db", "sqlite:////a:b@c.db", "http://127.0.0.1:5000", "a=b"):
        assert hide_secrets(["w", "ui", "--store", harmless]) is None
    with pytest.raises(UserError, match=r"its port is no number\. In a password write %2F") as refused:
        tracking_uri("postgresql://u:p/w@h/db")
    assert "p/w" not in str(refused.value)
    assert tracking_uri("postgres://u:pw@h/db") == "postgresql://u:pw@h/db"


def test_an_executed_notebook_has_no_password(own_home, monkeypatch):
    """Papermill writes every parameter into the notebook: an address with a password goes there by the environment."""
    import papermill

    from workbench import study

    seen = {}

    def record(notebook, output, parameters, **options):
        seen.update(parameters, environment=os.environ.get("MLFLOW_TRACKING_URI"))
        Path(output).write_text(json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
        (Path(output).parent / "summary.json").write_text(json.dumps(
            {"title": "t", "profile": "smoke", "claims": [], "failures": [], "links": {"report": "r"}}))

    monkeypatch.setattr(papermill, "execute_notebook", record)
    assert study.execute("tour", profile="smoke", parameters={"tracking_uri": "postgresql://u:s3cret@h/db"}) == 0
    assert seen == {"profile": "smoke", "environment": "postgresql://u:s3cret@h/db"}
    assert "MLFLOW_TRACKING_URI" not in os.environ
    with pytest.raises(UserError, match=r"would stay in the notebook\. Set MLFLOW_TRACKING_URI") as refused:
        study.parameters({"tracking_uri": "postgresql://u:s3cret@h/db"})
    assert "s3cret" not in str(refused.value)


def test_a_harmless_address_is_left_as_it_is():
    """Cursors are found by the public address: one that changed would have a store filled twice."""
    for uri in ("sqlite:////data/runs/mlflow.db", "http://127.0.0.1:5000", "https://host:8443/base", "databricks"):
        assert public_uri(uri) == uri
