"""The deployment of FAVAS and FedBuff: real processes, killed, slow and back again.

What the processes did is checked against a replay in this process, from the recorded contacts alone, bit for bit. All
waiting is for conditions; the times in the settings are only as long as a loaded machine needs.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import tracking_helpers
from tracking.codecs import Dense
from tracking.codecs.registry import codec
from tracking.errors import UserError
from tracking.folder import RunFolder
from workbench.deployment import Deployment, Result, start
from workbench.deployment.client import client_main
from workbench.deployment.record import table
from workbench.deployment.settings import PROTOCOL, Settings, parse_address
from workbench.deployment.wire import Lost, connect
from workbench.federation.partition import partition
from workbench.method import Context, derive_seed
from workbench.methods.federated._federated import Work
from workbench.methods.federated._local import LocalSGD, draws
from workbench.methods.federated.favas import FAVAS
from workbench.methods.federated.fedbuff import FedBuff
from workbench.registry import load_task

ROOT = Path(__file__).parent.parent
# five processes import torch, which takes many seconds on a machine that is busy
wait_for = functools.partial(tracking_helpers.wait_for, timeout=200.0)
TASK = "digits/perceptron"
KILLED, SLOW = 1, 3
STEP_S = {0: 0.01, 1: 0.01, 2: 0.01, SLOW: 0.1}  # one client is ten times as slow
COMMON = {"clients": 4, "seconds": 250.0, "silence_s": 3.0, "poll_s": 0.005}
RUNS = {
    "favas": {**COMMON, "local_steps": 50, "lr": 0.5, "selected": 2, "waiting_s": 0.05, "interaction_s": 0.5},
    "fedbuff": {**COMMON, "local_steps": 10, "lr": 0.2, "buffer": 2, "upload": "qsgd", "staleness": "sqrt"},
}


# --- four clients, one slow, one killed in the middle of a round and back later --------------------------------


class Story:
    """A deployment, what was done to it, and what became of it."""

    def __init__(self, method: str, folder: Path) -> None:
        with start(method, TASK, slowdown_s=STEP_S, folder=folder, **RUNS[method]) as running:
            self.deployment = running
            self.refusals = refusals(running)
            self.steps_made(10)
            self.kill(running)
            wait_for(lambda: "left out" in self.events_of(KILLED))
            self.left_at = len(table(running.folder, "steps"))
            self.steps_made(self.left_at + 12)
            self.back_at = len(table(running.folder, "steps"))
            running.start_client(KILLED)
            wait_for(lambda: KILLED in [c for row in table(running.folder, "steps").clients[self.back_at:] for c in row])
            self.steps_made(60)
            running.stop()
            self.result = running.wait(120)

    def events_of(self, client: int) -> list[str]:
        events = table(self.deployment.folder, "events")
        return events.event[events.client == client].tolist()

    def steps_made(self, count: int) -> None:
        wait_for(lambda: len(table(self.deployment.folder, "steps")) >= count)

    def kill(self, running: Deployment) -> None:
        """Freeze the client, so that it is contacted and does not answer, or misses server steps; then kill it."""
        process = running.clients[KILLED]
        os.kill(process.pid, signal.SIGSTOP)
        frozen_at = len(table(running.folder, "steps"))

        def missed() -> bool:
            later = table(running.folder, "steps").iloc[frozen_at + 1:]
            if running.settings.method == "fedbuff":
                return len(later) > 1
            return any(KILLED in row.contacted and KILLED not in row.clients for row in later.itertuples())

        wait_for(missed)
        process.kill()
        process.wait()


def refusals(running: Deployment) -> dict[str, str]:
    """Who is turned away while the run goes on, and with which words."""
    address, said = parse_address(running.address), {}

    def refused(name: str, act) -> None:
        with pytest.raises(UserError) as caught:
            act()
        said[name] = str(caught.value)

    refused("key", lambda: connect(address, b"a wrong key", 5))
    hub = connect(address, running.key.encode(), 5)
    refused("protocol", lambda: hub.join(PROTOCOL + 1, 0, None))
    refused("number", lambda: hub.join(PROTOCOL, 4, None))
    refused("task", lambda: client_main(running.address, running.key.encode(), 0, "digits/mlp"))
    refused("pickle", lambda: hub.join(Path("x"), 0, None))
    return said


@pytest.fixture(scope="module")
def stories(tmp_path_factory) -> dict[str, Story]:
    return {}


@pytest.fixture(params=["favas", pytest.param("fedbuff", marks=pytest.mark.slow)])
def story(request, stories, tmp_path_factory) -> Story:
    if request.param not in stories:
        stories[request.param] = Story(request.param, tmp_path_factory.mktemp("deployment") / "run")
    return stories[request.param]


def test_the_run_ends_and_has_learnt(story):
    result = story.result
    assert (result.status, result.reason) == ("stopped", "stopped by request")
    assert result.accuracy > 0.6  # chance is 0.1
    assert result.metrics["train/server_steps"] == len(result.steps) == result.steps.step.iloc[-1]
    assert result.metrics["train/gradients"] == sum(map(sum, result.steps.steps))
    assert result.folder.read_status()["status"] == "stopped"


def test_every_process_has_ended_in_its_way(story):
    d = story.deployment
    assert d.server.returncode == 0
    assert {c: p.returncode for c, p in d.clients.items()} == dict.fromkeys(range(4), 0), "the killed one's successor, too"
    for client in d.clients:
        assert f"client {client}: stopped by request" in d.log(f"client-{client}")


def test_a_killed_client_is_left_out_and_comes_back(story):
    assert story.events_of(KILLED)[:3] == ["joined", "left out", "rejoined"]
    events = story.result.events
    left, back = (float(events.time_s[(events.client == KILLED) & (events.event == e)].iloc[0]) for e in ("left out", "rejoined"))
    rows = story.result.steps
    # what it had sent before its death may still be taken in with the first server step
    absent = rows[(rows.time_s > left) & (rows.time_s < back)].iloc[1:]
    assert len(absent) > 5
    assert all(KILLED not in row.clients for row in absent.itertuples())
    assert all(KILLED not in row.contacted for row in absent.itertuples())
    # the newcomer began from a model of its own time: version = step - 1 - staleness
    first = next(row for row in rows.iloc[story.back_at:].itertuples() if KILLED in row.clients)
    assert first.step - 1 - first.staleness[first.clients.index(KILLED)] >= story.back_at


def test_a_slow_client_delivers_less(story):
    done = {c: [e for row in story.result.steps.itertuples() for k, e in zip(row.clients, row.steps, strict=True) if k == c]
            for c in range(4)}
    if story.deployment.settings.method == "favas":
        # a tenth of the speed, with the cap K and a machine that stops now and then in between
        assert all(np.mean(done[SLOW]) < 0.75 * np.mean(done[c]) for c in (0, 2))
        assert any(0 < e < 50 for e in done[SLOW]), "partial work"
    else:
        assert all(len(done[SLOW]) < 0.75 * len(done[c]) for c in (0, 2))
        assert all(e == 10 for c in range(4) for e in done[c])


def test_the_ledger_is_the_sum_of_the_messages(story):
    result = story.result
    messages = result.messages
    by_direction = messages.groupby("direction").bytes.sum()
    assert result.metrics["comm/up_bytes"] == by_direction["up"]
    assert result.metrics["comm/down_bytes"] == by_direction["down"]
    assert result.metrics["comm/messages"] == len(messages)
    P = len(result.vector)
    down = messages.bytes[messages.direction == "down"]
    assert set(down) == {len(Dense().encode(torch.zeros(P)))}
    if story.deployment.settings.upload == "dense_fp32":
        assert set(messages.bytes[messages.direction == "up"]) == set(down), "models both ways"
    counted = messages[(messages.direction == "up") & (messages.kind == "sent")].bytes.sum()
    assert counted >= result.steps.up_bytes.sum(), "the last deliveries may not have been taken in"
    # payloads travel in calls that are longer; what the sockets carried at the last server step is on the books then
    last = result.steps.iloc[-1]
    assert last.wire_up_bytes > last.total_up_bytes
    assert last.wire_down_bytes > last.total_down_bytes


def replay(result: Result, settings: Settings) -> torch.Tensor:
    """The last model, from who delivered when after how many steps, in one process and with the simulator's classes."""
    ctx = Context(device=torch.device("cpu"), seed=settings.seed)
    cls = load_task(TASK)
    task = cls("perceptron", cls.Params())
    task.setup(ctx)
    model = task.build_model(ctx)
    local = LocalSGD(model)
    shares = partition("iid", task.train_y.numpy(), settings.clients, seed=derive_seed(settings.seed, "partition"))
    rule = FedBuff(1.0, "sqrt") if settings.method == "fedbuff" else FAVAS("estimated", settings.clients)
    versions = [local.flat.vector(model)]
    for row in result.steps.itertuples():
        starts = [versions[row.step - 1 - tau] for tau in row.staleness]
        ends = []
        for start_, client, E, contact in zip(starts, row.clients, row.steps, row.contacts, strict=True):
            own = shares.of(client)
            end = start_.clone()[None]
            batches = own[draws(derive_seed(settings.seed, "batches"), client, contact, E, settings.batch_size, len(own))]
            local.train(end, [batches], task.batch, settings.lr)
            if settings.upload == "qsgd":
                q = codec("qsgd", levels=settings.qsgd_levels, rng=(derive_seed(settings.seed, "codec", client), contact))
                end = start_ + q.decode(q.encode(end[0] - start_))[None]
            ends.append(end[0])
        work = Work(*(torch.tensor(column) for column in (row.clients, row.steps, row.staleness)))
        versions.append(rule.aggregate(versions[-1], torch.stack(starts), torch.stack(ends), work))
    return versions[-1]


