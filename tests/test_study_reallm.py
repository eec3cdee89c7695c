"""The study of ReALLM: its runs are legal and share one budget, its tables and claims say what the runs say."""

from __future__ import annotations

import ast
import functools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest

from workbench import claims
from workbench.comparison import Comparison
from workbench.grouping import Group
from workbench.params import Params, parse
from workbench.registry import load_method, load_task
from workbench.studies import reallm as paper
from workbench.studies.reallm.patterns import ALL
from workbench.studies.reallm.verdicts import best_peer

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "reallm.ipynb"
SCALES = pytest.mark.parametrize("scale", [paper.TINY, paper.SMOKE, paper.REAL, paper.FULL], ids=["tiny", "smoke", "real", "full"])


class FakeRun:
    """An ended run of known figures."""

    def __init__(self, seed: int, bits: float, losses: list[float]) -> None:
        self.spec = {"seed": seed, "threads": 1}
        self.folder = SimpleNamespace(path=f"run {seed}", read_run=lambda: {"tags": {"workbench.hardware": "a machine"}})
        self.table = pandas.DataFrame({"eval/loss": losses, "memory/bits_per_weight": bits, "memory/code_bits_per_weight": bits - 0.5,
                                       "clock/wall_s": 3.0})

    def frame(self) -> pandas.DataFrame:
        return self.table


METHODS, TASKS = functools.cache(load_method), functools.cache(load_task)


def params_of(run: dict) -> Params:
    """The parameters of a run, checked as the engine checks them, and its task's, too."""
    parse(TASKS(run["task"]).Params, run["task_params"], run["task"])
    return parse(METHODS(run["method"]).Params, run["params"], run["method"])


def a_group(run: dict, bits: float, *losses: list[float]) -> Group:
    """A group of one run a list of losses, evaluated one after the other."""
    facts = params_of(run).model_dump()
    return Group(run["method"], {"method": run["method"], "task": run["task"], **facts},
                 [FakeRun(seed, bits, values) for seed, values in enumerate(losses)])


def pareto(**settings: tuple[float, list[float]]) -> Comparison:
    """Settings such as ``GPTQ_3`` of total bits and losses by seed."""
    groups = []
    for key, (bits, losses) in settings.items():
        name, _, width = key.rpartition("_")
        run = paper.TINY.reference if name == "reference" else paper.TINY.run(name.replace("_", "-"), int(width))
        groups.append(a_group(run, bits, *([v] for v in losses)))
    return Comparison(groups, [], "eval/loss")


# --- runs ---------------------------------------------------------------------------------------------------


@SCALES
def test_every_run_is_legal_and_sees_the_same_calibration(scale):
    runs = [*scale.pareto((2, 3, 4)), *scale.ablations(2), *scale.ablations(3), *scale.tuned(2), *scale.budgeted(3.0)]
    params = [params_of(run) for run in runs]
    # twelve methods at three widths, and the model as it is
    assert len({f"{run['method']} {p!r}" for run, p in zip(runs[:37], params, strict=False)}) == 37
    assert {run["task"] for run in runs} == {scale.task}
    for run, p in zip(runs, params, strict=True):
        blind = run["method"] == "uncompressed" or (run["method"] in {paper.METHODS[m] for m in paper.DATA_FREE} and not p.steps)
        # weights alone need no text, and weighing errors by inputs does
        seen = scale.tuning.get("sequences", scale.sequences) if p.steps else scale.sequences
        assert (p.sequences, p.length) == (1 if blind and getattr(p, "weighting", "none") == "none" else seen, scale.length)
    tuned = [params_of(run) for run in scale.tuned(2)]
    assert {p.rank for p in tuned} == {scale.rank}
    assert len({(p.steps, p.block_steps, p.tune_lr, p.tune_batch) for p in tuned}) == 1


def test_rates_are_chosen_on_text_that_does_not_test():
    runs = paper.TINY.searched(2)
    params = [params_of(run) for run in runs]
    assert {(p.block_lr, p.tune_lr) for p in params} == set(paper.RATES)
    assert {run["task_params"]["judged"] for run in runs} == {"validation"}
    # but for the rates they are the runs that are then tested
    left_out = {"block_lr": 0.1, "tune_lr": 0.1}
    tuned = [params_of(run).model_copy(update=left_out) for run in paper.TINY.tuned(2)]
    assert all(p.model_copy(update=left_out) in tuned for p in params)
    losses = {(run["method"], p.block_lr, p.tune_lr): abs(i - 7.5) for i, (run, p) in enumerate(zip(runs, params, strict=True))}
    groups = [a_group(run, 3.0, [losses[run["method"], p.block_lr, p.tune_lr]]) for run, p in zip(runs, params, strict=True)]
    table = paper.rate_table(Comparison(groups, [], "eval/loss"))
    assert len(table) == len(paper.RATES)
    assert tuple(table.iloc[0][["block by block", "end to end"]]) == paper.RATES[2]  # runs 6, 7 and 8 are nearest to 7.5
    assert table.iloc[0]["mean [nats]"] == pytest.approx((1.5 + 0.5 + 0.5) / 3)


