"""The Boolean optimiser's life in a training loop: schedules, checkpoints, precision, refusals."""

from __future__ import annotations

import copy
import io
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.boolean_helpers import follow, parameter, signals, source
from tracking.errors import UserError
from workbench.boolean import (
    BooleanConv2d,
    BooleanLinear,
    BooleanOptimizer,
    ErrorFeedbackBoolean,
    JointOptimizer,
    Threshold,
    joint_optimizer,
    split_parameters,
)
from workbench.boolean.layers import random_signs
from workbench.state import restore, snapshot


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), Threshold(), BooleanConv2d(4, 8, 3, padding=1, pooled=True), nn.MaxPool2d(2),
                             Threshold(fan_in=36), nn.Flatten(), BooleanLinear(128, 16, bias=True), Threshold(fan_in=128), nn.Linear(16, 3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, scheduler=None) -> list[float]:
    losses = []
    for k in steps:
        x, y = torch.randn(24, 1, 8, 8, generator=source(k)), torch.arange(24) % 3
        x[:, :, :, 0] += y.view(-1, 1, 1).float()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        if scheduler:
            scheduler.step()
        losses.append(loss.item())
    return losses


def test_boolean_and_real_parameters_train_together_under_one_schedule():
    model = network()
    optimizer = joint_optimizer(model, 12.0, real_lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)
    losses = train(model, optimizer, range(60), scheduler)
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0, 0], abs=1e-12)
    assert optimizer.optimizers["boolean"].param_groups[0] is optimizer.param_groups[0]
    assert optimizer.optimizers["boolean"].layers()[0].total_flips > 10
    assert all(torch.equal(p.abs(), torch.ones_like(p)) for p in split_parameters(model)[0])


VARIANTS = {
    "joint": lambda m: joint_optimizer(m, 30.0),
    "int16": lambda m: joint_optimizer(m, 30.0, accumulator="int16"),
    "stochastic": lambda m: joint_optimizer(m, 30.0, stochastic=True),
    "given generator": lambda m: joint_optimizer(m, 30.0, stochastic=True, generator=source(5)),
    "error feedback": lambda m: JointOptimizer(a=ErrorFeedbackBoolean(split_parameters(m)[0], 30.0, stochastic=True, diagnostics=True),
                                               b=torch.optim.SGD(split_parameters(m)[1], 0.1, momentum=0.9)),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("way", ["torch.save", "snapshot"])
def test_a_resumed_run_goes_on_bit_for_bit(variant, way):
    model = network()
    optimizer = VARIANTS[variant](model)
    train(model, optimizer, range(6))
    file = io.BytesIO()
    state = snapshot(optimizer) if way == "snapshot" else optimizer.state_dict()
    torch.save((model.state_dict(), state), file)
    expected = train(model, optimizer, range(6, 14))

    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    resumed = network(seed=1)
    resumed.load_state_dict(weights)
    fresh = VARIANTS[variant](resumed)
    if way == "snapshot":
        restore(fresh, state)
    else:
        fresh.load_state_dict(state)
    assert train(resumed, fresh, range(6, 14)) == expected
    for a, b in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    for (p, ours), theirs in zip(fresh.state.items(), optimizer.state.values(), strict=True):
        for name in ours:
            assert ours[name].dtype == theirs[name].dtype
            assert torch.equal(ours[name], theirs[name]), (p.shape, name)


def test_a_state_that_is_loaded_is_not_shared():
    p, twin = parameter(8), parameter(8)
    first, second = BooleanOptimizer([p], 0.1), BooleanOptimizer([twin], 0.1)
    follow(first, p, signals(p, 1))
    second.load_state_dict(first.state_dict())
    kept = second.accumulator(twin)
    follow(first, p, signals(p, 3, seed=2))
    assert torch.equal(second.accumulator(twin), kept)


def test_rates_set_after_loading_reach_the_parts():
    first, second = (joint_optimizer(network(), 30.0) for _ in range(2))
    second.load_state_dict(first.state_dict())
    for group in second.param_groups:
        group["lr"] = 0.5
    assert [o.param_groups[0]["lr"] for o in second.optimizers.values()] == [0.5, 0.5]


def test_names_of_parameters_name_the_reports():
    model = network()
    boolean = {id(p) for p in split_parameters(model)[0]}
    optimizer = BooleanOptimizer([(n, p) for n, p in model.named_parameters() if id(p) in boolean], 1.0)
    assert optimizer.layers() == []
    assert optimizer.report() == {}
    train(model, optimizer, range(1))
    assert [r.name for r in optimizer.layers()] == ["2.weight", "6.weight", "6.bias"]
    assert [r.size for r in optimizer.layers()] == [288, 2048, 16]


def test_accumulated_micro_batches_step_as_one_batch():
    """Sums of integer votes are exact, so the steps are equal bit for bit."""
    results = []
    for parts in (1, 4):
        layer = BooleanLinear(6, 4, generator=source())
        optimizer = BooleanOptimizer(layer.parameters(), 0.05)
        for k in range(10):
            x = random_signs((8, 6), generator=source(k))
            z = torch.randint(-3, 4, (8, 4), generator=source(k)).float()
            optimizer.zero_grad()
            for a, b in zip(x.chunk(parts), z.chunk(parts), strict=True):
                layer(a).backward(b)
            optimizer.step()
        results.append((layer.weight.detach(), optimizer.accumulator(layer.weight)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], BooleanLinear(6, 4, generator=source()).weight)


def test_training_under_autocast_keeps_weights_and_accumulators_whole():
    model = network()
    optimizer = joint_optimizer(model, 12.0, real_lr=1e-2)
    losses = []
    for k in range(60):
        x, y = torch.randn(24, 1, 8, 8, generator=source(k)), torch.arange(24) % 3
        x[:, :, :, 0] += y.view(-1, 1, 1).float()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    boolean = split_parameters(model)[0]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])
    assert all(p.grad.dtype == p.dtype == torch.float32 and torch.equal(p.abs(), torch.ones_like(p)) for p in boolean)
    assert all(optimizer.state[p]["m"].dtype == torch.float32 for p in boolean)


