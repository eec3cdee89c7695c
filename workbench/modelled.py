"""Modelled energy of runs: computed when a run begins, and again for any other hardware or scenario without training anew.

A run keeps its network's trace and its precision plan in ``artifacts/energy.json``. Joules per training sample follow from these, a
hardware and a scenario; ``energy/model_j`` is that times the samples trained on.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracking.address import home
from tracking.errors import UserError
from tracking.folder import RunFolder, write_atomic

if TYPE_CHECKING:
    import pandas

    from tracking.energy_model import Estimate
    from workbench.runs import Run
    from workbench.spec import Job

HARDWARE, SCENARIO = "ascend_like", "as_trained"
"""What runs are modelled for until a person asks for another one."""
FILE = "energy.json"
METRIC = "energy/model_j"


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
        found = _estimate(kept.read_text(), HARDWARE, SCENARIO)
        return Modelled(found.per_sample_j, {"energy.model": f"{HARDWARE}, {SCENARIO}, plan {found.plan.name}"})
    except UserError as problem:
        return Modelled(None, {"energy.model": f"absent: {problem}"[:500]})


def _cache(job: Job) -> Path:
    """Where traces of this specification lie, whatever its seed, budget and machine."""
    spec = {k: v for k, v in vars(job.spec).items() if k in ("method", "task", "params", "task_params", "code")}
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True, default=str).encode()).hexdigest()[:24]
    return home() / "cache" / "traces" / f"{digest}.json"


def _trace(job: Job, state: Any) -> str | None:
    """Trace and plan as JSON; ``None`` where the method declares nothing."""
    declared = job.method.modelled(state, job.task)
    if declared is None:
        return None
    from tracking.energy_model import to_json, trace

    model, input, plan = declared
    return json.dumps({"plan": json.loads(plan.to_json()), "trace": json.loads(to_json(trace(model, input)))})


def _estimate(text: str, hardware: str, scenario: str) -> Estimate:
    from tracking.energy_model import PrecisionPlan, estimate_layers, from_json

    kept = json.loads(text)
    return estimate_layers(from_json(json.dumps(kept["trace"])), PrecisionPlan.from_json(json.dumps(kept["plan"])), hardware, scenario)


def estimate_run(run: Run, hardware: str = HARDWARE, scenario: str = SCENARIO) -> Estimate:
    """The energy model's estimate of one batch of an ended run, for any hardware and scenario. Needs no data and no training.

    Raises :class:`UserError` for a run that kept no trace, and for unknown names.
    """
    path = run.folder.artifacts_path / FILE
    if not path.is_file():
        raise UserError(f"{run.folder.path.name} kept no trace of its network, so its energy cannot be modelled: its method declares no precisions, "
                        "or the run is of an older version. Repeat it with fresh=True (--fresh).")
    return _estimate(path.read_text(), hardware, scenario)


def remodelled(run: Run, frame: pandas.DataFrame, hardware: str = HARDWARE, scenario: str = SCENARIO) -> pandas.DataFrame:
    """A run's journal in which the modelled joules are those of another hardware and scenario; without the column where the run has no trace."""
    frame = frame.drop(columns=METRIC, errors="ignore")
    if not (run.folder.artifacts_path / FILE).is_file() or "train/samples" not in frame:
        return frame
    return frame.assign(**{METRIC: frame["train/samples"] * estimate_run(run, hardware, scenario).per_sample_j})
