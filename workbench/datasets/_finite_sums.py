"""Smooth finite sums ``f(w) = 1/n sum_i phi(s_i(w), y_i) + lambda * sum_j w_j^2 / (1 + w_j^2)`` with their constants.

All functions take points ``w`` of shape ``(..., d)``, so many trajectories are advanced at once. The second summand is
the usual smooth nonconvex regulariser; its second derivative lies in ``[-1/2, 2]`` for each coordinate.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def _squared(s: Tensor, y: Tensor) -> Tensor:
    return (s - y).square() / 2


def _squared_slope(s: Tensor, y: Tensor) -> Tensor:
    return s - y


def _logistic(s: Tensor, y: Tensor) -> Tensor:
    return F.softplus(-y * s)


def _logistic_slope(s: Tensor, y: Tensor) -> Tensor:
    return -y * torch.sigmoid(-y * s)


def _sigmoid(s: Tensor, y: Tensor) -> Tensor:
    return torch.sigmoid(-y * s)


def _sigmoid_slope(s: Tensor, y: Tensor) -> Tensor:
    p = torch.sigmoid(-y * s)
    return -y * p * (1 - p)


# phi, its derivative in s, and the largest |second derivative| over all s
LOSSES = {
    "quadratic": (_squared, _squared_slope, 1.0),
    "logistic": (_logistic, _logistic_slope, 0.25),
    "sigmoid": (_sigmoid, _sigmoid_slope, math.sqrt(3) / 18),
}


class Look(NamedTuple):
    """What is known at a point: the full gradient ``(..., d)``, its squared norm ``(...)`` and the noise of one sample ``(...)``."""

    gradient: Tensor
    norm2: Tensor
    noise: Tensor
    """``1/n sum_i ||grad f_i - grad f||^2``: the trace of the covariance of one sample's gradient."""

    def second_moment(self, batch_size: int) -> Tensor:
        """``E ||g||^2`` of the mean over ``batch_size`` samples drawn with replacement."""
        return self.norm2 + self.noise / batch_size


