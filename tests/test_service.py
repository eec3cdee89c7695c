"""The recording service: real child processes, killed, forked and left alone."""

from __future__ import annotations

import http.server
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.tracking_helpers import expected, make_run, report, run_ids, stored, wait_for
from tracking import service
from tracking.folder import RunFolder
from tracking.service import RemoteRecorder
from tracking.store import Store

ROOT = Path(__file__).parent.parent


def everything(uri: str) -> dict[str, int]:
    """How often each point of the store's only run is there."""
    (run_id,) = run_ids(uri)
    return stored(uri, run_id)


def gone(pid: int) -> bool:
    """Whether a process has ended (one that nobody has waited for yet has, too)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_two_runs_of_one_service(uri, tmp_path, caplog):
    folders = [make_run(tmp_path / key, key) for key in ("a", "b")]
    recorders = [RemoteRecorder(folder, uri).start() for folder in folders]
    assert recorders[0].start() is recorders[0]
    for folder in folders:
        report(folder, 0, 2500)
    wait_for(lambda: all(recorder.url for recorder in recorders))  # known while the run goes on
    for folder in folders:
        folder.write_status("finished")
    assert [recorder.close(60) for recorder in recorders] == [0, 0]
    assert [recorder.error for recorder in recorders] == [None, None]
    assert not caplog.records
    for folder, recorder in zip(folders, recorders, strict=True):
        run_id = recorder.url.partition("/runs/")[2].partition("?")[0]
        assert stored(uri, run_id) == expected(folder)
        assert Store(uri).client.get_run(run_id).info.status == "FINISHED"
    assert recorders[0].close(60) == 0  # asked again, it knows


def test_the_run_shares_nothing_with_mlflow(uri, tmp_path):
    """MLflow is never imported into the process of the run, and Ctrl-C of its terminal goes to the run alone."""
    folder = make_run(tmp_path / "run")
    report(folder, 0, 10)
    folder.write_status("finished")
    code = f"""
import os, sys
from tracking import service
from tracking.folder import RunFolder
recorder = service.RemoteRecorder(RunFolder({str(folder.path)!r}), {uri!r}).start()
assert recorder.close(60) == 0, recorder.error
assert "mlflow" not in sys.modules
assert os.getpgid(service.service().pid) != os.getpgid(0)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert everything(uri) == expected(folder)


def test_control_word(uri, tmp_path):
    folder, heard = make_run(tmp_path / "run"), []
    recorder = RemoteRecorder(folder, uri, on_control=heard.append).start()
    url = wait_for(lambda: recorder.url)
    run_id, client = url.partition("/runs/")[2].partition("?")[0], Store(uri).client
    client.set_tag(run_id, "workbench.control", "pause")
    wait_for(lambda: heard == ["pause"])
    wait_for(lambda: client.get_run(run_id).data.tags["workbench.control"] == "pause (seen)")
    folder.write_status("finished")
    assert recorder.close(60) == 0
    assert heard == ["pause"]  # obeyed once


def test_killed_service_loses_nothing(uri, tmp_path):
    """Runs under way go on in this process; the next run gets a new service."""
    folder, heard = make_run(tmp_path / "run"), []
    recorder = RemoteRecorder(folder, uri, on_control=heard.append).start()
    report(folder, 0, 500)
    url = wait_for(lambda: recorder.url)
    first = service.service()
    os.kill(first.pid, signal.SIGKILL)
    report(folder, 500, 900)
    wait_for(lambda: not first.alive)
    Store(uri).client.set_tag(url.partition("/runs/")[2].partition("?")[0], "workbench.control", "stop")
    wait_for(lambda: heard == ["stop"])
    folder.write_status("stopped", "from MLflow")
    assert recorder.close(60) == 0
    assert everything(uri) == expected(folder)
    other = make_run(tmp_path / "other", "k2")
    other.write_status("finished")
    assert RemoteRecorder(other, uri).start().close(60) == 0
    assert service.service().pid != first.pid


def test_service_that_cannot_start(uri, tmp_path, monkeypatch):
    """No process to be had (a limit on them, no memory): recorded in a thread all the same."""
    def refuse(*args: object, **kwargs: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(service, "_current", None)
    monkeypatch.setattr(service.subprocess, "Popen", refuse)
    folder = make_run(tmp_path / "run")
    service.warm()
    recorder = RemoteRecorder(folder, uri).start()
    report(folder, 0, 100)
    folder.write_status("finished")
    assert recorder.close(60) == 0
    assert everything(uri) == expected(folder)


def test_service_ends_with_its_parent(uri, tmp_path):
    code = f"""
import time
from tests.tracking_helpers import make_run, report
from pathlib import Path
from tracking import service
folder = make_run(Path({str(tmp_path / "run")!r}))
recorder = service.RemoteRecorder(folder, {uri!r}).start()
report(folder, 0, 50)
print(service.service().pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.kill()
    wait_for(lambda: gone(pid))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_process_has_its_own(uri, tmp_path):
    mine = service.service().pid
    folder = make_run(tmp_path / "run")
    report(folder, 0, 20)
    folder.write_status("finished")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            left = RemoteRecorder(RunFolder(folder.path), uri).start().close(60)
            code = 0 if left == 0 and service.service().pid != mine else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert everything(uri) == expected(folder)
    assert service.service().pid == mine


def test_silent_server(uri, tmp_path, caplog):
    """Nobody answers: close() returns in time with the number of points left and the reason, and says so once."""
    RemoteRecorder(make_run(tmp_path / "first"), uri).start().close(60)  # the service has imported MLflow now
    folder = make_run(tmp_path / "run")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        recorder = RemoteRecorder(folder, f"http://me:secret@127.0.0.1:{silent.getsockname()[1]}").start()
        report(folder, 0, 30)
        folder.write_status("finished")
        assert recorder.close(0.5) == sum(expected(folder).values())
    assert "did not take everything within 0.5 s" in recorder.error
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "workbench sync" in warnings[0]
    assert "secret" not in warnings[0]


def test_login_set_after_the_service_began(tmp_path, monkeypatch):
    asked: list[str | None] = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers.get("Authorization"))
            self.send_error(503)

        do_POST = do_GET

        def log_message(self, *args: object) -> None: ...

    service.service()
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "late")
    with http.server.HTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        recorder = RemoteRecorder(make_run(tmp_path / "run"), f"http://127.0.0.1:{server.server_port}").start()
        wait_for(lambda: asked)
        recorder.close(0.1)
        server.shutdown()
    assert asked[0] == "Bearer late"
