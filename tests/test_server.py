"""The server that ``workbench ui`` starts: who is let in, what it shows in a browser. One server for the whole module."""

from __future__ import annotations

import http.client
import json
import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.browser import artifacts, browser_page, why_not
from tests.tracking_helpers import make_run, new_store, recorded, report
from tracking import pages, server
from tracking.errors import UserError
from tracking.recorder import Recorder
from tracking.store import GROUP, Store
from tracking.views import load, publish

WHY_NOT = why_not("mlflow")
in_browser = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
CREATE = "/api/2.0/mlflow/experiments/create"


@pytest.fixture(scope="module")
def served(template, tmp_path_factory):
    """A server on a store with a study, its four runs, and one run by the recorder; its process and its address."""
    home = tmp_path_factory.mktemp("served")
    uri = new_store(template, home)
    study = recorded(uri, parent="bench-quick").study_run("bench-quick", "bench", note="**A study** with a | in its note.")
    folder = make_run(home / "journals" / "one", "one", params={"method": "toy", "lr": 0.5}, note="**Toy** on a task.",
                      tags={"data.samples": "1797"}, dataset={"name": "digits", "digest": "abcd1234"}, experiment="bench")
    report(folder, 0, 30)
    folder.write_status("finished")
    recorder = Recorder(folder, uri).start()
    assert recorder.close(60) == 0
    process, url = server.start(home, port=0, uri=uri)
    yield process, url, study, recorder.run_id
    server.stop(process, timeout_s=1)  # its parent process has nothing to finish, and takes seconds for it


@pytest.fixture(scope="module")
def tab(served):
    with browser_page(1500, 1300) as page:
        yield page


def ask(url: str, method: str = "GET", path: str = "/", body: dict | None = None, **headers: str) -> http.client.HTTPResponse:
    """A request with just these headers; a client library would set Host and Origin as it thinks fit."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    connection.putrequest(method, path, skip_host=True)
    data = json.dumps(body).encode() if body is not None else b""
    sent = {"Host": urlsplit(url).netloc, "Content-Type": "application/json", "Content-Length": str(len(data)), **headers}
    for name, value in sent.items():
        connection.putheader(name, value)
    connection.endheaders(data)
    answer = connection.getresponse()
    answer.text = answer.read().decode(errors="replace")
    connection.close()
    return answer


@pytest.mark.parametrize("host", ["evil.example", "evil.example:5000", "localhost.evil.example", "93.184.216.34", "10.evil.example",
                                  "192.168.evil.example:5000", "172.16.evil.example", "fc00:evil.example"])
def test_a_foreign_host_is_refused(served, host):
    """A name that somebody else's DNS lets point here: the browser would let their page read the answer."""
    _, url, *_ = served
    for method, path in (("GET", "/"), ("GET", "/api/2.0/mlflow/experiments/get?experiment_id=0"), ("POST", CREATE)):
        assert ask(url, method, path, {"name": "x"} if method == "POST" else None, Host=host).status == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "https://evil.example:5000", "http://localhost.evil.example", "null",
                                    "http://localhost:1", "http://127.0.0.1", "https://[::1]:8888", "http://localhost:x", "http://[::1"])
def test_a_foreign_origin_is_refused(served, origin):
    """A page of somebody else's that writes or reads here through the browser of a person; also one of another server on this machine."""
    _, url, *_ = served
    assert ask(url, "POST", CREATE, {"name": f"by {origin}"}, Origin=origin).status == 403
    got = ask(url, "GET", "/api/2.0/mlflow/experiments/get?experiment_id=0", Origin=origin)
    assert got.getheader("Access-Control-Allow-Origin") not in (origin, "*")  # the browser keeps the answer from their page
    assert ask(url, "OPTIONS", CREATE, Origin=origin, **{"Access-Control-Request-Method": "POST"}).getheader(
        "Access-Control-Allow-Origin") not in (origin, "*")
    assert Store(url).client.get_experiment_by_name(f"by {origin}") is None


def test_this_machine_is_let_in(served):
    _, url, *_ = served
    port = urlsplit(url).port
    for host in ("127.0.0.1", "localhost"):
        answer = ask(url, Host=f"{host}:{port}")
        assert answer.status == 200
        assert answer.getheader("X-Frame-Options") == "SAMEORIGIN"
    assert ask(url, "POST", CREATE, {"name": "ours"}, Origin=f"http://localhost:{port}").status == 200
    assert Store(url).client.get_experiment_by_name("ours") is not None


def test_what_is_no_database_is_told_before_anything_is_started(tmp_path, monkeypatch):
    monkeypatch.setattr(server.subprocess, "Popen", None)
    (tmp_path / "notes.db").write_bytes(b"my notes " * 500)
    with pytest.raises(UserError, match=r"The database sqlite:///.*notes\.db cannot be used: file is not a database"):
        server.start(tmp_path, port=0, uri=f"sqlite:///{tmp_path / 'notes.db'}")
    with pytest.raises(UserError, match=r"cannot be used: unable to open database file"):
        server.start(tmp_path, port=0, uri=f"sqlite:///{tmp_path}")


