"""What the tests of the tasks share: a task that is set up, and one short training of its network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from workbench import data
from workbench.boolean import BooleanOptimizer, split_parameters
from workbench.method import Context
from workbench.params import parse
from workbench.task import SupervisedTask

needs_data = pytest.mark.skipif(not os.environ.get("WORKBENCH_DATA"), reason="WORKBENCH_DATA is not set")


def context(seed: int = 0) -> Context:
    return Context(torch.device("cpu"), seed)


def make(cls: type, model: str, **values: Any) -> Any:
    """A task that is set up."""
    task = cls(model, parse(cls.Params, values, cls.dataset))
    task.setup(context())
    return task


def have(name: str) -> None:
    """Skip the test where a data set is not at hand; nothing is downloaded."""
    if not data.sources_of(data.DATASETS[name]):
        pytest.skip(f"{name} is not in $WORKBENCH_DATA")


def train(model: nn.Module, task: SupervisedTask, steps: int, batch: int, lr: float, eta: float = 0.0, seed: int = 0) -> list[float]:
    """Train ``model`` in place by Adam, its Boolean weights at the rate ``eta``; returns the losses."""
    flipped, real = split_parameters(model)
    optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(real, lr=lr)]
    if flipped:
        optimizers.append(BooleanOptimizer(flipped, lr=eta))
    ctx, losses = context(seed), []
    order, augment = ctx.generator("order", cpu=True), ctx.generator("augment")
    model.train()
    while len(losses) < steps:
        for index in torch.randperm(task.train_count, generator=order).split(batch)[:steps - len(losses)]:
            x, y = task.batch(index, augment)
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss = task.loss(model(x), y)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            losses.append(loss.item())
    return losses


@contextmanager
def untouched_generator() -> Iterator[None]:
    """The global generator is as before at the end."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)
