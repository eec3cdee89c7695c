"""The sections of the BOLD study on other tasks: every run is one that can be made, tables say what the journals hold, verdicts follow."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from workbench.claims import FAILS, HOLDS, OPEN
from workbench.comparison import compare
from workbench.runs import run
from workbench.spec import resolve
from workbench.studies import bold_tasks
from workbench.studies.bold_tasks import METHODS, SECTIONS
from workbench.study import Study, StudyParameters


def study(profile: str) -> Study:
    return Study("bold", "BOLD", StudyParameters(profile=profile, device="cpu", tracking_uri="off"))


@pytest.mark.parametrize("profile", ["smoke", "quick", "full"])
@pytest.mark.parametrize("section", SECTIONS)
def test_every_run_is_one_that_can_be_made(section, profile, monkeypatch):
    """Checked as a person's input is, before any work; the data are not needed for it."""
    it = study(profile)
    monkeypatch.setattr(it, "image_task", lambda dataset, model, sizes, stand_in: (f"{dataset}/{model}", sizes))
    runs = bold_tasks.runs(it, section)
    for spec in runs:
        job = resolve(spec["method"], spec["task"], spec["params"], task_params=spec["task_params"], device="cpu", threads=1)
        assert job.method.refuses(job.task, job.method.params) is None
    tasks = list(dict.fromkeys(spec["task"] for spec in runs))
    assert len(runs) == len(METHODS) * len(tasks)
    assert tasks == ([SECTIONS[section].stand_in] if profile == "smoke" else list(SECTIONS[section].real))
    for task in tasks:  # one budget for all
        assert len({(s["params"]["epochs"], s["params"]["batch_size"]) for s in runs if s["task"] == task}) == 1
        assert len({str(s["task_params"]) for s in runs if s["task"] == task}) == 1


def test_the_full_profile_has_the_paper_s_rates():
    """Section 4 and appendix D: accumulation rates 36, 12 and 100; Adam 1e-4 for super-resolution, 5e-4 for segmentation."""
    rates = {name: s.rates["full"]["BOLD"] for name, s in SECTIONS.items()}
    assert [r["eta"] for r in rates.values()] == [36, 12, 100]
    assert (rates["super-resolution"]["lr"], rates["segmentation"]["lr"]) == (1e-4, 5e-4)


def test_without_data_the_embedded_tasks_stand_in_once(tmp_path, monkeypatch, capsys):
    import sys

    from workbench import data

    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "_memory", {})
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name, section in SECTIONS.items():
        runs = bold_tasks.runs(study("quick"), name)
        assert [s["task"] for s in runs] == [section.stand_in] * len(METHODS)
        assert all(s["task_params"] == section.stand_in_params for s in runs)
    assert "is not at hand" in capsys.readouterr().out


# --- what the runs say ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def comparisons(tmp_path_factory):
    """The smoke profile, one seed."""
    patch = pytest.MonkeyPatch()
    patch.setenv("WORKBENCH_HOME", str(tmp_path_factory.mktemp("home")))
    found = {}
    for name, section in SECTIONS.items():
        ended = [run(**spec, device="cpu", threads=1, tracking="off", progress=False) for spec in bold_tasks.runs(study("smoke"), name)]
        found[name] = compare(ended, metric=section.metric)
    yield found
    patch.undo()


@pytest.mark.parametrize("section", SECTIONS)
def test_tables_say_what_the_journals_hold(section, comparisons):
    comparison, s = comparisons[section], SECTIONS[section]
    last = {g.method: g.runs[0].metrics[s.metric] * s.scale for g in comparison.groups}
    rows = bold_tasks.table(comparison, section).set_index("method")
    for name, method in METHODS.items():
        assert rows.loc[name, f"ours [{s.unit}]"] == f"{last[method]:.2f} (n = 1)"
    gain = next(c for c in rows if c.startswith("gain over frozen"))
    assert rows.loc["BOLD", gain] == f"{last['bold'] - last['frozen_boolean']:.2f} (n = 1)"
    assert not any(c.startswith("paper") for c in rows), "the paper has no figure for an embedded task"
    for claim in bold_tasks.claims(comparison, section):
        assert claim.verdict == OPEN, "one seed decides nothing"


def test_a_trained_network_can_be_measured_again(comparisons):
    for section in ("super-resolution", "segmentation", "text"):
        for g in comparisons[section].groups:
            again = bold_tasks._measured(g.runs[0], None)
            reported = g.runs[0].metrics
            assert again == pytest.approx({name: reported[name] for name in again}, rel=1e-6), g.method


def test_bicubic_is_that_of_the_task(comparisons):
    from tests.task_helpers import context, make
    from workbench.datasets.models_superresolution import Bicubic
    from workbench.datasets.superresolution import SamplePhotos
    from workbench.methods.supervised import test as measure

    expected = measure(Bicubic(2), make(SamplePhotos, "edsr_small", patch=24), context())["eval/psnr"]
    assert bold_tasks.bicubic(comparisons["super-resolution"]) == expected


