"""The study of BOLD: its runs are legal and share one budget, its tables say what the runs say, its watcher sees what happens."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch

from workbench.comparison import Comparison
from workbench.grouping import Group
from workbench.modelled import Choice
from workbench.runs import run
from workbench.spec import resolve
from workbench.studies import bold as paper
from workbench.studies import bold_watch

RUNS = paper.image_runs("digits/cnn", 2, {"width": 0.25, "train_size": 200}, 50)


class FakeRun:
    """An ended run of known figures."""

    def __init__(self, seed: int, **columns: list[float]) -> None:
        self.spec = {"seed": seed, "threads": 1}
        self.folder = SimpleNamespace(path=f"run {seed}", read_run=lambda: {"tags": {"workbench.hardware": "a machine"}})
        self.table = pandas.DataFrame(columns)

    def frame(self) -> pandas.DataFrame:
        return self.table


def fake(**accuracies: dict[int, list[float]]) -> Comparison:
    """A comparison of variants (underscores for spaces, ``and`` for ``+``) with these accuracies by seed; a flip rate falls to 0.0001."""
    groups = []
    for name, by_seed in accuracies.items():
        method, own = paper.VARIANTS[name.replace("_and_", " + ").replace("_", " ")]
        runs = [FakeRun(s, **{"eval/accuracy": v, "train/flip_rate": [0.01 * (s + 1), *[1e-4] * (len(v) - 1)]}) for s, v in by_seed.items()]
        groups.append(Group(method, {"method": method, "task": "cifar10/vgg_small", **own}, runs))
    return Comparison(groups, [])


# --- runs ---------------------------------------------------------------------------------------------------


def test_every_run_is_legal_and_has_the_same_budget():
    jobs = [resolve(**r, device="cpu") for r in RUNS]
    assert len({j.spec.key for j in jobs}) == len(paper.VARIANTS)
    for job in jobs:
        p = job.method.params
        assert (p.epochs, p.batch_size, p.lr, p.lr_schedule, p.base) == (2, 50, 5e-3, "cosine", "adam")


def test_at_the_papers_scale_the_rates_are_the_papers():
    runs = paper.image_runs("cifar10/vgg_small", 300, {}, 300, paper_rates=True)
    jobs = {v: resolve(**r, device="cpu").method.params for v, r in zip(paper.VARIANTS, runs, strict=True)}
    assert [(jobs[v].eta, jobs[v].batch_norm) for v in ("BOLD", "BOLD + BN")] == [(12, False), (150, True)]
    assert {p.lr for p in jobs.values()} == {1e-3}
    assert jobs["BinaryConnect"].layers == "inner"


def test_each_ablation_is_one_legal_run_that_is_told_apart_by_its_name():
    runs = paper.ablation_runs("digits/cnn", 1, {"width": 0.25}, 20.0, (5.0, 20.0))
    jobs = [resolve(**r, device="cpu") for r in runs]
    assert len({j.spec.key for j in jobs}) == len(runs) == 2 + len(paper.ABLATIONS)
    names = [paper.setting(j.spec.params) for j in jobs[1:]]
    assert names == [*paper.ABLATIONS, "as it is"]


# --- tables -------------------------------------------------------------------------------------------------


def test_the_accuracy_table_says_what_the_runs_say():
    made = fake(BOLD={0: [0.2, 0.5, 0.4], 1: [0.2, 0.3, 0.6]}, BOLD_frozen={0: [0.1, 0.2, 0.3], 1: [0.1, 0.2, 0.2]},
                BinaryNet={0: [0.1, 0.7, 0.6]})
    table = paper.accuracy_table(made, study="no_such_study").set_index("variant")
    assert list(table.index) == list(paper.VARIANTS)
    assert table.loc["BOLD", "ours [%]"].startswith("50.0 ±")
    assert table.loc["BOLD", "ours, best epoch [%]"].startswith("55.0 ±")
    # seed by seed 10 and 40 points: 25 ± t(1) * 15
    assert table.loc["BOLD", "gain over frozen layers [points]"] == f"25.0 ± {12.706 * 15:.1f} (n = 2)"
    assert table.loc["BinaryNet", "ours [%]"] == "60.0 (n = 1)"
    assert table.loc["BOLD", "paper [%]"] == "90.29 ± 0.09"
    assert pandas.isna(table.loc["Bop", "ours [%]"])
    assert pandas.isna(table.loc["BinaryNet", "gain over frozen layers [points]"])


def test_variants_of_one_method_are_told_apart():
    made = fake(BOLD={0: [0.5]}, BOLD_and_BN={0: [0.7]})
    assert paper.of(made, "BOLD") == {0: 0.5}
    assert paper.of(made, "BOLD + BN") == {0: 0.7}
    assert [g.label for g in paper.named(made).groups] == ["BOLD", "BOLD + BN"]


def test_flip_rates_are_those_of_the_first_and_the_last_report():
    first, last = paper.flip_rates(fake(BOLD={0: [0.1, 0.2], 1: [0.1, 0.2]}), "BOLD")
    assert first == pytest.approx({0: 0.01, 1: 0.02})
    assert last == pytest.approx({0: 0.0001, 1: 0.0001})


def test_the_energy_claim_holds_below_five_per_cent_only():
    verdicts = [paper.energy_claim("BOLD", Choice(), p, "").verdict for p in (4.99, 5.0, 6.0)]
    assert verdicts == ["holds", "does not hold", "does not hold"]


# --- on real runs -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Four variants, trained for two epochs on a few digits."""
    from workbench.comparison import compare

    wanted = ("full precision", "BinaryNet", "BOLD", "BOLD frozen")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(tmp_path_factory.mktemp("home")))
        runs = [run(**r, device="cpu", threads=1, tracking="off", progress=False)
                for v, r in zip(paper.VARIANTS, RUNS, strict=True) if v in wanted]
        yield compare(runs)


