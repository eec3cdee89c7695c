"""The study of DGL: its runs are legal, its accounts are what the ledger bills, its figures show what happened."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch

from workbench.comparison import Comparison
from workbench.decoupled import Channel, OnlineVQ, module_costs
from workbench.grouping import Group
from workbench.spec import resolve
from workbench.studies import dgl as paper
from workbench.studies import dgl_figures as figures
from workbench.studies import dgl_speed

SMALL = paper.Scale("digits/dgl_cnn4", {"width": 0.25, "train_size": 200, "test_size": 100}, epochs=2, batch_size=20)
FULL = paper.Scale("cifar10/dgl_cnn4", {}, epochs=50, full=True)


@pytest.mark.parametrize(("scale", "group"), [(SMALL, 4), (FULL, 16)], ids=["small", "full"])
def test_every_run_is_legal_and_different(scale, group):
    runs = [*paper.learning(scale), *paper.slowdowns(scale, (1.0, 1.2, 2.0)), *paper.buffer_sizes(scale, (1, 50)),
            *paper.quantised(scale, (16, 256), group), *paper.relatives(scale)]
    jobs = [resolve(**run, device="cpu") for run in runs]
    assert len({job.spec.key for job in jobs}) >= len(runs) - 2  # backpropagation is in two sections, as is the run without a slow module
    assert {job.spec.method for job in jobs} == {"decoupled_backprop", "dgl", "sequential_greedy", "async_dgl", "async_dgl_vq", "dni",
                                                 "cdni", "ddg", "features_replay"}


def test_rates_of_the_full_profile_are_the_official_ones():
    p = resolve(**FULL.run("dgl"), device="cpu").method.params
    assert (p.lr, p.momentum, p.weight_decay, p.lr_decay, p.lr_decay_epochs, p.batch_size) == (0.1, 0.9, 5e-4, 0.2, (15, 30, 45), 128)


def test_accounts_are_what_a_channel_bills():
    """Closed forms against encoded messages, which have 17 bytes of header and 4 of mark, a codebook 13."""
    table = paper.account_table(SMALL, (8, 32), 1, buffer=3, sync_every=2)
    for row in table[table.link == 2].to_dict("records"):
        channels, places = row["channels"], row["positions"]
        side = round(places**0.5)
        x, y = torch.randn(20, channels, side, side), torch.zeros(20, dtype=torch.int64)
        raw, coded = Channel("m", 10), Channel("m", 10, quantiser=OnlineVQ(channels, channels, row["K"]), sync_every=2)
        raw.send(x, y)
        for _ in range(4):
            coded.send(x, y)
        assert raw.ledger.metrics()["comm/up_bytes"] == row["raw message [B]"] + 17
        assert coded.ledger.metrics()["comm/up_bytes"] == 4 * row["with its share of codebooks [B]"] + 4 * 21 + 2 * 13
        assert row["buffer, raw [B]"] == 3 * row["raw message [B]"]


def test_the_account_of_the_papers_network():
    """64 times less by 256 codewords for 16 channels, labels and codebooks aside; 32 MiB and twice 16 MiB raw."""
    table = paper.account_table(FULL, (256,), 16, buffer=1)
    assert (table["raw message [B]"] - 128).tolist() == [32 * 2**20, 16 * 2**20, 16 * 2**20]
    assert ((table["raw message [B]"] - 128) / (table["quantised [B]"] - 128)).tolist() == [64.0] * 3


def test_time_lines_show_steps_and_waits():
    """Module 2 takes twice as long. End to end one works at a time; in step the others wait for it; else none waits but at the start."""
    durations, until = (1.0, 2.0, 1.0), 12.0
    ways = (figures.end_to_end, figures.in_step, figures.unhindered)
    whole, step, free = ([s for s in way(durations, until) if s[1] < until] for way in ways)
    ordered = sorted(whole, key=lambda s: s[1])
    assert all(a[2] == pytest.approx(b[1]) for a, b in pairwise(ordered)), "one after the other, without a gap"
    assert [(j, what) for j, _, _, what in ordered[:6]] == [(0, "forward"), (1, "forward"), (2, "forward"), (2, "backward"),
                                                             (1, "backward"), (0, "backward")]
    assert [a for j, a, _, _ in free if j == 0] == list(np.arange(12.0))
    assert [a for j, a, _, _ in free if j == 1] == [1.0, 3.0, 5.0, 7.0, 9.0, 11.0]
    assert [a for j, a, _, _ in free if j == 2] == list(np.arange(3.0, 12.0))
    assert [a for j, a, _, _ in step if j == 2] == [3.0, 5.0, 7.0, 9.0, 11.0]
    shares = [figures.busy(spans, 3, until) for spans in (whole, step, free)]
    assert shares == pytest.approx([1 / 3, sum(min(b, until) - a for _, a, b, _ in step) / 36, (12 + 11 + 9) / 36])
    drawn = figures.time_lines(durations, until)
    bars = [(a, a + b) for trace in drawn.data for a, b in zip(trace.base, trace.x, strict=True)]
    assert len(bars) == len(whole) + len(step) + len(free)
    assert max(b for _, b in bars) <= until
    assert [trace.name for trace in drawn.data if trace.showlegend] == ["forward", "backward", "both, with the head"]
    assert "33%" in drawn.layout.annotations[0].text


def test_reuse_without_learning():
    table = paper.reuse_table((1, 20), (1.0, 2.0), turns=6000)
    newest = table[table.rule == "newest"].set_index(["M", "S"])
    assert newest.loc[(1, 1.0), "reuse, normal"] == pytest.approx(0.5, abs=0.05)
    assert newest.loc[(1, 2.0), "reuse, behind it"] == pytest.approx(2 / 3, abs=0.06)
    quirk = table[table.rule != "newest"].set_index(["M", "S"])
    assert quirk.loc[(20, 2.0), "age, into the slow module"] > 2 * newest.loc[(20, 2.0), "age, into the slow module"]


def test_speed_that_the_model_allows():
    """Four layers of 1.8, 18.9, 37.7 and 18.9 million MACs, the last with an MLP: 79.4 / 37.7 without heads from three modules on."""
    table = paper.speed_table(("dgl_cnn4",), "mlp_sr").set_index("modules")
    assert table.loc[1, "speed-up"] == 1
    assert table.loc[4, "without heads"] == pytest.approx(79.37 / 37.75, abs=0.01)
    assert (table["speed-up"] <= table["without heads"]).all()
    assert table.loc[4, "heads' share [%]"] == pytest.approx(5.2, abs=0.1)


class FakeRun:
    """An ended run of known figures."""

    def __init__(self, seed: int, accuracy: list[float], sent: int = 0) -> None:
        self.spec = {"seed": seed, "threads": 1}
        self.folder = SimpleNamespace(path=f"run {seed}", read_run=lambda: {"tags": {"workbench.hardware": "a machine"}})
        half = [a / 2 for a in accuracy]
        self.table = pandas.DataFrame({"train/epoch": [1.0, 2.0], "eval/accuracy": accuracy, "eval/accuracy_module_1": half,
                                       "eval/accuracy_ensemble": accuracy, "comm/up_bytes": [sent / 2, sent]})

    def frame(self) -> pandas.DataFrame:
        return self.table


def test_accuracy_of_every_module_by_epoch_and_at_the_end():
    group = Group("dgl", {"method": "dgl", "task": "digits/dgl_cnn4"}, [FakeRun(0, [0.4, 0.8]), FakeRun(1, [0.6, 0.9])])
    comparison = Comparison([group], [], "eval/accuracy", "train/epoch", {})
    figure = figures.module_curves(comparison, "dgl", 2)
    np.testing.assert_allclose(figure.data[0].y, [0.25, 0.425])
    np.testing.assert_allclose(figure.data[1].y, [0.5, 0.85])
    (row,) = paper.module_table(comparison, ["dgl"], 2).to_dict("records")
    assert row == pytest.approx({"method": "dgl", "module 1 [%]": 42.5, "module 2 [%]": 85.0, "all together [%]": 85.0})


def test_accuracy_of_modules_trained_one_after_the_other():
    """Two modules of an epoch each: while the first is all there is, its accuracy is the network's; then it stands beside the second."""
    run = FakeRun(0, [0.4, 0.8])
    run.table["eval/accuracy_module_1"] = [np.nan, 0.4]
    group = Group("sequential_greedy", {"method": "sequential_greedy", "task": "digits/dgl_cnn4"}, [run])
    comparison = Comparison([group], [], "eval/accuracy", "train/epoch", {})
    figure = figures.module_curves(comparison, "sequential_greedy", 2, stage=1)
    assert [(list(t.x), list(t.y)) for t in figure.data] == [([1, 2], [0.4, 0.4]), ([2], [0.8])]


