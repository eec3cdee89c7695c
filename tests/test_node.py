"""A compute node: five packages and what they bring, no MLflow, no network; the run folders are brought home afterwards."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tracking import journal

ROOT = Path(__file__).parent.parent

NODE = """
import importlib.machinery, json, sys

ALLOWED = {"torch", "functorch", "torchgen", "numpy", "pandas", "pydantic", "filelock",
           # what these five require
           "typing_extensions", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec", "annotated_types", "pydantic_core",
           "typing_inspection", "dateutil", "six", "pytz", "tzdata"}
hidden = set()


class Bare(importlib.machinery.PathFinder):
    '''Finds what a node has: to all else in site-packages it is blind, as where it was never installed.'''

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        spec = super().find_spec(name, path, target)
        if spec is not None and name.partition(".")[0] not in ALLOWED:
            where = [spec.origin or "", *(spec.submodule_search_locations or ())]
            if any("site-packages" in place for place in where):
                hidden.add(name)
                return None
        return spec


sys.meta_path = [Bare if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
for name in [n for n in sys.modules if "site-packages" in str(getattr(sys.modules[n], "__file__", ""))]:
    if name.partition(".")[0] not in ALLOWED:
        del sys.modules[name]  # put there by a .pth file

import workbench
found = []
for method, task, params in json.loads(sys.argv[1]):
    ended = workbench.run(method, task, params, threads=1, device="cpu")
    found.append([str(ended.folder.path), ended.status, ended.url])
print(workbench.catalog().shape, workbench.tasks().shape, workbench.describe("toy").shape)
print(json.dumps({"runs": found, "hidden": sorted(hidden),
                  "loaded": sorted({n.partition(".")[0] for n, m in sys.modules.items()
                                    if "site-packages" in str(getattr(m, "__file__", ""))})}))
"""

RUNS = [["toy", "toy", {"steps": 30, "talk": True}], ["binaryconnect", "digits/mlp", {"epochs": 2}]]


@pytest.fixture
def data(tmp_path) -> Path:
    """A folder with ``digits.npz``, made where scikit-learn is installed."""
    done = subprocess.run(
        [sys.executable, "-m", "workbench.cli", "data", "fetch", "digits", "--to", str(tmp_path / "data")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return tmp_path / "data"


def test_a_bare_node_runs_and_its_folders_come_home(toy, own_home, data, tmp_path):
    environment = os.environ | {
        "WORKBENCH_DATA": str(data),
        "WORKBENCH_CACHE": str(tmp_path / "no cache"),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", NODE, json.dumps(RUNS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert {"mlflow", "sklearn", "tqdm"} <= set(told["hidden"]), "the node was as bare as it should be"
    assert not {"mlflow", "sklearn", "tqdm", "plotly", "pyarrow", "PIL", "psutil"} & set(told["loaded"])
    assert [(status, url) for _, status, url in told["runs"]] == [("finished", None)] * 2
    assert "MLflow is not installed here" in done.stderr
    assert "Traceback" not in done.stderr

    brought = tmp_path / "brought home" / "from the cluster"
    brought.parent.mkdir()
    shutil.move(own_home / "journals", brought)
    _check_arrival(brought, f"sqlite:///{tmp_path}/fresh.db")


def _check_arrival(brought: Path, uri: str) -> None:
    """Sync twice: every point of every journal is in the store exactly once."""
    from mlflow import MlflowClient

    from tracking.sync import sync

    expected = {}
    for file in sorted(brought.glob("*/journal.jsonl")):
        points = [
            (name, e.step, e.time_ms, v) for e in journal.read(file) for name, v in e.values.items() if math.isfinite(v)
        ]
        expected[json.loads((file.parent / "run.json").read_text())["key"]] = Counter(points)
    assert len(expected) == len(RUNS)
    total = sum(map(Counter.total, expected.values()))
    assert total > 150
    rows = sync(uri=uri, folders=[brought])
    assert sorted((row["status"], row["left"], row["note"]) for row in rows) == [("finished", 0, "")] * 2
    assert sum(row["sent"] for row in rows) == total
    assert [row["sent"] for row in sync(uri=uri, folders=[brought])] == [0, 0]

    client = MlflowClient(uri)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert {r.data.tags["workbench.key"] for r in runs} == set(expected)
    for r in runs:
        history = [
            (m.key, m.step, m.timestamp, m.value)
            for name in r.data.metrics
            for m in client.get_metric_history(r.info.run_id, name)
        ]
        assert Counter(history) == expected[r.data.tags["workbench.key"]]
        assert r.info.status == "FINISHED"


def test_asking_for_mlflow_where_there_is_none_is_refused_before_any_work(toy, own_home, monkeypatch):
    from tracking.errors import UserError
    from workbench import runs

    monkeypatch.setattr(runs, "available", lambda: False)
    with pytest.raises(UserError, match=r"needs MLflow, which is not installed\. Use tracking='off'"):
        runs.run("toy", "toy", tracking="sqlite:///m.db", progress=False)
    assert not own_home.exists()
