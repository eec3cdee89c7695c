"""The parts of a deployment by hand: the server without sockets, the wire without a server, mistakes."""

from __future__ import annotations

import io
import os
import pickle
import socket
import subprocess
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tracking_helpers import wait_for
from tracking.codecs import Dense
from tracking.errors import UserError
from tracking.folder import RunFolder
from workbench.deployment import client, deploy, server
from workbench.deployment.federation import Federation
from workbench.deployment.pace import Server
from workbench.deployment.record import Record, table
from workbench.deployment.settings import PROTOCOL, Settings, parse_address
from workbench.deployment.wire import Plain, PlainConnection, Traffic

# --- the server by hand, without sockets ----------------------------------------------------------------------


class ByHand:
    """A server in a thread of this process; the test plays the clients."""

    def __init__(self, folder: Path, **settings) -> None:
        self.settings = Settings(**{"local_steps": 5, "poll_s": 0.01, "waiting_s": 0.01, "seconds": 100.0, "silence_s": 100.0, **settings})
        self.federation = Federation(self.settings)
        self.folder, self.over = RunFolder(folder), threading.Event()
        self.server = Server(self.settings.aggregator(), self.federation.initial, self.settings, self.federation,
                             Record(self.folder, self.settings), stop=self.over.is_set)
        self.hub = self.server.hub
        self.ended: list[tuple[str, str]] = []
        self.thread = threading.Thread(target=lambda: self.ended.append(self.server.run()), daemon=True)

    def __enter__(self) -> ByHand:
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.over.set()
        self.thread.join(60)
        assert self.ended

    def join(self, number: int) -> tuple[int, int, torch.Tensor]:
        given = self.hub.join(PROTOCOL, number, None)
        return given["session"], given["contact"], Dense().decode(given["payload"])

    def answered(self, number: int, session: int) -> torch.Tensor:
        """The model that answers a delivery."""
        word, _, _, payload = wait_for(lambda: (got := self.hub.poll(number, session))[0] == "model" and got)
        assert word == "model"
        return Dense().decode(payload)

    def events(self) -> list[str]:
        return table(self.folder, "events").event.tolist()


def test_given_constants_divide_the_deliveries(tmp_path):
    with ByHand(tmp_path, clients=2, selected=2, interaction_s=100.0, mean_steps=(2.0, 4.0)) as by_hand:
        hub, delta = by_hand.hub, torch.linspace(-1, 1, len(by_hand.federation.initial))
        sessions = []
        for number in range(2):
            session, contact, model = by_hand.join(number)
            assert contact == 0
            assert torch.equal(model, by_hand.federation.initial)
            sessions.append(session)
        for number, steps in ((0, 3), (1, 0)):
            wait_for(lambda c=number: hub.poll(c, sessions[c]) == ("deliver",))
            assert hub.deliver(number, sessions[number], 0, steps, Dense().encode(model + (steps > 0) * delta))
        got = by_hand.answered(0, sessions[0])
    # (w + (w + delta / 2) + w) / 3; float32 rounds each of some five operations
    torch.testing.assert_close(got, model + delta / 6, rtol=1e-6, atol=1e-6)


def test_a_client_that_never_answers_does_not_hold_the_server_up(tmp_path):
    with ByHand(tmp_path, clients=2, selected=2, interaction_s=0.05, server_steps=5) as by_hand:
        silent, *_ = by_hand.join(1)
        worker = threading.Thread(target=client.Client(by_hand.hub, 0).run, daemon=True)
        worker.start()
        word = wait_for(lambda: (got := by_hand.hub.poll(1, silent))[0] == "end" and got)
        worker.join(60)
        by_hand.thread.join(60)
        assert by_hand.ended == [("finished", "")]
    steps = table(by_hand.folder, "steps")
    assert word == ("end", "the run is over after 5 server steps")
    assert [row.clients for row in steps.itertuples()] == [[0]] * 5
    assert all(row.contacted == [0, 1] for row in steps.itertuples())


def test_deliveries_that_are_of_no_use(tmp_path):
    with ByHand(tmp_path, clients=1, selected=1, interaction_s=100.0) as by_hand:
        hub, w = by_hand.hub, by_hand.federation.initial
        session, contact, _ = by_hand.join(0)
        good = Dense().encode(w)
        wait_for(lambda: hub.poll(0, session) == ("deliver",))
        for wrong in ((0, session + 1, contact, 1, good), (0, session, contact + 1, 1, good), (0, session, contact, 6, good)):
            assert not hub.deliver(*wrong), "another session, another contact, more than K steps"
        bad = (b"", b"foreign", Dense().encode(w[:-1]), Dense().encode(torch.full_like(w, torch.nan)))
        for number, payload in enumerate(bad):
            wait_for(lambda: hub.poll(0, session) == ("deliver",))
            assert hub.deliver(0, session, number, 1, payload)
            assert torch.equal(by_hand.answered(0, session), w), "the model stays as it is"
    assert by_hand.events()[2:] == ["diverged", "refused", "refused", "diverged"]
    messages = table(by_hand.folder, "messages")
    assert messages.kind.value_counts().to_dict() == {"sent": 1 + 2 * len(bad), "discarded": 3}
    assert sum(r["bytes"] for r in hub.ledger.table() if r["kind"] == "discarded") == 3 * len(good)


