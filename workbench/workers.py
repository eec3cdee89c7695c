"""Child processes that run the jobs of a sweep: a crash, or a kill for memory, is one run's alone."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import IO, Any

from tracking.folder import RunFolder
from workbench.control import Control
from workbench.runs import Run, runs_root

Outcome = Run | str | None
"""A run that ended, why there is none, or ``None`` for one that a stop kept from starting."""


def in_processes(jobs: list[dict[str, Any]], control: Control, workers: int, tick: Callable[[int], Any]) -> list[Outcome]:
    """Run the jobs in ``workers`` child processes, each of which takes one after the other; outcomes in the order of the jobs."""
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    there = [_Worker() for _ in range(min(workers, len(jobs)))]
    for worker in there:
        idle.put(worker)

    def work(job: dict[str, Any]) -> Outcome:
        worker = idle.get()
        try:
            return worker.run(job, control)
        finally:
            idle.put(worker)

    try:
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(work, job) for job in jobs]
            for future in as_completed(futures):
                future.result()
                tick(1)
        return [f.result() for f in futures]
    finally:
        for worker in there:
            worker.close()


class _Worker:
    """A child process that runs jobs; started when there is one, and anew after it died."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None
        self._errors: IO[str] | None = None

    def run(self, job: dict[str, Any], control: Control) -> Outcome:
        """Run a job in the child; ``None`` when the sweep was stopped before it began."""
        if control.position == "stop":
            return None
        if self._child is None:
            self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, it lives as long as the child
            self._child = subprocess.Popen([sys.executable, "-m", "workbench.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                           stderr=self._errors, text=True, bufsize=1)
        done = threading.Event()
        threading.Thread(target=_stop_with, args=(self._child, control, done), daemon=True).start()
        try:
            self._child.stdin.write(json.dumps(job) + "\n")
            line = self._child.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            done.set()
        if not line:
            return self._lost(control)
        answer = json.loads(line)
        if "error" in answer:
            return answer["error"]
        return Run(RunFolder(runs_root() / answer["key"]), answer["status"], answer["reason"], answer["cached"], answer["url"])

    def _lost(self, control: Control) -> Outcome:
        """What became of a child that gave no answer."""
        code = self._child.wait()
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines()
        self.close()
        if code < 0 and control.position == "stop":  # it was still importing, so it had no run to stop
            return None
        if code < 0:
            return f"its process was killed by {signal.Signals(-code).name}; run the sweep again to resume it"
        return (said or [f"its process ended with code {code}"])[-1]

    def close(self) -> None:
        """End the child, which has no job."""
        if self._child is None:
            return
        with self._child as child, contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        self._errors.close()
        self._child = self._errors = None


def _stop_with(child: subprocess.Popen, control: Control, done: threading.Event) -> None:
    """Hand a stop on to the child while it has a job: SIGTERM makes it end its run as stopped."""
    while not done.wait(0.1):
        if control.position == "stop":
            child.terminate()
            return
