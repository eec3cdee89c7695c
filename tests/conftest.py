"""Fixtures: a home of its own for every test, and a small plugin with a method and a task of known behaviour."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from workbench.explorer.panel import Explorer

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

# Processes that share the tests share the cores, too, so all that a test starts has one thread: threads of two that want the same core
# spin while they wait for each other, which doubled the time of the whole.
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = "1"


# What takes longest, longest first: begun late, it would keep one process busy while the others have nothing left to do.
LONG = ("test_contract.py::", "test_readme.py::", "test_cli.py::", "::test_study_runs_at_smoke[", "test_federated_deployment.py::",
        "test_explorer_browser.py::", "test_recorder_faults.py::", "test_engine.py::")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file goes to one process, for its tests share what is costly to make; the studies share nothing, and each takes half a minute."""
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if "::test_study_runs_at_smoke[" in nodeid else super()._split_scope(nodeid)

    config.option.loadscopereorder = False  # in the order of collection, see below
    return Files(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For processes that share the tests: first what is :data:`LONG`, then files by their number of tests."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        count = Counter(item.path for item in items)
        rank = {item: next((n for n, name in enumerate(LONG) if name in item.nodeid), len(LONG)) for item in items}
        items.sort(key=lambda item: (rank[item], -count[item.path]))


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Each of the processes that share the tests begins with other modules, and finds the rest compiled by its siblings.

    Compiling the tests (with their assertions made to speak) takes longer than importing them, and xdist has every process collect all.
    """
    worker, count = os.environ.get("PYTEST_XDIST_WORKER", ""), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    here = Path(__file__).parent
    if collector.path != here or count == 1 or not all(Path(arg).is_dir() for arg in collector.config.args):
        return
    names = sorted(f"tests.{file.stem}" for file in here.glob("test_*.py"))
    first = len(names) * int(worker.removeprefix("gw")) // count
    for name in names[first:] + names[:first]:
        with contextlib.suppress(Exception, pytest.skip.Exception):  # collection meets it again, and says so
            importlib.import_module(name)


# What a test finds depends on the code alone, not on the machine's speed or on luck; new examples: HYPOTHESIS_PROFILE=explore
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

WAIT_S = 60  # a hung run fails the test; no test depends on how long it takes

TOY = '''
"""A random walk towards zero: a method whose every figure is known, for testing the bench itself."""
from __future__ import annotations
import time
from dataclasses import dataclass
import numpy as np
import torch
from tracking.codecs import Dense
from workbench.method import Context, Method, Progress
from workbench.params import Field, Params
from workbench.task import Task


class ToyTask(Task):
    dataset, title, kind, embedded = "toy", "A point in the plane", "toy", True

    class Params(Params):
        dim: int = Field(2, ge=1, le=1000, description="dimension")

    def setup(self, ctx):
        self.start = torch.ones(self.params.dim, device=ctx.device)


@dataclass
class State:
    w: torch.Tensor
    noise: torch.Generator
    host: np.random.Generator
    optimizer: torch.optim.Optimizer
    done: int = 0


class Toy(Method):
    """Noisy descent on a quadratic."""

    id, title, family, kinds = "toy", "Toy", "testing", ("toy",)
    example = {"task": "toy", "params": {"steps": 5}}

    class Params(Params):
        steps: int = Field(20, ge=1, le=100_000, description="steps")
        lr: float = Field(0.1, gt=0, le=1e30, description="learning rate")
        sleep_s: float = Field(0.0, ge=0, le=10, description="time a step takes")
        fail_at: int = Field(-1, description="step that raises")
        oom_at: int = Field(-1, description="step that runs out of memory")
        eval_every: int = Field(1, ge=1, description="steps between evaluations")
        talk: bool = Field(False, description="send the weights each step")

    def init(self, task, ctx):
        w = task.start.clone().requires_grad_()
        return State(w, ctx.generator("noise"), np.random.default_rng(ctx.seed), torch.optim.SGD([w], lr=self.params.lr, momentum=0.5))

    def step(self, state, task, ctx):
        p = self.params
        if state.done == p.fail_at:
            raise ValueError("the toy broke")
        if state.done == p.oom_at:
            raise torch.OutOfMemoryError("out of memory: tried to allocate 1 TB")
        time.sleep(p.sleep_s)
        loss = (state.w + 0.1 * torch.randn(state.w.shape, generator=state.noise, device=ctx.device)).square().sum()
        state.w.grad = None
        loss.backward()
        state.optimizer.step()
        state.done += 1
        if p.talk:
            ctx.ledger.send(state.w, Dense(), "up")
        return {"train/loss": float(loss.detach()) + 1e-3 * state.host.normal(), "train/samples": state.done}

    def evaluate(self, state, task, ctx):
        ctx.poll()
        return {"eval/loss": float(state.w.detach().square().sum())}

    def evaluation_due(self, state):
        return state.done % self.params.eval_every == 0

    def progress(self, state):
        return Progress(state.done, self.params.steps)
'''


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Decoded data sets are cached for the session, in one place for all processes that share the tests, not in the user's cache."""
    base = tmp_path_factory.getbasetemp()
    os.environ["WORKBENCH_CACHE"] = str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Every test begins with one thread, whatever the one before it left: the order of summation depends on their number.

    And the tensors of the tests are small: threads would only wait for each other.
    """
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the user's runs, and none is read from there."""
    home = tmp_path / "home"
    monkeypatch.setenv("WORKBENCH_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return home


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the plugin, to be edited where a test wants to."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "toy.py").write_text(TOY)
    monkeypatch.setenv("WORKBENCH_PLUGINS", str(folder))
    return folder / "toy.py"


@pytest.fixture
def ex(toy: Path) -> Iterator[Explorer]:
    """An explorer with the toy chosen, nothing tracked."""
    from workbench.explorer.panel import Explorer

    explorer = Explorer(tracking="off")
    explorer.choose("toy", "toy")
    yield explorer
    explorer.stop_all()
    explorer.preview.close()
    for r in explorer.runs:
        r.wait(WAIT_S)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder and cache, and the declaration of the tiny data set."""
    from tests.data_helpers import TINY
    from workbench import data

    monkeypatch.setitem(data.DATASETS, "tiny", TINY)
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "_memory", {})
    monkeypatch.setitem(sys.modules, "datasets", None)  # importing it fails
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Path:
    """A SQLite store with its tables; making them takes over a second."""
    from tracking.store import Store

    home = tmp_path_factory.mktemp("template")
    Store(f"sqlite:///{home / 'mlflow.db'}")
    return home / "mlflow.db"


@pytest.fixture
def tables(template, own_home) -> None:
    """The test's home has its SQLite store already: what a test starts need not make one."""
    own_home.mkdir()
    shutil.copy(template, own_home / "mlflow.db")


@pytest.fixture
def uri(template, tmp_path) -> str:
    """Address of a fresh SQLite store of the test's own."""
    from tests.tracking_helpers import new_store

    return new_store(template, tmp_path / "home")
