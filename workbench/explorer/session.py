"""The session of a kernel: a queue in which one run trains at a time, and the thread that tells of what has changed.

The session outlives every panel, so a page that is loaded again, or a second ``explore()``, finds its runs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from tracking.errors import UserError
from tracking.folder import RunFolder
from tracking.store import tracking_uri
from workbench.explorer.listed import ENDED as ENDED
from workbench.explorer.listed import ListedRun, Request, spec_of
from workbench.spec import RunSpec, resolve, whole

log = logging.getLogger("workbench")

TICK_S = 0.25  # between two looks at the runs: what a browser draws without falling behind


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
        return self.submit_all([request])[0]

    def submit_all(self, requests: Sequence[Request]) -> list[ListedRun]:
        """As :meth:`submit`, for requests that differ in the seed alone: checked once. UserError where every one of them is refused."""
        first, queued, refusal = requests[0], [], None
        spec = resolve(first.method, first.task, first.params, task_params=first.task_params, seed=first.seed, device=first.device).spec
        tracking_uri(first.tracking)
        for request in requests:
            try:
                queued.append(self._queue(request, replace(spec, seed=whole("seed", request.seed, 0))))
            except UserError as error:
                refusal = error
        if not queued:
            raise refusal
        return queued

    def _queue(self, request: Request, spec: RunSpec) -> ListedRun:
        with self._lock:
            listed = next((r for r in self.runs if r.key == spec.key), None)
            if listed is None:
                self._count += 1
                listed = ListedRun(request, spec, self._count, self._lock)
                self.runs.append(listed)
            elif listed.ended and not listed._done.is_set():
                raise UserError("This very run has ended and is still being sent to MLflow. Press again in a moment, or change something.")
            elif not listed._done.is_set():
                raise UserError(f"This very run is {listed.status} already. Change a parameter or the seed for another one.")
            else:
                listed._requeue(request)
                self.runs.remove(listed)  # the list is the order of the queue
                self.runs.append(listed)
            self._wake()
        return listed

    def rerun(self, listed: ListedRun) -> ListedRun:
        """Repeat an ended run from its first step, whatever its folder holds."""
        return self.submit(replace(listed.request, fresh=True))

    def show(self, folder: RunFolder, tracking: str | None = None) -> ListedRun:
        """Put a run that was made earlier on the list, to be drawn beside the others. UserError where the folder is none of a run."""
        spec = spec_of(folder)
        request = Request(spec.method, spec.task, spec.params, spec.task_params, spec.seed, None, tracking)
        with self._lock:
            listed = next((r for r in self.runs if r.key == folder.path.name), None)
            if listed is None:
                self._count += 1
                listed = ListedRun(request, spec, self._count, self._lock)
                listed._show(folder)
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
            news = [self._try(listed.poll) for listed in list(self.runs)]
            self._tell()  # once more after the end, so that the last word is shown
            if not going_on and not any(news):
                with self._lock:
                    if not self.live:  # nothing was submitted meanwhile
                        self._ticker = None
                        return
            time.sleep(TICK_S)

    def _tell(self) -> None:
        for listener in list(self._listeners):
            self._try(listener)

    def _try(self, look: Callable[[], bool | None]) -> bool | None:
        try:
            return look()
        except Exception as error:  # a view that broke, or a disk that is away, must not end the runs, and is worth one message
            if repr(error) != self._said:
                self._said = repr(error)
                log.exception("The explorer could not be drawn.")
        return None
