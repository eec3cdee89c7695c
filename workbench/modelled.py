"""Modelled energy of runs: computed when a run begins, and again for any other hardware or scenario without training anew.

A run keeps its network's trace and its precision plan in ``artifacts/energy.json``. Joules per training sample follow from these, a
hardware and a scenario; ``energy/model_j`` is that times the samples trained on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tracking.address import home
from tracking.errors import UserError, unknown
from tracking.folder import RunFolder, write_atomic

if TYPE_CHECKING:
    import pandas

    from tracking.energy_model import Estimate, Hardware
    from workbench.runs import Run
    from workbench.spec import Job

HARDWARE, SCENARIO = "ascend_like", "as_trained"
"""What runs are modelled for until a person asks for another one."""
FILE = "energy.json"
METRIC = "energy/model_j"


class Choice(NamedTuple):
    """What joules are modelled for; in words ``"ascend_like, as_trained"``."""

    hardware: str = HARDWARE
    scenario: str = SCENARIO

    def __str__(self) -> str:
        return f"{self.hardware}, {self.scenario}"

    @property
    def description(self) -> str:
        """What hardware and scenario are, in a line."""
        from tracking.energy_model import SCENARIOS, hardware

        known = []
        with contextlib.suppress(UserError):  # a run's own names may be older than the hardware at hand
            known.append(hardware(self.hardware).title)
        if self.scenario in SCENARIOS:
            known.append(SCENARIOS[self.scenario].description)
        return "; ".join(known) or "no description at hand"


def chosen(hardware: str | os.PathLike[str] | None = None, scenario: str | None = None) -> Choice | None:
    """The choice that a person named; what is left out is as in the runs. ``None`` where nothing is named.

    Raises :class:`UserError` for unknown names, and for hardware whose energies are not in joules.
    """
    from tracking.energy_model import SCENARIOS
    from tracking.energy_model import hardware as find_hardware

    if hardware is None and scenario is None:
        return None
    choice = Choice(HARDWARE if hardware is None else str(hardware), SCENARIO if scenario is None else str(scenario))
    if choice.scenario not in SCENARIOS:
        raise unknown("scenario", choice.scenario, SCENARIOS)
    if not in_joules(find_hardware(choice.hardware)):
        raise UserError(f"hardware = {choice.hardware!r} is refused: it counts in multiples of one multiply-accumulate, not in joules. "
                        f"Allowed: {', '.join(joule_hardware())}, or the path of a hardware file. Its count is in "
                        f"Run.energy({choice.hardware!r}).total.")
    return choice


def in_joules(hardware: Hardware) -> bool:
    """Whether energies on it are absolute."""
    return hardware.unit != "relative"


def joule_hardware() -> list[str]:
    """Ids of the hardware that comes with the project and counts in joules."""
    from tracking.energy_model import hardware, hardware_ids

    return [id for id in hardware_ids() if in_joules(hardware(id))]


def reported_for(run: Run) -> Choice:
    """What a run's reported joules are modelled for, as its tag says."""
    names = run.folder.read_run()["tags"].get("energy.model", "").split(", ")
    return Choice(*names[:2]) if len(names) > 2 else Choice("unrecorded hardware", "unrecorded scenario")


@dataclass
class Modelled:
    """Modelled joules of a run as it goes: ``per_sample_j`` times the training samples."""

    per_sample_j: float | None = None
    """``None``: the method declares nothing, or its network could not be traced."""
    tags: dict[str, str] = field(default_factory=dict)

    def metrics(self, reported: dict[str, float]) -> dict[str, float]:
        """The cumulative figure beside a step's metrics; empty where no training samples are reported."""
        samples = reported.get("train/samples")
        return {} if samples is None or self.per_sample_j is None else {METRIC: self.per_sample_j * samples}


def begin(job: Job, state: Any, folder: RunFolder) -> Modelled:
    """Trace what the method trains, keep the trace with the run, and estimate it.

    Runs that differ in the seed alone share a trace, because the first one of a process costs a second or two. A network
    that cannot be traced costs the figure, not the run: the reason is in the tag ``energy.model``.
    """
    try:
        kept = folder.artifacts_path / FILE
        shared = _cache(job)
        if not kept.is_file():
            text = shared.read_text() if shared.is_file() else _trace(job, state)
            if text is None:
                return Modelled()
            for path in {shared, kept}:
                write_atomic(path, text)
        found = estimate_folder(folder)
        return Modelled(found.per_sample_j, {"energy.model": f"{Choice()}, plan {found.plan.name}"})
    except UserError as problem:
        return Modelled(None, {"energy.model": f"absent: {problem}"[:500]})


def _cache(job: Job) -> Path:
    """Where traces of this specification lie, whatever its seed, budget and machine."""
    spec = {k: v for k, v in vars(job.spec).items() if k in ("method", "task", "params", "task_params", "code")}
    spec["tracer"] = _tracer()
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True, default=str).encode()).hexdigest()[:24]
    return home() / "cache" / "traces" / f"{digest}.json"


@lru_cache(maxsize=1)
def _tracer() -> str:
    """Version of the code that makes traces, which is no part of a run's own."""
    import tracking.energy_model

    files = sorted(Path(tracking.energy_model.__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _trace(job: Job, state: Any) -> str | None:
    """Trace and plan as JSON; ``None`` where the method declares nothing."""
    declared = job.method.modelled(state, job.task)
    if declared is None:
        return None
    from tracking.energy_model import to_json, trace

    model, input, plan = declared
    return json.dumps({"plan": json.loads(plan.to_json()), "trace": json.loads(to_json(trace(model, input)))})


@lru_cache(maxsize=64)
def _estimate(text: str, hardware: Hardware, scenario: str) -> Estimate:
    """Kept, because runs that differ in the seed alone have one and the same text."""
    from tracking.energy_model import PrecisionPlan, estimate_layers, from_json

    kept = json.loads(text)
    return estimate_layers(from_json(json.dumps(kept["trace"])), PrecisionPlan.from_json(json.dumps(kept["plan"])), hardware, scenario)


def estimate_run(run: Run, hardware: str = HARDWARE, scenario: str = SCENARIO) -> Estimate:
    """The energy model's estimate of one batch of an ended run, for any hardware and scenario. Needs no data and no training.

    Raises :class:`UserError` for a run that kept no trace, and for unknown names.
    """
    return estimate_folder(run.folder, hardware, scenario)


def estimate_folder(folder: RunFolder, hardware: str = HARDWARE, scenario: str = SCENARIO) -> Estimate:
    """As :func:`estimate_run`, for a run that may still go on."""
    from tracking.energy_model import hardware as find_hardware

    found = find_hardware(hardware)
    path = folder.artifacts_path / FILE
    if not path.is_file():
        raise UserError(f"Run {folder.path.name} kept no trace of its network, so its energy cannot be modelled: its method declares no "
                        "precisions, its network could not be traced (its tag energy.model says why), or it is of an older version, "
                        "which fresh=True (--fresh) repeats.")
    return _estimate(path.read_text(), found, scenario)


def remodelled(run: Run, frame: pandas.DataFrame, hardware: str = HARDWARE, scenario: str = SCENARIO) -> pandas.DataFrame:
    """A run's journal with the modelled joules of another hardware and scenario; without the column where the run has no trace."""
    frame = frame.drop(columns=METRIC, errors="ignore")
    if not (run.folder.artifacts_path / FILE).is_file() or "train/samples" not in frame:
        return frame
    return frame.assign(**{METRIC: frame["train/samples"] * estimate_run(run, hardware, scenario).per_sample_j})