# --- verdicts -----------------------------------------------------------------------------------------------

GOOD = {"BOLD": {0: 0.700, 1: 0.701}, "full precision": {0: 0.710, 1: 0.711}, "frozen": {0: 0.50, 1: 0.501}}
BAD = {"BOLD": {0: 0.300, 1: 0.301}, "full precision": {0: 0.920, 1: 0.921}, "frozen": {0: 0.50, 1: 0.501}}


@pytest.mark.parametrize(("section", "scale"), [("super-resolution", 40.0), ("segmentation", 1.0), ("text", 1.0)])
@pytest.mark.parametrize(("figures", "verdict"), [(GOOD, HOLDS), (BAD, FAILS)])
def test_verdicts_follow_the_figures(section, scale, figures, verdict, monkeypatch):
    monkeypatch.setattr(bold_tasks, "of", lambda comparison, task, name: {s: scale * v for s, v in figures[name].items()})
    monkeypatch.setattr(bold_tasks, "bicubic", lambda comparison: 25.0)
    claims = bold_tasks.claims(SimpleNamespace(tasks=["a", "b"]), section)
    assert len(claims) >= 2
    assert [c.verdict for c in claims] == [verdict] * len(claims), [c.row() for c in claims]


def test_a_mean_over_tasks_is_of_the_seeds_that_finished_on_all(monkeypatch):
    values = {"a": {0: 0.5, 1: 0.7}, "b": {1: 0.9, 2: 0.1}}
    monkeypatch.setattr(bold_tasks, "of", lambda comparison, task, name: values[task])
    assert bold_tasks.mean_score(SimpleNamespace(tasks=["a", "b"]), "BOLD") == {1: pytest.approx(0.8)}
    assert bold_tasks.mean_score(SimpleNamespace(tasks=[]), "BOLD") == {}
    assert not math.isnan(sum(bold_tasks.mean_score(SimpleNamespace(tasks=["a"]), "BOLD").values()))


# --- pictures -----------------------------------------------------------------------------------------------


def test_pictures_show_the_truth_and_what_each_network_puts_out(comparisons):
    import numpy as np

    from workbench.studies.bold_task_pictures import PALETTE, pictures

    figure = pictures(comparisons["super-resolution"], image=1)
    assert [t.name for t in figure.data] == ["original", "bicubic", *METHODS]
    state, job = next(g for g in comparisons["super-resolution"].groups if g.method == "bold").runs[0].state()
    large = job.task.tests[1][1].permute(1, 2, 0).numpy()
    top, left = ((side - 96) // 2 for side in large.shape[:2])
    assert np.array_equal(np.asarray(figure.data[0].z), large[top:top + 96, left:left + 96])

    figure = pictures(comparisons["segmentation"])
    assert [t.name for t in figure.data] == ["image", "annotation", *METHODS]
    state, job = next(g for g in comparisons["segmentation"].groups if g.method == "bold").runs[0].state()
    x, y = job.task.test_batch(0, 1)
    said = state.model.eval()(x)[0].argmax(0).numpy()
    shown, void = np.asarray(figure.data[3].z), (y[0] == job.task.void).numpy()
    assert np.array_equal(shown[~void], PALETTE[said[~void]])
    assert (shown[void] == PALETTE[-1]).all()
    assert figure.layout.meta["caption"]


# --- energy ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", SECTIONS)
def test_the_energy_model_takes_boolean_layers_for_boolean_and_no_others(section):
    """Layer by layer, from what the network is made of: in these networks more than the two ends are real."""
    import torch

    from tracking.energy_model.trace import trace
    from workbench.boolean import BooleanLayer
    from workbench.method import Context

    spec = next(s for s in bold_tasks.runs(study("smoke"), section) if s["method"] == "bold")
    job = resolve(spec["method"], spec["task"], spec["params"], task_params=spec["task_params"], device="cpu", threads=1)
    ctx = Context(torch.device("cpu"), seed=0)
    job.task.setup(ctx)
    model, example, plan = job.method.modelled(job.method.init(job.task, ctx), job.task)
    flipped = {name for name, m in model.named_modules() if isinstance(m, BooleanLayer)}
    products = [layer for layer in trace(model, example) if layer.kind in ("linear", "conv", "matmul")]
    names = [layer.name for layer in products]
    assert flipped < set(names)
    for name, layer in zip(names, products, strict=True):
        formats = plan.of(name, layer.kind, ends=(names[0], names[-1]))
        assert (formats.weights, formats.activations) == (("bool", "bool") if name in flipped else ("fp32", "fp32")), name
    assert len(names) - len(flipped) >= {"super-resolution": 4, "segmentation": 2, "text": 4}[section]