def test_the_assistant_is_switched_off(served):
    """It would run shell commands for everybody who reaches the port; and its panel lies over a quarter of a first page."""
    _, url, *_ = served
    for prefix in ("/ajax-api/3.0/mlflow/assistant/", "/ajax-api/3.0/mlflow//assistant/", "/ajax-api/3.0/mlflow/%61ssistant/",
                   "/x/../ajax-api/3.0/mlflow/assistant/"):
        for method, name in (("GET", "config"), ("PUT", "config"), ("GET", "providers"), ("POST", "message")):
            assert ask(url, method, prefix + name, {} if method != "GET" else None).status in (404, 405)
    page = ask(url)
    assert page.text.count("<script>localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1'") == 1
    assert page.text.endswith("</html>")
    assert page.getheader("Content-Length") == str(len(page.text.encode()))
    assert ask(url, "HEAD").status == 200


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="no /proc")
def test_nobody_else_reaches_it_and_nothing_unneeded_runs(served):
    process, url, *_ = served
    port = f"{urlsplit(url).port:04X}"
    listening = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    assert {row[1] for row in listening if row[1].endswith(f":{port}") and row[3] == "0A"} == {f"0100007F:{port}"}
    commands = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(path.name)) == process.pid:
                commands.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    assert commands
    assert not [c for c in commands if "huey" in c or "jobs" in c]  # the runner of queued jobs
    assert not [c for c in commands if "sqlite" in c]  # no address on a command line


@pytest.mark.browser
@in_browser
def test_the_published_views_are_shown(served, tab, tmp_path):
    _, url, *_ = served
    published = publish("bench", tracking=url)
    assert published.note == ""
    tab.goto(published.links[load("costs").name])
    for section in ("Accuracy by time", "Accuracy by bytes sent", "Accuracy by joules", "Accuracy by steps"):
        tab.get_by_text(section, exact=False).first.wait_for(timeout=60_000)
    tab.get_by_text("Group: binary").first.wait_for()  # grouped by method
    names = tab.locator("body").inner_text()
    assert names.index("Accuracy by time") < names.index("Accuracy by bytes sent") < names.index("Accuracy by joules")
    assert "Other metrics" not in names
    assert "Additional runs" not in names  # the study's own run has no curves
    assert "Welcome to MLflow Assistant" not in names  # a panel that unfolds by itself in a browser that is here for the first time
    tab.locator(".js-plotly-plot .scatterlayer .trace").first.wait_for(state="attached")
    tab.screenshot(path=artifacts(tmp_path) / "mlflow_costs.png")
    tab.goto(published.links[load("tradeoffs").name])
    tab.get_by_text("Accuracy against joules").first.wait_for(timeout=60_000)
    tab.screenshot(path=artifacts(tmp_path) / "mlflow_tradeoffs.png")


@pytest.mark.browser
@in_browser
def test_the_table_shows_what_matters_best_first(served, tab, tmp_path):
    _, url, *_ = served
    tab.goto(publish("bench", tracking=url).links[load("runs").name])
    tab.locator("[role=row] [col-id='metrics.`eval/accuracy`']").nth(1).wait_for(timeout=60_000)
    wanted = [f"tags.`{GROUP}`", "params.`seed`", "metrics.`eval/accuracy`", "metrics.`comm/up_bytes`", "metrics.`energy/model_j`"]
    tab.wait_for_function("""wanted => {
        const heads = wanted.map(id => document.querySelector(`[role=columnheader][col-id="${id}"]`));
        return heads.every(head => head) && heads.map(head => head.getBoundingClientRect().x).every((x, i, all) => !i || x > all[i - 1]);
    }""", arg=wanted)
    cells = tab.locator("[role=gridcell][col-id='metrics.`eval/accuracy`']").all_inner_texts()
    measured = [float(text) for text in cells if text.strip() not in ("", "-")]
    assert measured == sorted(measured, reverse=True)
    assert len(measured) == 4
    assert "bench-quick" not in tab.locator("body").inner_text()
    tab.screenshot(path=artifacts(tmp_path) / "mlflow_table.png")


@pytest.mark.browser
@in_browser
def test_the_pages_of_a_study_and_of_a_run_explain_themselves(served, tab, tmp_path):
    _, url, study, run_id = served
    experiment = Store(url).experiment("bench")
    tab.goto(pages.run(experiment, study, url))
    tab.get_by_text("with a | in its note").first.wait_for(timeout=60_000)
    tab.get_by_text("binary s1").first.wait_for()  # its children
    tab.screenshot(path=artifacts(tmp_path) / "mlflow_study.png")
    tab.goto(pages.run(experiment, run_id, url))
    link = tab.get_by_role("link", name=load("runs").name)
    link.wait_for(timeout=60_000)
    tab.get_by_text("digits (abcd1234)").first.wait_for()
    tab.screenshot(path=artifacts(tmp_path) / "mlflow_run.png")
    tab.goto(f"{url}/{link.get_attribute('href')}")  # it works on this server's own port
    tab.get_by_text("You're viewing a shared view").wait_for(timeout=60_000)
