"""Publishing saved views into an experiment, with links that open them; on an unknown version of MLflow, a clear word instead."""

from __future__ import annotations

import contextlib
import time
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tracking import pages
from tracking.address import public_uri, tracking_uri, ui_url
from tracking.errors import UserError
from tracking.views.saved import KNOWN, TAG, VIEWS, View, known_metrics, load, read_back

if TYPE_CHECKING:
    from tracking.folder import RunFolder
    from tracking.store import Store

MOST_SIDE_BY_SIDE = 100
"""Runs that MLflow compares on one page."""


@dataclass
class Published:
    """Links by the name of the view. ``note`` is empty unless nothing could be published: then it says why and what to do."""

    links: dict[str, str] = field(default_factory=dict)
    note: str = ""

    def __str__(self) -> str:
        return "\n".join([f"{name}: {link}" for name, link in self.links.items()] + [self.note] * bool(self.note))


def publish(experiment: str, *, tracking: str | None = None, views: Sequence[str | View] = VIEWS, report: str = "") -> Published:
    """Put the saved views into ``experiment`` (a name) and return the links that open them; charts that would be empty are left out.

    Publishing again brings them up to date, replaces those of an earlier version of the project, and touches no view that a person saved.
    ``report`` is what to open instead (a path or a link), named where this version of MLflow is not known to read the views.

    Raises :class:`UserError` where tracking is off, for a store that cannot be reached, and for an experiment that is not there.
    """
    from tracking.shipping import reached

    uri = tracking_uri(tracking)
    if uri is None:
        raise UserError("Tracking is off, so there is no MLflow to show anything in.")
    chosen = [load(v) if isinstance(v, str) else v for v in views]
    with reached(uri) as store:
        found = store.client.get_experiment_by_name(experiment)
        if found is None:
            raise UserError(f"MLflow has no experiment {experiment!r} yet: it is made with the first run.")
        return _published(store, found, _reported(store, found.experiment_id), chosen, report)


def publish_reported(store: Store, experiment: str, metrics: set[str], report: str = "") -> Published:
    """:func:`publish` all views after one run that reported ``metrics``: what is published already tells which others there are."""
    found = store.client.get_experiment(store.experiment(experiment))
    known = set().union(*(known_metrics(value) for tag, value in found.tags.items() if tag.startswith(f"{TAG}workbench-")))
    return _published(store, found, known | metrics, [load(v) for v in VIEWS], report)


def links_of(folders: Iterable[RunFolder], tracking: str | None = None) -> dict[str, str]:
    """Links to the saved views that show these runs, and to the pages of the runs side by side; read from the folders, without MLflow.

    Where views could not be published, ``"views"`` is no link but says why. Empty where tracking is off, or where the store does not
    have the runs yet.
    """
    uri = tracking_uri(tracking)
    there = [(folder, folder.read_cursors().get(public_uri(uri), {})) for folder in folders if folder.run_path.exists()] if uri else []
    there = [(folder.read_run()["experiment"], cursor) for folder, cursor in there if "views" in cursor]
    several = len({experiment for experiment, _ in there}) > 1
    links = {f"{experiment}: {name}" if several else name: link for experiment, cursor in there for name, link in cursor["views"].items()}
    if 1 < len(there) <= MOST_SIDE_BY_SIDE:
        links["these runs side by side"] = pages.compare([cursor["run_id"] for _, cursor in there],
                                                         dict.fromkeys(cursor["experiment_id"] for _, cursor in there), ui_url(uri))
    if reasons := dict.fromkeys(cursor["views_note"] for _, cursor in there if cursor.get("views_note")):
        links["views"] = " ".join(reasons)
    return links


def _published(store: Store, experiment: Any, reported: set[str], views: Sequence[View], report: str) -> Published:
    version = server_version(store.uri)
    if ".".join(version.split(".")[:2]) not in KNOWN:
        return Published({"all runs": store.experiment_url(experiment.name)}, unknown_version(version, report))
    chosen = [kept for v in views if (kept := v.only(reported)) is not None]
    there = {tag: value for tag, value in experiment.tags.items() if tag.startswith(f"{TAG}workbench-")}
    for v in chosen:
        value = v.value(time.time_ns() // 1_000_000, reported)
        if v.tag not in there or read_back(there[v.tag]) != read_back(value):
            store.client.set_experiment_tag(experiment.experiment_id, v.tag, value)
        for tag in there:
            if tag != v.tag and tag.rpartition("-")[0] == v.tag.rpartition("-")[0]:  # of an older version of the file
                with contextlib.suppress(Exception):  # another process was quicker
                    store.client.delete_experiment_tag(experiment.experiment_id, tag)
    nothing = "" if chosen else f"Experiment {experiment.name!r} has reported nothing that these views show."
    base = ui_url(store.uri)
    return Published({v.name: pages.view(experiment.experiment_id, v.key, base, bool(v.charts)) for v in chosen}, nothing)


def server_version(uri: str) -> str:
    """Version of the MLflow whose pages show this store: the server's own, or the installed one, which ``workbench ui`` starts."""
    if uri.startswith(("http://", "https://")):
        try:  # asked without a login: MLflow tells everybody its version
            with urllib.request.urlopen(f"{public_uri(uri)}/version", timeout=10) as answer:
                return answer.read(100).decode(errors="replace").strip()
        except (OSError, ValueError):
            return "unknown"
    from importlib.metadata import PackageNotFoundError, version

    for name in ("mlflow", "mlflow-skinny"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"


def unknown_version(version: str, report: str = "") -> str:
    """What a person is told where the saved views may not be understood."""
    instead = f" Open the report instead: {report}" if report else (
        " A report shows the same: `workbench compare --report report.html`, in Python workbench.compare().report('report.html').")
    return f"The saved views are known to work with MLflow {', '.join(KNOWN)}; here is {version}, so none was published.{instead}"


def _reported(store: Store, experiment_id: str) -> set[str]:
    """Metrics of the newest runs."""
    runs = store.client.search_runs([experiment_id], max_results=200)
    return {name for run in runs for name in run.data.metrics}
