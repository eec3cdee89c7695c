"""What `make gpu` runs of the studies, and what it keeps: checked where there is no GPU."""

from __future__ import annotations

import pytest

from tests import gpu
from workbench.runs import run
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


@pytest.mark.parametrize("alone", [True, False])
def test_figures_are_kept_by_group_and_times_only_where_nothing_shared_the_machine(toy, monkeypatch, alone):
    kept = {}
    monkeypatch.setattr(gpu, "keep", lambda study, hardware, rows, provenance: kept.update(study=study, rows=rows))
    runs = [run("toy", "toy", {"steps": steps}, seed=seed, device="cpu", threads=1, tracking="off", progress=False)
            for steps in (3, 4) for seed in (0, 1)]
    gpu.write("tour", runs, alone)
    rows = {(r["quantity"], r["metric"]): r for r in kept["rows"]}
    assert {quantity for quantity, _ in rows} == {"toy steps=3 (toy)", "toy steps=4 (toy)"}
    assert all(r["n"] == 2 and r["profile"] == "full" for r in rows.values())
    losses = [r.metrics["train/loss"] for r in runs[2:]]
    assert rows["toy steps=4 (toy)", "train/loss"]["values"] == losses
    assert (("toy steps=4 (toy)", "clock/wall_s") in rows) is alone
