"""Descent on smooth problems: its rules are the optimisers' bit for bit, its tally is what a slow reading finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.test_tasks import context, make
from tracking.errors import UserError
from workbench.boolean import BooleanOptimizer, ErrorFeedbackBoolean
from workbench.datasets._finite_sums import LinearSum
from workbench.datasets.boolean_problems import BooleanTanh
from workbench.methods.lowbit import descent
from workbench.methods.lowbit._descent import DescentState, Tally, iterate, report_points
from workbench.methods.lowbit.binaryconnect import BinaryConnect
from workbench.methods.lowbit.bop import Bop
from workbench.methods.lowbit.error_feedback_boolean import BooleanRule
from workbench.spec import resolve

R, D = 3, 8
ETA = 0.125  # a power of two: products with it are exact, so different orders of the same operations round alike


def problem(n: int = 32, d: int = D, scale: float = 0.5) -> LinearSum:
    """Least squares with its minimum near ``scale`` times a corner: inside the cube, or outside."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    return LinearSum(x, scale * x.sum(1) + torch.randn(n, generator=g, dtype=torch.float64), "quadratic")


def corners(r: int = R, d: int = D, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.where(torch.rand(r, d, generator=torch.Generator().manual_seed(1)) < 0.5, -1.0, 1.0).to(dtype)


def state_of(rule, w: torch.Tensor, seed: int = 2) -> DescentState:
    return DescentState(w, rule.begin(w), torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1))


# --- the update is the optimiser's --------------------------------------------------------------------------


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("clip", [0.0, 2.0])
def test_the_rule_is_the_error_feedback_optimiser_bit_for_bit(stochastic, clip):
    rule, f = BooleanRule(ETA, stochastic, clip=clip), problem()
    w, p = corners(), nn.Parameter(corners())
    optimizer = ErrorFeedbackBoolean(
        [p], lr=ETA, clip=clip or None, stochastic=stochastic, generator=torch.Generator().manual_seed(5)
    )
    memory, draws, noise = rule.begin(w), torch.Generator().manual_seed(5), torch.Generator().manual_seed(6)
    for _ in range(1000):
        signal = f.gradient(w) + 2 * torch.randn(w.shape, generator=noise, dtype=torch.float64)
        w, _ = rule.advance(w, memory, signal, lambda: torch.rand(R, D, generator=draws))
        p.grad = signal
        optimizer.step()
        assert torch.equal(w, p.detach())
        assert torch.equal(memory["e"], optimizer.state[p]["e"])
    assert optimizer.state[p]["total_flips"] > 100


@pytest.mark.parametrize("plasticity", [False, True])
def test_the_practical_rule_is_the_boolean_optimiser_bit_for_bit(plasticity):
    """Each trajectory is a tensor of its own there: plasticity is a share of its own weights. In float32, as its accumulators are."""
    w = corners(dtype=torch.float32)
    parameters = [nn.Parameter(row.clone()) for row in w]
    optimizer = BooleanOptimizer(parameters, lr=ETA, beta="plasticity" if plasticity else 1.0)
    rule, noise = BooleanRule(ETA, stochastic=False, plasticity=plasticity), torch.Generator().manual_seed(6)
    memory = rule.begin(w)
    for _ in range(1000):
        signal = w + torch.randn(w.shape, generator=noise)
        w, _ = rule.advance(w, memory, signal, None)
        for p, own in zip(parameters, signal, strict=True):
            p.grad = own
        optimizer.step()
        assert torch.equal(w, torch.stack(list(parameters)).detach())
    assert all(r.total_flips > 100 for r in optimizer.layers())


def test_the_loop_is_plain_training_of_the_problem_as_a_network():
    """Batches by index, a loss, ``backward`` and the optimiser, for one trajectory."""
    task, (seed, steps) = make(BooleanTanh, inputs=3, hidden=3, train_size=64), (4, 300)
    model = task.build_model(context(seed))
    rule = BooleanRule(ETA, stochastic=False)
    state = state_of(rule, model.w.detach().clone()[None])
    order = torch.Generator().manual_seed(2)
    optimizer = ErrorFeedbackBoolean(model.parameters(), lr=ETA)
    for _ in range(steps):
        x, y = task.batch(torch.randint(len(task.train_y), (1, 16), generator=order)[0])
        optimizer.zero_grad()
        task.loss(model(x), y).backward()
        optimizer.step()
    iterate(task.problem, rule, state, 16, steps)
    assert torch.equal(state.w[0], model.w.detach())
    assert state.tally.flips.item() == optimizer.state[model.w]["total_flips"].item() > 0


