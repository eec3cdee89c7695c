"""Runs that were made earlier or elsewhere: found in the run folders or in MLflow, put into the form or drawn beside the others."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets as w

from tracking import files
from tracking.address import home, public_uri, scrub, tracking_uri
from tracking.errors import UserError, unknown
from tracking.folder import STATUSES, RunFolder
from workbench.explorer.plots import Worker
from workbench.runs import runs_root

LISTED = 200  # newest runs of a list
RUN_ID = re.compile(r"(?:^|/runs/)([0-9a-f]{32})(?:[/?#]|$)")
SILENT = re.compile("connection refused|timed out|failed to resolve|name resolution|connection reset|no route to host", re.I)
"""What the errors of clients say, among much else, of a server that is not there."""


@dataclass(frozen=True)
class PastRun:
    """A run on a list: ``id`` is the name of its folder or its MLflow run id."""

    id: str
    name: str
    status: str
    created: float

    @property
    def label(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.created)) if self.created else "undated"
        return f"{when}  {self.name}  {self.status}"


def in_folders(limit: int = LISTED) -> list[PastRun]:
    """The newest runs whose folders lie in the workbench's home."""
    dated = []
    for path in runs_root().glob("*/run.json"):
        with contextlib.suppress(OSError):  # deleted meanwhile
            dated.append((path.stat().st_mtime, path.parent))
    return sorted((_in_folder(path, when) for when, path in sorted(dated, reverse=True)[:limit]), key=lambda r: -r.created)


def _in_folder(path: Path, changed: float) -> PastRun:
    folder = RunFolder(path)
    try:
        run, status = folder.read_run(), folder.read_status() or {}
        return PastRun(path.name, str(run["name"]), str(status.get("status", "not begun")), float(run.get("created", 0.0)))
    except (UserError, OSError, KeyError, TypeError, ValueError, AttributeError):  # whoever takes it is told why
        return PastRun(path.name, path.name, "cannot be read", changed)


def in_store(uri: str, limit: int = LISTED) -> list[PastRun]:
    """The newest runs of the workbench in a store, studies left out."""
    from tracking.store import Store

    with answering(uri):
        client = Store(uri).client
        experiments = [e.experiment_id for e in client.search_experiments()]
        rows = client.search_runs(experiments, "tags.`workbench.method` != ''", max_results=limit, order_by=["attributes.start_time DESC"])
    return [PastRun(r.info.run_id, r.info.run_name, r.data.tags.get("workbench.status", r.info.status.lower()),
                    (r.info.start_time or 0) / 1000) for r in rows]


@contextlib.contextmanager
def answering(uri: str) -> Iterator[None]:
    """What goes wrong between here and MLflow as one sentence, which holds no password of the address."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = scrub(str(error).strip().partition("\n")[0] or type(error).__name__, uri)
        silent = SILENT.search(text)
        where = f"MLflow at {public_uri(uri)}"
        raise UserError(f"{where} does not answer ({silent[0].lower()}). Is it running? `workbench ui` starts one here; the run folders "
                        "of this machine can be read without it." if silent else f"{where} did not give it: {text}") from None


def fetch(uri: str, run_id: str) -> RunFolder:
    """The run folder of an MLflow run: the one in this home, or a copy made of the run's artifacts."""
    from tracking.store import Store

    with answering(uri):
        store = Store(uri)
        run = store.client.get_run(run_id)
    key = run.data.tags.get("workbench.key", "")
    # a tag is what anybody may have written, and here it becomes the name of a folder
    if not re.fullmatch(r"[\w-]+", key) or "workbench.method" not in run.data.tags:
        raise UserError(f"MLflow run {run_id!r} is no run of the workbench: it has no tags workbench.key and workbench.method.")
    here = RunFolder(runs_root() / key)
    if here.run_path.is_file() and str(here.read_run().get("created", "")) == run.data.tags.get("workbench.created", ""):
        return here
    copy = RunFolder(home() / "fetched" / f"{key}.{run_id[:8]}")  # a run that was repeated has its key more than once
    with answering(uri):
        there = {file.path for file in files.repository(uri, store.client, run_id).list_artifacts()}
        if "run.json" not in there:
            raise UserError(f"MLflow run {run_id!r} has no run.json yet: a run ships its files when it ends.")
        copy.path.mkdir(parents=True, exist_ok=True)
        for name in ("run.json", "journal.jsonl"):  # one that failed before its first report has no journal
            if name in there:
                store.fetch_file(run_id, name, copy.path)
    said = run.data.tags.get("workbench.status", "")
    copy.write_status(said if said in STATUSES else "stopped", run.data.tags.get("workbench.reason", ""))
    return copy


