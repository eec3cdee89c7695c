"""The store: everything that touches MLflow. Always a ``MlflowClient`` with explicit run ids, never an active run.

MLflow is imported on the first use of :class:`Store`, so a machine without it can run and bring its folders home.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tracking import files, notes, pages
from tracking.address import (  # this module is the front door for addresses, too
    home,  # noqa: F401
    public_uri,  # noqa: F401
    tracking_uri,  # noqa: F401
    ui_url,
)
from tracking.database import client_class, exclusive, make_tables, with_driver
from tracking.errors import UserError
from tracking.styles import style_of

MAX_POINTS = 1000
"""Points a batch: MLflow's limit for one request, and one transaction in a SQL store."""

REMOTE_CONTROLS = ("stop", "pause", "resume")
"""What a person may write into a run's tag ``workbench.control``."""

GROUP = "workbench.group"
"""The tag whose equal values the saved views average."""

COLOUR = "mlflow.runColor"
"""The tag with a run's colour in MLflow's lists and charts."""

ABOUT = "Runs of the workbench. The menu Views, at the top right of their page, arranges them by accuracy and cost."
"""Description of an experiment that has no other."""

_NOTE = "mlflow.note.content"
_MLFLOW_STATUS = {"running": "RUNNING", "paused": "RUNNING", "finished": "FINISHED", "failed": "FAILED",
                  "diverged": "FAILED", "stopped": "KILLED"}


class Point(NamedTuple):
    """One value of one metric. ``time_ms`` is Unix time in milliseconds."""

    key: str
    value: float
    time_ms: int
    step: int


