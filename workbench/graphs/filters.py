"""Complex filters on node features, real matrices ``[Re | Im]`` ``(P, 2K)``, and how they are learnt without labels.

An isometry has orthonormal rows (``2K >= P``: norms are kept) or, with fewer filters, orthonormal columns (norms do not
grow). Learning maximises energy that averaging leaves of the moduli. The constraint on W follows E. Oyallon,
"Interferometric Graph Transform", ICML 2020 (arXiv:2006.05722), whose loss counts all of that energy, ``|A |Y W|
|_F^2`` (objective ``energy``). Its constant part, the mean over all nodes, tells no community from another, and it
works against what does: where neighbourhoods mix communities, moduli of unequal means lose energy and moduli of one
mean do not, so the most energy is kept by filters that all communities answer alike. Objective ``variation``, ours,
counts what is left when the mean over nodes is taken off, ``|(I - 1 1^T / N) A |Y W| |_F^2``.

With averages of non-negative entries the first is a convex function of W, and ``mm`` climbs: it takes the isometry that
maximises the tangent at the present one, found by the polar decomposition of the gradient (minorise-maximise; Journée,
Nesterov, Richtárik & Sepulchre, JMLR 2010). ``pgd`` makes a gradient step, projects, and climbs always.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tracking.errors import unknown

CONSTRAINTS = ("isometry", "contraction", "rows")
CHUNK_BYTES = 2**28
"""What the moduli and their filtered signals of one slice of filters may take."""
ROWS = 8192
"""Nodes whose moduli are taken at a time: their filtered signals stay in the cache."""

Gram = Callable[[Tensor], Tensor]


def modulus(z: Tensor) -> Tensor:
    """Moduli ``(N, K)`` of complex numbers ``[Re | Im]`` ``(N, 2K)``."""
    real, imaginary = z.chunk(2, 1)
    return (real.square() + imaginary.square()).sqrt_()


def moduli(y: Tensor, w: Tensor) -> Tensor:
    """``|y W|`` ``(N, K)`` of signals ``y`` ``(N, P)``."""
    out = y.new_empty(len(y), w.shape[1] // 2)
    for rows, signals in zip(out.split(ROWS), y.split(ROWS), strict=True):
        rows.copy_(modulus(signals @ w))
    return out


def energy_gradient(y: Tensor, w: Tensor, gram: Gram) -> tuple[float, Tensor]:
    """``f(W) = |A |yW| |_F^2`` and its gradient ``(P, 2K)``; ``gram`` is A^T A, of an average or of another operator.

    The gradient is ``2 y^T (Z * B / |Z|)`` with ``Z = yW`` and ``B = A^T A |Z|``; where ``Z`` is 0 it is a subgradient.
    Two products with ``y`` and two averages; filters are taken in slices, so that the memory is that of ``y`` and of
    :data:`CHUNK_BYTES`.
    """
    k = w.shape[1] // 2
    width = max(8, CHUNK_BYTES // (3 * y.element_size() * len(y)))
    gradient, energy = torch.empty_like(w), torch.zeros((), dtype=torch.float64, device=w.device)
    for first in range(0, k, width):
        part = slice(first, min(first + width, k))
        columns = slice(k + part.start, k + part.stop)
        z = y @ torch.cat([w[:, part], w[:, columns]], 1)
        size = modulus(z)
        smooth = gram(size)
        energy += _long_dot(size, smooth)
        ratio = smooth.div_(size).masked_fill_(size == 0, 0)
        real, imaginary = z.chunk(2, 1)
        real.mul_(ratio)
        imaginary.mul_(ratio)
        gradient[:, part], gradient[:, columns] = (y.T @ z).mul_(2).chunk(2, 1)
    return energy.item(), gradient


def _long_dot(a: Tensor, b: Tensor) -> Tensor:
    """The product of two tables summed in float64: a float32 sum of 10^8 terms loses digits."""
    return torch.stack(
        [(p * q).sum(dtype=torch.float64) for p, q in zip(a.split(ROWS), b.split(ROWS), strict=True)]
    ).sum()


# --- constraints --------------------------------------------------------------------------------------------


def polar(g: Tensor) -> Tensor:
    """The matrix with orthonormal rows (or columns, if these are fewer) nearest to ``g``: ``U V^T`` of its SVD.

    In float64, by the inverse root of the smaller Gram matrix, which is three times as quick as the SVD, and one
    Newton-Schulz step, which squares what is left of the error; by the SVD where ``g`` is near to losing rank.
    """
    wide = g.double()
    if wide.shape[0] > wide.shape[1]:
        return polar(wide.T).T.to(g.dtype)
    values, vectors = torch.linalg.eigh(wide @ wide.T)
    if values[0] > 1e-9 * values[-1]:
        near = (vectors * values.rsqrt()) @ (vectors.T @ wide)
        return (1.5 * near - 0.5 * (near @ near.T) @ near).to(g.dtype)
    u, _, vh = torch.linalg.svd(wide, full_matrices=False)
    return (u @ vh).to(g.dtype)


def project(w: Tensor, constraint: str) -> Tensor:
    """The nearest matrix ``(P, 2K)`` that is

    - ``isometry``: with orthonormal rows, or columns if these are fewer,
    - ``contraction``: with singular values of at most 1,
    - ``rows``: with rows of norm at most 1, the rule of the 2020 paper for each frequency, here for each feature.
    """
    if constraint == "isometry":
        return polar(w)
    if constraint == "contraction":
        u, s, vh = torch.linalg.svd(w.double(), full_matrices=False)
        return ((u * s.clamp_max(1)) @ vh).to(w.dtype)
    if constraint == "rows":
        return w / w.norm(dim=1, keepdim=True).clamp_min(1)
    raise unknown("constraint", constraint, CONSTRAINTS)


def farthest(g: Tensor, constraint: str) -> Tensor:
    """The allowed matrix with the largest inner product with ``g``."""
    if constraint in ("isometry", "contraction"):
        return polar(g)
    if constraint == "rows":
        size = g.norm(dim=1, keepdim=True)
        return g / torch.where(size > 0, size, 1)
    raise unknown("constraint", constraint, CONSTRAINTS)


def violation(w: Tensor, constraint: str) -> float:
    """By how much ``w`` breaks its constraint: the largest entry of ``W W^T - I`` (or of ``W^T W - I``), or a norm's
    excess over 1.
    """
    w = w.double()
    if constraint == "isometry":
        gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
        return (gram - torch.eye(len(gram), dtype=w.dtype, device=w.device)).abs().max().item()
    size = torch.linalg.svdvals(w) if constraint == "contraction" else w.norm(dim=1)
    return max(size.max().item() - 1, 0.0)


def random_filters(inputs: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` random complex filters, an isometry ``(inputs, 2 count)`` in float64, drawn on the generator's
    device.
    """
    return polar(torch.randn(inputs, 2 * count, generator=generator, dtype=torch.float64, device=generator.device))


# --- solvers ------------------------------------------------------------------------------------------------


def mm_step(gradient: Tensor, constraint: str) -> Tensor:
    """The next filters from the gradient at the present ones; the energy does not fall where 𝒜 has no negative
    entry.
    """
    return farthest(gradient, constraint)


def curvature(y: Tensor) -> float:
    """The largest curvature of ``|yW|_F^2`` as a function of W: what steps of :func:`pgd_step` are measured in."""
    return 2 * torch.linalg.eigvalsh((y.T @ y).double())[-1].item()


def pgd_step(
    y: Tensor, w: Tensor, energy: float, gradient: Tensor, gram: Gram, constraint: str, step: float
) -> tuple[Tensor, float, Tensor, float]:
    """One projected gradient step, cut to a quarter until the energy does not fall; returns filters, energy and gradient
    there, and the step taken.

    If nothing is gained however small the step, the filters stay and the step returned is 0.
    """
    for _ in range(20):
        new = project(w + step * gradient, constraint)
        found, slope = energy_gradient(y, new, gram)
        if found >= energy:
            return new, found, slope, step
        step /= 4
    return w, energy, gradient, 0.0
