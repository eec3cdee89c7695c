"""Where a form starts: the method's example, which learns in seconds, or the setting of its paper; and what tells the two apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.explorer.fields import to_text
from workbench.method import Method
from workbench.params import parse

NAMES = ("quick", "paper")
NAMED = 4
"""Parameters that are named one by one, at most."""


@dataclass(frozen=True)
class Preset:
    """A starting point: values that differ from the declared defaults, and the task that they are meant for, if any."""

    label: str
    source: str = ""
    task: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    task_params: Mapping[str, Any] = field(default_factory=dict)


def of_method(method: type[Method]) -> dict[str, Preset]:
    """The presets of a method, by name. Where no setting of the authors is kept, ``paper`` is what the parameters declare."""
    example, published = method.example, method.published
    quick = Preset("quick: a run of seconds", "the method's example", example.get("task"), example.get("params", {}),
                   example.get("task_params", {}))
    if not published:
        return {"quick": quick, "paper": Preset("declared defaults", "the declared defaults; no setting of a paper is kept here")}
    source = f"{published['source']}; what that does not state is at its declared default"
    return {"quick": quick, "paper": Preset("paper: the authors' setting", source, published.get("task"), published.get("params", {}),
                                            published.get("task_params", {}))}


def start(preset: Preset, task: str | None) -> dict[str, Mapping[str, Any] | None]:
    """What the forms of method and task start from; the task's values count for the preset's own task alone."""
    return {"method": preset.params, "task": preset.task_params if preset.task == task else None}


def in_words(method: type[Method], chosen: str, task: str | None) -> str:
    """Which setting the form starts from, and what the other one has instead."""
    presets = of_method(method)
    here, there = presets[chosen], next(p for name, p in presets.items() if name != chosen)
    other = "quick" if chosen == "paper" else "paper" if method.published else "declared defaults"
    own = f"The form starts from {here.source}."
    if here.task and task and here.task != task:
        own += f" That is for {here.task}; the task chosen is another."
    elsewhere = bool(here.task and there.task and here.task != there.task)
    a, b = (parse(method.Params, p.params, f"method {method.id!r}") for p in (here, there))
    names = [name for name in method.Params.model_fields if getattr(a, name) != getattr(b, name)]
    if not names:
        return f"{own} The parameters of the preset {other!r} are the same{f', its task is {there.task}' if elsewhere else ''}."
    shown = "; ".join(f"{name} {to_text(getattr(b, name)) or 'none'}" for name in names[:NAMED])
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{own} The preset {other!r} has instead{f' on {there.task}' if elsewhere else ''}: {shown}{more}."
