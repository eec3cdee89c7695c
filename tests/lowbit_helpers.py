"""What tests of the low-bit optimisers share: float64 NumPy twins of SGD and Adam, a problem to descend, AskewSGD's
direction by brute force, checks that every such optimiser must pass, and a method's life on a small task."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from workbench.method import Context
from workbench.params import parse
from workbench.task import SupervisedParams, SupervisedTask

# Twins are float64. In float64 the optimiser may differ by rounding alone: 50 steps, each a few operations of relative
# error 1e-16 on numbers of order 1 to 10, amplified at most tens of times by the problem's curvature. In float32 the
# unit is 6e-8, times the same 50 steps and amplification. A weight that took the other side of a threshold would
# make a difference of order 0.1 and more, which neither tolerance forgives.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-4}


class Descent:
    """SGD with momentum, or Adam, in float64 from their papers; one object an array."""

    def __init__(self, base: str, lr: float, *, momentum: float = 0.9, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 0.0) -> None:
        self.base, self.lr, self.momentum, self.betas, self.eps = base, lr, momentum, betas, eps
        self.weight_decay, self.t, self.m, self.v = weight_decay, 0, 0.0, 0.0

    def move(self, w: np.ndarray, g: np.ndarray) -> np.ndarray:
        """``-lr * direction`` for the gradient ``g`` at the owner's ``w``."""
        g = g + self.weight_decay * w
        self.t += 1
        if self.base == "sgd":
            self.m = self.momentum * self.m + g
            return -self.lr * self.m
        b1, b2 = self.betas
        self.m, self.v = b1 * self.m + (1 - b1) * g, b2 * self.v + (1 - b2) * g**2
        return -self.lr * (self.m / (1 - b1**self.t)) / (np.sqrt(self.v / (1 - b2**self.t)) + self.eps)


class Quadratic:
    """Noisy quadratic loss of a 3 x 4 weight; its gradient at step k is ``H (w - c) + noise_k``."""

    shape = (3, 4)

    def __init__(self, steps: int = 50, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        root = rng.normal(size=(12, 12)) / 4
        self.H, self.c = root @ root.T + 0.2 * np.eye(12), rng.uniform(-1, 1, 12)
        self.start, self.noise = rng.normal(size=12) / 2, 0.3 * rng.normal(size=(steps, 12))

    def gradient(self, w: np.ndarray, k: int) -> np.ndarray:
        return self.H @ (w - self.c) + self.noise[k]

    def parameter(self, dtype: torch.dtype) -> nn.Parameter:
        return nn.Parameter(torch.tensor(self.start, dtype=dtype).reshape(self.shape))

    def loss(self, p: torch.Tensor, k: int) -> torch.Tensor:
        H, c, noise = (torch.tensor(a, dtype=p.dtype) for a in (self.H, self.c, self.noise[k]))
        d = p.reshape(-1) - c
        return 0.5 * d @ H @ d + noise @ p.reshape(-1)

    def step(self, p: nn.Parameter, optimizer: torch.optim.Optimizer, k: int) -> None:
        optimizer.zero_grad()
        self.loss(p, k).backward()
        optimizer.step()


def flat(t: torch.Tensor) -> np.ndarray:
    return t.detach().double().numpy().reshape(-1).copy()


# --- AskewSGD's direction -----------------------------------------------------------------------------------


def polynomial(w: float, levels: tuple[float, ...]) -> np.poly1d:
    """phi round ``w`` as a polynomial, by scanning the cells: independent of the code under test."""
    if w < levels[0]:
        return np.poly1d([levels[0]], r=True) ** 2
    for a, b in pairwise(levels):
        if a <= w < b:
            return np.poly1d([a, b], r=True) ** 2
    return np.poly1d([levels[-1]], r=True) ** 2


def best_velocity(w: float, g: float, levels: tuple[float, ...], eps: float, alpha: float, M: float) -> float:
    """The quadratic programme ``min (v + g)^2`` subject to ``psi' v >= -alpha psi`` where infeasible, by listing candidates.

    In one dimension the solution is the unconstrained minimum or the end of the half-line.
    """
    p = polynomial(w, levels)
    psi, slope = eps - p(w), -p.deriv()(w)
    if psi > 0:
        return -g
    if slope == 0:
        return M if psi < 0 else -g
    end = -alpha * psi / slope
    candidates = [v for v in (-g, end) if slope * v >= -alpha * psi - 1e-12 * abs(alpha * psi)]
    v = min(candidates, key=lambda v: (v + g) ** 2)
    return v if v == -g else float(np.clip(v, -M, M))


# --- checks of any optimiser: ``make(quantised, plain)`` builds it over two lists of parameters -----------

Make = Callable[[list[nn.Parameter], list[nn.Parameter]], torch.optim.Optimizer]


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(),
                         nn.Linear(8, 3, bias=False), nn.BatchNorm1d(3))


def groups(quantised: list[nn.Parameter], plain: list[nn.Parameter]) -> list[dict[str, Any]]:
    """Parameter groups: one to be quantised as the optimiser's options say, one of which it leaves the values alone."""
    return [{"params": quantised}, {"params": plain, "weights": None}]


def build(make: Make, model: nn.Sequential) -> torch.optim.Optimizer:
    return make([model[0].weight, model[3].weight], [*model[1].parameters(), *model[4].parameters()])


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range,
          after: Callable[[], None] = lambda: None) -> None:
    for k in steps:
        g = torch.Generator().manual_seed(k)
        x, y = torch.randn(16, 6, generator=g), torch.randint(3, (16,), generator=g)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        after()


