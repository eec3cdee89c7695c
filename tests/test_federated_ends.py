"""Federated trainings that stop, resume, diverge or are large: snapshots, the journal, the policies, 10,000 clients."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.federated_helpers import CLASSES, Clouds, Federation
from tests.test_engine import lasting
from tests.test_federated_bytes import rows_of
from workbench.control import Stopped
from workbench.methods.federated.favas import FAVASTraining
from workbench.methods.federated.fedavg import FedAvgTraining
from workbench.methods.federated.fedbuff import FedBuffTraining
from workbench.methods.federated.quafl import QuAFLTraining
from workbench.runs import run
from workbench.state import restore, snapshot


@CLASSES
def test_state_goes_through_a_snapshot_in_the_middle(cls):
    whole, half = Federation(cls), Federation(cls)
    rows = list(whole)
    middle = len(rows) // 2
    for _, _ in zip(range(middle), half, strict=False):
        pass
    twin = Federation(cls)
    twin.state = restore(twin.state, copy.deepcopy(snapshot(half.state)))
    assert list(twin) == rows[middle:]
    assert torch.equal(twin.state.server, whole.state.server)


@pytest.mark.parametrize("cls", [FAVASTraining, QuAFLTraining, FedBuffTraining], ids=lambda c: c.id)
def test_stopped_in_the_middle_and_resumed_it_has_the_same_journal(cls, monkeypatch):
    params = cls.example["params"] | {"horizon": 250.0, "report_every": 20.0, "eval_every": 60.0}

    def go(**kwargs):
        return run(
            cls.id,
            "digits/perceptron",
            params,
            task_params={"train_size": 200, "test_size": 50},
            threads=1,
            tracking="off",
            progress=False,
            checkpoint_s=0,
            **kwargs,
        )

    whole = lasting(go())
    train, calls = cls.train, [0]

    def stopping(self, *args):
        calls[0] += 1
        if calls[0] == 9:  # within a server step, after others of the same report
            raise Stopped("by the test")
        return train(self, *args)

    monkeypatch.setattr(cls, "train", stopping)
    assert go(fresh=True).status == "stopped"
    monkeypatch.setattr(cls, "train", train)
    resumed = go()
    assert resumed.status == "finished"
    assert not resumed.cached
    assert lasting(resumed) == whole


class Hazard(Clouds):
    """One client's inputs are infinite."""

    def setup(self, ctx):
        super().setup(ctx)
        self.train_x = self.train_x.clone()
        self.train_x[0] = math.inf


def bad_client(f: Federation) -> int:
    return next(i for i in range(f.method.params.clients) if 0 in f.method.shares.of(i))


def all_selected(cls: type) -> dict[str, int]:
    return {"selected": 4} if cls is FedAvgTraining else {}  # few rounds: the bad client is to be in one


@CLASSES
def test_drop_leaves_diverged_deliveries_out_and_counts_them(cls):
    # 15 samples a client, 3 steps of 32: its bad sample is in a delivery with probability 1 - (14/15)^96 > 0.998
    f = Federation(cls, Hazard(), on_divergence="drop", batch_size=32, **all_selected(cls))
    bad = bad_client(f)
    rows = list(f)
    assert all(math.isfinite(v) for row in rows for v in row.values())
    assert torch.isfinite(f.state.server).all()
    trace = f.method.schedule
    diverged = ((trace.client == bad) & (trace.steps > 0)).sum()
    assert rows[-1]["train/diverged"] == pytest.approx(diverged, rel=0.1)
    assert (
        f"client {bad}" not in rows_of(f, "up") or rows_of(f, "up")[f"client {bad}"][1] < 0.5 * trace.deliveries()[bad]
    )
    assert torch.isfinite(torch.stack([torch.zeros(59), *f.state.own.values()])).all()


@CLASSES
def test_stop_says_so_with_a_loss_that_is_no_number(cls):
    f = Federation(cls, Hazard(), batch_size=32, report_every=1e6, **all_selected(cls))
    row = next(iter(f))
    assert math.isnan(row["train/loss"])
    assert row["train/diverged"] == 1
    assert torch.isfinite(f.state.server).all()


def test_the_engine_ends_such_a_run_as_diverged(monkeypatch):
    train, params = FAVASTraining.train, FAVASTraining.example["params"] | {"upload": "qsgd", "horizon": 300.0}

    def poisoned(self, request, ctx):
        loss = train(self, request, ctx)
        request.stack[0, 0] = math.nan  # the loss is still a number; the codec would refuse the model
        return loss

    monkeypatch.setattr(FAVASTraining, "train", poisoned)
    ended = run("favas", "digits/perceptron", params, threads=1, tracking="off", progress=False)
    assert ended.status == "diverged"
    assert "train/loss = nan" in ended.reason


def test_clip_shortens_long_differences_and_drops_the_rest():
    f = Federation(FAVASTraining, Hazard(), on_divergence="clip", clip_norm=0.05, batch_size=32, lr=1.0)
    moves, inner = [], f.state.aggregator.aggregate
    f.state.aggregator.aggregate = lambda server, start, end, work: (
        moves.append((end - start).norm(dim=1)) or inner(server, start, end, work)
    )
    rows = list(f)
    lengths = torch.cat(moves)
    assert lengths.max() <= 0.05 * (1 + 1e-4)
    assert (lengths > 0.0499).any()
    assert rows[-1]["train/diverged"] > 3
    assert torch.isfinite(f.state.server).all()


CHILD = """
import resource, sys, torch
torch.set_num_threads(1)
from tests.federated_helpers import Federation
from workbench.methods.federated.favas import FAVASTraining
from workbench.registry import load_task
cls = load_task("digits/perceptron")
task = cls("perceptron", cls.Params())
setup = type(task).setup
def many(self, ctx):
    setup(self, ctx)
    self.train_x, self.train_y = self.train_x.repeat(14, 1, 1, 1), self.train_y.repeat(14)
type(task).setup = many
f = Federation(FAVASTraining, task, clients=10_000, selected=2000, local_steps=20, batch_size=32, horizon=140.0, lr=0.5)
f.run()
accuracy = f.method.evaluate(f.state, task, f.ctx)["eval/accuracy"]
print(f.state.gradients, accuracy, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_ten_thousand_clients_fit_in_four_gibibytes():
    child = subprocess.run(
        [sys.executable, "-c", CHILD],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"PYTHONPATH": "."},
        timeout=280,
    )
    assert child.returncode == 0, child.stderr
    gradients, accuracy, peak = map(float, child.stdout.split())
    assert gradients > 200_000
    assert accuracy > 0.3  # chance is 0.1; twenty server steps, each of a fifth of one gradient step of the mean model
    assert peak * 1024 < 4 * 2**30  # Linux counts in KiB
