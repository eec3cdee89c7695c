"""Performance profiles: how often a method is within a factor of the cheapest one, over all tasks.

E. D. Dolan & J. J. Moré, Benchmarking optimization software with performance profiles, Math. Program. 91 (2002), eqs. (2.1) to (2.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tracking.errors import UserError, unknown
from tracking.metrics import metric as declared
from workbench.grouping import short, varied

if TYPE_CHECKING:
    import pandas
    from plotly.graph_objects import Figure

    from workbench.comparison import Comparison
    from workbench.grouping import Group


def ratios(c: Comparison, axis: str, targets: Mapping[str, float] | None = None) -> pandas.DataFrame:
    """Cost ratios r(p, s): one row a task p (in its setting), one column a method s (in its own); infinite where the target is not reached.

    The cost t(p, s) is the mean over the seeds of what ``axis`` shows when the metric reaches the task's target, and is infinite unless
    every seed reaches it; r(p, s) = t(p, s) / min over s of t(p, s), and 1 for all that reach it for nothing. A target that is not given is
    the median, over the methods, of the final means on that task. Methods that did not run on every task, or report no such cost, are
    left out: absent is not failed.

    Raises :class:`UserError` for an unknown task among the targets, where fewer than two tasks or methods are left, and where ``axis``
    does not compare because the methods ran on different hardware.
    """
    import numpy as np
    import pandas

    for task in targets or {}:
        if task not in c.tasks:
            raise unknown("task", task, c.tasks)
    problems = _problems(c)
    solvers = {name: own for name, own in _solvers(c, axis).items() if len(own) == len(problems)}
    if len(problems) < 2 or len(solvers) < 2:
        raise UserError(f"A performance profile needs two tasks or more, and two methods or more that ran on all of them and report {axis} "
                        f"and {c.metric}. Here are {len(problems)} tasks and {len(solvers)} such methods.")
    rows = {}
    for setting, (name, task) in problems.items():
        on = {solver: own[setting] for solver, own in solvers.items()}
        if len(kinds := {", ".join(g.conditions(axis)) for g in on.values()}) > 1:
            raise UserError(f"No performance profile in {axis}: on {name} it is of different hardware or assumptions, which do not "
                            f"compare: {' | '.join(sorted(kinds))}.")
        finals = pandas.Series({solver: g.mean(c.metric).mean for solver, g in on.items()})
        target = (targets or {}).get(task, float(finals.median()))
        cost = pandas.Series({solver: g.to_target(c.metric, target, axis).mean for solver, g in on.items()})
        least = cost.min()
        ratio = cost / least if least > 0 else (cost == 0).map({True: 1.0, False: np.inf})
        rows[name] = ratio.where(cost.notna(), np.inf)  # where nobody reaches the target, it is nobody's
    return pandas.DataFrame(rows).T


def _problems(c: Comparison) -> dict[str, tuple[str, str]]:
    """Every setting in which the metric is reported, with its name and its task; the name tells the settings of one task apart."""
    found = {}
    for task in c.tasks:
        own = [g for g in c.groups if g.task == task and c.metric in g.metrics]
        names = [n for n in varied(own) if n.startswith(("task.", "budget."))]
        found |= {g.setting: (" ".join([task, *(f"{n}={short(g.facts[n])}" for n in names if n in g.facts)]), task) for g in own}
    return found


def _solvers(c: Comparison, axis: str) -> dict[str, dict[str, Group]]:
    """By name, the groups with a cost: setting to group.

    A method that has one group in each setting is one solver, though it may be tuned for the task; one with several is a solver for each
    combination of the parameters in which these differ.
    """
    usable = [g for g in c.groups if axis in g.metrics and not g.mixes(axis) and not math.isnan(g.mean(c.metric).mean)]
    found: dict[str, dict[str, Group]] = {}
    for method in dict.fromkeys(g.method for g in usable):
        own = [g for g in usable if g.method == method]
        within = [varied(g for g in own if g.setting == setting) for setting in {g.setting for g in own}]
        names = [n for n in varied(own) if any(n in some for some in within)]
        for g in own:
            found.setdefault(" ".join([method, *(f"{n}={short(g.facts[n])}" for n in names if n in g.facts)]), {})[g.setting] = g
    return found


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
    ran = [*_solvers(c, axis), *(g.method for g in c.groups)]
    left = [n for n in dict.fromkeys(ran) if not any(n == name or name.startswith(f"{n} ") for name in table)]
    caption = (f"Share of the {len(table)} tasks on which a method reaches the task's target of {c.metric} ({how}) at no more than so many "
               f"times the least {label} (Dolan & Moré, 2002). Higher is better; what never reaches 1 misses a target somewhere."
               + (f" Left out, because it did not run on all tasks, or reports no such cost: {', '.join(left)}." if left else ""))
    note = "; ".join(dict.fromkeys(word for g in c.groups for word in g.conditions(axis)))  # the machine, or what joules are modelled for
    made.update_layout(layout(f"Performance profile: {axis} to reach {c.metric}", note, caption, len(table.columns)))
    made.update_xaxes(title_text=text(f"{axis}, multiples of the least"), type="log")
    made.update_yaxes(title_text="share of the tasks [fraction]", range=[0, 1.03])
    return made
