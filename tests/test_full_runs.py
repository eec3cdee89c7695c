"""What `make gpu` runs of the studies, and what it keeps: checked where there is no GPU."""

from __future__ import annotations

import json

import pytest

from tests import gpu
from tracking.results import kept
from workbench.keeping import keep_runs
from workbench.runs import RunFailed, run
from workbench.spec import resolve
from workbench.studies import full, igt


@pytest.mark.parametrize("study", [name for name in full.RUNS if name != "igt"])
def test_every_full_run_is_one_that_can_be_asked_for(study):
    keys = [resolve(**spec, device="cpu").spec.key for spec in full.RUNS[study]()]
    assert len(keys) > 5
    assert len(set(keys)) >= len(keys) - 2  # where two sections of a study share a run


def test_every_full_run_on_graphs_is_one_that_can_be_asked_for():
    there = dict.fromkeys(("cora", "citeseer", "pubmed", "wikics", "amazon_photo"), True)
    runs = [run for bench in igt.benches("full", there) for run in bench.runs()]
    assert len({resolve(**spec, device="cpu").spec.key for spec in runs}) == len(runs) == 8 * len(igt.METHODS)


@pytest.mark.parametrize("times", [True, False])
def test_figures_are_kept_by_group_and_hardware_and_times_only_where_they_are_wanted(toy, tmp_path, times):
    runs = [run("toy", "toy", {"steps": steps}, seed=seed, device="cpu", threads=1, tracking="off", progress=False)
            for steps in (3, 4) for seed in (0, 1)]
    about = runs[3].folder.read_run()
    about["tags"]["workbench.hardware"] = "Another machine"  # as one that was brought from elsewhere
    about["provenance"]["commit"] = "0123456789ab"
    runs[3].folder.run_path.write_text(json.dumps(about))
    files = keep_runs("tour", runs, times=times, root=tmp_path)
    assert [path.name for path in files][1] == "another-machine.json"
    table = kept("tour", root=tmp_path)
    rows = {(r["quantity"], r["metric"], r["hardware"] == "Another machine"): r for r in table.to_dict("records")}
    assert {key[0] for key in rows} == {"toy steps=3 (toy)", "toy steps=4 (toy)", "toy (toy)"}
    assert rows["toy (toy)", "train/loss", True]["mean"] == runs[3].metrics["train/loss"]
    assert rows["toy (toy)", "train/loss", True]["commit"] == "0123456789ab"
    pair = rows["toy steps=3 (toy)", "train/loss", False]
    assert (pair["n"], pair["values"]) == (2, [r.metrics["train/loss"] for r in runs[:2]])
    assert (("toy steps=3 (toy)", "clock/wall_s", False) in rows) is times


def test_what_is_kept_meanwhile_are_the_studys_finished_runs(toy):
    about = {"device": "cpu", "threads": 1, "tracking": "off", "progress": False}
    tags = {"workbench.study": "dgl", "workbench.profile": "full"}
    ended = run("toy", "toy", {"steps": 3}, tags=tags, **about)
    run("toy", "toy", {"steps": 4}, tags=tags | {"workbench.profile": "quick"}, **about)
    run("toy", "toy", {"steps": 5}, tags=tags | {"workbench.study": "igt"}, **about)
    with pytest.raises(RunFailed):
        run("toy", "toy", {"steps": 6, "fail_at": 2}, tags=tags, **about)
    assert [r.key for r in gpu.finished_runs("dgl")] == [ended.key]
