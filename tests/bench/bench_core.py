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
"""A method whose step is ten milliseconds of its thread's own processor time."""
import time
from dataclasses import dataclass
import torch
from workbench.method import Method, Progress
from workbench.params import Field, Params
from workbench.task import Task

class Nothing(Task):
    dataset, title, kind = "nothing", "Nothing", "nothing"
    def setup(self, ctx): ...

def work():
    until = time.thread_time() + 0.010
    while time.thread_time() < until:
        pass

@dataclass
class State:
    weights: torch.Tensor
    done: int = 0

class TenMilliseconds(Method):
    """Ten milliseconds of Python and nothing else."""
    id, title, family, kinds = "ten_ms", "Ten milliseconds", "testing", ("nothing",)
    class Params(Params):
        steps: int = Field(300, ge=1, description="steps")
    def init(self, task, ctx): return State(torch.zeros(100_000))
    def step(self, state, task, ctx):
        work()
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


def overhead(pairs: int = 15, steps: int = 200) -> dict:
    """Engine, journal and MLflow recorder around steps of about 10 ms, against the bare loop over the same work.

    A step is 10 ms of its thread's own processor time, spent in Python: taking the processor or the interpreter away
    from it makes it longer, and the clock speed of a shared machine, which wanders by more than the target within
    seconds, does not. (Matrix products of 10 ms gave ratios from 0.84 to 1.42 between neighbouring loops on such a
    machine.) The time runs from the first step to the last: what comes before and after (MLflow's schema, the last
    batch) is outside. The two loops alternate, each going first in every other pair, and the ratio is the median over
    pairs.
    """
    with tempfile.TemporaryDirectory() as folder:
        plugins = Path(folder) / "plugins"
        plugins.mkdir()
        (plugins / "ten_ms.py").write_text(PLUGIN)
        old = {k: os.environ.get(k) for k in ("WORKBENCH_PLUGINS", "WORKBENCH_HOME")}
        os.environ |= {"WORKBENCH_PLUGINS": str(plugins), "WORKBENCH_HOME": str(Path(folder) / "home")}
        try:
            from workbench.registry import load_method
            from workbench.runs import run

            work = sys.modules[load_method("ten_ms").__module__].work

            def bare_once() -> float:
                begin = time.perf_counter()
                for _ in range(steps):
                    work()
                return time.perf_counter() - begin

            def ours_once(seed: int) -> float:
                marks: list[float] = []
                run("ten_ms", "nothing", {"steps": steps + 1}, seed=seed, threads=1, progress=False,
                    observer=lambda report: marks.append(time.perf_counter()))
                return marks[-1] - marks[0]

            ours_once(10_000)  # warm: MLflow imported, schema made
            bare, ours = [], []
            for pair in range(pairs):
                if pair % 2:
                    bare.append(bare_once())
                ours.append(ours_once(pair))
                if not pair % 2:
                    bare.append(bare_once())
        finally:
            for k, v in old.items():
                os.environ.pop(k) if v is None else os.environ.__setitem__(k, v)
    ratio = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
    return {"name": "engine and recorder on 10 ms steps", "ours": statistics.median(ours) / steps * 1e3,
            "peer": statistics.median(bare) / steps * 1e3, "unit": "ms a step", "ratio": ratio, "n": pairs, "target": "<= 1.03",
            "met": ratio <= 1.03}
