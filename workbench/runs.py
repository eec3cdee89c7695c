"""Runs as a person holds them: start one, wait for it, look at its figures, take its trained state away."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracking import journal, service
from tracking.address import available, home, public_uri, tracking_uri
from tracking.errors import UserError
from tracking.folder import LIVE, RunFolder
from tracking.metrics import METRICS, metric
from workbench import checkpoint
from workbench.control import Control, signals
from workbench.modelled import HARDWARE, SCENARIO, estimate_run
from workbench.progress_bar import progress_bar
from workbench.spec import Job, resolve
from workbench.state import restore

if TYPE_CHECKING:
    import pandas

    from tracking.energy_model import Estimate
    from workbench.engine import Observer, Report

log = logging.getLogger("workbench")


class RunFailed(Exception):
    """A run ended as failed; the message is one line and names the file with the traceback."""


@dataclass
class Run:
    """A run that has ended, read from its folder. ``frame`` and ``metrics`` come from the journal."""

    folder: RunFolder
    status: str
    reason: str = ""
    cached: bool = False
    url: str | None = None

    @property
    def key(self) -> str:
        return self.folder.path.name

    @property
    def spec(self) -> dict[str, Any]:
        """Method, task, parameters, seed, device and budget."""
        return self.folder.read_run()["spec"]

    @property
    def provenance(self) -> dict[str, str]:
        return self.folder.read_run()["provenance"]

    def frame(self) -> pandas.DataFrame:
        """One row a report, one column a metric; absent is NaN."""
        return journal.frame(self.folder.journal_path)

    @property
    def metrics(self) -> dict[str, float]:
        """Last value of every metric."""
        last: dict[str, float] = {}
        for entry in journal.read(self.folder.journal_path):
            last |= entry.values
        return last

    def best(self, name: str) -> float:
        """Best value a metric ever had, in its own direction."""
        if metric(name).better is None:
            raise UserError(f"{name} has no better direction.")
        column = self.frame()[name].dropna()
        return float(column.max() if METRICS[name].better == "higher" else column.min())

    def energy(self, hardware: str = HARDWARE, scenario: str = SCENARIO) -> Estimate:
        """Modelled energy of one training batch on any hardware, in any scenario of the energy model, without training anew.

        ``.per_sample_j`` is what ``energy/model_j`` grows by for each training sample; ``.table()`` splits it by layer, pass and memory
        level. UserError for unknown names, and for a run that kept no trace of its network.
        """
        return estimate_run(self, hardware, scenario)

    def state(self) -> tuple[Any, Job]:
        """The State at the last checkpoint (the trained one, for a finished run), rebuilt on this machine, and its job."""
        import torch

        from workbench.method import Context

        spec = self.spec
        job = resolve(spec["method"], spec["task"], spec["params"], task_params=spec["task_params"], seed=spec["seed"],
                      device=spec["device"] if torch.cuda.is_available() else "cpu", threads=spec["threads"] or None,
                      budget=spec["budget"])
        saved = checkpoint.load(self.folder, job.device)
        if saved is None:
            raise UserError(f"{self.folder.path} holds no checkpoint.")
        ctx = Context(device=torch.device(job.device), seed=spec["seed"])
        job.task.setup(ctx)
        return restore(job.method.shell(job.task, ctx), saved["state"]), job

    def __repr__(self) -> str:
        named = [f"{n}={v:.4g}" for n, v in self.metrics.items() if n in ("eval/accuracy", "eval/loss", "clock/wall_s")]
        return f"<Run {self.folder.read_run()['name']} {self.status}{' ' + self.reason if self.reason else ''} {' '.join(named)}>"


@dataclass
class RunHandle:
    """A run that goes on in a thread of its own: the kernel stays usable."""

    name: str
    folder: RunFolder
    control: Control
    computed: threading.Event = field(default_factory=threading.Event)
    """Set when the computing is over; the shipping to MLflow may still go on until :meth:`wait` returns."""
    _recorder: service.RemoteRecorder | None = field(init=False, default=None)
    _thread: threading.Thread = field(init=False)
    _result: Run | None = field(init=False, default=None)
    _error: BaseException | None = field(init=False, default=None)

    def pause(self) -> None:
        self.control.pause()

    def resume(self) -> None:
        self.control.resume()

    def stop(self) -> None:
        self.control.stop("stopped by request")

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def status(self) -> str:
        """running, paused, finished, failed, stopped, diverged; ``"queued"`` before the first sign of life."""
        if not self.alive:
            return self._result.status if self._result else "failed"
        if self.control.position == "pause" and not self.computed.is_set():
            return "paused"
        record = self.folder.read_status()
        if record is None or (record["status"] not in LIVE and not self.computed.is_set()):
            return "queued"  # what the folder says is of an earlier attempt
        return record["status"]

    @property
    def url(self) -> str | None:
        """The run's page in MLflow, as soon as MLflow has the run."""
        return self._recorder.url if self._recorder else None

    def frame(self) -> pandas.DataFrame:
        """The journal so far."""
        return journal.frame(self.folder.journal_path)

    def wait(self, timeout: float | None = None) -> Run:
        """Block until the run has ended and return it; raises what the run raised, or TimeoutError."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"{self.name} still runs after {timeout} s")
        if self._error:
            raise self._error
        return self._result


def runs_root() -> Path:
    """Where run folders lie."""
    return home() / "journals"


def run(
    method: str,
    task: str,
    params: Mapping[str, Any] | None = None,
    *,
    task_params: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str | None = None,
    threads: int | None = None,
    budget: Mapping[str, float] | None = None,
    fresh: bool = False,
    wait: bool = True,
    progress: bool = True,
    tracking: str | None = None,
    experiment: str = "workbench",
    parent: str | None = None,
    tags: Mapping[str, str] | None = None,
    observer: Observer | None = None,
    checkpoint_s: float | None = None,
) -> Run | RunHandle:
    """Run ``method`` on ``task`` and return the ended :class:`Run` (or a :class:`RunHandle` at once, with ``wait=False``).

    A finished run with the same method, task, parameters, seed, budget, device and code is returned from its folder, not repeated;
    ``fresh=True`` repeats it, and so do other data under the name of its data set. An interrupted one goes on from its last checkpoint.

    Args:
        params, task_params: values by name; see ``workbench.describe``. What is left out takes its default.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:<n>"``; ``None`` takes CUDA where there is one.
        threads: CPU threads; ``None`` takes all.
        budget: caps on cumulative metrics; the run ends at the first report that reaches one.
        tracking: MLflow address, ``"off"``, or ``None`` for ``$MLFLOW_TRACKING_URI`` or else the project's own SQLite file.
        experiment: MLflow experiment.
        observer: called with a :class:`workbench.engine.Report` after each step, in the run's thread. It must not change the state.
        checkpoint_s: seconds between checkpoints (0: after every report); ``None`` takes the default, 10 s.

    Raises:
        UserError: a misspelt name, a value out of range, a missing data set; before any work starts where it can be known.
        RunFailed: the run ended with an error; its traceback is in ``error.txt`` of the run folder.
    """
    uri = _store_uri(tracking)
    if uri:
        service.warm()  # it imports MLflow while this process imports torch
    job = resolve(method, task, params, task_params=task_params, seed=seed, device=device, threads=threads, budget=budget)
    folder = RunFolder(runs_root() / job.spec.key)
    handle = RunHandle(job.spec.name, folder, Control())

    def work() -> Run:
        try:
            return _execute(job, handle, fresh=fresh, progress=progress and wait, uri=uri, experiment=experiment, parent=parent,
                            tags=dict(tags or {}), observer=observer, checkpoint_s=checkpoint_s)
        finally:
            handle.computed.set()

    if wait:
        with signals(handle.control):
            ended = work()
        if ended.status == "failed":
            raise RunFailed(f"{job.spec.name} failed: {ended.reason} (traceback: {folder.error_path})")
        return ended

    def target() -> None:
        try:
            handle._result = work()
        except BaseException as error:
            handle._error = error

    handle._thread = threading.Thread(target=target, name=f"run {job.spec.name}", daemon=True)
    handle._thread.start()
    return handle


def _store_uri(tracking: str | None) -> str | None:
    """Where to record: ``None`` when off, or when nothing was asked for and MLflow is not installed (a compute node)."""
    uri = tracking_uri(tracking)
    if uri is None or available():
        return uri
    if tracking is not None:
        raise UserError(f"tracking = {public_uri(tracking)!r} needs MLflow, which is not installed. Use tracking='off' here, and "
                        "`workbench sync` where the run folders are brought home.")
    log.warning("MLflow is not installed here: the run is kept in its folder; `workbench sync` imports it elsewhere.")
    return None


def _execute(job: Job, handle: RunHandle, *, fresh: bool, progress: bool, uri: str | None, experiment: str, parent: str | None,
             tags: dict[str, str], observer: Observer | None, checkpoint_s: float | None) -> Run:
    from workbench.engine import CHECKPOINT_S, Loop, prepare
    from workbench.provenance import on_other_data

    folder, control = handle.folder, handle.control
    with folder.lock():
        before = folder.read_status()
        finished = before is not None and before["status"] == "finished" and not fresh
        if finished and on_other_data(folder.read_run(), job.task.dataset):  # without them its figures stand
            log.warning("%s is repeated: the data set %r here is not the one of its kept figures.", job.spec.name, job.task.dataset)
            finished, fresh = False, True
        if not finished:
            prepare(job, folder, experiment=experiment, fresh=fresh, parent=parent, tags=tags)
        recorder = service.RemoteRecorder(folder, uri, on_control=lambda word: control.obey(word, "from MLflow")) if uri else None
        handle._recorder = recorder
        if finished:  # still shipped: this store may not have it yet
            return Run(folder, "finished", cached=True, url=_ship(recorder) if recorder else None)
        bar = progress_bar(job.spec.name) if progress else None

        def watch(report: Report) -> None:
            if bar:
                bar(report)
            if observer:
                observer(report)

        try:
            # a store writes down the data set when it makes the run, so the recorder waits until the data are known
            loop = Loop(job, folder, control, watch, CHECKPOINT_S if checkpoint_s is None else checkpoint_s,
                        on_open=recorder.start if recorder else None)
            status, reason = loop.run()
        finally:
            if bar:
                bar(None)
            handle.computed.set()
            url = _ship(recorder) if recorder else None
        return Run(folder, status, reason, url=url)


def _ship(recorder: service.RemoteRecorder) -> str | None:
    """Wait a little for the store to have everything; say so when it has not."""
    recorder.start()  # a run that failed before its first step is shipped, too
    left = recorder.close(timeout_s=30.0)  # a first run imports MLflow and makes its database meanwhile
    if left:
        log.warning("%d points are not in MLflow yet (%s). Nothing is lost: `workbench sync` ships the rest.", left, recorder.error)
    return recorder.url