@SCALES
def test_an_ablation_changes_one_thing_and_all_settings_differ(scale):
    for bits in (2, 3):
        changes = scale.changes(bits)
        params = {name: params_of(scale.run("ReALLM", bits, **changed)).model_dump() for name, changed in changes.items()}
        assert len({json.dumps(p, sort_keys=True) for p in params.values()}) == len(changes)
        base = params["no order"]
        for name, p in params.items():
            assert sum(p[k] != base[k] for k in base if k != "sequences") == (name != "no order"), name
            assert p["bits"] * p["dim"] <= 8


def test_codes_have_the_bits_that_are_asked_for():
    for scale in (paper.TINY, paper.REAL):
        for bits in (2, 3, 4):
            p = params_of(scale.run("AQLM", bits))
            assert round(bits * p.d / p.code_bits) * p.code_bits == bits * p.d


def test_what_is_not_at_hand_is_said_and_never_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    assert "workbench data fetch smollm2-135m" in paper.missing(paper.REAL)
    assert not list(tmp_path.iterdir())


# --- tables and claims --------------------------------------------------------------------------------------


def test_results_name_their_front_by_brute_force():
    generator = np.random.default_rng(0)
    points = {f"{name}_{b}": (round(float(generator.uniform(2, 5)), 1), [round(float(generator.uniform(1, 4)), 1)])
              for name in ("RTN", "GPTQ", "QuIP", "ReALLM") for b in (2, 3, 4)}
    table = paper.results(pareto(**points, reference_16=(16.0, [0.5])))
    for row in table.to_dict("records"):
        beaten = any(o["total bits"] <= row["total bits"] and o["loss [nats]"] <= row["loss [nats]"]
                     and (o["total bits"], o["loss [nats]"]) != (row["total bits"], row["loss [nats]"]) for o in table.to_dict("records"))
        assert row["front"] == (not beaten)
        assert row["perplexity"] == pytest.approx(math.exp(row["loss [nats]"]))
        assert row["code bits"] == pytest.approx(row["total bits"] - 0.5)
    assert list(table["total bits"]) == sorted(table["total bits"])


def test_the_best_peer_has_no_more_bits():
    comparison = pareto(RTN_2=(2.6, [3.0]), GPTQ_2=(2.6, [2.5]), GPTQ_3=(3.6, [1.0]), ReALLM_2=(2.7, [2.0]), LQ_LoRA_2=(2.72, [2.4]))
    table = paper.results(comparison)
    assert best_peer(table, 2.7) == ("LQ-LoRA", 2)
    assert best_peer(table, 2.6) == ("GPTQ", 2)
    assert best_peer(table, 2.7, ("RTN",)) == ("RTN", 2)
    assert best_peer(table, 2.0) is None


@pytest.mark.parametrize(("own", "verdict"), [([1.0, 1.1, 1.05], claims.HOLDS), ([3.0, 3.1, 3.05], claims.FAILS), ([1.0], claims.OPEN)])
def test_leading_is_judged_against_the_best_peer(own, verdict):
    comparison = pareto(RTN_3=(3.6, [9.0, 9.1, 9.2]), GPTQ_3=(3.6, [2.0, 2.1, 2.05]), ReALLM_3=(3.6, own))
    (claim,) = paper.leading_claims(comparison, paper.results(comparison), paper.TINY, 3, {"all": tuple(paper.METHODS)})
    assert claim.verdict == verdict
    assert "GPTQ at 3 2.05" in claim.ours
    (none,) = paper.leading_claims(comparison, paper.results(comparison), paper.TINY, 2, {"all": tuple(paper.METHODS)})
    assert none.verdict == claims.ABSENT