def by_name(name: str) -> RunFolder:
    """The run folder of this home whose name is, or begins with, ``name``."""
    known = sorted(p.parent.name for p in runs_root().glob("*/run.json"))
    fits = [k for k in known if k == name] or [k for k in known if name and k.startswith(name)]
    if not fits:
        raise unknown("run", name, known[:8])
    if len(fits) > 1:
        raise UserError(f"{name!r} is the beginning of {len(fits)} run folders; give more of it.")
    return RunFolder(runs_root() / fits[0])


class Past:
    """A list of earlier runs with a filter; ``load`` puts one into the form, ``show`` draws it. ``tracking`` gives the store in use.

    Both return what there is to say of it, or raise what went wrong.
    """

    def __init__(self, tracking: Callable[[], str | None], load: Callable[[str], str], show: Callable[[str], str]) -> None:
        self._tracking, self.worker = tracking, Worker()
        self._found: list[PastRun] = []
        short = {"style": {"description_width": "initial"}}
        self.source = w.Dropdown(options=["run folders", "MLflow"], description="From", tooltip="where to look for runs", **short)
        self.words = w.Text(description="Filter", placeholder="method, task, status …", tooltip="words that the line of a run has", **short)
        self.list = w.Select(options=[], rows=10, description="Runs", tooltip="choose with the arrow keys or by a click", **short)
        self.list.add_class("wb-list")
        self.refresh = w.Button(description="Look again", icon="refresh", tooltip="read the list anew")
        self.load = w.Button(description="Into the form", icon="edit", tooltip="put its parameters into the form")
        self.show = w.Button(description="Draw beside", icon="line-chart", tooltip="draw its curves beside the others")
        self.given = w.Text(description="or id or link", placeholder="MLflow run id, link to its page, or folder",
                            tooltip="another run, by its MLflow id, the link to its page, or the name of its folder", **short)
        bars = [w.Box([self.source, self.words, self.refresh]), w.Box([self.given, self.load, self.show])]
        for bar in bars:
            bar.add_class("wb-bar")
        self.box = w.VBox([w.HTML("<h4>Past runs</h4>"), bars[0], self.list, bars[1], self.worker.note])
        self.source.observe(lambda _: self.open(), names="value")
        self.words.observe(lambda _: self._filter(), names="value")
        self.refresh.on_click(lambda _: self.open())
        for button, act in ((self.load, load), (self.show, show)):
            button.on_click(lambda _, act=act: self._act(act))

    def open(self) -> None:
        """Read the list."""
        self.worker.ask(self._read, "Reading the list …" if self.source.value == "run folders" else "Asking MLflow …")

    def folder(self, run: Any) -> RunFolder:
        """The folder of a run given as folder, by name, or by MLflow id or link."""
        if isinstance(run, RunFolder | Path):
            return run if isinstance(run, RunFolder) else RunFolder(run)
        text = str(run).strip()
        if found := RUN_ID.search(text):
            uri = tracking_uri(self._tracking())
            if uri is None:
                raise UserError("Tracking is off, so there is no MLflow to ask. Give the name of a run folder.")
            return fetch(uri, found[1])
        return by_name(text)

    def _read(self) -> str:
        if self.source.value == "run folders":
            self._found, where = in_folders(), str(runs_root())
        else:
            uri = tracking_uri(self._tracking())
            if uri is None:
                raise UserError("Tracking is off, so there is no MLflow to ask.")
            self._found, where = in_store(uri), public_uri(uri)
        self._filter()
        newest = f" (the newest {LISTED})" if len(self._found) == LISTED else ""
        return f"{len(self._found)} run{'s' * (len(self._found) != 1)} in {where}{newest}."

    def _filter(self) -> None:
        words = self.words.value.lower().split()
        shown = [r for r in self._found if all(word in r.label.lower() for word in words)]
        options = [(r.label, r.id) for r in shown]
        if list(self.list.options) != options:
            self.list.options = options
            self.list.value = None

    def _act(self, act: Callable[[str], str]) -> None:
        chosen = self.given.value.strip() or self.list.value
        if not chosen:
            self.worker.say("Choose a run on the list first, or give an id.", bad=True)
            return
        self.worker.ask(lambda: act(chosen), "Reading the run …")
