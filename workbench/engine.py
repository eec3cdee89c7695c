"""The engine: takes a validated job from start to end, and leaves a run folder that tells all about it.

One loop serves every front door. It steps the method, evaluates, writes the journal, checkpoints, obeys pause and stop, and names the
way a run ended. The clock and the energy meter run during ``Method.step`` only; where looks at the energy counters are dear, the short
gaps between steps are metered, too, and their time is known (:class:`tracking.energy.EnergyMeter`).
"""

from __future__ import annotations

import contextlib
import math
import re
import shutil
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from tracking.energy import EnergyMeter, probe
from tracking.errors import UserError
from tracking.folder import RunFolder
from tracking.journal import Journal
from tracking.memory import PeakMemory
from tracking.metrics import split_finite
from workbench import checkpoint, modelled
from workbench.control import Control, Stopped
from workbench.method import Context, Progress
from workbench.provenance import describe_data, describe_run
from workbench.spec import Job
from workbench.state import restore, snapshot, state_bytes

CHECKPOINT_S = 10.0  # seconds between checkpoints, more when writing one takes long; 0: after every report
CHECKPOINT_SHARE = 0.02  # of the run's time, at most, goes into checkpoints


class Diverged(Exception):
    """A metric of the training became nan or infinite."""


def _nothing() -> None:
    """What a context polls when its run is over."""


@dataclass
class Report:
    """What an observer gets after each step: the metrics just written and a look at the live objects."""

    step: int
    progress: Progress
    metrics: dict[str, float]
    state: Any
    method: Any
    task: Any


Observer = Callable[[Report], None]


