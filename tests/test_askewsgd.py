"""AskewSGD's mathematics: the direction against brute force, identities of the constraint, the kernels, the schedule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import lowbit_helpers as h
from workbench.methods.lowbit import _askew_kernel as kernel
from workbench.methods.lowbit._askew_constraint import askew_direction, constraint, eps_bound, epsilon_at, feasible_interval
from workbench.methods.lowbit._levels import LEVELS
from workbench.methods.lowbit.askewsgd import AskewSGD

UNEVEN = (-1.5, -0.25, 0.5, 2.0)


def direction(w, g, levels, eps, alpha, M=np.inf) -> np.ndarray:
    t = [torch.as_tensor(np.atleast_1d(a), dtype=torch.float64) for a in (w, g, levels)]
    return askew_direction(*t, eps, alpha, M).numpy()


# --- the direction ----------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(
    levels=st.sampled_from([*LEVELS.values(), UNEVEN]), place=st.floats(-0.2, 1.2), g=st.floats(-5, 5),
    share=st.floats(0.01, 1), alpha=st.floats(0.01, 5), M=st.sampled_from([0.1, 1.0, 1e6]))
def test_direction_solves_the_quadratic_programme(levels, place, g, share, alpha, M):
    w = levels[0] + place * (levels[-1] - levels[0])
    eps = share * eps_bound(levels)
    p = h.polynomial(w, levels)
    psi, slope = eps - p(w), p.deriv()(w)
    # The direction jumps where psi changes sign, and at midpoints; polynomial coefficients of 17 levels reach 8^4, so
    # np.poly1d itself is good to about 1e-12.
    if abs(psi) < 1e-9 or 0 < abs(slope) < 1e-9:
        return
    got, want = direction(w, g, levels, eps, alpha, M)[0], h.best_velocity(w, g, levels, eps, alpha, M)
    # the imposed velocity divides by the slope: its error is that of psi, 1e-12, over the slope
    assert got == pytest.approx(want, rel=1e-6, abs=1e-9 * (1 + alpha / max(abs(slope), 1e-9) * 1e-3))


def test_direction_beats_every_velocity_of_a_grid():
    """The same programme with nothing assumed: a grid of 4001 velocities."""
    rng = np.random.default_rng(0)
    grid = np.linspace(-20, 20, 4001)
    tried = 0
    for _ in range(200):
        w, g, alpha, eps = rng.uniform(-1, 1), rng.normal(), rng.uniform(0.1, 2), rng.uniform(0.05, 0.9)
        p = h.polynomial(w, (-1.0, 1.0))
        psi, slope = eps - p(w), -p.deriv()(w)
        allowed = grid if psi > 0 else grid[slope * grid >= -alpha * psi]
        v = direction(w, g, (-1.0, 1.0), eps, alpha)[0]
        if abs(v) > 19 or not len(allowed):
            continue
        tried += 1
        best = allowed[np.argmin((allowed + g) ** 2)]
        assert abs(v - best) <= 0.01 + 1e-9  # the grid's spacing
    assert tried > 150


def test_midpoint_goes_up_at_full_speed_and_without_clip_keeps_the_gradient():
    for levels in LEVELS.values():
        middle = (levels[0] + levels[1]) / 2
        assert direction(middle, 0.3, levels, eps_bound(levels) / 2, 0.5, M=2.0) == 2.0
        assert direction(middle, 0.3, levels, eps_bound(levels) / 2, 0.5) == -0.3
        assert direction(middle, 0.3, levels, eps_bound(levels), 0.5, M=2.0) == -0.3  # feasible at the bound


@pytest.mark.parametrize("levels", [*LEVELS.values(), UNEVEN])
def test_constraint_identities(levels):
    c = torch.tensor(levels, dtype=torch.float64)
    middles, gaps = (c[1:] + c[:-1]) / 2, c.diff()
    assert torch.equal(constraint(c, c)[0], torch.zeros_like(c))
    torch.testing.assert_close(constraint(middles, c)[0], gaps**4 / 16)
    assert eps_bound(levels) == pytest.approx((gaps.min() ** 4 / 16).item())
    w = torch.linspace(levels[0] - 1, levels[-1] + 1, 4001, dtype=torch.float64).requires_grad_()
    phi, slope = constraint(w, c)
    (auto,) = torch.autograd.grad(phi.sum(), w)
    torch.testing.assert_close(slope.detach(), auto)
    # phi is continuous; between the levels its slope is at most gap^3/(6 sqrt 3) < gap^3/4, beyond them 2
    bound = max(gaps.max().item() ** 3 / 4, 2.0)
    assert phi.detach().diff().abs().max() <= bound * (w[1] - w[0]).item()


def test_binary_feasible_set_in_closed_form():
    c = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    w = torch.linspace(-1, 1, 10001, dtype=torch.float64)
    for eps in (0.9, 0.3, 0.01, 1e-4):
        inner = (1 - eps**0.5) ** 0.5
        inside = constraint(w, c)[0] <= eps
        sure = (w.abs() - inner).abs() > 1e-9
        assert torch.equal(inside[sure], (w.abs() >= inner)[sure])
        low, high = feasible_interval(w, c, eps)
        torch.testing.assert_close(low, torch.where(w < 0, -1.0, inner).double())
        torch.testing.assert_close(high, torch.where(w < 0, -inner, 1.0).double())


@pytest.mark.parametrize("levels", [*LEVELS.values(), UNEVEN])
def test_feasible_interval_ends_where_phi_is_eps(levels):
    c = torch.tensor(levels, dtype=torch.float64)
    eps = 0.4 * eps_bound(levels)
    low, high = feasible_interval(c, c, eps)
    torch.testing.assert_close(constraint(low[1:], c)[0], torch.full_like(c[1:], eps))
    torch.testing.assert_close(constraint(high[:-1], c)[0], torch.full_like(c[1:], eps))
    assert low[0] == c[0]
    assert high[-1] == c[-1]


def test_eps_schedule_has_the_papers_values():
    at = {epoch: epsilon_at(epoch, 1.0, 50, 0.88) for epoch in (0, 49, 50, 51, 65, 90, 99)}
    assert (at[0], at[49]) == (1.0, 1.0)
    assert at[50] == at[51] == 0.88
    assert round(at[65], 2) == 0.15
    assert round(at[90], 3) == 0.006
    assert at[99] == pytest.approx(0.88**49)
    assert epsilon_at(9999, 1.0, 50, 0.88) == 1e-6
    assert epsilon_at(9999, 1e-8, 50, 0.88) == 1e-8  # the floor never lifts a smaller start


# --- fast kernels against the plain formula ---------------------------------------------------------------


def plain_gradient(w: torch.Tensor, g: torch.Tensor, name: str, s: float, e: float, alpha: float, clip: float) -> torch.Tensor:
    levels = torch.tensor(LEVELS[name], dtype=torch.float64)
    w, g = w.double() / s, g.double() / s
    return -s * askew_direction(w, g, levels, e * eps_bound(LEVELS[name]), alpha, clip / s)


def branches(w: torch.Tensor, g: torch.Tensor, name: str, s: float, e: float, alpha: float) -> tuple[torch.Tensor, ...]:
    """In level units: psi over the bound, the test for a free coordinate over the bound, phi' over the bound."""
    bound = eps_bound(LEVELS[name])
    phi, dphi = constraint(w.double() / s, torch.tensor(LEVELS[name], dtype=torch.float64))
    psi = e * bound - phi
    return psi / bound, (dphi * g.double() / s + alpha * psi) / bound, dphi / bound


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(list(LEVELS)), s=st.floats(1e-3, 3), e=st.floats(0.001, 0.99), alpha=st.floats(0.05, 5),
       clip=st.floats(0.01, 100), size=st.floats(1e-3, 10), dtype=st.sampled_from([torch.float32, torch.float64]),
       seed=st.integers(0, 1000))
