"""The contract of every method: it learns, repeats itself, resumes to the bit, and keeps to its own business.

Parametrised over the registry: a new method is covered by existing, on its own ``example``.
"""

from __future__ import annotations

import ast
import copy
import math
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.test_state import same, through_file
from tracking import journal
from tracking.folder import RunFolder
from tracking.metrics import METRICS
from workbench import checkpoint, registry
from workbench.control import Control
from workbench.engine import Loop, prepare
from workbench.method import Context
from workbench.params import bounds, parse
from workbench.spec import resolve
from workbench.state import restore, snapshot

METHODS = registry.methods()
ENTRIES = pytest.mark.parametrize("entry", METHODS.values(), ids=METHODS)
UNITS = ("epochs", "rounds", "steps", "iterations", "layers_trained")  # parameters that say how long a run is
SIZES = {"train_size": 200, "test_size": 100}  # of the tasks, for what needs no learning

Lines = list[tuple[int, dict[str, float]]]


def lasting(folder: RunFolder) -> Lines:
    """The journal without what depends on the moment (time, energy, memory)."""
    return [
        (e.step, {k: v for k, v in e.values.items() if not METRICS[k].volatile})
        for e in journal.read(folder.journal_path)
    ]


def frozen(state: Any) -> Any:
    """A copy of all that a State holds: a snapshot shares its tensors with the State."""
    return copy.deepcopy(snapshot(state))


def global_random_states() -> tuple[bytes, bytes]:
    return torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes()