class FiniteSum:
    """Base: a subclass says how outputs depend on ``w``.

    Args:
        x, y: data ``(n, k)`` and ``(n,)``.
        loss: a key of ``LOSSES``; labels of the logistic and the sigmoid loss are -1 and +1.
        regulariser: ``lambda``, not negative.
    """

    def __init__(self, x: Tensor, y: Tensor, loss: str, regulariser: float = 0.0) -> None:
        self.x, self.y, self.regulariser = x, y, regulariser
        self.phi, self.slope, self.curvature = LOSSES[loss]
        self.loss = loss

    @property
    def dim(self) -> int:
        """Number of weights ``d``."""
        raise NotImplementedError

    @property
    def smoothness(self) -> float | None:
        """A constant ``L`` for which ``grad f`` is L-Lipschitz on all of R^d; ``None`` where none is known in closed form."""
        return None

    @property
    def lower_bound(self) -> float:
        """A number that ``f`` never goes below on R^d."""
        return 0.0

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """``s_i(w)``: ``(..., b)`` for samples ``x`` common to all points ``(b, k)`` or of each point ``(..., b, k)``."""
        raise NotImplementedError

    def pull(self, w: Tensor, x: Tensor, weights: Tensor) -> Tensor:
        """``sum_i weights_i * grad s_i(w)``, ``(..., d)``, for ``weights`` of shape ``(..., b)``."""
        raise NotImplementedError

    def squares(self, w: Tensor, x: Tensor) -> Tensor:
        """``||grad s_i(w)||^2``, broadcastable to ``(..., b)``."""
        raise NotImplementedError

    def value(self, w: Tensor) -> Tensor:
        """``f(w)``, ``(...)``."""
        return self.phi(self.outputs(w, self.x), self.y).mean(-1) + self.regulariser * (
            w.square() / (1 + w.square())
        ).sum(-1)

    def gradient(self, w: Tensor) -> Tensor:
        """``grad f(w)``, ``(..., d)``."""
        return self.signal(w, self.x, self.y)

    def signal(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The gradient on samples ``x, y``: for rows drawn uniformly with replacement an unbiased estimate of the full one."""
        slope = self.slope(self.outputs(w, x), y)
        return self.pull(w, x, slope / y.shape[-1]) + self._push(w)

    def look(self, w: Tensor) -> Look:
        """The full gradient and the exact noise of the samples at ``w``."""
        slope = self.slope(self.outputs(w, self.x), self.y)
        data = self.pull(w, self.x, slope / len(self.y))
        noise = (slope.square() * self.squares(w, self.x)).mean(-1) - data.square().sum(-1)
        gradient = data + self._push(w)
        return Look(
            gradient, gradient.square().sum(-1), noise.clamp_min(0)
        )  # a difference of equals may round below zero

    def _push(self, w: Tensor) -> Tensor:
        return 2 * self.regulariser * w / (1 + w.square()).square()


class LinearSum(FiniteSum):
    """Outputs ``s_i = x_i . w``: least squares, logistic regression, or the nonconvex sigmoid loss."""

    @property
    def dim(self) -> int:
        return self.x.shape[1]

    @property
    def smoothness(self) -> float:
        gram = self.x.T @ self.x / len(self.y)
        return self.curvature * float(torch.linalg.eigvalsh(gram)[-1]) + 2 * self.regulariser

    @property
    def lower_bound(self) -> float:
        if self.loss != "quadratic":
            return 0.0
        best = torch.linalg.lstsq(self.x, self.y[:, None]).solution[:, 0]
        return float(self.phi(self.x @ best, self.y).mean())  # the regulariser is not negative

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        return w @ x.T if x.dim() == 2 else (x @ w[..., None])[..., 0]

    def pull(self, w: Tensor, x: Tensor, weights: Tensor) -> Tensor:
        return weights @ x if x.dim() == 2 else (weights[..., None, :] @ x)[..., 0, :]

    def squares(self, w: Tensor, x: Tensor) -> Tensor:
        return x.square().sum(-1)


class TanhSum(FiniteSum):
    """Outputs of a two-layer network ``s = v . tanh(V x / sqrt(k)) / sqrt(h)``.

    ``w`` holds ``V`` ``(h, k)`` row by row, then ``v`` ``(h,)``.

    With all weights +-1 no layer's outputs depend on its width in scale. No global ``L`` exists in closed form: the
    curvature in ``V`` grows with ``v``.
    """

    def __init__(self, x: Tensor, y: Tensor, hidden: int, loss: str = "quadratic", regulariser: float = 0.0) -> None:
        super().__init__(x, y, loss, regulariser)
        self.hidden = hidden

    @property
    def dim(self) -> int:
        return self.hidden * (self.x.shape[1] + 1)

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        a, v = self._layers(w, x)
        return (a @ v[..., None])[..., 0] / math.sqrt(self.hidden)

    def pull(self, w: Tensor, x: Tensor, weights: Tensor) -> Tensor:
        a, v = self._layers(w, x)
        weights = weights[..., None] / math.sqrt(self.hidden)
        inner = weights * (1 - a.square()) * v[..., None, :] / math.sqrt(x.shape[-1])  # (..., b, h)
        return torch.cat([(inner.transpose(-1, -2) @ x).flatten(-2), (weights * a).sum(-2)], -1)

    def squares(self, w: Tensor, x: Tensor) -> Tensor:
        a, v = self._layers(w, x)
        inner = ((1 - a.square()) * v[..., None, :]).square().sum(-1) * x.square().sum(-1) / x.shape[-1]
        return (inner + a.square().sum(-1)) / self.hidden

    def _layers(self, w: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden units ``(..., b, h)`` and output weights ``(..., h)``."""
        inputs = x.shape[-1]
        first = w[..., : self.hidden * inputs].unflatten(-1, (self.hidden, inputs))
        return torch.tanh(x @ first.transpose(-1, -2) / math.sqrt(inputs)), w[..., self.hidden * inputs :]
