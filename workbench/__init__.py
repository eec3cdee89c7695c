"""A bench for efficient training: every algorithm behind one API, on the same tasks, with the same meters.

``import workbench`` is quick: torch and the rest are imported when a verb needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "catalog": "workbench.catalogue", "describe": "workbench.catalogue", "tasks": "workbench.catalogue",
    "run": "workbench.runs", "Run": "workbench.runs", "RunHandle": "workbench.runs", "RunFailed": "workbench.runs",
    "preview": "workbench.cost",
    "sweep": "workbench.sweeps", "grid": "workbench.sweeps",
    "explore": "workbench.explorer", "compare": "workbench.comparison", "Study": "workbench.study",
    "UserError": "tracking.errors",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
