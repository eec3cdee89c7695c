"""The convergence bound of Boolean optimisation, term by term, with the constants that it needs.

L. Leconte, "Boolean Logic as an Error feedback mechanism", arXiv:2401.16418; with all assumptions and the whole proof
in Nguyen et al., "BOLD: Boolean Logic Deep Learning", NeurIPS 2024, arXiv:2405.16339, Theorem 3.17 and appendix A.2
(numbers below are the latter's)::

    1/T sum_t E||grad f(w_t)||^2  <=  2 (f(w_0) - f_*) / (T eta)  +  2 L sigma^2 eta  +  C eta^2  +  floor

**What is printed does not agree.** With the proof's ``rho = beta = 1`` its steps give

    eta/2 E||grad f(w_t)||^2 <= E[f(x_t) - f(x_{t+1})] + eta L^2/2 E||e_t||^2 + L E||h_t||^2 + L eta^2 sigma^2,

and division by ``eta/2`` gives the *derived* form here: ``floor = 2 L d kappa`` and
``C = 2 (1 + gamma) gamma L^2 sigma^2 / (1 - gamma)^2``.

- Floor. Lemma A.10 has ``E||h_t||^2 <= eta d kappa``, the proof's last but one line a quarter of it. So the theorem and
  the proof's last line print ``L d kappa / 2``; the sentence below the theorem has ``2 L d kappa``. The lemma is
  attained (one weight, ``m = 1``), so its quarter is no consequence of the assumptions.
- C. Lemma A.9 prints ``2 gamma eta^2 sigma^2 / (1 - gamma)^2``; its proof gives ``1 + gamma`` times that (its beta makes
  ``1 + 1/beta = (1 + gamma) / (1 - gamma)``), and a constant signal exceeds the printed one. The theorem's
  ``C = 4 gamma ...`` is right: it bounds ``1 + gamma`` by 2.

Arguments are numbers or NumPy arrays that broadcast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

Form = Literal["derived", "printed"]
FLOOR_FACTOR: dict[str, float] = {"derived": 2.0, "printed": 0.5}


@dataclass(frozen=True)
class Constants:
    """What the theorem is stated in.

    ``smoothness``: L of A.2. ``sigma2``: bound of the second moment of the signal, A.3 (called a variance there).
    ``gamma``: contraction of the compressor, A.4. ``kappa``: largest ``|m| / eta``, A.5. ``dim``: number of weights d.
    ``eta``: accumulation factor. ``gap``: ``f(w_0) - f_*``.
    """

    smoothness: Any
    sigma2: Any
    gamma: Any
    kappa: Any
    dim: int
    eta: Any
    gap: Any


def terms(c: Constants, T: Any, form: Form = "derived") -> dict[str, Any]:
    """The four terms of the bound after ``T`` steps, by name: ``start, noise, error, floor``.

    The error term is infinite for ``gamma = 1``, and NaN where gamma is.
    """
    error2 = error_bound(c) if form == "derived" else 2 * lemma_a9(c)
    return {
        "start": 2 * c.gap / (T * c.eta) + 0 * c.sigma2,
        "noise": 2 * c.smoothness * c.sigma2 * c.eta + 0 * T,
        "error": c.smoothness**2 * error2 + 0 * T,
        "floor": FLOOR_FACTOR[form] * c.smoothness * c.dim * c.kappa + 0 * T,
    }


def bound(c: Constants, T: Any, form: Form = "derived") -> Any:
    """The right-hand side: the sum of :func:`terms`."""
    return sum(terms(c, T, form).values())


def error_bound(c: Constants) -> Any:
    """What the proof of lemma A.9 gives: ``E||e_t||^2 <= 2 gamma (1 + gamma) eta^2 sigma^2 / (1 - gamma)^2``."""
    return (1 + c.gamma) * lemma_a9(c)


def lemma_a9(c: Constants) -> Any:
    """Lemma A.9 as printed, ``2 gamma eta^2 sigma^2 / (1 - gamma)^2``."""
    gamma = np.asarray(c.gamma, float)
    with np.errstate(divide="ignore"):
        return (2 * gamma * c.eta**2 * c.sigma2 / (1 - gamma) ** 2)[()]


def rounding_bound(c: Constants) -> Any:
    """Lemma A.10: ``E||h_t||^2 <= eta d kappa``."""
    return c.eta * c.dim * c.kappa


def least_floor(c: Constants) -> Any:
    """What the floor cannot go below: a weight flips where ``|m| >= 1``, so any flip makes ``kappa >= 1 / eta`` (our remark)."""
    return FLOOR_FACTOR["derived"] * c.smoothness * c.dim / c.eta


def before_lemmas(c: Constants, T: Any, error2: Any, rounding2: Any) -> Any:
    """The proof's inequality with the means over steps of ``||e_t||^2`` and ``||h_t||^2`` as measured, instead of the lemmas.

    It needs A.1 to A.3 and A.6 only, and an accumulator that is not clipped: clipping takes mass away that the proof
    keeps.
    """
    return (
        2 * c.gap / (T * c.eta)
        + 2 * c.smoothness * c.sigma2 * c.eta
        + c.smoothness**2 * error2
        + 2 * c.smoothness / c.eta * rounding2
    )


# --- smoothness ---------------------------------------------------------------------------------------------


class Problem(Protocol):
    """A function with a gradient, whose smoothness may be known."""

    smoothness: float | None

    def gradient(self, w: Tensor) -> Tensor: ...


def hessian_norm(gradient: Callable[[Tensor], Tensor], w: Tensor, iterations: int = 50, seed: int = 0) -> Tensor:
    """Spectral norm of the Hessian at each point ``w`` ``(..., d)`` by power iteration on Hessian-vector products; ``(...)``.

    ``gradient`` maps points to gradients of the same shape, each point on its own. The products are exact (automatic
    differentiation), so the result is never above the norm, up to rounding, and grows towards it with ``iterations``.
    """
    v = torch.randn(w.shape, generator=torch.Generator().manual_seed(seed), dtype=w.dtype).to(w.device)
    norm = torch.zeros(w.shape[:-1], dtype=w.dtype, device=w.device)
    with torch.enable_grad():
        leaf = w.detach().requires_grad_()
        slopes = gradient(leaf)
    for _ in range(iterations):
        v = v / v.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
        (v,) = torch.autograd.grad(slopes, leaf, v, retain_graph=True)  # a Hessian is symmetric
        norm = torch.maximum(norm, v.norm(dim=-1))  # of a unit vector's image: a lower bound at every iteration
    return norm


def smoothness_of(
    problem: Problem, dim: int, radius: float, points: int = 100, iterations: int = 30, seed: int = 0
) -> float:
    """``L`` of a problem: its own constant, or else the largest Hessian norm at points of the cube ``[-radius, radius]^d``.

    Half of the points are corners of the inner cube, where the gradients are taken, half are drawn between. The
    estimate is from below.
    """
    if problem.smoothness is not None:
        return problem.smoothness
    w = 2 * torch.rand(points, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1
    w = torch.cat([torch.where(w[::2] < 0, -1.0, 1.0).double(), radius * w[1::2]])
    return float(hessian_norm(problem.gradient, w, iterations, seed).max())


# --- rates --------------------------------------------------------------------------------------------------


def exponent(x: Any, y: Any) -> float:
    """Slope of ``log y`` against ``log x`` by least squares: ``p`` of ``y = c x^p``. All values must be positive."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.shape != y.shape or x.size < 2 or (x <= 0).any() or (y <= 0).any():
        raise ValueError("exponent needs two or more pairs of positive numbers.")
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
