"""The tour: its sums against the journals, its question of equal bytes against brute force, its clock against the task."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from workbench.claims import ABSENT, HOLDS, OPEN
from workbench.comparison import compare
from workbench.method import Context
from workbench.runs import run
from workbench.spec import resolve
from workbench.studies import tour

CLIENTS = {"clients": 4, "selected": 2, "local_steps": 2, "batch_size": 32, "horizon": 60.0, "report_every": 5.0, "eval_every": 5.0}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    quick = {"threads": 1, "device": "cpu", "tracking": "off", "progress": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(tmp_path_factory.mktemp("home")))
        runs = [run("favas", "digits/perceptron", CLIENTS, seed=seed, **quick) for seed in (0, 1)]
        runs.append(run("full_precision", "digits/perceptron", {"epochs": 1}, **quick))
        runs.append(run("raw_features", "karate/node", {}, **quick))
        return tour.joined(compare(runs[:2]), compare(runs[2:]))


def test_joined_keeps_every_run_and_its_order(results):
    assert [(g.method, len(g.runs)) for g in results.groups] == [("favas", 2), ("full_precision", 1), ("raw_features", 1)]


def test_a_cost_is_the_mean_of_what_the_runs_report_and_absent_where_they_report_nothing(results):
    table = tour.one_page(results).data.set_index("method")
    favas, alone, raw = (table.loc[g.label] for g in results.groups)
    last = [r.metrics for r in results.groups[0].runs]
    assert favas["sent [MB]"] == pytest.approx(sum(m["comm/up_bytes"] + m["comm/down_bytes"] for m in last) / 2e6, abs=0.005)  # 2 digits
    assert favas["simulated [units]"] == pytest.approx(sum(m["clock/virtual_s"] for m in last) / 2, abs=0.5)
    assert math.isnan(alone["sent [MB]"])
    assert math.isnan(alone["simulated [units]"])
    assert alone["deployed [kB]"] == pytest.approx(results.groups[1].runs[0].metrics["memory/model_bytes"] / 1e3, abs=0.05)
    assert math.isnan(raw["energy, modelled [J]"])
    assert tour.one_page(compare(results.groups[2].runs)).data.columns.tolist() == ["method", "accuracy [%]", "here [s]"]


def test_only_what_reports_a_metric_is_kept_in_its_colours(results):
    part = tour.reporting(results, "comm/up_bytes")
    assert [g.method for g in part.groups] == ["favas"]
    assert part.styles == results.styles


def test_accuracy_at_equal_bytes_is_that_of_the_last_evaluation_paid_for(results):
    total = tour.sent_bytes(results, "favas")
    assert total.keys() == {0, 1}
    for share in (1.0, 0.5, 0.2):
        budget = {seed: share * total[seed] for seed in total}
        expected = {}
        for ended in results.groups[0].runs:
            up = down = 0.0
            for row in ended.frame().to_dict("records"):  # row by row, as the run went
                up = up if math.isnan(row["comm/up_bytes"]) else row["comm/up_bytes"]
                down = down if math.isnan(row["comm/down_bytes"]) else row["comm/down_bytes"]
                if up + down <= budget[ended.spec["seed"]] and not math.isnan(row["eval/accuracy"]):
                    expected[ended.spec["seed"]] = row["eval/accuracy"]
        assert tour.at_bytes(results, "favas", budget) == expected
    assert tour.at_bytes(results, "favas", {0: 0.0}) == {}
    assert tour.at_bytes(results, "favas", {1: total[1]}).keys() == {1}


def test_who_is_ahead_is_judged_on_the_same_seeds():
    a, b = {0: 0.5, 1: 0.7, 2: 0.9}, {0: 0.4, 1: 0.6, 2: 0.8}  # far apart from each other, and always a tenth between the two
    claim = tour.ahead("a claim", "1", a, b, ("one", "two"))
    assert claim.verdict == HOLDS
    assert claim.ours == "one 70.0 ± 49.7 (n = 3); two 60.0 ± 49.7 (n = 3); difference 10.0 ± 0.0 (n = 3)"  # 4.303 * 20 / sqrt(3)
    assert tour.ahead("a claim", "1", {0: 0.5}, {0: 0.4}, ("one", "two")).verdict == OPEN
    assert tour.ahead("a claim", "1", {}, b, ("one", "two")).verdict == ABSENT


def test_the_clients_clock_ends_when_one_machine_would(own_home):
    """The notebook's ``2.0 * 45`` units an epoch are two for each of the task's batches of 32."""
    text = (Path(tour.__file__).parent.parent.parent / "notebooks" / "00_tour.ipynb").read_text()
    sources = ["".join(c["source"]) for c in json.loads(text)["cells"]]
    assert sum("horizon = 2.0 * 45 * epochs" in s for s in sources) == 1
    job = resolve("full_precision", "digits/mlp", {"batch_size": 32})
    job.task.setup(Context(device=torch.device("cpu"), seed=0))
    assert math.ceil(len(job.task.train_y) / 32) == 45


def test_every_other_study_is_named_with_its_command():
    rows = tour.further().data
    assert "askewsgd" in set(rows["study"])
    assert "tour" not in set(rows["study"])
    assert all(rows["command"] == "workbench study " + rows["study"])
