"""The runs of one kernel: a queue in which one trains at a time, and what is known of each run for drawing it.

The session outlives every panel, so a page that is loaded again, or a second ``explore()``, finds its runs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tracking import journal
from tracking.errors import UserError
from tracking.folder import LIVE
from tracking.metrics import METRICS
from tracking.store import tracking_uri
from workbench.method import Progress
from workbench.runs import Run, RunHandle, run, runs_root
from workbench.spec import RunSpec, resolve

log = logging.getLogger("workbench")

TICK_S = 0.25  # between two looks at the runs: what a browser draws without falling behind
ENDED = ("finished", "failed", "stopped", "diverged")


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


@dataclass(eq=False)
class ListedRun:
    """A run on the session's list. ``rows`` holds the journal read so far: one mapping a report, ``step`` included."""

    request: Request
    spec: RunSpec
    number: int
    lock: threading.RLock
    rows: list[dict[str, float]] = field(default_factory=list)
    version: int = 0  # grows whenever ``rows`` changes
    progress: Progress | None = None
    reason: str = ""
    cached: bool = False
    url: str | None = None
    _status: str = "queued"
    _handle: RunHandle | None = None
    _wanted: str = "run"  # pause or stop asked for before there was a handle to tell
    _offset: int = 0
    _reporting: bool = False
    _started: float = 0.0
    _done: threading.Event = field(default_factory=threading.Event)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def key(self) -> str:
        return self.spec.key

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def status(self) -> str:
        """queued, starting, running, pausing, paused, stopping, finished, failed, stopped or diverged."""
        if self._status != "running" or self._handle is None:
            return "stopping" if self._status == "starting" and self._wanted == "stop" else self._status
        record = self._handle.folder.read_status()
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
        last: dict[str, float] = {}
        for row in self.rows:
            last |= row
        return last

    def best(self, name: str) -> float | None:
        """Best value that a metric ever had; ``None`` where it was not reported or has no better direction."""
        values = [row[name] for row in self.rows if name in row]
        better = METRICS[name].better if name in METRICS else None
        return None if not values or better is None else max(values) if better == "higher" else min(values)

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

    def poll(self) -> bool:
        """Read what the journal has gained; returns whether there was anything.

        A run that goes on from a checkpoint first cuts its journal back, so nothing is read between the
        start and the first report.
        """
        if self._status in ("queued", "starting") or not (self._reporting or self.ended):
            return False
        before = self.version
        try:
            for entry in journal.read(runs_root() / self.key / "journal.jsonl", self._offset):
                self.rows.append({"step": entry.step, **entry.values})
                self._offset = entry.end
                self.version += 1
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
        self.reason, self.cached, self._reporting = "", False, False
        self._done.clear()

    def _watch(self, report: Any) -> None:
        if not self._reporting:
            self._forget_rows()
            self._reporting = True
        self.progress = report.progress

    def _forget_rows(self) -> None:
        self.rows, self._offset = [], 0
        self.version += 1

    def _run(self) -> None:
        """Train to the end, in the caller's thread."""
        r = self.request
        self._status, self._started = "starting", time.time()
        try:
            self._handle = run(r.method, r.task, r.params, task_params=r.task_params, seed=r.seed, device=r.device,
                               tracking=r.tracking, wait=False, observer=self._watch)
            self._status = "running"
            self._turn(self._wanted)
            ended: Run = self._handle.wait()
        except BaseException as error:  # even a sys.exit() in a method: the queue must go on
            text = str(error).strip().splitlines() or [type(error).__name__]
            self._end("failed", text[0] if isinstance(error, UserError) else f"{type(error).__name__}: {text[0]}")
            return
        if ended.cached:  # its journal is whole, and no report will announce it
            self._forget_rows()
        self.cached, self.url = ended.cached, ended.url
        self._end(ended.status, ended.reason)

    def _end(self, status: str, reason: str) -> None:
        self._status, self.reason = status, reason
        self._done.set()


class Session:
    """A list of runs and the thread that works through it. Listeners are called a few times a second while a run lives."""

    def __init__(self) -> None:
        self.runs: list[ListedRun] = []
        self._listeners: list[Callable[[], None]] = []
        self._lock = threading.RLock()
        self._worker: threading.Thread | None = None
        self._ticker: threading.Thread | None = None
        self._count = 0
        self._said = ""

    def listen(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called after changes, from a thread of the session."""
        self._listeners.append(listener)

    def submit(self, request: Request) -> ListedRun:
        """Check a request and queue it. The same run once more goes on where it was left, or comes from its folder.

        Raises :class:`UserError` for whatever :func:`workbench.run` would refuse, and for a run that is already on its way.
        """
        spec = resolve(request.method, request.task, request.params, task_params=request.task_params, seed=request.seed,
                       device=request.device).spec
        tracking_uri(request.tracking)
        with self._lock:
            listed = next((r for r in self.runs if r.key == spec.key), None)
            if listed is None:
                self._count += 1
                listed = ListedRun(request, spec, self._count, self._lock)
                self.runs.append(listed)
            elif not listed._done.is_set():
                raise UserError(f"This very run is {listed.status} already. Change a parameter or the seed for another one.")
            else:
                listed._requeue(request)
                self.runs.remove(listed)  # the list is the order of the queue
                self.runs.append(listed)
            self._wake()
        return listed

    @property
    def current(self) -> ListedRun | None:
        """The run that is training, or that starts next."""
        return next((r for r in self.runs if not r.ended), None)

    @property
    def live(self) -> bool:
        """Whether something trains, waits or is being shipped."""
        return any(not r._done.is_set() for r in self.runs)

    def stop_all(self) -> None:
        """Stop the run that is training and take the others off the queue."""
        for listed in reversed(list(self.runs)):
            listed.stop()

    def clear(self) -> None:
        """Take the ended runs off the list. Their folders and their MLflow runs stay."""
        with self._lock:
            self.runs = [r for r in self.runs if not r._done.is_set()]

    # --- threads ----------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Start the threads that are not there; both end when there is nothing left to do."""
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, name="workbench explorer queue", daemon=True)
            self._worker.start()
        if self._ticker is None:
            self._ticker = threading.Thread(target=self._tick, name="workbench explorer ticker", daemon=True)
            self._ticker.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                waiting = next((r for r in self.runs if r._status == "queued"), None)
                if waiting is None:
                    self._worker = None
                    return
                waiting._status = "starting"
            waiting._run()

    def _tick(self) -> None:
        while True:
            with self._lock:
                going_on = self.live
                if not going_on:
                    self._ticker = None
            for listed in list(self.runs):
                listed.poll()
            self._tell()  # once more after the end, so that the last word is shown
            if not going_on:
                return
            time.sleep(TICK_S)

    def _tell(self) -> None:
        for listener in list(self._listeners):
            try:
                listener()
            except Exception as error:  # a view that broke must not end the runs, and is worth one message
                if repr(error) != self._said:
                    self._said = repr(error)
                    log.exception("The explorer could not be drawn.")