def example_of(cls: type, short: bool) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Task, parameters and task parameters of the example; ``short``: two units of it on few samples."""
    task, params, task_params = (
        cls.example["task"],
        dict(cls.example.get("params", {})),
        dict(cls.example.get("task_params", {})),
    )
    if short:
        known = registry.load_task(task).Params.model_fields
        task_params |= {k: v for k, v in SIZES.items() if k in known and bounds(known[k]).get("ge", 0) <= v}
        for name in UNITS:
            if name in cls.Params.model_fields:
                params[name] = min(2, params.get(name, cls.Params.model_fields[name].default))
        if "report_every" in cls.Params.model_fields:
            params["report_every"] = 1  # a stop can come in the middle of an epoch
    return task, params, task_params


def ran(cls: type, folder: Path, *, seed: int = 0, short: bool = True, stop_at: int | None = None) -> RunFolder:
    """Run the example in ``folder`` through the engine, or go on with the run that lies there; stop after report ``stop_at``."""
    task, params, task_params = example_of(cls, short)
    job = resolve(cls.id, task, params, task_params=task_params, seed=seed, device="cpu", threads=1)
    run, control = RunFolder(folder), Control()
    prepare(job, run, experiment="contract", fresh=False, parent=None, tags={})
    seen: list[int] = []

    def watch(report) -> None:
        seen.append(report.step)
        if len(seen) == stop_at:
            control.stop("by the test")

    with run.lock():
        status, reason = Loop(job, run, control, watch).run()
    assert (status, reason) == (("stopped", "by the test") if stop_at and status == "stopped" else ("finished", "")), (
        reason
    )
    return run


@dataclass
class Live:
    """Live objects of the short example, for checks between two steps."""

    method: Any
    task: Any
    ctx: Context
    state: Any


def live(cls: type, **changes: Any) -> Live:
    task, params, task_params = example_of(cls, short=True)
    job = resolve(cls.id, task, params | changes, task_params=task_params, device="cpu", threads=1)
    ctx = Context(device=torch.device("cpu"), seed=0)
    job.task.setup(ctx)
    return Live(job.method, job.task, ctx, job.method.init(job.task, ctx))




@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("contract")


_short: dict[str, RunFolder] = {}


def short_run(cls: type, place: Path) -> RunFolder:
    """The short example at seed 0, run once for all checks."""
    if cls.id not in _short:
        _short[cls.id] = ran(cls, place / cls.id / "short")
    return _short[cls.id]


# --- what it does -------------------------------------------------------------------------------------------


@ENTRIES
def test_it_learns(entry, place):
    """On its own example: much better than chance at the end, where chance is known; else a loss well below that of the start."""
    cls = registry.load_method(entry.id)
    folder = ran(cls, place / entry.id / "whole", short=False)
    task, _, task_params = example_of(cls, short=False)
    values = [e.values for e in journal.read(folder.journal_path)]
    last = {k: v for row in values for k, v in row.items()}
    if "eval/accuracy" in last:
        job = resolve(entry.id, task, {}, task_params=task_params)
        job.task.setup(Context(device=torch.device("cpu"), seed=0))
        chance = 1 / job.task.num_classes
        # half the way from chance to certainty: hundreds of test samples put pure chance tens of standard deviations below
        assert last["eval/accuracy"] > chance + 0.5 * (1 - chance), last["eval/accuracy"]
    elif "eval/perplexity" in last:
        job = resolve(entry.id, task, {}, task_params=task_params)
        job.task.setup(Context(device=torch.device("cpu"), seed=0))
        losses = [row["eval/loss"] for row in values if "eval/loss" in row]
        # the model was trained before: compressed, it is still far from finding every token equally likely, and tuning helps
        assert losses[-1] < 0.5 * math.log(job.task.vocab_size), losses
        assert len(losses) == 1 or losses[-1] < losses[0], losses
    else:
        name = next(n for n in ("eval/loss", "train/loss") if n in last)
        figures = [row[name] for row in values if name in row]
        assert figures[-1] < 0.9 * figures[0], figures


@ENTRIES
def test_one_seed_one_result_and_another_seed_another(entry, place):
    cls = registry.load_method(entry.id)
    first = lasting(short_run(cls, place))
    assert lasting(ran(cls, place / entry.id / "again")) == first
    other = lasting(ran(cls, place / entry.id / "other", seed=1))
    # a State that remembers no generator draws nothing between steps: a search that tries everything is the same for every seed
    assert other != first or not any(isinstance(v, torch.Generator) for v in vars(live(cls).state).values())


@ENTRIES
def test_a_stopped_run_resumes_to_the_bit(entry, place):
    """Stopped after the first report, and again after the next, in the middle of an epoch where there is one."""
    cls = registry.load_method(entry.id)
    whole = short_run(cls, place)
    for stop_at in (1, 1, None):
        folder = ran(cls, place / entry.id / "resumed", stop_at=stop_at)
    assert lasting(folder) == lasting(whole)
    assert same(checkpoint.load(folder)["state"], checkpoint.load(whole)["state"])


@ENTRIES
def test_its_figures_are_declared_and_make_sense(entry, place):
    rows = lasting(short_run(registry.load_method(entry.id), place))
    steps = [step for step, _ in rows]
    assert steps == sorted(set(steps)), "reports go forward"
    seen: dict[str, float] = {}
    for _, values in rows:
        for name, value in values.items():
            assert math.isfinite(value)
            if METRICS[name].cumulative or METRICS[name].unit == "B":
                assert value >= 0, name
            if METRICS[name].cumulative:
                assert value >= seen.get(name, 0), name
            if METRICS[name].unit == "fraction":
                assert 0 <= value <= 1, name
        seen |= values
    assert any(name.startswith("eval/") for name in rows[-1][1]), "the last report has an evaluation"


@ENTRIES
def test_its_modelled_energy_is_reported_where_it_declares_formats(entry, place):
    """A network that cannot be traced would cost the figure without a word on screen."""
    cls = registry.load_method(entry.id)
    folder, it = short_run(cls, place), live(cls)
    joules = [(values.get("train/samples"), values.get("energy/model_j")) for _, values in lasting(folder)]
    if it.method.modelled(it.state, it.task) is None:
        assert all(j is None for _, j in joules)
        return
    assert not folder.read_run()["tags"]["energy.model"].startswith("absent"), folder.read_run()["tags"]["energy.model"]
    counted = [(n, j) for n, j in joules if n is not None]
    assert counted
    assert counted[-1][0] > 0
    assert all(j is not None and (j > 0) == (n > 0) for n, j in counted)
    assert all(after[1] > before[1] for before, after in pairwise(counted) if after[0] > before[0])


@ENTRIES
def test_evaluating_changes_nothing_and_says_the_same_twice(entry):
    it = live(registry.load_method(entry.id))
    stepped = it.method.step(it.state, it.task, it.ctx)
    before = frozen(it.state)
    first = it.method.evaluate(it.state, it.task, it.ctx)
    assert same(snapshot(it.state), before)
    assert it.method.evaluate(it.state, it.task, it.ctx) == first
    figures = set(stepped) | set(first)
    assert figures <= set(METRICS)
    the_engine_s = ("clock/wall_s", "energy/cpu_j", "energy/gpu_j", "memory/peak_bytes", "memory/state_bytes", "comm/")
    assert not {n for n in figures if n.startswith(the_engine_s)}, "measured and billed by the engine alone"


@ENTRIES
def test_global_random_generators_are_left_alone(entry):
    cls = registry.load_method(entry.id)
    before = global_random_states()
    it = live(cls)
    assert global_random_states() == before, "init"
    it.method.step(it.state, it.task, it.ctx)
    assert global_random_states() == before, "step"
    it.method.evaluate(it.state, it.task, it.ctx)
    assert global_random_states() == before, "evaluate"
    figures = it.method.step(it.state, it.task, it.ctx)
    twin = live(cls)
    twin.method.step(twin.state, twin.task, twin.ctx)
    torch.manual_seed(123)  # and nothing is drawn from them
    assert twin.method.step(twin.state, twin.task, twin.ctx) == figures


@ENTRIES
def test_its_state_is_plain_data_and_complete(entry):
    """A State restored into a fresh one takes the next step exactly like the original."""
    cls = registry.load_method(entry.id)
    it = live(cls)
    it.method.step(it.state, it.task, it.ctx)
    twin = live(cls)
    twin.state = restore(twin.state, through_file(snapshot(it.state)))
    twin.ctx.ledger.load_state_dict(it.ctx.ledger.state_dict())
    if it.method.progress(it.state).done < it.method.progress(it.state).total:
        assert twin.method.step(twin.state, twin.task, twin.ctx) == it.method.step(it.state, it.task, it.ctx)
    assert same(snapshot(twin.state), snapshot(it.state))


@ENTRIES
def test_the_smallest_legal_run_survives(entry):
    """Every whole number at its lower bound, where the bound is part of the range, and the smallest task."""
    cls = registry.load_method(entry.id)
    task, params, _ = example_of(cls, short=True)
    smallest = {
        n: bounds(f)["ge"] for n, f in cls.Params.model_fields.items() if f.annotation is int and "ge" in bounds(f)
    }
    known = registry.load_task(task).Params.model_fields
    least = {
        n: max(int(bounds(f).get("ge", 0)), size)
        for n, f in known.items()
        for name, size in (("train_size", 10), ("test_size", 10))
        if n == name
    }
    job = resolve(cls.id, task, params | smallest, task_params=least, device="cpu", threads=1)
    ctx = Context(device=torch.device("cpu"), seed=0)
    job.task.setup(ctx)
    state = job.method.init(job.task, ctx)
    done, total = job.method.progress(state)
    assert done == 0
    assert total >= 1
    for _ in range(total):
        figures = job.method.step(state, job.task, ctx)
        before, done = done, job.method.progress(state).done
        assert done > before, "a step that leads nowhere would never end"
        if done >= total:
            break
    assert done >= total
    figures |= job.method.evaluate(state, job.task, ctx)
    assert all(math.isfinite(v) for v in figures.values()), figures


@ENTRIES
def test_it_refuses_a_task_of_another_kind_in_a_sentence(entry):
    cls = registry.load_method(entry.id)
    params = parse(cls.Params, cls.example.get("params"), entry.id)
    task_cls = registry.load_task(cls.example["task"])
    task = task_cls(
        cls.example["task"].partition("/")[2], parse(task_cls.Params, cls.example.get("task_params"), "task")
    )
    assert cls.refuses(task, params) is None
    task.kind = "something else"
    assert re.fullmatch(r"[A-Z].*something else.*\.", cls.refuses(task, params))


# --- what it is ---------------------------------------------------------------------------------------------

NOT_ITS_BUSINESS = {
    "time",
    "logging",
    "mlflow",
    "matplotlib",
    "plotly",
    "ipywidgets",
    "tqdm",
    "threading",
    "signal",
    "subprocess",
    "os",
    "pathlib",
    "shutil",
    "papermill",
}
OUTER_ROOMS = {
    f"workbench.{m}"
    for m in (
        "engine",
        "runs",
        "sweeps",
        "cli",
        "worker",
        "control",
        "checkpoint",
        "explorer",
        "study",
        "comparison",
        "doctor",
        "catalogue",
        "spec",
        "registry",
        "provenance",
    )
}


def sources() -> list[Path]:
    """Every file of the methods' folder and of plugins, helpers that are no methods included."""
    found = set((registry.PACKAGE / "methods").rglob("*.py")) | {e.file for e in METHODS.values()}
    return sorted(found)