def test_a_gradient_scaler_changes_nothing():
    """It scales by powers of two, which is exact, and unscales through the joint optimiser's groups before the step."""
    results = []
    for scaled in (False, True):
        model = network()
        optimizer = joint_optimizer(model, 30.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
        for k in range(6):
            x, y = torch.randn(24, 1, 8, 8, generator=source(k)), torch.arange(24) % 3
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(x), y)).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append([p.detach() for p in model.parameters()])
        assert optimizer.optimizers["boolean"].layers()[0].total_flips > 0
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_parameters_in_bfloat16_stay_signs_and_accumulate_in_float32():
    p = nn.Parameter(random_signs((300,), generator=source()).bfloat16())
    optimizer = BooleanOptimizer([p], 0.01)
    follow(optimizer, p, [q.bfloat16() for q in signals(p, 200)])
    assert optimizer.state[p]["m"].dtype == torch.float32
    assert torch.equal(p.abs(), torch.ones_like(p))
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    assert optimizer.state[p]["m"].dtype == torch.float32


def test_a_closure_and_absent_signals():
    p, idle = parameter(4), parameter(4)
    optimizer = BooleanOptimizer([p, idle], 1.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (2 * p).sum()
        loss.backward()
        return loss

    expected = 2 * p.sum().item()
    assert optimizer.step(closure).item() == expected
    assert (p == -1).all()
    assert idle not in optimizer.state or not optimizer.state[idle]
    assert len(optimizer.layers()) == 1
    joint = JointOptimizer(boolean=optimizer)
    assert joint.step(closure).item() == -8


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [
    {"lr": -1.0}, {"lr": float("nan")}, {"lr": "12"}, {"beta": 1.5}, {"beta": -0.1}, {"beta": "layer"}, {"threshold": 0.0}, {"clip": 0.5},
    {"accumulator": "int8"},
], ids=str)
def test_options_out_of_range_are_refused_in_words(options):
    (name,) = options
    with pytest.raises(UserError, match=f"{name} = .*allowed|Unknown {name}"):
        BooleanOptimizer([parameter(3)], **{"lr": 1.0, **options})
    with pytest.raises(UserError, match=f"{name} = .*allowed|Unknown {name}"):
        BooleanOptimizer([{"params": [parameter(3)], **options}], 1.0)


