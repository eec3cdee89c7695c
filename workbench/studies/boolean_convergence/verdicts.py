"""Verdicts of the study: each sentence of the analysis against measured figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from workbench.boolean.analysis import FLOOR_FACTOR, Constants, error_bound, exponent, lemma_a9, rounding_bound
from workbench.boolean.error_feedback import q0, q1
from workbench.claims import Claim, checked, figure, within
from workbench.studies.boolean_convergence.sweeps import slopes
from workbench.studies.boolean_convergence.trajectories import Traces

if TYPE_CHECKING:
    import pandas


def bound_claim(text: str, traces: Mapping[str, Traces]) -> Claim:
    """Whether the left side is below the bound of every trajectory at every number of steps, with either printing of the floor."""
    broken, checks, nearest = 0, 0, np.inf
    for t in traces.values():
        for right in (t.bound(), t.bound("printed"), t.bound("printed", without_error=True)):
            broken += int((t.lhs > right).sum())
            checks += t.lhs.size
            nearest = min(nearest, float((right / t.lhs).min()))
    return checked(
        text,
        "left side at most the bound",
        f"{broken} of {checks} checks fail; the bound is never nearer than {nearest:.3g} times the left side",
        broken == 0,
        f"{len(traces)} settings, each seed and each number of steps: derived and printed form, and the printed form without "
        "its error term, which is the smallest",
    )


def rounding_of_one_weight(m: float = 1.0, draws: int = 10_000) -> float:
    """``E||h||^2`` of one weight ``w = 1`` with accumulator ``m``, over evenly spaced draws of the rounding."""
    w, spread = torch.ones(draws, dtype=torch.float64), (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    u = w - q1(torch.full_like(w, m), w)
    return float((q0(u, w, spread) - u).square().mean())


def printed_floor_claim() -> Claim:
    """The quarter that the printed floor needs, against the one weight for which lemma A.10 is attained."""
    h2 = rounding_of_one_weight()  # eta d kappa = |m| = 1
    ratio = FLOOR_FACTOR["derived"] / FLOOR_FACTOR["printed"]
    return checked(
        "The printed floor (L/2) d kappa follows from the paper's lemma A.10",
        "theorem 3.17: L r_d, r_d = d kappa / 2",
        f"one weight at m = 1 has E||h||² = {h2:.3f} eta d kappa; the proof's last line needs {1 / ratio:.3f}",
        h2 <= 1 / ratio,
        f"the lemma as stated gives {ratio:g} times the printed floor, 2 L d kappa, which the sentence below the theorem has",
    )


def steady_error(gamma: float) -> float:
    """``||e||^2`` in the long run under a constant signal of norm 1 (eta = 1), for a compressor with ``||Q(m) - m||^2 = gamma ||m||^2``."""
    e = 0.0
    for _ in range(int(40 / (1 - gamma))):  # e <- sqrt(gamma) (e + 1) contracts by more than 1 - (1 - gamma) / 2 a step
        e = gamma**0.5 * (e + 1)
    return e**2


def printed_error_claim(gamma: float = 0.9) -> Claim:
    """The printed constant of lemma A.9 against a compressor that attains A.4."""
    c = Constants(smoothness=1.0, sigma2=1.0, gamma=gamma, kappa=1.0, dim=1, eta=1.0, gap=0.0)
    found, printed, proved = steady_error(gamma), float(lemma_a9(c)), float(error_bound(c))
    return checked(
        "Lemma A.9 holds with its printed constant",
        "E||e||² <= 2 gamma eta² sigma² / (1 - gamma)²",
        f"gamma = {gamma:g}, constant signal of norm 1: ||e||² = {found:.1f}; printed bound {printed:.1f}; "
        f"with the factor 1 + gamma of its own proof {proved:.1f}",
        found <= printed,
        "a compressor that attains A.4; the theorem's C has the right factor",
    )


def constant_floor_claim(etas: pandas.DataFrame) -> Claim:
    """The floor, from the measured kappa, against eta."""
    return within(
        "The error bound does not depend on the step size",
        "L d kappa / 2, in which no eta stands",
        slopes(etas, "floor"),
        -0.1,
        0.1,
        digits=3,
    )


def horizon_claims(name: str, horizons: pandas.DataFrame, c: float) -> list[Claim]:
    """What becomes of the left side and of the floor with ``eta = c / sqrt(T)``."""
    left, floor = slopes(horizons, "left side"), slopes(horizons, "floor")
    rate = f"With eta = {c:g}/sqrt(T)"
    return [
        within(
            f"{rate} the error bound does not depend on T, on '{name}'",
            "independent of the number of update iterations",
            floor,
            -0.1,
            0.1,
            digits=3,
        ),
        within(
            f"{rate} the left side falls as 1/sqrt(T), on '{name}'",
            "O(1/sqrt T) until the error bound",
            left,
            -0.6,
            -0.4,
            digits=3,
        ),
    ]


def tail(traces: Traces, start: float, stop: float) -> np.ndarray:
    """Mean of ``||grad f(w_t)||^2`` over the steps from ``start`` to ``stop``, fractions of the horizon, ``(r,)``."""
    at = [int(np.argmin(np.abs(np.log(traces.points / (f * traces.points[-1]))))) for f in (start, stop)]
    sums = [traces.points[i] * traces.lhs[i] for i in at]
    return (sums[1] - sums[0]) / (traces.points[at[1]] - traces.points[at[0]])


def plateau_claim(name: str, traces: Traces) -> Claim:
    """Whether the squared gradient norm of late steps has stopped falling: its last third of the steps against the third before."""
    late, before = tail(traces, 2 / 3, 1.0), tail(traces, 1 / 3, 2 / 3)
    claim = within(
        f"On '{name}' the gradient settles on a plateau and does not vanish",
        "an error bound that T does not remove",
        late / np.maximum(before, 1e-300),
        0.8,
        1.25,
    )
    floor = traces.terms()["floor"][-1]
    loose = f"; plateau {late.mean():.3g}, floor of the bound {floor.mean():.3g}" if len(late) else ""
    return Claim(claim.text, claim.paper, f"late over earlier: {claim.ours}{loose}", claim.verdict, claim.how)


def no_plateau_claim(name: str, traces: Traces) -> Claim:
    """Whether the error bound is paid where a corner is stationary."""
    late = tail(traces, 2 / 3, 1.0)
    return checked(
        f"On '{name}' discrete weights cost an error that T does not remove",
        "the error bound is the cost of discrete weights",
        f"largest ||grad f||² of the last third of the steps, over {len(late)} seeds: {late.max():.2g}; floor of the bound "
        f"{traces.terms()['floor'][-1].mean():.3g}",
        bool((late > 1e-12).all()),
        "a minimum on a corner can be reached exactly",
    )


def accumulator_claim(name: str, traces: Traces) -> Claim:
    """Growth of ``kappa`` over the last decade of steps, without clipping."""
    last = traces.points >= traces.points[-1] / 10
    found = [exponent(traces.points[last], k) for k in traces.kappa[last].T]
    claim = within(f"Accumulators stay bounded without clipping, A.5, on '{name}'", "|a| <= kappa", found, -0.1, 0.1)
    return Claim(
        claim.text,
        claim.paper,
        f"exponent of kappa in T: {claim.ours}; eta kappa at the end {figure(list((traces.eta * traces.kappa)[-1]))}",
        claim.verdict,
        claim.how + ", over the last decade of steps",
    )


def flip_claim(traces: Mapping[str, Traces]) -> Claim:
    """A.4 needs a weight that passes in every step."""
    shares = {name: float(t.idle[-1].mean()) for name, t in traces.items()}
    gammas = [t.gamma[-1] for t in traces.values()]
    return checked(
        "Every step has at least one flip, as A.4 requires",
        "gamma < 1",
        "steps in which no weight passed: "
        + ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())
        + f"; gamma of the other steps up to {np.nanmax(np.concatenate(gammas)):.4f}",
        max(shares.values()) == 0,
        "a step in which no weight passes has gamma = 1",
    )


def lemma_claims(traces: Mapping[str, Traces]) -> list[Claim]:
    """The two lemmas, with measured constants, on the mean over steps and at each single step for the second."""
    errors = {name: float(np.nanmax(t.error2 / error_bound(t.constants))) for name, t in traces.items()}
    worst = max(errors, key=errors.get)
    rounding = max(float(np.max(t.rounding2_max / rounding_bound(t.constants))) for t in traces.values())
    where = sum(e > 1 for e in errors.values())
    return [
        checked(
            "Lemma A.9 holds on trajectories, gamma taken over the steps in which a weight passed",
            "E||e||² <= 2 gamma eta² sigma² / (1 - gamma)²",
            f"mean ||e||² over the bound: at most {errors[worst]:.3g} ({worst}); above 1 in {where} of {len(errors)} settings",
            errors[worst] <= 1,
            "with the factor 1 + gamma of its proof; mean over the steps so far, worst seed and number of steps. Steps in which no "
            "weight passes violate A.4, so the lemma may fail",
        ),
        checked(
            "Lemma A.10 holds",
            "E||h||² <= eta d kappa",
            f"largest ||h_t||² of any step over eta d kappa: {rounding:.3g}",
            rounding <= 1,
            "every seed and step, so more than the expectation",
        ),
    ]


def proof_claim(traces: Mapping[str, Traces]) -> Claim:
    """The inequality before the lemmas, for stochastic rounding without clipping, which is what it is proved for."""
    ratio = {name: float((t.before_lemmas / t.lhs)[-1].mean()) for name, t in traces.items()}
    share = {name: float(np.mean((t.bound() / t.before_lemmas)[-1])) for name, t in traces.items()}
    holds = all(bool((t.lhs.mean(1) <= t.before_lemmas.mean(1)).all()) for t in traces.values())
    return checked(
        "The proof's inequality before its lemmas holds",
        "A.1 to A.3 and A.6 alone",
        "right over left side at the end: "
        + ", ".join(f"{n} {r:.3g}" for n, r in ratio.items())
        + "; the lemmas add a factor of "
        + ", ".join(f"{n} {s:.3g}" for n, s in share.items()),
        holds,
        "means over seeds at every number of steps, no clipping",
    )


def dimension_claim(name: str, dims: pandas.DataFrame) -> Claim:
    """The left side against the number of weights, where the floor promises proportion to it."""
    claim = within(
        f"The squared gradient grows in proportion to the number of weights, on '{name}'",
        "floor proportional to d",
        slopes(dims, "left side"),
        0.9,
        1.1,
        digits=3,
    )
    ours = f"exponent of the left side {claim.ours}; of the floor {figure(slopes(dims, 'floor'), 3)}, L growing a little with d"
    return Claim(claim.text, claim.paper, ours, claim.verdict, claim.how)


def looseness(traces: Mapping[str, Traces]) -> pandas.DataFrame:
    """Left side, bound and what lies between, a row a setting, means over seeds at the end."""
    import pandas

    rows = []
    for name, t in traces.items():
        found = {k: float(np.nanmean(v[-1])) for k, v in t.terms().items() if np.isfinite(v[-1]).any()}
        rows.append(
            {
                "setting": name,
                "left side": float(t.lhs[-1].mean()),
                "proof before the lemmas": float(t.before_lemmas[-1].mean()),
                **found,
                "bound": float(t.bound()[-1].mean()),
                "bound / left side": float((t.bound() / t.lhs)[-1].mean()),
            }
        )
    return pandas.DataFrame(rows)


def diagnostics(traces: Mapping[str, Traces]) -> pandas.DataFrame:
    """The constants and the diagnostics of a setting, means over seeds at the end; absent where no weight ever passed."""
    import pandas

    rows = []
    for name, t in traces.items():
        passed = bool(np.isfinite(t.gamma[-1]).any())
        rows.append(
            {
                "setting": name,
                "flips a step": float(t.flips[-1].mean() / t.points[-1]),
                "steps without [%]": 100 * float(t.idle[-1].mean()),
                "sigma²": float(t.sigma2[-1].mean()),
                "gamma": float(np.nanmean(t.gamma[-1])) if passed else None,
                "eta kappa": float((t.eta * t.kappa)[-1].mean()),
                "largest |m| that passed": float(t.spent_max[-1].mean()),
                "mean ||e||²": float(t.error2[-1].mean()),
                "lemma A.9, with 1 + gamma": float(np.nanmean(error_bound(t.constants)[-1])) if passed else None,
                "mean ||h||²": float(t.rounding2[-1].mean()),
                "lemma A.10": float(rounding_bound(t.constants)[-1].mean()),
                "|m| > 2 [%]": 100 * float(np.nanmean(t.biased[-1])) if passed else None,
            }
        )
    return pandas.DataFrame(rows)
