"""AskewSGD's optimiser against NumPy twins and torch's own, its limits and their KKT residual, and the method."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests import lowbit_helpers as h
from tracking.errors import UserError
from workbench.methods.lowbit import _askew_kernel as kernel
from workbench.methods.lowbit._askew_constraint import constraint, eps_bound, kkt_residual
from workbench.methods.lowbit._levels import LEVELS, sawb_scale, sign
from workbench.methods.lowbit.askewsgd import AskewSGD, AskewSGDTraining
from workbench.params import parse

# --- the optimiser ----------------------------------------------------------------------------------------


def twin(problem: h.Quadratic, *, base: str, order: str, levels: tuple[float, ...], eps: float, alpha: float, clip: float,
         lr: float, weight_decay: float) -> list[np.ndarray]:
    """AskewSGD in NumPy, float64; the weights after each step."""
    gap = levels[1] - levels[0]
    w, M, path = problem.start, clip * gap / lr, []
    inner = h.Descent(base, lr, weight_decay=weight_decay if order == "skew_then_base" else 0.0)
    for k in range(len(problem.noise)):
        g = problem.gradient(w, k)
        if order == "skew_then_base":
            v = np.array([h.best_velocity(a, b, levels, eps, alpha, M) for a, b in zip(w, g, strict=True)])
            w = w + inner.move(w, -v)
        else:
            u = -inner.move(w, g + weight_decay * w) / lr
            w = w + lr * np.array([h.best_velocity(a, b, levels, eps, alpha, M) for a, b in zip(w, u, strict=True)])
        w = np.clip(w, levels[0], levels[-1])
        path.append(w)
    return path


@pytest.mark.parametrize("base", ["sgd", "adam"])
@pytest.mark.parametrize("order", ["skew_then_base", "base_then_skew"])
@pytest.mark.parametrize("weights", ["binary", "ternary", "4bit"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_optimiser_follows_its_numpy_twin(base, order, weights, dtype):
    problem, levels = h.Quadratic(), LEVELS[weights]
    # the first step clamps before it moves, but the gradient it is handed was taken before that
    problem.start = np.clip(problem.start, levels[0], levels[-1])
    eps = 0.3 * eps_bound(levels)
    hyper = dict(alpha=0.7, clip=0.25, lr=0.05, weight_decay=0.01)
    path = twin(problem, base=base, order=order, levels=levels, eps=eps, **hyper)
    p = problem.parameter(dtype)
    optimizer = AskewSGD([p], base=base, order=order, weights=weights, eps=eps, **hyper)
    imposed = 0
    for k, want in enumerate(path):
        problem.step(p, optimizer, k)
        np.testing.assert_allclose(h.flat(p), want, atol=h.TOLERANCE[dtype], err_msg=f"step {k}")
        imposed += (constraint(p.detach().double(), torch.tensor(levels, dtype=torch.float64))[0] > eps).sum().item()
    assert imposed > 50  # the constraint took part


@pytest.mark.parametrize("base", ["sgd", "adam"])
@pytest.mark.parametrize("order", ["skew_then_base", "base_then_skew"])
def test_at_the_bound_it_is_torchs_optimiser_and_a_clamp_bit_for_bit(base, order):
    ours, theirs = h.network(0), h.network(0)
    mine = AskewSGD([ours[0].weight, ours[3].weight], lr=0.1, base=base, order=order)  # eps None: at the bound
    args = dict(lr=0.1, foreach=True)
    peer = (torch.optim.Adam([theirs[0].weight, theirs[3].weight], **args) if base == "adam" else
            torch.optim.SGD([theirs[0].weight, theirs[3].weight], momentum=0.9, **args))

    def clamp() -> None:
        for m in (theirs[0], theirs[3]):
            m.weight.data.clamp_(-1, 1)

    h.train(ours, mine, range(60))
    h.train(theirs, peer, range(60), clamp)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any((p.abs() == 1).any() for p in ours.parameters())  # the clamp took part


@pytest.mark.parametrize("base", ["sgd", "adam"])
def test_fused_step_equals_skew_then_torchs_step(base):
    """On a tensor of several chunks: the fused pass, and the same direction handed to torch's own optimiser."""
    generator = torch.Generator().manual_seed(0)
    start = torch.empty(100_003).uniform_(-1, 1, generator=generator)
    grads = [torch.randn(100_003, generator=generator) for _ in range(3)]
    p, q = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    ours = AskewSGD([p], lr=0.01, base=base, eps=0.2, alpha=0.3, weight_decay=0.1)
    peer = (torch.optim.Adam([q], lr=0.01, weight_decay=0.1) if base == "adam" else
            torch.optim.SGD([q], lr=0.01, momentum=0.9, weight_decay=0.1))
    k = kernel.Constraint(0.2, 0.3, 2 / 0.01, 2.0, True)
    for g in grads:
        p.grad, q.grad = g.clone(), kernel.skew(q.detach(), g, k)
        ours.step()
        peer.step()
        q.data.clamp_(-1, 1)
        assert torch.equal(p.grad, g)  # the caller's gradient is left alone
        # the same operations, but torch may contract a product and a sum: one unit in the last place of a number < 1
        # in the weight; through the imposed speed, of slope alpha/(4 w^2) in w, it reaches the next step
        near = q.detach().abs() > 0.05
        torch.testing.assert_close(p.detach()[near], q.detach()[near], rtol=0, atol=2e-6)