@dataclass
class Loop:
    """One execution of a job in its folder. The folder's lock is held by the caller."""

    job: Job
    folder: RunFolder
    control: Control
    observer: Observer | None = None
    checkpoint_s: float = CHECKPOINT_S
    on_open: Callable[[], object] | None = None
    """Called when ``run.json`` is complete and the first step is due."""
    ctx: Context = field(init=False)
    state: Any = field(init=False, default=None)
    pending: dict[str, float] | None = field(init=False, default=None)  # a step's metrics whose evaluation is still due
    wall_s: float = field(init=False, default=0.0)
    over: bool = field(init=False, default=False)  # the budget is spent
    _heard: str = field(init=False, default="run")
    _saved_at: float = field(init=False, default=0.0)
    _save_cost: float = field(init=False, default=0.0)

    def run(self) -> tuple[str, str]:
        """Run to the end and return (status, reason); the same is in ``status.json``. Only a second interrupt raises."""
        threads = torch.get_num_threads()
        self.folder.write_status("running")
        self.folder.error_path.unlink(missing_ok=True)
        self.folder.control_path.unlink(missing_ok=True)  # orders were for the process before
        try:
            if self.job.spec.threads:
                torch.set_num_threads(self.job.spec.threads)
            self._open()
            try:
                self._loop()
                self._tell_resolution()
            finally:
                self.journal.close()
            ending = ("finished", "")
        except Stopped as stop:
            ending = ("stopped", str(stop))
        except Diverged as reason:
            ending = ("diverged", str(reason))
        except KeyboardInterrupt:
            self.folder.write_status("stopped", "interrupted twice; resumes from the last checkpoint")
            raise
        except Exception as error:
            ending = ("failed", self._explain(error))
        finally:
            torch.set_num_threads(threads)
            if hasattr(self, "ctx"):  # or the two would keep each other, and the data with them, until a garbage collection
                self.ctx.poll = _nothing
        try:
            self.folder.write_status(*ending)
        except OSError as error:
            ending = ("failed", f"the run folder {self.folder.path} cannot be written: {error}")
        return ending

    # --- set-up -----------------------------------------------------------------------------------------

    def _open(self) -> None:
        spec, device = self.job.spec, torch.device(self.job.device)
        if device.type == "cuda":
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        self.ctx = Context(device=device, seed=spec.seed, poll=self._poll)
        self.job.task.setup(self.ctx)
        run = self.folder.read_run()
        data = describe_data(self.job)
        self._refuse_other_data(run["tags"], data["tags"])
        self.state = self.job.method.init(self.job.task, self.ctx)
        self.energy = EnergyMeter(probe(self.job.device)[0])
        self.memory = PeakMemory(device)
        self.modelled = modelled.begin(self.job, self.state, self.folder)
        saved = checkpoint.load(self.folder, device)
        if saved:
            engine = saved["engine"]
            self.state = restore(self.state, saved["state"])
            self.ctx.ledger.load_state_dict(engine["ledger"])
            self.wall_s, self.pending, self.over = engine["wall_s"], engine["pending"], engine["over"]
            # joules of the lost tail were spent, but so were its seconds: both meters go back to the checkpoint
            self.energy.resume(engine["energy"], begun=self.wall_s > 0)
        self.journal = Journal(self.folder.journal_path, truncate_at=saved["engine"]["journal"] if saved else 0)
        tags = run["tags"] | self.energy.tags() | self.modelled.tags | data["tags"]
        self.folder.write_run(run | {"tags": tags, "dataset": data["dataset"]})
        if self.on_open:
            self.on_open()
        self._saved_at = time.monotonic()

    def _refuse_other_data(self, before: dict[str, str], now: dict[str, str]) -> None:
        """What is resumed was computed on the data that the run began with: the rest must be, too."""
        if "data.digest" in before and "data.digest" in now and before["data.digest"] != now["data.digest"]:
            told = [f"{tags.get('data.source', 'unstated')} (digest {tags['data.digest']})" for tags in (before, now)]
            raise UserError(f"This run was begun on other data: {told[0]}. At hand are: {told[1]}. "
                            "Bring the first back to go on, or repeat the run with fresh=True (--fresh).")

    # --- the loop ---------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while self.pending is not None or not self._ended():
            if self.pending is None:
                self._obey()
                metrics = self._step()
                self.over = self._over_budget(metrics)
                if not self._ended() and not self.job.method.evaluation_due(self.state):
                    self._report(metrics)
                    self._save_if_due()
                    continue
                self.pending = metrics | self.energy.settle()  # the evaluation does not count
            try:
                metrics = self.pending | self.job.method.evaluate(self.state, self.job.task, self.ctx) | self._memory()
            except Stopped:
                self._save()  # with the pending metrics: the evaluation is repeated on resuming
                raise
            self.pending = None
            self._report(metrics)
            self._save_if_due()
        self._save()

    def _ended(self) -> bool:
        done, total = self.job.method.progress(self.state)
        return self.over or done >= total

    def _over_budget(self, metrics: dict[str, float]) -> bool:
        return any(metrics.get(name, -math.inf) >= cap for name, cap in self.job.spec.budget.items())

    def _step(self) -> dict[str, float]:
        cuda = self.ctx.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize(self.ctx.device)  # what the evaluation left in the queue is not the step's
        self.energy.start()
        begin = time.perf_counter()
        metrics = self.job.method.step(self.state, self.job.task, self.ctx)
        if cuda:
            torch.cuda.synchronize(self.ctx.device)
        self.wall_s += time.perf_counter() - begin
        joules = self.energy.stop(soon=True)
        return {**metrics, "clock/wall_s": self.wall_s, **self.ctx.ledger.metrics(), **joules, **self.modelled.metrics(metrics)}

    def _tell_resolution(self) -> None:
        """Tag the finished run with how exact its joules are, and why some are missing."""
        if tags := self.energy.closing_tags():
            run = self.folder.read_run()
            self.folder.write_run(run | {"tags": run["tags"] | tags})

    def _memory(self) -> dict[str, float]:
        figures = {"memory/state_bytes": float(state_bytes(snapshot(self.state)))}
        peak = self.memory.read()
        return figures if peak is None else figures | {"memory/peak_bytes": float(peak)}

    def _report(self, metrics: dict[str, float]) -> None:
        finite, other = split_finite(metrics)
        progress = self.job.method.progress(self.state)
        self.journal.append(progress.done, finite)
        if self.observer:
            self.observer(Report(progress.done, progress, finite, self.state, self.job.method, self.job.task))
        if other:
            named = ", ".join(f"{name} = {value}" for name, value in sorted(other.items()))
            raise Diverged(f"{named} at step {progress.done}. A smaller learning rate is the usual remedy.")

    # --- control and checkpoints ------------------------------------------------------------------------

    def _poll(self) -> None:
        word = self.folder.control()
        if word != self._heard:  # only a change is an order: an absent file must not undo a pause from elsewhere
            self._heard = word
            self.control.obey(word, "through its run folder")
        self.control.poll()

    def _obey(self) -> None:
        """Before a step: stop, or wait while paused. A pause is saved first, so that it can last."""
        try:
            self._poll()
            if self.control.position == "pause":
                self._save()
                self.folder.write_status("paused")
                while self.control.wait_while_paused(0.2):
                    self._poll()
                self._poll()
                self.folder.write_status("running")
        except Stopped:
            self._save()
            raise

    def _save_if_due(self) -> None:
        pause = self.checkpoint_s and max(self.checkpoint_s, self._save_cost / CHECKPOINT_SHARE)
        if time.monotonic() - self._saved_at >= pause:
            self._save()

    def _save(self) -> None:
        begin = time.monotonic()
        self.journal.flush(sync=True)
        checkpoint.save(self.folder, self.state, {
            "journal": self.journal.offset, "wall_s": self.wall_s, "pending": self.pending, "over": self.over,
            "ledger": self.ctx.ledger.state_dict(), "energy": self.energy.state_dict(),
        })
        self._saved_at = time.monotonic()
        self._save_cost = self._saved_at - begin

    def _explain(self, error: Exception) -> str:
        """One line for a person; the traceback goes into ``error.txt``."""
        with contextlib.suppress(OSError):
            self.folder.error_path.write_text("".join(traceback.format_exception(error)))
        if isinstance(error, UserError):  # written for a person, with the remedy in its later lines
            return " ".join(str(error).split("\n"))
        text = str(error).strip().splitlines()[0] if str(error).strip() else ""
        # the CPU allocator says "can't allocate memory" in a RuntimeError
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or re.search("out of memory|t allocate memory", text, re.I):
            return "out of memory. Take a smaller batch_size or width, or another device."
        return f"{type(error).__name__}: {text}" if text else type(error).__name__


def prepare(job: Job, folder: RunFolder, *, experiment: str, fresh: bool, parent: str | None, tags: dict[str, str]) -> None:
    """Write ``run.json`` of a new run, or keep the one that an interrupted run left. ``fresh`` clears the folder first."""
    attempt = 0
    if folder.run_path.is_file():
        run = folder.read_run()
        if not fresh:
            return
        attempt = int(run["tags"]["workbench.attempt"]) + 1
        # in this order, a kill in between leaves no result without its journal and no checkpoint without the lines it counts on
        for path in (folder.status_path, folder.checkpoint_path, folder.journal_path, folder.run_path):
            path.unlink(missing_ok=True)
        for path in folder.path.iterdir():
            if path.name != ".lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    folder.write_run(describe_run(job, experiment=experiment, attempt=attempt, parent=parent, tags=tags))
