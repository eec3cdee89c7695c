"""The study of FAVAS: its runs are legal, its tables say what brute force says, its clock is the clock of the runs."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch

from workbench import claims
from workbench.comparison import Comparison
from workbench.federation.reweighting import client_moments, theory_constants
from workbench.grouping import Group
from workbench.method import Context
from workbench.spec import resolve
from workbench.studies import favas as paper
from workbench.studies import favas_clock as timing
from workbench.studies.favas import VARIANTS, Federation

IID, FAST, SLOW = paper.SCENARIOS
SMALL = Federation("digits/perceptron", clients=12, selected=3, local_steps=4, batch_size=8, horizon=300.0, evaluations=3)


class FakeRun:
    """An ended run of known figures."""

    def __init__(self, seed: int, **columns: list[float]) -> None:
        self.spec = {"seed": seed, "threads": 1}
        self.folder = SimpleNamespace(path=f"run {seed}", read_run=lambda: {"tags": {"workbench.hardware": "a machine"}})
        self.table = pandas.DataFrame(columns)

    def frame(self) -> pandas.DataFrame:
        return self.table


def a_group(name: str, lr: float, *runs: FakeRun) -> Group:
    method, variant = VARIANTS[name]
    return Group(f"{method} lr={lr:g}", {"method": method, "task": "digits/perceptron", "lr": lr, **variant}, list(runs))


def a_run(seed: int, time: list[float], accuracy: list[float]) -> FakeRun:
    return FakeRun(seed, **{"clock/virtual_s": time, "eval/accuracy": accuracy})


# --- runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("federation", [Federation("mnist/perceptron"), SMALL], ids=["paper", "small"])
@pytest.mark.parametrize("scenario", paper.SCENARIOS)
def test_every_run_is_legal_and_contacts_the_same_share(federation, scenario):
    runs = federation.common(scenario, 0.1, tuple(VARIANTS))
    assert len({resolve(**r, device="cpu").spec.key for r in runs}) == len(VARIANTS)
    for run in runs:
        p = resolve(**run, device="cpu").method.params
        slow = 8 / 9 if scenario == SLOW else 1 / 3
        assert (p.clients, p.horizon, p.slow_fraction) == (federation.clients, federation.horizon, slow)
        assert p.partition == ("iid" if scenario == IID else "shards")
        assert getattr(p, "selected", federation.selected) == federation.selected


def test_sizes_by_default_are_the_papers():
    p = resolve(**Federation("mnist/perceptron").run("FAVAS", FAST, 0.5), device="cpu").method.params
    assert (p.clients, p.selected, p.local_steps, p.batch_size, p.horizon) == (100, 20, 20, 128, 5000)
    assert (p.fast_time, p.slow_time, p.waiting_time, p.interaction_time) == (2, 16, timing.WAITING, timing.INTERACTION)


def test_quantised_variants_are_trained_and_sent_as_they_are_named():
    assert set(paper.QNN[1:]).isdisjoint(paper.FULL_PRECISION)
    assert set(paper.QNN) | set(paper.FULL_PRECISION) == set(VARIANTS)
    for task, layers in (("mnist/perceptron", "all"), ("cifar10/resnet20", "inner")):
        found = {}
        for run in Federation(task).common(SLOW, 0.1, paper.QNN):
            p = resolve(**run, device="cpu").method.params
            found[p.local, p.upload] = p.quantised_layers
        assert found.pop(("luq", "int4")) == found.pop(("askewsgd", "levels")) == layers
        assert set(found) == {("sgd", "dense_fp32"), ("sgd", "int4")}


def test_short_grids_are_parts_of_the_long_ones():
    assert set(paper.SHORT_GRID) == set(paper.GRID) == set(paper.MAIN)
    assert all(len(rates) == 3 and set(rates) < set(paper.GRID[name]) for name, rates in paper.SHORT_GRID.items())


def test_one_rate_for_all_but_fedbuff():
    runs = Federation("mnist/perceptron").common(FAST, 0.3)
    rates = {name: run["params"]["lr"] for name, run in zip(paper.FULL_PRECISION, runs, strict=True)}
    assert rates.pop("FedBuff") == pytest.approx(0.3 * 10 / 100)
    assert set(rates.values()) == {0.3}


def test_the_rate_is_converted_by_the_mean_square_of_the_pixels():
    job = resolve("favas", "digits/perceptron", device="cpu")
    job.task.setup(Context(torch.device("cpu"), 0))
    pixels = job.task.train_x.double() / job.task.pixel_max
    # the result keeps two digits, so it is within 5 % of the exact product
    assert paper.converted_rate("digits/perceptron", 0.5) == pytest.approx(0.5 * float(pixels.square().mean()), rel=0.05)


# --- tables of comparisons ----------------------------------------------------------------------------------


def test_the_rate_is_chosen_by_the_second_half_of_the_time():
    late_riser = a_run(9, [50, 100, 150, 200], [0.1, 0.1, 0.6, 0.8])
    one_lucky_end = a_run(9, [50, 100, 150, 200], [0.9, 0.9, 0.1, 0.9])
    only_early = a_run(9, [90], [0.3])
    groups = [a_group("FAVAS", 0.1, late_riser), a_group("FAVAS", 0.2, one_lucky_end), a_group("FedAvg", 0.1, only_early)]
    grid = {"FAVAS": (0.05, 0.1, 0.2), "FedAvg": (0.1, 0.2, 0.3)}
    table, best = paper.tuned(Comparison(groups, []), grid, 200.0)
    assert best == {"FAVAS": 0.1, "FedAvg": 0.1}
    found = table.set_index(["method", "rate"])
    assert np.isnan(found.loc[("FAVAS", 0.05), "accuracy [%]"])  # no run of it finished
    assert found.loc[("FAVAS", 0.1), "accuracy [%]"] == pytest.approx(70)
    assert found.loc[("FAVAS", 0.2), "accuracy [%]"] == pytest.approx(50)
    assert found.loc[("FedAvg", 0.1), "accuracy [%]"] == pytest.approx(30)
    assert list(table["remark"]) == ["", "chosen", "", "chosen, at the edge of the grid", "", ""]
    shown = paper.tuning_table({SLOW: table})
    assert list(shown["rate: accuracy [%]"]) == ["0.05: did not finish, 0.1: 70.0, 0.2: 50.0",
                                                 "0.1: 30.0, 0.2: did not finish, 0.3: did not finish"]
    assert list(shown["chosen"]) == ["0.1", "0.1, at the edge of the grid"]


def test_a_method_without_a_finished_run_has_no_rate():
    table, best = paper.tuned(Comparison([], []), {"FedBuff": (1.0, 2.0)}, 10.0)
    assert best == {}
    assert list(paper.tuning_table({FAST: table})["chosen"]) == [""]


def test_variants_of_a_method_are_not_mixed():
    ends = {name: 0.1 + i / 100 for i, name in enumerate(VARIANTS)}
    comparison = Comparison([a_group(name, 0.1, a_run(0, [5], [end]), a_run(1, [5], [end])) for name, end in ends.items()], [])
    assert [g.label for g in paper.named(comparison).groups] == list(VARIANTS)
    assert [g.label for g in paper.named(comparison, ("QuAFL lattice", "FAVAS")).groups] == ["QuAFL lattice", "FAVAS"]
    for name, end in ends.items():
        assert paper.values(comparison, name) == {0: end, 1: end}
    assert comparison.groups[0].label == "favas lr=0.1"  # the names are those of a copy
    looks = [paper.named(comparison, names).styles for names in (paper.MAIN, ("FAVAS", "QuAFL"))]
    assert all(looks[0][name] == looks[1][name] for name in VARIANTS)
    alone = paper.named(comparison, ("FAVAS", "FAVAS deterministic", "FAVAS estimated")).styles
    assert len({style.colour for style in alone.values()}) == 3  # variants of one method are told apart by colour too


def test_variants_are_compared_seed_by_seed():
    # seeds differ by 40 points, the variants by 2 in each of them: no unpaired test sees it
    groups = [a_group(name, 0.1, *(a_run(seed, [5], [end + more + seed / 1e4]) for seed, end in enumerate((0.3, 0.5, 0.7))))
              for name, more in (("FAVAS", 0.02), ("FedBuff", 0.0))]
    comparison = Comparison(groups, [])
    assert paper.ahead("", "", comparison, "FAVAS", "FedBuff").verdict == claims.HOLDS
    assert paper.ahead("", "", comparison, "FedBuff", "FAVAS").verdict == claims.FAILS
    ahead = paper.ahead("", "", comparison, "FedBuff", "FAVAS", margin=0.05)
    assert ahead.verdict == claims.HOLDS
    assert ahead.how.endswith("against -5")
    assert "difference -2.0 ± 0.0 (n = 3)" in ahead.ours
    assert paper.ahead("", "", comparison, "FAVAS", "QuAFL").verdict == claims.ABSENT
    alone = Comparison([a_group(name, 0.1, a_run(0, [5], [0.5])) for name in ("FAVAS", "FedBuff")], [])
    assert paper.ahead("", "", alone, "FAVAS", "FedBuff").verdict == claims.OPEN  # one seed decides nothing


def test_results_stand_beside_the_papers():
    runs = a_run(0, [1, 2], [0.9, 0.5]), a_run(1, [1, 2], [0.8, 0.7])
    comparison = Comparison([a_group("FAVAS", 0.05, *runs), a_group("FedFix", 0.05, *runs)], [])
    table = paper.results({SLOW: comparison}, paper.PAPER_MNIST).set_index("method")
    assert table.loc["FAVAS", "paper [%]"] == "87.3 ± 2.3 (?)"
    assert pandas.isna(table.loc["FedFix", "paper [%]"])
    assert table.loc["FAVAS", "ours, end [%]"].startswith("60.0 ±")
    assert table.loc["FAVAS", "ours, best [%]"].startswith("85.0 ±")
    assert table.loc["FAVAS", "ours, end [%]"].endswith("(n = 2)")


def test_every_figure_of_the_paper_is_marked_uncertain():
    figures = [figure for scenario in paper.PAPER_MNIST.values() for figure in scenario.values()]
    assert len(figures) == 12
    assert all(figure.endswith("(?)") for figure in figures)


def test_bytes_of_both_directions_are_added():
    run = FakeRun(0, **{"clock/virtual_s": [1, 2, 3], "eval/accuracy": [0.1, np.nan, 0.3], "comm/up_bytes": [10, np.nan, 30],
                        "comm/down_bytes": [1, 2, 3]})
    figure = paper.against_bytes(paper.named(Comparison([a_group("FAVAS", 0.1, run)], [])), "a title")
    assert list(figure.data[-1].x) == [11, 33]
    assert list(figure.data[-1].y) == [0.1, 0.3]
    assert "comm/up_bytes" not in figure.layout.xaxis.title.text + figure.layout.meta["caption"]
    row = paper.costs(Comparison([a_group("FAVAS", 0.1, run)], [])).iloc[0]
    assert row["up [MB]"] == pytest.approx(30e-6)
    assert "modelled [J]" not in row  # absent, not zero


# --- the clock ----------------------------------------------------------------------------------------------


def test_work_at_a_contact_is_that_of_the_closed_form_and_of_the_trace():
    # E[min(E,K)] and P(E>0) for s/n = 1/5, K = 20, D = 7, summed term by term over the gaps; three digits
    expected = {("exponential", 2.0): (12.395, 0.9938), ("exponential", 16.0): (2.187, 0.7329),
                ("geometric", 2.0): (12.493, 0.9984), ("geometric", 16.0): (2.187, 0.7406)}
    table = timing.clock_table(Federation("mnist/perceptron", clients=50, selected=10), server_steps=1500)
    table = table.set_index(["step law", "mean step time"])
    for key, (steps, positive) in expected.items():
        assert table.loc[key, "E[min(E,K)]"] == pytest.approx(steps, abs=5e-4)
        assert table.loc[key, "P(E>0)"] == pytest.approx(positive, abs=5e-5)
    assert table["z"].max() < 5  # eight averages; five standard errors are passed by chance once in 200,000 draws
    assert (table["contacts"] > 5000).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_the_traces_shown_are_those_of_the_runs(name):
    run = SMALL.run(name, SLOW, 0.05)
    job = resolve(**run, device="cpu")
    context = Context(torch.device("cpu"), 3)
    job.task.setup(context)
    job.method.init(job.task, context)
    trace, speeds = timing.trace_of(run, seed=3)
    for part in ("time", "client", "steps", "start"):
        assert np.array_equal(getattr(trace, part), getattr(job.method.schedule, part)), part
    assert np.array_equal(speeds.mean, job.method.client_speeds.mean)


def test_the_partition_shown_is_that_of_the_runs():
    job = resolve(**SMALL.run("FedBuff", FAST, 0.05), device="cpu")
    context = Context(torch.device("cpu"), 0)
    job.task.setup(context)
    job.method.init(job.task, context)
    counts = job.method.shares.class_counts(job.task.train_y.numpy())
    figure = timing.partition_figure(SMALL, FAST)
    for label, bars in enumerate(figure.data):
        assert {int(x): int(n) for x, n in zip(bars.x, bars.text, strict=True)} == {i: n for i, n in enumerate(counts[:, label]) if n}


def test_who_is_heard_is_counted_right():
    traces, table = timing.schedules({name: SMALL.run(name, SLOW, 0.1) for name in ("FAVAS", "FedBuff")})
    for name, row in table.set_index("method").iterrows():
        trace, speeds = timing.trace_of(SMALL.run(name, SLOW, 0.1))
        heard = [(speeds.mean[c] == 16.0, s) for c, s in zip(trace.client, trace.steps, strict=True)]
        assert row["server steps"] == len(traces[name].time)
        assert row["of deliveries [%]"] == pytest.approx(100 * sum(slow for slow, _ in heard) / len(heard))
        assert row["of gradients [%]"] == pytest.approx(100 * sum(s for slow, s in heard if slow) / sum(s for _, s in heard))
        assert row["slow [%]"] == pytest.approx(100 * 11 / 12)  # the ceiling of 8/9 of 12


def test_a_distribution_is_the_share_of_values_up_to_x():
    drawn = np.array([0.0, 1.0, 1.0, 2.0, 8.0])
    figure = timing.distribution({"FAVAS": drawn}, "quantity", "title")
    line, = figure.data
    for x, share in zip(line.x, line.y, strict=True):
        assert share in (np.mean(drawn <= x), np.mean(drawn < x))
    assert min(line.x) == 1
    assert max(line.y) == 1
    assert figure.layout.xaxis.type == "log"


# --- theory -------------------------------------------------------------------------------------------------


def test_constants_of_the_default_setting():
    table = timing.constants_table(Federation("mnist/perceptron")).set_index("re-weighting")
    # moments of min(E, 20) for steps of mean 2 and 16, to four digits: mean, P(E>0), second moment, mean inverse
    moments = {"fast": (12.395, 0.9938, 199.29, 0.1442), "slow": (2.187, 0.7329, 10.775, 0.4018)}
    for speed, (mean, positive, second, inverse) in moments.items():
        assert table.loc["stochastic", f"a, {speed} client"] == pytest.approx((positive / 400 + inverse) / positive**2, rel=1e-3)
        assert table.loc["deterministic", f"a, {speed} client"] == pytest.approx(1 / mean + second / (400 * mean**2), rel=1e-3)
    assert table.loc["stochastic", "b"] == pytest.approx(1 / 0.7329, rel=1e-3)
    assert table.loc["deterministic", "b"] == pytest.approx(10.775 / 2.187**2, rel=1e-3)


def test_each_method_is_judged_by_its_own_delays():
    traces, _ = timing.schedules({name: SMALL.run(name, SLOW, 0.1) for name in paper.MAIN})
    table = timing.rates_table(SMALL, traces, 8 / 9, eps=0.1).set_index("method")
    assert table.loc["FAVAS", "step_time"] == pytest.approx(7)
    speeds = timing.trace_of(SMALL.run("FAVAS", SLOW, 0.1))[1]
    a, b = theory_constants("stochastic", client_moments(speeds, selected=3, K=4, D=7.0), 4)
    assert table.loc["FAVAS", "eps^-2"] == pytest.approx(a.mean() + 8 * b)
    assert table.loc["FedBuff", "eps^-3/2"] == pytest.approx(((traces["FedBuff"].staleness.max() ** 2 / 9 + 1) * 13) ** 0.5)
    assert table.loc["AsyncSGD", "eps^-3/2"] == pytest.approx((3 * traces["AsyncSGD"].staleness.mean()) ** 0.5)
    coefficients = table[["eps^-2", "eps^-3/2", "eps^-1"]].to_numpy()
    assert table["units"].to_numpy() == pytest.approx(coefficients @ [0.1**-2, 0.1**-1.5, 0.1**-1] * table["step_time"].to_numpy())
    later = timing.rates_table(SMALL, {**traces, "FedBuff": replace(traces["FedBuff"], start=0 * traces["FedBuff"].start)}, 8 / 9, eps=0.1)
    changed = later.set_index("method")["units"] > table["units"]
    assert list(changed[changed].index) == ["FedBuff"]
