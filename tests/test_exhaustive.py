"""Exhaustive search: against a loop over networks, and the figure for two moons."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from tests import lowbit_helpers as h
from tracking.errors import UserError
from workbench import registry
from workbench.method import Context
from workbench.methods.lowbit.exhaustive import Exhaustive, SplitNorm, configuration, deployed
from workbench.params import parse
from workbench.task import SupervisedParams


def run(task_id: str = "two_moons", task_params: dict | None = None, **params: object):
    ctx = Context(torch.device("cpu"), 0)
    task_cls = registry.load_task(task_id)
    task = task_cls(registry.task_entry(task_id).literals["model"], parse(task_cls.Params, task_params or {}, task_id))
    task.setup(ctx)
    method = Exhaustive(parse(Exhaustive.Params, params, "exhaustive"))
    state = method.init(task, ctx)
    return method, state, task, ctx, h.finish(method, state, task, ctx)


def by_hand(task, signs) -> tuple[float, float, nn.Module]:
    """Training and test loss of one network: set the weights, run the training set through the norms, evaluate."""
    model = task.build_model(Context(torch.device("cpu"), 0))
    with torch.no_grad():
        flat = torch.tensor(signs)
        for p in model.parameters():
            p.copy_(flat[:p.numel()].view(p.shape))
            flat = flat[p.numel():]
        for m in model.modules():
            if isinstance(m, nn.BatchNorm1d):
                m.momentum = 1.0
        x, y = task.batch(torch.arange(len(task.train_y)), None)
        train = task.loss(model.train()(x), y).item()
        model.eval()
        test_x, test_y = task.test_batch(0, len(task.test_y))
        return train, task.loss(model(test_x), test_y).item(), model


@pytest.mark.parametrize("select", ["test", "train"])
def test_search_equals_a_loop_over_all_512_networks(select):
    method, state, task, ctx, steps = run(select=select, slice_size=100)
    losses = [by_hand(task, signs)[:2] for signs in itertools.product([-1.0, 1.0], repeat=9)]
    column = [pair[select == "test"] for pair in losses]
    assert state.best_loss == pytest.approx(min(column), rel=1e-5)
    assert [m["train/candidates"] for m in steps] == [100, 200, 300, 400, 500, 512]
    mean = sum(m["train/loss"] * n for m, n in zip(steps, [100] * 5 + [12], strict=True)) / 512
    assert mean == pytest.approx(sum(a for a, _ in losses) / 512, rel=1e-5)
    metrics = method.evaluate(state, task, ctx)
    if select == "test":
        assert metrics["eval/loss"] == pytest.approx(min(column), rel=1e-5)
    signs = configuration(torch.tensor(state.best), 9)
    _, test_loss, model = by_hand(task, signs.tolist())
    assert metrics["eval/loss"] == pytest.approx(test_loss, rel=1e-5)
    best = deployed(state, task)
    torch.testing.assert_close(best(task.test_x), model(task.test_x))
    assert set(torch.cat([p.flatten() for p in best.parameters()]).tolist()) == {-1.0, 1.0}


def test_best_test_loss_on_two_moons_is_about_0_425():
    _, state, *_ = run()
    assert state.best_loss == pytest.approx(0.425, abs=0.01)  # an independent enumeration on other noise


def test_configurations_are_all_different_and_counted_in_binary():
    signs = configuration(torch.arange(512), 9)
    assert len(signs.unique(dim=0)) == 512
    assert signs[0].tolist() == [-1.0] * 9
    assert signs[5].tolist() == [1.0, -1.0, 1.0] + [-1.0] * 6


@pytest.mark.parametrize(("norm", "shape"), [(nn.BatchNorm1d(3), (50, 3)), (nn.BatchNorm2d(3, affine=False), (50, 3, 4, 4))])
def test_split_norm_is_batch_norm_with_statistics_of_the_first_rows(norm, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 2 + 1
    peer = copy.deepcopy(norm)
    peer.momentum = 1.0
    with torch.no_grad():
        for p in [*norm.parameters(), *peer.parameters()]:
            p.copy_(torch.tensor([0.5, -2.0, 3.0]))
    first = peer.train()(x[:30])
    torch.testing.assert_close(SplitNorm(norm, 30)(x), torch.cat([first, peer.eval()(x[30:])]))


def test_a_large_network_is_refused_in_words():
    task = h.Blobs("", SupervisedParams())
    reason = Exhaustive.refuses(task, Exhaustive.Params())
    assert "up to 20 weights" in reason
    assert "has 192" in reason
    with pytest.raises(UserError, match="has 192"):
        Exhaustive(Exhaustive.Params()).init(task, Context(torch.device("cpu"), 0))
    cls = registry.load_task("two_moons")
    assert Exhaustive.refuses(cls("", cls.Params()), Exhaustive.Params()) is None
