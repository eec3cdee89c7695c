"""The Boolean optimiser against its equations written in NumPy, and its life in a training loop: schedules, checkpoints, refusals."""

from __future__ import annotations

import copy
import io
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

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
from workbench.boolean.optimizer import CHUNK, INT16_RANGE, INT16_TOP
from workbench.state import restore, snapshot


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parameter(*shape: int, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(random_signs(shape, generator=source(seed)))


def signals(p: Tensor, steps: int, seed: int = 1, size: float = 1.0) -> list[Tensor]:
    generator = source(seed)
    return [size * torch.randn(p.shape, generator=generator) for _ in range(steps)]


def follow(optimizer: torch.optim.Optimizer, p: nn.Parameter, qs: list[Tensor]) -> None:
    for q in qs:
        p.grad = q.clone()
        optimizer.step()


# --- the equations ------------------------------------------------------------------------------------------


class Twin:
    """Eqs. 9-11 in float64, with the flip rule as the text words it: signs agree, and the magnitude passes the threshold."""

    def __init__(self, w: Tensor, lr: float, beta: float | str = "plasticity", threshold: float = 1.0, clip: float = np.inf) -> None:
        self.w, self.m, self.ratio = w.detach().double().numpy().copy(), np.zeros(w.shape), 1.0
        self.lr, self.beta, self.threshold, self.clip = lr, beta, threshold, clip

    def step(self, q: Tensor) -> int:
        beta = self.ratio if self.beta == "plasticity" else self.beta
        self.m = np.clip(beta * self.m + self.lr * q.double().numpy(), -self.clip, self.clip)
        flip = (np.sign(self.m) == self.w) & (np.abs(self.m) >= self.threshold)
        self.w[flip], self.m[flip] = -self.w[flip], 0.0
        self.ratio = 1 - flip.mean()
        return int(flip.sum())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), lr=st.sampled_from([0.02, 0.3, 2.0]), beta=st.sampled_from(["plasticity", 0.0, 0.9, 1.0]),
       threshold=st.sampled_from([1.0, 0.25, 3.0]), clip=st.sampled_from([None, 3.0]))
def test_steps_are_those_of_the_equations(seed, lr, beta, threshold, clip):
    p = parameter(4, 8, seed=seed)
    optimizer, twin = BooleanOptimizer([p], lr, beta, threshold, clip), Twin(p, lr, beta, threshold, clip or np.inf)
    for q in signals(p, 30, seed):
        follow(optimizer, p, [q])
        flips = twin.step(q)
        (report,) = optimizer.layers()
        assert report.flips == flips
        assert report.beta == pytest.approx(twin.ratio)
        assert np.array_equal(p.detach().numpy(), twin.w)
        # 30 sums of numbers below 10 in float32
        np.testing.assert_allclose(optimizer.accumulator(p).numpy(), twin.m, rtol=0, atol=30 * 10 * 6e-8)


def test_a_signal_that_disagrees_never_turns_a_weight_and_agreement_does_at_the_threshold():
    p = nn.Parameter(torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0]))
    optimizer = BooleanOptimizer([p], lr=0.5)
    follow(optimizer, p, [torch.tensor([2.0, -9.0, -2.0, 9.0, 1.99])])
    assert p.tolist() == [-1, 1, 1, -1, 1]  # at exactly 1 as well: m w >= 1
    assert optimizer.accumulator(p).tolist() == pytest.approx([0, -4.5, 0, 4.5, 0.995])
    assert optimizer.report() == {"flips": 2, "flip_rate": 0.4, "beta": pytest.approx(0.6)}
    follow(optimizer, p, [torch.zeros(5)])
    assert optimizer.accumulator(p).tolist() == pytest.approx([0, -2.7, 0, 2.7, 0.597])  # beta of the step before


@pytest.mark.parametrize("options", [{}, {"beta": 0.99}, {"stochastic": True}, {"accumulator": "int16"}, {"clip": 2.0}], ids=str)
def test_invariants_over_a_hundred_steps(options):
    p = parameter(16, 32)
    optimizer = BooleanOptimizer([p], lr=0.3, **options)
    total = 0
    for q in signals(p, 100):
        before = p.detach().clone()
        follow(optimizer, p, [q])
        turned = p != before
        (report,) = optimizer.layers()
        total += report.flips
        assert torch.equal(p.abs(), torch.ones_like(p))
        assert (optimizer.accumulator(p)[turned] == 0).all()
        assert report.flips == int(turned.sum())
        assert 0 <= report.beta <= 1
        assert report.flip_rate == pytest.approx(1 - report.beta)
        if "clip" in options:
            assert optimizer.accumulator(p).abs().max() <= 2
    assert report.total_flips == total > 100


