"""Comparison on run folders written by hand: every figure of the table is recomputed here from the numbers that were written."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from tracking.energy_model import PLANS, SCENARIOS, Layer, estimate_layers, to_json
from tracking.errors import UserError
from tracking.folder import RunFolder
from tracking.journal import Journal
from workbench.comparison import compare
from workbench.runs import Run

CPU = "Example CPU 9000"
LAYERS = (Layer("fc", "linear", "Linear", 10, (10, 64), (10, 32), weight=(32, 64), parameters=2080, saved=640, weight_gradient=True),)
JOULES = "energy/model_j"


def joules(plan, hardware="ascend_like", scenario="as_trained"):
    """Of one sample."""
    return estimate_layers(LAYERS, plan, hardware, scenario).total / 10


class Home:
    """A workbench home filled with made-up runs. ``accuracy`` holds the values after epochs 1, 2, …"""

    def __init__(self, path):
        self.path = path
        self.count = 0

    def run(self, method, accuracy, *, seed=0, status="finished", reason="", hardware=CPU, threads=2, task="digits/mlp", code="c0ffee",
            up_bytes=None, plan=None, seconds=1.0, params=None, task_params=None, budget=None, created=None):
        self.count += 1
        folder = RunFolder(self.path / "journals" / f"{self.count:016x}")
        spec = {"method": method, "task": task, "params": {"epochs": len(accuracy), "lr": 0.1, **(params or {})},
                "task_params": task_params or {}, "seed": seed, "device": "cpu", "threads": threads, "budget": budget or {}, "code": code}
        energy = {"energy.model": f"ascend_like, as_trained, plan {plan}"} if plan else {}
        folder.write_run({"key": folder.path.name, "name": f"{method} {task} s{seed}", "spec": spec,
                          "tags": {"workbench.hardware": hardware} | energy,
                          "provenance": {"python": "3.11", "torch": "2.11", "commit": "abc123"}, "created": created or 1e9 + self.count})
        with Journal(folder.journal_path) as journal:
            for epoch, value in enumerate(accuracy, 1):
                values = {"eval/accuracy": value, "train/epoch": epoch, "clock/wall_s": seconds * epoch, "train/lr": 0.1,
                          "memory/peak_bytes": 1e6 * seconds, "memory/bits_per_weight": 1.0 if method == "binary" else 32.0}
                if up_bytes:
                    values["comm/up_bytes"] = up_bytes * epoch
                if plan:
                    values |= {"train/samples": 100 * epoch, JOULES: 100 * epoch * joules(plan)}
                journal.append(epoch, values)
        if plan:
            folder.artifacts_path.mkdir()
            (folder.artifacts_path / "energy.json").write_text(
                json.dumps({"plan": json.loads(PLANS[plan].to_json()), "trace": json.loads(to_json(LAYERS))}))
        folder.write_status(status, reason)
        return Run(folder, status, reason)

    def compare(self, **options):
        return compare(home=self.path, **options)


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


@pytest.fixture
def two(home):
    """Two methods, three seeds each; the last value is not always the best one."""
    dense = [[0.5, 0.9, 0.88], [0.6, 0.9, 0.91], [0.4, 0.8, 0.92]]
    binary = [[0.4, 0.6, 0.7], [0.5, 0.7, 0.72], [0.3, 0.5, 0.69]]
    for seed, (a, b) in enumerate(zip(dense, binary, strict=True)):
        home.run("dense", a, seed=seed, up_bytes=1000, seconds=2.0 + seed)
        home.run("binary", b, seed=seed, up_bytes=30, seconds=1.0 + seed)
    return home


def test_table_figures(two):
    table = two.compare().table(target=0.7).set_index("method")
    assert table.index.tolist() == ["dense", "binary"]  # best first
    dense, binary = [0.88, 0.91, 0.92], [0.7, 0.72, 0.69]
    for name, values in (("dense", dense), ("binary", binary)):
        low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
        assert table["final eval/accuracy"][name] == pytest.approx(np.mean(values))
        assert table["final eval/accuracy ±"][name] == pytest.approx((high - low) / 2)
        assert table["n"][name] == 3
    assert table["best eval/accuracy"]["dense"] == pytest.approx(np.mean([0.9, 0.91, 0.92]))
    test = stats.ttest_ind(binary, dense, equal_var=False)
    ci = test.confidence_interval(0.95)
    assert table["p"]["binary"] == pytest.approx(test.pvalue)  # one comparison: Holm changes nothing
    assert table["difference ±"]["binary"] == pytest.approx((ci.high - ci.low) / 2)
    assert table["mark"].tolist() == ["best", "worse"]
    # dense reaches 0.7 at epoch 2 in every seed; binary never does in its third
    assert table["reached"].tolist() == ["3 of 3", "2 of 3"]
    assert table["comm/up_bytes to eval/accuracy 0.7"]["dense"] == 2000
    assert table["clock/wall_s to eval/accuracy 0.7"]["dense"] == pytest.approx(2 * np.mean([2, 3, 4]))
    assert math.isnan(table["comm/up_bytes to eval/accuracy 0.7"]["binary"])
    assert table["comm/up_bytes"]["binary"] == 90
    assert table["memory/bits_per_weight"].tolist() == [32, 1]
    assert "energy/gpu_j" not in table  # never measured: no column, no zero


def test_holm_over_several_methods(home):
    rng = np.random.default_rng(1)
    values = {m: 0.5 + 0.02 * i + 0.01 * rng.normal(size=4) for i, m in enumerate("abc")}
    for method, sample in values.items():
        for seed, v in enumerate(sample):
            home.run(method, [float(v)], seed=seed)
    table = home.compare().table().set_index("method")
    p = sorted(stats.ttest_ind(values[m], values["c"], equal_var=False).pvalue for m in "ab")
    assert table["p"].dropna().tolist() == pytest.approx(sorted([2 * p[0], max(2 * p[0], p[1])], reverse=True))


def test_equal_means_are_not_distinguishable(home):
    for seed in range(3):
        home.run("a", [0.80 + 0.01 * seed], seed=seed)
        home.run("b", [0.795 + 0.01 * seed], seed=seed)
    assert home.compare().table()["mark"].tolist() == ["best", "not distinguishable from the best"]


def test_failed_stopped_and_diverged_runs_are_counted_and_named(two):
    two.run("dense", [0.1], seed=7, status="diverged", reason="train/loss = nan at step 1")
    two.run("binary", [0.2], seed=8, status="failed", reason="out of memory")
    two.run("binary", [0.2], seed=9, status="stopped")
    comparison = two.compare()
    assert comparison.table()["n"].tolist() == [3, 3]
    assert sorted(x.why for x in comparison.left_out) == ["diverged: train/loss = nan at step 1", "failed: out of memory", "stopped"]
    notes = "\n".join(comparison.notes())
    assert "1 of dense, diverged (digits/mlp s7)" in notes
    asked = two.compare(include=("finished", "diverged"), where={"epochs": [1, 3]})
    assert [x.why.partition(":")[0] for x in asked.left_out] == ["failed", "stopped"]
    assert "dense epochs=1" in asked.table()["method"].tolist()


def test_labels_name_only_what_differs_within_a_method(home):
    home.run("askew", [0.5], params={"alpha": 0.2, "epsilon": 1.0})
    home.run("askew", [0.6], params={"alpha": 0.5, "epsilon": 1.0})
    home.run("dense", [0.7], params={"momentum": 0.9})
    assert [g.label for g in home.compare().groups] == ["askew alpha=0.2", "askew alpha=0.5", "dense"]
    home.run("dense", [0.7], task="moons/mlp", budget={"clock/wall_s": 3.0})
    assert [g.label for g in home.compare().groups][2:] == ["dense digits/mlp", "dense moons/mlp"]


def test_one_seed_has_no_interval_and_no_test(home):
    home.run("a", [0.5])
    home.run("b", [0.6])
    comparison = home.compare()
    table = comparison.table()
    assert table["final eval/accuracy ±"].isna().all()
    assert table["mark"].tolist() == ["best", "no test possible"]
    assert "±" not in comparison.shown().loc[0, "final eval/accuracy"]
    assert any("One run only" in note for note in comparison.notes())


def test_a_single_lucky_run_is_not_what_others_are_tested_against(home):
    for seed in range(3):
        home.run("a", [0.80 + 0.01 * seed], seed=seed)
        home.run("b", [0.60 + 0.01 * seed], seed=seed)
    home.run("lucky", [0.99])
    table = home.compare().table().set_index("method")
    assert table["mark"].to_dict() == {"lucky": "no test possible", "a": "best", "b": "worse"}
    assert table["difference"]["lucky"] == pytest.approx(0.18)


def test_mixed_hardware_is_never_averaged_silently(two):
    two.run("dense", [0.5, 0.9, 0.9], seed=3, hardware="Other CPU", seconds=50.0)
    comparison = two.compare()
    table = comparison.table().set_index("method")
    assert table["n"]["dense"] == 4  # accuracy does not depend on the machine
    assert table["final eval/accuracy"]["dense"] == pytest.approx(np.mean([0.88, 0.91, 0.92, 0.9]))
    assert math.isnan(table["clock/wall_s"]["dense"])
    assert math.isnan(table["memory/peak_bytes"]["dense"])
    assert table["clock/wall_s"]["binary"] == pytest.approx(3 * np.mean([1, 2, 3]))
    assert any("dense ran on" in note for note in comparison.notes())
    figure = comparison.curves(axis="clock/wall_s")
    assert not any((t.name or "").startswith("dense") for t in figure.data)
    assert "mixed hardware: dense" in figure.layout.title.subtitle.text
    with pytest.raises(UserError, match="different hardware"):
        two.compare(methods="dense").curves(axis="clock/wall_s")


def test_volatile_metrics_are_tested_within_one_hardware_only(home):
    for seed in range(3):
        home.run("a", [0.5], seed=seed, seconds=1 + 0.1 * seed)
        home.run("b", [0.5], seed=seed, seconds=5 + 0.1 * seed)
        home.run("c", [0.5], seed=seed, seconds=0.2 + 0.1 * seed, hardware="Other CPU")
    table = home.compare(metric="clock/wall_s").table().set_index("method")
    assert table["mark"].to_dict() == {"a": "best", "b": "worse", "c": "alone in its setting"}
    assert table["difference"]["b"] == pytest.approx(4)


def test_a_repeated_seed_counts_once(two):
    """The same seed with another number of threads is no independent run: it would narrow the interval for nothing."""
    spare = two.run("dense", [0.5, 0.9, 0.89], seed=0, threads=1)
    comparison = two.compare()
    assert comparison.table()["n"].tolist() == [3, 3]
    assert [(x.key, x.why) for x in comparison.left_out] == [(spare.key, "same seed as another run of its group")]


def test_runs_of_older_code_are_left_out_of_a_scan_but_not_of_a_list(home):
    old, new = home.run("a", [0.5], code="1111"), home.run("a", [0.6], code="2222")
    comparison = home.compare()
    assert [x.why for x in comparison.left_out] == ["made with older code"]
    assert comparison.table()["final eval/accuracy"].tolist() == [0.6]
    assert [g.label for g in compare([old, new]).groups] == ["a code=1111", "a code=2222"]


def test_what_not_all_runs_report_is_said(home):
    for seed in range(3):
        run = home.run("a", [0.5, 0.6 + 0.01 * seed], seed=seed, params={"lr": 0.12345671})
        home.run("a", [0.5, 0.6], seed=seed, params={"lr": 0.12345672})  # no other name when six digits are shown
    rows = [json.loads(line) for line in run.folder.journal_path.read_text().splitlines()]
    for row in rows:
        del row["values"]["eval/accuracy"]
    run.folder.journal_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    comparison = home.compare()
    assert comparison.table().set_index("method")["final eval/accuracy"]["a lr=0.12345671"] == pytest.approx(0.605)
    assert comparison.notes() == ["a lr=0.12345671: of its 3 runs not all report everything: eval/accuracy by 2. Means are over these."]
    assert {t.name for t in comparison.pareto("clock/wall_s").data[1:]} == {"a lr=0.12345671 (n=2)", "a lr=0.12345672 (n=3)"}
    assert "No run reports eval/miou; reported are eval/accuracy." in home.compare(metric="eval/miou").notes()


def test_settings_are_ranked_apart(home):
    for seed in range(2):
        home.run("a", [0.5 + 0.01 * seed], seed=seed, task_params={"train_size": 100})
        home.run("a", [0.9 + 0.01 * seed], seed=seed, task_params={"train_size": 1000})
    assert home.compare().table()["mark"].tolist() == ["alone in its setting"] * 2


def test_filters_and_their_errors(two):
    two.run("dense", [0.9], task="moons/mlp")
    assert two.compare(task="moons/mlp").tasks == ["moons/mlp"]
    assert two.compare(methods=["binary"], where={"seed": [0, 1]}).table()["n"].tolist() == [2]
    for options, message in (({"methods": "binry"}, "Did you mean 'binary'"), ({"task": "digits/mpl"}, "Did you mean 'digits/mlp'"),
                             ({"where": {"lrr": 1}}, "Did you mean 'lr'"), ({"metric": "eval/acuracy"}, "Did you mean 'eval/accuracy'"),
                             ({"axis": "train/loss"}, "does not accumulate"), ({"include": ["done"]}, "Unknown run status"),
                             ({"where": {"lr": 7}}, "No run to compare")):
        with pytest.raises(UserError, match=message):
            two.compare(**options)
    with pytest.raises(UserError, match="one task"):
        two.compare().curves()


def test_empty_home_and_empty_list(tmp_path):
    with pytest.raises(UserError, match="No run to compare"):
        compare(home=tmp_path)
    empty = compare([])
    assert empty.table().empty
    assert repr(empty)
    with pytest.raises(UserError, match="no run to report"):
        empty.report(tmp_path / "r.html")


def test_duplicates_in_a_list_count_once(home):
    run = home.run("a", [0.5])
    assert compare([run, run]).table()["n"].tolist() == [1]


def test_pareto_knows_directions(two):
    figure = two.compare().pareto("comm/up_bytes")
    assert "On the front: binary, dense." in figure.layout.meta["caption"]
    figure = two.compare().pareto("memory/peak_bytes")
    # dense runs one second longer in every seed, so more memory here: both stay on the front; in accuracy alone only dense would
    front = next(t for t in figure.data if t.name.startswith("Pareto"))
    assert list(front.y) == pytest.approx([np.mean([0.7, 0.72, 0.69]), np.mean([0.88, 0.91, 0.92])])


def test_figures_carry_sample_size_and_hardware(two):
    figure = two.compare().curves()
    assert {t.name for t in figure.data if t.name} == {"dense (n=3)", "binary (n=3)"}
    assert f"{CPU}, 2 threads" in figure.layout.title.subtitle.text


def test_report_holds_table_figures_parameters_runs_and_provenance(two, tmp_path):
    two.run("dense", [0.1], seed=7, status="diverged", reason="nan <b>")
    text = two.compare().report(tmp_path / "report.html", target=0.7).read_text()
    for expected in ("0.9033 ± 0.052", "worse", "1 of dense, diverged", "Example CPU 9000, 2 threads", "abc123", "c0ffee", "2 of 3",
                     "left out: diverged: nan &lt;b&gt;", "<h2 id=\"s2\">Curves", "Trade-offs", "Every run by the name of its folder"):
        assert expected in text, expected


def test_notebook_and_terminal_views(two):
    comparison = two.compare()
    assert "0.9033 ± 0.052" in comparison._repr_html_()
    assert "0.9033 ± 0.052" in repr(comparison)


# --- modelled joules ----------------------------------------------------------------------------------------


@pytest.fixture
def modelled(home):
    """Two methods with traces and one without, two seeds each, 200 samples a run."""
    for seed in range(2):
        home.run("dense", [0.5, 0.9 + 0.01 * seed], seed=seed, plan="fp32")
        home.run("mixed", [0.4, 0.8 + 0.01 * seed], seed=seed, plan="bf16_mixed")
        home.run("plain", [0.3, 0.7 + 0.01 * seed], seed=seed)
    return home


def last_joules(comparison):
    return comparison.table().set_index("method")[JOULES]


@pytest.mark.parametrize(("hardware", "scenario"), [(None, None), ("v100_like", None), (None, "without_update"), ("cpu_like", "unfused")])
def test_modelled_joules_are_worked_out_anew_from_the_traces(modelled, hardware, scenario):
    comparison = modelled.compare(hardware=hardware, scenario=scenario)
    names = hardware or "ascend_like", scenario or "as_trained"
    found = last_joules(comparison)
    assert found["dense"] == pytest.approx(200 * joules("fp32", *names), rel=1e-12)
    assert found["mixed"] == pytest.approx(200 * joules("bf16_mixed", *names), rel=1e-12)
    assert math.isnan(found["plain"])
    plain = next(g for g in comparison.groups if g.method == "plain")
    assert all(JOULES not in f for f in plain.frames)
    label = f"{JOULES} [J], {', '.join(names)}"
    notes = "\n".join(comparison.notes())
    assert f"{JOULES} is modelled for {', '.join(names)}: " in notes
    assert SCENARIOS[names[1]].description in notes
    assert "No modelled joules: plain." in notes
    figure = comparison.curves(axis=JOULES)
    assert figure.layout.xaxis.title.text == label
    drawn = next(t for t in figure.data if t.name == "dense (n=2)")
    assert list(drawn.x) == pytest.approx([100 * joules("fp32", *names), 200 * joules("fp32", *names)])
    assert comparison.curves(JOULES, "train/epoch").layout.yaxis.title.text == label
    assert comparison.only("digits/mlp").pareto(JOULES).layout.xaxis.title.text == label
    assert [c for c in comparison.shown() if JOULES in c] == [f"{JOULES}, {', '.join(names)}"]
    assert f"{JOULES} to eval/accuracy 0.5, {', '.join(names)}" in comparison.shown(0.5)
    for shown in (repr(comparison), comparison._repr_html_()):
        assert ", ".join(names) in shown


def test_modelled_joules_are_ranked_as_any_cost(modelled):
    table = modelled.compare(metric=JOULES, hardware="v100_like").table().set_index("method")
    assert table["difference"]["dense"] == pytest.approx(200 * (joules("fp32", "v100_like") - joules("bf16_mixed", "v100_like")))
    assert table["mark"]["mixed"] == "best"


def test_a_report_never_shows_modelled_joules_without_their_names(modelled, tmp_path):
    text = modelled.compare(hardware="v100_like", scenario="unfused").report(tmp_path / "r.html").read_text()
    assert f"{JOULES} is modelled for v100_like, unfused: " in text
    assert "ascend_like" not in text


def test_without_modelled_joules_nothing_is_said_of_them(two):
    assert "modelled" not in "\n".join(two.compare().notes())
    assert "No modelled joules: dense, binary." in "\n".join(two.compare(hardware="v100_like").notes())


def test_seeds_modelled_under_different_assumptions_are_not_averaged_and_such_groups_not_ranked(home):
    def relabel(run):
        record = run.folder.read_run()
        run.folder.write_run(record | {"tags": record["tags"] | {"energy.model": "v100_like, as_trained, plan fp32"}})

    for seed in range(2):
        home.run("here", [0.5], seed=seed, plan="fp32")
        relabel(home.run("there", [0.6], seed=seed, plan="fp32"))
        mixed = home.run("mixed", [0.7], seed=seed, plan="fp32")
    relabel(mixed)
    comparison = home.compare(metric=JOULES)
    marks = comparison.table().set_index("method")["mark"].to_dict()
    assert marks == {"here": "alone in its setting", "there": "alone in its setting", "mixed": "mixed, not averaged"}
    assert math.isnan(last_joules(comparison)["mixed"])
    figure = comparison.pareto(JOULES, "eval/accuracy")
    assert {t.name for t in figure.data} == {"here (n=2)", "there (n=2)"}
    assert "No front: energy/model_j of different hardware or assumptions" in figure.layout.meta["caption"]
    anew = home.compare(metric=JOULES, hardware="v100_like").table().set_index("method")["mark"].to_dict()
    assert sorted(anew.values()) == ["best", "equal to the best", "equal to the best"]


def test_joules_reported_under_different_assumptions_are_told_apart(home):
    home.run("dense", [0.5], plan="fp32")
    other = home.run("mixed", [0.5], plan="bf16_mixed")
    record = other.folder.read_run()
    other.folder.write_run(record | {"tags": record["tags"] | {"energy.model": "v100_like, as_trained, plan bf16_mixed"}})
    notes = "\n".join(home.compare().notes())
    assert "under different assumptions" in notes
    assert "ascend_like, as_trained (dense); v100_like, as_trained (mixed)" in notes
    assert home.compare().curves(axis=JOULES).layout.xaxis.title.text.endswith("ascend_like, as_trained; v100_like, as_trained")
    assert "under different assumptions" not in "\n".join(home.compare(hardware="cpu_like").notes())


@pytest.mark.parametrize(("options", "told"), [
    ({"hardware": "v10_like"}, "Did you mean 'v100_like'"), ({"scenario": "unfuse"}, "Did you mean 'unfused'"),
    ({"hardware": "eyeriss_like"}, "multiples of one multiply-accumulate, not in joules"),
])
def test_a_misspelt_choice_is_refused_before_any_run_is_read(tmp_path, options, told):
    with pytest.raises(UserError, match=told):  # else: no run to compare
        compare(home=tmp_path, **options)
