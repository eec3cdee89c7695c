"""Publishing saved views into an experiment, with links that open them; on an unknown version of MLflow, a clear word instead."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tracking.address import tracking_uri
from tracking.errors import UserError
from tracking.views.saved import KNOWN, TAG, VIEWS, View, load

if TYPE_CHECKING:
    from tracking.store import Store


@dataclass
class Published:
    """Links by the name of the view. ``note`` is empty unless nothing could be published: then it says why and what to do."""

    links: dict[str, str] = field(default_factory=dict)
    note: str = ""

    def __str__(self) -> str:
        return "\n".join([f"{name}: {link}" for name, link in self.links.items()] + [self.note] * bool(self.note))


def publish(experiment: str, *, tracking: str | None = None, views: Sequence[str | View] = VIEWS, report: str = "") -> Published:
    """Put the saved views into ``experiment`` (a name) and return the links that open them; charts that would be empty are left out.

    Publishing again replaces what an earlier version of the project has put there, and touches no view that a person has saved.
    ``report`` is what to open instead (a path or a link), named where this version of MLflow is not known to read the views.

    Raises :class:`UserError` where tracking is off, and for an experiment that is not there.
    """
    from tracking.store import Store

    uri = tracking_uri(tracking)
    if uri is None:
        raise UserError("Tracking is off, so there is no MLflow to show anything in.")
    store = Store(uri)
    found = store.client.get_experiment_by_name(experiment)
    if found is None:
        raise UserError(f"MLflow has no experiment {experiment!r} yet: it is made with the first run.")
    version = server_version(uri)
    if ".".join(version.split(".")[:2]) not in KNOWN:
        return Published({"all runs": store.experiment_url(experiment)}, unknown_version(version, report))
    reported = _reported(store, found.experiment_id)
    chosen = [(load(v) if isinstance(v, str) else v).only(reported) for v in views]
    chosen = [v for v in chosen if v.charts]
    for tag in found.tags:
        if tag.startswith(f"{TAG}workbench-") and tag not in {v.tag for v in chosen}:
            store.client.delete_experiment_tag(found.experiment_id, tag)
    for v in chosen:
        store.client.set_experiment_tag(found.experiment_id, v.tag, v.value(time.time_ns() // 1_000_000, reported))
    nothing = "" if chosen else f"Experiment {experiment!r} has reported nothing that these views show."
    return Published({v.name: store.experiment_url(experiment, v.key) for v in chosen}, nothing)


def server_version(uri: str) -> str:
    """Version of the MLflow whose pages show this store: the server's own, or the installed one, which ``workbench ui`` starts."""
    if uri.startswith(("http://", "https://")):
        with urllib.request.urlopen(f"{uri}/version", timeout=10) as answer:
            return answer.read(100).decode(errors="replace").strip()
    from importlib.metadata import PackageNotFoundError, version

    for name in ("mlflow", "mlflow-skinny"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"


def unknown_version(version: str, report: str = "") -> str:
    """What a person is told where the saved views may not be understood."""
    instead = f" Open the report instead: {report}" if report else " Write a report instead: workbench.compare(...).report('report.html')."
    return f"The saved views are known to work with MLflow {', '.join(KNOWN)}; here is {version}, so none was published.{instead}"


def _reported(store: Store, experiment_id: str) -> set[str]:
    """Metrics of the newest runs."""
    runs = store.client.search_runs([experiment_id], max_results=200)
    return {name for run in runs for name in run.data.metrics}
