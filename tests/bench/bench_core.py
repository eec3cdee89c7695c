"""Speed of the bench itself: import, command line, overhead of engine and recorder on 10 ms steps."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PLUGIN = '''
"""A method whose step is a fixed amount of tensor work, about ten milliseconds."""
from dataclasses import dataclass
import torch
from workbench.method import Method, Progress
from workbench.params import Field, Params
from workbench.task import Task

class Nothing(Task):
    dataset, title, kind = "nothing", "Nothing", "nothing"
    def setup(self, ctx): ...

A = torch.ones(256, 256)

def work(products):
    for _ in range(products):
        torch.mm(A, A)

@dataclass
class State:
    weights: torch.Tensor
    done: int = 0

class TenMilliseconds(Method):
    """Matrix products and nothing else."""
    id, title, family, kinds = "ten_ms", "Matrix products", "testing", ("nothing",)
    class Params(Params):
        steps: int = Field(300, ge=1, description="steps")
        products: int = Field(1, ge=1, description="matrix products a step")
    def init(self, task, ctx): return State(torch.zeros(100_000))
    def step(self, state, task, ctx):
        work(self.params.products)
        state.done += 1
        return {"train/loss": 1.0 / state.done, "train/samples": state.done, "train/lr": 0.1}
    def evaluate(self, state, task, ctx): return {"eval/loss": 1.0}
    def evaluation_due(self, state): return False
    def progress(self, state): return Progress(state.done, self.params.steps)
'''


def main() -> list[dict]:
    """Rows of the table."""
    return [*imports(), overhead()]


def imports(n: int = 7) -> list[dict]:
    """Wall time of whole processes, the bare interpreter's own start taken off for the import."""
    bare = median([sys.executable, "-c", "pass"], n)
    package = median([sys.executable, "-c", "import workbench"], n) - bare
    listing = median([sys.executable, "-m", "workbench.cli", "methods"], n)
    help = median([sys.executable, "-m", "workbench.cli", "--help"], n)
    return [
        {"name": "import workbench", "ours": package, "unit": "s", "n": n, "target": "<= 0.3 s", "met": package <= 0.3},
        {"name": "workbench methods", "ours": listing, "unit": "s", "n": n, "target": "<= 1 s", "met": listing <= 1},
        {"name": "workbench --help", "ours": help, "unit": "s", "n": n, "target": "<= 1 s", "met": help <= 1},
    ]


def median(command: list[str], n: int) -> float:
    times = []
    for _ in range(n):
        begin = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[2])
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def overhead(n: int = 9, steps: int = 300) -> dict:
    """Engine, journal and MLflow recorder around steps of about 10 ms, against the bare loop over the same work; medians, interleaved.

    The work is a fixed number of matrix products on one thread, so whatever slows a step counts. The time runs from the first step to the last: the start
    of a run (MLflow's import, its schema) is left out of both.
    """
    import torch

    torch.set_num_threads(1)
    space: dict = {"torch": torch}
    exec(PLUGIN[PLUGIN.index("A = torch"):PLUGIN.index("@dataclass")], space)
    begin = time.perf_counter()
    space["work"](200)
    products = max(1, round(0.010 * 200 / (time.perf_counter() - begin)))
    with tempfile.TemporaryDirectory() as folder:
        plugins = Path(folder) / "plugins"
        plugins.mkdir()
        (plugins / "ten_ms.py").write_text(PLUGIN)
        old = {k: os.environ.get(k) for k in ("WORKBENCH_PLUGINS", "WORKBENCH_HOME")}
        os.environ |= {"WORKBENCH_PLUGINS": str(plugins), "WORKBENCH_HOME": str(Path(folder) / "home")}
        try:
            from workbench.runs import run

            def ours_once(seed: int, count: int) -> float:
                marks: list[float] = []
                run("ten_ms", "nothing", {"steps": count + 1, "products": products}, seed=seed, threads=1, progress=False,
                    observer=lambda report: marks.append(time.perf_counter()))
                return marks[-1] - marks[0]

            ours_once(10_000, 20)  # warm: MLflow imported, schema made
            bare, ours = [], []
            for seed in range(n):
                begin = time.perf_counter()
                for _ in range(steps):
                    space["work"](products)
                bare.append(time.perf_counter() - begin)
                ours.append(ours_once(seed, steps))
        finally:
            for k, v in old.items():
                os.environ.pop(k) if v is None else os.environ.__setitem__(k, v)
    a, b = statistics.median(ours), statistics.median(bare)
    return {"name": "engine and recorder on 10 ms steps", "ours": a / steps * 1e3, "peer": b / steps * 1e3, "unit": "ms a step", "ratio": a / b,
            "n": n, "target": "<= 1.03", "met": a / b <= 1.03}