def test_accuracy_against_compression():
    """How many times less is sent than by exact links, on the x-axis; means and their intervals on the other."""
    def group(method: str, sent: int, **facts) -> Group:
        runs = [FakeRun(seed, [0.1, accuracy], sent) for seed, accuracy in enumerate((0.8, 0.9, 0.7))]
        return Group(method, {"method": method, "task": "digits/dgl_cnn4", **facts}, runs)

    groups = [group("async_dgl", 8000, codec="dense_fp32"), group("async_dgl", 2000, codec="int8"),
              group("async_dgl_vq", 500, codewords=16)]
    points = figures.compression(Comparison(groups, [], "eval/accuracy", "train/epoch", {}))
    assert [(x, label) for x, _, label in points] == [(1, "dense_fp32"), (4, "int8"), (16, "K = 16")]
    drawn = figures.against(points, "compression", title="t", log_x=True)
    assert {trace.name: (list(trace.x), list(trace.text)) for trace in drawn.data} == {
        "async_dgl": ([1, 4], ["dense_fp32", "int8"]), "async_dgl_vq": ([16], ["K = 16"])}
    assert drawn.data[0].y[0] == pytest.approx(0.8)
    # Student's t with two degrees of freedom, 4.303, times the standard deviation 0.1 over the root of 3
    assert drawn.data[0].error_y.arrayminus[0] == pytest.approx(4.303 * 0.1 / 3**0.5, rel=1e-3)
    assert drawn.data[0].error_y.array[0] == pytest.approx(0.2), "no accuracy is above 1"
    assert list(drawn.layout.xaxis.ticktext) == ["1", "4", "16"]


