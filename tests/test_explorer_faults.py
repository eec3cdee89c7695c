"""What goes wrong around the explorer leaves it usable, with a sentence for people: damaged runs, gone methods, a silent MLflow."""

from __future__ import annotations

import html
import json
import re
import shutil
import threading
from typing import Any

import pytest

from tests.conftest import WAIT_S
from tests.test_explorer_runs import until
from tracking.errors import UserError
from tracking.store import Store
from workbench.explorer import past
from workbench.explorer.panel import Explorer
from workbench.runs import runs_root


@pytest.fixture
def made(ex):
    """The explorer and the folder of a run that it has made, with a form that has gone on to other values."""
    ex.set(steps=3, lr=0.05)
    r = ex.run()
    assert r.wait(WAIT_S) == "finished"
    ex.session.clear()
    ex.set(steps=99, talk=True, seeds=3)
    return ex, runs_root() / r.key


def twin(folder, name: str, **changes: Any):
    """A copy of a run folder with another spec; ``spec=None`` leaves it out."""
    copy = shutil.copytree(folder, folder.parent / name)
    run = json.loads((copy / "run.json").read_text())
    run["spec"] = None if changes.get("spec", 0) is None else run["spec"] | changes
    (copy / "run.json").write_text(json.dumps(run))
    return copy


def pressed(ex: Explorer, button: str, run: str) -> str:
    """What the pane of past runs says after a press."""
    ex.past.given.value = run
    getattr(ex.past, button).click()
    ex.past.worker.wait(WAIT_S)
    return html.unescape(re.sub("<[^>]*>", "", ex.past.worker.note.value))


def test_a_past_run_replaces_all_that_was_on_the_form(made):
    ex, folder = made
    assert pressed(ex, "load", folder.name) == "It is on the form."
    (request,) = ex.requests()  # one seed, whatever number was typed
    assert (request.params, request.seed, request.device) == ({"steps": 3, "lr": 0.05}, 0, None)
    assert pressed(ex, "show", folder.name) == "It is among the curves."


@pytest.mark.parametrize(("changes", "said", "params"), [
    ({"method": "gone"}, "the method 'gone', which is not here", {"steps": 99, "lr": 0.05, "talk": True}),
    ({"task": "gone/net"}, "the task 'gone/net', which is not here", {"steps": 99, "lr": 0.05, "talk": True}),
    ({"params": {"steps": 4, "old": [1, 2]}}, "Method 'toy' has no parameter 'old' any more, which was 1, 2.", {"steps": 4}),
    ({"params": {"lr": -1}}, "lr = -1 is refused", None),
    ({"device": "tpu"}, "device was tpu, which cannot be chosen here", {"steps": 3, "lr": 0.05}),
    ({"budget": {"clock/wall_s": 60.0}}, "It ended at a budget (clock/wall_s 60)", {"steps": 3, "lr": 0.05}),
    ({"spec": None}, "was written by another version of the workbench, or is damaged", {"steps": 99, "lr": 0.05, "talk": True}),
])
def test_what_a_form_cannot_hold_of_a_past_run_is_said(made, changes, said, params):
    ex, folder = made
    twin(folder, "other", **changes)
    assert said in pressed(ex, "load", "other")
    assert said in html.unescape(ex.toolbar.status.value)
    if params is None:  # the value is on the form, and the error beside it
        assert ex.forms["method"].fields["lr"].control.value == "-1"
        assert ex.toolbar.run.disabled
    else:
        assert ex.request().params == params
    if "spec" not in changes:
        assert pressed(ex, "show", "other") == "It is among the curves."
    ex.choose("toy", "toy")
    ex.reset()
    assert ex.run().wait(WAIT_S) == "finished"


