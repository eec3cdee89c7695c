"""The supervised loop: batches, schedules, evaluation that leaves no trace, batch-norm statistics, model size."""

from __future__ import annotations

import copy
import math
from itertools import chain

import pytest
import torch
from torch import nn

from tests import lowbit_helpers as h
from workbench.method import Context
from workbench.methods import supervised
from workbench.methods.lowbit.full_precision import FullPrecision
from workbench.methods.lowbit.projected import ProjectedTraining
from workbench.state import snapshot
from workbench.task import SupervisedParams


class Recorded(h.Blobs):
    """Remembers which samples each batch held."""

    def __init__(self, train_size: int = 400) -> None:
        super().__init__("", SupervisedParams())
        self.train_size, self.seen = train_size, []

    def setup(self, ctx: Context) -> None:
        super().setup(ctx)
        self.train_x, self.train_y = self.train_x[:self.train_size], self.train_y[:self.train_size]

    def batch(self, index, generator=None):
        self.seen.append(index.tolist())
        return super().batch(index, generator)


def begin(method_class=FullPrecision, seed: int = 0, train_size: int = 400, **params: object):
    return h.begin(method_class, Recorded(train_size), seed, **params)


def test_same_seed_same_batches_whatever_the_method_and_the_reports():
    runs = []
    for method_class, seed, every in ((FullPrecision, 0, 20), (ProjectedTraining, 0, 3), (FullPrecision, 1, 20)):
        method, state, task, ctx = begin(method_class, seed, epochs=3, batch_size=32, report_every=every)
        h.finish(method, state, task, ctx)
        runs.append(task.seen)
    assert runs[0] == runs[1] != runs[2]
    for epoch in range(3):  # each sample once an epoch, in another order
        assert sorted(chain(*runs[0][13 * epoch:13 * (epoch + 1)])) == list(range(400))
    assert runs[0][:13] != runs[0][13:26]


@pytest.mark.parametrize(("size", "batch", "sizes"), [
    (100, 30, [30, 30, 30, 10]), (91, 30, [30, 30, 30]), (90, 30, [30] * 3), (20, 64, [20])])
def test_a_last_batch_of_one_sample_is_left_out(size, batch, sizes):
    method, state, task, ctx = begin(train_size=size, epochs=2, batch_size=batch, report_every=2)
    steps = h.finish(method, state, task, ctx)
    assert [len(b) for b in task.seen] == sizes * 2
    assert steps[-1]["train/samples"] == 2 * sum(sizes)
    assert steps[-1]["train/epoch"] == 2
    assert method.progress(state) == (2 * len(sizes), 2 * len(sizes))


def test_a_report_is_the_mean_loss_over_its_samples_and_the_loop_a_plain_one():
    method, state, task, ctx = begin(epochs=1, batch_size=150, report_every=2, lr=0.05, base="sgd", weight_decay=0.01)
    model = copy.deepcopy(state.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    order = torch.randperm(400, generator=ctx.generator("order", cpu=True))
    losses = []
    for part in order.split(150):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(task.train_x[part]), task.train_y[part])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    steps = h.finish(method, state, task, ctx)
    assert steps[0]["train/loss"] == pytest.approx((losses[0] + losses[1]) / 2, rel=1e-6)
    assert steps[1]["train/loss"] == pytest.approx(losses[2], rel=1e-6)
    for a, b in zip(model.state_dict().values(), state.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


def test_learning_rate_decays_at_the_named_epochs():
    method, state, task, ctx = begin(epochs=6, batch_size=400, lr=0.8, lr_decay=0.5, lr_decay_epochs=(2, 3, 5))
    assert [m["train/lr"] for m in h.finish(method, state, task, ctx)] == [0.8, 0.8, 0.4, 0.2, 0.2, 0.1]


def test_evaluation_is_due_at_epoch_ends_of_the_chosen_rhythm():
    method, state, task, ctx = begin(epochs=4, batch_size=100, report_every=2, eval_every=2)
    due = []
    while method.progress(state).done < method.progress(state).total:
        method.step(state, task, ctx)
        due.append(method.evaluation_due(state))
    assert due == [False, False, False, True] * 2


def frozen(value):
    """A state tree with tensors as lists, to be compared by ==."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {k: frozen(v) for k, v in value.items()}
    return [frozen(v) for v in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("method_class", [FullPrecision, ProjectedTraining])
def test_evaluation_leaves_the_state_as_it_is(method_class):
    method, state, task, ctx = begin(method_class, epochs=2, batch_size=64, bn_batches=3)
    method.step(state, task, ctx)
    before, mode = frozen(snapshot(state)), state.model.training
    first = method.evaluate(state, task, ctx)
    assert frozen(snapshot(state)) == before
    assert state.model.training == mode
    assert method.evaluate(state, task, ctx) == first


def test_test_figures_equal_a_direct_computation_for_any_batch_size():
    method, state, task, ctx = begin(epochs=1)
    method.step(state, task, ctx)
    outputs = copy.deepcopy(state.model).eval()(task.test_x)
    for batch in (7, 200, 500):
        got = supervised.test(state.model, task, ctx, batch)
        assert got["eval/loss"] == pytest.approx(nn.functional.cross_entropy(outputs, task.test_y).item(), rel=1e-5)
        assert got["eval/accuracy"] == (outputs.argmax(1) == task.test_y).sum().item() / 200


def test_recalibrated_statistics_are_the_average_over_batches():
    _, state, task, ctx = begin()
    model = state.model
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm1d):
                m.running_mean.fill_(9.0)
    supervised.recalibrate_batchnorm(model, task, 50, 6, ctx)
    norm, parts = model[1], [model[0](task.train_x[i]) for i in task.seen]
    assert [len(i) for i in task.seen] == [50] * 6
    assert len(set(chain(*task.seen))) == 300
    torch.testing.assert_close(norm.running_mean, torch.stack([p.mean(0) for p in parts]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([p.var(0) for p in parts]).mean(0))
    assert not model.training


def test_model_size_equals_a_count_by_hand():
    model = nn.Sequential(nn.Linear(40, 10, bias=False), nn.BatchNorm1d(10, affine=False))
    generator = torch.Generator().manual_seed(0)
    buffers = 2 * (1 + 4 + 4 * 10)  # mean and variance: rank, one dimension, float32 values
    # fresh statistics are constant: one level of 4 bytes, a count of 2, no bits
    fresh = 2 * (1 + 4 + 2 + 4)
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(10, 40, generator=generator))
    header = 1 + 2 * 4
    assert supervised.model_size(model)["memory/model_bytes"] == header + 4 * 400 + fresh
    model[1].running_mean.normal_(generator=generator)
    model[1].running_var.uniform_(generator=generator)
    assert supervised.model_size(model)["memory/model_bytes"] == header + 4 * 400 + buffers
    for levels, bits in ((2, 1), (3, 2), (5, 3), (17, 5)):
        with torch.no_grad():
            model[0].weight.copy_((torch.arange(400) % levels).view(10, 40) * 0.37)
        size = supervised.model_size(model)
        want = header + 2 + 4 * levels + math.ceil(400 * bits / 8) + buffers
        assert size == {"memory/model_bytes": want, "memory/bits_per_weight": 8 * want / 400}


@pytest.mark.parametrize("base", ["adam", "sgd"])
def test_full_precision_learns(base):
    _, _, final, _ = h.live(FullPrecision, epochs=5, lr=0.02, base=base)
    assert final["eval/accuracy"] > 0.8  # chance is 0.25
    assert not any("latent" in name for name in final)