@pytest.mark.parametrize("plasticity", [False, True])
def test_trajectories_know_nothing_of_each_other(plasticity):
    etas = torch.tensor([[0.05], [0.2], [1.0]], dtype=torch.float64)
    together = state_of(rule := BooleanRule(etas, False, plasticity, clip=2.0), corners())
    iterate(problem(), rule, together, 0, 200)
    for i in range(R):
        alone = state_of(rule := BooleanRule(etas[i].item(), False, plasticity, clip=2.0), corners()[i : i + 1])
        iterate(problem(), rule, alone, 0, 200)
        assert torch.equal(alone.w[0], together.w[i])
        for name in ("gradient2", "gamma", "e2", "h2", "flips", "idle"):
            assert getattr(alone.tally, name).item() == pytest.approx(
                getattr(together.tally, name)[i].item(), rel=1e-12
            ), name


def test_the_virtual_sequence_of_the_proof():
    """``x_t = w_t - e_t`` obeys ``x_{t+1} = x_t - eta g + h_t`` without clipping; with it, mass is lost."""
    for clip, kept in ((0.0, True), (1.2, False)):
        rule, w, noise = BooleanRule(0.3, True, clip=clip), corners(), torch.Generator().manual_seed(3)
        memory, lost = rule.begin(w), 0.0
        for _ in range(200):
            signal = 0.2 * w + torch.randn(w.shape, generator=noise, dtype=torch.float64)
            before = w - memory["e"]
            turned, moved = rule.advance(
                w, memory, signal, lambda g=noise: torch.rand(R, D, generator=g, dtype=torch.float64)
            )
            lost = max(lost, float((turned - memory["e"] - (before - 0.3 * signal + turned - moved.u)).abs().max()))
            w = turned
        assert (lost < 1e-12) == kept


# --- the tally is brute force -------------------------------------------------------------------------------


def test_the_tally_is_what_a_slow_reading_finds():
    f, batch, steps, clip = problem(scale=1.5), 4, 120, 4.0  # accumulators of weights that stay outgrow those that pass
    eta = torch.tensor([[0.02], [0.3], [2.0]], dtype=torch.float64)
    rule = BooleanRule(eta, True, clip=clip)
    state = state_of(rule, corners())
    iterate(f, rule, state, batch, steps)
    order, draws = torch.Generator().manual_seed(2), torch.Generator().manual_seed(3)
    w, e = corners(), torch.zeros(R, D, dtype=torch.float64)
    seen: list[list[dict[str, float]]] = [[] for _ in range(R)]
    for _ in range(steps):
        index = torch.randint(len(f.y), (R, batch), generator=order)
        uniform = torch.rand(R, D, generator=draws, dtype=torch.float64)
        for i in range(R):
            each = torch.stack([f.signal(w[i], f.x[j : j + 1], f.y[j : j + 1]) for j in range(len(f.y))])
            full = each.mean(0)
            m = (e[i] + eta[i] * each[index[i]].mean(0)).clamp(-clip, clip)
            passed = [bool(a * b >= 1) for a, b in zip(m, w[i], strict=True)]
            turned, h2, flips = w[i].clone(), 0.0, 0
            for j in range(D):
                u = float(w[i, j]) - (float(m[j]) if passed[j] else 0.0)
                # w u = 1 - |m| is the mean of the side kept: it turns with probability |m| / 2
                if passed[j] and float(uniform[i, j]) < abs(float(m[j])) / 2:
                    turned[j], flips = -turned[j], flips + 1
                h2 += (float(turned[j]) - u) ** 2
            kept = torch.where(torch.tensor(passed), 0.0, m)
            seen[i].append(
                {
                    "gradient2": float(full @ full),
                    "flips": flips,
                    "m_max": float(m.abs().max()),
                    "count": sum(passed),
                    "h2": h2,
                    "sigma2": float(full @ full) + float((each - full).square().sum(1).mean()) / batch,
                    "spent_max": max([abs(float(v)) for v, p in zip(m, passed, strict=True) if p], default=0.0),
                    "e2": float(kept @ kept),
                    "gamma": float(kept @ kept / (m @ m)),
                    "biased": sum(p and abs(float(v)) > 2 for v, p in zip(m, passed, strict=True)),
                }
            )
            w[i], e[i] = turned, kept
    for i, rows in enumerate(seen):
        t = {name: getattr(state.tally, name)[i].item() for name in Tally.__dataclass_fields__ if name != "steps"}
        total = {k: sum(r[k] for r in rows) for k in rows[0]}
        largest = {k: max(r[k] for r in rows) for k in rows[0]}
        assert t == pytest.approx(
            {
                "gradient2": total["gradient2"],
                "sigma2": largest["sigma2"],
                "flips": total["flips"],
                "m_max": largest["m_max"],
                "spent_max": largest["spent_max"],
                "gamma": max([r["gamma"] for r in rows if r["count"]], default=-np.inf),
                "idle": sum(r["count"] == 0 for r in rows),
                "spent": total["count"],
                "biased": total["biased"],
                "e2": total["e2"],
                "e2_max": largest["e2"],
                "h2": total["h2"],
                "h2_max": largest["h2"],
            }
        )
    assert (state.tally.spent_max < state.tally.m_max).any()
    assert state.tally.biased.any()
    assert state.tally.steps == steps


