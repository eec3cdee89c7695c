"""Performance profiles: how often a method is within a factor of the cheapest one, over all tasks.

E. D. Dolan & J. J. Moré, Benchmarking optimization software with performance profiles, Math. Program. 91 (2002), eqs. (2.1) to (2.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tracking.errors import UserError, unknown
from tracking.metrics import metric as declared

if TYPE_CHECKING:
    import pandas
    from plotly.graph_objects import Figure

    from workbench.comparison import Comparison


def ratios(c: Comparison, axis: str, targets: Mapping[str, float] | None = None) -> pandas.DataFrame:
    """Cost ratios r(p, s): one row a task p, one column a method s, in its setting; infinite where the target is not reached.

    The cost t(p, s) is the mean over the seeds of what ``axis`` shows when the metric reaches the task's target, and is infinite unless
    every seed reaches it; r(p, s) = t(p, s) / min over s of t(p, s). A target that is not given is the median, over the methods, of the
    final means on that task. Methods that did not run on every task, or report no such cost, are left out: absent is not failed.

    Raises :class:`UserError` for an unknown task among the targets, and where fewer than two tasks or methods are left.
    """
    import pandas

    for task in targets or {}:
        if task not in c.tasks:
            raise unknown("task", task, c.tasks)
    named: dict[str, dict[str, Any]] = {}
    for g in c.groups:
        if axis in g.metrics and not g.mixes(axis) and not math.isnan(g.mean(c.metric).mean):
            named.setdefault(" ".join(word for word in g.label.split(" ") if word != g.task), {})[g.task] = g
    solvers = {name: own for name, own in named.items() if len(own) == len(c.tasks)}
    if len(c.tasks) < 2 or len(solvers) < 2:
        raise UserError(f"A performance profile needs two tasks or more, and two methods or more that ran on all of them and report {axis} "
                        f"and {c.metric}. Here are {len(c.tasks)} tasks and {len(solvers)} such methods.")
    rows = {}
    for task in c.tasks:
        finals = pandas.Series({name: own[task].mean(c.metric).mean for name, own in solvers.items()})
        target = (targets or {}).get(task, float(finals.median()))
        cost = pandas.Series({name: own[task].to_target(c.metric, target, axis).mean for name, own in solvers.items()})
        rows[task] = (cost / cost.min()).fillna(math.inf)  # where nobody reaches the target, it is nobody's
    return pandas.DataFrame(rows).T


def share_within(ratio: pandas.DataFrame, factor: float) -> pandas.Series:
    """The profile rho_s(tau) at tau = ``factor``: share of the tasks on which a method costs at most that many times the least."""
    return (ratio <= factor).mean()


def figure(c: Comparison, axis: str, targets: Mapping[str, float] | None = None) -> Figure:
    """The profiles of all methods, as staircases on a logarithmic axis; each begins at the share of tasks on which it is cheapest."""
    import numpy as np
    import plotly.graph_objects as go

    from tracking.figures import layout, style_of, text

    table = ratios(c, axis, targets)
    known = table.to_numpy()[np.isfinite(table.to_numpy())]
    end = 1.1 * max(known.max(), 1.0) if known.size else 2.0
    places = np.unique(np.concatenate([[1.0], known, [end]]))
    styles = style_of(table.columns)
    made = go.Figure()
    for name in table:
        shares = [share_within(table[[name]], x).iloc[0] for x in places]
        look = styles[name]
        made.add_trace(go.Scatter(x=places, y=shares, name=text(name), mode="lines", hovertemplate="%{x:.3~g} times: %{y:.0%}",
                                  line={"color": look.colour, "dash": look.dash, "width": 2, "shape": "hv"}))
    how = "given" if targets else "the median of the methods' final means"
    label = "step" if axis == "step" else declared(axis).label
    left = sorted({g.method for g in c.groups} - {name.split(" ")[0] for name in table})
    caption = (f"Share of the {len(table)} tasks on which a method reaches the task's target of {c.metric} ({how}) at no more than so many "
               f"times the least {label} (Dolan & Moré, 2002). Higher is better; what never reaches 1 misses a target somewhere."
               + (f" Left out, because it did not run on all tasks: {', '.join(left)}." if left else ""))
    made.update_layout(layout(f"Performance profile: {axis} to reach {c.metric}", "", caption, len(table.columns)))
    made.update_xaxes(title_text=text(f"{axis}, multiples of the least"), type="log")
    made.update_yaxes(title_text="share of the tasks [fraction]", range=[0, 1.03])
    return made
