"""The same run as text: Python, command line, papermill. What is left at its default is not repeated."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

from workbench import params, registry
from workbench.explorer.session import Request


def python(r: Request) -> str:
    """A script that makes the run."""
    arguments = [f"{r.method!r}, {r.task!r}"]
    if r.params:
        arguments.append(f"params={_literal(r.params)}")
    if r.task_params:
        arguments.append(f"task_params={_literal(r.task_params)}")
    arguments.append(f"seed={r.seed!r}")
    arguments += [f"{name}={value!r}" for name, value in (("device", r.device), ("tracking", r.tracking)) if value is not None]
    body = "".join(f"    {argument},\n" for argument in arguments)
    return f"import workbench\n\nrun = workbench.run(\n{body})\nprint(run)\n"


def cli(r: Request) -> str:
    """A shell command that makes the run."""
    lines = [f"workbench run {shlex.quote(r.method)} {shlex.quote(r.task)} --seed {r.seed}"]
    for option, model, values in (("--set", registry.load_method(r.method).Params, r.params),
                                  ("--task-set", registry.load_task(r.task).Params, r.task_params)):
        lines += [f"{option} {shlex.quote(f'{name}={_word(model, name, value)}')}" for name, value in values.items()]
    lines += [f"--{name} {shlex.quote(value)}" for name, value in (("device", r.device), ("tracking", r.tracking))
              if value is not None]
    return " \\\n  ".join(lines) + "\n"


def papermill(r: Request) -> str:
    """A shell command, for the project's folder, that makes the run inside ``notebooks/run.ipynb`` and keeps the notebook."""
    given = {"method": r.method, "task": r.task, "params": r.params, "task_params": r.task_params, "seed": r.seed,
             "device": r.device, "tracking_uri": r.tracking}
    kept = {name: value for name, value in given.items() if value not in (None, {})}
    return f"papermill notebooks/run.ipynb out.ipynb -k python3 -y {shlex.quote(yaml_flow(kept))}\n"


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
