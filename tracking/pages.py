"""Deep links into MLflow's pages. The part after ``#`` names the page; it works on whichever address the server is reached."""

from __future__ import annotations

import json
from collections.abc import Iterable
from urllib.parse import quote

# without it MLflow 3.17 opens the pages in its other mode, which hides everything about training
MODE = "workflowType=machine_learning"


def experiments(base: str = "") -> str:
    """The list of experiments."""
    return f"{base}/#/experiments?{MODE}"


def run(experiment_id: str, run_id: str, base: str = "") -> str:
    """The page of a run."""
    return f"{base}/#/experiments/{experiment_id}/runs/{run_id}?{MODE}"


def artifact(experiment_id: str, run_id: str, path: str, base: str = "") -> str:
    """A file of a run."""
    return f"{base}/#/experiments/{experiment_id}/runs/{run_id}/artifacts/{quote(path)}?{MODE}"


def view(experiment_id: str, key: str, base: str = "", charts: bool = True) -> str:
    """The runs of an experiment as the saved view ``key`` arranges them: charts, or a table."""
    mode = "CHART" if charts else "TABLE"
    return f"{base}/#/experiments/{experiment_id}/runs?compareRunsMode={mode}&viewStateShareKey={quote(key)}&{MODE}"


def charts(experiment_id: str, sort: str, base: str = "") -> str:
    """The charts of all runs, best ``sort`` first.

    Sorted by date, MLflow 3.17 folds the runs of a study under their parent and draws nothing; sorted by a metric it shows them.
    """
    order = quote(f"metrics.`{sort}`", safe="")
    return f"{base}/#/experiments/{experiment_id}/runs?compareRunsMode=CHART&orderByKey={order}&orderByAsc=false&{MODE}"


def matching(experiment_id: str, terms: str, base: str = "") -> str:
    """The table of the runs that a search finds, such as ``params.method = 'bold'``."""
    return f"{base}/#/experiments/{experiment_id}/runs?compareRunsMode=TABLE&searchFilter={quote(terms, safe='')}&{MODE}"


def compare(run_ids: Iterable[str], experiment_ids: Iterable[str], base: str = "") -> str:
    """Runs side by side: parallel coordinates, scatter, box and contour plots, and a table of what differs."""
    listed = [quote(json.dumps([*ids], separators=(",", ":")), safe="") for ids in (run_ids, experiment_ids)]
    return f"{base}/#/compare-runs?runs={listed[0]}&experiments={listed[1]}&{MODE}"
