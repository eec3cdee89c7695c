"""Energy of the decoupled methods: the multiply-accumulates of what the energy model is shown, against counts by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.test_dgl_methods import TASK
from tracking.energy_model import trace
from workbench.decoupled.costs import multiply_accumulates
from workbench.method import Context
from workbench.spec import resolve

SIZES = {"train_size": 60, "test_size": 20, "width": 0.1}
COMMON = {"modules": 3, "epochs": 1, "batch_size": 12, "report_every": 1000}


class Shown:
    """What a method shows the energy model, and counts of its modules on one sample."""

    def __init__(self, method: str, **params) -> None:
        job = resolve(method, TASK, COMMON | params, task_params=SIZES, device="cpu", threads=1)
        ctx = Context(device=torch.device("cpu"), seed=0)
        job.task.setup(ctx)
        self.state = job.method.init(job.task, ctx)
        self.declared = job.method.modelled(self.state, job.task)
        training, x = self.state.training, job.method.sample
        bodies = training.network.bodies if hasattr(training, "network") else training.bodies
        heads = training.network.heads if hasattr(training, "network") else []
        self.bodies, self.first, self.heads, self.outputs = [], [], [], []
        for j, body in enumerate(bodies):
            opening = next(layer for layer in body.modules() if isinstance(layer, nn.Conv2d))
            pool = 2 if any(isinstance(layer, nn.MaxPool2d) for layer in list(body)[:1]) else 1
            self.first.append(opening.weight.numel() * (x[0, 0].numel() // pool**2))
            macs, x = multiply_accumulates(body, x)
            self.bodies.append(macs)
            self.outputs.append(x)
            if len(heads):
                self.heads.append(multiply_accumulates(heads[j], x)[0])

    @property
    def macs(self) -> float:
        """Of a training sample, in the trace."""
        layers = trace(*self.declared[:2])
        return sum(layer.training_macs for layer in layers) / layers[0].samples

    @property
    def apart(self) -> list[int]:
        """A step of each module with its head: forward, to weights, to inputs; the module's own input needs no gradient."""
        return [3 * (f + h) - first for f, h, first in zip(self.bodies, self.heads, self.first, strict=True)]

    @property
    def whole(self) -> int:
        """A step of the network end to end."""
        return 3 * sum(self.bodies) - self.first[0]


@pytest.mark.parametrize("method", ["decoupled_backprop", "ddg"])
def test_end_to_end(method):
    shown = Shown(method)
    assert shown.macs == shown.whole


@pytest.mark.parametrize(("method", "params"), [("dgl", {}), ("async_dgl", {}), ("async_dgl", {"schedule": "random"})])
def test_modules_apart(method, params):
    shown = Shown(method, head="mlp", **params)
    assert shown.macs == sum(shown.apart)
    assert shown.apart[0] < 3 * (shown.bodies[0] + shown.heads[0])


def test_a_quantised_link_is_searched():
    """Every value of an output meets all codewords, in the forward direction alone; nothing else is a product."""
    shown = Shown("async_dgl_vq", head="mlp", codewords=20, group_size=1)
    assert shown.macs == sum(shown.apart) + 20 * sum(x[0].numel() for x in shown.outputs[:-1])
    # what the link computes has the shape of what it is given, so that the next module can be traced
    link = shown.declared[0].links[0]
    assert link(shown.outputs[0]).shape == shown.outputs[0].shape


def test_one_module_after_the_other():
    """The mean over stages of equal length: modules before run forward."""
    shown = Shown("sequential_greedy", head="mlp")
    stages = [sum(shown.bodies[:j]) + own for j, own in enumerate(shown.apart)]
    assert shown.macs == pytest.approx(sum(stages) / 3, rel=1e-12)


@pytest.mark.parametrize(("method", "context"), [("dni", 0), ("cdni", 10)])
def test_synthetic_gradients(method, context):
    """Synthesisers learn from outputs, whose gradients they do not need: three products a layer, two of the first one."""
    shown = Shown(method)
    extra = 0
    for synthesiser, x in zip(shown.state.training.synthesisers, shown.outputs, strict=False):
        convolution = synthesiser.trigger.weight.numel() * x[0, 0].numel()
        extra += 2 * convolution + 2 * 3 * convolution + 2 * context * x.shape[1]
    assert shown.macs == shown.whole + extra


@pytest.mark.parametrize("delay", [0, 1])
def test_features_replay_goes_forward_again(delay):
    shown = Shown("features_replay", delay=delay)
    assert shown.macs == shown.whole + (sum(shown.bodies[:-1]) if delay else 0)


@pytest.mark.parametrize("params", [{"slow_module": 2, "slowdown": 1.5}, {"costs": "macs"}, {"bandwidth": 1e6}])
def test_no_figure_where_modules_go_at_different_paces(params):
    assert Shown("async_dgl", head="mlp", **params).declared is None
