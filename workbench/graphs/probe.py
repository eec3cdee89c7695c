"""A linear probe: multinomial logistic regression on frozen features, its penalty chosen on validation nodes.

The problem of scikit-learn's ``LogisticRegression`` (penalty L2, free intercept), for the whole grid of penalties at
once and in torch: a compute node needs nothing else. Features enter through the span of the training rows alone, where
the optimum lies (representer theorem), rotated so that their second moment is diagonal; there L-BFGS (Nocedal, Math.
Comp. 1980) needs some tens of iterations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tracking.errors import UserError

C_GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Inverse strengths of the penalty; meant for features that :func:`scale_blocks` has scaled."""


@dataclass(frozen=True)
class Probe:
    """A fitted probe at the best penalty."""

    c: float
    weight: Tensor
    """float64 ``(D, classes)``."""
    bias: Tensor
    classes: Tensor
    """The labels that train, in the order of the columns."""
    val_accuracy: float
    test_accuracy: float
    grid: dict[float, float]
    """Validation accuracy of every penalty."""

    def predict(self, features: Tensor) -> Tensor:
        """Labels of features ``(n, D)``."""
        return self.classes[(features.to(self.weight.dtype) @ self.weight + self.bias).argmax(1)]


def scale_blocks(blocks: Sequence[Tensor]) -> Tensor:
    """The blocks ``(N, D_b)`` side by side, each divided by the root mean square of its deviations from feature means.

    One number a block, so that rare features stay small. Means do not count: the probe's intercept takes them up, and
    moduli vary little around large ones. A block of constants stays as it is.
    """
    spreads = [_spread(b) for b in blocks]
    return torch.cat([b / s if s > 1e-12 else b for b, s in zip(blocks, spreads, strict=True)], 1)


def _spread(block: Tensor) -> float:
    mean = block.mean(0, dtype=torch.float64)
    total = sum((part - mean).square().sum() for part in block.split(65_536))  # float64, a part at a time
    return (total / block.numel()).sqrt().item()


def linear_probe(
    features: Tensor, y: Tensor, train: Tensor, val: Tensor, test: Tensor, grid: Sequence[float] = C_GRID
) -> Probe:
    """Fit on the nodes ``train``, choose among ``grid`` by accuracy on ``val``, of equals by cross-entropy there, and
    measure on ``test``.

    ``features`` ``(N, D)``, ``y`` int64 ``(N,)``, masks bool ``(N,)``. A value ``c`` of the grid stands for the
    objective ``c * sum of cross-entropies + |weight|^2 / 2``. Raises :class:`tracking.errors.UserError` for features
    that are not finite.
    """
    if not grid or min(grid) <= 0:
        raise UserError(f"The probe's grid of penalties is {tuple(grid)!r}; it needs at least one value, all positive.")
    x = features[train].double()
    if not x.isfinite().all():
        raise UserError(
            "The features are not finite (NaN or infinity), so no probe can be fitted. Did the method diverge?"
        )
    classes, target = y[train].unique(return_inverse=True)
    mean = x.mean(0)
    z, back = principal_coordinates(x - mean)
    cs = torch.tensor(sorted(grid), dtype=torch.float64, device=x.device)
    w, b = fit_grid(z, target, len(classes), cs)
    val_z = (features[val].double() - mean) @ back
    out = torch.einsum("nr,rgk->ngk", val_z, w) + b  # (nodes, penalties, classes)
    right = classes == y[val][:, None]
    accuracies = right.gather(1, out.argmax(2)).double().mean(0)
    # of equals the one that is surest of what is right; a class that does not train is foretold by none
    surprise = -(out.log_softmax(2) * right[:, None]).sum(2).mean(0)
    best = int(torch.where(accuracies == accuracies.max(), surprise, torch.inf).argmin())
    weight = back @ w[:, best]
    bias = b[best] - mean @ weight
    right = classes[(features[test].double() @ weight + bias).argmax(1)] == y[test]
    return Probe(
        cs[best].item(),
        weight,
        bias,
        classes,
        accuracies[best].item(),
        right.double().mean().item(),
        dict(zip(cs.tolist(), accuracies.tolist(), strict=True)),
    )