def test_plasticity_is_by_tensor():
    quiet, busy = parameter(64), parameter(64, seed=1)
    optimizer = BooleanOptimizer([quiet, busy], lr=1.0)
    quiet.grad, busy.grad = torch.zeros(64), 5 * busy.detach()
    optimizer.step()
    assert [r.beta for r in optimizer.layers()] == [1.0, 0.0]


def test_parts_and_layouts_do_not_change_the_steps():
    """Larger than what is handled in one go, beside a layout that is handled whole."""
    shape = (8, 5, 64, CHUNK * torch.get_num_threads() // 2000)
    for options in ({}, {"stochastic": True, "generator": True}):
        results = []
        for layout in (torch.contiguous_format, torch.channels_last):
            p = nn.Parameter(random_signs(shape, generator=source()).contiguous(memory_format=layout))
            assert p.numel() > CHUNK * torch.get_num_threads()
            # draws follow the layout in memory, so for equality weights must not care which: votes are certain or absent
            vote = torch.where(torch.rand(shape, generator=source(1)) < 0.01, 3.0, 0.1)
            optimizer = BooleanOptimizer([p], 1.0, **({**options, "generator": source(2)} if options else {}))
            follow(optimizer, p, [vote.contiguous(memory_format=layout) * p.detach()] * 2)
            results.append((p.detach(), optimizer.accumulator(p), optimizer.layers()[0].total_flips))
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])
        assert results[0][2] == results[1][2] > 0


# --- stochastic flips and the small accumulator -------------------------------------------------------------


@pytest.mark.parametrize("agreement", [1.0, 1.2, 1.8, 2.0, 5.0])
def test_stochastic_flips_have_half_the_agreement_as_their_probability_and_forget_either_way(agreement):
    n = 40_000
    for threshold in (1.0, 0.5):
        p = parameter(n)
        before = p.detach().clone()
        optimizer = BooleanOptimizer([p], 1.0, threshold=threshold, stochastic=True, generator=source(3))
        follow(optimizer, p, [threshold * agreement * before])
        chance = min(agreement / 2, 1)
        assert abs((p != before).float().mean().item() - chance) <= 5 * (chance * (1 - chance) / n) ** 0.5
        assert (optimizer.accumulator(p) == 0).all()


def test_replicas_without_a_generator_draw_alike():
    results = []
    for _ in range(2):
        p = parameter(500)
        optimizer = BooleanOptimizer([p], 0.5, stochastic=True)
        torch.rand(3)  # PyTorch's own generator has no part in it
        follow(optimizer, p, signals(p, 10))
        results.append(p.detach())
    assert torch.equal(*results)


def test_the_small_accumulator_is_half_as_large_and_loses_no_small_votes():
    n, step = 20_000, INT16_RANGE / INT16_TOP
    p = nn.Parameter(torch.ones(n))
    optimizer = BooleanOptimizer([p], lr=1.0, beta=1.0, accumulator="int16", generator=source(4))
    follow(optimizer, p, [torch.full((n,), -step / 5)] * 50)  # rounded to the nearest, each would vanish
    m = optimizer.accumulator(p)
    assert optimizer.state[p]["m"].dtype == torch.int16
    assert optimizer.state[p]["m"].nbytes == 2 * n
    # the mean of n sums of 50 roundings, each of a variance 0.2 * 0.8 steps squared
    assert m.mean().item() == pytest.approx(-10 * step, abs=5 * step * (50 * 0.16 / n) ** 0.5)
    follow(optimizer, p, [torch.full((n,), -1e6)] * 2)
    assert optimizer.accumulator(p).min().item() == pytest.approx(-INT16_RANGE)  # saturates, does not wrap


def test_the_small_accumulator_follows_the_large_one():
    large, small = parameter(4000), parameter(4000)
    qs = signals(large, 40)
    follow(BooleanOptimizer([large], 0.2), large, qs)
    follow(BooleanOptimizer([small], 0.2, accumulator="int16"), small, qs)
    # 40 roundings of at most a step of 2.4e-4 move an accumulator by less than 0.01: about one weight in a hundred stands so close to
    # its threshold at some step that it turns at another
    assert (large == small).float().mean() > 0.95


# --- in a training loop -------------------------------------------------------------------------------------


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