def test_kernels_equal_the_plain_formula(name, s, e, alpha, clip, size, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    levels = LEVELS[name]
    w = (torch.empty(500).uniform_(levels[0], levels[-1], generator=generator) * s).to(dtype)
    g = (size * torch.randn(500, generator=generator)).to(dtype)
    w[:len(levels)] = torch.tensor(levels) * s
    w.clamp_(levels[0] * s, levels[-1] * s)
    k = kernel.Constraint(e, alpha, clip, (levels[1] - levels[0]) * s, name == "binary")
    want = plain_gradient(w, g, name, s, e, alpha, clip)
    # w / s reaches 8, whose rounding is 8 units; the polynomials amplify it a few times
    rounding = 100 * torch.finfo(dtype).eps
    psi, test, slope = branches(w, g, name, s, e, alpha)
    sure = (psi.abs() > rounding) & (test.abs() > rounding * (1 + g.abs() / s)) & (slope.abs() > rounding)
    free = (psi > 0) | (test >= 0)
    assert sure.float().mean() > 0.9
    numbers = torch.tensor([e, alpha, clip, k.gap], dtype=dtype)
    for got in (kernel.skew(w, g, k), kernel._formula(w, g, *numbers, k.centred)):
        assert torch.equal(got[sure & free], g[sure & free])
        # alpha psi / phi' is ill-conditioned where the slope is small
        error, bound = (got.double() - want).abs(), rounding * (s * alpha + want.abs()) / slope.abs()
        assert (error <= bound)[sure & ~free].all()


def test_kernel_at_levels_and_midpoints():
    k = kernel.Constraint(0.5, 0.3, 7.0, 2.0, True)
    w, g = torch.tensor([-1.0, 1.0, 0.0]), torch.tensor([0.2, -0.2, 0.2])
    assert kernel.skew(w, g, k).tolist() == [pytest.approx(0.2), pytest.approx(-0.2), -7.0]
    k = kernel.Constraint(0.5, 0.3, 7.0, 1.0, False)
    w = torch.tensor([-8.0, 8.0, 3.0, 0.5, -0.5, 2.5])
    assert kernel.skew(w, torch.full((6,), 0.25), k).tolist() == [0.25] * 3 + [-7.0] * 3


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("size", [0, 1, kernel.CHUNK, 4 * kernel.CHUNK + 1, 13 * kernel.CHUNK + 17])
def test_chunks_cover_everything_once_whatever_the_number_of_threads(threads, size):
    torch.set_num_threads(threads)
    w = torch.nn.Parameter(torch.zeros(size))
    kernel.in_chunks(lambda scratch, part: part.add_(1), w)
    assert torch.equal(w.detach(), torch.ones(size))


@pytest.mark.parametrize("base", ["sgd", "adam"])
def test_steps_do_not_depend_on_the_number_of_threads(base):
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        generator = torch.Generator().manual_seed(0)
        p = torch.nn.Parameter(torch.empty(11 * kernel.CHUNK + 5).uniform_(-1, 1, generator=generator))
        optimizer = AskewSGD([p], lr=0.01, base=base, eps=0.3)
        for _ in range(2):
            p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
        results.append(p.detach().clone())
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.slow
@pytest.mark.parametrize("base", ["sgd", "adam"])
@pytest.mark.parametrize("weights", ["binary", "4bit"])
def test_compiled_step_equals_the_eager_one(base, weights):
    """Needs a C++ compiler; a change of eps, lr or size compiles nothing anew."""
    levels = LEVELS[weights]
    generator = torch.Generator().manual_seed(0)
    for size in (50_000, 3_001):
        start = torch.empty(size).uniform_(levels[0], levels[-1], generator=generator)
        p, q = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
        optimizers = [AskewSGD([w], lr=0.01, base=base, weights=weights, eps=0.4 * eps_bound(levels), compile=c)
                      for w, c in ((p, True), (q, False))]
        g = torch.randn(size, generator=generator)
        for o, w in zip(optimizers, (p, q), strict=True):
            w.grad = g.clone()
            try:
                o.step()
            except torch._inductor.exc.InductorError as error:
                pytest.skip(f"torch.compile does not work here: {error}")
        # one step: rounding of 8 in float32 is 1e-6, and branches differ only within it of a boundary
        assert ((p - q).abs() > 1e-5).float().mean() < 1e-3
        assert (p - q).abs().median() < 1e-6
