"""Rates of asynchronous methods in units of time, as the theory of FAVAS compares them.

From Leconte, Nguyen & Moulines, arXiv:2305.16099. We are sure of the powers of the accuracy; the factors are
recollected, and the table says so in its column ``certain``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracking.errors import UserError, unknown

if TYPE_CHECKING:
    import pandas as pd


def units_of_time(
    eps: float, step_time: dict[str, float], *, n: int, s: int, K: int, a: np.ndarray, b: float, mean_steps: float,
    tau_max: float, tau_mean: float, F: float = 1.0, L: float = 1.0, sigma: float = 1.0, G: float = 1.0, B: float = 1.0,
) -> pd.DataFrame:
    """Units of time to reach accuracy ``eps``, constants dropped: one row a method, of orders of magnitude only.

    Args:
        step_time: mean time between two server steps (``Trace.step_time``) of the methods to compare, among FedAvg,
            FedBuff, AsyncSGD, QuAFL and FAVAS.
        a, b: of ``theory_constants``.
        mean_steps: E, the mean of ``E ^ K`` over clients, for QuAFL.
        tau_max, tau_mean: largest and mean staleness, for FedBuff and AsyncSGD.
        F, L, sigma, G, B: ``R(w_0) - R_*``, smoothness, gradient noise, dissimilarity of the clients' gradients
            (constant and relative part).

    Returns:
        Columns ``eps^-2``, ``eps^-3/2``, ``eps^-1`` (coefficients, in server steps), ``step_time``, ``units`` (their
        sum at ``eps``, in units of time), and ``certain``: what of the row is sure.
    """
    if not eps > 0:
        raise UserError(f"The accuracy eps is positive; given {eps:g}.")
    noise, drift, E = sigma**2, G**2, mean_steps
    a_mean = float(np.mean(a))
    coefficients = {
        "FedAvg": (F * L * (noise + (1 - s / n) * K * drift) / (s * K), F * L**0.5 * G, L * F * B**2),
        "FedBuff": (F * L * (noise + drift), F * L * ((tau_max**2 / s**2 + 1) * (noise + n * drift)) ** 0.5, F * L),
        "AsyncSGD": (F * L * (3 * noise + 4 * drift), F * L * G * (s * tau_mean) ** 0.5, (s * tau_max * F) ** 0.5),
        "QuAFL": (F * L * K * (noise + 2 * K * drift) / E**2,
                  n**1.5 / (E * (E * s) ** 0.5) * F * K * L * (noise + 2 * K * drift) ** 0.5,
                  n**1.5 / (E * s**0.5) * F * B * K**2 * L),
        "FAVAS": (F * L * (noise * a_mean + 8 * drift * b),
                  n / s * F * L**2 * (K**2 * noise + (L * K * G)**2 + s**2 * (noise * a_mean + drift * b)) ** 0.5,
                  n * F * B**2 * K * L * b),
    }
    for name in step_time:
        if name not in coefficients:
            raise unknown("method in the table of rates", name, coefficients)
    import pandas as pd

    powers = ("eps^-2", "eps^-3/2", "eps^-1")
    rows = {}
    for name, (c2, c32, c1) in coefficients.items():
        if name in step_time:
            total = (c2 * eps**-2 + c32 * eps**-1.5 + c1 / eps) * step_time[name]
            rows[name] = {**dict(zip(powers, (c2, c32, c1), strict=True)), "step_time": step_time[name], "units": total,
                          "certain": "powers of eps; factors recollected"}
    return pd.DataFrame.from_dict(rows, orient="index")