def principal_coordinates(x: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates ``z = x @ back`` ``(n, r)`` with a diagonal second moment, and ``back`` ``(D, r)`` with orthonormal
    columns.

    ``r`` is the numerical rank. Of the two Gram matrices the smaller is decomposed.
    """
    n, dim = x.shape
    if n < dim:
        values, left = torch.linalg.eigh(x @ x.T)
        keep = values > values[-1].clamp_min(0) * 1e-13 * n
        root = values[keep].sqrt()
        return left[:, keep] * root, x.T @ (left[:, keep] / root)
    values, right = torch.linalg.eigh(x.T @ x)
    right = right[:, values > values[-1].clamp_min(0) * 1e-13 * n]
    return x @ right, right


def fit_grid(
    z: Tensor, target: Tensor, num_classes: int, cs: Tensor, tol: float = 1e-7, steps: int = 500
) -> tuple[Tensor, Tensor]:
    """Weights ``(r, G, classes)`` and intercepts ``(G, classes)`` for the penalties ``cs`` ``(G,)``.

    Inputs ``z`` ``(n, r)`` are of mean 0. Ends when no derivative in the scaled variables is above ``tol`` of the
    objective.
    """
    n, r = z.shape
    one_hot = F.one_hot(target, num_classes).to(z.dtype)[:, None]
    # scaled variables: the curvature at equal probabilities is 1 in every direction, for every penalty
    share = (1 - 1 / num_classes) / num_classes if num_classes > 1 else 1.0
    scale = torch.cat([cs * z.square().sum(0)[:, None] * share + 1, (cs * n * share)[None]]).rsqrt()[..., None]
    inputs = torch.cat([z, z.new_ones(n, 1)], 1)
    penalised = torch.cat([z.new_ones(r), z.new_zeros(1)])[:, None, None]

    def logits(v: Tensor) -> Tensor:
        return (inputs @ (scale * v).flatten(1)).view(n, len(cs), num_classes)

    def value(v: Tensor, out: Tensor) -> Tensor:
        losses = (out.logsumexp(2) - (out * one_hot).sum(2)).sum(0)
        return cs * losses + 0.5 * (penalised * (scale * v).square()).sum((0, 2))

    def gradient(v: Tensor, out: Tensor) -> Tensor:
        inner = (inputs.T @ (out.softmax(2) - one_hot).flatten(1)).view(v.shape)
        return scale * (cs[:, None] * inner + penalised * scale * v)

    w = scale * lbfgs(logits, value, gradient, z.new_zeros(r + 1, len(cs), num_classes), tol, steps)
    return w[:-1], w[-1]


def lbfgs(
    logits: Callable[[Tensor], Tensor],
    value: Callable[[Tensor, Tensor], Tensor],
    gradient: Callable[[Tensor, Tensor], Tensor],
    v: Tensor,
    tol: float,
    steps: int,
    memory: int = 10,
) -> Tensor:
    """Minimise convex functions of ``v[:, g]``, independent of each other, side by side from ``v`` ``(m, G, k)``.

    ``value(v, logits(v))`` is ``(G,)``, ``gradient(v, logits(v))`` like ``v``. ``logits`` is linear, so that a step's
    length is sought without another product.
    """
    out = logits(v)
    f, g = value(v, out), gradient(v, out)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(steps):
        active = g.abs().amax((0, 2)) > tol * (1 + f)
        if not active.any():
            break
        direction = -two_loops(g, pairs) * active[:, None]
        slope, change = _dot(g, direction), logits(direction)
        length = active.to(v.dtype)
        for _ in range(30):  # Armijo
            new = value(v + length[:, None] * direction, out + length[:, None] * change)
            long = active & (new > f + 1e-4 * length * slope)
            if not long.any():
                break
            length = torch.where(long, 0.5 * length, length)
        else:  # no descent left that float64 can see
            length = torch.where(long, 0, length)
        if not length.any():
            break
        moved = length[:, None] * direction
        v, out = v + moved, out + length[:, None] * change
        before, f, g = g, value(v, out), gradient(v, out)
        turn = g - before
        curvature = _dot(moved, turn)
        # a pair of a problem that rests, or whose curvature rounding has eaten, must change nothing
        pairs = [*pairs[1 - memory :], (moved, turn, torch.where(curvature > 0, 1 / curvature, 0).nan_to_num(posinf=0))]
    return v


def two_loops(g: Tensor, pairs: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The inverse Hessian of the pairs (step, turn of the gradient, 1 / their product) times ``g``."""
    alphas = []
    for s, y, rho in reversed(pairs):
        alphas.append(rho * _dot(s, g))
        g = g - alphas[-1][:, None] * y
    if pairs:
        s, y, rho = pairs[-1]
        g = g * torch.where(rho > 0, _dot(s, y) / _dot(y, y), 1)[:, None]
    for (s, y, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        g = g + s * (alpha - rho * _dot(y, g))[:, None]
    return g


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of each problem's variables, ``(G,)``."""
    return (a * b).sum((0, 2))