def check_round_trip(make: Make, generator: torch.Generator | None = None,
                     fresh: torch.Generator | None = None) -> None:
    """Saved after 7 steps and loaded into a fresh network and optimiser, training goes on bit for bit."""
    model = network(0)
    optimizer = build(make, model)
    train(model, optimizer, range(7))
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict(), generator.get_state() if generator else None), file)
    train(model, optimizer, range(7, 15))

    file.seek(0)
    weights, state, random = torch.load(file, weights_only=True)
    twin = network(1)
    other = build(make, twin)
    twin.load_state_dict(weights)
    other.load_state_dict(state)
    if generator is not None:
        fresh.set_state(random)
    train(twin, other, range(7, 15))
    for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        ours, theirs = optimizer.state[p], other.state[q]
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def check_plain_groups(optimizer_class: type, **options: object) -> None:
    """With ``weights=None`` every parameter moves bit for bit as under torch's own Adam or SGD."""
    for base in ("adam", "sgd"):
        ours, theirs = network(0), network(0)
        optimizer = optimizer_class([{"params": list(ours.parameters()), "weights": None}],
                                    lr=0.03, base=base, weight_decay=1e-3, **options)
        # foreach on both sides: torch promises equal results within one implementation only
        peer = (torch.optim.Adam(theirs.parameters(), lr=0.03, weight_decay=1e-3, foreach=True) if base == "adam" else
                torch.optim.SGD(theirs.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-3, foreach=True))
        start = copy.deepcopy(ours.state_dict())
        train(ours, optimizer, range(10))
        train(theirs, peer, range(10))
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name])
            assert not torch.equal(value, start[name])


def check_scheduler(make: Make) -> None:
    """torch's StepLR gives bit for bit what a learning rate set by hand gives, and not what a constant one does."""
    results = []
    for kind in ("scheduler", "hand", "constant"):
        model = network(0)
        optimizer = build(make, model)
        lr = optimizer.param_groups[0]["lr"]
        if kind == "scheduler":
            after = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5).step
        else:
            after = lambda o=optimizer: [g.update(lr=g["lr"] / 2) for g in o.param_groups]  # noqa: E731
        train(model, optimizer, range(6), after if kind != "constant" else lambda: None)
        assert (optimizer.param_groups[0]["lr"] == lr / 64) == (kind != "constant")
        results.append([p.detach().clone() for p in model.parameters()]
                       + [t for p in model.parameters() for t in optimizer.state[p].values()])
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(results[0], results[2], strict=True))


def check_state(make: Make, quantised: set[str], plain: set[str]) -> None:
    """The state of a parameter is the named tensors and no other; all but ``step`` have its shape."""
    model = network(0)
    optimizer = build(make, model)
    train(model, optimizer, range(3))
    for group in optimizer.param_groups:
        names = plain if group["weights"] is None else quantised
        for p in group["params"]:
            assert optimizer.state[p].keys() == names
            assert all(t.shape == (p.shape if name != "step" else ()) for name, t in optimizer.state[p].items())


# --- a task, and a method's whole life on it --------------------------------------------------------------


class Blobs(SupervisedTask):
    """Four Gaussian clouds in eight dimensions, a network without biases, its norms without affine part."""

    dataset = "blobs"

    def setup(self, ctx: Context) -> None:
        g = torch.Generator().manual_seed(0)
        centres = 1.2 * torch.randn(4, 8, generator=g)
        y = torch.arange(600) % 4
        x = centres[y] + torch.randn(600, 8, generator=g)
        self.train_x, self.train_y, self.test_x, self.test_y, self.num_classes = x[:400], y[:400], x[400:], y[400:], 4

    def build_model(self, ctx: Context) -> nn.Module:
        g = ctx.generator("init", cpu=True)
        model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16, affine=False), nn.ReLU(),
                              nn.Linear(16, 4, bias=False), nn.BatchNorm1d(4, affine=False))
        with torch.no_grad():
            for p in model.parameters():
                p.copy_((2 * torch.rand(p.shape, generator=g) - 1) / p.shape[1] ** 0.5)
        return model

    def batch(self, index: torch.Tensor, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        return self.train_x[index], self.train_y[index]

    def test_batch(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.test_x[start:stop], self.test_y[start:stop]

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, labels)

    def correct(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return outputs.argmax(1) == labels


def begin(method_class: type, task: SupervisedTask | None = None, seed: int = 0,
          **params: object) -> tuple[Any, Any, SupervisedTask, Context]:
    """A method before its first step on ``task`` (default: :class:`Blobs`): ``(method, state, task, context)``."""
    ctx, task = Context(torch.device("cpu"), seed), task or Blobs("", SupervisedParams())
    task.setup(ctx)
    method = method_class(parse(method_class.Params, params, method_class.id))
    return method, method.init(task, ctx), task, ctx


def finish(method: Any, state: Any, task: Any, ctx: Context) -> list[dict[str, float]]:
    """Step to the end; the metrics of each step."""
    steps = []
    while method.progress(state).done < method.progress(state).total:
        steps.append(method.step(state, task, ctx))
    return steps


def live(method_class: type, **params: object) -> tuple[Any, Any, dict[str, float], list[dict[str, float]]]:
    """Run a method on :class:`Blobs` to its end: ``(method, state, final evaluation, metrics of each step)``."""
    method, state, task, ctx = begin(method_class, **params)
    steps = finish(method, state, task, ctx)
    return method, state, method.evaluate(state, task, ctx), steps