def test_silence_replacement_and_return(tmp_path):
    with ByHand(tmp_path, method="fedbuff", clients=2, buffer=2) as by_hand:
        hub, (first, contact, w) = by_hand.hub, by_hand.join(0)
        assert hub.deliver(0, first, contact, 5, Dense().encode(w))
        by_hand.join(1)
        wait_for(lambda: "begun" in by_hand.events())
        patient = hub.settings
        hub.settings = patient.model_copy(update={"silence_s": 0.1})
        wait_for(lambda: hub.alive() == [])  # nobody asks
        hub.settings = patient
        assert hub.poll(0, first) == ("rejoin",)
        second, contact, _ = by_hand.join(0)
        assert contact == 1, "other samples than before"
        assert hub.inbox == [], "what it delivered before is not counted twice"
        third, contact, _ = by_hand.join(0)
        assert (hub.poll(0, second), hub.poll(0, third), contact) == (("replaced",), ("work",), 2)
        wait_for(lambda: "starved" in by_hand.events())
    names = [n for n in by_hand.events() if n != "starved"]
    assert names[:9] == ["joined", "joined", "begun", "left out", "left out", "discarded", "rejoined", "replaced", "rejoined"]


def test_a_run_that_nobody_joins_has_failed(tmp_path):
    with ByHand(tmp_path, joining_s=0.05) as by_hand:
        by_hand.thread.join(60)
        assert by_hand.ended == [("failed", "no client joined within 0.05 s")]


# --- the wire -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 16_384, 16_385, 100_000])  # long messages are framed in a packet of their own
def test_counted_bytes_are_those_of_the_socket(size):
    ours, theirs = socket.socketpair()
    traffic, raw = Traffic(), []
    reader = threading.Thread(target=lambda: raw.extend(iter(lambda: theirs.recv(65_536), b"")))
    reader.start()
    sender = PlainConnection(Connection(ours.detach()), traffic)
    sender.send(bytes(size))
    sender.close()
    reader.join(60)
    assert traffic.sent == sum(map(len, raw)) > size
    theirs.close()
    ours, theirs = socket.socketpair()
    writer = threading.Thread(target=lambda: theirs.sendall(b"".join(raw)))
    writer.start()
    receiver = PlainConnection(Connection(ours.detach()), traffic)
    assert receiver.recv() == bytes(size)
    assert traffic.received == traffic.sent
    writer.join(60)
    receiver.close()
    theirs.close()


def test_a_patient_connection_loses_patience():
    ours, theirs = socket.socketpair()
    with pytest.raises(TimeoutError, match="no answer for"):
        PlainConnection(Connection(ours.detach()), limit_s=0.01).recv()
    theirs.close()


class Bomb:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize("value", [Bomb(), np.zeros(2), torch.zeros(2), Path("x"), eval, SystemExit()], ids=lambda v: type(v).__name__)
def test_nothing_but_plain_values_is_unpickled(value):
    with pytest.raises(pickle.UnpicklingError, match="not allowed"):
        Plain(io.BytesIO(pickle.dumps(value))).load()


@pytest.mark.parametrize("value", [("model", 1, 2, b"x"), {"a": [1.5, None, True]}, UserError("no"), ValueError("bad")], ids=repr)
def test_plain_values_pass(value):
    got = Plain(io.BytesIO(pickle.dumps(value))).load()
    assert got == value or (type(got), got.args) == (type(value), value.args)


# --- mistakes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"method": "favass"}, "Did you mean 'favas'"),
        ({"clinets": 3}, "Did you mean 'clients'"),
        ({"clients": 1}, "selected = 2 clients a step, and there are 1"),
        ({"method": "fedbuff", "buffer": 5}, "a buffer of 5 never fills with 4 clients"),
        ({"mean_steps": [1.0, 2.0]}, "mean_steps has 2 values"),
        ({"mean_steps": [1.0, 2.0, 0.0, 1.0]}, "one above 0"),
        ({"poll_s": 6.0}, "poll_s = 6 is not below silence_s = 5"),
        ({"seconds": 0}, "seconds = 0 is refused"),
        ({"task": "digts/perceptron"}, "Did you mean 'digits/perceptron'"),
        ({"slowdown_s": {4: 1.0}}, "client number 0 to 3"),
        ({"slowdown_s": {0: -1.0}}, "seconds from 0 on"),
    ],
)
def test_mistakes_are_found_before_any_process(wrong, words, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(UserError, match=words):
        deploy(**wrong)


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not empty"):
        deploy(folder=tmp_path)


@pytest.mark.parametrize("text", ["localhost", ":80", "host:", "host:99999", "host:x"])
def test_addresses(text):
    with pytest.raises(UserError, match="Write host:port"):
        parse_address(text)


def test_commands_say_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WORKBENCH_DEPLOYMENT_KEY", raising=False)
    assert client.main(["--address", "127.0.0.1:1", "--client", "0"]) == 2
    told = ("Set the environment variable WORKBENCH_DEPLOYMENT_KEY to the secret of this deployment, "
            "the same for the server and every client.\n")
    assert capsys.readouterr().err == f"client 0: {told}"
    assert server.main(["--folder", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == f"server: {told}"
    monkeypatch.setenv("WORKBENCH_DEPLOYMENT_KEY", "key")
    assert client.main(["--address", "127.0.0.1:1", "--client", "0", "--patience", "0"]) == 1
    assert "No server at 127.0.0.1:1 for 0 s" in capsys.readouterr().err
    assert server.main(["--folder", str(tmp_path / "run"), "--set", "lr=fast"]) == 2
    assert "lr = 'fast' is refused" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
