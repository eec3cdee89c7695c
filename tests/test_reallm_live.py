"""The study of ReALLM on a small live model: bits, costs, pictures and shapes are those of what was compressed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workbench import claims
from workbench.studies import reallm as paper
from workbench.studies.reallm.patterns import ALL
from workbench.study import Study, StudyParameters


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        return paper.prepared(paper.SMOKE)


def test_bits_of_every_method_are_those_stored(task):
    stored = paper.stored_bits(task, paper.SMOKE, tuple(paper.METHODS), 2)
    assert list(stored["method"]) == list(paper.METHODS)
    assert (stored["sum"] == stored["stored"]).all()
    assert paper.size_claim(stored).verdict == claims.HOLDS
    assert paper.size_claim(stored.assign(stored=stored["stored"] + 8)).verdict == claims.FAILS


def test_a_budget_is_kept_and_a_pattern_is_seen(task):
    found = {name: w for name, w in paper.matrices(task.reference(), (0,)).items() if "proj" in name and w.shape[0] >= 32}
    shapes = paper.shapes(found, 4.0, 16)
    single, total = shapes.iloc[:-1], shapes.iloc[-1]
    counts = np.array([found[name].numel() for name in single["matrix"]])
    assert total["matrix"] == ALL
    assert total["bits"] == pytest.approx(float((single["bits"] * counts).sum() / counts.sum()))
    assert total["bits"] <= 4.0
    waves = torch.sin(torch.arange(64.0) * 0.7)[None] * torch.linspace(1, 2, 64)[:, None]
    noise = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    table = paper.pattern_table({"waves": waves, "noise": noise}, 2, 2, 16).set_index("matrix")
    assert table.loc["waves", "ordered"] < 0.5 < table.loc["waves", "smoothness"]
    # independent entries: the root of two, within a few standard errors of 64 x 63 differences
    assert table.loc["noise", "smoothness"] == pytest.approx(2**0.5, abs=0.06)
    assert table.loc["noise", "shuffled"] == pytest.approx(2**0.5, abs=0.06)
    assert table.loc["waves", "energy, top 1/32"] == pytest.approx(1.0, abs=1e-4)
    assert set(table["price [bit]"]) == {6 / 64}


def test_views_hold_the_same_weights(task):
    weight = next(iter(paper.matrices(task.reference(), (0,)).values()))
    views = paper.views(weight)
    for matrix in views.values():
        torch.testing.assert_close(matrix.sort(1).values, weight.sort(1).values)
    figure = paper.heat_maps(views, "a matrix")
    assert len(figure.data) == 3
    assert "ordered" in figure.layout.meta["caption"]
    # two decimals; one deviation with, the other without Bessel's correction, at up to four deviations
    assert float(np.abs(np.asarray(figure.data[0].z) * float(weight.std()) - weight.numpy()).max()) < 0.01 * float(weight.std())


def test_costs_are_counted_and_the_model_is_left_as_it_is(task):
    before = {name: p.clone() for name, p in task.reference().named_parameters()}
    costs = paper.cost_table(task, paper.SMOKE, ("RTN", "GPTQ"), 2, tokens=3).set_index("method")
    assert all(torch.equal(before[name], p) for name, p in task.reference().named_parameters())
    assert list(costs.index) == ["float32", "RTN, 2 bits", "GPTQ, 2 bits"]
    # 1e6 bytes a megabyte; matrices are all but embedding, head and norms
    weights = sum(w.numel() for w in paper.matrices(task.reference(), (0, 1)).values())
    assert costs.loc["RTN, 2 bits", "matrices, fp16 [MB]"] == pytest.approx(2e-6 * weights)
    assert costs.loc["RTN, 2 bits", "matrices [MB]"] == pytest.approx(1e-6 * weights * costs.loc["RTN, 2 bits", "total bits"] / 8)
    assert (costs["kept decoded [tokens/s]"] > 0).all()


def test_perplexity_against_bits_from_live_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    study = Study("reallm", "ReALLM", StudyParameters(profile="smoke", tracking_uri="off"))
    comparison = study.run(paper.SMOKE.pareto((2,), ("RTN", "GPTQ", "ReALLM")), seeds=1, metric="eval/loss", threads=1, progress=False)
    assert not study.failures
    table = paper.results(comparison)
    assert set(table["method"]) == {"uncompressed", "RTN", "GPTQ", "ReALLM"}
    assert float(table.loc[table["method"] == "uncompressed", "total bits"].iloc[0]) == 16
    assert (table.loc[table["method"] != "uncompressed", "total bits"] < 4).all()
    figure = paper.pareto_figure(table, "a title")
    assert {t.name for t in figure.data} == {"RTN", "GPTQ", "ReALLM", "uncompressed, 16 bits"}
    assert figure.layout.yaxis.type == "log"
    level = float(table.loc[table["method"] == "uncompressed", "perplexity"].iloc[0])
    assert list(figure.data[-1].y) == [level, level]
