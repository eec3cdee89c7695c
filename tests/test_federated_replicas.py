"""Training together what could be trained apart: replicas over seeds and rates, waves of jobs, parts of a stack."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from tests.federated_helpers import ROUNDING, Federation
from tests.test_engine import lasting
from tracking.errors import UserError
from workbench.federation.replicas import joined, replicate
from workbench.methods.federated._federated import Request
from workbench.methods.federated._local import LocalSGD
from workbench.methods.federated.asyncsgd import AsyncSGDTraining
from workbench.methods.federated.favas import FAVASTraining
from workbench.methods.federated.fedasync import FedAsyncTraining
from workbench.registry import load_task
from workbench.runs import run
from workbench.state import restore, snapshot

SMALL = {"clients": 6, "batch_size": 8, "report_every": 20.0, "eval_every": 60.0}
OWN = {
    "favas": {"selected": 3, "local_steps": 4, "horizon": 100.0},
    "quafl": {"selected": 3, "local_steps": 4, "horizon": 100.0, "upload": "lattice", "lattice_side": 1e-3},
    "fedavg": {"selected": 3, "local_steps": 4, "horizon": 300.0},
    "fedbuff": {"buffer": 2, "local_steps": 4, "horizon": 100.0, "upload": "int8"},
    "asyncsgd": {"jobs": 4, "horizon": 60.0},
}
SIZES = {"train_size": 200, "test_size": 50}


# --- replicas ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", OWN)
def test_replicas_are_the_runs_bit_for_bit(method):
    """Against the engine's own journals: every metric of every report of every seed and rate."""
    params = SMALL | OWN[method] | {"backend": "loop"}
    rates = (0.05, 0.2) if method == "favas" else (0.1,)
    together = replicate(method, "digits/perceptron", params, seeds=(0, 3), rates=rates, task_params=SIZES, device="cpu")
    assert [(r.seed, r.rate, r.status) for r in together] == [(s, lr, "finished") for s in (0, 3) for lr in rates]
    for replica in together:
        alone = run(method, "digits/perceptron", params | {"lr": replica.rate}, seed=replica.seed, task_params=SIZES, device="cpu",
                    threads=1, tracking="off", progress=False)
        drop = ("memory/", "energy/")
        wanted = [{k: v for k, v in row.items() if not k.startswith(drop)} for _, row in lasting(alone)]
        assert replica.rows == wanted
        assert torch.equal(replica.state.server, alone.state()[0].server)
    assert list(together[0].frame()["clock/virtual_s"]) == [row["clock/virtual_s"] for row in together[0].rows]


@pytest.mark.parametrize("local", ["sgd", "luq", "askewsgd"])
def test_batched_products_agree_with_separate_replicas_to_rounding(local):
    params = SMALL | OWN["favas"] | {"backend": "matmul", "local": local, "quantised_layers": "all"}
    together = replicate("favas", "digits/perceptron", params, seeds=(0, 1), rates=(0.1, 0.3), task_params=SIZES)
    for replica in together:
        (alone,) = replicate("favas", "digits/perceptron", params, seeds=[replica.seed], rates=[replica.rate], task_params=SIZES)
        # float32 rounding; a quantiser that it tips over moves single weights by a level, hence the mean
        difference = (alone.state.server - replica.state.server).abs()
        assert difference.max() <= ROUNDING["atol"] if local == "sgd" else difference.mean() < 1e-3
    assert not torch.equal(together[0].state.server, together[1].state.server)


def test_one_that_diverges_ends_alone(monkeypatch):
    params, train = SMALL | OWN["favas"] | {"backend": "loop"}, LocalSGD.train

    def poisoned(self, stack, samples, batch, lr, jobs):
        losses = train(self, stack, samples, batch, lr, jobs)
        stack[torch.as_tensor(lr).expand(len(stack)) > 50] = math.inf
        return losses

    monkeypatch.setattr(LocalSGD, "train", poisoned)
    wild, tame = replicate("favas", "digits/perceptron", params, rates=(100.0, 0.1), task_params=SIZES)
    assert (wild.status, tame.status) == ("diverged", "finished")
    assert math.isnan(wild.rows[-1]["train/loss"])
    assert tame.rows == replicate("favas", "digits/perceptron", params, rates=[0.1], task_params=SIZES)[0].rows


def test_the_default_rate_is_that_of_the_parameters():
    (one,) = replicate("fedbuff", "digits/perceptron", SMALL | OWN["fedbuff"] | {"lr": 0.03}, seeds=[2], task_params=SIZES)
    assert (one.seed, one.rate) == (2, 0.03)


@pytest.mark.parametrize(("call", "said"), [
    (lambda: replicate("favas", "digits/perceptron", seeds=[]), "at least one seed and one rate"),
    (lambda: replicate("favas", "digits/perceptron", rates=[]), "at least one seed and one rate"),
    (lambda: replicate("binaryconnect", "digits/mlp"), "not a federated training"),
    (lambda: replicate("favas", "digits/perceptron", rates=[-1.0]), "lr = -1.0"),
])
def test_what_cannot_be_replicated_is_refused(call, said):
    with pytest.raises(UserError, match=said):
        call()


def test_data_that_depend_on_the_seed_are_refused(monkeypatch):
    task = load_task("digits/perceptron")
    setup = task.setup

    def shuffled(self, ctx):
        setup(self, ctx)
        self.train_x = self.train_x.roll(ctx.seed, 0)

    monkeypatch.setattr(task, "setup", shuffled)
    assert len(replicate("favas", "digits/perceptron", SMALL | OWN["favas"], seeds=[1], rates=(0.1, 0.2), task_params=SIZES)) == 2
    with pytest.raises(UserError, match="depend on the seed"):
        replicate("favas", "digits/perceptron", SMALL | OWN["favas"], seeds=(0, 1), task_params=SIZES)