def test_energy_is_in_per_cent_of_full_precision(ran):
    choices = [Choice("ascend_like", "as_trained"), Choice("ascend_like", "fully_boolean")]
    table = paper.energy_table(ran, choices).set_index("variant")
    trained, boolean = (f"{c} [%]" for c in choices)
    assert table.loc["full precision", [trained, boolean, "measured time of the simulation [x]"]].tolist() == [100, 100, 1]
    by_hand = {g.method: g.runs[0].energy("ascend_like", "as_trained").total for g in ran.groups}
    assert table.loc["BOLD", trained] == pytest.approx(100 * by_hand["bold"] / by_hand["full_precision"], abs=0.005)  # two digits
    assert table.loc["BOLD", boolean] < table.loc["BOLD", trained] < table.loc["BinaryNet", trained] < 100
    # no weight gradients, no update
    assert table.loc["BOLD frozen", trained] < table.loc["BOLD", trained]


def test_joules_can_be_had_for_another_hardware(ran):
    ascend, h100 = (paper.of(paper.modelled(ran, h, "as_trained"), "BOLD", "energy/model_j")[0] for h in ("ascend_like", "h100_like"))
    assert ascend != h100


def test_the_memory_table_counts_weights_latent_weights_and_accumulators(ran):
    table = paper.memory_table(ran).set_index("variant")
    bits = table[["weight [bit]", "latent weight [bit]", "optimiser [bit]", "together [bit a weight]"]]
    assert {v: tuple(row) for v, row in zip(bits.index, bits.itertuples(index=False), strict=True)} == {
        "full precision": (32, 0, 64, 96),  # Adam
        "BinaryNet": (1, 32, 64, 97), "BOLD": (1, 0, 16, 17), "BOLD frozen": (1, 0, 0, 1)}
    kept = table["kept activations [byte a sample]"]
    assert kept["BOLD"] < kept["full precision"] / 4
    measured = table["state of the simulation, measured [MB]"]
    assert measured["BOLD frozen"] < measured["BOLD"] < measured["BinaryNet"]


def test_watching_sees_accumulators_that_no_step_left_above_the_threshold(ran, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    spec = next(r for v, r in zip(paper.VARIANTS, RUNS, strict=True) if v == "BOLD")
    watched = bold_watch.watch(spec, (0.5, 1.0), bound=2.0, device="cpu", threads=1, tracking="off", progress=False)
    assert watched.table["epoch"].unique().tolist() == [1, 2]
    assert len(watched.histogram.data) == 2
    whole = watched.table.groupby("epoch")["flips so far"].sum()
    told = paper.of(ran, "BOLD", "train/flips")[0]
    assert whole.loc[2] == told > 0
    edges = np.asarray(watched.histogram.data[0].x, float)
    # a weight whose votes passed 1 has flipped and forgotten, so nothing is drawn from there on
    drawn = np.asarray(watched.histogram.data[0].y, float)
    assert np.nansum(drawn[edges >= 1 + 1e-6]) == 0
    assert edges.min() >= -2


def test_the_spread_of_signals_is_kept_by_the_scale():
    with torch.random.fork_rng():
        frame = bold_watch.signal_spread(width=0.0625, samples=16)
    assert len(frame) == 7
    assert frame["scaled"].between(0.15, 3).all()
    assert frame["as they come"].iloc[0] > 1e3
    assert bold_watch.spread_figure(frame).layout.yaxis.type == "log"
