"""Performance profiles against hand-made costs, the comparison in MLflow, and the comparison notebook."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_comparison import Home
from tracking.errors import UserError
from workbench.evidence import ComparisonParameters
from workbench.profiles import ratios, share_within
from workbench.study import parameters

ROOT = Path(__file__).parent.parent
TASKS = ("digits/mlp", "moons/mlp", "blobs/mlp")


def fill(home: Home, epochs_to_target: dict[str, tuple[int, ...]], length: int = 6, seeds: int = 2) -> None:
    """Runs that reach accuracy 1 at the given epoch of each task (beyond ``length``: never), the same in every seed."""
    for method, epochs in epochs_to_target.items():
        for task, epoch in zip(TASKS, epochs, strict=False):
            for seed in range(seeds):
                home.run(method, [float(e >= epoch) for e in range(1, length + 1)], task=task, seed=seed, params={"epochs": length})


@settings(max_examples=12, deadline=None)
@given(epochs=st.lists(st.tuples(*[st.integers(1, 8)] * 3), min_size=2, max_size=4))
def test_ratios_and_shares_are_the_definition(tmp_path_factory, epochs):
    home = Home(tmp_path_factory.mktemp("profile"))
    fill(home, {f"m{i}": e for i, e in enumerate(epochs)}, seeds=1)
    table = ratios(home.compare(), "train/epoch", dict.fromkeys(TASKS, 1.0))
    costs = np.array([[e if e <= 6 else math.inf for e in row] for row in epochs])  # method by task
    least = costs.min(0)
    expected = np.where(np.isfinite(costs), costs / np.where(np.isfinite(least), least, 1), math.inf)
    np.testing.assert_allclose(table[[f"m{i}" for i in range(len(epochs))]].loc[list(TASKS)].to_numpy(), expected.T)
    for factor in (1.0, 1.5, 3.0, 1e9):
        np.testing.assert_allclose(share_within(table, factor).to_numpy(), (expected <= factor).mean(1))


def test_the_figure_is_a_staircase_that_ends_at_the_share_of_targets_reached(tmp_path):
    home = Home(tmp_path)
    fill(home, {"quick": (1, 2, 9), "slow": (2, 2, 3)})
    figure = home.compare().profiles("train/epoch", dict.fromkeys(TASKS, 1.0))
    drawn = {t.name: (list(t.x), list(t.y)) for t in figure.data}
    assert drawn["quick"][1][0] == pytest.approx(2 / 3)  # cheapest on two of three
    assert drawn["slow"][1][0] == pytest.approx(2 / 3)
    assert drawn["quick"][1][-1] == pytest.approx(2 / 3)  # it misses the third for good
    assert drawn["slow"][1][-1] == 1.0
    assert drawn["slow"][0][0] == 1.0
    assert figure.layout.xaxis.type == "log"
    assert "Dolan & Moré" in figure.layout.meta["caption"]
    assert "profile" in figure.layout.title.text
    text = home.compare().report(tmp_path / "r.html").read_text()
    assert "Over all tasks" in text


def test_default_targets_are_the_medians_and_absent_is_not_failed(tmp_path):
    home = Home(tmp_path)
    for task in TASKS[:2]:
        for method, value in (("a", 0.9), ("b", 0.8), ("c", 0.7)):
            home.run(method, [value], task=task)
    home.run("d", [0.99], task=TASKS[0])
    table = ratios(home.compare(), "train/epoch")
    assert [*table] == ["a", "b", "c"]
    assert (table.loc[TASKS[0]] == [1.0, 1.0, math.inf]).all()  # the median of 0.9, 0.8, 0.7 is reached by two
    assert "did not run on all tasks, or reports no such cost: d." in home.compare().profiles("train/epoch").layout.meta["caption"]
    with pytest.raises(UserError, match="Unknown task 'digit/mlp'"):
        home.compare().profiles("train/epoch", {"digit/mlp": 0.5})
    with pytest.raises(UserError, match="two tasks or more"):
        home.compare().only(TASKS[0]).profiles("train/epoch")


def test_what_costs_nothing_is_the_cheapest_and_other_hardware_is_no_price(tmp_path):
    home = Home(tmp_path)
    for task in TASKS[:2]:
        for method, zero in (("free", True), ("free_too", True), ("paid", False)):
            run = home.run(method, [0.9], task=task, hardware="a GPU" if zero else "a CPU")
            (entry,) = map(json.loads, run.folder.journal_path.read_text().splitlines())
            entry["values"]["comm/up_bytes"] = 0.0 if zero else 5.0
            run.folder.journal_path.write_text(json.dumps(entry) + "\n")
    table = ratios(home.compare(), "comm/up_bytes", dict.fromkeys(TASKS[:2], 0.9))
    assert table.loc[TASKS[0]].to_dict() == {"free": 1.0, "free_too": 1.0, "paid": math.inf}
    with pytest.raises(UserError, match=r"different hardware.*a CPU, 2 threads \| a GPU, 2 threads"):
        home.compare().profiles("clock/wall_s")


def test_the_profile_is_by_a_cost_that_all_methods_have(tmp_path):
    home = Home(tmp_path)
    for task in TASKS[:2]:
        home.run("silent", [0.9], task=task)
        home.run("talkative", [0.9], task=task, up_bytes=7)
    layout = home.compare().profiles().layout
    assert "clock/wall_s" in layout.title.text
    assert layout.title.subtitle.text == "Example CPU 9000, 2 threads"


def test_several_settings_on_one_task_and_one_on_the_other(tmp_path):
    """A setting that ran on both tasks is a solver; one tuned per task is one, too; a task in two settings is two problems."""
    home = Home(tmp_path)
    for task, lrs in zip(TASKS, ((0.1, 0.2), (0.1,)), strict=False):
        for lr in lrs:
            home.run("a", [0.9], task=task, params={"lr": lr})
        home.run("tuned", [0.9], task=task, params={"lr": 3.0 if task == TASKS[0] else 5.0})
    assert [*ratios(home.compare(), "train/epoch")] == ["a lr=0.1", "tuned"]
    assert "no such cost: a lr=0.2." in home.compare().profiles("train/epoch").layout.meta["caption"]
    for method in ("a", "tuned"):
        home.run(method, [0.9], task=TASKS[0], task_params={"train_size": 50})
    assert [*ratios(home.compare(), "train/epoch").index] == ["digits/mlp", "digits/mlp task.train_size=50", "moons/mlp"]


def test_a_comparison_is_logged_with_its_report(tmp_path, uri, monkeypatch):
    home = Home(tmp_path / "made")
    fill(home, {"a": (1,), "b": (2,)})
    link = home.compare().log("side_by_side", tracking=uri)
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("side_by_side").experiment_id])
    assert run.info.run_id in link
    assert run.info.status == "FINISHED"
    assert [f.path for f in client.list_artifacts(run.info.run_id)] == ["side_by_side.html"]
    assert "4 runs side by side" in run.data.tags["mlflow.note.content"]
    assert Path(home.compare().log("here", tracking="off")).stat().st_size > 100_000
    with pytest.raises(UserError, match="letters, digits"):
        home.compare().log("../there", tracking="off")
    with pytest.raises(UserError, match=r"cannot be used: .* The report itself lies at .*kept\.html"):
        home.compare().log("kept", tracking=f"sqlite:///{tmp_path}")


def test_the_notebook_compares_what_a_home_holds(tmp_path, own_home, monkeypatch):
    import papermill

    home = Home(tmp_path / "brought")
    fill(home, {"a": (1, 3), "b": (2, 2)})
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    papermill.execute_notebook(str(ROOT / "notebooks" / "compare.ipynb"), str(tmp_path / "out.ipynb"), kernel_name="python3",
                               parameters={"home": str(home.path), "target": 1.0}, progress_bar=False)
    cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    text = json.dumps([c.get("outputs", []) for c in cells])
    assert text.count("application/vnd.plotly.v1+json") == 5  # curves and fronts of two tasks, and the profile
    assert "widget-view" not in text
    assert "to eval/accuracy 1" in text
    assert (own_home / "reports" / "comparison.html").is_file()
    assert "comparison.html" in json.dumps(cells[-1]["outputs"])


def test_the_notebook_refuses_a_misspelt_parameter(own_home):
    """Papermill injects it as a variable of the notebook and only warns."""
    cells = [c for c in json.loads((ROOT / "notebooks" / "compare.ipynb").read_text())["cells"] if c["cell_type"] == "code"]
    namespace: dict = {}
    exec("".join(cells[0]["source"]), namespace)
    assert {name for name in namespace if not name.startswith("_")} == set(ComparisonParameters.model_fields)
    assert parameters(dict(namespace), ComparisonParameters) == ComparisonParameters()  # the cell shows every default
    for name, value, said in (("metrc", "eval/loss", "Did you mean 'metric'"), ("target", "high", "target"), ("methods", "a,b", "methods")):
        with pytest.raises(UserError, match=said):
            exec("".join(cells[1]["source"]), {**namespace, name: value})