def test_joined_requests_keep_rows_rates_and_jobs_apart():
    one = Request(torch.zeros(2, 3), [np.zeros((1, 4), int)] * 2, 0.1, ["a", "b"])
    two = Request(torch.ones(1, 3), [np.ones((2, 4), int)], 0.7, ["c"])
    whole = joined([one, two])
    assert whole.stack.tolist() == [[0.0] * 3, [0.0] * 3, [1.0] * 3]
    assert whole.lr.tolist() == [torch.tensor(lr).item() for lr in (0.1, 0.1, 0.7)]
    assert whole.jobs == ["a", "b", "c"]
    assert [len(s) for s in whole.samples] == [1, 1, 2]
    whole.stack.add_(1)
    assert one.stack.sum() == 0


# --- waves ------------------------------------------------------------------------------------------------


def sizes_of(f: Federation, monkeypatch) -> list[int]:
    """Rows of each request of a federation, as it runs."""
    sizes, inner = [], f.method.train
    monkeypatch.setattr(f.method, "train", lambda request, ctx: sizes.append(len(request.stack)) or inner(request, ctx))
    return sizes


@pytest.mark.parametrize("cls", [AsyncSGDTraining, FedAsyncTraining], ids=lambda c: c.id)
def test_jobs_are_trained_in_waves_of_all_whose_model_is_there(cls, monkeypatch):
    params = {"clients": 12, "horizon": 60.0} | ({"jobs": 12} if cls is AsyncSGDTraining else {})
    f = Federation(cls, **params)
    sizes, trace = sizes_of(f, monkeypatch), f.method.schedule
    f.run()
    # brute force: a wave ends where a job began from a model that the wave itself makes
    wanted, at = [], 0
    while at < len(trace.start):
        stop = at
        while stop < len(trace.start) and trace.start[stop] <= at:
            stop += 1
        wanted.append(stop - at)
        at = stop
    assert sizes == wanted
    assert sum(sizes) == len(trace.start) > 2 * len(sizes)


@pytest.mark.parametrize("cls", [AsyncSGDTraining, FedAsyncTraining], ids=lambda c: c.id)
def test_waves_change_nothing(cls, monkeypatch):
    waves = Federation(cls, clients=6, backend="loop")
    single = Federation(cls, clients=6, backend="loop")
    monkeypatch.setattr(single.method, "_wave", lambda t, rows: rows)
    for one, other in zip(waves, single, strict=True):
        assert one == other
    assert torch.equal(waves.state.server, single.state.server)
    assert waves.ctx.ledger.table() == single.ctx.ledger.table()


def test_a_wave_goes_through_a_snapshot(monkeypatch):
    whole, half = Federation(AsyncSGDTraining, clients=6, jobs=6), Federation(AsyncSGDTraining, clients=6, jobs=6)
    rows = list(whole)
    kept = [next(iter(half))]
    while not len(half.state.ahead) or half.state.delivered == 0:
        kept.append(next(iter(half)))
    twin = Federation(AsyncSGDTraining, clients=6, jobs=6)
    twin.state = restore(twin.state, copy.deepcopy(snapshot(half.state)))
    sizes = sizes_of(twin, monkeypatch)
    left = len(twin.state.ahead) - twin.state.delivered
    assert left > 0
    for _ in range(left):
        next(iter(twin))
    assert sizes == [], "what was trained is not trained again"
    assert kept == rows[: len(kept)]
    assert torch.equal(twin.run(), whole.state.server)


def test_a_wave_has_an_end(monkeypatch):
    monkeypatch.setattr("workbench.methods.federated._federated.MAX_WAVE", 5)
    f = Federation(FedAsyncTraining, clients=12, horizon=60.0)
    sizes = sizes_of(f, monkeypatch)
    result = f.run()
    assert max(sizes) == 5
    monkeypatch.undo()
    torch.testing.assert_close(result, Federation(FedAsyncTraining, clients=12, horizon=60.0).run(), **ROUNDING)


# --- parts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("local", ["sgd", "luq", "askewsgd"])
@pytest.mark.parametrize("cls", [FAVASTraining, AsyncSGDTraining], ids=lambda c: c.id)
def test_results_do_not_depend_on_how_many_devices_share_the_rows(cls, local, monkeypatch):
    """A request dealt out to 1, 2 or 3 workers, each with its own trainer of its own part."""
    results = []
    for workers in (1, 2, 3):
        f = Federation(cls, clients=6, backend="loop", local=local, quantised_layers="all")
        trainers = [copy.deepcopy(f.method.local) for _ in range(workers)]

        def dealt(request, ctx, f=f, trainers=trainers):
            losses = torch.empty(len(request.stack))
            for k, trainer in enumerate(trainers):
                rows = list(range(len(request.stack)))[k :: len(trainers)]
                part = request.stack[rows]
                jobs, samples = [request.jobs[i] for i in rows], [request.samples[i] for i in rows]
                losses[rows] = trainer.train(part, samples, f.method.batches, request.lr, jobs)
                request.stack[rows] = part
            return losses

        monkeypatch.setattr(f.method, "train", dealt)
        results.append((f.run(), f.ctx.ledger.table()))
    for server, table in results[1:]:
        assert torch.equal(server, results[0][0])
        assert table == results[0][1]
    whole = Federation(cls, clients=6, backend="loop", local=local, quantised_layers="all")
    assert torch.equal(whole.run(), results[0][0])
