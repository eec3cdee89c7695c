"""Error feedback: equal to the Boolean optimiser at beta = 1, and its parts by the formulas of the analysis."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tracking.errors import UserError
from workbench.boolean import BooleanOptimizer, ErrorFeedbackBoolean
from workbench.boolean.error_feedback import q0, q1
from workbench.boolean.layers import random_signs


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair(n: int = 256) -> tuple[nn.Parameter, nn.Parameter]:
    return tuple(nn.Parameter(random_signs((n,), generator=source())) for _ in range(2))


def formula(m: Tensor, w: Tensor) -> Tensor:
    """Q1 as the paper writes it."""
    return w * (torch.relu(w * m - 1) + (w * m - 1).sign() / 2 + 1 / 2)


@pytest.mark.parametrize("options", [{}, {"threshold": 0.3}, {"clip": 1.5}, {"stochastic": True}, {"stochastic": True, "threshold": 2.0}],
                         ids=str)
def test_equals_the_boolean_optimiser_bit_for_bit_over_a_thousand_steps(options):
    a, b = pair()
    draws = [{"generator": source(1)} if options.get("stochastic") else {} for _ in range(2)]
    ours, plain = ErrorFeedbackBoolean([a], 0.1, **options, **draws[0]), BooleanOptimizer([b], 0.1, beta=1.0, **options, **draws[1])
    generator = source(2)
    for _ in range(1000):
        a.grad = torch.randn(256, generator=generator) + 0.5 * a.detach()  # most weights are wrong, so most will turn, and again
        b.grad = a.grad.clone()
        ours.step()
        plain.step()
        assert torch.equal(a, b)
        assert torch.equal(ours.e[0], plain.state[b]["m"])
        assert ours.flips[0] == plain.state[b]["flips"]
    assert ours.layers() == plain.layers()
    assert ours.layers()[0].total_flips > 1000


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_q1_is_the_paper_s_formula(seed):
    w = random_signs((200,), generator=source(seed))
    m = 3 * torch.randn(200, generator=source(seed + 1))
    # the formula subtracts 1 and adds it again: an error of a unit in the last place of numbers below 16
    torch.testing.assert_close(q1(m, w), formula(m, w), rtol=0, atol=2e-6)
    spent = q1(m, w)
    assert torch.equal(spent != 0, m * w >= 1)
    assert ((m - spent)[spent != 0] == 0).all()


def test_ties_spend_all_or_as_the_formula_half():
    w, m = torch.tensor([1.0, -1.0, 1.0]), torch.tensor([1.0, -1.0, -1.0])
    assert q1(m, w).tolist() == [1, -1, 0]
    assert q1(m, w, ties="half").tolist() == [0.5, -0.5, 0] == formula(m, w).tolist()
    for ties, after in (("flip", [-1, 1, 1]), ("half", [1, -1, 1])):
        p = nn.Parameter(w.clone())
        p.grad = m.clone()
        optimizer = ErrorFeedbackBoolean([p], 1.0, ties=ties)
        optimizer.step()
        assert p.tolist() == after
    assert optimizer.e[0].tolist() == [0.5, -0.5, -1]
    with pytest.raises(UserError, match="Unknown ties"):
        ErrorFeedbackBoolean([nn.Parameter(w)], 1.0, ties="all")


def test_stochastic_q0_is_unbiased():
    n = 100_000
    for u in (-1.0, -0.6, 0.0, 0.3, 1.0):
        for side in (1.0, -1.0):
            draws = torch.rand(n, generator=source(3))
            mean = q0(torch.full((n,), u), torch.full((n,), side), draws).mean().item()
            assert abs(mean - u) <= 5 * ((1 - u * u) / n) ** 0.5


def test_deterministic_q0_is_the_sign_and_the_new_side_at_zero():
    w = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    u = torch.tensor([0.2, -0.2, -0.2, 0.2, 0.0, 0.0])
    assert q0(u, w).tolist() == [1, -1, -1, 1, -1, 1]


def test_virtual_sequence_and_diagnostics():
    """``x_t = w_t - e_t`` moves by ``-lr q`` and the rounding error ``h``, the identity on which the proof stands."""
    p, _ = pair(64)
    optimizer = ErrorFeedbackBoolean([p], 0.5, stochastic=True, diagnostics=True, generator=source(4))
    generator, x = source(5), p.detach().double()
    for _ in range(50):
        before = p.detach().clone()
        e = optimizer.e[0].clone() if optimizer.e else torch.zeros(64)
        p.grad = torch.randn(64, generator=generator)
        optimizer.step()
        state = optimizer.state[p]
        m = e + 0.5 * p.grad
        spent = torch.where(m * before >= 1, m, 0.0)
        h = p.detach() - (before - spent)
        torch.testing.assert_close(optimizer.m[0], m)
        for name, value in {"h_sq": h.square().sum(), "e_sq": state["e"].square().sum(), "m_sq": m.square().sum(),
                            "residue_sq": (spent - m).square().sum(), "m_max": m.abs().max()}.items():
            torch.testing.assert_close(state[name], value)
        x = x - 0.5 * p.grad.double() + h.double()
        # 50 steps of float32 rounding on numbers below 8
        torch.testing.assert_close(p.detach().double() - state["e"].double(), x, rtol=0, atol=50 * 5e-7)


def test_clipping_bounds_what_is_remembered():
    p, _ = pair()
    optimizer = ErrorFeedbackBoolean([p], 0.5, clip=1.25)
    for k in range(50):
        p.grad = torch.randn(256, generator=source(k)) - 2 * p.detach()
        optimizer.step()
    assert optimizer.e[0].abs().max() == 1.25
    with pytest.raises(UserError, match=r"clip = 0\.5"):
        ErrorFeedbackBoolean([pair()[0]], 0.5, clip=0.5)
