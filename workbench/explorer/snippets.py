"""The same runs as text: Python, command line, papermill. What is left at its default is not repeated."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from typing import Any

from workbench import params, registry
from workbench.explorer.listed import Request


def python(requests: Sequence[Request]) -> str:
    """A script that makes the runs."""
    r, seeds = requests[0], [r.seed for r in requests]
    arguments = [f"{r.method!r}, {r.task!r}"]
    if r.params:
        arguments.append(f"params={_literal(r.params)}")
    if r.task_params:
        arguments.append(f"task_params={_literal(r.task_params)}")
    arguments.append(f"seed={r.seed!r}" if len(seeds) == 1 else "seed=seed")
    arguments += [f"{name}={value!r}" for name, value in (("device", r.device), ("tracking", r.tracking)) if value is not None]
    if len(seeds) == 1:
        body = "".join(f"    {argument},\n" for argument in arguments)
        return f"import workbench\n\nrun = workbench.run(\n{body})\nprint(run)\n"
    body = "".join(f"        {argument},\n" for argument in arguments)
    return (f"import workbench\n\nruns = [\n    workbench.run(\n{body}    )\n    for seed in range({seeds[0]}, {seeds[-1] + 1})\n]\n"
            "print(workbench.compare(runs))\n")


def cli(requests: Sequence[Request]) -> str:
    """Shell commands that make the runs."""
    r = requests[0]
    lines = [f"workbench run {shlex.quote(r.method)} {shlex.quote(r.task)} --seed {_seed(requests)}"]
    for option, model, values in (("--set", registry.load_method(r.method).Params, r.params),
                                  ("--task-set", registry.load_task(r.task).Params, r.task_params)):
        lines += [f"{option} {shlex.quote(f'{name}={_word(model, name, value)}')}" for name, value in values.items()]
    lines += [f"--{name} {shlex.quote(value)}" for name, value in (("device", r.device), ("tracking", r.tracking))
              if value is not None]
    return _looped(requests, " \\\n  ".join(lines))


def papermill(requests: Sequence[Request]) -> str:
    """Shell commands, for the project's folder, that make the runs inside ``notebooks/run.ipynb`` and keep the notebooks."""
    r = requests[0]
    given = {"method": r.method, "task": r.task, "params": r.params, "task_params": r.task_params, "seed": r.seed,
             "device": r.device, "tracking_uri": r.tracking}
    kept = {name: value for name, value in given.items() if value not in (None, {})}
    if len(requests) == 1:
        return f"papermill notebooks/run.ipynb out.ipynb -k python3 -y {shlex.quote(yaml_flow(kept))}\n"
    del kept["seed"]
    return _looped(requests, f"papermill notebooks/run.ipynb out-$seed.ipynb -k python3 -p seed $seed -y {shlex.quote(yaml_flow(kept))}")


def _seed(requests: Sequence[Request]) -> str:
    return str(requests[0].seed) if len(requests) == 1 else "$seed"


def _looped(requests: Sequence[Request], command: str) -> str:
    if len(requests) == 1:
        return f"{command}\n"
    return f"for seed in {' '.join(str(r.seed) for r in requests)}; do\n{command}\ndone\n"


def yaml_flow(value: Any) -> str:
    """One line of YAML: JSON, but with the point that YAML 1.1 wants in ``1.0e-05``, and without surrogate pairs."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{yaml_flow(k)}: {yaml_flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(yaml_flow, value)) + "]"
    if isinstance(value, float):
        return re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))
    return re.sub("[^ -~]", lambda match: f"\\U{ord(match[0]):08x}", json.dumps(value, ensure_ascii=False))


def _literal(values: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{name!r}: {value!r}" for name, value in values.items()) + "}"


def _word(model: type[params.Params], name: str, value: Any) -> str:
    """The shortest text that the command line reads back as ``value``: plain where that is enough, else JSON."""
    plain = str(value)
    if isinstance(value, str) and params.from_text(model, {name: plain})[name] == value:
        return plain
    return json.dumps(value)
