"""What this machine can and cannot do, one line a check, with the remedy."""

from __future__ import annotations

import importlib.util
import os
import shutil
from importlib import metadata
from typing import Any

from tracking.address import home, public_uri, tracking_uri
from tracking.energy import probe
from workbench import registry

NODE = ("torch", "numpy", "pandas", "pydantic", "filelock")
LAB = ("mlflow", "papermill", "jupyterlab", "ipywidgets", "anywidget", "plotly", "sklearn", "scipy", "pyarrow", "PIL", "tqdm", "pynvml",
       "datasets", "numba")


def examine() -> list[dict[str, Any]]:
    """Rows of check, state (``ok``, ``absent``: something optional is missing, ``aside``: there, but not used, ``broken``) and detail."""
    rows = [_package(name, "broken") for name in NODE] + [_package(name, "absent") for name in LAB]
    rows.append(_catalogue())
    rows.append(_folder())
    rows += _devices() + _energy()
    rows.append({"check": "chromium", "state": "ok" if shutil.which("chromium") else "absent",
                 "detail": shutil.which("chromium") or "browser tests will skip"})
    rows.append({"check": "tracking", "state": "ok", "detail": public_uri(tracking_uri() or "off")})
    data = os.environ.get("WORKBENCH_DATA")
    state = "ok" if data and os.path.isdir(data) else "broken" if data else "absent"
    rows.append({"check": "WORKBENCH_DATA", "state": state,
                 "detail": data or "not set: data sets come from the cache or a download; embedded tasks need neither"})
    return rows


def _package(name: str, when_missing: str) -> dict[str, str]:
    if importlib.util.find_spec(name) is None:
        remedy = "pip install -c constraints.txt -e '.[lab]'" if when_missing == "absent" else "needed by every run"
        return {"check": name, "state": when_missing, "detail": f"not installed ({remedy})"}
    distribution = {"sklearn": "scikit-learn", "PIL": "pillow", "pynvml": "nvidia-ml-py"}.get(name, name)
    try:
        return {"check": name, "state": "ok", "detail": metadata.version(distribution)}
    except metadata.PackageNotFoundError:
        return {"check": name, "state": "ok", "detail": "version unknown"}


def _catalogue() -> dict[str, str]:
    broken = []
    for id in registry.methods():
        try:
            registry.load_method(id)
        except Exception as error:
            broken.append(f"{id}: {type(error).__name__}: {error}")
    detail = "; ".join(broken) or f"{len(registry.methods())} methods, {len(registry.tasks())} tasks"
    return {"check": "catalogue", "state": "broken" if broken else "ok", "detail": detail}


def _folder() -> dict[str, str]:
    root = home()
    try:
        root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(root).free / 1e9
        writable = os.access(root, os.W_OK)
    except OSError as error:
        return {"check": "home", "state": "broken", "detail": f"{root}: {error}. Set WORKBENCH_HOME to a folder that can be written."}
    if not writable or free < 0.2:
        return {"check": "home", "state": "broken", "detail": f"{root} ({free:.1f} GB free): set WORKBENCH_HOME to a folder with room."}
    return {"check": "home", "state": "ok", "detail": f"{root} ({free:.1f} GB free)"}


def _devices() -> list[dict[str, str]]:
    import torch

    from workbench.spec import cores

    told = f"{os.cpu_count()} cores, {cores()} of them for this process, {torch.get_num_threads()} torch threads"
    rows = [{"check": "cpu", "state": "ok", "detail": told}]
    if torch.cuda.is_available():
        rows += [{"check": f"cuda:{i}", "state": "ok", "detail": torch.cuda.get_device_name(i)} for i in range(torch.cuda.device_count())]
    else:
        rows.append({"check": "cuda", "state": "absent", "detail": "no CUDA device: everything runs on the CPU"})
    return rows


def _energy() -> list[dict[str, str]]:
    """One line a possible source of measured joules. What has no usable one stays absent from every run."""
    states = {"ok": "ok", "aside": "aside", "unusable": "absent"}
    return [{"check": s.metric, "state": states[s.status], "detail": f"{s.name} ({s.kind}): {s.detail}"} for s in probe().sources]
