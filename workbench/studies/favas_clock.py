"""The clock and the theory of the study of FAVAS: work at a contact, schedules of the methods, who holds what, rates.

Leconte, Nguyen & Moulines, arXiv:2305.16099. The closed forms are derived by us; the table of rates is recollected.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tracking.figures import layout, text, thin
from tracking.styles import style_of
from workbench.federation.clock import Speeds
from workbench.federation.partition import partition
from workbench.federation.partition_figure import who_holds_what
from workbench.federation.reweighting import client_moments, moments, theory_constants, work_law
from workbench.federation.theory import units_of_time
from workbench.federation.trace import Trace, contacts
from workbench.method import Context, derive_seed
from workbench.spec import resolve
from workbench.studies.favas import VARIANTS, Federation

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects as go

WAITING, INTERACTION = 4.0, 3.0
"""Units of time of a server step of FAVAS and QuAFL: the wait, and the exchange with the clients contacted."""


def clock_table(f: Federation, server_steps: int, seed: int = 0) -> pandas.DataFrame:
    """``E[E ^ K]`` and ``P(E > 0)`` by step law and speed: closed form, Monte Carlo over the contacts of a trace, and its error.

    Half of the clients are slow here, so that both speeds are met often. ``z`` is the larger of the two deviations in standard errors.
    """
    import pandas

    D, K = WAITING + INTERACTION, f.local_steps
    rows = []
    for law in ("exponential", "geometric"):
        speeds = Speeds.two_classes(f.clients, slow_fraction=0.5, law=law, seed=seed)
        trace = contacts(speeds, selected=f.selected, K=K, waiting=WAITING, interaction=INTERACTION,
                         server_steps=server_steps, seed=seed)
        for mean in (2.0, 16.0):
            exact = moments(work_law(law, mean, p=f.selected / f.clients, D=D, K=K))
            steps = trace.steps[speeds.mean[trace.client] == mean].astype(float)
            pairs = [(float(exact.mean), steps), (float(exact.positive), (steps > 0).astype(float))]
            z = [abs(drawn.mean() - value) / (drawn.std(ddof=1) / len(drawn) ** 0.5) for value, drawn in pairs]
            (m, drawn), (p, some) = pairs
            rows.append({"step law": law, "mean step time": mean, "E[min(E,K)]": m, "in the trace": float(drawn.mean()), "P(E>0)": p,
                         "in the trace ": float(some.mean()), "contacts": len(steps), "z": max(z)})
    return pandas.DataFrame(rows)


def trace_of(run: dict[str, Any], seed: int = 0) -> tuple[Trace, Speeds]:
    """The trace that a run replays, and its clients' speeds."""
    import torch

    method = resolve(**run, device="cpu").method
    speeds = method.speeds(Context(torch.device("cpu"), seed))
    return method.trace(derive_seed(seed, "clock"), speeds), speeds


def schedules(runs: Mapping[str, dict[str, Any]], seed: int = 0) -> tuple[dict[str, Trace], pandas.DataFrame]:
    """The traces of runs by name, and a table of what they are like: who is heard how often, how late, with how much work."""
    import pandas

    traces, rows = {}, []
    for name, run in runs.items():
        trace, speeds = trace_of(run, seed)
        slow = speeds.mean > speeds.mean.min()
        heard = slow[trace.client]
        rows.append({"method": name, "server steps": len(trace.time), "step time": trace.step_time,
                     "gradients": int(trace.steps.sum()), "staleness": float(trace.staleness.mean()),
                     "at most": int(trace.staleness.max()), "slow [%]": 100 * float(slow.mean()),
                     "of deliveries [%]": 100 * float(heard.mean()),
                     "of gradients [%]": 100 * float(trace.steps[heard].sum() / trace.steps.sum())})
        traces[name] = trace
    return traces, pandas.DataFrame(rows)


