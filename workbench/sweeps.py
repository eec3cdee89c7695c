"""Sweeps: many runs, over grids and seeds, here or in processes of their own; one that fails takes no other down."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tracking.address import tracking_uri
from tracking.errors import UserError, unknown
from workbench.control import Control, signals
from workbench.runs import Run, RunHandle, run
from workbench.spec import cores, resolve, whole
from workbench.workers import Outcome, in_processes

if TYPE_CHECKING:
    import pandas

EXECUTORS = ("local", "processes")
SPEC_FIELDS = ("method", "task", "params", "task_params", "seed", "device", "threads", "budget")
RUN_FIELDS = (*SPEC_FIELDS, "fresh", "tracking", "experiment", "parent", "tags", "observer", "checkpoint_s")


@dataclass
class Sweep:
    """The ended runs of a sweep, in the order asked for, and what went wrong with the others."""

    runs: list[Run] = field(default_factory=list)
    failures: list[tuple[dict[str, Any], str]] = field(default_factory=list)

    def table(self) -> pandas.DataFrame:
        """One row a run: what was varied and the last value of every metric."""
        import pandas

        rows = []
        for r in self.runs:
            spec = r.spec
            rows.append({"method": spec["method"], "task": spec["task"], "seed": spec["seed"], "status": r.status,
                         **spec["params"], **r.metrics, "key": r.key})
        return pandas.DataFrame(rows)


def grid(method: str | Sequence[str], task: str | Sequence[str], params: Mapping[str, Any] | None = None,
         **varied: Sequence[Any]) -> list[dict[str, Any]]:
    """All combinations of methods, tasks and the values of the varied parameters, as run dictionaries.

    ``params`` are common to all: ``grid("askewsgd", "digits/mlp", {"epochs": 5}, alpha=[0.2, 0.5], lr=[0.01, 0.03])`` gives four.
    """
    methods = [method] if isinstance(method, str) else list(method)
    tasks = [task] if isinstance(task, str) else list(task)
    for name, values in varied.items():
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise UserError(f"grid: {name} = {values!r} is refused. Give a list of values.")
    return [{"method": m, "task": t, "params": {**(params or {}), **dict(zip(varied, values, strict=True))}}
            for m, t in itertools.product(methods, tasks) for values in itertools.product(*varied.values())]


def sweep(
    runs: Iterable[Mapping[str, Any]],
    *,
    seeds: int | Iterable[int] | None = None,
    executor: Literal["local", "processes"] = "local",
    workers: int | None = None,
    progress: bool = True,
    seconds: float | None = None,
    **common: Any,
) -> Sweep:
    """Run every dictionary of ``runs`` (the arguments of :func:`workbench.run`) for every seed.

    All are checked before the first starts. Finished runs come from the cache. ``executor="processes"`` runs them in child
    processes, ``workers`` at a time (default: one for each two cores), and splits the CPU threads among them. SIGINT stops the sweep;
    the runs under way end as stopped and resume when the sweep is asked for again.

    Args:
        seeds: a number of seeds (0, 1, …) or the seeds; ``None`` keeps each dictionary's own.
        seconds: stop the sweep, as SIGINT does, when it has taken so long; ``None``: never.
        common: further arguments of :func:`workbench.run` for all (device, threads, tracking, experiment, …).
    """
    if executor not in EXECUTORS:
        raise unknown("executor", executor, EXECUTORS)
    if seconds is not None and not (isinstance(seconds, (int, float)) and seconds > 0):
        raise UserError(f"seconds = {seconds!r} is refused. Allowed: number, 0 < x, or None.")
    jobs = _expand(runs, seeds, common)
    workers = max(1, cores() // 2) if workers is None else whole("workers", workers, 1)
    if executor == "processes":
        for job in jobs:
            if job.get("threads") is None:
                job["threads"] = max(1, cores() // workers)
    keys = [_check(job, executor) for job in jobs]  # all mistakes before any work
    once = {key: job for key, job in zip(keys, jobs, strict=True)}  # asked for twice is run once
    with _bar(len(once), progress) as bar:
        work = functools.partial(in_processes, workers=workers) if executor == "processes" else _local
        control = Control()
        with signals(control), _alarm(control, seconds):
            outcomes = dict(zip(once, work(list(once.values()), control, tick=bar.update), strict=True))
    result = Sweep()
    for key, job in zip(keys, jobs, strict=True):
        if isinstance(outcomes[key], Run):
            result.runs.append(outcomes[key])
        elif outcomes[key] is not None:
            result.failures.append((job, outcomes[key]))
    return result


def _check(job: Mapping[str, Any], executor: str) -> str:
    """Refuse what a run would refuse, and what a child process cannot be handed; return the run's key."""
    for name in job:
        if name not in RUN_FIELDS:
            raise unknown("argument of a run in a sweep", name, RUN_FIELDS)
    for name in ("method", "task"):
        if name not in job:
            raise UserError(f"A run of the sweep names no {name}: {dict(job)!r}.")
    if executor == "processes":
        if job.get("observer") is not None:
            raise UserError("An observer cannot follow a run into another process. Use executor='local', or leave it out.")
        try:
            json.dumps(job)
        except (TypeError, ValueError) as error:
            raise UserError(f"A run of the sweep cannot be handed to another process: {error}. Use executor='local'.") from None
    tracking_uri(job.get("tracking"))
    return resolve(**{k: v for k, v in job.items() if k in SPEC_FIELDS}).spec.key


@contextlib.contextmanager
def _alarm(control: Control, seconds: float | None) -> Iterator[None]:
    """Turn the switch to stop when the time is up."""
    timer = threading.Timer(seconds or 0.0, control.stop, [f"the sweep's {seconds:g} s were over" if seconds else ""])
    timer.daemon = True
    if seconds:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _local(jobs: list[dict[str, Any]], control: Control, tick: Callable[[int], Any]) -> list[Outcome]:
    """One after the other, here; the shipping of a run goes on beside the next one. A signal stops the run under way and ends the sweep."""
    handles = []
    for job in jobs:
        handle: RunHandle | str | None = None
        if control.position != "stop":
            try:
                handle = run(**job, wait=False)
            except UserError as error:
                handle = str(error)
            else:
                while not handle.computed.wait(0.05):
                    if control.position == "stop":
                        handle.control.stop(control.reason)
        handles.append(handle)
        tick(1)
    return [_outcome(h) if isinstance(h, RunHandle) else h for h in handles]


def _outcome(handle: RunHandle) -> Outcome:
    try:
        ended = handle.wait()
    except Exception as error:
        return str(error)
    return f"{ended.reason} (traceback: {ended.folder.error_path})" if ended.status == "failed" else ended


def _bar(total: int, progress: bool) -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return _NoBar()
    return tqdm(total=total, desc="sweep", unit="run", disable=not progress)


class _NoBar:
    """Stands in for tqdm on a machine without it."""

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def update(self, n: int) -> None: ...


def _expand(runs: Iterable[Mapping[str, Any]], seeds: int | Iterable[int] | None, common: Mapping[str, Any]) -> list[dict[str, Any]]:
    if seeds is not None and (isinstance(seeds, (bool, str)) or not isinstance(seeds, (int, Iterable))):
        raise UserError(f"seeds = {seeds!r} is refused. Give a number of seeds, or a list of them.")
    chosen = [None] if seeds is None else list(range(seeds)) if isinstance(seeds, int) else [whole("seed", s, 0) for s in seeds]
    jobs = [{**common, **job, **({} if seed is None else {"seed": seed})} for job in runs for seed in chosen]
    if not jobs:
        raise UserError("The sweep has no runs: give at least one run and one seed.")
    return jobs
