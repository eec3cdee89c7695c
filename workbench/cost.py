"""What a run will cost, from one step of it: parameters, operations, bytes, modelled joules and time.

Usable as :func:`preview`, and as a process of its own (``python -m workbench.cost``) that a person's front end can ask, hurry past and
end without disturbing what trains beside it: JSON lines with the arguments of :func:`preview` come in, JSON lines with costs go out.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tracking.errors import UserError

if TYPE_CHECKING:
    from workbench.spec import Job

NICENESS = 10  # whoever trains comes first


@dataclass(frozen=True)
class Cost:
    """What is known of a run before it is made; ``None`` where it is not known.

    Totals are of the whole run, by proportion: the step that was made, times the run's steps over the steps it counted for. Methods whose
    steps grow or shrink cost accordingly more or less.
    """

    steps: float | None = None
    """Reporting steps of the run."""
    parameters: int | None = None
    """Parameters of the network that is trained, or that the task brings along to be compressed."""
    state_bytes: int | None = None
    """What the algorithm remembers between two steps."""
    step_s: float | None = None
    """Seconds of the step, warm-up included, evaluation excluded, on this machine as busy as it is."""
    run_s: float | None = None
    samples: float | None = None
    """Training samples of the run."""
    flops: float | None = None
    """Floating-point operations of the products in forward and backward passes, two to a multiply-accumulate."""
    step_bytes: float | None = None
    """Encoded bytes that the step sent, in all directions."""
    run_bytes: float | None = None
    model_j: float | None = None
    """Modelled joules of the run, on the hardware and in the scenario that runs report."""
    model: str = ""
    """What the joules are modelled for."""


def preview(method: str, task: str, params: Mapping[str, Any] | None = None, *, task_params: Mapping[str, Any] | None = None,
            seed: int = 0, device: str | None = None, threads: int | None = None) -> Cost:
    """Set up the run, make its first step and say what the whole of it will cost. Nothing is written and nothing is kept.

    Raises :class:`UserError` for whatever :func:`workbench.run` would refuse.
    """
    *_, cost = stages(method, task, params, task_params=task_params, seed=seed, device=device, threads=threads)
    return cost


def stages(method: str, task: str, params: Mapping[str, Any] | None = None, **options: Any) -> Iterator[Cost]:
    """As :func:`preview`, but what is known before the step comes first."""
    import torch

    from workbench.method import Context
    from workbench.spec import resolve
    from workbench.state import snapshot, state_bytes

    job = resolve(method, task, params, **options)
    before = torch.get_num_threads()
    if job.spec.threads:
        torch.set_num_threads(job.spec.threads)
    try:
        ctx = Context(device=torch.device(job.device), seed=job.spec.seed)
        job.task.setup(ctx)
        state = job.method.init(job.task, ctx)
        total = job.method.progress(state).total
        static = {"steps": total, "state_bytes": state_bytes(snapshot(state)), **(_parameters(state) or _parameters(job.task))}
        network = _network(job, state)
        static |= {"parameters": network["parameters"]} if "parameters" in network else {}
        yield Cost(**static)
        begin = time.perf_counter()
        metrics = job.method.step(state, job.task, ctx)
        if ctx.device.type == "cuda":
            torch.cuda.synchronize(ctx.device)
        step_s = time.perf_counter() - begin
        done, total = job.method.progress(state)
        yield _extrapolated(static, network, metrics, ctx.ledger.metrics(), step_s, total / done if done else None)
    finally:
        torch.set_num_threads(before)


def _extrapolated(static: dict[str, Any], network: dict[str, Any], metrics: Mapping[str, float], ledger: Mapping[str, float], step_s: float,
                  factor: float | None) -> Cost:
    """The costs of a run from those of a step that is one part in ``factor`` of it."""
    found: dict[str, Any] = dict(static, step_s=step_s)
    sent = [v for name, v in ledger.items() if name.endswith("_bytes")]
    if sent:
        found["step_bytes"] = sum(sent)
    if factor is None:
        return Cost(**found)
    found["run_s"] = step_s * factor
    if sent:
        found["run_bytes"] = sum(sent) * factor
    if (samples := metrics.get("train/samples")) is not None:
        found["samples"] = samples * factor
        if "sample_flops" in network:
            found["flops"] = network["sample_flops"] * samples * factor
        if "sample_j" in network:
            found |= {"model_j": network["sample_j"] * samples * factor, "model": network["model"]}
    return Cost(**found)


def _parameters(holder: Any) -> dict[str, int]:
    """Parameters of the networks that a State or a task holds; nothing where it holds none."""
    from torch import nn

    modules = [m for m in getattr(holder, "__dict__", {}).values() if isinstance(m, nn.Module)]
    seen = {id(p): p.numel() for m in modules for p in m.parameters()}
    return {"parameters": sum(seen.values())} if seen else {}


def _network(job: Job, state: Any) -> dict[str, Any]:
    """Parameters, operations and joules a sample of what the method trains, as far as its network can be traced."""
    from workbench.modelled import Choice

    try:
        declared = job.method.modelled(state, job.task)
        if declared is None:
            return {}
        from tracking.energy_model import estimate_layers, trace

        model, input, plan = declared
        layers = trace(model, input)
        found = {"parameters": sum(layer.parameters for layer in layers),
                 "sample_flops": 2 * sum(layer.training_macs for layer in layers) / layers[0].samples}
        return found | {"sample_j": estimate_layers(layers, plan, *Choice()).per_sample_j, "model": str(Choice())}
    except UserError:  # it cannot be traced, or not be estimated: then that is what is not known
        return {}


def _end_with_parent(parent: int) -> None:
    """A step may take long, and nobody is left to read of it when a kernel is shut down meanwhile."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(0)


def main() -> None:
    """Answer requests, a JSON line each, until standard input ends."""
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a method prints is not part of the answer
    for line in sys.stdin:
        request = json.loads(line)
        try:
            for cost in stages(**request["run"]):
                print(json.dumps({"id": request["id"], "cost": asdict(cost), "last": cost.step_s is not None}), file=out, flush=True)
        except Exception as error:  # the next request may be a better one
            text = str(error).strip().partition("\n")[0]
            told = text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
            print(json.dumps({"id": request["id"], "error": told, "last": True}), file=out, flush=True)


if __name__ == "__main__":
    main()