class Store:
    """One MLflow store. Every method may raise whatever MLflow raises when the store is away; all can be repeated."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._experiments: dict[str, str] = {}
        make_tables(uri)
        self.client = client_class()(with_driver(uri))

    # -- experiments and runs ----------------------------------------------------------------------------------

    def experiment(self, name: str) -> str:
        """The id of experiment ``name``, created if there is none. Two processes may ask at once."""
        if name not in self._experiments:
            found = self.client.get_experiment_by_name(name) or self._create_experiment(name)
            if found.lifecycle_stage == "deleted":
                raise UserError(f"Experiment {name!r} was deleted in MLflow. Restore it "
                                f"(mlflow experiments restore -x {found.experiment_id}), or use another name.")
            if "mlflow.experimentKind" not in found.tags:
                self.client.set_experiment_tag(found.experiment_id, "mlflow.experimentKind", "custom_model_development")
            self._experiments[name] = found.experiment_id
        return self._experiments[name]

    def _create_experiment(self, name: str) -> Any:
        from mlflow.exceptions import MlflowException

        with contextlib.suppress(MlflowException):  # made by another process meanwhile; any other trouble shows below
            self.client.create_experiment(name, files.location(self.uri, name),
                                          tags={"mlflow.experimentKind": "custom_model_development", _NOTE: ABOUT})
        found = self.client.get_experiment_by_name(name)
        if found is None:
            raise ConnectionError(f"experiment {name!r} could not be created")
        return found

    def open_run(self, run: Mapping[str, Any]) -> str:
        """The id of the MLflow run of ``run`` (content of ``run.json``); see :meth:`ensure_run`."""
        return self.ensure_run(run)[0]

    def ensure_run(self, run: Mapping[str, Any]) -> tuple[str, bool]:
        """The id of the MLflow run of ``run``, and whether it was there already; else it is created.

        A run is known by its tags ``workbench.key``, ``workbench.attempt`` and ``workbench.created``, which it has from
        the moment it exists, so a crash at any point leaves no twin. What a person has changed since (name, note, tags)
        is left alone, and a run that a person has deleted raises :class:`UserError` instead of coming back.
        """
        experiment = self.experiment(run["experiment"])
        identity = _identity(run)
        found = self._find(experiment, identity, deleted_too=True)
        if found is not None and found.info.lifecycle_stage == "deleted":
            raise UserError(f"Run {run['name']!r} ({found.info.run_id}) was deleted in MLflow. Restore it there "
                            f"(mlflow runs restore --run-id {found.info.run_id}), or delete its run folder.")
        run_id = found.info.run_id if found is not None else None
        if run_id is None:
            tags = dict(identity)
            if run.get("parent"):
                tags["mlflow.parentRunId"] = self.study_run(run["parent"], run["experiment"])
            run_id = self._create(experiment, run, tags)
        if found is None or _NOTE not in found.data.tags:  # new, or a crash came between
            self._describe(run_id, run, {GROUP: _group(run), **run.get("tags", {}), **identity, _NOTE: notes.begun(run)})
        return run_id, found is not None

    def study_run(self, key: str, experiment: str, name: str | None = None, params: Mapping[str, Any] | None = None,
                  tags: Mapping[str, str] | None = None, note: str = "") -> str:
        """The id of the parent run of study ``key``, created if there is none; later calls add parameters and tags.

        All processes agree on one parent that share a SQLite file or a PostgreSQL database, or that write to a server from one
        machine. Where several machines write to a server let one create it before the others start.
        """
        study = {"key": key, "name": name or key, "params": params or {}}
        experiment_id = self.experiment(experiment)
        with exclusive(self.uri):
            identity = {"workbench.key": key, "workbench.kind": "study"}
            found = self._find(experiment_id, identity)
            run_id = found.info.run_id if found is not None else self._create(experiment_id, study, dict(identity))
        new = {**(tags or {}), **({_NOTE: note} if note else {}), **({"mlflow.runName": name} if name else {})}
        if params or new:
            self._describe(run_id, study, new)
        return run_id

    def _find(self, experiment_id: str, identity: Mapping[str, str], deleted_too: bool = False) -> Any:
        from mlflow.entities import ViewType

        terms = [f"tags.`{tag}` = " + (f'"{value}"' if "'" in value else f"'{value}'")
                 for tag, value in identity.items()]
        found = self.client.search_runs(
            [experiment_id], " and ".join(terms), ViewType.ALL if deleted_too else ViewType.ACTIVE_ONLY, 1,
            ["attributes.start_time ASC"])
        return found[0] if found else None

    def _create(self, experiment_id: str, run: Mapping[str, Any], tags: dict[str, str]) -> str:
        start = int(run["created"] * 1000) if "created" in run else None
        tags |= {"mlflow.source.name": "workbench", "mlflow.source.type": "LOCAL"}
        if commit := run.get("provenance", {}).get("commit"):
            tags["mlflow.source.git.commit"] = commit.removesuffix("+changes")
        if method := run.get("params", {}).get("method"):  # the colour that it has in our own figures
            tags[COLOUR] = style_of([method])[method].colour
        with contextlib.suppress(OSError, KeyError, ImportError):  # a user without a name
            tags["mlflow.user"] = getpass.getuser()
        return self.client.create_run(experiment_id, start, tags, run["name"]).info.run_id

    def _describe(self, run_id: str, run: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Write what is written once; the tags come last, because the note says that the rest is there."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        self.client.log_batch(run_id, params=[Param(k, str(v)) for k, v in run.get("params", {}).items()])
        if data := run.get("dataset"):
            sizes = {k.removeprefix("data."): int(v) for k, v in run.get("tags", {}).items() if k.startswith("data.") and v.isdigit()}
            entry = Dataset(data["name"], str(data["digest"]), data.get("source_type", "local"), data.get("source", data["name"]),
                            data.get("schema"), data.get("profile") or (json.dumps(sizes) if sizes else None))
            context = InputTag("mlflow.data.context", data.get("context", "train"))
            self._put_input(run_id, DatasetInput(entry, [context]))
        self.client.log_batch(run_id, tags=[RunTag(k, str(v)) for k, v in tags.items()])

    def _put_input(self, run_id: str, entry: Any) -> None:
        """Of two processes that enter a data set at once MLflow 3.17 lets the later one fail; the second time it finds the data set."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.log_inputs(run_id, [entry])
        except MlflowException as error:
            if "unique constraint" not in str(error).lower():  # in the words of SQLite and of PostgreSQL
                raise
            self.client.log_inputs(run_id, [entry])

    def add_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set those of ``tags`` that the run does not have yet."""
        from mlflow.entities import RunTag

        there = self.client.get_run(run_id).data.tags
        self.client.log_batch(run_id, tags=[RunTag(k, str(v)) for k, v in tags.items() if k not in there])

    def rewrite_note(self, run_id: str, before: str, after: str) -> None:
        """Replace the note ``before``; one that a person has edited stays."""
        if self.client.get_run(run_id).data.tags.get(_NOTE) == before:
            self.client.set_tag(run_id, _NOTE, after)

    def put_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Give the run these tags, in place of earlier values; nothing is written where it has them."""
        from mlflow.entities import RunTag

        there = self.client.get_run(run_id).data.tags
        if new := [RunTag(k, v) for k, v in tags.items() if there.get(k) != v]:
            self.client.log_batch(run_id, tags=new)

    def describe_experiment(self, experiment: str, note: str) -> None:
        """Give an experiment (a name) its description, if nobody has given it one. MLflow's list shows it as plain text."""
        found = self.client.get_experiment(self.experiment(experiment))
        if found.tags.get(_NOTE, ABOUT) == ABOUT:
            self.client.set_experiment_tag(found.experiment_id, _NOTE, note)

    # -- metrics -----------------------------------------------------------------------------------------------

    def log_points(self, run_id: str, points: Iterable[Point]) -> None:
        """Send points, at most :data:`MAX_POINTS` a request. A SQL store takes each request whole or not at all."""
        from mlflow.entities import Metric

        metrics = [Metric(p.key, p.value, p.time_ms, p.step) for p in points]
        for start in range(0, len(metrics), MAX_POINTS):
            self.client.log_batch(run_id, metrics=metrics[start:start + MAX_POINTS])

    def has_point(self, run_id: str, key: str, step: int, time_ms: int) -> bool:
        """Whether the store has a value of ``key`` at this step and time."""
        return any(m.step == step and m.timestamp == time_ms for m in self.client.get_metric_history(run_id, key))

    def count_reports(self, run_id: str, reports: Iterable[tuple[int, list[str]]]) -> int:
        """How many leading reports, given as (step, metric names), the store has.

        For a run whose cursor was lost. Only steps are compared: a resumed run has reported again at another time.
        """
        if not self.client.get_run(run_id).data.metrics:
            return 0
        there: dict[str, Counter[int]] = {}
        count = 0
        for step, keys in reports:
            for key in set(keys) - there.keys():
                there[key] = Counter(m.step for m in self.client.get_metric_history(run_id, key))
            if not all(there[key][step] for key in keys):
                break
            for key in keys:
                there[key][step] -= 1
            count += 1
        return count

    def finish(self, run_id: str, status: str, reason: str = "", time_ms: int | None = None) -> None:
        """Set the run's status: finished, failed, stopped, diverged, or running and paused for one that goes on.

        MLflow has no word for diverged (FAILED) and paused (RUNNING): the tag ``workbench.status`` has the exact one.
        """
        from mlflow.entities import RunTag

        tags = {"workbench.status": status}
        if reason or "workbench.reason" in self.client.get_run(run_id).data.tags:  # one that resumes has no reason any more
            tags["workbench.reason"] = reason
        self.client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])
        if _MLFLOW_STATUS[status] == "RUNNING":
            self.client.update_run(run_id, "RUNNING")
        else:
            self.client.set_terminated(run_id, _MLFLOW_STATUS[status], time_ms)

    def control_tag(self, run_id: str) -> str | None:
        """The word a person put into the tag ``workbench.control`` and nobody has answered yet."""
        word = self.client.get_run(run_id).data.tags.get("workbench.control", "").strip().lower()
        return word if word and not word.endswith(")") else None

    def answer_control(self, run_id: str, word: str) -> None:
        """Show in the tag that ``word`` was seen, so that it is obeyed once and can be given again."""
        known = word in REMOTE_CONTROLS
        self.client.set_tag(run_id, "workbench.control",
                            f"{word} (seen)" if known else f"{word} (unknown; use {', '.join(REMOTE_CONTROLS)})")

    def log_artifacts(self, run_id: str, paths: Iterable[Path]) -> None:
        """Copy files and the contents of folders to the run's artifacts, replacing older copies."""
        place = files.repository(self.uri, self.client, run_id)
        for path in paths:
            if path.is_dir():
                place.log_artifacts(str(path))
            else:
                place.log_artifact(str(path))

    def fetch_file(self, run_id: str, name: str, folder: Path) -> Path:
        """Copy one of the run's artifacts into ``folder``, and return the copy."""
        return Path(shutil.copy2(files.repository(self.uri, self.client, run_id).download_artifacts(name), folder))

    def run_url(self, run_id: str, experiment: str) -> str:
        """Deep link to a run of experiment ``experiment`` (a name)."""
        return pages.run(self.experiment(experiment), run_id, ui_url(self.uri))

    def experiment_url(self, experiment: str, view: str | None = None, sort: str = "eval/accuracy") -> str:
        """Deep link to the charts of experiment ``experiment`` (a name), best ``sort`` first, or as saved view ``view`` arranges them."""
        found, base = self.experiment(experiment), ui_url(self.uri)
        return pages.view(found, view, base) if view else pages.charts(found, sort, base)


def _group(run: Mapping[str, Any]) -> str:
    """By what charts average runs whose folder does not say it (those of an older version, say)."""
    return " ".join(str(run["params"][name]) for name in ("method", "task") if name in run.get("params", {}))


def _identity(run: Mapping[str, Any]) -> dict[str, str]:
    """The tags that tell a run from every other one, a repetition of the same spec included."""
    return {"workbench.key": run["key"], "workbench.attempt": str(run.get("tags", {}).get("workbench.attempt", "0")),
            "workbench.created": str(run.get("created", ""))}