# --- the baselines are their originals ----------------------------------------------------------------------


def followed(rule, optimizer: torch.optim.Optimizer, p: nn.Parameter, steps: int = 200) -> None:
    """Both take the same signals from the same start, and stay together."""
    w, noise = p.detach().clone()[None], torch.Generator().manual_seed(3)
    memory = rule.begin(w)
    for _ in range(steps):
        signal = 0.3 * w + torch.randn(w.shape, generator=noise, dtype=torch.float64)
        w, _ = rule.advance(w, memory, signal, None)
        p.grad = signal[0]
        optimizer.step()
        torch.testing.assert_close(w[0], p.detach())


def test_sgd_is_torch_s():
    p = nn.Parameter(corners()[0])
    followed(descent.SGD(ETA), torch.optim.SGD([p], lr=ETA), p)


def test_the_sign_projected_rule_is_binaryconnect():
    p = nn.Parameter(corners()[0])
    followed(descent.SignProjected(ETA), BinaryConnect([p], lr=ETA, base="sgd", momentum=0.0), p)


def test_the_bop_rule_is_bop():
    p = nn.Parameter(corners()[0])
    followed(descent.BopRule(ETA, 0.1), Bop([p], lr=1.0, gamma=ETA, threshold=0.1), p)


def test_ef_signsgd_is_its_paper_s_algorithm():
    rule, w, e = descent.EFSignSGD(ETA), corners(), np.zeros((R, D))
    memory, own, noise = rule.begin(w), corners().numpy(), np.random.default_rng(0)
    for _ in range(100):
        g = noise.standard_normal((R, D))
        w, _ = rule.advance(w, memory, torch.from_numpy(g), None)
        for i in range(R):  # Alg. 1: p = gamma g + e; Delta = (||p||_1 / d) sign(p); x <- x - Delta; e <- p - Delta
            p = ETA * g[i] + e[i]
            delta = np.abs(p).sum() / D * np.sign(p)
            own[i], e[i] = own[i] - delta, p - delta
        assert w.numpy() == pytest.approx(own)


# --- parameters and reports ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("clip", "words"), [(0.5, "below 1 no weight ever turns"), (-1.0, "clip = -1.0 is refused")])
def test_a_clip_under_which_nothing_turns_is_refused(clip, words):
    with pytest.raises(UserError, match=words):
        resolve("error_feedback_boolean", "boolean_tanh", {"clip": clip})


def test_reports_are_evenly_spaced_on_a_logarithmic_scale():
    assert report_points(1000, 4) == [1, 10, 100, 1000]
    assert report_points(3, 40) == [1, 2, 3]
    assert report_points(1, 1) == [1]
