"""Where a figure comes from: code, versions, hardware, time. Result files carry their own recipe."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import time
import weakref
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from tracking.errors import UserError
from workbench import registry
from workbench.grouping import short
from workbench.spec import Job

PACKAGES = ("torch", "numpy", "pandas", "pydantic", "mlflow-skinny", "efficient-workbench")
_digests: dict[str, tuple[weakref.ref, str]] = {}  # by data set: the arrays that were hashed, and their digest


@lru_cache(maxsize=1)
def environment() -> dict[str, str]:
    """Versions, commit and host hardware, as text."""
    import torch

    facts = {"python": platform.python_version(), "os": platform.platform(), "cpu": _cpu(), "cpu_count": str(os.cpu_count())}
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    if commit := _commit():
        facts["commit"] = commit
    return facts


def record(facts: dict[str, str] | None = None) -> dict[str, Any]:
    """The same facts (or those given) in the form of a kept result: commit, date, versions, and the rest."""
    facts = environment() if facts is None else facts
    versions = {name: facts[name] for name in ("python", *PACKAGES) if name in facts}
    rest = {k: v for k, v in facts.items() if k not in versions and k != "commit"}
    commit, date = facts.get("commit", "not in a checkout"), time.strftime("%Y-%m-%d", time.gmtime())
    return {"commit": commit, "date": date, "versions": versions, **rest}


def hardware(device: str) -> str:
    """Name of what a run computes on."""
    facts = environment()
    return facts["gpu"] if device.startswith("cuda") and "gpu" in facts else facts["cpu"]


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Commit of the checkout the code runs from, marked when files differ from it."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def describe_run(job: Job, *, experiment: str, attempt: int, parent: str | None, tags: dict[str, str]) -> dict[str, Any]:
    """The content of ``run.json``: all that a store must know of a run. The data join it once they are loaded (:func:`describe_data`)."""
    spec = job.spec
    entry = registry.method_entry(spec.method)
    params: dict[str, Any] = {"method": spec.method, "task": spec.task, "seed": spec.seed, "device": spec.device,
                              "threads": spec.threads, **spec.params}
    params |= {f"task.{k}": v for k, v in spec.task_params.items()} | {f"budget.{k}": v for k, v in spec.budget.items()}
    facts = environment()
    return {
        "key": spec.key, "name": spec.name, "experiment": experiment, "params": params, "parent": parent,
        "tags": {"workbench.attempt": str(attempt), "workbench.family": entry.family, "workbench.method": spec.method,
                 "workbench.task": spec.task, "workbench.group": setting(job), "workbench.paper": entry.paper_url,
                 "workbench.code": spec.code, "workbench.hardware": hardware(job.device), **tags},
        "note": f"**{entry.title}** on `{spec.task}`, seed {spec.seed}. {entry.summary}"
                + (f" [Paper]({entry.paper_url})" if entry.paper_url else ""),
        "spec": dict(spec.__dict__), "provenance": facts, "created": time.time(),
    }


def setting(job: Job) -> str:
    """What runs have in common that charts may average: method, task and every parameter that is not at its default, without the seed."""
    words = [job.spec.method, job.spec.task]
    for owner, prefix, values in ((job.method, "", job.spec.params), (job.task, "task.", job.spec.task_params)):
        defaults = type(owner.params)().model_dump(mode="json")
        words += [f"{prefix}{name}={short(value)}" for name, value in values.items() if value != defaults[name]]
    return " ".join(words)


def describe_data(job: Job) -> dict[str, Any]:
    """What joins ``run.json`` after ``Task.setup``: tags ``data.*``, and ``dataset`` as a store shows it.

    ``data.digest`` is the identity of the data (:func:`data_digest`, or what the task's own ``provenance()`` gives under this name).
    """
    digest = data_digest(job.task.dataset)
    facts = ({"digest": digest} if digest else {}) | getattr(job.task, "provenance", dict)()
    sizes = {k: v for k, v in job.spec.task_params.items() if k not in ("width", "augment")}
    # eight hex digits that agree for runs on the same data with the same sizes
    shown = hashlib.sha256(f"{job.task.dataset}{sorted(sizes.items())}{facts.get('digest', '')}".encode()).hexdigest()[:8]
    return {"tags": {f"data.{k}": v for k, v in facts.items()}, "dataset": {"name": job.task.dataset, "digest": shown}}


def on_other_data(run: dict[str, Any], dataset: str) -> bool:
    """Whether the data at hand are not those of ``run`` (content of ``run.json``). Where there are none, or none to be read: False."""
    recorded = run["tags"].get("data.digest")
    if recorded is None:
        return False
    try:
        return data_digest(dataset) not in (None, recorded)
    except UserError:
        return False


def data_digest(dataset: str) -> str | None:
    """Sixteen hex digits of the arrays of a data set as it is at hand now, whatever file holds them and wherever it lies.

    ``None`` where there is nothing to compare: the task generates its data, or this machine has no source of them (nothing is downloaded).
    :class:`tracking.errors.UserError` when the source cannot be read.
    """
    from workbench import data

    if dataset not in data.DATASETS or not data.sources_of(data.DATASETS[dataset]):
        return None
    arrays = data.load(dataset)
    known, first = _digests.get(dataset), next(iter(arrays.values()))
    if known and known[0]() is first:  # data.load gives the same arrays until their source changes
        return known[1]
    sha = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        sha.update(f"{name} {array.dtype} {array.shape}".encode())
        sha.update(array.tobytes() if not array.flags.c_contiguous else array.data.cast("B"))
    _digests[dataset] = weakref.ref(first), sha.hexdigest()[:16]
    return _digests[dataset][1]