def test_ablations_are_compared_seed_by_seed():
    changes = paper.TINY.changes(3)
    # the seeds differ by more than the change does, which is the same for each
    groups = [a_group(paper.TINY.run("ReALLM", 3, **changed), 3.0 + (name == "always ordered"),
                      *([2.0 + s - 0.1 * i + 0.001 * s * i] for s in range(3))) for i, (name, changed) in enumerate(changes.items())]
    comparison = Comparison(groups, [], "eval/loss")
    table = paper.ablation_table(comparison, paper.TINY, 3).set_index("ReALLM with")
    assert list(table.index) == list(changes)
    assert table.loc["no order", "difference to no order"].startswith("0.000 ± 0.000")
    i = list(changes).index(f"rank {paper.TINY.rank}")
    assert table.loc[f"rank {paper.TINY.rank}", "difference to no order"].startswith(f"{-0.1 * (i - 2) + 0.001 * (i - 2):.3f}")
    order, rank = paper.ablation_claims(comparison, paper.TINY, 3)
    assert (order.verdict, rank.verdict) == (claims.FAILS, claims.HOLDS)  # 'always ordered' comes before 'no order'
    assert "for 1.00 bits a weight" in order.text


def test_tuning_reads_the_first_and_the_last_evaluation():
    names = ("RTN", "LoftQ", "ReALLM")
    runs = paper.TINY.tuned(2, names)
    ends = {"RTN": 2.2, "LoftQ": 2.0, "ReALLM": 1.8}
    groups = [a_group(run, 3.0, *([3.0 + 0.01 * s, ends[name] + 0.01 * s] for s in range(3)))
              for name, run in zip(names, runs, strict=True)]
    comparison = Comparison(groups, [], "eval/loss")
    table = paper.tuning_table(comparison).set_index("method")
    assert table.loc["LoftQ", "before [nats]"] == pytest.approx(3.01)
    assert table.loc["LoftQ", "after [nats]"] == pytest.approx(2.01)
    best, gain = paper.tuning_claims(comparison, paper.TINY, 2, names)
    assert (best.verdict, gain.verdict) == (claims.HOLDS, claims.HOLDS)
    assert "LoftQ 2.010" in best.ours
    assert gain.ours.startswith("-1.20")


@pytest.mark.parametrize(("own", "verdict"), [([1.0, 1.1, 1.05], claims.HOLDS), ([3.0, 3.1, 3.05], claims.FAILS)])
def test_shapes_under_a_budget_meet_the_best_single_shape_of_no_more_bits(own, verdict):
    (run,) = paper.TINY.budgeted(3.4)
    shaped = Comparison([a_group(run, 3.38, *([v] for v in own))], [], "eval/loss")
    comparison = pareto(ReALLM_2=(2.4, [2.5, 2.6, 2.55]), ReALLM_3=(3.4, [2.0, 2.1, 2.05]), ReALLM_4=(4.4, [0.1, 0.1, 0.2]))
    claim = paper.budget_claim(shaped, comparison, paper.TINY, 3.4)
    assert claim.verdict == verdict
    assert "3 bits in vectors of 1 2.050" in claim.ours
    assert paper.budget_claim(shaped, pareto(ReALLM_4=(4.4, [0.1])), paper.TINY, 3.4).verdict == claims.ABSENT


def test_shapes_must_differ_and_beat_what_fits_the_budget():
    rows = [{"matrix": "a", "shape": "2 bits in vectors of 2", "rank": 0, "ordered": False, "bits": 2.0, "squared error": 0.10},
            {"matrix": "b", "shape": "3 bits in vectors of 2", "rank": 0, "ordered": False, "bits": 3.0, "squared error": 0.02},
            {"matrix": ALL, "bits": 2.5, "squared error": 0.06}]
    different, better = paper.shape_claims(pandas.DataFrame(rows), {"2 bits": (2.0, 0.1), "3 bits": (3.0, 0.01)})
    assert (different.verdict, better.verdict) == (claims.HOLDS, claims.HOLDS)
    rows[1]["shape"] = rows[0]["shape"]
    different, better = paper.shape_claims(pandas.DataFrame(rows), {"2 bits": (2.0, 0.05)})
    assert (different.verdict, better.verdict) == (claims.FAILS, claims.FAILS)
    assert paper.shape_claims(pandas.DataFrame(rows), {"3 bits": (3.0, 0.0)})[1].verdict == claims.ABSENT


# --- the notebook -------------------------------------------------------------------------------------------


def test_the_notebook_is_clean_and_calls_what_there_is():
    notebook = json.loads(NOTEBOOK.read_text())
    code = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    assert all(not c["outputs"] and c["execution_count"] is None for c in notebook["cells"] if c["cell_type"] == "code")
    used = {node.attr for source in code for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "paper"}
    assert used <= set(paper.__all__)
    assert notebook["metadata"]["workbench"]["study"] == "reallm"
