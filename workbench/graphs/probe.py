"""A linear probe: multinomial logistic regression on frozen features, its penalty, and the relative scale of the
features' blocks, chosen on validation nodes.

The problem of scikit-learn's ``LogisticRegression`` (penalty L2, free intercept), for the whole grid of penalties at
once and in torch: a compute node needs nothing else. Features enter through the span of the training rows alone, where
the optimum lies (representer theorem), rotated so that their second moment is diagonal; there L-BFGS (Nocedal, Math.
Comp. 1980) needs some tens of iterations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tracking.errors import UserError
from workbench.graphs.scaling import SCALINGS, block_weights

C_GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Inverse strengths of the penalty; meant for features of spread 1, as :func:`probe_blocks` scales them."""


WIDE = 3000
"""Weights of problems fitted side by side, about: of small ones the number of steps costs, of large ones their length."""


@dataclass(frozen=True)
class Probe:
    """A fitted probe at the best scaling and penalty."""

    c: float
    weight: Tensor
    """float64 ``(D, classes)``."""
    bias: Tensor
    classes: Tensor
    """The labels that train, in the order of the columns."""
    val_accuracy: float
    test_accuracy: float
    grid: dict[float, float]
    """Validation accuracy of every penalty, with the chosen scaling."""
    scaling: str = ""
    """How the blocks were scaled; ``weight`` is for features as they are."""

    def predict(self, features: Tensor) -> Tensor:
        """Labels of features ``(n, D)``."""
        return self.classes[(features.to(self.weight.dtype) @ self.weight + self.bias).argmax(1)]


def linear_probe(
    features: Tensor, y: Tensor, train: Tensor, val: Tensor, test: Tensor, grid: Sequence[float] = C_GRID
) -> Probe:
    """Fit on the nodes ``train``, choose among ``grid`` by accuracy on ``val``, of equals by cross-entropy there, and
    measure on ``test``.

    ``features`` ``(N, D)``, taken as they are; ``y`` int64 ``(N,)``, masks bool ``(N,)``. A value ``c`` of the grid
    stands for the objective ``c * sum of cross-entropies + |weight|^2 / 2``. Raises
    :class:`tracking.errors.UserError` for features that are not finite.
    """
    return _best([features], {"": [1.0]}, y, train, val, test, grid)


def probe_blocks(
    blocks: Sequence[Tensor],
    y: Tensor,
    train: Tensor,
    val: Tensor,
    test: Tensor,
    grid: Sequence[float] = C_GRID,
    scalings: Sequence[str] = SCALINGS,
) -> Probe:
    """:func:`linear_probe` on blocks ``(N, D_b)`` side by side, their scaling chosen on ``val`` together with the penalty.

    The scalings are those of :func:`workbench.graphs.scaling.block_weights`. Of a single block all are the same.
    """
    if not scalings:
        raise UserError("The probe has no scaling of blocks to choose from; name at least one.")
    weights = {name: block_weights(blocks, name) for name in (scalings if len(blocks) > 1 else scalings[:1])}
    return _best(blocks, weights, y, train, val, test, grid)


def _best(
    blocks: Sequence[Tensor],
    scalings: Mapping[str, Sequence[float]],
    y: Tensor,
    train: Tensor,
    val: Tensor,
    test: Tensor,
    grid: Sequence[float],
) -> Probe:
    """The probe of the scaling and penalty that are best on the validation nodes."""
    if not grid or min(grid) <= 0:
        raise UserError(f"The probe's grid of penalties is {tuple(grid)!r}; it needs at least one value, all positive.")
    inputs, valued, tested = (torch.cat([b[mask].double() for b in blocks], 1) for mask in (train, val, test))
    if not inputs.isfinite().all():
        raise UserError(
            "The features are not finite (NaN or infinity), so no probe can be fitted. Did the method diverge?"
        )
    classes, target = y[train].unique(return_inverse=True)
    cs = torch.tensor(sorted(grid), dtype=torch.float64, device=inputs.device)
    widths = torch.tensor([b.shape[1] for b in blocks], device=inputs.device)
    fits = []
    for name, weights in scalings.items():
        scale = inputs.new_tensor(weights).repeat_interleave(widths)
        w, b, accuracies, surprise = _fitted(inputs * scale, target, classes, valued * scale, y[val], cs)
        at = int(torch.where(accuracies == accuracies.max(), surprise, torch.inf).argmin())
        rank = (-accuracies[at].item(), surprise[at].item())
        fits.append((rank, at, name, scale[:, None] * w[:, at], b[at], accuracies))
    _, at, name, weight, bias, accuracies = min(fits, key=lambda fit: fit[0])
    right = classes[(tested @ weight + bias).argmax(1)] == y[test]
    table = dict(zip(cs.tolist(), accuracies.tolist(), strict=True))
    c = cs[at].item()
    return Probe(c, weight, bias, classes, table[c], right.double().mean().item(), table, name)


def _fitted(
    x: Tensor, target: Tensor, classes: Tensor, val_x: Tensor, val_y: Tensor, cs: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights ``(D, G, classes)``, intercepts ``(G, classes)``, validation accuracy and cross-entropy ``(G,)``."""
    mean = x.mean(0)
    z, back = principal_coordinates(x - mean)
    w, b = fit_grid(z, target, len(classes), cs)
    out = torch.einsum("nr,rgk->ngk", (val_x - mean) @ back, w) + b  # (nodes, penalties, classes)
    right = classes == val_y[:, None]
    accuracies = right.gather(1, out.argmax(2)).double().mean(0)
    # of equals the one that is surest of what is right; a class that does not train is foretold by none
    surprise = -(out.log_softmax(2) * right[:, None]).sum(2).mean(0)
    weight = torch.einsum("dr,rgk->dgk", back, w)
    return weight, b - torch.einsum("d,dgk->gk", mean, weight), accuracies, surprise


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
    """Weights ``(r, G, classes)`` and intercepts ``(G, classes)`` for the penalties ``cs`` ``(G,)``, ascending.

    Inputs ``z`` ``(n, r)`` are of mean 0. Ends when no derivative in the scaled variables is above ``tol`` of the
    objective. Neighbours in the grid are fitted side by side: they need about as many steps.
    """
    together = max(3, WIDE // max(1, z.shape[1] * num_classes))
    fits = [_fit_together(z, target, num_classes, part, tol, steps) for part in cs.split(together)]
    w, b = (torch.cat(parts, dim) for parts, dim in zip(zip(*fits, strict=True), (1, 0), strict=True))
    return w, b


def _fit_together(
    z: Tensor, target: Tensor, num_classes: int, cs: Tensor, tol: float, steps: int
) -> tuple[Tensor, Tensor]:
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
    memory: int = 5,
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