def test_damaged_folders_cost_their_own_line_of_the_list_alone(made):
    ex, folder = made
    for name, text in (("cut", "{"), ("listed", "[]"), ("nameless", '{"created": 1}')):
        (folder.parent / name).mkdir()
        (folder.parent / name / "run.json").write_text(text)
    twin(folder, "status").joinpath("status.json").write_text("{")
    found = {r.id: r.status for r in past.in_folders()}
    assert found == {folder.name: "finished", **dict.fromkeys(("cut", "listed", "nameless", "status"), "cannot be read")}
    assert "is not readable JSON" in pressed(ex, "load", "cut")
    assert "is not readable JSON" in pressed(ex, "show", "status")


@pytest.mark.parametrize(("error", "said"), [
    (ConnectionError("Pool(host=x): [Errno 111] Connection refused"), "does not answer (connection refused). Is it running?"),
    (RuntimeError("no such table for ann:s3cret@host\nmore"), "did not give it: no such table for host"),
])
def test_a_dead_mlflow_is_a_sentence_without_a_password(error, said):
    with pytest.raises(UserError) as told, past.answering("http://ann:s3cret@host:5000"):
        raise error
    assert said in str(told.value)
    assert "s3cret" not in str(told.value)


@pytest.mark.slow
def test_fetched_files_stay_inside_the_home_and_repeated_runs_apart(ex, uri):
    """A tag is what anybody may have written; and a run that is repeated has the key of the run before it."""
    ex.configure(uri, 2000)
    first = ex.run()
    assert first.wait(WAIT_S) == "finished"
    again = ex.rerun(first)
    assert again.wait(WAIT_S) == "finished"
    ids = [r.id for r in past.in_store(uri)]
    assert len(ids) == 2
    shutil.rmtree(runs_root())
    places = [past.fetch(uri, id).path for id in ids]
    assert len({*places}) == 2
    assert all(place.joinpath("journal.jsonl").is_file() for place in places)
    Store(uri).client.set_tag(ids[0], "workbench.key", "../../outside")
    with pytest.raises(UserError, match="no run of the workbench"):
        past.fetch(uri, ids[0])


def test_what_was_typed_before_run_is_in_the_run(ex):
    """Pages tell it twice, because the field's own message may come after the press; of fields that are gone nothing is taken."""
    fields = ex.forms["method"].fields
    told = [(fields["lr"], "0.3"), (fields["talk"], True), (ex.forms["run"].fields["device"], 1), (ex.forms["task"].fields["dim"], "7")]
    for field, value in told:
        assert f"wb-number-{field.number}" in field.box._dom_classes
        ex.board.fit._handle_custom_msg({"typed": value, "number": field.number}, [])
    request = ex.request()
    assert (request.params, request.task_params, request.device) == ({"steps": 5, "lr": 0.3, "talk": True}, {"dim": 7}, "cpu")
    ex.choose("askewsgd")
    before = ex.python()
    ex.board.fit._handle_custom_msg({"typed": "0.7", "number": fields["lr"].number}, [])
    assert ex.python() == before


def test_a_change_waits_for_whoever_holds_the_form(ex):
    """Pages' messages come in on several threads: the last change is the last one written to the texts."""
    control, texts = ex.forms["method"].fields["lr"].control, ex.copies.texts["Python"]
    with ex._lock:
        hand = threading.Thread(target=lambda: setattr(control, "value", "0.4"))
        hand.start()
        until(lambda: control.value == "0.4", "the text")
        hand.join(0.2)
        assert hand.is_alive()
        assert "0.4" not in texts.value
    hand.join(WAIT_S)
    assert "0.4" in texts.value


def test_a_look_that_breaks_is_told_once_and_the_rest_goes_on(ex, caplog):
    ex.set(steps=4)
    r = ex.run()
    r.poll = lambda: (_ for _ in ()).throw(OSError(5, "the disk is away"))
    assert r.wait(WAIT_S) == "finished"
    until(lambda: ex.session._ticker is None, "the ticker to end")
    assert caplog.text.count("could not be drawn") == 1
    ex.set(seed=1)
    again = ex.run()
    assert again.wait(WAIT_S) == "finished"
    until(lambda: len(again.rows) == 4, "the rows of the next run")