def distribution(samples: Mapping[str, np.ndarray], quantity: str, title: str, note: str = "") -> go.Figure:
    """Share of the values up to x, by name, on a logarithmic axis that begins where some group has 2 % of its values behind it."""
    import plotly.graph_objects as go

    styles = style_of(VARIANTS)
    fig = go.Figure()
    for name, drawn in samples.items():
        x, count = np.unique(np.asarray(drawn, float), return_counts=True)
        share = count.cumsum() / count.sum()
        x, share = np.repeat(x, 2), np.concatenate([[0.0], np.repeat(share, 2)[:-1]])  # a stair at each value
        x, share = x[x > 0], share[x > 0]
        at = thin(x)
        fig.add_trace(go.Scatter(x=x[at], y=share[at], mode="lines", name=text(f"{name} (n={count.sum()})"),
                                 hovertemplate="%{x:.4~g}: %{y:.3~g}",
                                 line={"color": styles[name].colour, "dash": styles[name].dash, "width": 2}))
    fig.update_layout(layout(title, note, f"Share of values up to x of: {quantity}.", len(samples)))
    ends = [np.quantile(drawn, q) for drawn in samples.values() for q in (0.02, 1.0)]
    span = np.log10([0.8 * min(e for e in ends if e > 0), 1.25 * max(ends)])
    fig.update_xaxes(title_text=text(quantity), type="log", range=span.tolist())
    return fig.update_yaxes(title_text="share [fraction]", range=[-0.02, 1.02])


def partition_figure(f: Federation, scenario: str, seed: int = 0) -> go.Figure:
    """Who holds what in a run of this scenario."""
    import torch

    job = resolve(**f.run("FAVAS", scenario, 0.1), device="cpu")
    job.task.setup(Context(torch.device("cpu"), seed))
    labels, p = job.task.train_y.numpy(), job.method.params
    shares = partition(p.partition, labels, p.clients, seed=derive_seed(seed, "partition"), classes_per_client=p.classes_per_client)
    return who_holds_what(shares, labels, title=f"{f.task}, {scenario.split(',')[0]}: who holds what")


# --- theory -------------------------------------------------------------------------------------------------


def constants_table(f: Federation) -> pandas.DataFrame:
    """``a_i`` by speed and ``b`` of the theorem for both re-weightings, exponential steps of mean 2 and 16."""
    import pandas

    speeds = Speeds(np.where(np.arange(f.clients) % 2, 16.0, 2.0))
    law = client_moments(speeds, selected=f.selected, K=f.local_steps, D=WAITING + INTERACTION)
    rows = []
    for kind in ("stochastic", "deterministic"):
        a, b = theory_constants(kind, law, f.local_steps)
        rows.append({"re-weighting": kind, "a, fast client": a[0], "a, slow client": a[1], "b": b})
    return pandas.DataFrame(rows)


def rates_table(f: Federation, traces: Mapping[str, Trace], slow_fraction: float, eps: float = 0.1, seed: int = 0) -> pandas.DataFrame:
    """Units of time to accuracy ``eps`` for the traces at hand, constants dropped and F = L = sigma = G = B = 1.

    FedBuff and AsyncSGD are each judged by the staleness of their own trace, FAVAS with the stochastic re-weighting.
    """
    import pandas

    speeds = Speeds.two_classes(f.clients, slow_fraction=slow_fraction, seed=seed)
    law = client_moments(speeds, selected=f.selected, K=f.local_steps, D=WAITING + INTERACTION)
    a, b = theory_constants("stochastic", law, f.local_steps)
    parts = []
    for name in ("FedAvg", "FedBuff", "AsyncSGD", "QuAFL", "FAVAS"):
        late = traces[name].staleness
        parts.append(units_of_time(eps, {name: traces[name].step_time}, n=f.clients, s=f.selected, K=f.local_steps, a=a, b=b,
                                   mean_steps=float(law.mean.mean()), tau_max=float(late.max()), tau_mean=float(late.mean())))
    return pandas.concat(parts).rename_axis("method").reset_index()