@pytest.mark.parametrize("file", sources(), ids=lambda f: f"{f.parent.name}/{f.name}")
def test_an_algorithm_never_logs_times_plots_stops_or_saves(file):
    text = file.read_text()
    assert len(text.splitlines()) < 300
    for node in ast.walk(ast.parse(text)):
        imported = (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        for name in imported:
            assert name.partition(".")[0] not in NOT_ITS_BUSINESS, f"line {node.lineno} imports {name}"
            assert name not in OUTER_ROOMS, f"line {node.lineno} imports {name}"
            if name.startswith("tracking."):
                assert name.split(".")[1] in ("codecs", "errors", "metrics", "energy_model", "links"), (
                    f"line {node.lineno} imports {name}"
                )
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in (
                "open",
                "print",
                "input",
                "exit",
                "torch.save",
                "torch.manual_seed",
                "np.random.seed",
                "random.seed",
                "torch.use_deterministic_algorithms",
                "torch.set_num_threads",
            ), f"line {node.lineno} calls {called}()"


@ENTRIES
def test_its_declaration_is_whole(entry):
    cls = registry.load_method(entry.id)
    assert cls.__init__ is registry.load_method(entry.id).__mro__[-2].__init__, (
        "a method computes nothing when it is made"
    )
    assert all(f.description for f in cls.Params.model_fields.values())
    assert parse(cls.Params, {}, entry.id) is not None
    assert parse(cls.Params, cls.example.get("params"), entry.id) is not None
    kinds = {e.literals["kind"] for e in registry.tasks().values()}
    assert cls.kinds
    assert registry.task_entry(cls.example["task"]).literals["kind"] in cls.kinds
    assert set(cls.kinds) & kinds
