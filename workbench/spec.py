"""RunSpec: all that determines a run's figures, in one canonical form with one hash."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracking.errors import UserError
from tracking.metrics import METRICS, metric
from workbench import registry
from workbench.params import parse

if TYPE_CHECKING:
    from workbench.method import Method
    from workbench.task import Task


@dataclass(frozen=True)
class RunSpec:
    """Method × parameters × task × seed × budget, on a kind of device.

    ``params`` and ``task_params`` hold every field, defaults included. ``budget`` caps cumulative metrics (``{"comm/up_bytes": 1e6}``):
    the run ends at the first report that reaches a cap. ``threads`` is the number of CPU threads (0 on CUDA): it decides the order of
    summation and so the last bits of every figure.
    """

    method: str
    task: str
    params: dict[str, Any]
    task_params: dict[str, Any]
    seed: int
    device: str
    threads: int
    budget: dict[str, float]
    code: str

    def canonical(self) -> str:
        """Canonical JSON: sorted keys, no spaces, shortest floats."""
        return json.dumps(self.__dict__, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def key(self) -> str:
        """Hash that names the run folder and is a tag in MLflow."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """Short name for people."""
        return f"{self.method} {self.task} s{self.seed}"


@dataclass(frozen=True)
class Job:
    """A validated RunSpec with the objects it names: nothing can be misspelt any more."""

    spec: RunSpec
    method: Method
    task: Task
    device: str


def resolve(
    method: str,
    task: str,
    params: Mapping[str, Any] | None = None,
    *,
    task_params: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str | None = None,
    threads: int | None = None,
    budget: Mapping[str, float] | None = None,
) -> Job:
    """Check everything a person typed, before any work starts, and return the job.

    ``device`` is ``"cpu"``, ``"cuda"`` or ``"cuda:<n>"``; ``None`` takes CUDA where there is one. Raises
    :class:`tracking.errors.UserError` for an unknown name, a value out of range, or a method that does not run on the task.
    """
    method_entry, task_entry = registry.method_entry(method), registry.task_entry(task)
    seed, threads = whole("seed", seed, 0), whole("threads", threads or cores(), 1)
    caps = _budget(budget)
    method_cls, task_cls = registry.load_method(method), registry.load_task(task)
    p = parse(method_cls.Params, params, f"method {method!r}")
    t = parse(task_cls.Params, task_params, f"task {task!r}")
    the_task = task_cls(task_entry.literals["model"], t)
    if refusal := method_cls.refuses(the_task, p):
        raise UserError(refusal)
    device = _device(device)
    spec = RunSpec(
        method=method, task=task, params=p.model_dump(mode="json"), task_params=t.model_dump(mode="json"), seed=seed,
        device=device.split(":")[0], threads=threads if device == "cpu" else 0, budget=caps,
        code=registry.code_version(method_entry, task_entry),
    )
    return Job(spec, method_cls(p), the_task, device)


def cores() -> int:
    """CPU cores that this process may use: fewer than the machine has where a scheduler, ``taskset`` or ``OMP_NUM_THREADS`` says so."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(there, int(told)) if told.isdigit() and int(told) else there


def whole(name: str, value: Any, least: int) -> int:
    """``value`` if it is a whole number of at least ``least``; else :class:`UserError` naming it."""
    if type(value).__module__ == "numpy" and hasattr(value, "item"):
        value = value.item()  # seeds of np.arange
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise UserError(f"{name} = {value!r} is refused. Allowed: whole number, {least} <= x.")
    return value


def _budget(budget: Mapping[str, float] | None) -> dict[str, float]:
    if budget is not None and not isinstance(budget, Mapping):
        raise UserError(f"budget = {budget!r} is refused. Give a mapping such as {{'clock/wall_s': 60}}.")
    caps = {}
    for name, cap in (budget or {}).items():
        if not metric(name).cumulative:
            names = ", ".join(m.name for m in METRICS.values() if m.cumulative)
            raise UserError(f"budget: {name!r} does not accumulate. Allowed: {names}.")
        if isinstance(cap, bool) or not isinstance(cap, (int, float)) or not 0 < cap < float("inf"):
            raise UserError(f"budget: {name} = {cap!r} is refused. Allowed: number, 0 < x.")
        caps[name] = float(cap)
    return caps


def _device(device: str | None) -> str:
    import torch

    if device is None or device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = str(device).partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()) or (kind == "cpu" and number):
        raise UserError(f"device = {device!r} is refused. Allowed: 'auto', 'cpu', 'cuda', 'cuda:<number>'.")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UserError(f"device = {device!r} is not on this machine: it has {torch.cuda.device_count()} CUDA devices. "
                        "Use device='cpu' or leave it out.")
    return device