def test_paths_without_clamp_or_with_strides_agree_with_the_fused_one():
    start, g = torch.empty(6, 8, dtype=torch.float64).uniform_(-0.9, 0.9), torch.randn(6, 8, dtype=torch.float64)
    results = []
    for how in ("fused", "strided", "no clamp"):
        p = torch.nn.Parameter(start.clone() if how != "strided" else start.t().contiguous().t())
        assert p.is_contiguous() == (how != "strided")
        optimizer = AskewSGD([p], lr=1e-3, base="sgd", eps=0.3, clamp=how != "no clamp")
        for _ in range(5):
            p.grad = g.clone()
            optimizer.step()
        results.append(p.detach().clone())
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


def test_without_clamp_weights_outside_are_drawn_back_by_the_constraint():
    p = torch.nn.Parameter(torch.tensor([3.0, -3.0, 0.9]))
    optimizer = AskewSGD([p], lr=0.05, base="sgd", momentum=0.0, eps=0.04, alpha=1.0, clamp=False)
    for _ in range(2000):
        p.grad = torch.zeros(3)
        optimizer.step()
    # outside, phi = (|w| - 1)^2 <= eps; the rate alpha brings psi to 0 from below, exp(-100) of it is left
    torch.testing.assert_close(p.detach(), torch.tensor([1.2, -1.2, 0.9]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("weights", list(LEVELS))
def test_every_weight_ends_in_an_interval(weights):
    levels = LEVELS[weights]
    p = torch.nn.Parameter(torch.empty(4000).uniform_(levels[0], levels[-1], generator=torch.Generator().manual_seed(0)))
    eps = 0.1 * eps_bound(levels)
    optimizer = AskewSGD([p], lr=0.05, base="sgd", momentum=0.0, eps=eps, alpha=1.0, weights=weights)
    c = torch.tensor(levels)
    assert (constraint(p.detach(), c)[0] > eps).float().mean() > 0.3
    for _ in range(400):
        p.grad = torch.zeros(4000)
        optimizer.step()
    # with no loss psi grows at rate alpha: after time 400 * 0.05 = 20 what is left of a violation is exp(-20) of it,
    # below the rounding of phi, which is 8 * 6e-8 times its slope (< 2)
    assert (constraint(p.detach(), c)[0] <= eps + 2e-6).all()
    report = optimizer.constraint_report()
    assert report["train/epsilon"] == eps
    deployed = optimizer.deployed()[p]
    assert torch.isin(deployed, c).all()
    assert report["train/level_distance"] == pytest.approx((p - deployed).abs().mean().item(), rel=1e-5)


def test_fixed_eps_iterates_reach_the_kkt_points_of_the_quadratic():
    """l = ((w1 - .5)^2 + (w2 - .5)^2)/3, gamma_k = .5/k^.6: limits from all over the square, brute force on the intervals."""
    eps, levels = 0.3, torch.tensor([-1.0, 1.0], dtype=torch.float64)
    axis = torch.linspace(-0.98, 0.98, 12, dtype=torch.float64)
    p = torch.nn.Parameter(torch.cartesian_prod(axis, axis))
    optimizer = AskewSGD([p], lr=0.5, base="sgd", momentum=0.0, eps=eps, alpha=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: (k + 1) ** -0.6)
    gradient = lambda w: 2 / 3 * (w - 0.5)  # noqa: E731
    for _ in range(6000):
        p.grad = gradient(p.detach())
        optimizer.step()
        schedule.step()
    w = p.detach()
    # round the boundary the iterates step to and fro: by gamma_k |grad| <= gamma_k, which is 0.0027 here
    gamma = 0.5 * 6000**-0.6
    assert kkt_residual(w, gradient(w), levels, eps).max() <= gamma
    # brute force: the minimum of l over each of the four products of intervals, on a grid
    inner = (1 - eps**0.5) ** 0.5
    side = torch.linspace(inner, 1, 2001, dtype=torch.float64)
    best = {s: (s * side)[((s * side - 0.5) ** 2).argmin()].item() for s in (-1, 1)}
    limits = {(round(a, 1), round(b, 1)) for a, b in w.tolist()}
    assert limits == {(round(best[a], 1), round(best[b], 1)) for a in (-1, 1) for b in (-1, 1)}
    nearest = torch.where(w < 0, best[-1], best[1])
    assert (w - nearest).abs().max() <= gamma + 2e-4  # plus the grid's spacing
    # and the residual tells other points apart: an interior point, and the far end of an interval
    assert kkt_residual(torch.tensor([0.8, 1.0]), gradient(torch.tensor([0.8, 1.0])), levels.float(), eps).min() > 0.1


def test_sawb_scale_is_measured_when_the_constraint_sets_in_and_kept():
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(0.1 * torch.randn(500, generator=generator))
    q = torch.nn.Parameter(p.detach().clone())
    optimizer = AskewSGD([p], lr=0.01, weights="2bit", scale="sawb", alpha=1.0, base="sgd")
    peer = torch.optim.SGD([q], lr=0.01, momentum=0.9, foreach=True)
    for _ in range(5):  # at the bound: plain training, no clamp
        g = torch.randn(500, generator=generator)
        p.grad, q.grad = g.clone(), g.clone()
        optimizer.step()
        peer.step()
    assert torch.equal(p, q)
    s = sawb_scale(p.detach(), "2bit")
    optimizer.param_groups[0]["eps"] = 0.01
    for _ in range(600):
        p.grad = torch.zeros(500)
        optimizer.step()
        assert optimizer.state[p]["scale"] == s
    assert p.abs().max() <= 2 * s
    assert optimizer.constraint_report()["train/infeasible"] < 0.02  # those on the boundary, by rounding
    values = optimizer.deployed()[p]
    torch.testing.assert_close((values / s).round() * s, values)
    assert (values / s).round().unique().tolist() == [-2, -1, 0, 1, 2]


def test_deployed_binary_weight_is_the_sign_and_zero_goes_up():
    p = torch.nn.Parameter(torch.tensor([0.3, -0.2, 0.0]))
    assert torch.equal(AskewSGD([p], lr=0.1).deployed()[p], sign(p.detach()))


def make(base: str, scale: str = "unit"):
    def build(quantised, plain):
        return AskewSGD(h.groups(quantised, plain), lr=0.02, base=base, scale=scale,
                        weights="binary" if scale == "unit" else "4bit", eps=0.2 if scale == "unit" else 0.02)
    return build


@pytest.mark.parametrize(("base", "scale"), [("sgd", "unit"), ("adam", "unit"), ("adam", "sawb")])
def test_saved_and_loaded_it_goes_on_bit_for_bit(base, scale):
    h.check_round_trip(make(base, scale))


@pytest.mark.parametrize("base", ["sgd", "adam"])
def test_torchs_scheduler_works_on_it(base):
    h.check_scheduler(make(base))


def test_parameters_outside_the_groups_move_as_under_torch():
    h.check_plain_groups(AskewSGD)


def test_a_learning_rate_of_zero_moves_nothing():
    p = torch.nn.Parameter(torch.tensor([0.0, 0.1]))
    optimizer = AskewSGD([p], lr=0.0, base="sgd", eps=0.2)
    p.grad = torch.ones(2)
    optimizer.step()
    assert p.tolist() == pytest.approx([0.0, 0.1])


@pytest.mark.parametrize("wrong", [{"eps": 0.0}, {"alpha": -1.0}, {"clip": 0.0}])
def test_a_group_out_of_range_is_refused_by_name(wrong):
    p = torch.nn.Parameter(torch.ones(2) / 2)
    p.grad = torch.ones(2)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AskewSGD([p], lr=0.1, **wrong).step()
    with pytest.raises(ValueError, match="allowed"):
        AskewSGD([p], lr=0.1, order="both")


# --- the method -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("params", "allowed"), [({"eps_start": 0.5, "weights": "4bit"}, "0.0625"), ({"eps_start": 1.0}, None)])
def test_eps_above_the_bound_of_the_levels_is_refused(params, allowed):
    if allowed is None:
        assert parse(AskewSGDTraining.Params, params, "askewsgd").eps_start == 1.0
    else:
        with pytest.raises(UserError, match=f"bound of 4bit.*{allowed}"):
            parse(AskewSGDTraining.Params, params, "askewsgd")


def test_method_anneals_learns_and_collapses_on_the_levels():
    method, state, final, steps = h.live(AskewSGDTraining, epochs=30, lr=0.02, alpha=0.5, eps_warmup=5, eps_decay=0.75,
                                         lr_decay_epochs=(10,), bn_batches=4)
    eps = [m["train/epsilon"] for m in steps]
    assert eps[:6] == [1.0] * 5 + [0.75]
    assert eps[-1] == pytest.approx(0.75**24)
    assert steps[-1]["train/level_distance"] < 0.1 < steps[0]["train/level_distance"]
    assert final["eval/accuracy_bn"] > 0.75  # chance is 0.25
    assert all((p.detach().abs() <= 1).all() for p in state.model.parameters())
    assert set(torch.cat([p.flatten() for p in method.deploy(state).parameters()]).tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("params", [{"weights": "4bit", "scale": "sawb"}, {"weights": "ternary", "scale": "sawb"},
                                    {"order": "base_then_skew", "alpha": 2.0}, {"activations": "4bit"}, {"base": "sgd", "lr": 0.1}])
def test_method_options_learn(params):
    _, _, final, _ = h.live(AskewSGDTraining, **{"epochs": 20, "lr": 0.02, "eps_warmup": 5, "eps_decay": 0.7,
                                                 "lr_decay_epochs": (10,), "bn_batches": 4} | params)
    assert final["eval/accuracy_bn"] > 0.7
