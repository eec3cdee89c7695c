"""A run on the explorer's list: what was asked for, what it has reported, and how it stands."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tracking import journal
from tracking.errors import UserError
from tracking.folder import LIVE, RunFolder
from workbench.explorer.rows import Rows
from workbench.method import Progress, View
from workbench.runs import Run, RunHandle, run, runs_root
from workbench.spec import RunSpec

ENDED = ("finished", "failed", "stopped", "diverged")
MAX_READ = 20_000  # reports read at once: a long journal is drawn while it is being read


def spec_of(folder: RunFolder) -> RunSpec:
    """What a run folder says that its run was; UserError where it is none of a run, or of a version that said it otherwise."""
    try:
        return RunSpec(**folder.read_run()["spec"])
    except (KeyError, TypeError):
        raise UserError(f"{folder.path} was written by another version of the workbench, or is damaged.") from None


@dataclass(frozen=True)
class Request:
    """What was on the form when Run was pressed: the arguments of :func:`workbench.run`."""

    method: str
    task: str
    params: dict[str, Any] = field(default_factory=dict)
    task_params: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str | None = None
    tracking: str | None = None
    fresh: bool = False


@dataclass(eq=False)
class ListedRun:
    """A run on the session's list. ``rows`` holds the journal read so far."""

    request: Request
    spec: RunSpec
    number: int
    lock: threading.RLock
    rows: Rows = field(default_factory=Rows)
    version: int = 0  # grows whenever ``rows`` changes
    progress: Progress | None = None
    reason: str = ""
    cached: bool = False
    url: str | None = None
    past: Path | None = None
    """Folder of a run that was made earlier or elsewhere, and is only looked at."""
    _status: str = "queued"
    _handle: RunHandle | None = None
    _wanted: str = "run"  # pause or stop asked for before there was a handle to tell
    _offset: int = 0
    _reporting: bool = False
    _started: float = 0.0
    _done: threading.Event = field(default_factory=threading.Event)
    _look: threading.Event | None = None
    _views: list[View] | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def key(self) -> str:
        return self.past.name if self.past is not None else self.spec.key

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.past or runs_root() / self.key)

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def status(self) -> str:
        """queued, starting, running, pausing, paused, stopping, finished, failed, stopped or diverged."""
        if self._status != "running" or self._handle is None:
            return "stopping" if self._status == "starting" and self._wanted == "stop" else self._status
        try:
            record = self._handle.folder.read_status()
        except (UserError, OSError):  # damaged, or a network's folder that is away: the next report writes it anew
            record = None
        # an older record is of an earlier life of the same folder
        said = record["status"] if record and record["time"] >= self._started else None
        if said in ENDED:  # what is left to do is to ship it to MLflow
            self.reason = record["reason"]
            return said
        position = self._handle.control.position
        if position == "stop":
            return "stopping"
        if position == "pause":
            return "paused" if said == "paused" else "pausing"
        return "running" if self._reporting and said in LIVE else "starting"

    @property
    def metrics(self) -> dict[str, float]:
        """Last value of every metric."""
        return dict(self.rows.last)

    def best(self, name: str) -> float | None:
        """Best value that a metric ever had; ``None`` where it was not reported or has no better direction."""
        return self.rows.best(name)

    def run(self) -> Run | None:
        """The ended run as :func:`workbench.run` returns it; ``None`` while it goes on or where it never began."""
        status = self.status
        return Run(self.folder, status, self.reason, self.cached, self.url) if status in ENDED and self.folder.run_path.is_file() else None

    def wait(self, timeout: float | None = None) -> str:
        """Block until the run has ended and is shipped; return its status. TimeoutError when it takes longer."""
        if not self._done.wait(timeout):
            raise TimeoutError(f"{self.name} is {self.status} after {timeout} s")
        return self.status

    def pause(self) -> None:
        self._turn("pause")

    def resume(self) -> None:
        self._turn("run")

    def stop(self) -> None:
        """End it at the next step; one that waits in the queue never starts."""
        with self.lock:
            if self._status == "queued":
                self._end("stopped", "taken off the queue")
            elif not self.ended:
                self._turn("stop")

    def views(self, timeout: float = 60.0) -> list[View]:
        """What there is to see inside the algorithm, by the method itself: now, where it runs; at its last checkpoint, where it has ended.

        Blocks until the next report of a run that goes on. UserError where nothing can be seen, TimeoutError when that takes longer.
        """
        if self.status in ("running", "pausing"):
            look = self._look = threading.Event()
            end = time.monotonic() + timeout
            while not look.wait(0.1) and self.status in ("running", "pausing"):
                if time.monotonic() > end:
                    raise TimeoutError(f"{self.name} has not reported for {timeout:g} s, so nothing new can be seen inside it.")
            if look.is_set():
                return list(self._views or [])
        if self.status not in ("paused", *ENDED) or not self.folder.run_path.is_file():
            raise UserError(f"{self.name} is {self.status}: there is nothing to look into yet.")
        state, job = Run(self.folder, self.status).state()  # a pause is saved first
        return job.method.views(state, job.task)

    def poll(self) -> bool:
        """Read what the journal has gained; returns whether there was anything.

        A run that goes on from a checkpoint first cuts its journal back, so nothing is read between the
        start and the first report.
        """
        if self._status in ("queued", "starting") or not (self._reporting or self.ended):
            return False
        before, path = self.version, self.folder.journal_path
        try:
            if os.stat(path).st_size <= self._offset:
                return False
            for count, entry in enumerate(journal.read(path, self._offset), 1):
                self.rows.append({"step": entry.step, **entry.values})
                self._offset = entry.end
                self.version += 1
                if count == MAX_READ:
                    break
        except FileNotFoundError:
            return False
        except UserError as damaged:
            self.reason = str(damaged)
        return self.version != before

    # --- the session's side -----------------------------------------------------------------------------------

    def _turn(self, word: str) -> None:
        if self._wanted != "stop":
            self._wanted = word
        if self._handle is not None and self._status == "running":
            self._handle.control.obey(self._wanted, "by request")

    def _requeue(self, request: Request) -> None:
        self.request, self._status, self._wanted, self._handle = request, "queued", "run", None
        self.reason, self.cached, self._reporting, self.past = "", False, False, None
        self._done.clear()

    def _show(self, folder: RunFolder) -> None:
        """Be a run that ended earlier: its rows are read at the next looks."""
        record = folder.read_status() or {"status": "stopped", "reason": ""}
        self.past = folder.path
        # a run that another process holds is not ours to control: it is shown as far as it has come
        self._end(record["status"] if record["status"] in ENDED else "stopped",
                  record["reason"] if record["status"] in ENDED else "as far as it had come when it was loaded")

    def _watch(self, report: Any) -> None:
        if not self._reporting:
            self._forget_rows()
            self._reporting = True
        self.progress = report.progress
        if (look := self._look) is not None and not look.is_set():
            try:
                self._views = report.method.views(report.state, report.task)
            except Exception as error:  # a picture that cannot be made must not end the run
                self._views = [View("This cannot be shown", "bars", {}, note=f"{type(error).__name__}: {error}")]
            look.set()

    def _forget_rows(self) -> None:
        self.rows, self._offset = Rows(), 0
        self.version += 1

    def _run(self) -> None:
        """Train to the end, in the caller's thread."""
        r = self.request
        self._status, self._started = "starting", time.time()
        try:
            self._handle = run(r.method, r.task, r.params, task_params=r.task_params, seed=r.seed, device=r.device,
                               tracking=r.tracking, fresh=r.fresh, wait=False, observer=self._watch)
            self._status = "running"
            self._turn(self._wanted)
            ended: Run = self._handle.wait()
        except BaseException as error:  # even a sys.exit() in a method: the queue must go on
            text = str(error).strip().splitlines() or [type(error).__name__]
            self._end("failed", text[0] if isinstance(error, UserError) else f"{type(error).__name__}: {text[0]}")
            return
        self.request = replace(r, fresh=False)  # Run once more means going on, or the cache
        if ended.cached:  # its journal is whole, and no report will announce it
            self._forget_rows()
        self.cached, self.url = ended.cached, ended.url
        self._end(ended.status, ended.reason)

    def _end(self, status: str, reason: str) -> None:
        self._status, self.reason = status, reason
        self._done.set()