def test_a_replay_of_the_contacts_gives_the_same_model_bit_for_bit(story):
    settings = story.deployment.settings
    assert (settings.qsgd_levels, settings.server_lr) == (16, 1.0)
    assert np.array_equal(replay(story.result, settings).numpy(), story.result.vector)


def test_who_is_refused_and_how(story):
    said = story.refusals
    assert "refuses this key" in said["key"]
    assert f"version {PROTOCOL + 1} of the protocol, the server version {PROTOCOL}" in said["protocol"]
    assert "Client number 4 is refused. Allowed: 0 to 3." in said["number"]
    assert "trains 'digits/perceptron', this client was told 'digits/mlp'" in said["task"]
    assert "PosixPath is not allowed in a message" in said["pickle"]


# --- the server gone, the starter gone ----------------------------------------------------------------------


def test_clients_of_a_killed_server_end_with_a_sentence(tmp_path):
    with start("fedbuff", TASK, clients=2, buffer=1, seconds=250.0, folder=tmp_path / "run") as running:
        wait_for(lambda: len(running.result().steps) >= 3)
        running.server.kill()
        assert [p.wait(60) for p in running.clients.values()] == [1, 1]
        for client in range(2):
            assert f"client {client}: The server at {running.address} is gone" in running.log(f"client-{client}")
            assert "Traceback" not in running.log(f"client-{client}")
        with pytest.raises(UserError, match="server of the deployment ended"):
            running.wait()
        left = running.result()
    assert len(left.steps) >= 3
    assert left.vector is None
    assert left.metrics["train/server_steps"] == len(left.steps) or left.metrics["train/server_steps"] == len(left.steps) - 1


def test_nothing_is_left_when_the_starter_is_killed(tmp_path):
    code = f"""
import time
from workbench.deployment import start
d = start("favas", {TASK!r}, clients=1, selected=1, seconds=250.0, folder={str(tmp_path / "run")!r})
print(d.server.pid, d.clients[0].pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as starter:
        pids = [int(pid) for pid in starter.stdout.readline().split()]
        assert len(pids) == 2
        wait_for(lambda: len(table(RunFolder(tmp_path / "run"), "steps")) >= 1)
        starter.kill()
    wait_for(lambda: not any(running(pid) for pid in pids))
    assert Result.read(RunFolder(tmp_path / "run")).status == "stopped"


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_without_a_server_a_client_says_so():
    with socket.socket() as taken:  # bound, not listening: nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(Lost, match=r"No server at 127.0.0.1:\d+ for 0 s"):
            connect(taken.getsockname(), b"key", 0.0)
