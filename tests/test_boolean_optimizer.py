"""The Boolean optimiser against its equations written in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.boolean_helpers import follow, parameter, signals, source
from workbench.boolean import BooleanOptimizer
from workbench.boolean.layers import random_signs
from workbench.boolean.optimizer import CHUNK, INT16_RANGE, INT16_TOP


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