# --- speed --------------------------------------------------------------------------------------------------


class SmallRace(dgl_speed.Race):
    """Processes replaced by a record of known times: they are tested for themselves."""

    def dgl(self):
        line = {"updates": 20, "updates_per_s": 5.0, "busy_s": 3.0, "waited_s": 1.0, "utilisation": 0.75, "idle": 0.25,
                "wire_sent_bytes": 100, "state_bytes": 10, "seconds": 4.0, "cpu_s": 2.8, "phases_s": {"train": 3.0, "wait": 1.0},
                "phases_cpu_s": {"train": 2.5, "wait": 0.1}}
        warm = line | {"updates": 10, "seconds": 2.5, "cpu_s": 1.8, "phases_s": {"train": 2.0, "wait": 0.5}, "phases_cpu_s": {"train": 1.7}}
        return [50.0, 70.0, 60.0], [[warm, line], [warm, line | {"wire_sent_bytes": 0, "cpu_s": 2.3}]]


def test_measured_speed_stands_beside_the_models():
    race = SmallRace(width=0.1, batch_size=20, epochs=3, train_size=60, repeats=1)
    before = torch.get_num_threads()
    speed, modules, budget, rates = race.tables()
    assert torch.get_num_threads() == before
    assert [len(r) for r in rates.values()] == [2, 2, 3], "the first epoch is a warm-up"
    by = speed.set_index("what")
    one = by.loc["backpropagation, 1 thread", "samples/s"]
    assert by.loc["DGL, 2 processes of 1 thread", "samples/s"] == 60
    assert by.loc["DGL, 2 processes of 1 thread", "speed-up"] == pytest.approx(60 / one)
    job, state = race.begun("dgl")
    local = module_costs(state.training.network.bodies, state.training.network.heads, job.method.sample).local
    assert by.loc["the same, by multiply-accumulates", "speed-up"] == pytest.approx(1 / max(local))
    assert modules["predicted"].max() == 1
    assert 0 < modules["predicted"].min() <= 1
    assert by.loc["the same, by a processor's seconds for each module's step", "samples/s"] > 0
    # ten updates behind the warm-up: 1.0 and 0.5 seconds of a processor, 0.8 and 0.8 of them the module's thread's training
    assert modules["predicted"].tolist() == pytest.approx([1, 0.5])
    first, second = budget.to_dict("records")
    assert first == pytest.approx({
        "module": 1, "feed [CPU ms]": 0, "decode [CPU ms]": 0, "train [CPU ms]": 80, "encode [CPU ms]": 0, "links [CPU ms]": 10,
        "work without a processor [ms]": 20, "waited [ms]": 50, "record [ms]": 0, "update [ms]": 150})
    assert second["links [CPU ms]"] == 0, "clocks of little resolution are no less than nothing"
    assert modules["idle"].tolist() == [0.25, 0.25]
