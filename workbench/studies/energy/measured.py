"""What this machine can measure, and measured beside modelled joules of the runs that have both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tracking.energy import probe

if TYPE_CHECKING:
    import pandas
    from plotly.graph_objects import Figure

    from workbench.runs import Run

BESIDE = {"energy/gpu_j": "h100_like", "energy/cpu_j": "cpu_like"}
"""Measured metric, and the hardware file that its runs are modelled on."""


def probe_table() -> pandas.DataFrame:
    """One row a possible source of joules on this machine: what it would measure, whether it can, and why not."""
    import pandas

    words = {"ok": "yes", "aside": "left aside", "unusable": "no"}
    return pandas.DataFrame(
        [
            {"source": s.name, "metric": s.metric, "kind": s.kind, "usable": words[s.status], "what is known": s.detail}
            for s in probe().sources
        ]
    )


def measured(runs: Iterable[Run]) -> pandas.DataFrame:
    """A row for each run and metric with measured joules and a trace: ``measured_j``, ``modelled_j`` and what it was modelled on.

    Empty where nothing was measured.
    """
    import pandas

    from workbench.modelled import FILE, estimate_run

    rows = []
    for run in runs:
        if not (run.folder.artifacts_path / FILE).is_file():
            continue
        last = run.metrics
        for metric, hardware in BESIDE.items():
            if last.get(metric) and last.get("train/samples"):
                rows.append(
                    {
                        "method": run.spec["method"],
                        "task": run.spec["task"],
                        "metric": metric,
                        "measured_j": last[metric],
                        "modelled_j": last["train/samples"] * estimate_run(run, hardware).per_sample_j,
                        "hardware": hardware,
                    }
                )
    return pandas.DataFrame(rows, columns=["method", "task", "metric", "measured_j", "modelled_j", "hardware"])


def runs_here() -> list[Run]:
    """The ended runs in the workbench's home."""
    from workbench.grouping import scan
    from workbench.runs import runs_root

    return [run for run in scan(runs_root()) if run.status == "finished"]


def no_measurement() -> str:
    """Why there is nothing to compare, in a sentence or two."""
    missing = probe().missing
    if missing:
        why = "; ".join(f"{metric} is absent ({detail})" for metric, detail in missing.items())
        return (
            f"No run here has measured and modelled joules both: {why}. "
            "Modelled figures stand alone; nothing is put in place of a measured one."
        )
    return (
        "This machine has counters, but no run here has measured and modelled joules both. "
        "Runs of a method that declares its precisions will."
    )


def measured_figure(rows: pandas.DataFrame) -> Figure:
    """Measured against modelled joules of whole runs, with lines at equality and at the fitted factor (geometric mean)."""
    import numpy as np
    import plotly.graph_objects as go

    from tracking.figures import layout, text
    from tracking.styles import INK, style_of

    styles, figure = style_of(rows["metric"]), go.Figure()
    ends = np.array([rows["modelled_j"].min() / 2, rows["modelled_j"].max() * 2])
    figure.add_trace(
        go.Scatter(
            x=ends,
            y=ends,
            mode="lines",
            name="equal",
            line={"color": INK, "width": 1.5, "dash": "dot"},
            hoverinfo="skip",
        )
    )
    factors = []
    for metric, own in rows.groupby("metric", sort=False):
        style, factor = styles[metric], float(np.exp(np.log(own["measured_j"] / own["modelled_j"]).mean()))
        factors.append(f"{metric} {factor:.3g} times the model on {own['hardware'].iloc[0]}")
        figure.add_trace(
            go.Scatter(
                x=ends,
                y=ends * factor,
                mode="lines",
                showlegend=False,
                hoverinfo="skip",
                line={"color": style.colour, "width": 1, "dash": style.dash},
            )
        )
        figure.add_trace(
            go.Scatter(
                x=own["modelled_j"],
                y=own["measured_j"],
                mode="markers",
                name=text(f"{metric} (n={len(own)})"),
                hovertext=(own["method"] + ", " + own["task"]).map(text),
                hovertemplate="%{hovertext}: %{y:.3~g} J, modelled %{x:.3~g} J",
                marker={"color": style.colour, "symbol": style.marker, "size": 10},
            )
        )
    caption = (
        "Joules of whole runs, measured (board or CPU packages, idle power included) against modelled on a named hardware that is not "
        f"this machine. Geometric mean: {'; '.join(factors)}. The model leaves out instructions, clocks, leakage and idling."
    )
    figure.update_layout(layout("Measured against modelled", "; ".join(factors), caption, 1 + len(factors)))
    figure.update_xaxes(title_text="modelled [J]", type="log", exponentformat="power")
    figure.update_yaxes(title_text="measured [J]", type="log", exponentformat="power")
    return figure
