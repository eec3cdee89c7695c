"""E-IGT: the transform with expectations in the place of averages over a graph, and its closed forms on block models.

In a block model a node's neighbours are drawn from all communities in proportions that depend on its own alone. As
degrees grow, averages over neighbours tend to the mixture of community means, and the transform of the graph to that of
the model: its order n of a node of community c is the vector ``S_n(c)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.graphs.igt import cascade


def mixing(sizes: Tensor, probabilities: Tensor, power: int = 1) -> Tensor:
    """Row-stochastic ``(k, k)``: the law of the community that a walk of ``power`` steps ends in.

    It is the limit of the average ``row``. ``sizes`` nodes of the blocks ``(k,)``, ``probabilities`` of an edge ``(k,
    k)``.
    """
    joint = probabilities.double() * sizes.double()
    return torch.linalg.matrix_power(joint / joint.sum(1, keepdim=True), power)


@dataclass(frozen=True)
class CommunityMean:
    """The averaging operator of a block model's expectation: every node gets the mixture of the communities' means."""

    y: Tensor
    """Communities of the samples, int64 ``(n,)``."""
    mixture: Tensor
    """Row-stochastic ``(k, k)``, see :func:`mixing`."""

    def means(self, u: Tensor) -> Tensor:
        """Mixtures ``(k, m)`` of the community means of ``u`` ``(n, m)``."""
        k = len(self.mixture)
        member = torch.nn.functional.one_hot(self.y, k).to(u.dtype)
        return self.mixture.to(u) @ (member.T @ u / member.sum(0)[:, None].clamp_min(1))

    def __call__(self, u: Tensor) -> Tensor:
        return self.means(u)[self.y]


def expected_transform(
    x: Tensor, y: Tensor, mixture: Tensor, filters: Sequence[Tensor], centred: bool = True
) -> list[Tensor]:
    """Orders ``S_0, S_1 …`` of E-IGT, each ``(k, D_n)``, expectations being means over samples.

    ``x`` ``(n, P)`` are the samples, ``y`` ``(n,)`` their communities. They stand for the features' law, independent of
    any graph: give many.
    """
    operator = CommunityMean(y, mixture)
    first = torch.stack([(y == c).nonzero()[0, 0] for c in range(len(mixture))])
    return [s[first] for s in cascade(x, operator, filters, centred)]


def gaussian_orders(
    means: Tensor, covariances: Tensor, mixture: Tensor, w: Tensor, centred: bool = True
) -> tuple[Tensor, Tensor]:
    """Orders 0 ``(k, P)`` and 1 ``(k, K)`` of E-IGT in closed form, for Gaussian features.

    ``means`` of the communities ``(k, P)``, ``covariances`` ``(k, P, P)``, ``mixture`` ``(k, k)`` as of :func:`mixing`.
    Order 1 is the mixture of the expected moduli of ``(x - m_c) w``, ``m_c`` being order 0 of the community.
    """
    mixture, means, covariances, w = (t.double() for t in (mixture, means, covariances, w))
    zero = mixture @ means
    pairs = torch.stack(w.chunk(2, 1), 2)  # (P, K, 2)
    mean = torch.einsum("cp,pkd->ckd", means - zero if centred else means, pairs)
    covariance = torch.einsum("pkd,cpq,qke->ckde", pairs, covariances, pairs)
    return zero, mixture @ expected_modulus(mean, covariance)


def expected_modulus(mean: Tensor, covariance: Tensor, nodes: int = 400) -> Tensor:
    """``E |z|`` of Gaussian vectors of means ``(..., d)`` and covariances ``(..., d, d)``, in float64, ``(...)``.

    By ``E |z| = pi^-1/2 * integral over s > 0 of (1 - E exp(-s^2 |z|^2)) / s^2``, where the inner expectation is a
    product over the principal axes; the integral by the trapezium rule in ``log s``, whose error falls exponentially
    with the number of nodes.
    """
    values, axes = torch.linalg.eigh(covariance.double())
    values = values.clamp_min(0)
    along = (mean.double()[..., None, :] @ axes)[..., 0, :].square()
    size = (values.sum(-1) + along.sum(-1)).sqrt()  # E |z|^2, so that s is of order 1
    unit = torch.where(size > 0, size, 1)[..., None]
    values, along = values / unit**2, along / unit**2
    # s = exp(t), in which the integrand decays as exp(-|t|)
    t = torch.linspace(-18, 18, nodes, dtype=torch.float64, device=values.device)
    s2 = (2 * t).exp()
    widening = 2 * s2[:, None] * values[..., None, :]
    exponent = -0.5 * widening.log1p() - s2[:, None] * along[..., None, :] / (1 + widening)
    integrand = -torch.expm1(exponent.sum(-1)) * (-t).exp()  # ds / s^2 = exp(-t) dt
    # beyond the last node the inner expectation is as at it or less: its tail is that of 1 / s^2
    tail = (-t[-1]).exp() + (t[0]).exp() * (values.sum(-1) + along.sum(-1))
    return (
        (integrand.sum(-1) * (t[1] - t[0]) - 0.5 * (integrand[..., 0] + integrand[..., -1]) * (t[1] - t[0]) + tail)
        * size
        / torch.pi**0.5
    )