@pytest.mark.parametrize("value", [0.0, 0.5, 2.0, float("nan")])
def test_parameters_that_are_not_signs_are_refused(value):
    p = parameter(6)
    with torch.no_grad():
        p[2] = value
    with pytest.raises(UserError, match=r"not a dense floating-point tensor of \+1 and -1 alone.*split_parameters"):
        BooleanOptimizer([parameter(3), p], 1.0)


def test_other_misuse_is_refused_in_words():
    p = parameter(6)
    with pytest.raises(UserError, match="takes no weight_decay"):
        BooleanOptimizer([{"params": [p], "weight_decay": 0.1}], 1.0)
    with pytest.raises(UserError, match="twice"):
        BooleanOptimizer([p, p], 1.0)
    optimizer = BooleanOptimizer([p], 1.0)
    with pytest.raises(UserError, match="twice"):
        optimizer.add_param_group({"params": p})
    p.grad = torch.ones(6).to_sparse()
    with pytest.raises(UserError, match="sparse"):
        optimizer.step()


def test_joining_is_refused_where_it_is_ambiguous():
    p = parameter(6)
    with pytest.raises(UserError, match="A parameter is given to two"):
        JointOptimizer(a=BooleanOptimizer([p], 1.0), b=torch.optim.SGD([p], 1.0))
    with pytest.raises(UserError, match="given: none"):
        JointOptimizer()
    with pytest.raises(UserError, match="model \\(Sequential\\)"):
        JointOptimizer(model=network())
    joint = JointOptimizer(a=BooleanOptimizer([p], 1.0))
    with pytest.raises(UserError, match="Which part"):
        joint.add_param_group({"params": [parameter(2)]})
    with pytest.raises(UserError, match="parts boolean; this optimiser joins a"):
        joint.load_state_dict({"boolean": {}})
    with pytest.raises(UserError, match="nothing to train"):
        joint_optimizer(nn.ReLU(), 1.0)
    assert list(joint_optimizer(nn.Linear(2, 2), 1.0).optimizers) == ["real"]


def test_a_shared_layer_adds_its_votes():
    layer = BooleanLinear(6, 6, scale=None, generator=source())
    model = nn.Sequential(layer, layer)
    x = random_signs((4, 6), generator=source(1))
    model(x).sum().backward()
    ones = torch.ones(4, 6)
    assert torch.equal(layer.weight.grad, ones.t() @ (x @ layer.weight.t()) + (ones @ layer.weight).t() @ x)
    BooleanOptimizer(split_parameters(model)[0], 1.0).step()
    assert torch.equal(layer.weight.abs(), torch.ones(6, 6))


def test_optimisers_can_be_copied():
    model = network()
    twin = copy.deepcopy(model)
    a, b = joint_optimizer(model, 12.0), joint_optimizer(twin, 12.0)
    assert train(model, a, range(3)) == train(twin, b, range(3))
    for x, y in itertools.zip_longest(model.parameters(), twin.parameters()):
        assert torch.equal(x, y)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"clip": 2.0}, {"beta": 0.9}], ids=str)
def test_steps_on_a_gpu_are_those_on_the_cpu_and_never_wait_for_it(options):
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    here = parameter(64, 100)
    there = nn.Parameter(here.detach().cuda())
    qs = signals(here, 30, size=0.5)
    moved = [q.cuda() for q in qs]
    ours, theirs = BooleanOptimizer([here], 0.3, **options), BooleanOptimizer([there], 0.3, **options)
    follow(ours, here, qs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        follow(theirs, there, moved)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(there.cpu(), here)
    # 30 sums of numbers below 4 in float32, fused or not
    torch.testing.assert_close(theirs.accumulator(there).cpu(), ours.accumulator(here), rtol=0, atol=30 * 4 * 6e-8)
    assert [r.total_flips for r in theirs.layers()] == [r.total_flips for r in ours.layers()]
