"""Problems with known constants: gradients and noise against autograd and enumeration, smoothness and bounds against brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from tests.test_tasks import context, make
from tracking.errors import UserError
from workbench.datasets._finite_sums import LOSSES, FiniteSum, LinearSum, TanhSum
from workbench.datasets.boolean_problems import BooleanLinear, BooleanTanh
from workbench.spec import resolve

KINDS = ("quadratic", "logistic", "sigmoid", "tanh")


def data(n: int, inputs: int, labels: bool) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(n)
    x, y = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((n, inputs), (n,)))
    return x, torch.where(y < 0, -1.0, 1.0).double() if labels else y


def problem_of(kind: str, n: int = 7, regulariser: float = 0.3) -> FiniteSum:
    if kind == "tanh":
        return TanhSum(*data(n, 2, False), hidden=3, regulariser=regulariser)
    return LinearSum(*data(n, 5, kind != "quadratic"), kind, regulariser)


def points(problem: FiniteSum, count: int, scale: float = 1.0) -> torch.Tensor:
    """Corners and points between and beyond them."""
    w = scale * torch.randn(count, problem.dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.cat([torch.where(w < 0, -1.0, 1.0).double(), w])


def by_hand(kind: str, problem: FiniteSum, w: np.ndarray) -> float:
    """f(w) sample by sample, in plain Python."""
    total = 0.0
    for x, y in zip(problem.x.numpy(), problem.y.numpy(), strict=True):
        if kind == "tanh":
            first, last = w[:6].reshape(3, 2), w[6:]
            s = sum(
                v * math.tanh(float(row @ x) / math.sqrt(2)) for row, v in zip(first, last, strict=True)
            ) / math.sqrt(3)
        else:
            s = float(x @ w)
        total += {
            "quadratic": (s - y) ** 2 / 2,
            "tanh": (s - y) ** 2 / 2,
            "logistic": math.log1p(math.exp(-y * s)),
            "sigmoid": 1 / (1 + math.exp(y * s)),
        }[kind]
    return total / len(problem.y) + problem.regulariser * sum(v * v / (1 + v * v) for v in w)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_plain_python_and_gradients_those_of_autograd(kind):
    problem = problem_of(kind)
    w = points(problem, 4)
    assert problem.value(w).tolist() == pytest.approx([by_hand(kind, problem, p.numpy()) for p in w])
    leaf = w.clone().requires_grad_()
    (expected,) = torch.autograd.grad(problem.value(leaf).sum(), leaf)
    torch.testing.assert_close(problem.gradient(w), expected)
    torch.testing.assert_close(problem.look(w).gradient, expected)
    torch.testing.assert_close(problem.look(w).norm2, expected.square().sum(-1))
    torch.testing.assert_close(problem.gradient(w[2]), expected[2])  # a single point, too


@pytest.mark.parametrize("kind", KINDS)
def test_every_point_may_have_samples_of_its_own(kind):
    problem = problem_of(kind)
    w = points(problem, 2)
    index = torch.tensor([[0, 1, 1], [2, 2, 2], [6, 0, 3], [4, 5, 6]])
    found = problem.signal(w, problem.x[index], problem.y[index])
    alone = torch.stack([problem.signal(p, problem.x[i], problem.y[i]) for p, i in zip(w, index, strict=True)])
    torch.testing.assert_close(found, alone)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_signals_are_unbiased_and_their_second_moment_exact(kind, batch_size):
    """Over all ``3^b`` batches that can be drawn."""
    problem = problem_of(kind, n=3)
    w = points(problem, 1)
    drawn = torch.stack(
        [
            problem.signal(w, problem.x[list(i)], problem.y[list(i)])
            for i in itertools.product(range(3), repeat=batch_size)
        ]
    )
    torch.testing.assert_close(drawn.mean(0), problem.gradient(w))
    torch.testing.assert_close(drawn.square().sum(-1).mean(0), problem.look(w).second_moment(batch_size))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_curvature_of_each_loss_is_its_largest(loss):
    phi, slope, curvature = LOSSES[loss]
    s = torch.linspace(-8, 8, 4001, dtype=torch.float64, requires_grad=True)
    for y in (-1.0, 1.0):
        label = torch.full_like(s, y)
        (first,) = torch.autograd.grad(phi(s, label).sum(), s, create_graph=True)
        torch.testing.assert_close(slope(s, label), first)
        (second,) = torch.autograd.grad(first.sum(), s)
        # the grid's nearest point to the maximum is off by 0.002 at most, where the curve is flat
        assert second.abs().max().item() == pytest.approx(curvature, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_the_gradient_is_lipschitz_with_the_constant_told(kind):
    problem = problem_of(kind, n=40, regulariser=0.05)
    a, b = points(problem, 300, 2.0), points(problem, 300, 2.0).flip(0)
    assert (
        (problem.gradient(a) - problem.gradient(b)).norm(dim=-1)
        <= problem.smoothness * (a - b).norm(dim=-1) * (1 + 1e-12)
    ).all()
    hessians = [
        torch.autograd.functional.hessian(problem.value, w) for w in torch.cat([points(problem, 20, 0.3), 0 * a[:1]])
    ]
    assert max(torch.linalg.matrix_norm(h, 2).item() for h in hessians) <= problem.smoothness * (1 + 1e-12)


def test_the_constant_of_least_squares_is_attained():
    problem = problem_of("quadratic", regulariser=0.0)
    hessian = torch.autograd.functional.hessian(problem.value, torch.zeros(5, dtype=torch.float64))
    assert problem.smoothness == pytest.approx(torch.linalg.matrix_norm(hessian, 2).item())
    assert problem_of("tanh").smoothness is None


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_below_the_lower_bound(kind):
    problem = problem_of(kind, n=12)
    assert (problem.value(points(problem, 500, 3.0)) >= problem.lower_bound).all()


def test_the_lower_bound_of_least_squares_is_attained():
    problem = problem_of("quadratic", n=12, regulariser=0.0)
    best = torch.from_numpy(np.linalg.lstsq(problem.x.numpy(), problem.y.numpy(), rcond=None)[0])
    assert problem.value(best).item() == pytest.approx(problem.lower_bound)


# --- the tasks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "model"), [*((BooleanLinear, m) for m in BooleanLinear.models), (BooleanTanh, "")])
def test_the_data_depend_on_their_own_seed_alone(cls, model):
    first, again, other = make(cls, model), make(cls, model, context(seed=7)), make(cls, model, data_seed=1)
    assert torch.equal(first.train_x, again.train_x)
    assert torch.equal(first.train_y, again.train_y)
    assert not torch.equal(first.train_x, other.train_x)
    assert not torch.isin(first.test_x, first.train_x).any()
    corners = [first.start(context(seed=s)) for s in (3, 3, 4)]
    assert torch.equal(corners[0], corners[1])
    assert not torch.equal(corners[0], corners[2])
    assert (corners[0].abs() == 1).all()
    assert corners[0].shape == first.w_star.shape == (first.problem.dim,)
    if model in ("logistic", "sigmoid"):
        assert set(first.train_y.tolist()) == {-1.0, 1.0}


def test_responses_are_those_of_the_true_weights():
    exact = make(BooleanLinear, "quadratic", w_scale=1.0, noise=0.0)
    assert (exact.w_star.abs() == 1).all()
    torch.testing.assert_close(exact.train_y, exact.train_x @ exact.w_star)
    assert exact.problem.look(exact.w_star).norm2.item() < 1e-25  # rounding of a mean of zeros
    assert exact.problem.lower_bound < 1e-25
    noisy = make(BooleanLinear, "quadratic", w_scale=0.5, noise=0.5, train_size=20_000)
    residual = noisy.train_y - noisy.train_x @ noisy.w_star
    # the standard error of a standard deviation from 20,000 samples is 0.5 / sqrt(40,000) = 0.0025
    assert residual.std().item() == pytest.approx(0.5, abs=0.0125)
    clean = make(BooleanTanh, noise=0.0)
    assert clean.problem.value(clean.w_star).item() < 1e-25
    assert BooleanTanh("", BooleanTanh.Params(inputs=3, hidden=5)).make(torch.zeros(1, 3), torch.zeros(1)).dim == 20


def test_neighbouring_features_are_correlated_as_asked():
    x = make(BooleanLinear, "logistic", train_size=40_000, correlation=0.7).train_x.numpy()
    found = np.corrcoef(x.T)
    # a correlation of 40,000 samples errs by 1 / 200 at most, and 20 * 20 are compared: five of these
    assert found == pytest.approx(0.7 ** np.abs(np.subtract.outer(range(20), range(20))), abs=0.025)


def test_a_corner_is_a_network():
    task = make(BooleanLinear, "logistic", train_size=30)
    model = task.build_model(context(seed=2))
    x, y = task.batch(torch.arange(30))
    outputs = model(x)
    torch.testing.assert_close(outputs, x @ task.start(context(seed=2)))
    assert task.loss(outputs, y).item() == pytest.approx(task.problem.value(model.w).item())
    assert task.correct(torch.tensor([2.0, -1.0, 0.0]), torch.tensor([1.0, 1.0, 1.0])).tolist() == [True, False, False]


def test_provenance_tells_sizes_and_source():
    facts = make(BooleanTanh, train_size=10, test_size=3).provenance()
    assert (facts["dataset"], facts["train_size"], facts["test_size"]) == ("boolean_tanh", "10", "3")
    assert facts["source"].startswith("generated")


@pytest.mark.parametrize(
    ("method", "task"), [("binaryconnect", "boolean_tanh"), ("error_feedback_boolean", "two_moons")]
)
def test_methods_and_problems_of_other_kinds_do_not_meet(method, task):
    with pytest.raises(UserError, match="runs on tasks of kind"):
        resolve(method, task)
