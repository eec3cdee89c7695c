"""How much work a contact finds, and the weights that undo the clients' speed.

FAVAS (Leconte, Nguyen & Moulines, arXiv:2305.16099) contacts a client after ``G ~ Geometric(s/n)`` server steps of
length D; ``E`` is the number of gradient steps it could do meanwhile, ``E ^ K`` what it did. FedFix and the scheme
weights are those of Fraboni, Vidal, Kameni & Lorenzi (arXiv:2206.10189).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import numpy as np

from tracking.errors import UserError, unknown
from workbench.federation.clock import TIE, Law, Speeds
from workbench.federation.timeline import Trace

Alpha = Literal["stochastic", "deterministic", "estimated"]
Scheme = Literal["fedavg", "async", "fedfix", "fedbuff"]


class Moments(NamedTuple):
    """What the theory needs of the law of ``E ^ K``: numbers, or (n,) arrays over clients."""

    mean: np.ndarray
    """E[E ^ K]."""
    positive: np.ndarray
    """P(E > 0)."""
    second: np.ndarray
    """E[(E ^ K)^2]."""
    inverse: np.ndarray
    """E[1{E > 0} / (E ^ K)]."""


def work_law(law: Law, mean: float, *, p: float, D: float, K: int) -> np.ndarray:
    """Law of ``E ^ K`` at a contact, (K+1,): the probabilities of 0..K steps, without truncation.

    With exponential (geometric) step times of the given ``mean``, a server step of length D (whole, for geometric)
    adds a Poisson (binomial) number of steps, of law q, independent of the others. A contact ends the gap with
    probability p after each server step, so the law f of E solves ``f = p q + (1 - p) q * f`` (``*``: convolution).
    Fixed step times: E counts whole steps in the gap.
    """
    if not 0 < p <= 1 or not D > 0 or K < 1 or not mean > 0:
        raise UserError("The law of E ^ K needs 0 < p <= 1, D > 0, K >= 1 and mean > 0; "
                        f"given p={p:g}, D={D:g}, K={K}, mean={mean:g}.")
    k = np.arange(K + 1)
    if law == "fixed":
        least = np.maximum(np.ceil(k * mean / D * (1 - TIE)), 1)  # server steps in which k steps fit
        at_least = (1 - p) ** (least - 1)
        return at_least - np.append(at_least[1:], 0.0)
    if law == "exponential":
        x = D / mean
        q = np.exp(k * math.log(x) - x - np.cumsum(np.log(np.maximum(k, 1))))
    elif law == "geometric":
        if not float(D).is_integer() or mean < 1:
            raise UserError("Geometric step times are whole units: D must be whole and the mean at least 1; "
                            f"given D={D:g}, mean={mean:g}.")
        q = np.array([_binomial(int(D), 1 / mean, int(j)) for j in k])
    else:
        raise unknown("law with a closed form", law, ("exponential", "geometric", "fixed"))
    f = np.zeros(K + 1)
    for j in range(K):
        f[j] = (p * q[j] + (1 - p) * q[1:j + 1] @ f[:j][::-1]) / (1 - (1 - p) * q[0])
    f[K] = max(1 - f[:K].sum(), 0.0)
    return f


def _binomial(trials: int, success: float, j: int) -> float:
    if j > trials or success == 1:
        return float(j == trials)
    ways = math.lgamma(trials + 1) - math.lgamma(j + 1) - math.lgamma(trials - j + 1)
    return math.exp(ways + j * math.log(success) + (trials - j) * math.log1p(-success))


def moments(law: np.ndarray) -> Moments:
    """Moments of a law of ``E ^ K`` on 0..K, (..., K+1) probabilities."""
    k = np.arange(law.shape[-1])
    return Moments(law @ k, law[..., 1:].sum(-1), law @ k**2, law[..., 1:] @ (1 / k[1:]))


def client_moments(speeds: Speeds, *, selected: int, K: int, D: float) -> Moments:
    """Moments of ``E ^ K`` by client, (n,) each: ``selected`` of n clients, all present, are contacted each D units."""
    if not 1 <= selected <= speeds.n:
        raise UserError(f"selected is 1..n; given {selected} with n = {speeds.n} clients.")
    if speeds.law == "recorded":
        raise UserError("Measured step times have no closed form: take measured_moments of a trace, or the estimate.")
    means, which = np.unique(speeds.mean, return_inverse=True)
    law = np.stack([work_law(speeds.law, m, p=selected / speeds.n, D=D, K=K) for m in means])
    return Moments(*(column[which] for column in moments(law)))


def client_constants(speeds: Speeds, n: int, selected: int, K: int, D: float) -> tuple[np.ndarray, np.ndarray]:
    """``E[E_i ^ K]`` and ``P(E_i > 0)`` by client, (n,) each."""
    if n != speeds.n:
        raise UserError(f"There are speeds of {speeds.n} clients, and n = {n}.")
    m = client_moments(speeds, selected=selected, K=K, D=D)
    return m.mean, m.positive


def mean_steps_in_continuous_time(rate: float, *, p: float, D: float, K: int) -> float:
    """``E[E ^ K]`` if contacts come as a Poisson process of rate ``p / D``, an approximation: E is geometric then."""
    r = rate / (rate + p / D)
    return r * (1 - r**K) / (1 - r)


def measured_moments(trace: Trace) -> Moments:
    """Moments of the work that a trace shows, by client; ``nan`` for a client without a contact."""
    count = trace.deliveries()
    steps = trace.steps.astype(float)
    positive = steps > 0
    values = (steps, positive, steps**2, positive / np.maximum(steps, 1))
    total = (np.bincount(trace.client, v, trace.n) for v in values)
    return Moments(*(np.divide(t, count, out=np.full(trace.n, np.nan), where=count > 0) for t in total))


def online_mean_steps(trace: Trace, floor: float = 1e-3) -> np.ndarray:
    """(C,) mean of ``E ^ K`` over the client's contacts so far, this one included, at least ``floor``.

    Our choice for clients whose speed nobody knows. Without this contact the first one has no estimate, and a client
    that had no step yet and then has one makes a huge update.
    """
    order = np.argsort(trace.client, kind="stable")
    total = trace.steps[order].cumsum()
    seen = trace.contact[order] + 1
    before = (total - trace.steps[order])[np.arange(len(order)) - trace.contact[order]]
    mean = np.empty(len(order))
    mean[order] = (total - before) / seen
    return np.maximum(mean, floor)


def alpha(kind: Alpha, trace: Trace, law: Moments | None = None) -> np.ndarray:
    """(C,) re-weighting factors of FAVAS: a client delivers ``w_init + (w - w_init) / alpha``.

    ``stochastic``: ``P(E > 0) (E ^ K)``, and ``inf`` without a step, which delivers ``w_init`` (0/0 := 0, our
    convention).
    ``deterministic``: ``E[E ^ K]``. ``estimated``: :func:`online_mean_steps`.

    ``law``: moments by client, of :func:`client_moments` or :func:`measured_moments`; the estimate needs none.
    """
    if kind not in get_args(Alpha):
        raise unknown("re-weighting", kind, get_args(Alpha))
    if kind == "estimated":
        return online_mean_steps(trace)
    if law is None:
        raise UserError(f"The {kind} re-weighting needs the moments of E ^ K: client_moments or measured_moments.")
    worked = trace.steps > 0
    constant = np.asarray(law.positive if kind == "stochastic" else law.mean)[trace.client]
    if (worked & ~(constant > 0)).any():
        raise UserError("A client that worked has P(E > 0) = 0 or none: the moments must belong to this trace.")
    return np.where(worked, constant * trace.steps, np.inf) if kind == "stochastic" else constant


def theory_constants(kind: Literal["stochastic", "deterministic"], law: Moments, K: int) -> tuple[np.ndarray, float]:
    """``a_i`` (n,), the noise of client i's update, and ``b``, the heterogeneity, over clients with moments ``law``.

    stochastic: ``a_i = (P/K^2 + E[1{E>0}/(E^K)]) / P^2``, ``b = max 1/P``, with ``P = P(E_i > 0)``;
    deterministic: ``a_i = 1/E[E^K] + E[(E^K)^2] / (K^2 E[E^K]^2)``, ``b = max E[(E^K)^2] / E[E^K]^2``.
    """
    if not (np.asarray(law.positive) > 0).all():
        raise UserError("The theory asks for P(E_i > 0) > 0 for every client.")
    if kind == "stochastic":
        return (law.positive / K**2 + law.inverse) / law.positive**2, float(np.max(1 / law.positive))
    if kind == "deterministic":
        return 1 / law.mean + law.second / (K * law.mean) ** 2, float(np.max(law.second / law.mean**2))
    raise unknown("re-weighting with constants", kind, ("stochastic", "deterministic"))


def aggregation_weights(
    scheme: Scheme, tau: np.ndarray, p: np.ndarray | None = None, *, dt: float | None = None,
    rates: np.ndarray | None = None, identical: bool = False,
) -> np.ndarray:
    """Weights ``d`` (n,) of deliveries: the server adds ``sum d_i (w_i - w_start_i)`` over those who delivered.

    They make the weight that client i gets over a long time proportional to its importance ``p_i`` (arXiv:2206.10189):
    ``fedavg``: ``p_i``; ``async`` (a server step each arrival): ``(sum_j 1/tau_j) tau_i p_i``; ``fedfix``:
    ``ceil(tau_i / dt) p_i``; ``fedbuff`` (a server step each c-th arrival): ``p_i / rates_i``.

    Args:
        tau: (n,) time of each client's work.
        p: (n,) importances, of sum 1; equal ones by default.
        rates: (n,) deliveries of each client a server step, for ``fedbuff``: :func:`delivery_rates` of a trace.
        identical: the same weight for all, of mean total 1 a server step (``1`` for async, ``1/c`` for fedbuff),
            whatever p (fedavg: p). It serves the importances that :func:`surrogate_importance` tells.
    """
    if scheme not in get_args(Scheme):
        raise unknown("scheme", scheme, get_args(Scheme))
    tau = np.asarray(tau, float)
    p = np.full(len(tau), 1 / len(tau)) if p is None else np.asarray(p, float)
    if not (tau > 0).all() or p.shape != tau.shape or not (p >= 0).all() or abs(p.sum() - 1) > 1e-9:
        raise UserError("Weights need positive work times tau, and importances p >= 0 of sum 1, one of each a client.")
    if (dt is not None) != (scheme == "fedfix") or (rates is not None) != (scheme == "fedbuff"):
        raise UserError("dt goes with scheme 'fedfix', and rates (delivery_rates of a trace) with 'fedbuff'; "
                        "neither with the others.")
    if scheme == "fedavg":
        return p
    if scheme == "fedfix":
        if not dt > 0:
            raise UserError(f"dt, the length of a server step, is positive; given {dt:g}.")
        rates = 1 / np.maximum(np.ceil(tau / dt * (1 - TIE)), 1)
    elif scheme == "async":
        rates = 1 / tau / (1 / tau).sum()
    rates = np.asarray(rates, float)
    if rates.shape != tau.shape or not (rates > 0).all():
        raise UserError("Every client must deliver: rates are positive, one a client. Take them of a longer trace.")
    return np.full(len(tau), 1 / rates.sum()) if identical else p / rates


def delivery_rates(trace: Trace) -> np.ndarray:
    """(n,) deliveries of each client a server step."""
    return trace.deliveries() / len(trace.time)


def surrogate_importance(trace: Trace, d: np.ndarray) -> np.ndarray:
    """(n,) importances that weights ``d`` really serve, from the deliveries of a trace: ``d_i deliveries_i``, of sum 1.

    The method then converges to the minimiser of ``sum_i p~_i F_i`` (arXiv:2206.10189).
    """
    weight = np.asarray(d, float) * trace.deliveries()
    return weight / weight.sum()
